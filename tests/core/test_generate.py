"""The command line from prompt to mp4, on a tiny model of random weights in the released layout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from happyhorse_core.cli import main

ROOT = Path(__file__).parents[2]
PROMPT = "A brown horse gallops along a beach at dawn."


@pytest.fixture
def generate(models: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command in this process with small settings; keyword None leaves a setting out."""

    def run(output: Path | str = tmp_path / "clip.mp4", **changes: object) -> int:
        settings = {"models": models, "prompt": PROMPT, "seconds": 0.6, "size": "64x96", "seed": 7, "output": output}
        settings |= changes
        arguments = ["generate"]
        for name, value in settings.items():
            if value is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        return main(arguments)

    return run


def photograph(path: Path, width: int = 90, height: int = 70) -> Path:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(path)
    return path


def tone(path: Path, seconds: float, rate: int = 22_050, level: float = 0.5) -> Path:
    wave = level * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def probe(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Frames [N, H, W, 3], sound [2, M] at 44,100 Hz and the metadata, after checking what every clip must be."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert len(container.streams) == 2
        assert (video.codec.name, video.average_rate, video.pix_fmt) == ("h264", 25, "yuv420p")
        assert (audio.codec.name, audio.rate, audio.layout.name) == ("aac", 44_100, "stereo")
        lengths = [float(s.duration * s.time_base) for s in (video, audio)]
        assert abs(lengths[0] - lengths[1]) <= 1 / 25
        metadata = dict(container.metadata)
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video)])
    with av.open(str(path)) as container:
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    return frames, sound, metadata


def test_a_prompt_becomes_a_clip_with_sound(generate: Callable[..., int], tmp_path: Path) -> None:
    assert generate() == 0
    frames, sound, metadata = probe(tmp_path / "clip.mp4")
    assert frames.shape == (13, 96, 64, 3)
    assert sound.shape[1] >= 13 / 25 * 44_100
    assert frames.std() > 1
    assert sound.std() > 1e-4
    settings = json.loads(metadata["comment"])
    expected = {"prompt": PROMPT, "seed": 7, "steps": 8, "width": 64, "height": 96, "frames": 13, "model": "distilled"}
    assert expected.items() <= settings.items()


def test_the_seed_decides_the_clip(generate: Callable[..., int], tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.mp4" for n in range(3)]
    for file, seed in zip(files, (7, 7, 8), strict=True):
        assert generate(file, seed=seed) == 0
    first, again, other = (file.read_bytes() for file in files)
    assert first == again
    assert first != other


def test_the_smallest_and_the_largest_seed_make_clips(generate: Callable[..., int], tmp_path: Path) -> None:
    for seed in (0, 2**64 - 1):
        assert generate(tmp_path / f"{seed}.mp4", seed=seed, steps=2, seconds=0.2, model="base") == 0
    assert (tmp_path / "0.mp4").read_bytes() != (tmp_path / f"{2**64 - 1}.mp4").read_bytes()


def test_a_clip_is_not_replaced_while_its_sound_is_used(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(seconds=0.4) == 0
    clip = tmp_path / "clip.mp4"
    before = clip.read_bytes()
    assert generate(audio=clip, seconds=None) == 1
    assert "--output: found the file of --audio" in capsys.readouterr().err
    assert clip.read_bytes() == before
    (tmp_path / "folder.mp4").mkdir()
    assert generate(tmp_path / "folder.mp4") == 1
    assert "exists and is not a file" in capsys.readouterr().err


def test_a_picture_becomes_the_first_frame_and_sets_the_shape(generate: Callable[..., int], tmp_path: Path) -> None:
    picture = photograph(tmp_path / "in.png", 900, 300)
    assert generate(image=picture, size=None, seconds=0.2) == 0
    frames, _, metadata = probe(tmp_path / "clip.mp4")
    assert frames.shape[2] / frames.shape[1] == pytest.approx(3, rel=0.15)
    assert json.loads(metadata["comment"])["from_image"] is True
    plain = tmp_path / "plain.mp4"
    assert generate(plain, size=f"{frames.shape[2]}x{frames.shape[1]}", seconds=0.2) == 0
    assert plain.read_bytes() != (tmp_path / "clip.mp4").read_bytes()


@pytest.mark.parametrize("model", ["distilled", "base"])
def test_a_given_sound_sets_the_length_and_comes_out_as_it_was(
    generate: Callable[..., int], tmp_path: Path, model: str
) -> None:
    assert generate(audio=tone(tmp_path / "in.wav", 1.0), seconds=None, model=model, steps=3) == 0
    frames, sound, _ = probe(tmp_path / "clip.mp4")
    assert len(frames) == 25
    middle = sound[:, 10_000:30_000]
    expected = 0.5 * np.exp(2j * np.pi * 440 * np.arange(20_000) / 44_100)
    strength = np.abs((middle * expected.conj()).mean(-1)) / (0.5 * 0.5 / 2)
    assert strength == pytest.approx(1, abs=0.03)
    assert middle.std() == pytest.approx(0.5 / 2**0.5, rel=0.03)


def test_the_base_model_is_guided_for_32_steps(generate: Callable[..., int], tmp_path: Path) -> None:
    assert generate(model="base", seconds=0.2) == 0
    settings = json.loads(probe(tmp_path / "clip.mp4")[2]["comment"])
    assert (settings["model"], settings["steps"]) == ("base", 32)
    assert "blurry" in settings["negative_prompt"]
    other = tmp_path / "other.mp4"
    assert generate(other, model="base", seconds=0.2, negative_prompt="rain") == 0
    assert other.read_bytes() != (tmp_path / "clip.mp4").read_bytes()


def test_guidance_of_the_base_model_can_be_chosen(generate: Callable[..., int], tmp_path: Path) -> None:
    def clip(scales: str | None, **more: str) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        path = tmp_path / f"{scales}-{len(more)}.mp4"
        assert generate(path, guidance=scales, model="base", seconds=0.2, steps=3, dtype="float32", **more) == 0
        frames, sound, metadata = probe(path)
        return frames.astype(float), sound, json.loads(metadata["comment"])

    usual, same, plain = clip(None), clip("5,2,5"), clip("1,1,1")
    assert same[2] == usual[2] and plain[2]["guidance_early"] == 1
    difference = np.abs(plain[0] - usual[0]).mean()
    assert 10 * np.abs(same[0] - usual[0]).mean() < difference
    assert np.abs(clip("1,2,5")[0] - usual[0]).mean() > difference / 4
    assert not np.array_equal(clip("5,2,1")[1], usual[1])
    # Where the scale is 1, the negative prompt is of no account.
    assert 4 * np.abs(clip("1,1,1", negative_prompt="rain")[0] - plain[0]).mean() < difference


@pytest.mark.parametrize(
    ("model", "guidance", "said"),
    [
        ("base", "5", "expected three numbers"),
        ("base", "a,b,c", "found 'a,b,c'"),
        ("base", "5,nan,5", "found 5,nan,5, expected each to be 0 to 100"),
        ("base", "5,101,5", "found 5,101,5"),
        ("distilled", "5,2,5", "choose --model base"),
    ],
)
def test_guidance_that_can_not_be_is_named(
    generate: Callable[..., int], capsys: pytest.CaptureFixture[str], model: str, guidance: str, said: str
) -> None:
    assert generate(model=model, guidance=guidance) == 1
    assert said in capsys.readouterr().err


def test_float32_and_bfloat16_are_two_precisions(generate: Callable[..., int], tmp_path: Path) -> None:
    files = [tmp_path / "bf16.mp4", tmp_path / "float32.mp4"]
    for file in files:
        assert generate(file, dtype=file.stem) == 0
    assert files[0].read_bytes() != files[1].read_bytes()


def test_sizes_off_the_grid_are_cut_and_said(
    generate: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate(size="70x100", seconds=0.2) == 0
    assert probe(tmp_path / "clip.mp4")[0].shape[1:3] == (96, 64)
    assert "70x100 becomes 64x96" in caplog.text


def test_a_long_prompt_is_cut_and_said(generate: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    assert generate(prompt="horse " * 2000, seconds=0.2) == 0
    assert "640" in caplog.text


BAD_SETTINGS = {
    "empty prompt": ({"prompt": "  "}, "prompt"),
    "no seconds": ({"seconds": 0}, "seconds"),
    "one frame": ({"seconds": 0.04}, "seconds"),
    "an hour": ({"seconds": 3600}, "seconds"),
    "zero size": ({"size": "0x64"}, "width"),
    "negative size": ({"size": "64x-64"}, "height"),
    "absurd size": ({"size": "64x100000"}, "height"),
    "no steps": ({"steps": 0}, "steps"),
    "negative seed": ({"seed": -1}, "seed"),
    "seed too large": ({"seed": 2**64}, "seed"),
    "steps too many": ({"steps": 10**19}, "steps"),
    "huge size": ({"size": "999999999x64"}, "width"),
    "huge seconds": ({"seconds": 1e308}, "seconds"),
    "no models": ({"models": "nowhere"}, "nowhere"),
    "no transformer": ({"transformer": "nowhere.safetensors"}, "nowhere.safetensors"),
    "no image": ({"image": "nowhere.png"}, "nowhere.png"),
    "no audio": ({"audio": "nowhere.wav"}, "nowhere.wav"),
    "no folder": ({"output": "nowhere/clip.mp4"}, "nowhere"),
    "no mp4": ({"output": "clip.gif"}, "clip.gif"),
    "a folder": ({"output": "."}, "expected a name that ends in .mp4"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_named(
    generate: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, named = BAD_SETTINGS[case]
    assert generate(**changes) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert named in error.partition("error: ")[2]
    assert list(tmp_path.iterdir()) == []


def damage_index(models: Path) -> str:
    (models / "distill/model.safetensors.index.json").unlink()
    return "distill"


def damage_shard(models: Path) -> str:
    shard = next((models / "distill").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    return shard.name


def damage_end(models: Path) -> str:
    shard = next((models / "t5gemma-9b-9b-ul2").glob("*-00001-of-*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    return shard.name


def damage_lfs(models: Path) -> str:
    file = models / "stable-audio-open-1.0/model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4853473044\n")
    return "Git LFS"


def damage_kind(models: Path) -> str:
    shutil.copyfile(models / "Wan2.2-TI2V-5B/Wan2.2_VAE.pth", models / "turbo_vae/checkpoint-340000.ckpt")
    return "checkpoint-340000.ckpt"


def damage_role(models: Path) -> str:
    from safetensors.torch import load_file, save_file

    tensors = {}
    for shard in (models / "1080p_sr").glob("*.safetensors"):
        tensors |= load_file(shard)
    shutil.rmtree(models / "distill")
    (models / "distill").mkdir()
    save_file(tensors, models / "distill/model.safetensors", {"happyhorse.role": "1080p_sr"})
    return "1080p_sr"


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def damage_pickle(models: Path) -> str:
    torch.save({"ema_state_dict": Bomb()}, models / "turbo_vae/checkpoint-340000.ckpt")
    return "checkpoint-340000.ckpt"


@pytest.mark.parametrize(
    "damage",
    [damage_index, damage_shard, damage_end, damage_lfs, damage_kind, damage_role, damage_pickle],
    ids=lambda f: f.__name__,
)
def test_damaged_models_are_named_and_nothing_is_written(
    generate: Callable[..., int],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    named = damage(copy)
    assert generate(models=copy, seconds=0.2) == 1
    assert named in capsys.readouterr().err.partition("error: ")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_super_resolution_model_is_refused_by_its_folder(
    generate: Callable[..., int], models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(transformer=models / "540p_sr") == 1
    error = capsys.readouterr().err
    assert "540p_sr" in error
    assert "Expected the distilled model" in error


def test_a_sound_too_short_is_named(
    generate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(audio=tone(tmp_path / "in.wav", 0.1), seconds=None) == 1
    assert "audio" in capsys.readouterr().err


def command(models: Path, output: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "happyhorse_core", "generate", "--models", str(models), "--prompt", PROMPT]
    return [*start, "--seed", "1", "--output", str(output), *more]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send to one process on Windows")
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("Denoise", signal.SIGINT),
        ("Decode video", signal.SIGINT),
        ("Denoise", signal.SIGTERM),
        ("Denoise", signal.SIGHUP),
    ],
)
def test_a_signal_that_ends_it_leaves_nothing(models: Path, tmp_path: Path, stage: str, number: int) -> None:
    output = tmp_path / "clip.mp4"
    output.write_bytes(b"an older clip")
    arguments = ("--seconds", "12", "--size", "192x192", "--steps", "20")
    process = subprocess.Popen(command(models, output, *arguments), cwd=ROOT, stderr=subprocess.PIPE)
    seen, deadline = b"", time.monotonic() + 120
    while stage.encode() not in seen and time.monotonic() < deadline:
        seen += os.read(process.stderr.fileno(), 4096)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert b"stopped; nothing was written" in error
    assert b"Traceback" not in error
    assert output.read_bytes() == b"an older clip"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send to one process on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_are_loaded_ends_it_in_one_line(number: int) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "happyhorse_core", "generate", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while b"torch" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        shown, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert [line for line in error.splitlines() if not line.startswith(b"import time:")] == [
        b"stopped; nothing was written"
    ]
    assert not shown


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals")
def test_a_signal_that_was_ignored_from_the_start_stays_so(models: Path, tmp_path: Path) -> None:
    output = tmp_path / "clip.mp4"
    ignoring = ["bash", "-c", 'trap "" HUP; exec "$@"', "bash"]  # what nohup does
    arguments = command(models, output, "--seconds", "0.2", "--size", "64x64")
    with subprocess.Popen([*ignoring, *arguments], cwd=ROOT, stderr=subprocess.PIPE) as process:
        while b"Denoise" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0 and output.is_file()


def test_too_little_memory_is_an_error_and_not_a_crash(models: Path, tmp_path: Path) -> None:
    # 4096 x 4096 for 30 s is three million tokens, whose first tensors alone pass this limit.
    arguments = command(models, tmp_path / "clip.mp4", "--seconds", "30", "--size", "4096x4096")
    limited = ["bash", "-c", 'ulimit -v 3500000; exec "$@"', "bash", *arguments]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["generate", "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "models",
        "prompt",
        "image",
        "audio",
        "seconds",
        "size",
        "steps",
        "seed",
        "output",
        "device",
        "dtype",
    ):
        after = shown.rpartition(f"\n  --{option}")[2].splitlines()
        text = " ".join(after[0].split()[1:] + ([after[1].strip()] if len(after) > 1 else []))
        assert len(text.split()) >= 4, f"--{option}: {text!r}"

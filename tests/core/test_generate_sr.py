"""The command line's super-resolution stage, on a tiny model of random weights in the released layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_generate import PROMPT, photograph, probe, tone

from happyhorse_core import memory
from happyhorse_core.cli import main
from happyhorse_core.media.video_file import Mp4Writer
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder


@pytest.fixture
def generate(models: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command in this process with small settings; keyword None leaves a setting out."""

    def run(output: Path | str = tmp_path / "clip.mp4", **changes: object) -> int:
        settings = {"models": models, "prompt": PROMPT, "seconds": 0.2, "size": "96x64", "seed": 7, "output": output}
        settings |= {"steps": 2} | changes
        arguments = ["generate"]
        for name, value in settings.items():
            if value is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        return main(arguments)

    return run


@pytest.mark.parametrize("model", ["540p_sr", "1080p_sr"])
def test_a_clip_is_enlarged(generate: Callable[..., int], tmp_path: Path, model: str) -> None:
    assert generate(upscale="192x128", sr_model=model) == 0
    frames, sound, metadata = probe(tmp_path / "clip.mp4")
    assert frames.shape == (5, 128, 192, 3) and frames.std() > 1
    settings = json.loads(metadata["comment"])
    expected = {"super_resolution": model, "super_resolution_steps": 5, "enlarged_from": "96x64", "width": 192}
    assert expected.items() <= settings.items()
    assert generate(tmp_path / "small.mp4") == 0
    small, small_sound, metadata = probe(tmp_path / "small.mp4")
    assert small.shape == (5, 64, 96, 3)
    assert "super_resolution" not in json.loads(metadata["comment"])
    assert (sound == small_sound).all(), "the sound is the first stage's"


def test_the_size_chooses_the_model(generate: Callable[..., int], tmp_path: Path) -> None:
    assert generate(upscale="128x96") == 0
    assert json.loads(probe(tmp_path / "clip.mp4")[2]["comment"])["super_resolution"] == "540p_sr"


def test_the_model_chooses_the_size(generate: Callable[..., int], tmp_path: Path) -> None:
    assert generate(sr_model="540p_sr", size="448x256") == 0
    assert probe(tmp_path / "clip.mp4")[0].shape == (5, 512, 896, 3)


def test_the_seed_decides_the_larger_clip(generate: Callable[..., int], tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.mp4" for n in range(3)]
    for file, seed in zip(files, (7, 7, 8), strict=True):
        assert generate(file, seed=seed, upscale="128x96") == 0
    first, again, other = (file.read_bytes() for file in files)
    assert first == again
    assert first != other


def test_a_picture_is_held_at_the_larger_size(generate: Callable[..., int], tmp_path: Path) -> None:
    clips = []
    for name, width in (("wide", 300), ("other", 310)):
        picture = photograph(tmp_path / f"{name}.png", width, 200)
        assert generate(tmp_path / f"{name}.mp4", image=picture, upscale="192x128", dtype="float32") == 0
        clips.append(probe(tmp_path / f"{name}.mp4")[0])
    assert clips[0].shape == (5, 128, 192, 3)
    assert generate(tmp_path / "plain.mp4", upscale="192x128", dtype="float32") == 0
    first, plain = clips[0][0].astype(float), probe(tmp_path / "plain.mp4")[0][0].astype(float)
    assert abs(first - clips[1][0]).mean() < abs(first - plain).mean()


def test_a_given_sound_sets_the_length_of_the_larger_clip(generate: Callable[..., int], tmp_path: Path) -> None:
    assert generate(audio=tone(tmp_path / "in.wav", 0.5), seconds=None, upscale="128x96") == 0
    assert probe(tmp_path / "clip.mp4")[0].shape == (13, 96, 128, 3)


BAD_SETTINGS = {
    "smaller": ({"upscale": "64x64"}, "width: found 64, expected at least 96"),
    "absurd": ({"upscale": "8192x64"}, "width"),
    "zero": ({"upscale": "0x512"}, "--upscale: found 0x512"),
    "no file": ({"upscale": "128x96", "sr_transformer": "nowhere.safetensors"}, "nowhere.safetensors"),
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
    assert named in capsys.readouterr().err.partition("error: ")[2]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_makes_clips_is_refused_by_its_folder(
    generate: Callable[..., int], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(upscale="128x96", sr_transformer=models / "base") == 1
    error = capsys.readouterr().err
    assert "this is the base model" in error and "can't enlarge" in error and "Expected the 540p_sr model" in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_name_tells_nothing_is_taken_as_asked(
    generate: Callable[..., int], models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "540p_sr", tmp_path / "renamed")
    files = [tmp_path / f"{n}.mp4" for n in range(2)]
    assert generate(files[0], upscale="128x96", sr_transformer=tmp_path / "renamed") == 0
    assert generate(files[1], upscale="128x96") == 0
    first, second = (probe(file)[0] for file in files)
    assert (first == second).all()


def test_a_missing_checkpoint_is_named(
    generate: Callable[..., int], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models, copy, ignore=shutil.ignore_patterns("540p_sr"))
    assert generate(models=copy, upscale="128x96") == 1
    error = capsys.readouterr().err
    assert "super-resolution transformer: not found" in error and "540p_sr/" in error


def test_odd_sizes_are_said(generate: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    assert generate(upscale="130x130") == 0
    assert "130x130 becomes 128x128" in caplog.text
    assert "128 x 128 has another shape than 896 x 512" in caplog.text
    assert "stretched" in caplog.text


def test_help_explains_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--upscale WxH", "--sr-model", "--sr-transformer"))


def test_little_memory_makes_tiles_and_the_same_clip(
    generate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """35 MB are enough for the tiny transformer, and not for a window of 640 x 64 pixels at once."""
    settings = {"size": "640x64", "seconds": 0.2, "dtype": "float32"}
    frames: list[np.ndarray] = []
    write = Mp4Writer.add_frames
    # What is compared is what the encoder gets: it is not lossless.
    monkeypatch.setattr(Mp4Writer, "add_frames", lambda self, part: frames.append(part.copy()) or write(self, part))
    assert generate(tmp_path / "whole.mp4", **settings) == 0
    whole = np.concatenate(frames).astype(int)
    frames.clear()
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable: 35000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    widths = []
    plain = TurboDecoder.decode_window
    monkeypatch.setattr(
        TurboDecoder,
        "decode_window",
        lambda self, part, window: widths.append(part.shape[4]) or plain(self, part, window),
    )
    assert generate(tmp_path / "tiles.mp4", **settings) == 0
    assert len(widths) == 2 and max(widths) <= 32
    tiles = np.concatenate(frames).astype(int)
    assert whole.shape == tiles.shape == (5, 64, 640, 3)
    assert abs(whole - tiles).max() <= 1

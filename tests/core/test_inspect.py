"""``inspect`` says what weights are, in every layout that the tiny stack and the communities have."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_helpers import community_float8, is_linear, saved, split_layout, tensors_of

from happyhorse_core.cli import main
from happyhorse_core.convert.run import convert
from happyhorse_core.describe.report import gibibytes, spans
from tools.make_tiny_checkpoints import write_stack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for layout in ("released", "comfyui"):
        write_stack(folder / layout, layout, 0)
    return folder


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture):
    """Runs the command; its exit status and its answer: texts by title, several of one title in a list."""

    def run(path: Path) -> tuple[int, dict[str, list[str]]]:
        status = main(["inspect", str(path)])
        printed = capsys.readouterr()
        assert status == 0 or printed.out or printed.err.startswith("error: ")
        answer: dict[str, list[str]] = {"error": [printed.err]} if printed.err else {}
        for line in printed.out.splitlines():
            title, _, text = line.partition("  ")
            answer.setdefault(title, []).append(text.strip())
        return status, answer

    return run


TRANSFORMERS = {"distill": "distilled", "base": "base", "540p_sr": "540p_sr", "1080p_sr": "1080p_sr"}


@pytest.mark.parametrize("folder", TRANSFORMERS)
@pytest.mark.parametrize("layout", ["released", "comfyui/diffusion_models/daVinci-MagiHuman"])
def test_transformers(models, inspected, layout, folder):
    status, answer = inspected(models / layout / folder)
    assert status == 0
    assert answer["kind"] == ["transformer"]
    assert answer["role"] == [f"{TRANSFORMERS[folder]} (from the folder name {folder})"]
    assert answer["tensors"] == ["59 of 59 that the model has"]
    count = sum(tensor.numel() for tensor in tensors_of(models / layout / folder).values())
    assert answer["parameters"] == [f"{count:,}"]
    assert answer["quantisation"] == ["none"]
    stored = answer["stored"][0]
    assert ("bfloat16" in stored) == (folder == "base")
    assert answer["hidden size"] == ["64"]
    assert (answer["num layers"], answer["num heads"], answer["num kv heads"]) == (["6"], ["4"], ["2"])
    assert (answer["mm layers"], answer["gelu7 layers"]) == (["0-1, 4-5"], ["0-1"])
    assert answer["local attn layers"] == (["0-5"] if folder == "1080p_sr" else ["none"])
    assert "problem" not in answer


@pytest.mark.parametrize(
    ("path", "kind", "title", "text"),
    [
        ("released/t5gemma-9b-9b-ul2", "text-encoder", "vocab size", "768"),
        ("comfyui/text_encoders/t5gemma-9b-9b-ul2", "text-encoder", "tokenizer", "tokenizer.json beside it"),
        ("released/turbo_vae/checkpoint-340000.ckpt", "video-decoder", "patch size", "2"),
        ("comfyui/vae/checkpoint-340000.ckpt", "video-decoder", "latent channels", "48"),
        ("released/Wan2.2-TI2V-5B/Wan2.2_VAE.pth", "image-encoder", "latent channels", "48"),
        ("released/stable-audio-open-1.0", "audio-vae", "decoder strides", "2, 4, 4, 8, 8"),
        ("released/stable-audio-open-1.0/model.safetensors", "audio-vae", "audio channels", "2"),
        ("comfyui/vae/stable_audio_open_1.0.safetensors", "audio-vae", "latent channels", "64"),
    ],
)
def test_the_other_kinds(models, inspected, path, kind, title, text):
    status, answer = inspected(models / path)
    assert (status, answer["kind"], answer[title]) == (0, [kind], [text])
    assert "role" not in answer


def test_what_is_not_used_of_a_file(models, inspected):
    _, answer = inspected(models / "released/stable-audio-open-1.0")
    assert answer["not used"][0].startswith("9 tensors of other networks")
    assert "not used" not in inspected(models / "released/turbo_vae/checkpoint-340000.ckpt")[1]


@pytest.mark.parametrize(
    ("dtype", "quantisation"),
    [
        ("bf16", "none"),
        ("fp8", "24 tensors rounded to float8, without scales"),
        ("fp8-scaled", "24 layers float8_e4m3fn (ComfyUI's notes), 16 of them with a scale for each row or expert"),
        ("nvfp4", "24 layers nvfp4 (ComfyUI's notes)"),
    ],
)
def test_converted_transformers(models, inspected, tmp_path, dtype, quantisation):
    convert(models / "released/540p_sr", tmp_path / "new.safetensors", dtype=dtype)
    status, answer = inspected(tmp_path / "new.safetensors")
    assert status == 0
    assert answer["quantisation"] == [quantisation]
    assert answer["role"] == ["540p_sr (from the file's metadata)"]
    assert f"happyhorse.dtype = {dtype}" in answer["metadata"]
    assert [line for line in answer["metadata"] if line.startswith("happyhorse.sources")][0].endswith("characters)")


@pytest.mark.parametrize("layout", ["split", "prefixed", "community float8", "a text encoder in one file"])
def test_community_layouts(models, inspected, tmp_path, layout):
    tensors = tensors_of(models / "released/distill")
    path = tmp_path / "file.safetensors"
    if layout == "a text encoder in one file":
        convert(models / "released/t5gemma-9b-9b-ul2", path, dtype="fp8-scaled")
    elif layout == "split":
        saved(path, split_layout(tensors))
    elif layout == "prefixed":
        saved(path, {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()})
    else:
        saved(path, community_float8(tensors))
    status, answer = inspected(path)
    assert (status, answer.get("problem")) == (0, None)
    if layout == "a text encoder in one file":
        assert (answer["tokenizer"], answer["tensors"]) == (["in the file"], ["46 of 46 that the model has"])
    else:
        assert answer["tensors"] == ["59 of 59 that the model has"]
        assert answer["role"][0].startswith("distilled (assumed")
    assert ("layout" in answer) == (layout == "split")
    expected = {"community float8": "24 layers float8 with a scale each"}
    if layout in expected:
        assert answer["quantisation"] == [expected[layout]]


# What can't be used


def test_a_tensor_that_is_missing_and_one_that_is_left_over(models, inspected, tmp_path):
    tensors = tensors_of(models / "released/distill")
    tensors["final_norm_audio.bias"] = torch.zeros(3)
    del tensors["final_norm_audio.weight"]
    tensors["final_linear_video.weight"] = tensors["final_linear_video.weight"][1:]
    status, answer = inspected(saved(tmp_path / "file.safetensors", tensors))
    assert status == 1
    assert answer["tensors"] == ["58 of 59 that the model has"]
    missing, extra, wrong = answer["problem"]
    assert missing == "1 tensors are missing: final_norm_audio.weight"
    assert extra == "1 tensors are not expected: final_norm_audio.bias"
    assert wrong.endswith("final_linear_video.weight [191, 64], expected [192, 64]")


def test_a_text_encoder_without_its_tokenizer(models, inspected, tmp_path):
    folder = Path(shutil.copytree(models / "released/t5gemma-9b-9b-ul2", tmp_path / "text"))
    (folder / "tokenizer.json").unlink()
    status, answer = inspected(folder)
    assert (status, answer["tokenizer"]) == (1, ["missing"])
    assert "tokenizer.json" in answer["problem"][0]


def test_a_scale_that_was_lost(models, inspected, tmp_path):
    tensors = community_float8(tensors_of(models / "released/distill"))
    del tensors["block.layers.2.mlp.down_proj.weight.__fp8_scale"]
    status, answer = inspected(saved(tmp_path / "file.safetensors", tensors))
    assert status == 1
    assert "block.layers.2.mlp.down_proj.weight" in answer["problem"][0]


def test_a_format_that_only_comfyui_reads(models, inspected, tmp_path):
    tensors = tensors_of(models / "released/distill")
    note = torch.frombuffer(bytearray(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    for name in [name for name in tensors if is_linear(name)]:
        layer = name.removesuffix(".weight")
        tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int8)
        tensors |= {f"{layer}.comfy_quant": note.clone(), f"{layer}.weight_scale": torch.tensor(1.0)}
    status, answer = inspected(saved(tmp_path / "file.safetensors", tensors))
    assert status == 1
    assert answer["quantisation"][0].startswith("24 layers int8_tensorwise (ComfyUI's notes)")
    assert answer["problem"] == ["only the ComfyUI nodes can read int8_tensorwise"]


def test_a_packed_weight_of_another_size(models, inspected, tmp_path):
    convert(models / "released/distill", tmp_path / "new.safetensors", dtype="nvfp4")
    tensors = tensors_of(tmp_path / "new.safetensors")
    name = "block.layers.2.mlp.down_proj"
    tensors[f"{name}.weight"] = torch.zeros(96, 88, dtype=torch.uint8)
    status, answer = inspected(saved(tmp_path / "file.safetensors", tensors))
    assert (status, answer["problem"]) == (
        1,
        [f"1 tensors are of another shape: {name}.weight [96, 176], expected [64, 168]"],
    )
    del tensors[f"{name}.weight_scale_2"]
    status, answer = inspected(saved(tmp_path / "file.safetensors", tensors))
    assert status == 1
    assert f"{name}.weight_scale_2 are expected" in answer["problem"][-1]


def test_what_is_no_weights(models, inspected, tmp_path):
    shutil.copy(models / "released/t5gemma-9b-9b-ul2/config.json", tmp_path / "file.safetensors")
    other = saved(tmp_path / "other.safetensors", {"a.weight": torch.zeros(2)})
    for path, words in (
        (tmp_path / "nothing.safetensors", "no such file"),
        (tmp_path / "file.safetensors", "no safetensors file"),
        (other, "no known model"),
    ):
        status, answer = inspected(path)
        assert status == 1
        assert str(path) in answer["error"][0]
        assert words in answer["error"][0]


@pytest.mark.parametrize(
    ("numbers", "text"), [((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8"), ((3,), "3"), ((), ""), ((2, 1), "1-2")]
)
def test_spans(numbers, text):
    assert spans(numbers) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (2**30, "1.00 GiB")])
def test_sizes(size, text):
    assert gibibytes(size) == text


def test_nothing_is_said_where_nobody_reads(models):
    """As with ``inspect FILE | head -1``."""
    command = [sys.executable, "-m", "happyhorse_core", "inspect", str(models / "released" / "base")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert errors == ""
    assert process.returncode == 141


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize("what", ["pipe", "/dev/zero"])
def test_a_file_of_the_folder_that_never_ends(models, inspected, tmp_path, name, what):
    folder = tmp_path / "folder"
    shutil.copytree(models / "released/t5gemma-9b-9b-ul2", folder)
    (folder / name).unlink()
    os.mkfifo(folder / name) if what == "pipe" else (folder / name).symlink_to(what)
    status, answer = inspected(folder)
    assert (status, list(answer)) == (1, ["error"])
    assert answer["error"][0].startswith(f"error: {folder / name}: found a device or a pipe")


@pytest.mark.parametrize("weight_map", [True, 3, "a", ["a"], None])
def test_an_index_that_maps_nothing(inspected, tmp_path, weight_map):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    status, answer = inspected(tmp_path)
    assert status == 1
    assert answer["error"] == [
        f"error: {index}: found no weight_map; expected the file of each tensor in it. Download it again.\n"
    ]


def test_names_and_metadata_can_t_write_to_the_terminal(models, capsys, tmp_path):
    source = next((models / "comfyui/vae").glob("stable*"))
    tensors = tensors_of(source) | {"pretransform.model.two\nlines\x1b[31m": torch.zeros(1)}
    main(["inspect", str(saved(tmp_path / "x.safetensors", tensors, key="\x1b[2J\nkind  none"))])
    printed = capsys.readouterr().out
    assert "metadata" in printed
    assert "two\\nlines\\x1b[31m" in printed
    assert "\x1b" not in printed
    assert not [line for line in printed.splitlines() if line.startswith("kind  none")]

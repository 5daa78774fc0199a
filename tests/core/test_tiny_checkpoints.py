"""The tiny stack is laid out as the released weights are, repeats itself byte for byte, and stays numerically tame."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps
from happyhorse_core.text.load import load_text_encoder
from happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from happyhorse_core.weights.fill import load_module
from happyhorse_core.weights.source import open_source
from tools import make_tiny_checkpoints as tiny

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
ROLES = ("distill", "base", "540p_sr", "1080p_sr")
SHARDED = {
    role: [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    for role, n in zip(ROLES, (3, 2, 3, 3), strict=True)
}
TEXT_FILES = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
TEXT_FILES += ["model.safetensors.index.json", "config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in tiny.LAYOUTS}
    for layout, folder in folders.items():
        tiny.write_stack(folder, layout, seed=5)
    return folders


@pytest.fixture(scope="module")
def released(stacks) -> Path:
    return stacks["released"]


def files_under(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def golden_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with safe_open(GOLDEN / f"{name}.weights.safetensors", "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def test_files_of_both_layouts(stacks):
    transformers = {
        f"{role}/{file}" for role in ROLES for file in [*SHARDED[role], "model.safetensors.index.json"]
    }  # fmt: skip
    text = {f"t5gemma-9b-9b-ul2/{file}" for file in TEXT_FILES}
    assert set(files_under(stacks["released"])) == transformers | text | {
        "turbo_vae/TurboV3-Wan22-TinyShallow_7_7.json",
        "turbo_vae/checkpoint-340000.ckpt",
        "stable-audio-open-1.0/model.safetensors",
        "stable-audio-open-1.0/model_config.json",
        "Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
    }
    host = {f"diffusion_models/daVinci-MagiHuman/{name}" for name in transformers}
    host |= {f"text_encoders/{name}" for name in text}
    assert set(files_under(stacks["comfyui"])) == host | {
        "vae/checkpoint-340000.ckpt",
        "vae/Wan2.2_VAE.pth",
        "vae/stable_audio_open_1.0.safetensors",
    }


def test_every_part_is_small(released):
    sizes = {path: path.stat().st_size for path in released.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 3e6
    assert sum(sizes.values()) < 20e6


def test_both_layouts_hold_the_same_bytes(stacks):
    by_name = {
        layout: {"/".join(name.split("/")[-2:]): digest for name, digest in files_under(folder).items()}
        for layout, folder in stacks.items()
    }
    for role in ROLES:
        for file in SHARDED[role]:
            assert by_name["released"][f"{role}/{file}"] == by_name["comfyui"][f"{role}/{file}"]
    assert (
        by_name["released"]["stable-audio-open-1.0/model.safetensors"]
        == by_name["comfyui"]["vae/stable_audio_open_1.0.safetensors"]
    )


def test_one_seed_gives_the_same_bytes_in_another_process(released, tmp_path):
    command = [sys.executable, ROOT / "tools" / "make_tiny_checkpoints.py", tmp_path / "again", "--seed", "5"]
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert str(tmp_path / "again") in done.stdout
    assert files_under(tmp_path / "again") == files_under(released)


def test_another_seed_gives_other_weights(released, tmp_path):
    tiny.write_transformer(tmp_path / "distill", "distill", seed=6)
    shard = SHARDED["distill"][0]
    assert files_under(tmp_path / "distill")[shard] != files_under(released / "distill")[shard]


def test_the_transformers_of_a_stack_differ(released):
    name = "block.layers.3.mlp.down_proj.weight"
    weights = [open_source(released / role).read(name).float() for role in ROLES]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout: found 'diffusers'"):
        tiny.write_stack(tmp_path, "diffusers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("golden", "shapes"),
    [
        ("transformer", tiny.transformer_shapes(text_channels=24)),
        ("turbo_vaed", tiny.turbo_decoder_shapes()),
        ("audio_vae", tiny.oobleck_shapes()),
    ],
)
def test_names_and_shapes_are_those_of_the_reference(golden, shapes):
    assert shapes == golden_shapes(golden)


def test_video_autoencoder_has_the_reference_encoder_and_more(released):
    shapes = open_source(released / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth").shapes
    expected = golden_shapes("image_encoder")
    assert {name: shapes[name] for name in expected} == expected
    assert {name.split(".")[0] for name in set(shapes) - set(expected)} == {"decoder", "conv2"}


def test_text_encoder_has_the_released_names(released):
    released_names = json.loads((GOLDEN / "full_size_text_encoder.json").read_text())
    layers = tiny.TEXT_CONFIG["num_hidden_layers"]
    kept = {n for n in released_names if not (m := re.search(r"layers\.(\d+)\.", n)) or int(m[1]) < layers}
    found = open_source(released / "t5gemma-9b-9b-ul2")
    assert {name for name in found.names if name.startswith("model.encoder.")} == kept
    assert any(name.startswith("model.decoder.layers.0.cross_attn.") for name in found.names)
    assert set(found.dtypes.values()) == {torch.bfloat16}


def test_dtypes_are_those_of_the_released_folders(released):
    full_size = json.loads((GOLDEN / "full_size_transformer.json").read_text())
    expected = {name.split(".")[-2]: getattr(torch, dtype) for name, (dtype, _) in full_size.items()}
    found = open_source(released / "base").dtypes
    assert found == {name: expected[name.split(".")[-2]] for name in found}
    assert set(found.values()) == {torch.float32, torch.bfloat16}
    for role in ("distill", "540p_sr", "1080p_sr"):
        assert set(open_source(released / role).dtypes.values()) == {torch.float32}


def test_index_names_the_shard_of_each_tensor(released):
    for folder in (released / "distill", released / "t5gemma-9b-9b-ul2"):
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        size = 0
        for shard in sorted(set(index["weight_map"].values())):
            with safe_open(folder / shard, "pt") as file:
                names = list(file.keys())
                size += sum(file.get_tensor(n).nbytes for n in names)
            assert {n for n, where in index["weight_map"].items() if where == shard} == set(names)
        assert index["metadata"]["total_size"] == size


def test_video_decoder_is_a_pickle_of_data_with_mixed_names(released):
    tree = torch.load(released / "turbo_vae" / "checkpoint-340000.ckpt", weights_only=True)
    names = tree["ema_state_dict"]
    prefixed = [name for name in names if name.startswith("module.")]
    assert 0 < len(prefixed) < len(names)
    assert {name.removeprefix("module.") for name in names} == set(tiny.turbo_decoder_shapes())


def test_audio_file_holds_more_than_the_autoencoder(released):
    found = open_source(released / "stable-audio-open-1.0")
    others = {name.split(".")[0] for name in found.names if not name.startswith("pretransform.model.")}
    assert others == {"model", "conditioner"}
    config = json.loads((released / "stable-audio-open-1.0" / "model_config.json").read_text())
    assert config["model"]["pretransform"]["config"]["encoder"]["config"]["strides"] == [2, 4, 4, 8, 8]


def test_all_values_are_finite_and_modest(released):
    paths = [released / role for role in ROLES] + [released / "t5gemma-9b-9b-ul2", released / "stable-audio-open-1.0"]
    paths += [released / "turbo_vae" / "checkpoint-340000.ckpt", released / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth"]
    for path in paths:
        source = open_source(path)
        for name in source.names:
            assert source.read(name).abs().max() < 8, f"{path}: {name}"


@torch.inference_mode()
def test_prompt_steers_a_transformer_that_stays_tame(released):
    text = [load_text_encoder(released / "t5gemma-9b-9b-ul2").encode_prompt(p) for p in ("A woman speaks", "Rain")]
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(1, 48, 2, 4, 6, generator=generator)
    audio = torch.randn(1, 64, 5, generator=generator)
    for role in ROLES:
        source = open_source(released / role)
        config = detect_transformer(source.shapes, where=role)
        assert config.text_in_channels == tiny.TEXT_CONFIG["hidden_size"]
        model = HappyHorseTransformer(config, operations=TorchOps, dtype=torch.float32, device="meta")
        load_module(model, source)
        (video_a, audio_a), (video_b, audio_b) = (model(video, audio, t, compute_dtype=torch.float32) for t in text)
        for a, b in ((video_a, video_b), (audio_a, audio_b)):
            assert 0.1 < a.std() < 1
            assert (a - b).abs().max() > 1e-3


@torch.inference_mode()
def test_noise_becomes_pictures_and_sound_within_their_ranges(released):
    generator = torch.Generator().manual_seed(1)
    decoder = load_turbo_decoder(released / "turbo_vae" / "checkpoint-340000.ckpt", dtype=torch.float32)
    pictures = decoder(torch.randn(1, 48, 2, 3, 2, generator=generator))
    audio_vae = load_oobleck(released / "stable-audio-open-1.0" / "model.safetensors")
    sound = audio_vae.decode(torch.randn(1, 64, 3, generator=generator))
    encoder = load_image_encoder(released / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth", dtype=torch.float32)
    latent = encoder(torch.rand(1, 3, 1, 32, 64, generator=generator) * 2 - 1)
    for result, low, high in ((pictures, 0.2, 1.5), (sound, 0.03, 0.5), (latent, 0.1, 2.0)):
        assert low < result.std() < high

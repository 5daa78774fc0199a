"""What the converter writes: values, dtypes, scales and metadata, read back by the format's own library and by ours."""

import json
import math
from pathlib import Path

import pytest
import torch
from convert_helpers import checksums, community_float8, is_linear, is_stacked, saved, split_layout, tensors_of
from safetensors import safe_open

from happyhorse_core import __version__
from happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_core.cli import main
from happyhorse_core.convert.rounding import largest, scale_for
from happyhorse_core.convert.run import convert
from happyhorse_core.dit.load import inspect_transformer, load_transformer
from happyhorse_core.text.load import load_text_encoder
from happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from tools.make_tiny_checkpoints import write_stack

FLOAT8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_stack(folder, "released", 3)
    return folder


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def outputs(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the transformer of a file computes in float32 from fixed latents."""
    model = load_transformer(inspect_transformer(path, "distilled"), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=generator) for shape in ((1, 48, 3, 4, 6), (1, 64, 9), (1, 5, 24))]
    with torch.inference_mode():
        return model(*inputs, compute_dtype=torch.float32)


# The transformer


@pytest.mark.parametrize("part", ["distill", "base"])
def test_bf16_rounds_the_linear_layers_and_nothing_else(models, tmp_path, part):
    source = tensors_of(models / part)
    convert(models / part, tmp_path / "new.safetensors", dtype="bf16")
    found = tensors_of(tmp_path / "new.safetensors")
    assert set(found) == set(source)
    for name, tensor in source.items():
        dtype = torch.bfloat16 if is_linear(name) else torch.float32
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor.to(dtype)), name


def test_fp8_is_plainly_rounded(models, tmp_path):
    source = tensors_of(models / "distill")
    convert(models / "distill", tmp_path / "new.safetensors", dtype="fp8")
    found = tensors_of(tmp_path / "new.safetensors")
    assert set(found) == set(source)
    for name, tensor in source.items():
        dtype = FLOAT8 if is_linear(name) else torch.float32
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name].float(), tensor.to(dtype).float()), name


def test_scaled_fp8_has_the_tensors_that_comfyui_expects(models, tmp_path):
    source = tensors_of(models / "distill")
    convert(models / "distill", tmp_path / "new.safetensors", dtype="fp8-scaled")
    found = tensors_of(tmp_path / "new.safetensors")
    layers = [name.removesuffix(".weight") for name in source if is_linear(name)]
    extras = {f"{layer}.{what}" for layer in layers for what in ("weight_scale", "comfy_quant")}
    assert set(found) == set(source) | extras
    for layer in layers:
        weight, scale = found[f"{layer}.weight"], found[f"{layer}.weight_scale"]
        assert weight.dtype == FLOAT8
        assert scale.dtype == torch.float32
        assert scale.shape == ((weight.shape[0], 1) if is_stacked(layer) else ())
        assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
        assert_close_to(weight.float() * scale, source[f"{layer}.weight"])
    for name in set(source) - {f"{layer}.weight" for layer in layers}:
        assert torch.equal(found[name], source[name])


def test_nvfp4_has_the_tensors_that_comfyui_expects(models, tmp_path):
    source = tensors_of(models / "distill")
    convert(models / "distill", tmp_path / "new.safetensors", dtype="nvfp4")
    found = tensors_of(tmp_path / "new.safetensors")
    layers = [name.removesuffix(".weight") for name in source if is_linear(name)]
    extras = {f"{layer}.{what}" for layer in layers for what in ("weight_scale", "weight_scale_2", "comfy_quant")}
    assert set(found) == set(source) | extras
    for layer in layers:
        rows, columns = (-(-size // 16) * 16 for size in source[f"{layer}.weight"].shape)
        weight, blocks = found[f"{layer}.weight"], found[f"{layer}.weight_scale"]
        assert (weight.dtype, weight.shape) == (torch.uint8, (rows, columns // 2))
        assert (blocks.dtype, blocks.shape) == (FLOAT8, (-(-rows // 128) * 128, -(-columns // 64) * 4))
        scale = found[f"{layer}.weight_scale_2"]
        assert (scale.dtype, scale.shape) == (torch.float32, ())
        assert math.frexp(scale.item())[0] == 0.5, "a power of two"
        assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist())) == {"format": "nvfp4"}
    for name in set(source) - {f"{layer}.weight" for layer in layers}:
        assert torch.equal(found[name], source[name])
    assert {source[f"{layer}.weight"].shape[0] % 16 for layer in layers} > {0}, "some are filled up with zeros"


def assert_close_to(restored: torch.Tensor, source: torch.Tensor) -> None:
    """Float8 of three fraction bits is off by half of its last bit at most, 1/16, where it is not denormal."""
    assert (restored - source).abs().max() <= source.abs().max() / 16
    assert (restored - source).norm() <= 0.03 * source.norm()


def test_every_expert_has_a_scale_of_its_own(models, tmp_path):
    source = tensors_of(models / "distill")
    name = "block.layers.0.attention.linear_proj.weight"
    experts = source[name].chunk(3)
    source[name] = torch.cat([experts[0], experts[1] / 1000, experts[2] * 30])
    saved(tmp_path / "distill" / "model.safetensors", source)
    convert(tmp_path / "distill", tmp_path / "new.safetensors", dtype="fp8-scaled")
    found = tensors_of(tmp_path / "new.safetensors")
    scales = found[f"{name}_scale"].chunk(3)
    assert all(len(scale.unique()) == 1 for scale in scales)
    assert len({float(scale[0]) for scale in scales}) == 3
    for weight, scale, expert in zip(found[name].chunk(3), scales, source[name].chunk(3), strict=True):
        assert_close_to(weight.float() * scale, expert)
        assert 224 <= weight.float().abs().max() <= 448


@pytest.mark.parametrize("magnitude", [448.0, 448.0001, 447.9, 1.0, 3e-7, 1e30, 1e-45, 0.0])
def test_a_scale_is_the_smallest_power_of_two_that_fits(magnitude):
    scale = scale_for(magnitude)
    assert magnitude / scale <= 448
    assert torch.tensor(scale).bfloat16().item() == scale
    assert scale == 1 or magnitude / (scale / 2) > 448 or scale == 2.0**-126


def test_error_of_scales_per_expert_at_real_width(record_property):
    """Three experts as wide as the released ones, 5120 x 5120, each a tenth of the one before, with outliers."""
    generator = torch.Generator().manual_seed(0)
    experts = [torch.randn(5120, 5120, generator=generator).mul_(size) for size in (0.02, 0.002, 0.0002)]
    for expert in experts:
        expert.view(-1)[:: 2**20] *= 100
    stack = max(largest(expert) for expert in experts) / 448  # what community files use: one number for all three
    ours = [relative_error(expert, scale_for(largest(expert))) for expert in experts]
    theirs = [relative_error(expert, stack) for expert in experts]
    record_property("relative_error_with_a_scale_per_expert", ours)
    record_property("relative_error_with_a_scale_per_stack", theirs)
    assert sum(ours) < sum(theirs), (ours, theirs)
    assert ours[2] < 0.97 * theirs[2], (ours, theirs)
    assert max(ours) < 0.0268, ours


def relative_error(weight: torch.Tensor, scale: float) -> float:
    restored = (weight / scale).to(FLOAT8).float().mul_(scale)
    return round(float((restored - weight).norm() / weight.norm()), 6)


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.02), ("fp8", 0.3), ("fp8-scaled", 0.12), ("nvfp4", 0.3)])
def test_a_converted_transformer_computes_nearly_the_same(models, tmp_path, dtype, bound):
    convert(models / "distill", tmp_path / "new.safetensors", dtype=dtype)
    for found, expected in zip(outputs(tmp_path / "new.safetensors"), outputs(models / "distill"), strict=True):
        assert 0 < (found - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("layout", ["merged", "prefixed", "split", "community float8"])
def test_community_layouts_convert_to_the_released_names(models, tmp_path, layout):
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(models / "distill").items()}
    tensors["adapter.rope.bands"] = tensors["adapter.rope.bands"].float()
    expected = {name: t if is_linear(name) or "bands" in name else t.float() for name, t in tensors.items()}
    stored = {
        "merged": tensors,
        "prefixed": {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()},
        "split": split_layout(tensors),
        "community float8": community_float8(tensors),
    }[layout]
    if layout == "community float8":
        expected = {
            name: (stored[name].float() * stored[f"{name}.__fp8_scale"]).bfloat16() if is_linear(name) else tensor
            for name, tensor in expected.items()
        }
    convert(saved(tmp_path / "old.safetensors", stored), tmp_path / "new.safetensors", role="540p_sr")
    found = tensors_of(tmp_path / "new.safetensors")
    assert set(found) == set(expected)
    for name in expected:
        if "bands" not in name or layout != "community float8":
            assert torch.equal(found[name], expected[name]), name


def test_rounded_rotary_bands_are_made_exact(models, tmp_path):
    tensors = tensors_of(models / "distill")
    exact = tensors["adapter.rope.bands"]
    tensors["adapter.rope.bands"] = exact.bfloat16()
    convert(saved(tmp_path / "old.safetensors", tensors), tmp_path / "new.safetensors", role="distilled")
    found = tensors_of(tmp_path / "new.safetensors")["adapter.rope.bands"]
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, rtol=1e-6)
    assert not torch.equal(found, exact.bfloat16().float())


def test_metadata(models, tmp_path):
    convert(models / "1080p_sr", tmp_path / "new.safetensors", dtype="fp8-scaled")
    metadata = metadata_of(tmp_path / "new.safetensors")
    assert metadata["happyhorse.role"] == "1080p_sr"
    assert metadata["happyhorse.dtype"] == "fp8-scaled"
    assert metadata["happyhorse.converter"] == f"happyhorse_core {__version__}"
    shards = sorted((models / "1080p_sr").glob("*.safetensors"))
    expected = [{"name": p.name, "bytes": p.stat().st_size} for p in shards]
    assert sorted(json.loads(metadata["happyhorse.sources"]), key=lambda file: file["name"]) == expected
    file = inspect_transformer(tmp_path / "new.safetensors")
    assert (file.role.name, file.role_origin) == ("1080p_sr", "from the file's metadata")
    assert file.config.local_attn_layers == inspect_transformer(models / "1080p_sr").config.local_attn_layers


def test_what_metadata_says_about_attention_is_kept(models, tmp_path):
    settings = {"happyhorse.local_attn_layers": "[1, 3]", "happyhorse.frame_receptive_field": "5"}
    old = saved(tmp_path / "old.safetensors", tensors_of(models / "1080p_sr"), **settings)
    convert(old, tmp_path / "new.safetensors", role="1080p_sr")
    config = inspect_transformer(tmp_path / "new.safetensors").config
    assert (config.local_attn_layers, config.frame_receptive_field) == ((1, 3), 5)


def test_tensors_lie_where_they_can_be_mapped(models, tmp_path):
    convert(models / "distill", tmp_path / "new.safetensors", dtype="fp8-scaled")
    content = (tmp_path / "new.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    widths = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
    del header["__metadata__"]
    assert all((8 + length + field["data_offsets"][0]) % widths[field["dtype"]] == 0 for field in header.values())


def test_the_source_stays_as_it_was_and_no_part_is_left(models, tmp_path):
    before = checksums(models / "base")
    convert(models / "base", tmp_path / "new.safetensors")
    assert checksums(models / "base") == before
    assert [path.name for path in tmp_path.iterdir()] == ["new.safetensors"]


# The other kinds


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0), ("fp8", 0.5), ("fp8-scaled", 0.1), ("nvfp4", 0.6)])
def test_text_encoder(models, tmp_path, dtype, bound):
    source = models / "t5gemma-9b-9b-ul2"
    convert(source, tmp_path / "text.safetensors", dtype=dtype)
    found = tensors_of(tmp_path / "text.safetensors")
    assert bytes(found["tokenizer_json"].tolist()) == (source / "tokenizer.json").read_bytes()
    assert not [name for name in found if "decoder" in name]
    linear = {name for name in found if name.endswith("_proj.weight")}
    stored = {"bf16": torch.bfloat16, "nvfp4": torch.uint8}.get(dtype, FLOAT8)
    assert {found[name].dtype for name in linear} == {stored}
    plain = {name for name in found if name.endswith(".weight")} - linear
    assert {found[name].dtype for name in plain} == {torch.bfloat16}
    prompt = "A man in a yellow shirt sits still."
    with torch.inference_mode():
        expected = load_text_encoder(source, dtype=torch.float32).encode_prompt(prompt)
        got = load_text_encoder(tmp_path / "text.safetensors", dtype=torch.float32).encode_prompt(prompt)
    error = (got - expected).norm() / expected.norm()
    assert error == 0 if dtype == "bf16" else 0 < error < bound


def test_text_encoder_needs_no_shard_of_the_decoder(models, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    index = json.loads((models / "t5gemma-9b-9b-ul2" / "model.safetensors.index.json").read_text())
    needed = {shard for name, shard in index["weight_map"].items() if name.startswith("model.encoder.")}
    assert needed < set(index["weight_map"].values())
    for name in (*needed, "model.safetensors.index.json", "config.json", "tokenizer.json"):
        (folder / name).write_bytes((models / "t5gemma-9b-9b-ul2" / name).read_bytes())
    convert(folder, tmp_path / "text.safetensors")
    sources = json.loads(metadata_of(tmp_path / "text.safetensors")["happyhorse.sources"])
    assert {source["name"] for source in sources} == needed | {"config.json", "tokenizer.json"}
    convert(tmp_path / "text.safetensors", tmp_path / "again.safetensors", dtype="fp8")
    assert load_text_encoder(tmp_path / "again.safetensors").model.config.head_dim == 16


AUTOENCODERS = {
    "turbo_vae/checkpoint-340000.ckpt": load_turbo_decoder,
    "Wan2.2-TI2V-5B/Wan2.2_VAE.pth": load_image_encoder,
    "stable-audio-open-1.0": load_oobleck,
}


@pytest.mark.parametrize("part", AUTOENCODERS)
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_autoencoders_load_from_their_new_files_as_from_the_old(models, tmp_path, part, dtype):
    convert(models / part, tmp_path / "new.safetensors", dtype=dtype)
    load = AUTOENCODERS[part]
    stored = torch.bfloat16 if dtype else torch.float32
    assert {t.dtype for t in tensors_of(tmp_path / "new.safetensors").values()} == {stored}
    expected = load(models / part, dtype=torch.float32).state_dict()
    found = load(tmp_path / "new.safetensors", dtype=torch.float32).state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) if dtype is None else torch.allclose(found[name], tensor, rtol=2e-2)


def test_wan_keeps_the_decoder_that_comfyui_wants(models, tmp_path):
    convert(models / "Wan2.2-TI2V-5B/Wan2.2_VAE.pth", tmp_path / "new.safetensors")
    old = torch.load(models / "Wan2.2-TI2V-5B/Wan2.2_VAE.pth", weights_only=True)
    found = tensors_of(tmp_path / "new.safetensors")
    assert set(found) == set(old)
    assert all(torch.equal(found[name], tensor) for name, tensor in old.items())


def test_a_single_number_and_an_empty_tensor(models, tmp_path):
    content = torch.load(models / "Wan2.2-TI2V-5B/Wan2.2_VAE.pth", weights_only=True)
    content |= {"decoder.one": torch.tensor(0.5), "decoder.none": torch.empty(0, 3), "decoder.steps": torch.tensor(7)}
    torch.save(content, tmp_path / "Wan2.2_VAE.pth")
    convert(tmp_path / "Wan2.2_VAE.pth", tmp_path / "new.safetensors", dtype="bf16")
    found = tensors_of(tmp_path / "new.safetensors")
    assert (found["decoder.one"], found["decoder.steps"]) == (0.5, 7)
    assert (found["decoder.none"].shape, found["decoder.steps"].dtype) == ((0, 3), torch.int64)


def test_audio_keeps_weight_norm_and_drops_the_other_networks(models, tmp_path):
    old = tensors_of(models / "stable-audio-open-1.0/model.safetensors")
    convert(models / "stable-audio-open-1.0", tmp_path / "new.safetensors")
    prefix = "pretransform.model."
    expected = {name.removeprefix(prefix) for name in old if name.startswith(prefix)}
    assert set(tensors_of(tmp_path / "new.safetensors")) == expected
    assert any(name.endswith("weight_g") for name in expected)


# The command


def test_command_line(models, tmp_path, capsys):
    target = tmp_path / "new.safetensors"
    assert main(["convert", str(models / "distill"), str(target), "--dtype", "fp8-scaled"]) == 0
    answer = capsys.readouterr()
    assert f"{target}: transformer, distilled, fp8-scaled, 107 tensors" in answer.out
    assert main(["convert", str(models / "distill"), str(target)]) == 1
    assert "stands there already" in capsys.readouterr().err
    assert main(["convert", str(models / "base"), str(target), "--force"]) == 0
    assert metadata_of(target)["happyhorse.role"] == "base"

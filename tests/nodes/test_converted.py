"""Files that the converter wrote, in the host's own quantised layers and in the nodes."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.utils
import pytest
import tiny
import torch
from comfy.quant_ops import QuantizedTensor, get_layout_class
from happyhorse_pack.happyhorse_core.convert.run import convert
from happyhorse_pack.happyhorse_core.dit.load import inspect_transformer, load_transformer
from happyhorse_pack.happyhorse_core.text.load import load_text_encoder
from happyhorse_pack.happyhorse_core.weights.quantised import dequantised
from happyhorse_pack.happyhorse_core.weights.source import open_source
from happyhorse_pack.nodes.host import load, stacked_float8
from happyhorse_pack.nodes.host.files import resolve_entry
from happyhorse_pack.nodes.host.text_encoder import load_clip
from happyhorse_pack.nodes.host.vae import load_audio_vae, load_video_vae
from safetensors import safe_open
from safetensors.torch import load_file, save_file

STACK, SHARED = "block.layers.0.mlp.down_proj", "block.layers.2.mlp.down_proj"
QKV = "block.layers.3.attention.linear_qkv"
QUANTISED = ("fp8-scaled", "nvfp4")
BF16 = torch.bfloat16


@cache
def source() -> Path:
    """The tiny distilled model with experts of different size, so that a mix-up of their scales shows."""
    folder = Path(resolve_entry("diffusion_models", tiny.DISTILLED, ""))
    tensors = {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}
    for name, factor in ((f"{STACK}.weight", 20.0), ("block.layers.5.attention.linear_qkv.weight", 0.05)):
        tensors[name].chunk(3)[1].mul_(factor)
    path = Path(mkdtemp(prefix="happyhorse-tests-")) / "source.safetensors"
    save_file(tensors, path, metadata={"happyhorse.role": "distilled"})
    return path


@cache
def converted(dtype: str) -> Path:
    target = source().with_name(f"{dtype}.safetensors")
    convert(source(), target, dtype=dtype)
    return target


@cache
def plain(dtype: str) -> dict[str, torch.Tensor]:
    """What the core reads from a converted file, in bfloat16."""
    with open_source(converted(dtype)) as opened:
        view = dequantised(opened, load.reference(inspect_transformer(converted(dtype)).config))
        return {name: view.read(name).to(BF16) for name in view.names}


def host_linear(dtype: str, name: str) -> torch.nn.Module:
    """The host's own quantised layer, filled with one layer of a converted file."""
    tensors = load_file(converted(dtype))
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    rows, columns = plain(dtype)[f"{name}.weight"].shape
    operations = comfy.ops.mixed_precision_ops({}, compute_dtype=BF16, disabled={"float8_e4m3fn", "nvfp4"})
    layer = operations.Linear(columns, rows, bias=False)
    missing, unexpected = layer.load_state_dict(own, strict=False)
    assert (missing, unexpected) == ([], [])
    return layer


# The host's own code


@pytest.mark.parametrize("dtype", QUANTISED)
def test_the_host_finds_its_notes(dtype):
    tensors = comfy.utils.load_torch_file(str(converted(dtype)))
    assert comfy.utils.detect_layer_quantization(tensors, "") == {"mixed_ops": True}
    assert comfy.utils.convert_old_quants(dict(tensors), "", {})[0].keys() == tensors.keys()
    assert json.loads(tensors[f"{STACK}.comfy_quant"].numpy().tobytes())["format"] in comfy.quant_ops.QUANT_ALGOS


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("name", [STACK, SHARED, QKV])
def test_the_hosts_layers_get_the_same_weights_to_the_bit(dtype, name):
    layer = host_linear(dtype, name)
    assert isinstance(layer.weight, QuantizedTensor)
    assert torch.equal(layer.weight.dequantize(), plain(dtype)[f"{name}.weight"])
    x = torch.randn(5, layer.weight.shape[1], generator=torch.Generator().manual_seed(0)).to(BF16)
    expected = torch.nn.functional.linear(x, plain(dtype)[f"{name}.weight"])
    assert torch.equal(layer(x), expected)


# Our layers on top of it


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Quantised layers compute in bfloat16 there."""
    monkeypatch.setattr(load.mm, "unet_manual_cast", lambda *args, **kwargs: BF16)


def transformer(dtype: str) -> torch.nn.Module:
    return load.load_diffusion_model(str(converted(dtype))).model.diffusion_model


def weight_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    return model.get_submodule(name).weight


def test_stacks_keep_a_scale_for_each_expert(as_on_a_gpu):
    model = transformer("fp8-scaled")
    stack, shared = weight_of(model, STACK), weight_of(model, SHARED)
    assert stack._layout_cls == stacked_float8.NAME
    assert stack._qdata.dtype == torch.float8_e4m3fn
    assert len({float(part[0]) for part in stack._params.scale.chunk(3)}) > 1
    assert shared._layout_cls == stacked_float8.PADDED_NAME, "16 does not divide its sides"
    assert shared._params.scale.numel() == 1
    for name in (STACK, SHARED, "block.layers.5.attention.linear_qkv"):
        assert torch.equal(weight_of(model, name).dequantize(), plain("fp8-scaled")[f"{name}.weight"])


def test_four_bits_stay_four_bits(as_on_a_gpu):
    """Experts share a tensor scale, so stacks are the host's own layout too; rows and columns are filled up."""
    model = transformer("nvfp4")
    for name in (STACK, SHARED, QKV, "block.layers.5.attention.linear_qkv", "block.layers.2.mlp.up_gate_proj"):
        weight = weight_of(model, name)
        assert weight._layout_cls == "TensorCoreNVFP4Layout"
        assert (weight._qdata.dtype, weight._params.scale.numel()) == (torch.uint8, 1)
        assert torch.equal(weight.dequantize(), plain("nvfp4")[f"{name}.weight"])
    assert weight_of(model, QKV)._qdata.shape[0] > weight_of(model, QKV).shape[0]


def streams() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in ((1, 48, 3, 4, 6), (1, 64, 9), (1, 7, 24))]


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.02), ("fp8", 0.4), ("fp8-scaled", 0.15), ("nvfp4", 0.3)])
def test_nodes_compute_what_the_command_line_does(as_on_a_gpu, dtype, tolerance):
    video, audio, text = streams()
    model = transformer(dtype)
    found = model([video, audio], torch.ones(1), context=text, transformer_options={}, compute_dtype=BF16)
    same = load_transformer(inspect_transformer(converted(dtype)))(video, audio, text, compute_dtype=BF16)
    exact = load_transformer(inspect_transformer(source()), dtype=torch.float32)
    exact = exact(video, audio, text, compute_dtype=torch.float32)
    for a, b, c in zip(found, same, exact, strict=True):
        assert (a - b).norm() <= 0.01 * b.norm()
        assert 0 < (a - c).norm() < tolerance * c.norm()
    assert model.final_linear_video.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", QUANTISED)
def test_saved_by_the_host_it_is_what_it_was(as_on_a_gpu, dtype):
    saved, before = transformer(dtype).state_dict(), load_file(converted(dtype))
    assert saved.keys() == before.keys()
    for name, tensor in before.items():
        assert saved[name].dtype == tensor.dtype, name
        if "comfy_quant" in name:
            assert json.loads(saved[name].numpy().tobytes()) == json.loads(tensor.numpy().tobytes())
        else:
            assert torch.equal(saved[name].float(), tensor.float()), name


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp8-scaled", 0.06), ("nvfp4", 0.25)])
@pytest.mark.parametrize("name", [STACK, SHARED])
def test_a_lora_on_scaled_weights(as_on_a_gpu, dtype, tolerance, name):
    patcher = load.load_diffusion_model(str(converted(dtype)))
    rows, columns = weight_of(patcher.model.diffusion_model, name).shape
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(rows, 2, generator=generator) / 9, torch.randn(2, columns, generator=generator) / 9
    lora = {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}
    patched = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0)[0]
    comfy.model_management.load_models_gpu([patched])
    try:
        weight = weight_of(patched.model.diffusion_model, name)
        found = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        expected = plain(dtype)[f"{name}.weight"].float() + up @ down
        layouts = {"nvfp4": "TensorCoreNVFP4Layout", STACK: stacked_float8.NAME, SHARED: stacked_float8.PADDED_NAME}
        assert weight._layout_cls == layouts.get(dtype, layouts[name])
        for part, whole in zip(found.float().chunk(3), expected.chunk(3), strict=True):
            assert 0 < (part - whole).norm() < tolerance * whole.norm()
    finally:
        patched.detach()


def test_experts_apart_are_put_together(tmp_path):
    """The layout of files that other programs split; the core's own tests have all of its names."""
    tensors = load_file(source())
    for name in [name for name in tensors if name.endswith("linear_proj.weight") and len(tensors[name]) == 3 * 64]:
        for modality, expert in zip(("video", "audio", "text"), tensors.pop(name).chunk(3), strict=True):
            tensors[name.replace(".weight", f"_{modality}.weight")] = expert.clone()
    save_file(tensors, tmp_path / "split.safetensors")
    found = load.load_diffusion_model(str(tmp_path / "split.safetensors"), weight_dtype="fp32")
    whole = load.load_diffusion_model(str(source()), weight_dtype="fp32")
    assert len(tensors) == 59 + 4 * 2
    before, after = (patcher.model.diffusion_model.state_dict() for patcher in (whole, found))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# The other kinds


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.2), ("fp8", 0.5), ("fp8-scaled", 0.2), ("nvfp4", 0.6)])
def test_text_encoder(tmp_path, dtype, tolerance):
    path = Path(resolve_entry("text_encoders", tiny.TEXT_ENCODER, ""))
    convert(path, tmp_path / "text.safetensors", dtype=dtype)
    clip = load_clip(str(tmp_path / "text.safetensors"))
    found = clip.encode_from_tokens(clip.tokenize(tiny.PROMPT))
    exact = load_text_encoder(path, dtype=torch.float32).encode_prompt(tiny.PROMPT)
    assert found.shape == exact.shape
    assert (found - exact).norm() < tolerance * exact.norm()


def text_output(path: Path, weight_dtype: str = "default") -> tuple[torch.nn.Module, torch.Tensor]:
    clip = load_clip(str(path), weight_dtype)
    return clip.cond_stage_model.encoder, clip.encode_from_tokens(clip.tokenize(tiny.PROMPT))


@pytest.mark.parametrize(("dtype", "layout"), [("fp8-scaled", "FP8E4M3"), ("nvfp4", "NVFP4")])
def test_a_text_encoder_stays_quantised_and_computes_what_it_did_expanded(tmp_path, dtype, layout):
    """To the bit, since our scales are powers of two: in bfloat16 they round nothing."""
    path = tmp_path / "text.safetensors"
    convert(Path(resolve_entry("text_encoders", tiny.TEXT_ENCODER, "")), path, dtype=dtype)
    encoder, found = text_output(path)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        weight = encoder.layers[1].get_submodule(name).weight
        assert issubclass(get_layout_class(weight._layout_cls), get_layout_class(f"TensorCore{layout}Layout"))
    assert {encoder.embed_tokens.weight.dtype, encoder.norm.weight.dtype} == {BF16}
    expanded, expected = text_output(path, "bf16")
    assert expanded.layers[1].mlp.down_proj.weight.dtype == BF16
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("scale", "mark"), [("weight.__fp8_scale", None), ("scale_weight", 0), ("scale_weight", 2), ("weight_scale", None)]
)
def test_scaled_text_encoders_of_other_programs_stay_quantised(tmp_path, scale, mark):
    """Their scales are any numbers; the host rounds them to bfloat16, by 2^-9 at most."""
    convert(Path(resolve_entry("text_encoders", tiny.TEXT_ENCODER, "")), tmp_path / "plain.safetensors", dtype="bf16")
    tensors = load_file(tmp_path / "plain.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        layer = name.removesuffix("weight")
        factor = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / factor).to(torch.float8_e4m3fn)
        tensors[f"{layer}{scale}"] = factor
        tensors |= {f"{layer}scale_input": torch.tensor(1.0)} if mark is not None else {}
    tensors |= {"scaled_fp8": torch.zeros(mark, dtype=torch.float8_e4m3fn)} if mark is not None else {}
    save_file(tensors, tmp_path / "text.safetensors", metadata=metadata_of(tmp_path / "plain.safetensors"))
    encoder, found = text_output(tmp_path / "text.safetensors")
    assert encoder.layers[1].mlp.down_proj.weight._qdata.dtype == torch.float8_e4m3fn
    expanded, expected = text_output(tmp_path / "text.safetensors", "bf16")
    weight, widened = (model.layers[1].mlp.down_proj.weight for model in (encoder, expanded))
    assert (weight.dequantize() - widened).abs().max() <= 2**-7 * widened.abs().max()
    assert (found - expected).norm() < 0.03 * expected.norm()


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_autoencoders(tmp_path):
    folder = Path(resolve_entry("vae", "Wan2.2_VAE.pth", "")).parent
    files = ("checkpoint-340000.ckpt", "Wan2.2_VAE.pth", "stable_audio_open_1.0.safetensors")
    new = [tmp_path / f"{Path(name).stem}.safetensors" for name in files]
    for name, target in zip(files, new, strict=True):
        convert(folder / name, target)
    for old, fresh in (
        (load_video_vae(str(folder / files[0]), str(folder / files[1])), load_video_vae(str(new[0]), str(new[1]))),
        (load_audio_vae(str(folder / files[2])), load_audio_vae(str(new[2]))),
    ):
        before, after = old.first_stage_model.state_dict(), fresh.first_stage_model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_hosts_own_loader_would_know_the_autoencoders(tmp_path):
    """By these names it tells Wan2.2's autoencoder and Stable Audio's; the tiny ones are too small to load there."""
    folder = Path(resolve_entry("vae", "Wan2.2_VAE.pth", "")).parent
    convert(folder / "stable_audio_open_1.0.safetensors", tmp_path / "audio.safetensors")
    names = load_file(tmp_path / "audio.safetensors").keys()
    assert {"decoder.layers.1.layers.0.beta", "decoder.layers.2.layers.1.weight_v"} <= names
    convert(folder / "Wan2.2_VAE.pth", tmp_path / "wan.safetensors")
    names = load_file(tmp_path / "wan.safetensors").keys()
    assert {"decoder.middle.0.residual.0.gamma", "encoder.conv1.weight", "conv2.weight"} <= names

"""The transformer inside the host: same numbers through the host's layers, and the hooks that other nodes rely on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from happyhorse_pack.happyhorse_core.dit.detect import detect_transformer
from happyhorse_pack.happyhorse_core.dit.memory import activation_bytes
from happyhorse_pack.happyhorse_core.dit.roles import DISTILLED, SR_540P
from happyhorse_pack.happyhorse_core.weights.source import open_source
from happyhorse_pack.nodes.host import load
from happyhorse_pack.nodes.host.diffusion import HappyHorseConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(os.environ.get("HAPPYHORSE_GOLDEN_DIR") or Path(__file__).parent.parent / "golden")
FORWARDS = sorted(GOLDEN.glob("forward_*.io.safetensors"))


def golden_patcher(metadata):
    """The golden transformer as the loader would build it, in float32."""
    path = GOLDEN / f"{metadata['weights']}.weights.safetensors"
    with open_source(path) as source:
        config = replace(
            detect_transformer(source.shapes, role=DISTILLED, where="golden"),
            coords_style=metadata["coords_style"],
            local_attn_layers=tuple(json.loads(metadata["local_attn_layers"])),
            frame_receptive_field=int(metadata["frame_receptive_field"]),
        )
        host = HappyHorseConfig(config, DISTILLED)
        load.choose_dtypes(host, source, torch.float32, quantised=False)
        return load.build_patcher(host, source, quantised=False, disable_dynamic=False)


@pytest.mark.parametrize("path", FORWARDS, ids=lambda path: path.name.split(".")[0])
def test_forward_through_the_hosts_layers_equals_the_reference(path):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        model = golden_patcher(file.metadata()).model.diffusion_model
    streams = [tensors["video"], tensors["audio"].mT]
    video, audio = model(streams, torch.tensor([1.0]), context=tensors["text"])
    for found, expected in ((video, tensors["velocity_video"]), (audio.mT, tensors["velocity_audio"])):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def random_streams(batch=1):
    generator = torch.Generator().manual_seed(5)
    shapes = ((batch, 48, 3, 4, 6), (batch, 64, 9), (batch, 7, 24))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def call(model, streams, options=None, **kwargs):
    video, audio, text = streams
    return model([video, audio], torch.ones(1), context=text, transformer_options=options or {}, **kwargs)


def test_batch_items_do_not_see_each_other():
    model = tiny.model().model.diffusion_model
    both = random_streams(2)
    together = call(model, both)
    apart = [call(model, [stream[i : i + 1] for stream in both]) for i in range(2)]
    for stream in range(2):
        torch.testing.assert_close(together[stream], torch.cat([one[stream] for one in apart]), atol=2e-5, rtol=1e-4)


def test_replaced_layer_is_called_with_its_original_and_its_index():
    model = tiny.model().model.diffusion_model
    seen = []

    def skip(args, extra):
        seen.append((args["transformer_options"]["block_index"], args["img"].shape))
        return {"img": args["img"]}

    def keep(args, extra):
        seen.append(args["transformer_options"]["block_index"])
        return extra["original_block"](args)

    streams = random_streams()
    plain = call(model, streams)
    kept = call(model, streams, {"patches_replace": {"dit": {("double_block", 2): keep}}})
    skipped = call(model, streams, {"patches_replace": {"dit": {("single_block", 3): skip}}})
    assert seen == [2, (3, torch.Size([1, 3 * 2 * 3 + 9 + 7, 64]))]
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    assert not torch.allclose(plain[0], skipped[0])


def test_wrappers_run_around_the_model_and_may_write_into_their_input():
    model = tiny.model().model.diffusion_model
    streams = random_streams()
    before = [stream.clone() for stream in streams]

    def wrapper(executor, x, *args, **kwargs):
        x[0].add_(1)
        return executor(x, *args, **kwargs)

    options = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {"test": [wrapper]}}}
    changed = call(model, streams, options)
    assert all(torch.equal(a, b) for a, b in zip(streams, before, strict=True))
    assert torch.equal(changed[0], call(model, [before[0] + 1, *before[1:]])[0])


def test_attention_chosen_by_another_node_is_used():
    model = tiny.model().model.diffusion_model
    calls = []

    def override(func, *args, **kwargs):
        calls.append(kwargs["transformer_options"]["block_index"])
        return func(*args, **kwargs)

    call(model, random_streams(), {"optimized_attention_override": override})
    assert calls == list(range(6))


def test_state_dict_has_the_checkpoints_names():
    model = tiny.model().model.diffusion_model
    with open_source(checkpoint("distill")) as source:
        assert set(model.state_dict()) == set(source.names)


def checkpoint(folder):
    import folder_paths

    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusion_models")]
    return next(root / "daVinci-MagiHuman" / folder for root in roots if (root / "daVinci-MagiHuman").exists())


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("weight_dtype", "stored", "tolerance"),
    [
        ("bf16", torch.bfloat16, 0.02),
        ("fp8_e4m3fn", torch.float8_e4m3fn, 0.15),
        ("fp8_e5m2", torch.float8_e5m2, 0.3),
    ],
)
def test_smaller_weights_give_nearly_the_same(weight_dtype, stored, tolerance):
    streams = random_streams()
    exact = call(tiny.model().model.diffusion_model, streams)
    model = tiny.model(weight_dtype=weight_dtype).model
    small = call(model.diffusion_model, streams, compute_dtype=torch.bfloat16)
    assert model.diffusion_model.block.layers[0].mlp.down_proj.weight.dtype == stored
    for name in ("adapter.video_embedder", "final_linear_audio", "block.layers.0.mlp.pre_norm"):
        assert model.diffusion_model.get_submodule(name).weight.dtype == torch.float32
    for found, expected in zip(small, exact, strict=True):
        assert 0 < relative_error(found, expected) < tolerance


def quantised_file(path, scale_name, note):
    """The distilled tiny model with scaled float8 weights in all layers."""
    with open_source(checkpoint("distill")) as source:
        tensors = {name: source.read(name).clone() for name in source.names}
    for name in [n for n in tensors if ".linear_" in n or "_proj.weight" in n]:
        scale = tensors[name].abs().max() / 448
        layer = name.removesuffix(".weight")
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[scale_name.format(layer)] = scale
        if note:
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(
    ("scale_name", "note"),
    [
        ("{}.weight.__fp8_scale", False),
        ("{}.weight_scale", True),
        ("{}.scale_weight", False),
        ("{}.weight_scale", False),
    ],
    ids=["community", "comfy_quant", "old", "without a note"],
)
def test_scaled_float8_stays_float8_and_keeps_its_scale(tmp_path, monkeypatch, scale_name, note):
    # As on a GPU: the quantised layers would compute in bfloat16, and bring every plain layer of theirs to it.
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *args, **kwargs: torch.bfloat16)
    path = quantised_file(tmp_path / "scaled.safetensors", scale_name, note)
    patcher = load.load_diffusion_model(path)
    weight = patcher.model.diffusion_model.block.layers[1].mlp.up_gate_proj.weight
    assert type(weight).__name__ == "QuantizedTensor"
    assert patcher.model.diffusion_model.final_linear_video.weight.dtype == torch.float32
    streams = random_streams()
    exact = call(tiny.model().model.diffusion_model, streams)
    found = call(patcher.model.diffusion_model, streams, compute_dtype=torch.bfloat16)
    for a, b in zip(found, exact, strict=True):
        assert 0 < relative_error(a, b) < 0.1


@pytest.mark.parametrize("scale_name", ["{}.scale_weight", "{}.weight.__fp8_scale"])
def test_float8_with_a_scale_for_each_row_is_multiplied_out(tmp_path, scale_name):
    path = quantised_file(tmp_path / "scaled.safetensors", scale_name, note=False)
    tensors = load_file(path)
    for name in [n for n in tensors if n.endswith(("__fp8_scale", "scale_weight"))]:
        layer = name.removesuffix(".scale_weight").removesuffix(".weight.__fp8_scale")
        tensors[name] = tensors[name].expand(tensors[f"{layer}.weight"].shape[0]).clone()
    save_file(tensors, path)
    model = load.load_diffusion_model(path).model.diffusion_model
    assert model.block.layers[1].mlp.up_gate_proj.weight.dtype == torch.float32
    streams = random_streams()
    exact = call(tiny.model().model.diffusion_model, streams)
    assert 0 < relative_error(call(model, streams)[0], exact[0]) < 0.1


def test_the_hosts_older_scaled_files(tmp_path, monkeypatch):
    """A mark for the whole file, scales for inputs too; two numbers in the mark ask for full precision."""
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *args, **kwargs: torch.bfloat16)
    path = quantised_file(tmp_path / "scaled.safetensors", "{}.scale_weight", note=False)
    tensors = load_file(path)
    layer = "block.layers.1.mlp.up_gate_proj"
    for count in (0, 2):
        tensors["scaled_fp8"] = torch.zeros(count, dtype=torch.float8_e4m3fn)
        tensors[f"{layer}.scale_input"] = torch.tensor(0.5)
        save_file(tensors, path)
        module = load.load_diffusion_model(path).model.diffusion_model.get_submodule(layer)
        assert module.weight._params.scale == tensors[f"{layer}.scale_weight"]
        assert module.input_scale == 0.5
        assert module._full_precision_mm_config == (count == 2)


def merged_bf16(path):
    """The distilled tiny model as other programs merge it: one file, all of it bfloat16, with their prefix."""
    with open_source(checkpoint("distill")) as source:
        save_file({f"model.diffusion_model.{name}": source.read(name).bfloat16() for name in source.names}, path)
    return str(path)


def test_layers_that_the_host_fills_only_when_loading(tmp_path, dynamic_memory):
    """With dynamic memory the host makes linear layers without weights, and they take the dtype of what is loaded."""
    path = merged_bf16(tmp_path / "merged.safetensors")
    model = load.load_diffusion_model(path, weight_dtype="bf16").model.diffusion_model
    assert model.adapter.text_embedder.weight.dtype == torch.float32
    assert model.block.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16
    streams = random_streams()
    exact = call(tiny.model().model.diffusion_model, streams)
    found = call(model, streams, compute_dtype=torch.bfloat16)
    assert 0 < relative_error(found[0], exact[0]) < 0.02


def test_merged_file_with_a_prefix_and_rounded_frequencies_loads(tmp_path):
    path = merged_bf16(tmp_path / "merged.safetensors")
    model = load.load_diffusion_model(path, weight_dtype="fp32").model.diffusion_model
    bands = tiny.model().model.diffusion_model.adapter.rope.bands
    assert torch.equal(model.adapter.rope.bands, bands)
    streams = random_streams()
    exact = call(tiny.model().model.diffusion_model, streams)
    assert relative_error(call(model, streams)[0], exact[0]) < 0.02


def test_roles_decide_positions():
    assert tiny.model("daVinci-MagiHuman/540p_sr").model.role.name == SR_540P.name
    assert tiny.model(role="540p_sr").model.model_config.transformer.coords_style == "v1"
    assert tiny.model().model.model_config.transformer.coords_style == "v2"


def test_memory_grows_with_tokens_and_is_the_same_for_both_forms_of_a_shape():
    model = tiny.model().model
    assert model.memory_required([1, 1, 48 * 3 * 4 * 6]) == model.memory_required([1, 48, 3, 4, 6])
    tokens, hidden = 3 * 2 * 3 + 640, model.model_config.transformer.hidden_size
    for batch in (1, 2, 40):
        asked = model.memory_required([batch, 1, 48 * 3 * 4 * 6])
        assert asked == activation_bytes(batch * tokens, hidden, model.get_dtype().itemsize)
    assert model.memory_required([1, 1, 48000]) > model.memory_required([1, 1, 4800])


def test_second_copy_for_another_device_has_the_same_weights():
    patcher = tiny.model()
    factory, arguments = patcher.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    first, second = patcher.model.diffusion_model.state_dict(), again.model.diffusion_model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lora_with_the_generic_names_changes_the_model_and_leaves_no_trace():
    patcher = tiny.model()
    layer = "block.layers.2.mlp.down_proj"
    weight = patcher.model.diffusion_model.get_submodule(layer).weight
    down, up = torch.ones(2, weight.shape[1]) / 10, torch.ones(weight.shape[0], 2) / 10
    lora = {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    before = weight.clone()
    comfy.model_management.load_models_gpu([patched])
    assert (patched.model.diffusion_model.get_submodule(layer).weight - before).abs().mean() > 0.01
    comfy.model_management.load_models_gpu([patcher])
    assert torch.equal(patcher.model.diffusion_model.get_submodule(layer).weight, before)

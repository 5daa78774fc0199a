"""LoRA files through the host's own loader: names that trainers write, layers with weights per modality, float8."""

import json
import logging
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import tiny
import torch
from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly
from happyhorse_pack.happyhorse_core.weights.source import open_source
from happyhorse_pack.nodes.host import files
from happyhorse_pack.nodes.host.load import load_diffusion_model
from safetensors.torch import save_file

import nodes
from scripts.rename_lora import rename_file

EXPERT = "block.layers.0.attention.linear_qkv"
SHARED = "block.layers.2.mlp.down_proj"
SEED = 3


def lora_file(name, prefix, layers=(EXPERT, SHARED), rank=2, **ends):
    """A LoRA in the model folder of the host, its names made of ``prefix`` and the names of layers."""
    down, up = ends.get("down", "lora_A.weight"), ends.get("up", "lora_B.weight")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in layers:
        rows, columns = tiny.model().model.diffusion_model.get_submodule(layer).weight.shape
        layer = layer.replace(".", "_") if prefix.endswith("_") else layer
        tensors[f"{prefix}{layer}.{down}"] = torch.randn(rank, columns, generator=generator) * 0.2
        tensors[f"{prefix}{layer}.{up}"] = torch.randn(rows, rank, generator=generator) * 0.2
    (folder,) = folder_paths.get_folder_paths("loras")[:1]
    save_file(tensors, f"{folder}/{name}.safetensors")
    return f"{name}.safetensors"


@pytest.fixture(autouse=True, scope="module")
def folder():
    Path(folder_paths.get_folder_paths("loras")[0]).mkdir(parents=True, exist_ok=True)


def with_lora(patcher, name, strength=1.0):
    return nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, name, strength)[0]


def sample(patcher):
    text = tiny.positive()
    return tiny.streams(nodes.KSampler().sample(patcher, SEED, 2, 1.0, "lcm", "simple", text, text, tiny.empty())[0])


def differ(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}


@pytest.mark.parametrize(
    ("prefix", "ends"), [("diffusion_model.", {}), ("lora_unet_", KOHYA)], ids=["diffusion_model", "lora_unet"]
)
def test_a_lora_changes_the_clip_and_at_strength_0_does_not(prefix, ends, caplog):
    name = lora_file("style", prefix, **ends)
    plain = sample(tiny.model())
    with caplog.at_level(logging.WARNING):
        changed = sample(with_lora(tiny.model(), name))
    assert "not loaded" not in caplog.text.lower()
    assert differ(changed, plain) > 0.05
    assert differ(sample(with_lora(tiny.model(), name, 0.0)), plain) == 0
    assert differ(sample(tiny.model()), plain) == 0, "the weights are as before once the LoRA is gone"


def test_a_lora_of_a_layer_with_weights_for_each_modality_reaches_each_of_them():
    """Stacked along the rows, video, audio and text: a LoRA that touches the rows of one leaves the others alone."""
    name = lora_file("experts", "diffusion_model.", [EXPERT])
    weight = tiny.model().model.diffusion_model.get_submodule(EXPERT).weight
    before = weight.clone()
    patched = with_lora(tiny.model(), name, 0.5)
    comfy.model_management.load_models_gpu([patched])
    change = patched.model.diffusion_model.get_submodule(EXPERT).weight - before
    comfy.model_management.load_models_gpu([tiny.model()])
    assert all(part.abs().mean() > 0.01 for part in change.chunk(3))
    assert torch.equal(tiny.model().model.diffusion_model.get_submodule(EXPERT).weight, before)


@pytest.mark.parametrize("layer", [EXPERT, SHARED], ids=["experts", "shared"])
def test_bypass_gives_what_patched_weights_give(layer):
    name = lora_file("bypass", "diffusion_model.", [layer])
    patched = sample(with_lora(tiny.model(), name, 0.7))
    beside = LoraLoaderBypassModelOnly().load_lora_model_only(tiny.model(), name, 0.7)[0]
    found = sample(beside)
    assert differ(found, patched) < 1e-4
    assert differ(sample(tiny.model()), patched) > 0.05, "the layer is itself again"


def quantised_model(path):
    """The distilled model in the host's own scaled float8, the way its quantisation tools write it."""
    with open_source(files.resolve_entry("diffusion_models", tiny.DISTILLED, "name")) as source:
        tensors = {name: source.read(name).clone() for name in source.names}
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for name in [n for n in tensors if ".linear_" in n or "_proj.weight" in n]:
        layer, scale = name.removesuffix(".weight"), tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": note.clone()}
    save_file(tensors, path)
    return load_diffusion_model(str(path))


@pytest.mark.parametrize("kind", ["weight_dtype", "comfy_quant"])
def test_a_lora_on_float8_weights_acts_as_on_exact_ones(kind, tmp_path):
    name = lora_file("float8", "diffusion_model.")
    if kind == "comfy_quant":
        patcher = quantised_model(tmp_path / "model.safetensors")
        weight = patcher.model.diffusion_model.get_submodule(EXPERT).weight
        assert type(weight).__name__ == "QuantizedTensor"
    else:
        patcher = tiny.model(weight_dtype="fp8_e4m3fn")
    exact = [a - b for a, b in zip(sample(with_lora(tiny.model(), name)), sample(tiny.model()), strict=True)]
    plain = sample(patcher)
    rounded = [a - b for a, b in zip(sample(with_lora(patcher, name)), plain, strict=True)]
    for wanted, found in zip(exact, rounded, strict=True):
        alike = torch.nn.functional.cosine_similarity(wanted.flatten(), found.flatten(), dim=0)
        assert alike > 0.8, alike
    assert differ(sample(with_lora(patcher, name, 0.0)), plain) == 0
    assert differ(sample(patcher), plain) == 0


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model."])
def test_names_that_the_host_cannot_place_do_nothing_until_they_are_renamed(prefix, caplog):
    name = lora_file("foreign", prefix)
    with caplog.at_level(logging.WARNING):
        found = sample(with_lora(tiny.model(), name))
    assert f"lora key not loaded: {prefix}{EXPERT}" in caplog.text
    assert differ(found, sample(tiny.model())) == 0
    given = folder_paths.get_full_path_or_raise("loras", name)
    rename_file(Path(given), Path(given).with_name("renamed.safetensors"))
    assert differ(sample(with_lora(tiny.model(), "renamed.safetensors")), found) > 0.05

"""Calls of newer hosts, reproduced at the host's edges. Each stand-in names the commit whose call it repeats."""

import json
import sys
from types import ModuleType
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.sd
import pytest
import tiny
import torch
from happyhorse_pack.nodes.host import load, ops
from happyhorse_pack.nodes.host.text_encoder import load_clip
from happyhorse_pack.nodes.host.vae import load_video_vae
from safetensors.torch import save_file
from test_host_weights import path_of
from test_transformer import call, random_streams
from torch import Tensor, nn

CHOICE = {"attention": "comfy_kitchen_int8"}


def newer_storage() -> ModuleType:
    """comfy/storage.py at 2d656ace: which files weights come from decides how much memory the host pins."""
    storage = ModuleType("comfy.storage")
    storage.asked = []

    def model_fast_disk(paths: list[str]) -> bool:
        storage.asked.append(paths)
        return True

    storage.model_fast_disk = model_fast_disk
    return storage


@pytest.fixture
def storage(monkeypatch):
    module = newer_storage()
    monkeypatch.setitem(sys.modules, "comfy.storage", module)
    return module


class NewerPatcher(comfy.model_patcher.ModelPatcher):
    """comfy/model_patcher.py at 08d0e510: one more argument."""

    def __init__(self, *args: Any, fast_disk: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fast_disk = fast_disk


def test_patchers_that_ask_for_the_disk(monkeypatch, storage):
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", NewerPatcher)
    patcher = load.load_diffusion_model(path_of("diffusion_models", tiny.DISTILLED))
    assert patcher.fast_disk
    vae = load_video_vae(path_of("vae", "checkpoint-340000.ckpt"), path_of("vae", "Wan2.2_VAE.pth"))
    assert vae.patcher.fast_disk
    transformer, autoencoders = storage.asked
    assert [name.rpartition("/")[2] for name in autoencoders] == ["checkpoint-340000.ckpt", "Wan2.2_VAE.pth"]
    assert transformer
    assert all(name.endswith(".safetensors") for name in transformer)


class NewerCLIP(comfy.sd.CLIP):
    """comfy/sd.py at 033046cc and comfy/storage.py at 2d656ace: looks at each tensor's storage before it loads any."""

    def __init__(self, *args: Any, state_dict: Any = (), **kwargs: Any) -> None:
        dicts = state_dict if isinstance(state_dict, list | tuple) else (state_dict,)
        self.storages = [value.untyped_storage() for tensors in dicts for value in tensors.values()]
        super().__init__(*args, state_dict=state_dict, **kwargs)


def test_a_clip_that_looks_through_its_tensors(monkeypatch):
    monkeypatch.setattr(comfy.sd, "CLIP", NewerCLIP)
    clip = load_clip(path_of("text_encoders", tiny.TEXT_ENCODER))
    assert len(clip.storages) == len(clip.cond_stage_model.state_dict())
    old, new = (encoder.encode_from_tokens(encoder.tokenize("A horse.")) for encoder in (tiny.clip(), clip))
    assert torch.equal(old, new)


class NewerComfyAttention(nn.Module):
    """comfy/ldm/modules/attention.py at 05080f60: a child without parameters that takes its choice from the file."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict | None = None

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        content = state_dict.pop(prefix + "config", None)
        self.config = None if content is None else json.loads(content.numpy().tobytes())
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.fixture
def per_layer_attention(monkeypatch):
    """``optimized_attention`` that takes ``preferred_attention``; the choices in the order of the calls."""
    seen = []
    older = ops.optimized_attention

    def newer(*args: Any, preferred_attention: Any = None, **kwargs: Any) -> Tensor:
        seen.append(preferred_attention)
        return older(*args, **kwargs)

    monkeypatch.setattr(ops, "optimized_attention", newer)
    monkeypatch.setattr(ops, "ComfyAttention", NewerComfyAttention)
    monkeypatch.setattr(load, "ComfyAttention", NewerComfyAttention)
    return seen


def checkpoint_with_a_choice(path: Any, **changes: Tensor) -> str:
    tensors = {name: tensor.clone() for name, tensor in tiny.model().model.diffusion_model.state_dict().items()}
    content = torch.tensor(list(json.dumps(CHOICE).encode()), dtype=torch.uint8)
    save_file(tensors | {"block.layers.1.attention.comfy_attention.config": content} | changes, path)
    return str(path)


def test_a_layers_own_attention(tmp_path, per_layer_attention):
    path = checkpoint_with_a_choice(tmp_path / "model.safetensors")
    model = load.load_diffusion_model(path, weight_dtype="fp32").model.diffusion_model
    choices = [layer.attention.comfy_attention.config for layer in model.block.layers]
    assert choices == [CHOICE if layer == 1 else None for layer in range(len(choices))]
    call(model, random_streams())
    assert per_layer_attention == [layer.attention.comfy_attention for layer in model.block.layers]
    assert model.state_dict().keys() == tiny.model().model.diffusion_model.state_dict().keys()
    swapped = NewerComfyAttention()
    model.block.layers[2].attention.comfy_attention = swapped  # as a LoRA's object patch does
    call(model, random_streams())
    assert per_layer_attention[-len(choices) :][2] is swapped


def test_a_layers_own_attention_in_a_host_without_it(tmp_path):
    path = checkpoint_with_a_choice(tmp_path / "model.safetensors")
    if hasattr(comfy.ldm.modules.attention, "ComfyAttention"):
        pytest.skip("this host has it")
    model = load.load_diffusion_model(path, weight_dtype="fp32").model.diffusion_model
    expected = call(tiny.model(weight_dtype="fp32").model.diffusion_model, random_streams())
    for found, wanted in zip(call(model, random_streams()), expected, strict=True):
        assert torch.equal(found, wanted)

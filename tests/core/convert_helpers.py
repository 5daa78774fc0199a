"""Transformers of random weights in the layouts that are passed around, for the converter and for inspect."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.make_tiny_checkpoints import GELU_LAYERS, HEAD_DIM, HEADS, KV_HEADS, MODALITY_LAYERS

MODALITIES = ("video", "audio", "text")
LINEAR = ("linear_qkv.weight", "linear_proj.weight", "up_gate_proj.weight", "down_proj.weight")
PROJECTION_ROWS = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, HEADS)
assert GELU_LAYERS and MODALITY_LAYERS


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a sharded folder or of one file, read by the library that defines the format."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def is_linear(name: str) -> bool:
    """Whether a tensor is one of those that are converted; all others stay float32."""
    return name.endswith(LINEAR)


def is_stacked(name: str) -> bool:
    return any(name.startswith(f"block.layers.{layer}.") for layer in MODALITY_LAYERS)


def split_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with every projection and every modality apart, written out here independently of the reader."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_linear(name):
            split[name] = tensor
            continue
        experts = tensor.chunk(3) if is_stacked(name) else [tensor]
        suffixes = [f"_{modality}" for modality in MODALITIES] if is_stacked(name) else [""]
        for expert, suffix in zip(experts, suffixes, strict=True):
            stem = name.removesuffix(".weight")
            if not stem.endswith("qkv"):
                split[f"{stem}{suffix}.weight"] = expert.clone()
                continue
            for letter, rows in zip("qkvg", expert.split(PROJECTION_ROWS), strict=True):
                split[f"{stem.removesuffix('qkv')}{letter}{suffix}.weight"] = rows.clone()
    return split


def community_float8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One scale for each tensor beside float8 weights, everything else in bfloat16."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_linear(name):
            scale = tensor.float().abs().amax() / 448
            found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            found[f"{name}.__fp8_scale"] = scale
        else:
            found[name] = tensor.bfloat16()
    return found


def saved(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, or of one file, by name."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

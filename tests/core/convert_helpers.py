"""Transformers of random weights in the layouts that are passed around, for the converter and for inspect."""

import hashlib
import json
import math
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


def wide_shapes(hidden: int, layers: int, head_dim: int = 128, kv_heads: int = 4) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer of the released proportions, without layers that keep modalities apart."""
    heads = hidden // head_dim
    shapes: dict[str, tuple[int, ...]] = {"adapter.rope.bands": (head_dim // 8,)}
    for name, channels in (("video", 192), ("audio", 64), ("text", 3584)):
        shapes |= {f"adapter.{name}_embedder.weight": (hidden, channels), f"adapter.{name}_embedder.bias": (hidden,)}
    inner = hidden * 8 // 3 // 4 * 4
    for layer in range(layers):
        prefix = f"block.layers.{layer}."
        shapes |= {f"{prefix}{part}.pre_norm.weight": (hidden,) for part in ("attention", "mlp")}
        shapes |= {f"{prefix}attention.{part}.weight": (head_dim,) for part in ("q_norm", "k_norm")}
        shapes[f"{prefix}attention.linear_qkv.weight"] = ((heads + 2 * kv_heads) * head_dim + heads, hidden)
        shapes[f"{prefix}attention.linear_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.up_gate_proj.weight"] = (2 * inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    for name, channels in (("video", 192), ("audio", 64)):
        shapes |= {f"final_norm_{name}.weight": (hidden,), f"final_linear_{name}.weight": (channels, hidden)}
    return shapes


def write_hollow_shards(folder: Path, shapes: dict[str, tuple[int, ...]], shards: int) -> int:
    """Float32 shards and their index, all numbers zero, as files with holes that take no room; returns their bytes."""
    folder.mkdir(parents=True)
    names, total, weight_map = list(shapes), 0, {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {}, 0
        for name in names[shard::shards]:
            end = offset + 4 * math.prod(shapes[name])
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
            weight_map[name], offset = file, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total

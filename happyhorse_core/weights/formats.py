"""Names of quantised formats, and of the tensors that stand beside a quantised weight ``X.weight``: their one home.

ComfyUI notes a layer's format in ``X.comfy_quant``, JSON in a uint8 tensor. Other programs leave a scale alone.
"""

import json

import torch
from torch import Tensor

from ..errors import CheckpointError
from .json_file import parse_object

FLOAT8 = torch.float8_e4m3fn
"""The kind of float8 that weights are kept in, and that GPUs multiply."""
FLOAT8_FORMATS = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
"""Kinds of float8 by which ComfyUI's layers keep a weight, and its names of them."""
FLOAT8_DTYPES = (*FLOAT8_FORMATS, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
NVFP4 = "nvfp4"
READABLE_FORMATS = (*FLOAT8_FORMATS.values(), NVFP4)
"""ComfyUI's formats that the core can dequantise."""

ALIGNMENT = 16
"""CUDA's float8 and nvfp4 matmuls ask for sides that this divides. Of the released ones it divides neither 7208 nor
13652."""

NOTE = "comfy_quant"
_LONGEST_NOTE = 1 << 16
"""Bytes; a note names a format and a few numbers."""
SCALE, TENSOR_SCALE = "weight_scale", "weight_scale_2"
"""ComfyUI's scales: of a weight, its rows or its blocks, and of all of an nvfp4 weight."""
COMMUNITY_SCALES = ("weight.__fp8_scale", "scale_weight")
"""The same by other programs, and by older ComfyUI."""
INPUT_SCALES = ("input_scale", "scale_input")
"""Only of use to layers that round their inputs to float8 too; today's name and an older one."""
SMOOTHING = "pre_quant_scale"
FILE_MARK = "scaled_fp8"
"""A tensor of ComfyUI's older files; with two elements it asks for matmuls in full precision."""
WEIGHT_SCALES = (SCALE, *COMMUNITY_SCALES)
EXTRAS = (NOTE, TENSOR_SCALE, SMOOTHING, FILE_MARK, *WEIGHT_SCALES, *INPUT_SCALES)
"""Ends of the names of all that may stand beside the model's own tensors."""


def rounded_up(size: int, multiple: int = ALIGNMENT) -> int:
    """The smallest multiple that is not below ``size``."""
    return -(-size // multiple) * multiple


def note_bytes(name: str, **more: object) -> bytes:
    """The content of ComfyUI's note for a layer in the format ``name``."""
    return json.dumps({"format": name, **more}).encode()


def noted_format(note: Tensor) -> str | None:
    """The format that a note's content [bytes] uint8 names; None where it is no note."""
    if note.dtype != torch.uint8 or note.numel() > _LONGEST_NOTE:
        return None
    try:
        found = parse_object(bytes(note.flatten().tolist()), NOTE).get("format")
    except CheckpointError:
        return None
    return found if isinstance(found, str) else None

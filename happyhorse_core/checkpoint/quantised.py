"""Scaled float8 weights, multiplied out as they are read.

Community files hold a weight divided by a scale, in float8, and the scale beside it. Read without its scale, such a
weight has the right shape and a wrong size, so the two belong together: a float8 tensor ``X.weight`` is multiplied by
``X.weight.__fp8_scale``, ``X.weight_scale`` or ``X.scale_weight``, one number or one a row. float8 tensors without a
scale were simply rounded and are taken as they are. All other quantised kinds are refused.
"""

import json
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import CheckpointError
from .tensors import TensorEntry, TensorSource

_FLOAT8 = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
_ACTIVATION_SCALES = ("input_scale", "scale_input")
"""Only of use when activations are rounded to float8 too."""
_LAYER_FORMAT = "comfy_quant"
_FILE_MARK = "scaled_fp8"
_READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def dequantised(source: TensorSource) -> TensorSource:
    """A view in which scaled float8 weights read as float32 with their scale applied, and the scales are gone.

    Raises CheckpointError for two scales of one weight, and for a scale or a layer format that is not understood.
    """
    entries = {name: entry for name, entry in source.entries.items() if name.rpartition(".")[2] != _FILE_MARK}
    for name, entry in source.entries.items():
        if entry.dtype not in _FLOAT8:
            continue
        layer = name.removesuffix("weight") if name.endswith(".weight") or name == "weight" else f"{name}."
        _take_layer_format(source, entries, f"{layer}{_LAYER_FORMAT}")
        for suffix in _ACTIVATION_SCALES:
            entries.pop(layer + suffix, None)
        scales = [
            key for key in (f"{name}.__fp8_scale", f"{layer}weight_scale", f"{layer}scale_weight") if key in entries
        ]
        if len(scales) > 1:
            raise CheckpointError(
                f"{entry.file}: tensor {name}: found two scales, {' and '.join(scales)}; expected one."
            )
        for key in scales:
            entries[name] = _scaled(name, entry, entries.pop(key))
    return source.with_entries(entries)


def _take_layer_format(source: TensorSource, entries: dict[str, TensorEntry], key: str) -> None:
    """Checks ComfyUI's note of how a layer was quantised, JSON in a uint8 tensor, and takes it off the list."""
    note = entries.pop(key, None)
    if note is None:
        return
    try:
        found = json.loads(bytes(note.read().tolist()))["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{note.file}: tensor {key}: expected JSON that names a format.") from error
    if found not in _READABLE_FORMATS:
        raise CheckpointError(
            f"{note.file}: tensor {key}: found format {found}; expected one of {', '.join(_READABLE_FORMATS)}."
        )


def _scaled(name: str, entry: TensorEntry, scale: TensorEntry) -> TensorEntry:
    count = 1
    for size in scale.shape:
        count *= size
    per_row = bool(entry.shape) and scale.shape[:1] == entry.shape[:1] and count == entry.shape[0]
    if not scale.dtype.is_floating_point or not (count == 1 or per_row):
        raise CheckpointError(
            f"{entry.file}: tensor {name}: found a {scale.dtype} scale of shape {list(scale.shape)}; "
            f"expected one number, or one for each of its {entry.shape[0] if entry.shape else 0} rows."
        )
    return replace(entry, dtype=torch.float32, read=partial(_multiply, entry, scale))


def _multiply(entry: TensorEntry, scale: TensorEntry) -> Tensor:
    factor = scale.read().to(torch.float32)
    return entry.read().to(torch.float32) * factor.reshape(-1, *[1] * (len(entry.shape) - 1))

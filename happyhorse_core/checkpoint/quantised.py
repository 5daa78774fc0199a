"""Scaled float8 weights, multiplied out as they are read.

Community files hold a weight divided by a scale, in float8, and the scale beside it. Read without its scale, such a
weight has the right shape and wrong values, so the two belong together: a float8 tensor ``X.weight`` is multiplied by
``X.weight.__fp8_scale``, ``X.weight_scale`` or ``X.scale_weight``, one number or one a row. Where no tensor has a
scale, float8 is plain rounding and taken as it is; where some matrices have one and others don't, scales were lost.
All other quantised kinds are refused.
"""

import json
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import some
from .tensors import TensorEntry, TensorSource

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_ACTIVATION_SCALES = ("input_scale", "scale_input")
"""Only of use to layers that round their inputs to float8 too."""
_LAYER_FORMAT = "comfy_quant"
_READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_FILE_MARK = "scaled_fp8"
_SCALES = (".__fp8_scale", ".weight_scale", ".scale_weight", *(f".{name}" for name in _ACTIVATION_SCALES))


def dequantised(source: TensorSource) -> TensorSource:
    """A view in which scaled float8 weights read as float32 with their scale applied, and the scales are gone.

    Raises CheckpointError for a scale that is missing, doubled or of another kind, and for a layer format that isn't
    plain float8.
    """
    entries = {name: entry for name, entry in source.entries.items() if not _is_file_mark(name)}
    is_scaled = len(entries) < len(source)
    bare = []
    for name, entry in list(entries.items()):
        if entry.dtype not in _FLOAT8:
            continue
        scale = _take_scale(name, entry, entries)
        if scale is not None:
            is_scaled = True
            entries[name] = _scaled(name, entry, scale)
        elif len(entry.shape) > 1:
            bare.append(name)
    if is_scaled and bare:
        raise CheckpointError(
            f"{source.path}: {len(bare)} float8 tensors have no scale in a file of scaled ones: {some(bare)}. "
            "Without it their values are wrong; download a complete file."
        )
    _check_left_over(source, entries)
    return source.with_entries(entries)


def _check_left_over(source: TensorSource, entries: dict[str, TensorEntry]) -> None:
    """By now each scale went to its weight; one that is left stands for a weight that is gone or of another kind."""
    lone = [name for name in entries if name.endswith(_SCALES)]
    if not lone:
        return
    layer = lone[0].removesuffix(".weight.__fp8_scale").removesuffix(f".{lone[0].rpartition('.')[2]}")
    weight = entries.get(f"{layer}.weight")
    found = "no weight" if weight is None else f"a weight of {weight.dtype}"
    raise CheckpointError(
        f"{source.path}: {len(lone)} scales have no float8 weight: {some(lone)}. Beside the first there is {found}, "
        f"expected {layer}.weight in float8. The file is incomplete, or quantised in a way that can't be read here."
    )


def _is_file_mark(name: str) -> bool:
    return name.rpartition(".")[2] == _FILE_MARK


def _take_scale(name: str, entry: TensorEntry, entries: dict[str, TensorEntry]) -> TensorEntry | None:
    """Takes what belongs to one float8 tensor off the list and returns its scale."""
    layer = name.removesuffix("weight")
    note = entries.pop(f"{layer}{_LAYER_FORMAT}", None)
    if note is not None:
        _check_format(f"{layer}{_LAYER_FORMAT}", note)
    for suffix in _ACTIVATION_SCALES:
        entries.pop(layer + suffix, None)
    candidates = (f"{name}.__fp8_scale", f"{layer}weight_scale", f"{layer}scale_weight")
    keys = [key for key in candidates if key in entries]
    if len(keys) > 1:
        raise CheckpointError(f"{entry.file}: tensor {name}: found two scales, {' and '.join(keys)}; expected one.")
    return entries.pop(keys[0]) if keys else None


def _check_format(name: str, note: TensorEntry) -> None:
    """Checks ComfyUI's note of how a layer was quantised: JSON in a uint8 tensor."""
    try:
        found = json.loads(bytes(note.read().flatten().tolist()))["format"]
    except (ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{note.file}: tensor {name}: expected JSON that names a format.") from error
    if found not in _READABLE_FORMATS:
        raise CheckpointError(
            f"{note.file}: tensor {name}: found format {found}; expected {' or '.join(_READABLE_FORMATS)}."
        )


def _scaled(name: str, entry: TensorEntry, scale: TensorEntry) -> TensorEntry:
    per_row = scale.shape[:1] == entry.shape[:1] and scale.numel == scale.shape[0] if scale.shape else False
    if not scale.dtype.is_floating_point or not (scale.numel == 1 or per_row):
        raise CheckpointError(
            f"{entry.file}: tensor {name} of shape {list(entry.shape)}: found a {scale.dtype} scale of shape "
            f"{list(scale.shape)}; expected one floating-point number, or one for each row."
        )
    return replace(entry, dtype=torch.float32, read=partial(_multiply, entry, scale))


def _multiply(entry: TensorEntry, scale: TensorEntry) -> Tensor:
    factor = scale.read().to(torch.float32)
    shape = [-1] + [1] * (len(entry.shape) - 1) if scale.numel > 1 else []
    product = entry.read().to(torch.float32).mul_(factor.reshape(shape))
    entry.release()
    return product

"""Scaled float8 weights and nvfp4 ones, dequantised as they are read.

Community files hold a weight divided by a scale, in float8, and the scale beside it. Read without its scale, such a
weight has the right shape and wrong values, so the two belong together: a float8 tensor ``X.weight`` is multiplied by
its scale, one number or one a row, under one of the names in ``formats``. Where no tensor has a scale, float8 is plain
rounding and taken as it is; where some matrices have one and others don't, scales were lost. ComfyUI's nvfp4 layers are
told by their note; see ``nvfp4`` for their tensors. All other quantised kinds are refused.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from . import nvfp4
from .files import some
from .formats import (
    COMMUNITY_SCALES,
    FILE_MARK,
    FLOAT8_DTYPES,
    FLOAT8_FORMATS,
    INPUT_SCALES,
    NOTE,
    NVFP4,
    READABLE_FORMATS,
    SCALE,
    TENSOR_SCALE,
    WEIGHT_SCALES,
    noted_format,
)
from .tensors import TensorEntry, TensorSource

_SCALES = tuple(f".{name.removeprefix('weight.')}" for name in (*WEIGHT_SCALES, TENSOR_SCALE, *INPUT_SCALES))


def dequantised(source: TensorSource, module: nn.Module | None = None) -> TensorSource:
    """A view in which quantised weights read as float32 with their scales applied, and the scales are gone.

    Packed weights are filled up with zeros, and only the ``module`` that they are for tells where these begin: without
    it, or where its shape doesn't explain the packed one, the zeros are part of the view. Raises CheckpointError for a
    scale that is missing, doubled or of another kind, and for a layer format that isn't one of READABLE_FORMATS.
    """
    entries = {name: entry for name, entry in source.entries.items() if not _is_file_mark(name)}
    is_scaled = len(entries) < len(source)
    bare = []
    targets = {} if module is None else module.state_dict()
    for name in packed_weights(source):
        entries[name] = _unpacked(name, entries, targets.get(name))
    for name, entry in list(entries.items()):
        if entry.dtype not in FLOAT8_DTYPES:
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


def packed_weights(source: TensorSource) -> list[str]:
    """The names of weights that are stored in nvfp4, two numbers a byte, which the note beside them tells."""
    return [
        name
        for name, entry in source.entries.items()
        if name.endswith("weight") and entry.dtype == torch.uint8 and f"{_layer(name)}{NOTE}" in source
    ]


def float8_scale_names(weight: str) -> tuple[str, str, str]:
    """The names under which the scale of a float8 weight may stand; at most one does."""
    layer = _layer(weight)
    scale, beside, older = (layer + name for name in WEIGHT_SCALES)
    return scale, beside, older


def _layer(weight: str) -> str:
    """What stands before ``weight`` in a name, with its dot."""
    return weight.removesuffix("weight")


def _check_left_over(source: TensorSource, entries: dict[str, TensorEntry]) -> None:
    """By now each scale went to its weight; one that is left stands for a weight that is gone or of another kind."""
    lone = [name for name in entries if name.endswith(_SCALES)]
    if not lone:
        return
    layer = lone[0].removesuffix(f".{COMMUNITY_SCALES[0]}").removesuffix(f".{lone[0].rpartition('.')[2]}")
    weight = entries.get(f"{layer}.weight")
    found = "no weight" if weight is None else f"a weight of {weight.dtype}"
    raise CheckpointError(
        f"{source.path}: {len(lone)} scales have no float8 weight: {some(lone)}. Beside the first there is {found}, "
        f"expected {layer}.weight in float8. The file is incomplete, or quantised in a way that can't be read here."
    )


def _is_file_mark(name: str) -> bool:
    return name.rpartition(".")[2] == FILE_MARK


def _take_scale(name: str, entry: TensorEntry, entries: dict[str, TensorEntry]) -> TensorEntry | None:
    """Takes what belongs to one float8 tensor off the list and returns its scale."""
    layer = _layer(name)
    note = entries.pop(f"{layer}{NOTE}", None)
    if note is not None:
        _check_format(f"{layer}{NOTE}", note, tuple(FLOAT8_FORMATS.values()))
    for suffix in INPUT_SCALES:
        entries.pop(layer + suffix, None)
    candidates = float8_scale_names(name)
    keys = [key for key in candidates if key in entries]
    if len(keys) > 1:
        raise CheckpointError(f"{entry.file}: tensor {name}: found two scales, {' and '.join(keys)}; expected one.")
    return entries.pop(keys[0]) if keys else None


def format_of(name: str, note: TensorEntry) -> str:
    """What ComfyUI's note ``name`` says of how its layer was quantised. Raises CheckpointError where it is none."""
    found = noted_format(note.read())
    if found is None:
        raise CheckpointError(f"{note.file}: tensor {name}: expected JSON that names a format.")
    return found


def _check_format(name: str, note: TensorEntry, expected: tuple[str, ...]) -> None:
    found = format_of(name, note)
    if found not in expected:
        raise CheckpointError(
            f"{note.file}: tensor {name}: found format {found}; expected {' or '.join(expected)}. Of ComfyUI's formats "
            f"only {', '.join(READABLE_FORMATS)} can be read here."
        )


def _unpacked(name: str, entries: dict[str, TensorEntry], target: Tensor | None) -> TensorEntry:
    """Takes what belongs to one packed weight off the list; returns what it reads as, without the zeros if it fits."""
    layer, packed = _layer(name), entries[name]
    _check_format(f"{layer}{NOTE}", entries.pop(f"{layer}{NOTE}"), (NVFP4,))
    entries.pop(f"{layer}{INPUT_SCALES[0]}", None)
    blocks, whole = entries.pop(layer + SCALE, None), entries.pop(layer + TENSOR_SCALE, None)
    if blocks is None or whole is None:
        raise CheckpointError(
            f"{packed.file}: tensor {name}: {layer}{SCALE} and {layer}{TENSOR_SCALE} are expected beside a weight "
            f"in {NVFP4}, one is missing. Download a complete file."
        )
    shape = (packed.shape[0], 2 * packed.shape[-1])
    if (
        len(packed.shape) != 2
        or (packed.shape, blocks.shape) != nvfp4.stored_shapes(shape)
        or blocks.dtype not in (nvfp4.SCALE_DTYPE, torch.uint8)
        or not whole.dtype.is_floating_point
        or whole.numel != 1
    ):
        raise CheckpointError(
            f"{packed.file}: tensor {name}: found bytes of shape {list(packed.shape)}, {blocks.dtype} block scales of "
            f"shape {list(blocks.shape)} and a {whole.dtype} scale of shape {list(whole.shape)}, which make no matrix "
            f"in {NVFP4}. The file is damaged; download it again."
        )
    if target is not None and target.dim() == 2 and nvfp4.padded(tuple(target.shape)) == shape:
        shape = (target.shape[0], target.shape[1])
    return replace(packed, shape=shape, dtype=torch.float32, read=partial(_unpack, packed, blocks, whole, shape))


def _unpack(packed: TensorEntry, blocks: TensorEntry, whole: TensorEntry, shape: tuple[int, int]) -> Tensor:
    numbers = nvfp4.dequantise(packed.read(), blocks.read(), whole.read().reshape(()), shape)
    packed.release()
    blocks.release()
    return numbers


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

"""Quantised checkpoints under the names by which the host's quantised layers know them."""

import math
from dataclasses import replace

import torch
from comfy.quant_ops import QUANT_ALGOS
from torch import nn

from ...happyhorse_core.errors import CheckpointError
from ...happyhorse_core.weights.formats import (
    COMMUNITY_SCALES,
    FILE_MARK,
    FLOAT8_FORMATS,
    INPUT_SCALES,
    NOTE,
    SCALE,
    note_bytes,
)
from ...happyhorse_core.weights.quantised import format_of
from ...happyhorse_core.weights.source import TensorSource
from ...happyhorse_core.weights.tensors import TensorEntry

QUANT_NOTE = f".{NOTE}"
FOREIGN_SCALES = tuple(f".{name}" for name in (*COMMUNITY_SCALES, SCALE))
"""Ends of the names of float8 scales in files of other programs, and of the host's own before it wrote notes."""
INPUT_SCALE, OLD_INPUT_SCALE = (f".{name}" for name in INPUT_SCALES)


def is_quantised(source: TensorSource) -> bool:
    """Whether the host's quantised layers can keep the weights: ones that it noted itself, or plain scaled float8."""
    scales = _foreign_scales(source)
    if not scales:
        return any(name.endswith(QUANT_NOTE) for name in source.names)
    return all(_is_one_scale(source, layer, scale) for layer, scale in scales.items())


def _foreign_scales(source: TensorSource) -> dict[str, str]:
    """Layer -> the name of its scale, of layers that have one and no note."""
    found = {}
    for name in source.names:
        for end in FOREIGN_SCALES:
            layer = name.removesuffix(end)
            if layer != name and layer + QUANT_NOTE not in source:
                found[layer] = name
    return found


def _is_one_scale(source: TensorSource, layer: str, scale: str) -> bool:
    """Whether a scale is one number for a whole float8 weight, the only kind that the host's layers know."""
    weight = source.entries.get(f"{layer}.weight")
    return weight is not None and weight.dtype in FLOAT8_FORMATS and math.prod(source.entries[scale].shape) == 1


def with_host_notes(source: TensorSource) -> TensorSource:
    """A view in which scaled float8 weights of other programs and older files carry the host's names and notes."""
    foreign = _foreign_scales(source)
    marks = [entry for name, entry in source.entries.items() if name.rpartition(".")[2] == FILE_MARK]
    extra = {"full_precision_matrix_mult": True} if any(mark.numel == 2 for mark in marks) else {}
    entries = {}
    for name, entry in source.entries.items():
        layer = name.removesuffix(OLD_INPUT_SCALE)
        if name.rpartition(".")[2] == FILE_MARK or name in foreign.values():
            continue
        entries[layer + INPUT_SCALE if layer in foreign else name] = entry
    for layer, scale in foreign.items():
        entries[f"{layer}.{SCALE}"] = source.entries[scale]
        note = note_bytes(FLOAT8_FORMATS[source.entries[f"{layer}.weight"].dtype], **extra)
        entries[layer + QUANT_NOTE] = _as_tensor(source.entries[scale], note)
    return source.with_entries(entries)


def without_formats(source: TensorSource, expected: nn.Module) -> TensorSource:
    """A view in which quantised layers look like plain ones: packed weights have other shapes, and tensors beside them.

    Raises CheckpointError for a format that the host doesn't know.
    """
    targets = expected.state_dict()
    notes = [name for name in source.names if name.endswith(QUANT_NOTE)]
    beside = {name.removesuffix(QUANT_NOTE): _format_tensors(name, source.entries[name]) for name in notes}
    entries = {}
    for name, entry in source.entries.items():
        layer, _, part = name.rpartition(".")
        if layer in beside:
            # Not every host lists the parts of a weight in its table, but all of them name parts ``weight_...``.
            if part in beside[layer] or part.startswith("weight_"):
                continue
            if name in targets:
                entry = replace(entry, shape=tuple(targets[name].shape), dtype=targets[name].dtype)
        entries[name] = entry
    return source.with_entries(entries)


def _format_tensors(name: str, note: TensorEntry) -> set[str]:
    """What the host's table says that stands beside a layer's weight in the format of its note, the note included."""
    found = format_of(name, note)
    if found not in QUANT_ALGOS:
        raise CheckpointError(
            f"{note.file}: tensor {name}: found format {found!r}; this ComfyUI knows {', '.join(QUANT_ALGOS)}. Update "
            "ComfyUI, or choose a file in one of these."
        )
    return {NOTE, *QUANT_ALGOS[found]["parameters"]}


def _as_tensor(beside: TensorEntry, content: bytes) -> TensorEntry:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return replace(beside, shape=tuple(tensor.shape), dtype=tensor.dtype, read=lambda: tensor)

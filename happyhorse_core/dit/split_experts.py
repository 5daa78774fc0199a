"""Files of the split layout, presented under the released names.

DeepBeepMeep's files for Wan2GP keep every projection and every modality's weights apart. Below ``block.layers.N.``:

| released | split, shared layer | split, per-modality layer: M is video, audio, text |
| --- | --- | --- |
| ``attention.linear_qkv.weight`` | ``attention.linear_{q,k,v,g}.weight`` | ``attention.linear_{q,k,v,g}_M.weight`` |
| ``attention.linear_proj.weight`` | the same | ``attention.linear_proj_M.weight`` |
| ``mlp.up_gate_proj.weight`` | the same | ``mlp.up_gate_proj_M.weight`` |
| ``mlp.down_proj.weight`` | the same | ``mlp.down_proj_M.weight`` |

``g`` is the gate. The released tensor is the parts one below another, video before audio before text and, within each,
q before k before v before g; nothing is computed. Norms are stacked in both. A part may itself be fused
(``linear_qkv_video``). Such a file of the whole model has 563 tensors instead of 331.
"""

import re
from functools import partial

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..weights.files import some
from ..weights.tensors import TensorEntry, TensorSource

MODALITY_SUFFIXES = ("_video", "_audio", "_text")
PROJECTIONS = ("q", "k", "v", "g")

_PART = re.compile(
    r"(?P<layer>.*block\.layers\.\d+\.)"
    r"(?:(?P<qkv>attention\.linear_)(?P<projection>qkv|[qkvg])|(?P<other>attention\.linear_proj|mlp\.(?:up_gate|down)_proj))"
    r"(?P<modality>_video|_audio|_text)?\.weight"
)
_QUANTO = "._data"
"""The end of a quantised weight's name in files written by optimum-quanto; its scale ends in ``._scale``."""
_PLAIN = (torch.bfloat16, torch.float16, torch.float32)


def merge_split_experts(source: TensorSource) -> TensorSource:
    """A view with the released names; the source itself where nothing in it is split.

    The parts are put together when they are read. Raises CheckpointError for int8 files of this layout, for a part that
    is missing, and for parts that don't fit each other.
    """
    quanto = [name for name in source.names if name.endswith(_QUANTO)]
    if quanto:
        raise CheckpointError(
            f"{source.path}: {len(quanto)} weights are quantised by quanto ({some(quanto)}), which can't be read here. "
            "Expected bfloat16: download the file of the same model whose name ends in bf16."
        )
    parts: dict[str, dict[str, TensorEntry]] = {}
    entries: dict[str, TensorEntry] = {}
    for name, entry in source.entries.items():
        released = _released_name(name)
        if released is None:
            entries[name] = entry
        else:
            # Reserves the place of the first part, so that the order of the file is kept.
            entries.setdefault(released, entry)
            parts.setdefault(released, {})[name] = entry
    for released, found in parts.items():
        if released in source:
            raise CheckpointError(f"{source.path}: found both {released} and {some(list(found))}; expected only one.")
        entries[released] = _merged(source, released, found)
    return source.with_entries(entries) if parts else source


def _released_name(name: str) -> str | None:
    """The name of the tensor that ``name`` is a part of; None for a tensor that is whole."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    if match["qkv"] and match["projection"] != "qkv":
        return f"{match['layer']}{match['qkv']}qkv.weight"
    if match["modality"] is None:
        return None
    return f"{match['layer']}{match['other'] or match['qkv'] + 'qkv'}.weight"


def _merged(source: TensorSource, released: str, found: dict[str, TensorEntry]) -> TensorEntry:
    names = _ordered_names(released, found)
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    if missing or extra:
        fault = f"missing {some(missing)}" if missing else f"not expected beside the others: {some(extra)}"
        raise CheckpointError(
            f"{source.path}: {released} can't be put together from {len(found)} parts; {fault}. "
            "The file is damaged or incomplete; download it again."
        )
    parts = [found[name] for name in names]
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        if part.shape[1:] != first.shape[1:] or len(part.shape) != 2 or part.dtype != first.dtype:
            raise CheckpointError(
                f"{source.path}: {name} is {part.dtype} of shape {list(part.shape)}, {names[0]} is {first.dtype} of "
                f"shape {list(first.shape)}; expected one dtype and one width, since both are parts of {released}."
            )
    if first.dtype not in _PLAIN:
        raise CheckpointError(
            f"{source.path}: {names[0]} is {first.dtype}; files with experts apart are only read in bfloat16, float16 "
            "or float32. Download the bf16 file."
        )
    shape = (sum(part.shape[0] for part in parts), first.shape[1])
    return TensorEntry(first.file, shape, first.dtype, partial(_concatenate, parts))


def _ordered_names(released: str, found: dict[str, TensorEntry]) -> list[str]:
    """Names of all parts in their order, as far as the parts that are there tell how the tensor was split."""
    stem = released.removesuffix(".weight")
    by_modality = any(name.removesuffix(".weight").endswith(MODALITY_SUFFIXES) for name in found)
    names = []
    for suffix in MODALITY_SUFFIXES if by_modality else ("",):
        fused = f"{stem}{suffix}.weight"
        if stem.endswith("linear_qkv") and fused not in found:
            names += [f"{stem.removesuffix('qkv')}{projection}{suffix}.weight" for projection in PROJECTIONS]
        else:
            names.append(fused)
    return names


def _concatenate(parts: list[TensorEntry]) -> Tensor:
    whole = torch.cat([part.read() for part in parts])
    for part in parts:
        part.release()
    return whole

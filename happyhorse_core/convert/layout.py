"""Where everything lies in a safetensors file, decided before the first tensor is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from ..errors import CheckpointError
from ..weights.safetensors_file import DTYPE_NAMES, LENGTH_BYTES

_NAME_OF = {getattr(torch, name): code for code, name in DTYPE_NAMES.items() if hasattr(torch, name)}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Layout:
    """``spans`` are the first byte of each tensor and the one after its last, counted from the file's beginning."""

    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    spans: Mapping[str, tuple[int, int]]
    header_bytes: int

    @property
    def size(self) -> int:
        return max((end for _, end in self.spans.values()), default=self.header_bytes)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The file's first bytes. Raises ValueError where this metadata needs another length than was planned."""
        content = _header(self.entries, self.spans, self.header_bytes, metadata)
        if len(content) > self.header_bytes:
            raise ValueError(f"The header takes {len(content)} bytes, {self.header_bytes} are set aside.")
        return content.ljust(self.header_bytes, b" ")


def lay_out(entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> Layout:
    """Places tensors of wide numbers before those of narrow ones, so that each lies where its dtype can be mapped.

    Raises CheckpointError for a dtype that the format has no name for.
    """
    foreign = [name for name, (dtype, _) in entries.items() if dtype not in _NAME_OF]
    if foreign:
        raise CheckpointError(f"{foreign[0]} is {entries[foreign[0]][0]}, which a safetensors file can't hold.")
    offset, offsets = 0, {}
    for name in sorted(entries, key=lambda name: -entries[name][0].itemsize):
        dtype, shape = entries[name]
        end = offset + prod(shape) * dtype.itemsize
        offsets[name] = (offset, end)
        offset = end
    # Offsets in the header count from its own end, so its length doesn't depend on itself.
    length = len(_header(entries, offsets, 0, metadata))
    size = -(-length // _ALIGNMENT) * _ALIGNMENT
    return Layout(dict(entries), {name: (size + begin, size + end) for name, (begin, end) in offsets.items()}, size)


def _header(
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    spans: Mapping[str, tuple[int, int]],
    header_bytes: int,
    metadata: Mapping[str, str],
) -> bytes:
    tree = {"__metadata__": dict(metadata)}
    for name, (begin, end) in spans.items():
        dtype, shape = entries[name]
        tree[name] = {
            "dtype": _NAME_OF[dtype],
            "shape": list(shape),
            "data_offsets": [begin - header_bytes, end - header_bytes],
        }
    text = json.dumps(tree, separators=(",", ":")).encode()
    padded = header_bytes or LENGTH_BYTES + len(text)
    return (padded - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text

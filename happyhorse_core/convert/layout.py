"""Where everything lies in a safetensors file, decided before the first tensor is written."""

import json
from collections.abc import Mapping
from math import prod

import torch

from ..errors import CheckpointError
from ..weights.safetensors_file import DTYPE_NAMES, LENGTH_BYTES

_NAME_OF = {getattr(torch, name): code for code, name in DTYPE_NAMES.items() if hasattr(torch, name)}
_ALIGNMENT = 8


class Layout:
    """The header of a file, and ``begins``, the first byte of each tensor, counted from the file's beginning.

    Wide numbers lie before narrow ones, so that each tensor can be mapped. Raises CheckpointError for a dtype that the
    format has no name for.
    """

    def __init__(self, stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> None:
        foreign = [name for name, (dtype, _) in stored.items() if dtype not in _NAME_OF]
        if foreign:
            raise CheckpointError(f"{foreign[0]} is {stored[foreign[0]][0]}, which a safetensors file can't hold.")
        self._tensors: dict[str, dict[str, object]] = {}
        offset, offsets = 0, {}
        for name in sorted(stored, key=lambda name: -stored[name][0].itemsize):
            dtype, shape = stored[name]
            offsets[name], end = offset, offset + prod(shape) * dtype.itemsize
            self._tensors[name] = {"dtype": _NAME_OF[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        header_bytes = len(self.header(metadata))
        self.begins = {name: header_bytes + begin for name, begin in offsets.items()}
        self.size = header_bytes + offset

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The file's first bytes."""
        text = json.dumps({"__metadata__": dict(metadata), **self._tensors}, separators=(",", ":")).encode()
        text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text

"""One safetensors file: its header is checked in full before any weight is read, so that errors say what is wrong.

Layout: 8 bytes with the header's length (little endian), the header as JSON, then the tensors' bytes. The header gives
each tensor's dtype, shape and the span of its bytes, counted from the header's end.
"""

import mmap
import platform
import sys
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import read_start, unreadable
from .json_file import is_whole, parse_object, shown
from .tensors import TensorEntry, check_shape

DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The limit that the format itself sets."""
_MOST_TENSORS = 100_000
"""Far beyond any model: the released ones have 650 to 1,400."""
_IS_COMMON_LINUX = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if _IS_COMMON_LINUX else None
"""Not every Python names this flag of Linux; its value is the same on these machines."""
_DROP_PAGES = getattr(mmap, "MADV_DONTNEED", None) if _IS_COMMON_LINUX else None
"""Elsewhere this is only advice, and the system decides by itself when pages go."""


@dataclass(frozen=True)
class _Span:
    """Where a tensor's bytes lie, counted from the beginning of the file."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class SafetensorsFile:
    """The tensors of one safetensors file, mapped into memory at the first reading.

    With ``mapped`` false each tensor is read into memory of its own. That bears with a file that somebody cuts short
    meanwhile, which ends a process that has it mapped. Raises CheckpointError where the file is missing, cut short, or
    something else than safetensors.
    """

    def __init__(self, path: Path, *, mapped: bool = True) -> None:
        self.path = path
        self._mapped = mapped
        self._mapping: mmap.mmap | None = None
        self._bytes: Tensor | None = None
        header, data_begin = _read_header(path)
        metadata = header.pop("__metadata__", None)
        self.metadata = {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}
        if len(header) > _MOST_TENSORS:
            raise CheckpointError(f"{path}: found {len(header):,} tensors; no model has more than {_MOST_TENSORS:,}.")
        spans = {name: _parse_span(path, name, fields, data_begin) for name, fields in header.items()}
        _check_places(path, spans, data_begin)
        _check_size(path, max((span.end for span in spans.values()), default=data_begin))
        self.entries = {
            name: TensorEntry(path, span.shape, span.dtype, partial(self._read, span), partial(self._release, span))
            for name, span in spans.items()
        }

    def _read(self, span: _Span) -> Tensor:
        if span.begin == span.end:
            return torch.empty(span.shape, dtype=span.dtype)
        if self._bytes is None and self._mapped:
            self._mapping = _map_file(self.path)
            self._bytes = None if self._mapping is None else torch.frombuffer(self._mapping, dtype=torch.uint8)
        # A view needs alignment, which the format doesn't promise.
        if self._bytes is not None and span.begin % span.dtype.itemsize == 0:
            raw = self._bytes[span.begin : span.end]
        else:
            raw = _read_bytes(self.path, span)
        return raw.view(span.dtype).view(span.shape)

    def _release(self, span: _Span) -> None:
        """Drops the pages that hold nothing but this tensor."""
        begin = -(-span.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = span.end // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if self._mapping is not None and _DROP_PAGES is not None and length > 0:
            self._mapping.madvise(_DROP_PAGES, begin, length)

    def close(self) -> None:
        """Forgets the mapping; it goes when the last tensor read from it does."""
        self._mapping = self._bytes = None


def _map_file(path: Path) -> mmap.mmap | None:
    """A copy-on-write mapping of the whole file; None where the system refuses to map.

    A mapping that could be written to counts as memory that is asked for, so systems refuse one that is larger than
    all of theirs; MAP_NORESERVE says that it won't be written to.
    """
    try:
        with path.open("rb") as file:
            if _MAP_NORESERVE is not None:
                flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                return mmap.mmap(file.fileno(), 0, flags, access)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError as error:
        raise unreadable(path, error) from error
    except OSError:
        return None


def _read_bytes(path: Path, span: _Span) -> Tensor:
    """One tensor's bytes, read into memory."""
    content = torch.empty(span.end - span.begin, dtype=torch.uint8)
    try:
        with path.open("rb") as file:
            file.seek(span.begin)
            count = file.readinto(content.numpy().data)
    except OSError as error:
        raise unreadable(path, error) from error
    if count < len(content):
        raise _truncated(path, span.end, span.begin + count)
    return content


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and the position at which the tensors' bytes begin."""
    start = read_start(path, 64)
    size = path.stat().st_size
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    # A length may begin with any byte, that of a pickle included; what follows it tells the two apart.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise CheckpointError(f"{path}: found a pickled PyTorch file named as safetensors. Name it .ckpt or .pth.")
    if (
        len(start) <= LENGTH_BYTES
        or not 2 <= length <= _MAX_HEADER_BYTES
        or start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{"
    ):
        raise CheckpointError(
            f"{path}: is no safetensors file: it begins with {start[:16]!r}; expected a header's length and its JSON."
        )
    data_begin = LENGTH_BYTES + length
    if size < data_begin:
        raise _truncated(path, data_begin, size, "at least ")
    try:
        with path.open("rb") as file:
            file.seek(LENGTH_BYTES)
            header = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_object(header, f"{path}: header"), data_begin


def _truncated(path: Path, expected: int, found: int, least: str = "") -> CheckpointError:
    return CheckpointError(
        f"{path}: the file is incomplete: its header asks for {least}{expected:,} bytes, found {found:,}. "
        "Download it again."
    )


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size < expected:
        raise _truncated(path, expected, size)
    if size > expected:
        raise CheckpointError(
            f"{path}: the file is damaged: its header asks for {expected:,} bytes, found {size:,}. Download it again."
        )


def _check_places(path: Path, spans: dict[str, _Span], data_begin: int) -> None:
    """Each tensor begins where the one before it ends, as the format asks for: none shares bytes, none are nobody's."""
    before, end = "the header", data_begin
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.begin != end:
            found = "lie on the same bytes" if span.begin < end else f"leave {span.begin - end:,} bytes between them"
            raise CheckpointError(
                f"{path}: {before[:200]} and {name[:200]} {found}. The header is damaged; download the file again."
            )
        before, end = name, span.end


def _parse_span(path: Path, name: str, fields: Any, data_begin: int) -> _Span:
    """The place of one tensor, from its fields in the header, once they agree with each other."""
    try:
        dtype_name, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        numbers_good = all(is_whole(number, 0, 2**63) for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tensor {name}: its dtype, shape or place is missing from the header."
        ) from error
    dtype = getattr(torch, DTYPE_NAMES.get(str(dtype_name), ""), None)
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {name}: found dtype {shown(dtype_name)}, which can't be read here.")
    if numbers_good:
        check_shape(f"{path}: tensor {name}", shape)
    if not numbers_good or end - begin != prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}: tensor {name}: {dtype_name} of shape {list(shape)} does not fit bytes {begin} to {end}. "
            "The header is damaged; download the file again."
        )
    return _Span(data_begin + begin, data_begin + end, dtype, shape)

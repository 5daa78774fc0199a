"""Checkpoints as the host's own loaders open them.

The host streams a weight from disk to the device only if its tensor is the one that ``load_torch_file`` made: with a
storage of its own that tells its place in the file. So the core checks each file's header first, which is where clear
errors come from, and then works on the host's tensors. Pickled files are read by the core, as data.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import comfy.utils
from torch import Tensor

from ...happyhorse_core.errors import CheckpointError
from ...happyhorse_core.weights.files import check_name
from ...happyhorse_core.weights.safetensors_file import SafetensorsFile
from ...happyhorse_core.weights.source import TensorSource, open_source

Ranges = list[tuple[int, int]]


def open_weights(path: str | Path, *, prefix: str = "") -> TensorSource:
    """``open_source`` of the core, with the host's tensors: a dict of each file, and those of all shards in one."""
    return open_source(path, prefix=prefix, open_file=_open_file)


def state_dict(source: TensorSource) -> dict[str, Tensor]:
    """The ordinary dict of tensors that the host's own loaders pass on."""
    return {name: source.read(name) for name in source.names}


def source_paths(source: TensorSource) -> list[str]:
    """The files that tensors come from."""
    return sorted({str(entry.file) for entry in source.entries.values()})


def _open_file(path: Path) -> TensorSource:
    checked = SafetensorsFile(path)
    check_name(path)
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except KeyError as error:  # its table of dtypes is shorter than the format's
        raise CheckpointError(
            f"{path}: found dtype {error.args[0]}, which this ComfyUI can't load. Update it, or choose another file."
        ) from error
    metadata = {str(key): str(value) for key, value in (metadata or {}).items()}
    ordered = {name: tensors[name] for name in checked.entries}
    return TensorSource.of_tensors(path, ordered, metadata=metadata, release=_releaser(path))


def _releaser(path: Path) -> Callable[[Tensor], None] | None:
    """What drops a tensor's pages from memory, for tensors that lie in a mapping of ``path``; they come back when read.

    A float32 checkpoint is twice or four times the model: its pages would stay beside the copies that were made of
    them. Only Linux takes this as more than advice. A tensor elsewhere, copied by the host, is left alone.
    """
    if sys.platform != "linux" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    ranges = _mapped_ranges(path)
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def release(tensor: Tensor) -> None:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and any(low <= begin and end <= high for low, high in ranges):
            madvise(begin, end - begin, mmap.MADV_DONTNEED)

    return release


def _mapped_ranges(path: Path) -> Ranges:
    """Where this process has a file mapped, as Linux tells it (proc(5), /proc/pid/maps)."""
    real = str(path.resolve())
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, *fields = line.split(None, 5)
        if len(fields) == 5 and fields[-1] == real:
            low, high = span.split("-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges

"""PyTorch's own pickled files (.ckpt, .pth, .pt), read without running anything that they contain."""

import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import check_name, read_start
from .tensors import TensorEntry, check_shape

_WRAPPERS = ("ema_state_dict", "state_dict", "model")
"""Where training programs put the weights, best first; smoothed (EMA) weights are the ones to run."""
_MAX_NESTING = 4
_LONGEST_PICKLE = 64 << 20
"""Bytes of an archive's pickle. That of the released files has 30 to 60 kB."""
_MODULE_PREFIX = "module."
"""Left on names by distributed training."""
_IMPORTS = {"GLOBAL", "STACK_GLOBAL", "INST"}
"""The steps of a pickle that fetch something to call."""
_EXPECTED = "Expected a file of tensors only: get the weights as safetensors, or from a source that you trust."
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)
"""What PyTorch was seen to raise on files that are cut short or not its own."""


def read_pickled(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a pickled checkpoint, mapped from the file where its format allows, by name.

    Wrapping dicts are looked through and the prefix ``module.`` is dropped. Raises CheckpointError for a file that
    asks to run code, is damaged, or holds no tensors.
    """
    tensors = _find_tensors(_load_safely(path))
    if not tensors:
        raise CheckpointError(
            f"{path}: found no named tensors in it; expected a state dict, bare or under one of {_WRAPPERS}."
        )
    entries: dict[str, TensorEntry] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_MODULE_PREFIX)
        if short in entries:
            raise CheckpointError(f"{path}: found both {short} and {_MODULE_PREFIX}{short}; expected only one.")
        _check_plain(path, short, tensor)
        check_shape(f"{path}: tensor {short}", tuple(tensor.shape))
        entries[short] = TensorEntry(path, tuple(tensor.shape), tensor.dtype, tensor.detach)
    return entries


def _check_plain(path: Path, name: str, tensor: Tensor) -> None:
    """Refuses a tensor that is no plain block of numbers, with as many of them in the file as its shape asks for."""
    if tensor.layout != torch.strided:
        found = f"a sparse one ({tensor.layout})"
    elif tensor.device.type != "cpu":
        found = f"one without values (on the device {tensor.device})"
    elif tensor.is_quantized:
        found = f"one quantised by PyTorch ({tensor.dtype})"
    elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        found = f"shape {list(tensor.shape)} on fewer numbers than it asks for"
    else:
        return
    raise CheckpointError(f"{path}: tensor {name[:200]!r}: found {found}; expected a plain tensor. {_EXPECTED}")


def _load_safely(path: Path) -> Any:
    check_name(path)
    if read_start(path, 64)[8:10] == b'{"':
        raise CheckpointError(f"{path}: found a safetensors file named as a pickled one. Name it .safetensors.")
    try:
        is_archive = zipfile.is_zipfile(path)
        is_program = _is_program(path, is_archive)
        # Files written before PyTorch 1.6 are no archives and can't be mapped.
        content = None if is_program else torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except CheckpointError:
        raise
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: is no PyTorch weights file, or an incomplete one ({reason}). Download it again."
        ) from error
    if is_program:
        raise CheckpointError(f"{path}: found a compiled program (TorchScript) or a tar. {_EXPECTED}")
    return content


def _is_program(path: Path, is_archive: bool) -> bool:
    """Whether this is one of the two kinds that PyTorch before 2.6 loaded without heeding ``weights_only``."""
    if not is_archive:
        return _is_tar(path)
    with zipfile.ZipFile(path) as archive:
        records = {record.filename.rpartition("/")[2]: record for record in archive.infolist()}
    if "constants.pkl" in records:
        return True
    for name, record in records.items():
        # What is packed unfolds in memory, and tensors that are mapped from it would have wrong values.
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise CheckpointError(f"{path}: record {name}: found it compressed; PyTorch stores it plain. {_EXPECTED}")
    pickled = records.get("data.pkl")
    if pickled is not None and pickled.file_size > _LONGEST_PICKLE:
        raise CheckpointError(
            f"{path}: record data.pkl: found {pickled.file_size:,} bytes, at most {_LONGEST_PICKLE:,} are read: it "
            f"holds names and shapes alone. {_EXPECTED}"
        )
    return False


def _is_tar(path: Path) -> bool:
    """Whether this is a tar as PyTorch knows it, not packed: to look into packed ones may mean to read a file whole."""
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return False
    return True


def _refused(path: Path, message: str) -> CheckpointError:
    """The error for a pickle that is not plain tensors; PyTorch's message names what it would have called."""
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted is None and not _is_plain_pickle_with_imports(path):
        return CheckpointError(f"{path}: is no PyTorch weights file, or a damaged one. Download it again.")
    called = f" ({wanted[1]})" if wanted else ""
    return CheckpointError(f"{path}: the file wants to run code{called} when it is opened; it was not run. {_EXPECTED}")


def _is_plain_pickle_with_imports(path: Path) -> bool:
    """Whether this is a pickle of newer kinds than PyTorch reads that would import something; it is only listed."""
    try:
        with path.open("rb") as file:
            return any(step.name in _IMPORTS for step, _, _ in pickletools.genops(file))
    except (ValueError, OSError):
        return False


def _find_tensors(content: Any) -> dict[str, Tensor]:
    for _ in range(_MAX_NESTING):
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        content = inner
    return {}

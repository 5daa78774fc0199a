"""Filling a module that was built without memory (on the meta device) with the tensors of a checkpoint."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..progress import Progress, silent
from .files import SHOWN, some
from .formats import FLOAT8
from .quantised import dequantised, float8_scale_names
from .tensors import TensorEntry, TensorSource


def load_module(
    module: nn.Module,
    source: TensorSource,
    *,
    ignore: Sequence[str] = (),
    dtype_of: Callable[[str, Tensor], torch.dtype] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> None:
    """Reads the module's parameters and persistent buffers, one tensor at a time, and puts them in place.

    Each is cast to the dtype that the module was built with, or to ``dtype_of(name, tensor)``; quantised weights
    are dequantised first (see ``quantised``). A tensor that needs no cast and stays on the CPU remains a view of
    the mapped file, so its pages are read when they are first used. Parameters don't ask for gradients. ``progress``
    counts the bytes of the files. A layer that has ``keep_float8(weight, scale)`` gets a float8 weight as it is,
    with its scale, or 1 where the file has none.

    Names, shapes and kinds are compared before anything is read. Raises CheckpointError for a tensor that is missing,
    left over (unless its name matches a glob pattern in ``ignore``), of another shape, or stored as integers where
    floating point is expected.
    """
    stored, source = source, dequantised(source, module)
    targets = check_module(module, source, ignore=ignore)
    total = sum(source.entries[name].nbytes for name in targets)
    done = 0
    for name, target in targets.items():
        entry = source.entries[name]
        keep = _float8_keeper(module, name, stored.entries[name])
        if keep is not None:
            keep(stored.read(name).to(device), _scale(stored, name).to(device))
            stored.entries[name].release()
        else:
            _put(module, name, _placed(entry, device, target.dtype if dtype_of is None else dtype_of(name, target)))
        done += entry.nbytes
        progress(done, total)


def _placed(entry: TensorEntry, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    read = entry.read()
    placed = read.to(device).to(dtype)
    if placed.data_ptr() != read.data_ptr():
        # Else the file's pages would stay beside the copy: two or four times the model, by the end.
        del read
        entry.release()
    return placed


def _float8_keeper(module: nn.Module, name: str, entry: TensorEntry) -> Callable[[Tensor, Tensor], None] | None:
    """What takes this weight as it is stored; None where it can't, or nothing would."""
    if entry.dtype != FLOAT8 or not name.endswith(".weight"):
        return None
    return getattr(module.get_submodule(name.removesuffix(".weight")), "keep_float8", None)


def _scale(source: TensorSource, name: str) -> Tensor:
    """The scale of a float8 weight; that there is at most one was seen when the source was looked through."""
    for key in float8_scale_names(name):
        if key in source:
            return source.read(key)
    return torch.ones(())


def check_module(module: nn.Module, source: TensorSource, *, ignore: Sequence[str] = ()) -> dict[str, Tensor]:
    """Holds a source of plain tensors against the module that it shall fill, reading nothing: see ``load_module``.

    Returns the module's own parameters and persistent buffers by name.
    """
    targets = module.state_dict(keep_vars=True)
    _check_filled(module, targets)
    _check_names(source, targets, ignore)
    _check_tensors(source, targets)
    return targets


def _check_filled(module: nn.Module, targets: dict[str, Tensor]) -> None:
    """Buffers outside the state dict come from no checkpoint, so the module has to have made them for real."""
    unfilled = [name for name, buffer in module.named_buffers() if buffer.is_meta and name not in targets]
    if unfilled:
        raise RuntimeError(f"Buffers that are not persistent can't be built on the meta device: {some(unfilled)}.")


def _check_names(source: TensorSource, targets: dict[str, Tensor], ignore: Sequence[str]) -> None:
    missing = [name for name in targets if name not in source]
    if missing:
        raise CheckpointError(
            f"{source.path}: {len(missing)} of {len(targets)} tensors are missing: {some(missing)}. "
            "The checkpoint is incomplete or of another model."
        )
    extra = [
        name for name in source.names if name not in targets and not any(fnmatchcase(name, glob) for glob in ignore)
    ]
    if extra:
        raise CheckpointError(
            f"{source.path}: {len(extra)} tensors are not expected: {some(extra)}. "
            "The checkpoint is of another model or of a kind that can't be read here."
        )


def _check_tensors(source: TensorSource, targets: dict[str, Tensor]) -> None:
    wrong = []
    for name, target in targets.items():
        entry = source.entries[name]
        if entry.shape != tuple(target.shape):
            wrong.append(f"{name} in {entry.file.name} has shape {list(entry.shape)}, expected {list(target.shape)}")
        elif entry.dtype.is_floating_point != target.dtype.is_floating_point:
            wrong.append(f"{name} in {entry.file.name} is stored as {entry.dtype}, expected {target.dtype}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"{source.path}: {len(wrong)} tensors don't fit: {'; '.join(wrong[:SHOWN])}{more}. "
            "The checkpoint is of another model or size."
        )


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if leaf in owner._buffers:
        setattr(owner, leaf, tensor)
    else:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))

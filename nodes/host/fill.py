"""Handing a checkpoint's tensors to the host's layers, without more of it in memory than they keep."""

from collections.abc import Callable, Sequence

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor, nn

from ...happyhorse_core.weights.fill import check_module
from ...happyhorse_core.weights.source import TensorSource
from .quantised import without_formats


class HostProgress:
    """A core ``Progress`` listener: shows a bar on the node and stops the work when the user interrupts."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)


def check_tensors(source: TensorSource, expected: nn.Module, quantised: bool, ignore: Sequence[str] = ()) -> None:
    """Raises CheckpointError unless the tensors are exactly those of the core's own module. Reads nothing.

    Quantised layers are held to their names alone: packed weights have other shapes.
    """
    plain = without_formats(source, expected) if quantised else source
    check_module(expected, plain, ignore=ignore)


def fill(
    module: nn.Module, source: TensorSource, dtype_of: Callable[[str, Tensor], torch.dtype], *, assign: bool
) -> None:
    """Loads one layer after another, each tensor cast to ``dtype_of(name, tensor)``, as ``load_state_dict`` would all.

    With ``assign`` the layers keep what they are handed, else most of them copy it. A tensor that needs no cast is a
    view of the mapped file, which the system reads when it is used. What was read to be copied or cast leaves memory
    at once: all of a float32 checkpoint together is twice or four times the model.
    """
    layers: dict[str, list[str]] = {}
    for name in source.names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    progress, done = HostProgress(), 0
    total = sum(entry.nbytes for entry in source.entries.values())
    for layer, names in layers.items():
        tensors = {}
        for name in names:
            tensor = source.read(name)
            tensors[name.rpartition(".")[2]] = tensor.to(dtype_of(name, tensor))
        module.get_submodule(layer).load_state_dict(tensors, strict=False, assign=assign)
        del tensor, tensors
        for name in names:
            source.entries[name].release()  # views that were kept read theirs again when they are used
            done += source.entries[name].nbytes
        progress(done, total)

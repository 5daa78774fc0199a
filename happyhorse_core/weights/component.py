"""A component's file that was looked into before any weight is read, and the network that is built from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from ..ops import Operations
from ..progress import Progress
from .fill import load_module
from .tensors import TensorSource

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class ComponentFile(Generic[Config]):
    """A file that was looked into: its tensors under the module's names, and the sizes that they tell.

    ``ignore`` are glob patterns of names that the module has no use for.
    """

    source: TensorSource
    config: Config
    ignore: tuple[str, ...] = ()


def build(
    file: ComponentFile[Config],
    kind: Callable[..., Module],
    *,
    operations: Operations,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress,
) -> Module:
    """The network of a file, its weights in ``dtype`` on ``device``; closes the file. Errors as ``load_module``."""
    with file.source as source:
        module = kind(file.config, operations=operations, dtype=dtype, device="meta")
        load_module(module, source, ignore=file.ignore, device=device, progress=progress)
    return module

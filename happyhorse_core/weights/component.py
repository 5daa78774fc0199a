"""What looking into a component's file gives, before any weight is read."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from .tensors import TensorSource

Config = TypeVar("Config")


@dataclass(frozen=True)
class ComponentFile(Generic[Config]):
    """A file that was looked into: its tensors under the module's names, and the sizes that they tell.

    ``ignore`` are glob patterns of names that the module has no use for.
    """

    source: TensorSource
    config: Config
    ignore: tuple[str, ...] = ()

"""Named tensors of a checkpoint that are described at once and read one at a time."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, one_line

_MOST_DIMENSIONS = 8
_LARGEST_DIMENSION = 2**28
"""Far beyond any model. A matrix of such sides, stacked for three experts, has a number of bytes that 64 bits hold."""


def check_shape(where: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointError, naming ``where``, for a shape from a file from which no network could be built."""
    if len(shape) > _MOST_DIMENSIONS or max(shape, default=0) > _LARGEST_DIMENSION:
        raise CheckpointError(
            f"{where}: found shape {one_line(str(shape), 100)}; expected at most {_MOST_DIMENSIONS} dimensions, each "
            f"at most {_LARGEST_DIMENSION:,}. The file is damaged; download it again."
        )


def _keep() -> None:
    """What lets go of nothing: the tensors of this entry's file are not read through a mapping."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: what it is, and how it is read when it is wanted.

    ``release`` drops from memory what ``read`` brought in from the file. A tensor that was read stays good, for its
    pages come back from the file, but changes that were written to it are lost.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    release: Callable[[], None] = _keep

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class TensorSource(AbstractContextManager["TensorSource"]):
    """The tensors of one checkpoint, or of a part of one, by name. Nothing is read until ``read``.

    Views (``sub``, ``renamed``, ``with_entries``) share the files of the source that they came from, so closing any
    of them closes all. Tensors read before that stay good.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, TensorEntry],
        *,
        metadata: Mapping[str, str] | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.entries = dict(entries)
        self.metadata = dict(metadata or {})
        self._on_close = on_close

    @classmethod
    def of_tensors(
        cls,
        path: Path,
        tensors: Mapping[str, Tensor],
        *,
        metadata: Mapping[str, str] | None = None,
        release: Callable[[Tensor], None] | None = None,
    ) -> "TensorSource":
        """A source of tensors that another program read from ``path``; reading one gives it as it is.

        ``release`` drops from memory what reading a tensor brought in from its file.
        """
        entries = {
            name: TensorEntry(
                path,
                tuple(tensor.shape),
                tensor.dtype,
                tensor.detach,
                _keep if release is None else partial(release, tensor),
            )
            for name, tensor in tensors.items()
        }
        return cls(path, entries, metadata=metadata)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: entry.dtype for name, entry in self.entries.items()}

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the dtype of the file.

        It may be a view of the mapped file, whose pages are read when they are first used; writing to it changes
        memory only, never the file.

        Raises CheckpointError where there is no such tensor or the file can't be read.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: found no tensor named {name} among {len(self)}.")
        return self.entries[name].read()

    def with_entries(self, entries: Mapping[str, TensorEntry]) -> "TensorSource":
        """A view of the same files with other entries, for transformations beyond new names."""
        return TensorSource(self.path, entries, metadata=self.metadata, on_close=self._on_close)

    def sub(self, prefix: str) -> "TensorSource":
        """A view of the tensors whose names start with ``prefix``, without it. It is empty where none does."""
        start = len(prefix)
        return self.with_entries(
            {name[start:]: entry for name, entry in self.entries.items() if name.startswith(prefix)}
        )

    def renamed(self, rename: Callable[[str], str | None]) -> "TensorSource":
        """A view in which each tensor has the name that ``rename`` gives for its own, or is left out for None.

        Raises CheckpointError where two tensors would get one name.
        """
        entries: dict[str, TensorEntry] = {}
        origins: dict[str, str] = {}
        for name, entry in self.entries.items():
            new_name = rename(name)
            if new_name is None:
                continue
            if new_name in entries:
                raise CheckpointError(
                    f"{self.path}: tensors {origins[new_name]} and {name} both stand for {new_name}; expected only one."
                )
            entries[new_name], origins[new_name] = entry, name
        return self.with_entries(entries)

    def close(self) -> None:
        """Lets go of the mapped files."""
        self._on_close()

    def __exit__(self, *exception: object) -> None:
        self.close()

"""Files that are there whole or not at all: written under a name of their own, then put in place at once."""

import errno
import glob
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_UNIQUE = 8
"""Characters that tell the unfinished files of one name apart."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields the name to write under. When the block ends well, that file becomes ``path``, in place of what was there.

    When it ends in an exception, Ctrl-C included, the file is deleted; a process that is killed leaves it beside
    ``path`` (see ``remove_left_over``). Raises OutputError where the file can't be put in place.
    """
    part = part_of(path)
    try:
        yield part
        with writing(path):
            with part.open("r+b") as file:
                os.fsync(file.fileno())  # a rename may reach the disk before what was written
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def writing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns an OSError, or one of ``errors``, into an OutputError that names ``path``."""
    refusals: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except refusals as error:
        found, remedy = "writing failed", "Check the free space and the folder."
        if getattr(error, "errno", None) in _FULL:
            found, remedy = "there is no room for it", "Make room on the disk, or choose another."
        raise OutputError(f"{path}: {found} ({error}). {remedy}") from error


def part_of(path: Path) -> Path:
    """A new name beside ``path``, to write under before the file is whole."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:_UNIQUE]}.part")


def remove_left_over(path: Path) -> None:
    """Deletes what killed processes left of ``path``. A process that is still writing it will fail at its end."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _UNIQUE}.part"):
        with suppress(OSError):
            part.unlink()

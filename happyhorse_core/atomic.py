"""Files that are there whole or not at all: written under a name of their own, then put in place at once."""

import errno
import glob
import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError

if sys.platform != "win32":
    import fcntl

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_UNIQUE = 8
"""Characters that tell the unfinished files of one name apart."""
_LONGEST_STEM = 255 - len("...part") - _UNIQUE
"""Bytes; file systems know names of up to 255."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields the name to write under. When the block ends well, that file becomes ``path``, in place of what was there.

    When it ends in an exception, Ctrl-C included, the file is deleted. A process that is killed leaves it beside
    ``path``, and the next one that writes ``path`` takes it away. Several may write at once: each has a file of its
    own, and the last to end wins. Raises OutputError where the file can't be made or put in place.
    """
    remove_left_over(path)
    with writing(path):
        part, held = _begin(path)
    try:
        yield part
        with writing(path):
            os.fsync(held.fileno())  # a rename may reach the disk before what was written
            if sys.platform == "win32":
                held.close()  # there a file that is open can't be renamed
            part.replace(path)
    finally:
        held.close()
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
    return path.with_name(f".{_stem(path)}.{uuid.uuid4().hex[:_UNIQUE]}.part")


def remove_left_over(path: Path) -> None:
    """Deletes what killed processes left of ``path``; what another process is still writing stays."""
    for part in path.parent.glob(f".{glob.escape(_stem(path))}.{'?' * _UNIQUE}.part"):
        with suppress(OSError), abandoned(part):
            part.unlink()


@contextmanager
def abandoned(path: Path) -> Iterator[None]:
    """Raises OSError unless ``path`` is a file or folder that no process holds by ``hold``, for as long as it lasts.

    On Windows, which doesn't delete files that are open, this holds nothing itself.
    """
    if sys.platform == "win32":
        yield
        return
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW  # whatever has such a name: a pipe would be waited for
    handle = os.open(path, flags)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def hold(handle: int) -> bool:
    """Marks an open file or folder as in use until it is closed; False if it was deleted before, as abandoned."""
    if sys.platform != "win32":
        with suppress(OSError):  # some network drives know of no locks; there nothing is ever taken for abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``path``, open and held."""
    while True:
        part = part_of(path)
        held = part.open("xb")
        if hold(held.fileno()):
            return part, held
        held.close()


def _stem(path: Path) -> str:
    """The name of ``path``, or if there is no room for more in it, its checksum."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST_STEM else hashlib.sha256(name).hexdigest()

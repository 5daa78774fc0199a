"""Saves what a workflow made, without ever replacing a file."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .comfy_client import Result, Server


async def save_result(server: Server, result: Result, folder: Path) -> Path:
    """Downloads a result into ``folder`` and returns its path there.

    It appears under its name only when it is whole. Raises ServerError or OSError.
    """
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            await server.download(result, file)
        part.chmod(0o666 & ~current_umask())  # a temporary file is for its owner only
        return place(part, folder / (result.name or "result"))
    finally:
        part.unlink(missing_ok=True)


def place(part: Path, target: Path, link: Callable[[Path, Path], None] = os.link) -> Path:
    """Gives a finished file the name ``target``, or that name with the first number that is free."""
    for candidate in numbered(target):
        try:
            link(part, candidate)
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links, where a look has to do
            if candidate.exists():
                continue
            part.rename(candidate)
        return candidate
    raise AssertionError("There is always another number.")


def numbered(path: Path) -> Iterator[Path]:
    """a.png, a (1).png, a (2).png and so on."""
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.stem} ({number}){path.suffix}")


def current_umask() -> int:
    """The rights that new files do not get; it can only be read by setting it."""
    mask = os.umask(0)
    with contextlib.suppress(OSError):
        os.umask(mask)
    return mask

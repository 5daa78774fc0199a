"""Saves what a workflow made, without ever replacing a file.

Names come from the server, which may mean harm, and may be of another system. What is kept of them is a name that is
one on every system, and that a terminal and a shell take for nothing else.
"""

import contextlib
import itertools
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath

from .comfy_client import Result, Server

ALPHABET = " ._-()[]+,=@#"
"""What a name may hold besides letters, digits and the marks on them."""
OF_WINDOWS = re.compile(r"(con|prn|aux|nul|conin_|conout_|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
"""Names that are devices there, with any ending."""
LONGEST_NAME = 200
"""Bytes, which leaves room for a number below the 255 of most file systems."""
LONGEST_ENDING = 20


async def save_result(server: Server, result: Result, folder: Path, most: int) -> Path:
    """Downloads a result of at most ``most`` bytes into ``folder`` and returns its path there.

    It appears under its name only when it is whole. Raises ServerError or OSError.
    """
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            await server.download(result, file, most)
        part.chmod(0o666 & ~current_umask())  # a temporary file is for its owner only
        return place(part, folder / local_name(result.filename))
    finally:
        part.unlink(missing_ok=True)


def local_name(name: str) -> str:
    """The name for a file that the server calls ``name``: without folders and drives, visible, short, of ALPHABET."""
    last = unicodedata.normalize("NFC", PureWindowsPath(name).name)  # Windows splits at / and at \\
    kept = "".join(sign if unicodedata.category(sign)[0] in "LMN" or sign in ALPHABET else "_" for sign in last)
    kept = kept.lstrip(" .-").rstrip(" .") or "result"
    if OF_WINDOWS.match(kept):
        kept = f"_{kept}"
    ending = Path(kept).suffix if len(Path(kept).suffix.encode()) <= LONGEST_ENDING else ""
    stem = kept.removesuffix(ending).encode()[: LONGEST_NAME - len(ending.encode())].decode(errors="ignore")
    return stem.rstrip(" .") + ending


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

"""What a path holds before it is trusted to be weights: existence, readability and the usual wrong things."""

import stat
from pathlib import Path

from ..errors import CheckpointError

_FOREIGN_STARTS = (
    (
        b"version https://git-lfs",
        "found a Git LFS pointer, a note of where the weights are, instead of the weights. "
        "Run `git lfs pull` in its folder or download the file itself.",
    ),
    (b"<!doctype", "found a web page instead of weights. Download the file itself, signed in if the site asks for it."),
    (b"<html", "found a web page instead of weights. Download the file itself, signed in if the site asks for it."),
    (b"<?xml", "found an XML document, most often a download's error message, instead of weights. Download it again."),
    (b"gguf", "found a GGUF file; expected safetensors. Download the weights in that format."),
)
SHOWN = 5


def some(names: list[str] | tuple[str, ...], shown: int = SHOWN) -> str:
    """The first ``shown`` names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error to raise for a file or folder that the system refuses to open or read."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return CheckpointError(f"{path}: found a link to {path.readlink()}, which does not exist.")
        return CheckpointError(f"{path}: no such file or folder.{_neighbours(path)}")
    return CheckpointError(f"{path}: can't be read: {error.strerror or error}. Check its permissions and the disk.")


def _neighbours(path: Path) -> str:
    """What stands where the missing file was looked for; nothing when that can't be told."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f" Its folder {path.parent} is not there either, or can't be read."
    return f" In {path.parent} there is: {some(names)}." if names else f" {path.parent} is empty."


def exists(path: Path) -> bool:
    """Whether anything stands at ``path``; raises CheckpointError where that may not be asked."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True


def is_folder(path: Path) -> bool:
    """Whether a folder stands at ``path``; raises CheckpointError where nothing does, or no regular file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: found a device or a pipe; expected a weights file or a folder of them.")
    return stat.S_ISDIR(mode)


def read_start(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a file, or all of a shorter one, once it is known to be no pointer or web page."""
    is_folder(path)  # a pipe would be waited for without end
    try:
        with path.open("rb") as file:
            start = file.read(count)
    except OSError as error:
        raise unreadable(path, error) from error
    if not start:
        raise CheckpointError(f"{path}: found an empty file; expected weights. Download it again.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for foreign, message in _FOREIGN_STARTS:
        if text.startswith(foreign):
            raise CheckpointError(f"{path}: {message}")
    return start

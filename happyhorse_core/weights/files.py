"""What a path holds before it is trusted to be weights: existence, readability and the usual wrong things."""

import errno
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


def unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    """The error to raise for a file or folder that the system refuses to open or read, or whose name it can't have."""
    if isinstance(error, ValueError):
        return CheckpointError(f"{path}: no file can have this name: {error}. Choose another path.")
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return CheckpointError(f"{path}: found a link to {path.readlink()}, which does not exist.")
        return CheckpointError(f"{path}: no such file or folder.{_neighbours(path)}")
    if error.errno == errno.ENAMETOOLONG:
        return CheckpointError(f"{path}: no file can have a name or a path as long as this. Choose a shorter one.")
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
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return True


def is_folder(path: Path) -> bool:
    """Whether a folder stands at ``path``; raises CheckpointError where nothing does, or no regular file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: found a device or a pipe; expected a weights file or a folder of them.")
    return stat.S_ISDIR(mode)


def check_name(path: Path) -> None:
    """Raises CheckpointError for a name of bytes that are no text: PyTorch and safetensors open no such file."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path}: the name holds bytes that are no UTF-8, and the library that reads such files can't open it. "
            "Rename the file or its folder."
        ) from error


def folder_of(path: Path) -> Path:
    """The folder in which the files beside these weights stand: ``path``, or the one that it lies in."""
    return path if is_folder(path) else path.parent


def read_start(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a file, or all of a shorter one, once it is known to be no pointer or web page."""
    start = _read(path, count)
    check_start(str(path), start)
    return start


def read_whole(path: Path, most: int) -> bytes:
    """All bytes of a regular file. Raises CheckpointError where it can't be read or is larger than ``most`` bytes."""
    content = _read(path, most + 1)
    if len(content) > most:
        raise CheckpointError(
            f"{path}: found more than {most:,} bytes, expected a smaller file of text. Download it again."
        )
    return content


def _read(path: Path, count: int) -> bytes:
    is_folder(path)  # a pipe would be waited for without end
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise unreadable(path, error) from error


def check_start(where: str, start: bytes) -> None:
    """Raises CheckpointError, naming ``where``, if a file that begins so is empty, a pointer or a web page."""
    if not start:
        raise CheckpointError(f"{where}: found an empty file; expected weights. Download it again.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for foreign, message in _FOREIGN_STARTS:
        if text.startswith(foreign):
            raise CheckpointError(f"{where}: {message}")

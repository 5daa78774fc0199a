"""What has to be true of any input file before a decoder is asked about it."""

import stat
from pathlib import Path

from ..errors import InputError


def require_file(path: str | Path, field: str, kind: str, *, largest: int) -> Path:
    """The path of a file that exists and holds something, of at most ``largest`` bytes.

    Raises InputError that begins with ``field`` and says that ``kind`` was expected.
    """
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{field}: {path} does not exist, expected {kind}. Check the path.") from error
    except (OSError, ValueError) as error:
        # ValueError: a name that no file can have.
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{field}: {path} can't be opened ({reason}), expected {kind}. Check the path.") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no ordinary file"
        raise InputError(f"{field}: {path} is {what}, expected {kind}.")
    if not found.st_size:
        raise InputError(f"{field}: {path} is an empty file, expected {kind}. Choose another.")
    if found.st_size > largest:
        raise InputError(
            f"{field}: {path} has {found.st_size / 2**20:,.0f} MiB, expected {kind} of at most "
            f"{largest / 2**20:,.0f} MiB. Make it smaller."
        )
    return path

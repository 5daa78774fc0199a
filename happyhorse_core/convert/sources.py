"""The files that a conversion reads: their checksums, and that they stay the same meanwhile."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from ..weights.files import unreadable

_CHUNK = 2**22
_UNKNOWN = "0" * 64
"""As long as a SHA-256 in hexadecimal."""


class Sources:
    """Raises CheckpointError where a file can't be read, or is no longer what it was at first."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._stats = {path: _stat(path) for path in paths}
        self._digests = dict.fromkeys(self._stats, _UNKNOWN)

    def add_checksum(self, path: Path) -> None:
        """Takes a file's checksum, once. Tensors that are read next come from the system's cache then."""
        if self._digests.get(path) != _UNKNOWN:
            return
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise unreadable(path, error) from error
        self._digests[path] = digest.hexdigest()

    def finish(self) -> None:
        """Takes the checksums that are still missing, and sees that no file has changed."""
        for path, before in self._stats.items():
            self.add_checksum(path)
            now = _stat(path)
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise CheckpointError(
                    f"{path}: changed while it was read: {before.st_size:,} bytes at first, {now.st_size:,} now. "
                    "Wait until whatever writes it has ended, then start again."
                )

    def __str__(self) -> str:
        """JSON with names, sizes and checksums; of one length from the beginning."""
        return json.dumps(
            [{"name": p.name, "bytes": s.st_size, "sha256": self._digests[p]} for p, s in self._stats.items()]
        )


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from error

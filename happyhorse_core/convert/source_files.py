"""The files that a conversion reads: that they stay the same meanwhile, and their checksums."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from ..weights.files import unreadable

CHUNK = 2**22
PLACEHOLDER = "0" * 64
"""As long as a SHA-256 in hexadecimal, which is not known before the end."""


@dataclass
class _Open:
    """One file while its bytes go by."""

    stat: os.stat_result
    file: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)


class SourceFiles(AbstractContextManager):
    """Checksums of files, computed alongside other reading of them so that each byte comes from the disk once.

    Raises CheckpointError where a file can't be read, or is no more what it was.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._open: dict[Path, _Open] = {}
        for path in paths:
            try:
                file = path.open("rb", buffering=0)
                self._open[path] = _Open(os.fstat(file.fileno()), file)
            except OSError as error:
                self.__exit__()
                raise unreadable(path, error) from error

    @property
    def size(self) -> int:
        return sum(opened.stat.st_size for opened in self._open.values())

    def holds(self, target: Path) -> bool:
        """Whether ``target`` is one of the files."""
        return target.exists() and any(os.path.samestat(target.stat(), opened.stat) for opened in self._open.values())

    def follow(self, path: Path, count: int) -> None:
        """Takes up to ``count`` more bytes of a file into its checksum, while others read about there too."""
        opened = self._open.get(path)
        while opened is not None and count > 0:
            try:
                chunk = opened.file.read(min(CHUNK, count))
            except OSError as error:
                raise unreadable(path, error) from error
            if not chunk:
                return
            opened.digest.update(chunk)
            count -= len(chunk)

    def check_unchanged(self, path: Path | None = None) -> None:
        """Raises CheckpointError where a file, or any of them, has changed or gone since it was opened."""
        for name in self._open if path is None else [path] * (path in self._open):
            before = self._open[name].stat
            try:
                now = name.stat()
            except OSError as error:
                raise unreadable(name, error) from error
            if (now.st_size, now.st_mtime_ns, now.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
                raise CheckpointError(
                    f"{name}: changed while it was read: {before.st_size:,} bytes at first, {now.st_size:,} now. "
                    "Wait until whatever writes it has ended, then start again."
                )

    def placeholder(self) -> str:
        """What ``finished`` returns, with zeros for checksums: as long as that."""
        return self._as_json(dict.fromkeys(self._open, PLACEHOLDER))

    def finished(self) -> str:
        """Takes in what is left of each file; JSON with their names, sizes and checksums."""
        for path, opened in self._open.items():
            self.follow(path, opened.stat.st_size)
        self.check_unchanged()
        return self._as_json({path: opened.digest.hexdigest() for path, opened in self._open.items()})

    def _as_json(self, digests: dict[Path, str]) -> str:
        files = [
            {"name": path.name, "bytes": self._open[path].stat.st_size, "sha256": digest}
            for path, digest in digests.items()
        ]
        return json.dumps(files)

    def __exit__(self, *exception: object) -> None:
        for opened in self._open.values():
            opened.file.close()

"""A file that comes into being under a name of its own, and under the final one only when it is whole.

``NAME.part`` stands beside the final NAME while it is written. A process that is killed leaves it there; the next one
that writes NAME takes it away. A lock tells a part that is left over from one that is being written, where the system
has such locks; where it has none (Windows), it doesn't let a file that is open be renamed either.
"""

import errno
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

from ..errors import OutputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

SUFFIX = ".part"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def part_of(target: Path) -> Path:
    """Where ``target`` is written before it is whole."""
    return target.with_name(target.name + SUFFIX)


class PartFile(AbstractContextManager):
    """Open for writing and reading between ``with`` and its end, and gone after it unless ``publish`` was called.

    Raises OutputError where the file can't be made, written or put in place.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = part_of(target)
        self._file = None

    def __enter__(self) -> "PartFile":
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            self._lock()
            self._file.truncate(0)
        except OSError as error:
            self._close()
            raise self._error(error) from error
        return self

    def write_at(self, offset: int, content: bytes | memoryview) -> None:
        """Writes all of ``content`` from byte ``offset`` on."""
        rest = memoryview(content)
        try:
            self._file.seek(offset)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._error(error) from error

    def sync(self) -> None:
        """Waits until the disk has everything, and drops what memory holds of it, so that reading asks the disk."""
        try:
            os.fsync(self._file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._error(error) from error

    def publish(self) -> None:
        """Gives the file its final name, at once and in place of what had it."""
        try:
            if os.name == "nt":  # an open file can't be renamed there
                self._file.close()
            self.path.replace(self.target)
            self._sync_folder()
        except OSError as error:
            raise self._error(error) from error
        finally:
            self._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if os.name == "nt":
                self._close()
            with suppress(OSError):
                self.path.unlink()
            self._close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise OutputError(
                f"{self.target}: is being written by another process, into {self.path.name}. Wait for it to end."
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        # Another process may have finished, and given the file its final name, between the opening and the lock.
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            self._close()
            raise OutputError(f"{self.target}: was just written by another process.")

    def _sync_folder(self) -> None:
        """Makes the new name last through a power failure too, where folders can be synced."""
        if os.name == "nt":
            return
        descriptor = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _error(self, error: OSError) -> OutputError:
        if error.errno in _FULL:
            return OutputError(
                f"{self.target}: there is no room for it: {error.strerror}. What was written of it is deleted; make "
                "room on the disk, or choose another."
            )
        return OutputError(
            f"{self.target}: can't be written: {error.strerror or error}. Check the folder and the disk."
        )

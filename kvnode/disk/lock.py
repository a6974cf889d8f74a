"""One process per data directory (RC-52).

Two guards. An exclusive ``flock``, held for the process's life, keeps an honest second process out.
Where locks lie (some network file systems, a volume attached twice), the lock file also holds a line
that each newcomer replaces; the process before it reads the line again before every group of writes
and stops when it is not its own. What the second guard cannot close is the moment between that check
and the write after it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import uuid

from kvnode.errors import DirectoryInUse, DiskFailed

LOCK_NAME = "LOCK"
_BYTES = 512
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


class DirectoryLock:
    """The lock on a data directory. ``check`` may be called from any thread."""

    def __init__(self, path: str, fd: int, line: bytes, *, locked: bool) -> None:
        """Only for ``take``."""
        self._path = path
        self._fd = fd
        self._line = line
        self.locked = locked
        """False: the file system has no locks, and only the epoch guards."""

    @staticmethod
    def take(directory: str) -> DirectoryLock:
        """Lock a directory and raise its epoch.

        Raises:
            DirectoryInUse: Another process holds it; its process id and host are in the text.
            DiskFailed: The lock file cannot be written.
        """
        path = os.path.join(directory, LOCK_NAME)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskFailed(f"cannot open {path}: {error.strerror}") from error
        try:
            locked = _flock(fd, path)
            epoch = _epoch(os.pread(fd, _BYTES, 0)) + 1
            # The random part keeps two newcomers apart that raise the epoch at the same moment.
            line = f"epoch={epoch} pid={os.getpid()} host={socket.gethostname()} {uuid.uuid4()}\n"
            content = line.encode().ljust(_BYTES)[:_BYTES]
            os.pwrite(fd, content, 0)
            os.fsync(fd)
        except OSError as error:
            os.close(fd)
            raise DiskFailed(f"cannot write {path}: {error.strerror}") from error
        except DirectoryInUse:
            os.close(fd)
            raise
        return DirectoryLock(path, fd, content, locked=locked)

    def check(self) -> None:
        """Make sure that nobody took the directory over; one small read.

        Raises:
            DirectoryInUse: Somebody did. This process must not write any more.
        """
        try:
            found = os.pread(self._fd, _BYTES, 0)
        except OSError as error:
            raise DiskFailed(f"cannot read {self._path}: {error.strerror}") from error
        if found != self._line:
            raise DirectoryInUse(f"{self._path}: {_owner(found)} took this data directory over")

    def release(self) -> None:
        """Let the next process in. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _flock(fd: int, path: str) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DirectoryInUse(
            f"{os.path.dirname(path)} is in use by {_owner(os.pread(fd, _BYTES, 0))}. Stop that "
            f"process first, or give this node a data directory of its own"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _owner(content: bytes) -> str:
    """Who wrote the line, in words."""
    fields = dict(part.partition("=")[::2] for part in content.decode(errors="replace").split())
    if "pid" not in fields:
        return "another process"
    return f"process {fields['pid']} on host {fields.get('host', 'unknown')}"


def _epoch(content: bytes) -> int:
    """The epoch in a lock file; 0 in a new one, or when nobody can read it any more."""
    with contextlib.suppress(ValueError, IndexError):
        return int(content.split()[0].removeprefix(b"epoch="))
    return 0

"""The seam below everything that is fsynced: a small file system.

All disk code goes through ``FileSystem`` and ``File``, so that the simulator can put a faulty disk
(unsynced writes lost in any subset, torn records, EIO, a full disk, flipped bits) below the very same
code. Paths are plain strings with ``/``; the caller joins them.

What a crash leaves, and what the code above may rely on:

- Bytes written to a file are durable only after ``File.sync`` of that file. Before it, a crash keeps
  any subset of the written 512-byte sectors, each old or new; the file's size may be old or new.
- A name (create, rename, unlink, mkdir) is durable only after ``FileSystem.sync_dir`` of the
  directory that holds it. Before it, a crash keeps any subset of the name changes, each whole.
- ``rename`` is atomic: a reader, and a crash, see the old or the new file under the name.
- A failed ``sync`` leaves the file in an unknown state. Nobody syncs again: the kernel marks pages
  clean after a failed sync, so that a second one can "succeed" without the data (RC-8).

Foreign errors are translated here and nowhere else: every ``OSError`` becomes ``DiskFailed`` with the
file's name and the system's text, and ``DiskFull`` when the disk has no space left (or a quota is
used up).
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn, Protocol

from kvnode.errors import DiskFailed, DiskFull

SECTOR = 512
"""Bytes that a disk writes atomically; the unit in which a crash tears a write."""

_ZEROS = bytes(1 << 20)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class File(Protocol):
    """An open file for reading and writing at given offsets. Owned by one thread."""

    @property
    def path(self) -> str:
        """The name it was opened with; for messages."""
        ...

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``, growing the file if need be. Not durable yet."""
        ...

    def pread(self, size: int, offset: int) -> bytes:
        """Read ``size`` bytes at ``offset``; fewer only where the file ends."""
        ...

    def sync(self) -> None:
        """Make the file's bytes and its size durable (``fdatasync``)."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file, or grow it with a hole. Not durable before ``sync``."""
        ...

    def preallocate(self, size: int) -> None:
        """Grow the file to ``size`` bytes of zeros that own their blocks; never shrinks it.

        After ``sync`` a ``pwrite`` below ``size`` cannot fail for want of space.

        Raises:
            DiskFull: No space. The file may have grown partly.
        """
        ...

    def size(self) -> int:
        """Length in bytes."""
        ...

    def close(self) -> None:
        """Release the file; does not sync. Idempotent."""
        ...


class FileSystem(Protocol):
    """Names and files. Every method raises ``DiskFailed`` when the system refuses."""

    def create(self, path: str) -> File:
        """Make a new, empty file. ``DiskFailed`` when the name exists."""
        ...

    def open(self, path: str) -> File:
        """Open an existing file. ``DiskFailed`` when there is none."""
        ...

    def exists(self, path: str) -> bool:
        """Is there a file or directory of this name? An unreadable parent is an error, not no."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def mkdir(self, path: str) -> None:
        """Make a directory; nothing when it exists already. Its parent must exist."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename a file (replacing ``new``) or a directory (``new`` must not exist), atomically."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a file; nothing when there is none."""
        ...

    def sync_dir(self, path: str) -> None:
        """Make the names in this directory durable."""
        ...

    def free_bytes(self, path: str) -> int:
        """Bytes that may still be written to the file system that holds ``path``."""
        ...


class OsFile:
    """``File`` over a file descriptor."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str, fd: int) -> None:
        """Own ``fd``."""
        self._path = path
        self._fd = fd

    @property
    def path(self) -> str:
        """See ``File``."""
        return self._path

    def pwrite(self, data: bytes, offset: int) -> None:
        """See ``File``. The system may write less than asked: go on until all is written."""
        try:
            written = os.pwrite(self._fd, data, offset)
            if written < len(data):
                view = memoryview(data)
                while written < len(data):
                    written += os.pwrite(self._fd, view[written:], offset + written)
        except OSError as error:
            _fail("write", self._path, error)

    def pread(self, size: int, offset: int) -> bytes:
        """See ``File``."""
        try:
            data = os.pread(self._fd, size, offset)
            if len(data) == size:
                return data
            parts = [data]
            have = len(data)
            while data and have < size:
                data = os.pread(self._fd, size - have, offset + have)
                parts.append(data)
                have += len(data)
            return b"".join(parts)
        except OSError as error:
            _fail("read", self._path, error)

    def sync(self) -> None:
        """See ``File``."""
        try:
            _sync_data(self._fd)
        except OSError as error:
            _fail("sync", self._path, error)

    def truncate(self, size: int) -> None:
        """See ``File``."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            _fail("truncate", self._path, error)

    def preallocate(self, size: int) -> None:
        """See ``File``.

        Writes real zeros. ``fallocate`` would be quicker here, but it leaves extents marked as
        unwritten, and then each later sync has to commit the file system's journal as well.
        """
        at = self.size()
        while at < size:
            step = min(len(_ZEROS), size - at)
            self.pwrite(_ZEROS if step == len(_ZEROS) else bytes(step), at)
            at += step

    def size(self) -> int:
        """See ``File``."""
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            _fail("stat", self._path, error)

    def close(self) -> None:
        """See ``File``."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                _fail("close", self._path, error)


class OsFileSystem:
    """``FileSystem`` over the operating system."""

    __slots__ = ()

    def create(self, path: str) -> OsFile:
        """See ``FileSystem``."""
        return self._open(path, os.O_CREAT | os.O_EXCL, "create")

    def open(self, path: str) -> OsFile:
        """See ``FileSystem``."""
        return self._open(path, 0, "open")

    def _open(self, path: str, flags: int, action: str) -> OsFile:
        try:
            return OsFile(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600))
        except OSError as error:
            _fail(action, path, error)

    def exists(self, path: str) -> bool:
        """See ``FileSystem``. Not ``os.path.exists``: that takes every error for "no" (RC-50)."""
        try:
            os.stat(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            _fail("look for", path, error)
        return True

    def listdir(self, path: str) -> list[str]:
        """See ``FileSystem``."""
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            _fail("list", path, error)

    def mkdir(self, path: str) -> None:
        """See ``FileSystem``."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            _fail("make the directory", path, error)

    def rename(self, old: str, new: str) -> None:
        """See ``FileSystem``."""
        try:
            os.rename(old, new)
        except OSError as error:
            _fail(f"rename {old} to", new, error)

    def unlink(self, path: str) -> None:
        """See ``FileSystem``."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _fail("remove", path, error)

    def sync_dir(self, path: str) -> None:
        """See ``FileSystem``."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            _fail("sync the directory", path, error)

    def free_bytes(self, path: str) -> int:
        """See ``FileSystem``. Counts what an unprivileged process may use."""
        try:
            found = os.statvfs(path)
        except OSError as error:
            _fail("ask the free space of", path, error)
        return found.f_bavail * found.f_frsize


def _fail(action: str, path: str, error: OSError) -> NoReturn:
    """Translate an ``OSError``; the only place that does."""
    text = f"cannot {action} {path}: {error.strerror or error}"
    if error.errno in _FULL:
        raise DiskFull(text) from error
    raise DiskFailed(text) from error


if sys.platform == "darwin":
    import fcntl

    def _sync_data(fd: int) -> None:
        """``fsync`` on macOS stops at the drive's cache; only this reaches the platter."""
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:
    _sync_data = os.fdatasync

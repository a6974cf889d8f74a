"""The data directory of one node.

LOCK            who has the directory now
identity.json   who this node is
raft/           the journal: log segments, base, hard state
state/          the state engine's
snapshots/      received snapshots
spool/          where large requests wait, in files without names
DAMAGED         damage that was found while running; see ``quarantine``
set-aside-…/    data of incarnations that were removed or damaged; never read again, never deleted
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from typing import TypeVar

from kvnode.disk.files import FileSystem, OsFileSystem
from kvnode.disk.identity import OpenedIdentity, open_identity, write_identity
from kvnode.disk.identity_store import IdentityFile
from kvnode.disk.journal import JournalCore, open_journal
from kvnode.disk.lock import DirectoryLock
from kvnode.disk.quarantine import check_mark, has_set_aside, mark, set_damaged_aside
from kvnode.errors import CorruptLog, DiskFailed, DiskFull, KvnodeError
from kvnode.ports import IdentityRecord, Recovered, Worker

T = TypeVar("T")

RESERVE_NAME = "RESERVE"
RESERVE_BYTES = 64 << 10
VOLUME_BYTES_SMALL = 64 << 20
"""Below this size of volume the operator is warned."""

_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse", "gluster", "ceph", "lustre", "afs", "gfs2", "ocfs2")
_VOLATILE = ("tmpfs", "ramfs", "overlay", "aufs")


def _new_node_id() -> str:
    return str(uuid.uuid4())


class DataDir:
    """An open data directory, locked for this process until ``close``."""

    def __init__(
        self,
        fs: FileSystem,
        path: str,
        lock: DirectoryLock,
        opened: OpenedIdentity,
        warnings: list[str],
    ) -> None:
        """Only for ``open``."""
        self._fs = fs
        self._lock = lock
        self._identity = opened.identity
        self._fresh = opened.fresh
        self.path = path
        self.raft_path = f"{path}/raft"
        self.state_path = f"{path}/state"
        self.snapshots_path = f"{path}/snapshots"
        self.spool_path = f"{path}/spool"
        self.set_aside = opened.set_aside
        """Where the data of a removed incarnation were just moved to; empty: nowhere."""
        self.may_found = not has_set_aside(fs, path)
        """Whether this node may found a cluster. Not where an earlier incarnation's data were set aside:
        that one was a member of a cluster, which may still be found, and a new one would hide it."""
        self.warnings = warnings
        """Sentences that the operator should see at start."""

    @staticmethod
    def open(
        path: str,
        name: str,
        *,
        fs: FileSystem | None = None,
        new_node_id: Callable[[], str] = _new_node_id,
    ) -> DataDir:
        """Lock the directory, read or make the node's identity and raise its boot number.

        Args:
            path: The data directory; made, with its parents, when missing.
            name: The node's name, as configured.
            fs: For tests; the lock is always the real one.
            new_node_id: For tests.

        Raises:
            DirectoryInUse: Another process has it.
            ForeignDirectory: It is another node's, or of another format.
            CorruptLog: It is damaged.
            DiskFailed: It cannot be used; the text says what to do.
        """
        path = os.path.abspath(path)
        files = OsFileSystem() if fs is None else fs
        _make_usable(path)
        lock = DirectoryLock.take(path)
        try:
            check_mark(files, path)
            warnings = _warnings(path, locked=lock.locked)
            opened = _give_way(
                files, path, warnings, lambda: open_identity(files, path, name, new_node_id)
            )
        except BaseException:
            lock.release()
            raise
        return DataDir(files, path, lock, opened, warnings)

    @staticmethod
    def set_damaged_aside(path: str, error: CorruptLog) -> str:
        """Lock the directory and move its damaged data away; returns where to. See ``quarantine``.

        Raises:
            DirectoryInUse: Another process has it.
            DiskFailed: It was damaged before, or cannot be written.
        """
        path = os.path.abspath(path)
        lock = DirectoryLock.take(path)
        try:
            return set_damaged_aside(OsFileSystem(), path, str(error))
        finally:
            lock.release()

    def mark_damaged(self, error: CorruptLog) -> None:
        """Keep this node from starting on these data again. Any thread; it is about to stop."""
        with contextlib.suppress(KvnodeError):
            mark(self._fs, self.path, str(error))

    @property
    def record(self) -> IdentityRecord:
        """Who this node is, as of ``open``."""
        return self._identity.record

    def check_epoch(self) -> None:
        """Raise ``DirectoryInUse`` when another process took the directory over. Any thread."""
        self._lock.check()

    def open_journal(self) -> tuple[JournalCore, Recovered]:
        """Open the journal; a node's first start makes it. Errors: see ``journal.open_journal``."""
        found = _give_way(
            self._fs,
            self.path,
            self.warnings,
            lambda: open_journal(
                self._fs, self.raft_path, fresh=self._fresh, check=self.check_epoch
            ),
        )
        if self._fresh:
            identity = self._identity._replace(log_made=True)
            write_identity(self._fs, self.path, identity)
            self._identity, self._fresh = identity, False
        _make_reserve(self._fs, self.path)
        return found

    def identity_store(self, worker: Worker) -> IdentityFile:
        """The identity for the driver. Call once, after ``open_journal``."""
        return IdentityFile(self._fs, self.path, self._identity, worker)

    def free_bytes(self) -> int:
        """Bytes that may still be written to the volume."""
        return self._fs.free_bytes(self.path)

    def close(self) -> None:
        """Release the lock, after everything in the directory was closed. Idempotent."""
        self._lock.release()


def _give_way(fs: FileSystem, path: str, warnings: list[str], job: Callable[[], T]) -> T:
    """Do a job of the start; when the disk is full, give the reserve up and do it again.

    A start writes a little, so without this a full disk would be a crash loop (RC-70), and nobody
    would be there to delete, compact or answer reads. Both jobs leave the old state when they fail
    for want of space, so the second try is no second try of a failed sync (RC-8).
    """
    try:
        return job()
    except DiskFull:
        reserve = f"{path}/{RESERVE_NAME}"
        if not fs.exists(reserve):
            raise
        fs.unlink(reserve)
        fs.sync_dir(path)
        warnings.append(
            f"{path}: the disk is full; the reserve of {RESERVE_BYTES >> 10} KiB was given up for "
            f"this start. Free some space before the next one"
        )
        return job()


def _make_reserve(fs: FileSystem, path: str) -> None:
    """Set the reserve aside, while there is plenty. What a crash leaves of it is good enough."""
    reserve = f"{path}/{RESERVE_NAME}"
    if fs.exists(reserve) or fs.free_bytes(path) < 4 * RESERVE_BYTES:
        return
    with contextlib.suppress(DiskFull):
        file = fs.create(reserve)
        try:
            file.preallocate(RESERVE_BYTES)
            file.sync()
        finally:
            file.close()


def _make_usable(path: str) -> None:
    """Make the directory, and say in an operator's words what stands in the way."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except FileExistsError as error:
        raise DiskFailed(f"the data directory {path} is a file, not a directory") from error
    except OSError as error:
        raise DiskFailed(
            f"cannot make the data directory {path}: {error.strerror}. {_WHO_MAY}"
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        found = os.stat(path)
        raise DiskFailed(
            f"the data directory {path} belongs to user {found.st_uid} and group {found.st_gid} with "
            f"mode {found.st_mode & 0o7777:04o}, and this process (user {os.geteuid()}, group "
            f"{os.getegid()}) may not write there, or the volume is read-only. {_WHO_MAY}"
        ) from PermissionError(errno.EACCES, "no access")


_WHO_MAY = (
    "Make the directory writable for the user that kvnode runs as; in Kubernetes set "
    "securityContext.fsGroup of the pod to its group"
)


def _warnings(path: str, *, locked: bool) -> list[str]:
    """What is not wrong but should be known (RC-10)."""
    warnings: list[str] = []
    kind = _file_system_type(path)
    if kind.startswith(_NETWORK):
        warnings.append(
            f"{path} is on a network file system ({kind}): its syncs and locks may promise more than "
            f"they keep. Never let two nodes share a directory, and prefer a block volume"
        )
    elif kind.startswith(_VOLATILE):
        warnings.append(
            f"{path} is on {kind}: the data are gone when the container or the machine goes"
        )
    if not locked:
        warnings.append(f"{path}: the file system has no locks; a second process is noticed late")
    found = os.statvfs(path)
    volume = found.f_blocks * found.f_frsize
    if volume < VOLUME_BYTES_SMALL:
        warnings.append(
            f"{path} is on a volume of {volume / (1 << 20):.1f} MiB: the log is kept short, and "
            f"writes will be refused when it is full"
        )
    return warnings


def _file_system_type(path: str) -> str:
    """Type of the file system that holds ``path``, as the kernel calls it; empty: not known."""
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                point = left.split()[4].replace("\\040", " ")
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, right.split()[0]
    except (OSError, IndexError):
        return ""
    return kind

"""A file system in memory that forgets what was not synced, and fails where it is told to.

Bytes: per file the durable sectors and the written ones. Names: per directory the durable ones and the
changes since its last sync. ``crash`` keeps a subset of both, drawn from a generator; ``kill`` keeps
everything (only the process died) and leaves it unsynced.

Every changing operation counts. ``fail_at`` and ``crash_at`` name the operation that fails with
``DiskFailed`` (a sync then keeps a random part, and a later sync of it changes nothing), or at which
the machine stops, before or after its effect on the cache.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from kvnode.disk.files import SECTOR
from kvnode.errors import DiskFailed, DiskFull


class MachineStopped(BaseException):
    """Nothing may catch this."""


class _Inode:
    def __init__(self) -> None:
        self.now = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()

    def crash(self, rng: random.Random) -> bytearray:
        """What is left if the machine stops now."""
        size = rng.choice([len(self.now), len(self.durable)])
        left = bytearray(self.durable[:size].ljust(size, b"\0"))
        keep = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for sector in sorted(self.dirty):
            lo = sector * SECTOR
            if rng.random() < keep and lo < size:
                part = self.now[lo : min(lo + SECTOR, size)]
                left[lo : lo + len(part)] = part
        return left


class _Dir:
    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self.durable: dict[str, Any] = {}


class CrashDisk:
    """Implements ``kvnode.disk.files.FileSystem``."""

    def __init__(self, seed: int = 0, capacity: int = 1 << 20) -> None:
        self.rng = random.Random(seed)
        self.capacity = capacity
        self.root = _Dir()
        self.changes: list[list[tuple[_Dir, str, Any]]] = []
        self.operations = 0
        self.fail_at: int | None = None
        self.crash_at: int | None = None
        self.syncs: Counter[str] = Counter()
        self.after_failure = 0
        self.failed = False
        self.mkdir("/d")
        self.sync_dir("/")
        self.operations = 0

    # -- control

    def crash(self) -> None:
        keep = self.rng.choice([0.0, 0.5, 0.9, 1.0])
        for change in self.changes:
            if self.rng.random() < keep:
                self._settle(change)
        self.changes = []
        self._forget(self.root)
        self._restart()

    def kill(self) -> None:
        """The process dies, the machine does not."""
        self._restart()

    def _restart(self) -> None:
        self.fail_at = self.crash_at = None
        self.failed = False
        self.operations = 0

    def _forget(self, directory: _Dir) -> None:
        directory.now = dict(directory.durable)
        for node in directory.now.values():
            if isinstance(node, _Dir):
                self._forget(node)
            else:
                node.durable = node.crash(self.rng)
                node.now = bytearray(node.durable)
                node.dirty.clear()

    def inode(self, path: str) -> _Inode:
        node = self._node(path)
        assert isinstance(node, _Inode), path
        return node

    def files(self, path: str = "/d") -> list[str]:
        found = []
        for name, node in sorted(self._dir(path).now.items()):
            if isinstance(node, _Dir):
                found += self.files(f"{path}/{name}")
            else:
                found.append(f"{path}/{name}")
        return found

    def damage(self, path: str, data: bytes) -> None:
        """Replace a file's bytes at rest."""
        node = self.inode(path)
        node.now, node.durable, node.dirty = bytearray(data), bytearray(data), set()

    def used(self) -> int:
        return sum(len(self.inode(path).now) for path in self.files(""))

    # -- inside

    def step(self, what: str) -> None:
        """One changing operation."""
        self.operations += 1
        if self.failed:
            self.after_failure += 1
        if self.operations == self.crash_at:
            raise MachineStopped
        if self.operations == self.fail_at:
            self.failed = True
            raise DiskFailed(f"cannot {what}: Input/output error")

    def grow(self, inode: _Inode, size: int) -> None:
        if size > len(inode.now):
            if self.used() + size - len(inode.now) > self.capacity:
                raise DiskFull("No space left on device")
            inode.now.extend(bytes(size - len(inode.now)))

    def _settle(self, change: list[tuple[_Dir, str, Any]]) -> None:
        for directory, name, node in change:
            if node is None:
                directory.durable.pop(name, None)
            else:
                directory.durable[name] = node

    def _change(self, *effects: tuple[_Dir, str, Any]) -> None:
        for directory, name, node in effects:
            if node is None:
                del directory.now[name]
            else:
                directory.now[name] = node
        self.changes.append(list(effects))

    def _node(self, path: str) -> Any:
        node: Any = self.root
        for part in path.strip("/").split("/"):
            if part:
                node = node.now.get(part) if isinstance(node, _Dir) else None
        return node

    def _dir(self, path: str) -> _Dir:
        node = self._node(path)
        if not isinstance(node, _Dir):
            raise DiskFailed(f"no directory {path}")
        return node

    def _split(self, path: str) -> tuple[_Dir, str]:
        head, _, name = path.rpartition("/")
        return self._dir(head), name

    # -- FileSystem

    def create(self, path: str) -> CrashFile:
        self.step(f"create {path}")
        directory, name = self._split(path)
        if name in directory.now:
            raise DiskFailed(f"cannot create {path}: File exists")
        inode = _Inode()
        self._change((directory, name, inode))
        return CrashFile(self, path, inode)

    def open(self, path: str) -> CrashFile:
        node = self._node(path)
        if not isinstance(node, _Inode):
            raise DiskFailed(f"cannot open {path}: No such file or directory")
        return CrashFile(self, path, node)

    def exists(self, path: str) -> bool:
        return self._node(path) is not None

    def listdir(self, path: str) -> list[str]:
        return sorted(self._dir(path).now)

    def mkdir(self, path: str) -> None:
        self.step(f"make {path}")
        directory, name = self._split(path)
        if name not in directory.now:
            self._change((directory, name, _Dir()))

    def rename(self, old: str, new: str) -> None:
        self.step(f"rename {old}")
        source, old_name = self._split(old)
        target, new_name = self._split(new)
        node = source.now.get(old_name)
        if node is None or (isinstance(node, _Dir) and new_name in target.now):
            raise DiskFailed(f"cannot rename {old} to {new}")
        self._change((source, old_name, None), (target, new_name, node))

    def unlink(self, path: str) -> None:
        directory, name = self._split(path)
        if name in directory.now:
            self.step(f"remove {path}")
            self._change((directory, name, None))

    def sync_dir(self, path: str) -> None:
        directory = self._dir(path)
        self.step(f"sync {path}")
        self.syncs["dir"] += 1
        later = []
        for change in self.changes:
            if any(touched is directory for touched, _, _ in change):
                self._settle(change)
            else:
                later.append(change)
        self.changes = later

    def free_bytes(self, path: str) -> int:
        return max(0, self.capacity - self.used())


class CrashFile:
    def __init__(self, disk: CrashDisk, path: str, inode: _Inode) -> None:
        self.disk = disk
        self.path = path
        self.inode = inode
        self.closed = False

    def pwrite(self, data: bytes, offset: int) -> None:
        assert not self.closed
        self.disk.step(f"write {self.path}")
        inode = self.inode
        self.disk.grow(inode, offset + len(data))
        inode.now[offset : offset + len(data)] = data
        inode.dirty.update(range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)))

    def pread(self, size: int, offset: int) -> bytes:
        assert not self.closed
        return bytes(self.inode.now[offset : offset + size])

    def sync(self) -> None:
        assert not self.closed
        inode = self.inode
        try:
            self.disk.step(f"sync {self.path}")
        except DiskFailed:
            # The kernel takes the pages for clean: a later sync does not write them (RC-8).
            inode.durable = inode.crash(self.disk.rng)
            inode.dirty.clear()
            raise
        self.disk.syncs[self.path.rpartition("/")[2]] += 1
        inode.durable = inode.durable[: len(inode.now)].ljust(len(inode.now), b"\0")
        for sector in inode.dirty:
            lo = sector * SECTOR
            inode.durable[lo : lo + SECTOR] = inode.now[lo : lo + SECTOR]
        inode.dirty.clear()

    def truncate(self, size: int) -> None:
        self.disk.step(f"truncate {self.path}")
        del self.inode.now[size:]
        self.disk.grow(self.inode, size)

    def preallocate(self, size: int) -> None:
        self.disk.step(f"preallocate {self.path}")
        self.disk.grow(self.inode, size)

    def size(self) -> int:
        return len(self.inode.now)

    def close(self) -> None:
        self.closed = True

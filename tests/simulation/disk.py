"""A disk that may forget what was not synced, for the real disk code to stand on.

``SimDisk`` is a ``kvnode.disk.files.FileSystem``. It keeps, beside what the process sees, what the
platter holds: per file the synced bytes and every unsynced version of every 512-byte sector since;
per directory the synced names and every unsynced change of a name. ``crash`` throws the dice: each
unsynced sector keeps any of its versions, each unsynced name change happened or not, sizes are old or
new. The contract is the one that ``kvnode.disk.files`` states.

Faults, all drawn by the caller through ``faults``: an error on write or sync (after which the file's
unsynced bytes are in doubt for good, RC-8), a full disk, flipped bits at rest, and a crash in the
middle of a job (``crash_after`` operations).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import cast

from kvnode.disk.files import SECTOR, File
from kvnode.errors import DiskFailed, DiskFull


class SimCrash(BaseException):  # not an error: the power went out
    """Raised inside a disk operation when the process dies there. Nothing may catch it."""


@dataclass
class Faults:
    """What goes wrong on one disk; probabilities per operation."""

    write_error: float = 0.0
    sync_error: float = 0.0
    capacity: int = 1 << 40
    """Bytes; files may not grow beyond it."""


class _Inode:
    """One file's bytes: what the process sees and what the platter holds."""

    __slots__ = ("data", "dirty", "durable", "size_dirty")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: dict[int, list[bytes]] = {}
        """Sector number -> each version written since the last sync."""
        self.size_dirty = False

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
            self.size_dirty = True
        self.data[offset:end] = data
        for sector in range(offset // SECTOR, (end + SECTOR - 1) // SECTOR):
            version = bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR])
            self.dirty.setdefault(sector, []).append(version)

    def resize(self, size: int) -> None:
        if size < len(self.data):
            del self.data[size:]
            for sector in [s for s in self.dirty if s * SECTOR >= size]:
                del self.dirty[sector]
        else:
            self.data.extend(bytes(size - len(self.data)))
        self.size_dirty = True

    def sync(self) -> None:
        if self.size_dirty:
            self.durable = bytearray(self.data)
        else:
            for sector in self.dirty:
                start = sector * SECTOR
                self.durable[start : start + SECTOR] = self.data[start : start + SECTOR]
        self.dirty.clear()
        self.size_dirty = False

    def crash(self, rng: random.Random) -> None:
        """Keep what a power cut keeps."""
        if self.dirty or self.size_dirty:
            size = rng.choice((len(self.data), len(self.durable)))
            result = bytearray(self.durable[:size])
            result.extend(bytes(size - len(result)))
            mode = rng.random()
            for sector, versions in sorted(self.dirty.items()):
                # Mostly all or nothing or a coin per sector: the extremes must be frequent.
                if mode < 0.25 or (mode < 0.75 and rng.random() < 0.5):
                    continue
                version = versions[-1] if rng.random() < 0.8 else rng.choice(versions)
                start = sector * SECTOR
                if start < size:
                    part = version[: size - start]
                    result[start : start + len(part)] = part
            self.durable = result
        self.data = bytearray(self.durable)
        self.dirty.clear()
        self.size_dirty = False


class _Dir:
    """One directory's names."""

    __slots__ = ("durable", "names")

    def __init__(self) -> None:
        self.names: dict[str, _Inode | _Dir] = {}
        self.durable: dict[str, _Inode | _Dir] = {}


@dataclass
class _NameChange:
    """One create, unlink, mkdir or rename: whole or not at all."""

    effects: list[tuple[_Dir, str, _Inode | _Dir | None]]

    def apply(self) -> None:
        for directory, name, node in self.effects:
            if node is None:
                directory.durable.pop(name, None)
            else:
                directory.durable[name] = node


@dataclass
class SimDisk:
    """See the module."""

    rng: random.Random
    """For faults and crashes of this disk."""
    faults: Faults = field(default_factory=Faults)
    crash_after: int | None = None
    """Number of further operations before ``SimCrash``; None: never."""
    operations: int = 0
    syncs: int = 0

    def __post_init__(self) -> None:
        self._root = _Dir()
        self._changes: list[_NameChange] = []
        self._life = 0

    # -- FileSystem -------------------------------------------------------------------------

    def create(self, path: str) -> File:
        """See ``FileSystem``."""
        self.operate(path, write=True)
        directory, name = self._parent(path)
        if name in directory.names:
            raise DiskFailed(f"cannot create {path}: File exists")
        inode = _Inode()
        directory.names[name] = inode
        self._changes.append(_NameChange([(directory, name, inode)]))
        return _SimFile(self, inode, path)

    def open(self, path: str) -> File:
        """See ``FileSystem``."""
        node = self._find(path)
        if not isinstance(node, _Inode):
            raise DiskFailed(f"cannot open {path}: No such file")
        return _SimFile(self, node, path)

    def exists(self, path: str) -> bool:
        """See ``FileSystem``."""
        return self._find(path) is not None

    def listdir(self, path: str) -> list[str]:
        """See ``FileSystem``."""
        return sorted(self._directory(path).names)

    def mkdir(self, path: str) -> None:
        """See ``FileSystem``."""
        self.operate(path, write=True)
        directory, name = self._parent(path)
        node = directory.names.get(name)
        if node is None:
            made = _Dir()
            directory.names[name] = made
            self._changes.append(_NameChange([(directory, name, made)]))
        elif not isinstance(node, _Dir):
            raise DiskFailed(f"cannot make the directory {path}: File exists")

    def rename(self, old: str, new: str) -> None:
        """See ``FileSystem``."""
        self.operate(new, write=True)
        from_dir, from_name = self._parent(old)
        to_dir, to_name = self._parent(new)
        node = from_dir.names.get(from_name)
        if node is None:
            raise DiskFailed(f"cannot rename {old}: No such file")
        if isinstance(node, _Dir) and to_name in to_dir.names:
            raise DiskFailed(f"cannot rename {old} to {new}: File exists")
        del from_dir.names[from_name]
        to_dir.names[to_name] = node
        self._changes.append(_NameChange([(from_dir, from_name, None), (to_dir, to_name, node)]))

    def unlink(self, path: str) -> None:
        """See ``FileSystem``."""
        self.operate(path, write=False)
        directory, name = self._parent(path)
        if isinstance(directory.names.get(name), _Dir):
            raise DiskFailed(f"cannot remove {path}: Is a directory")
        if directory.names.pop(name, None) is not None:
            self._changes.append(_NameChange([(directory, name, None)]))

    def sync_dir(self, path: str) -> None:
        """See ``FileSystem``."""
        directory = self._directory(path)
        self.operate(path, write=False, sync=True)
        kept = []
        for change in self._changes:
            if any(d is directory for d, _, _ in change.effects):
                change.apply()
            else:
                kept.append(change)
        self._changes = kept

    def free_bytes(self, path: str) -> int:
        """See ``FileSystem``."""
        return max(0, self.faults.capacity - self.used_bytes())

    # -- for the simulator ------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Bytes in all files."""
        return sum(len(inode.data) for _, inode in self._files(self._root, ""))

    def crash(self, *, lost: bool = True) -> None:
        """The machine lost power (``lost``), or only the process died: then the kernel has it all.

        Every open file is void afterwards.
        """
        self._life += 1
        self.crash_after = None
        if not lost:
            return
        mode = self.rng.random()
        for change in self._changes:
            if mode < 0.25 or (mode < 0.75 and self.rng.random() < 0.5):
                continue
            change.apply()
        self._changes = []
        self._forget(self._root)

    def wipe(self) -> None:
        """A new, empty volume."""
        self._root = _Dir()
        self._changes = []
        self._life += 1

    def files(self) -> dict[str, bytes]:
        """What the process sees now: path -> bytes."""
        return {path: bytes(inode.data) for path, inode in self._files(self._root, "")}

    def image(self) -> dict[str, bytes]:
        """A copy of the volume as it is now, for clones and roll-backs. Directories end with /."""
        found = self.files()
        for path in self._directories(self._root, ""):
            found[path + "/"] = b""
        return found

    def restore(self, image: dict[str, bytes]) -> None:
        """Become that volume, all of it durable."""
        self.wipe()
        for path in sorted(image):
            parts = path.strip("/").split("/")
            directory = self._root
            for part in parts if path.endswith("/") else parts[:-1]:
                node = directory.names.get(part)
                if node is None:
                    node = _Dir()
                    directory.names[part] = directory.durable[part] = node
                directory = cast(_Dir, node)
            if not path.endswith("/"):
                inode = _Inode()
                inode.data, inode.durable = bytearray(image[path]), bytearray(image[path])
                directory.names[parts[-1]] = directory.durable[parts[-1]] = inode

    def flip(self, path: str, position: int) -> None:
        """Flip one bit of a file at rest; ``position`` counts bits."""
        node = self._find(path)
        assert isinstance(node, _Inode)
        node.data[position // 8] ^= 1 << position % 8
        node.durable = bytearray(node.data)

    def misdirect(self, source: str, at: int, target: str, to: int) -> None:
        """A sector of one file at rest lands in another place. No file grows by it."""
        given, taken = self._find(source), self._find(target)
        assert isinstance(given, _Inode)
        assert isinstance(taken, _Inode)
        part = bytes(given.data[at : at + SECTOR])[: max(0, len(taken.data) - to)]
        taken.data[to : to + len(part)] = part
        taken.durable = bytearray(taken.data)

    def _forget(self, directory: _Dir) -> None:
        directory.names = dict(directory.durable)
        for name in sorted(directory.names):
            node = directory.names[name]
            if isinstance(node, _Dir):
                self._forget(node)
            else:
                node.crash(self.rng)

    def _files(self, directory: _Dir, prefix: str) -> list[tuple[str, _Inode]]:
        found: list[tuple[str, _Inode]] = []
        for name in sorted(directory.names):
            node = directory.names[name]
            if isinstance(node, _Dir):
                found += self._files(node, f"{prefix}/{name}")
            else:
                found.append((f"{prefix}/{name}", node))
        return found

    def _directories(self, directory: _Dir, prefix: str) -> list[str]:
        found: list[str] = []
        for name in sorted(directory.names):
            node = directory.names[name]
            if isinstance(node, _Dir):
                found.append(f"{prefix}/{name}")
                found += self._directories(node, f"{prefix}/{name}")
        return found

    def operate(self, path: str, *, write: bool, sync: bool = False) -> None:
        """Count an operation; crash or fail here when it is its turn."""
        self.operations += 1
        if self.crash_after is not None:
            if self.crash_after <= 0:
                raise SimCrash
            self.crash_after -= 1
        if write and self.faults.write_error and self.rng.random() < self.faults.write_error:
            raise DiskFailed(f"cannot write {path}: Input/output error")
        if sync:
            self.syncs += 1
            if self.faults.sync_error and self.rng.random() < self.faults.sync_error:
                raise DiskFailed(f"cannot sync {path}: Input/output error")

    def _find(self, path: str) -> _Inode | _Dir | None:
        node: _Inode | _Dir | None = self._root
        for part in path.split("/"):
            if part:
                if not isinstance(node, _Dir):
                    return None
                node = node.names.get(part)
        return node

    def _directory(self, path: str) -> _Dir:
        node = self._find(path)
        if not isinstance(node, _Dir):
            raise DiskFailed(f"no directory {path}")
        return node

    def _parent(self, path: str) -> tuple[_Dir, str]:
        head, _, name = path.rstrip("/").rpartition("/")
        return self._directory(head), name


class _SimFile:
    """An open file; void after a crash."""

    def __init__(self, disk: SimDisk, inode: _Inode, path: str) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._life = disk._life
        self._closed = False

    @property
    def path(self) -> str:
        return self._path

    def _check(self) -> None:
        assert self._life == self._disk._life, "a dead process uses its files"
        assert not self._closed, f"{self._path} is used after close"

    def pwrite(self, data: bytes, offset: int) -> None:
        self._check()
        self._disk.operate(self._path, write=True)
        self._grow(offset + len(data))
        self._inode.write(bytes(data), offset)

    def pread(self, size: int, offset: int) -> bytes:
        self._check()
        return bytes(self._inode.data[offset : offset + size])

    def sync(self) -> None:
        self._check()
        try:
            self._disk.operate(self._path, write=False, sync=True)
        except DiskFailed:
            # The kernel marks the pages clean: what was in doubt stays so, whatever is synced later.
            view = bytes(self._inode.data)
            self._inode.crash(self._disk.rng)
            self._inode.data = bytearray(view)
            raise
        self._inode.sync()

    def truncate(self, size: int) -> None:
        self._check()
        self._disk.operate(self._path, write=True)
        self._grow(size)
        self._inode.resize(size)

    def preallocate(self, size: int) -> None:
        self._check()
        self._disk.operate(self._path, write=True)
        self._grow(size)
        if size > len(self._inode.data):
            self._inode.resize(size)

    def size(self) -> int:
        self._check()
        return len(self._inode.data)

    def close(self) -> None:
        self._closed = True

    def _grow(self, size: int) -> None:
        more = size - len(self._inode.data)
        if more > 0 and more > self._disk.free_bytes(self._path):
            raise DiskFull(f"cannot write {self._path}: No space left on device")

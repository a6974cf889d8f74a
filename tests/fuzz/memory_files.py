"""A file system that is a dictionary: quick to copy, and it never fails by itself."""

from __future__ import annotations

from kvnode.errors import DiskFailed

CAPACITY = 1 << 20


class MemoryFile:
    """One open file."""

    def __init__(self, path: str, data: bytearray) -> None:
        self.path = path
        self._data = data

    def pwrite(self, data: bytes, offset: int) -> None:
        self._data.extend(bytes(max(0, offset + len(data) - len(self._data))))
        self._data[offset : offset + len(data)] = data

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def sync(self) -> None:
        pass

    def truncate(self, size: int) -> None:
        del self._data[size:]
        self.preallocate(size)

    def preallocate(self, size: int) -> None:
        self._data.extend(bytes(max(0, size - len(self._data))))

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        pass


class MemoryFiles:
    """Implements ``kvnode.disk.files.FileSystem``. Directories exist as soon as they are made or used."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {path: bytearray(data) for path, data in (files or {}).items()}
        self._dirs: set[str] = set()

    def image(self) -> dict[str, bytes]:
        return {path: bytes(data) for path, data in self.files.items()}

    def create(self, path: str) -> MemoryFile:
        if path in self.files:
            raise DiskFailed(f"cannot create {path}: File exists")
        self.files[path] = bytearray()
        return MemoryFile(path, self.files[path])

    def open(self, path: str) -> MemoryFile:
        if path not in self.files:
            raise DiskFailed(f"cannot open {path}: No such file or directory")
        return MemoryFile(path, self.files[path])

    def exists(self, path: str) -> bool:
        return path in self.files or path in self._dirs or any(self._below(path))

    def _below(self, path: str) -> list[str]:
        return [known for known in self.files if known.startswith(path + "/")]

    def listdir(self, path: str) -> list[str]:
        return sorted({known[len(path) + 1 :].partition("/")[0] for known in self._below(path)})

    def mkdir(self, path: str) -> None:
        self._dirs.add(path)

    def rename(self, old: str, new: str) -> None:
        if old in self.files:
            self.files[new] = self.files.pop(old)
            return
        for known in self._below(old):
            self.files[new + known[len(old) :]] = self.files.pop(known)
        self._dirs.discard(old)
        self._dirs.add(new)

    def unlink(self, path: str) -> None:
        self.files.pop(path, None)

    def sync_dir(self, path: str) -> None:
        pass

    def free_bytes(self, path: str) -> int:
        return CAPACITY

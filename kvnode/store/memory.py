"""The engine contract in memory: for tests and for simulation.

``MemoryEngineFactory`` also models the disk under an engine, so that a simulated crash can lose what
was not flushed: a suffix of the batches, as the contract allows and RocksDB does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from sortedcontainers import SortedDict

from kvnode.errors import InvariantBroken
from kvnode.store.engine import Rows, Write


class MemoryDisk:
    """What would be on the disk: a durable map, and the batches written since the last flush."""

    __slots__ = ("durable", "unsynced")

    def __init__(self) -> None:
        """Start empty."""
        self.durable: dict[bytes, bytes] = {}
        self.unsynced: list[Sequence[Write]] = []

    def flush(self) -> None:
        """Make every batch durable."""
        for batch in self.unsynced:
            _apply(self.durable, batch)
        self.unsynced.clear()

    def crash(self, keep: int) -> None:
        """Keep only the first ``keep`` batches that were not flushed."""
        del self.unsynced[keep:]
        self.flush()


def _apply(target: dict[bytes, bytes], batch: Sequence[Write]) -> None:
    for key, value in batch:
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


class MemorySnapshot:
    """A copy of the rows of one moment; copying shares keys and values."""

    __slots__ = ("_keys", "_rows")

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        """Copy ``rows``, which are in byte order."""
        self._rows = list(rows.items())
        self._keys = list(rows)

    def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> Rows:
        """Yield ``[start, stop)``, see ``EngineSnapshot``."""
        at = bisect_left(self._keys, start)
        end = len(self._keys) if stop is None else bisect_left(self._keys, stop)
        rows = self._rows[at:end]
        yield from reversed(rows) if reverse else rows

    def close(self) -> None:
        """Forget the rows."""
        self._rows, self._keys = [], []


class MemoryEngine:
    """An ordered map in memory, see ``Engine``."""

    __slots__ = ("_closed", "_disk", "_rows", "get")

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        """Start with what ``disk`` holds; without one, empty, and nothing is kept for a crash."""
        self._disk = disk
        self._rows: SortedDict = SortedDict(disk.durable if disk is not None else {})
        self._closed = False
        self.get = self._rows.get
        """Return the value, or None."""

    def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> Rows:
        """Yield ``[start, stop)``, see ``Engine``."""
        rows = self._rows
        keys = rows.irange(start, stop, inclusive=(True, False), reverse=reverse)
        return ((key, rows[key]) for key in keys)

    def write(self, batch: Sequence[Write]) -> None:
        """Apply a batch."""
        if self._closed:
            raise InvariantBroken("a closed engine was written")
        _apply(self._rows, batch)
        if self._disk is not None:
            self._disk.unsynced.append(batch)

    def flush(self) -> None:
        """Make everything written so far survive ``MemoryEngineFactory.crash``."""
        if self._disk is not None:
            self._disk.flush()

    def snapshot(self) -> MemorySnapshot:
        """Copy the rows."""
        return MemorySnapshot(self._rows)

    def close(self) -> None:
        """Refuse further writes."""
        self._closed = True


class MemoryEngineFactory:
    """Generations of memory engines over disks that survive ``close``, see ``EngineFactory``."""

    __slots__ = ("_current", "_next")

    def __init__(self) -> None:
        """Start with an empty directory."""
        self._current = MemoryDisk()
        self._next: MemoryDisk | None = None

    def open_current(self) -> MemoryEngine:
        """Open what the current disk holds; batches not flushed are still there."""
        self._current.flush()
        self._next = None
        return MemoryEngine(self._current)

    def create_next(self) -> MemoryEngine:
        """Create an empty engine beside the current one."""
        self._next = MemoryDisk()
        return MemoryEngine(self._next)

    def switch_to_next(self) -> None:
        """Make the one from ``create_next`` current.

        Raises:
            InvariantBroken: There is none, or it was not flushed.
        """
        if self._next is None or self._next.unsynced:
            raise InvariantBroken("the next generation of the state is missing or not flushed")
        self._current, self._next = self._next, None

    def unsynced_batches(self) -> int:
        """Number of batches of the current generation that a crash may lose."""
        return len(self._current.unsynced)

    def crash(self, keep: int = 0) -> None:
        """Lose every batch that was not flushed but the first ``keep``. Engines opened before must
        not be used again.
        """
        self._current.crash(keep)
        self._next = None

"""The seam below the store: an ordered map of bytes with atomic batches.

Two engines keep this contract: ``kvnode.store.memory`` (simulation, tests) and
``kvnode.disk.rocks_engine`` (RocksDB). One contract test runs over both.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

Write = tuple[bytes, bytes | None]
"""A key and its new value; None deletes the key."""

Rows = Generator[tuple[bytes, bytes], None, None]
"""Pairs of a scan. A generator, so that it can be closed before its end: use ``contextlib.closing``
wherever it may not be exhausted."""


class EngineSnapshot(Protocol):
    """A consistent, read-only view of one moment. Must be closed; keep it short-lived."""

    def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> Rows:
        """Yield pairs with ``start <= key < stop`` in byte order (or backwards); ``stop`` None is the end.

        One scan at a time: opening another ends the first.
        """
        ...

    def close(self) -> None:
        """Release the view. Idempotent."""
        ...


class Engine(Protocol):
    """An ordered map of bytes. Keys are not empty, and do not begin with eight bytes of 0xff, where an
    engine may keep records of its own. Owned by one thread except where stated.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None. Sees every batch written before."""
        ...

    def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> Rows:
        """Yield pairs with ``start <= key < stop`` in byte order (or backwards).

        The iterator sees the moment of the call. It must be exhausted or closed before the next
        write is made; callers page instead of holding it.
        """
        ...

    def write(self, batch: Sequence[Write]) -> None:
        """Apply all writes in order, atomically: a crash keeps all of them or none.

        Not synced: a crash may lose this batch and every later one, never an earlier one alone.

        Raises:
            DiskFailed: The engine refused. The node must stop.
        """
        ...

    def flush(self) -> None:
        """Make everything written so far durable. Slow: runs in a worker thread, beside writers.

        Raises:
            DiskFailed: Never retry.
        """
        ...

    def snapshot(self) -> EngineSnapshot:
        """Open a consistent view of this moment, cheap; may be read in another thread."""
        ...

    def close(self) -> None:
        """Release everything. Does not flush. Idempotent."""
        ...


class EngineFactory(Protocol):
    """Makes engines in numbered generations, so that a restore swaps in atomically (RC-37)."""

    def open_current(self) -> Engine:
        """Open the current generation, creating the first one in an empty directory."""
        ...

    def create_next(self) -> Engine:
        """Create an empty engine beside the current one; left-overs of a failed try are removed."""
        ...

    def switch_to_next(self) -> None:
        """Make the one from ``create_next`` current, durably, in one step. It must be flushed.

        The old generation's files are removed once its engine is closed, at the latest at the next
        ``open_current``.
        """
        ...

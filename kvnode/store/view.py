"""One moment of the store, read a row at a time, so that a long read never holds up who is in a hurry.

A list of a hundred thousand keys takes a second to read and encode; done in one go, it would cost a
leader its office (RC-11, RC-69). A ``View`` stands still while the store goes on: its reader takes a few
rows, lets others run, and takes a few more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvnode.store.engine import EngineSnapshot
from kvnode.store.paging import Page, PageWalk
from kvnode.store.records import (
    GRAVES,
    KEY_MODIFY,
    KEY_MODIFY_AT,
    KV,
    SESSIONS,
    TREE_GRAVES,
    Meta,
    decode_grave,
    key_range,
)

Visitor = Callable[[bytes, bytes], None]
"""Called with the raw key (see ``records``) and the record of each row, in byte order."""


class View:
    """A consistent, read-only view. Must be closed; one walk at a time.

    Attributes:
        meta: The store's counters and indexes at this moment.
    """

    __slots__ = ("_restored_index", "_snapshot", "meta")

    def __init__(self, snapshot: EngineSnapshot, meta: Meta, restored_index: int = 0) -> None:
        """Take over a snapshot of the engine whose counters are ``meta``."""
        self._snapshot = snapshot
        self._restored_index = restored_index
        self.meta = meta

    def walk(self, prefix: bytes, visit: Visitor) -> Iterator[int]:
        """Visit every key under a prefix and find the index of that read, a row per step.

        The last number yielded is what ``reads.prefix_index`` returns for this moment; the ones
        before mean nothing. At least one number is yielded.

        Raises:
            CorruptLog: A record is not readable.
            InvariantBroken: The view was closed, by its owner or with its engine.
        """
        highest = self._restored_index
        modify_at = KEY_MODIFY.unpack_from
        scan = self._snapshot.scan
        for raw, record in scan(*key_range(KV, prefix)):
            visit(raw, record)
            modify = modify_at(record, KEY_MODIFY_AT)[0]
            if modify > highest:
                highest = modify
            yield highest
        if not prefix:
            yield self.meta.kv_index
            return
        for table in (GRAVES, TREE_GRAVES):
            for raw, record in scan(*key_range(table, prefix)):
                highest = max(highest, decode_grave(raw, record))
                yield highest
        if highest and self.meta.tree_graves:
            for size in range(1, len(prefix)):
                raw = TREE_GRAVES + prefix[:size]
                for _, record in scan(raw, raw + b"\0"):
                    highest = max(highest, decode_grave(raw, record))
                yield highest
        yield highest or self.meta.kv_index

    def page(self, prefix: bytes, separator: bytes, page: Page) -> PageWalk:
        """Walk over one page of the names under a prefix, see ``paging``; its index is ``meta.kv_index``."""
        return PageWalk(self._snapshot, prefix, separator, page)

    def walk_sessions(self, visit: Visitor) -> Iterator[int]:
        """Visit every session in the order of their ids, a row per step; the number is the same for
        each: the index of that read (spec §2.2).
        """
        for raw, record in self._snapshot.scan(*key_range(SESSIONS, b"")):
            visit(raw, record)
            yield self.meta.session_index
        yield self.meta.session_index

    def rows(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the raw keys and records of one table, in byte order; in any one thread."""
        return self._snapshot.scan(*key_range(table, b""))

    def close(self) -> None:
        """Release the view. Idempotent."""
        self._snapshot.close()

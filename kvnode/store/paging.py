"""One page of a list, read a row at a time from a view of one moment.

Names come in byte order or backwards, cut at a separator as ``reads.list_keys`` does; what lies under a cut
name is jumped over. A page costs what it holds, whatever lies before or behind it: so its index is that of
the whole table, since finding the prefix's own would read every row.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import NamedTuple

from kvnode.store.engine import EngineSnapshot
from kvnode.store.reads import SKIP_AFTER_ROWS
from kvnode.store.records import KV, key_range, successor

Taker = Callable[[bytes, bytes], bool]
"""Takes the raw key of a name, which may be cut, and the record of the first key under it. False: there is no
room for it, and the page ends before it."""


class Page(NamedTuple):
    """Which part of a list; every bound is optional."""

    limit: int | None = None
    """At most so many names; 1 or more."""
    after: bytes | None = None
    """Leave out everything up to and including this name, in the order asked for; it need not exist."""
    reverse: bool = False
    """From the last to the first."""
    start: bytes | None = None
    """No name below this one, whatever the order."""
    end: bytes | None = None
    """No name from this one on."""


class PageWalk:
    """One page under way.

    Attributes:
        next_after: ``Page.after`` of the next page; None while there is none known, and at the end of a
            walk when the list ends here.
    """

    def __init__(
        self, snapshot: EngineSnapshot, prefix: bytes, separator: bytes, page: Page
    ) -> None:
        """Begin at the first row of the page; ``separator`` empty: names are not cut."""
        self._snapshot = snapshot
        self._cut_from = len(prefix) + 1
        self._separator = separator
        self._page = page
        self._start, self._stop = _bounds(prefix, separator, page)
        self._last: bytes | None = None
        """The last name that was taken."""
        self._count = 0
        self.next_after: bytes | None = None

    def steps(self, take: Taker) -> Iterator[None]:
        """Read on, a row per step, giving ``take`` each name once."""
        while self._start < self._stop and (yield from self._stretch(take)):
            pass

    def _stretch(self, take: Taker) -> Generator[None, None, bool]:
        """Read until the page ends, False, or until a long subtree is to be jumped over, True."""
        subtree: bytes | None = None
        seen = 0
        reverse = self._page.reverse
        with closing(self._snapshot.scan(self._start, self._stop, reverse=reverse)) as rows:
            for raw, record in rows:
                if subtree is not None and raw.startswith(subtree):
                    seen += 1
                    if seen > SKIP_AFTER_ROWS:
                        self._jump(subtree)
                        return True
                else:
                    subtree, seen = self._cut(raw), 0
                    if not self._take(take, subtree or raw, record):
                        return False
                yield
        return False

    def _cut(self, raw: bytes) -> bytes | None:
        separator = self._separator
        at = raw.find(separator, self._cut_from) if separator else -1
        return raw[: at + len(separator)] if at >= 0 else None

    def _take(self, take: Taker, name: bytes, record: bytes) -> bool:
        if self._count == self._page.limit or not take(name, record):
            self.next_after = self._last
            return False
        self._count += 1
        self._last = name[1:]
        return True

    def _jump(self, subtree: bytes) -> None:
        if self._page.reverse:
            self._stop = subtree
            return
        start = successor(subtree)
        assert start is not None, "no table byte is 0xff"
        self._start = start


def _bounds(prefix: bytes, separator: bytes, page: Page) -> tuple[bytes, bytes]:
    """Return ``[start, stop)`` of the raw keys that the page is looked for in."""
    start, stop = key_range(KV, prefix)
    if page.start is not None:
        start = max(start, KV + page.start)
    if page.end is not None:
        stop = min(stop, KV + page.end)
    after = page.after
    if after is None:
        return start, stop
    if page.reverse:
        return start, min(stop, KV + after)
    first: bytes | None = KV + after + b"\0"
    if separator and after.startswith(prefix) and separator in after[len(prefix) :]:
        first = successor(KV + after)  # with everything that was rolled up in it
    assert first is not None, "no table byte is 0xff"
    return max(start, first), stop

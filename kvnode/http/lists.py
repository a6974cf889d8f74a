"""Lists of keys and entries, built a little at a time from one moment of the store.

A short list is answered within the read's own completion. A long one goes on in later turns of the loop,
a few milliseconds in each, on a view that stands still meanwhile: so the answer is one moment's state, and
heartbeats are never late because somebody listed everything (RC-11, RC-69). Long lists are bounded in
number, the others wait their turn, and in bytes (RC-67).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from kvnode.errors import BadRequest, InvariantBroken, NotNow
from kvnode.http.entries import entry_json, session_json, timed_entry_json
from kvnode.http.messages import json_string, prettify_item
from kvnode.store.paging import Page
from kvnode.store.records import decode_key, decode_session, ttl_of

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings
    from kvnode.ports import Scheduler
    from kvnode.store.paging import PageWalk, Taker
    from kvnode.store.store import Store
    from kvnode.store.view import View

_STEPS = 32
"""Rows between two looks at the clock."""

Done = Callable[["Listed | None", Exception | None], None]


class Listed(NamedTuple):
    """A finished list."""

    body: bytes
    """A JSON array."""
    count: int  # type: ignore[assignment]  # a field, not tuple.count
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    """Of the read (spec §2.2); 0: nothing was ever written."""
    next_after: bytes | None = None
    """Of a page: the name to go on after; None: this was the last one."""


class Wanted(NamedTuple):
    """What to list."""

    prefix: bytes
    entries: bool
    """Entries, or only names."""
    separator: bytes
    """Names are cut behind it; empty: they are not cut."""
    pretty: bool
    ttl: bool = False
    """Entries tell how long they live."""
    page: Page | None = None
    """Not all of it."""
    counted: bool = False
    """Of the page, only how many names it has."""


class WantedSessions(NamedTuple):
    """Which sessions to list."""

    node: str
    """Only those of this node; empty: all."""
    pretty: bool


_WHOLE = Page()


class Lists:
    """All lists of one server that are being built."""

    def __init__(self, settings: HttpSettings, loop: Scheduler | None = None) -> None:
        """Start with none; later turns are those of the running loop, or of the one given."""
        self._settings = settings
        self._loop: Scheduler = loop or asyncio.get_running_loop()
        self._active = 0
        """Long lists that go on in later turns."""
        self._waiting: deque[Callable[[], None]] = deque()

    def build(self, store: Store, wanted: Wanted | WantedSessions, done: Done) -> None:
        """Build a list of this moment; ``done`` is called now when it is short, else later.

        A list that has to wait is one of the moment at which it starts: newer, never older.
        """
        job = _Job(store.view(), wanted, self._settings)
        if job.advance(self._settings.list_turn_s):
            job.deliver(done)
        elif self._active < self._settings.long_lists_max:
            self._active += 1
            self._loop.call_soon(self._go_on, job, done)
        else:
            job.view.close()
            self._waiting.append(lambda: self._start(store, wanted, done))

    def _start(self, store: Store, wanted: Wanted | WantedSessions, done: Done) -> None:
        try:
            job = _Job(store.view(), wanted, self._settings)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            self._finish()
            done(None, error)
        else:
            self._go_on(job, done)

    def _go_on(self, job: _Job, done: Done) -> None:
        if not job.advance(self._settings.list_turn_s):
            self._loop.call_soon(self._go_on, job, done)
            return
        self._finish()
        job.deliver(done)

    def _finish(self) -> None:
        """Give the place to the next one."""
        if self._waiting:
            self._loop.call_soon(self._waiting.popleft())
        else:
            self._active -= 1


class _Job:
    """One list under way."""

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_chunks",
        "_counted",
        "_counting",
        "_error",
        "_index",
        "_last",
        "_page",
        "_pretty",
        "_steps",
        "view",
    )

    def __init__(self, view: View, wanted: Wanted | WantedSessions, settings: HttpSettings) -> None:
        self.view = view
        self._pretty = wanted.pretty
        self._bytes_max = settings.list_bytes_max
        self._bytes = 0
        self._chunks: list[bytes] = []
        self._last: bytes | None = None
        """The last name that was cut: what lies under it stands together, so comparing is enough."""
        self._index = 0
        self._error: Exception | None = None
        self._page: PageWalk | None = None
        self._counting = isinstance(wanted, Wanted) and wanted.counted
        self._counted = 0
        self._steps: Iterator[int] = self._walk(wanted)

    def _walk(self, wanted: Wanted | WantedSessions) -> Iterator[int]:
        """Choose what to visit, and how."""
        if isinstance(wanted, WantedSessions):
            return self.view.walk_sessions(partial(self._visit_session, wanted.node))
        if wanted.page is not None:
            return self._walk_page(wanted, wanted.page)
        if wanted.entries:
            visit = self._visit_timed if wanted.ttl else self._visit_entry
            return self.view.walk(wanted.prefix, visit)
        cut = partial(self._visit_name, wanted.separator, len(wanted.prefix) + 1)
        return self.view.walk(wanted.prefix, cut)

    def _walk_page(self, wanted: Wanted, page: Page) -> Iterator[int]:
        separator = b"" if wanted.entries else wanted.separator
        self._page = self.view.page(wanted.prefix, separator, page)
        if wanted.counted and page == _WHOLE and not wanted.prefix and not separator:
            self._counted = self.view.meta.count  # the store counts as it goes
            yield self.view.meta.kv_index
            return
        take: Taker = self._take_name
        if wanted.counted:
            take = self._count_name
        elif wanted.entries:
            take = self._take_timed if wanted.ttl else self._take_entry
        for _ in self._page.steps(take):
            yield self.view.meta.kv_index
        yield self.view.meta.kv_index

    def advance(self, turn_s: float) -> bool:
        """Work for about ``turn_s`` seconds; True: finished, or failed."""
        stop = perf_counter() + turn_s
        step = self._steps.__next__
        index = self._index
        try:
            while True:
                for _ in range(_STEPS):
                    index = step()
                self._index = index
                if perf_counter() >= stop:
                    return False
        except StopIteration:
            self._index = index
        except InvariantBroken:
            # The engine was swapped for a snapshot's while the list was being read.
            self._error = NotNow("the data was replaced while it was being listed")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            self._error = error
        self.view.close()
        return True

    def deliver(self, done: Done) -> None:
        """Hand over what was built."""
        if self._error is not None:
            done(None, self._error)
            return
        chunks = self._chunks
        page = self._page
        if page is not None and self._counting:
            body = b"%d" % self._counted
            done(Listed(body, self._counted, self._index, page.next_after), None)
            return
        if self._pretty:
            inner = b",\n    ".join(chunks)
            body = b"[\n    %b\n]\n" % inner if chunks else b"[]\n"
        else:
            body = b"[%b]" % b",".join(chunks)
        after = page.next_after if page is not None else None
        done(Listed(body, len(chunks), self._index, after), None)

    def _visit_entry(self, raw: bytes, record: bytes) -> None:
        self._add(entry_json(decode_key(raw, record)))

    def _visit_timed(self, raw: bytes, record: bytes) -> None:
        self._add(timed_entry_json(decode_key(raw, record), ttl_of(record)))

    def _take_entry(self, raw: bytes, record: bytes) -> bool:
        return self._fits(entry_json(decode_key(raw, record)))

    def _take_timed(self, raw: bytes, record: bytes) -> bool:
        return self._fits(timed_entry_json(decode_key(raw, record), ttl_of(record)))

    def _take_name(self, raw: bytes, _record: bytes) -> bool:
        return self._fits(json_string(raw[1:]))

    def _count_name(self, _raw: bytes, _record: bytes) -> bool:
        self._counted += 1
        return True

    def _fits(self, item: bytes) -> bool:
        """Add an item to a page, or end the page before it: the next one begins with it."""
        if self._chunks and self._bytes + len(item) + 1 > self._bytes_max:
            return False
        self._add(item)
        return True

    def _visit_session(self, node: str, raw: bytes, record: bytes) -> None:
        session = decode_session(raw, record)
        if not node or session.node == node:
            self._add(session_json(session))

    def _visit_name(self, separator: bytes, cut_from: int, raw: bytes, record: bytes) -> None:
        """``cut_from``: where in a raw key the separator is looked for."""
        if separator:
            if self._last is not None and raw.startswith(self._last):
                return
            at = raw.find(separator, cut_from)
            if at >= 0:
                raw = raw[: at + len(separator)]
                self._last = raw
        self._add(json_string(raw[1:]))

    def _add(self, item: bytes) -> None:
        self._bytes += len(item) + 1
        if self._bytes > self._bytes_max:
            raise BadRequest(
                f"The list is larger than {self._bytes_max} bytes; ask for a longer prefix, or for "
                "pages with ?limit. The setting is list_bytes_max."
            )
        self._chunks.append(prettify_item(item) if self._pretty else item)

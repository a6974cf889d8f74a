"""The change feed, ``GET /v1/watch/<prefix>``: every change, in order, once, as server-sent events.

How it works
------------
A feed is a position in the store's window of changes (``kvnode.store.history``) and nothing else: what it
has to tell is read from there when its client has taken what came before. So a slow reader holds no
queue; it falls back, and when the window has moved on past it, it is told so and cut. Any node holds the
same window, and a position is an index of the log: a reader may go on anywhere.

A feed that has told everything parks on its prefix like a blocking query (``replica.watches``): changes
elsewhere do not touch it. Feeds of the same prefix that are woken together share what was read and
encoded. Only what is committed and applied is in the window, so nothing is told that could be taken back.

What is told
------------
``id`` is the index; ``INDEX.N`` after the N-th of several changes of one entry, so that a reader that goes
on from there neither loses nor doubles one. The last one has the plain index. A heartbeat is a comment with
an id: it moves the position on while nothing happens under the prefix, so that a quiet reader is not
overtaken by the window. It is confirmed: everything that was acknowledged anywhere before has been told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from kvnode.errors import Compacted, InvariantBroken, KvnodeError, NotNow
from kvnode.http import errors
from kvnode.http.completion import wait_for
from kvnode.http.entries import entry_json
from kvnode.http.history import cause_json, pair_json
from kvnode.http.messages import Response, dump_json, json_string, text
from kvnode.http.query import Options, parse_options
from kvnode.http.streams import EVENT_STREAM_HEAD, Stream
from kvnode.replica.facade import Consistency
from kvnode.store.history import Position
from kvnode.store.records import decode_key

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings
    from kvnode.http.messages import Request
    from kvnode.replica.facade import ReadView, ReplicaFacade
    from kvnode.store.history import Change

PATH: Final = b"/v1/watch/"
_ROWS_MAX: Final = 256
_BYTES_MAX: Final = 64 * 1024
"""Read from the window at a time. One large change can make it more."""
_CHUNK_BYTES: Final = 256 * 1024
"""The most that is handed to the socket at a time."""
_SHARED_MAX: Final = 64
"""Parts of the window that are remembered, encoded, for feeds that read the same."""
_CONFIRM_S: Final = 1.0
"""Heartbeats within so long share one confirmation."""
_ID: Final = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,9}))?", re.ASCII)
_INDEX_MAX: Final = (1 << 64) - 1


class Point(NamedTuple):
    """Where a reader goes on."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    told: int
    """How many changes of this very index it has had; -1: all."""

    def position(self) -> Position:
        """Where to begin to read: before the index, if some of its changes are still to be told."""
        return Position(self.index if self.told < 0 else self.index - 1, None)


class Told(NamedTuple):
    """One change, encoded but for its id."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    event: bytes


class Part(NamedTuple):
    """Part of the window, encoded."""

    told: tuple[Told, ...]
    position: Position
    complete: bool
    whole: bool


class Feeds:
    """What the feeds of one server share."""

    def __init__(self, replica: ReplicaFacade, settings: HttpSettings) -> None:
        """Start with none."""
        self.replica = replica
        self.settings = settings
        self.initials = asyncio.Semaphore(settings.feed_initials_max)
        """Views of the whole state keep old files of the engine alive: few at a time."""
        self._shared: dict[tuple[Position, bytes], Part] = {}
        self._shared_at = -1
        self._confirming: asyncio.Future[bool] | None = None
        self._confirmed_s = float("-inf")

    def read(self, since: Position, prefix: bytes) -> Part:
        """Return what comes after a position, from the window or from whoever read the same.

        Raises:
            Compacted: The window does not reach back so far.
        """
        store = self.replica.store
        if self._shared_at != store.applied_index or len(self._shared) >= _SHARED_MAX:
            self._shared.clear()
            self._shared_at = store.applied_index
        known = self._shared.get((since, prefix))
        if known is None:
            changes = store.changes(since, prefix, rows_max=_ROWS_MAX, bytes_max=_BYTES_MAX)
            told = tuple([Told(change.index, _change_event(change)) for change in changes.found])
            known = Part(told, changes.position, changes.complete, changes.whole)
            self._shared[since, prefix] = known
        return known

    async def confirm(self) -> bool:
        """Wait until this node has applied everything acknowledged before; False: it has no leader."""
        loop = asyncio.get_running_loop()
        if self._confirming is None:
            if loop.time() - self._confirmed_s < _CONFIRM_S:
                return True
            self._confirming = loop.create_future()
            begun = loop.time()

            def done(_view: ReadView | None, error: KvnodeError | None) -> None:
                confirming, self._confirming = self._confirming, None
                if error is None:
                    self._confirmed_s = begun
                if confirming is not None and not confirming.done():
                    confirming.set_result(error is None)

            self.replica.read(Consistency.DEFAULT, done)
        return await asyncio.shield(self._confirming)


class FeedRoute:
    """``GET /v1/watch/<prefix>``."""

    def __init__(self, replica: ReplicaFacade, settings: HttpSettings) -> None:
        """Remember whom to ask."""
        self._feeds = Feeds(replica, settings)
        self._settings = settings

    async def handle(self, request: Request) -> Response | Stream:
        """Begin a feed, or refuse it: what is compacted is 410."""
        prefix = request.path[len(PATH) :]
        options = parse_options(request.query)
        refusal = options.error or options.enterprise
        refusal = refusal or options.foreign_datacenter(self._settings.datacenter)
        if refusal is not None:
            return refusal
        if len(prefix) > self._settings.key_bytes_max:
            return errors.key_too_long(len(prefix), self._settings, v1=True)
        point = _parse_point(request, options)
        if isinstance(point, Response):
            return point
        feed = _Feed(self._feeds, prefix, point)
        try:
            await feed.open(options)
        except KvnodeError as error:
            return errors.refuse(error, v1=True, write=False)
        head = EVENT_STREAM_HEAD + b"X-Kvnode-Index: %d\r\n" % feed.position.index
        return Stream(200, head, feed.chunks(), endless=True)


def _parse_point(request: Request, options: Options) -> Point | Response | None:
    """Return where the client wants to go on; None: from now on."""
    last_event_id = request.headers.get("Last-Event-ID", "")
    if last_event_id:
        point = parse_event_id(last_event_id)
        return point or text(400, "Invalid Last-Event-ID: an INDEX or INDEX.N is wanted")
    return None if options.first("index") is None else Point(options.index, -1)


def parse_event_id(raw: str) -> Point | None:
    """Return the point that an event's id names; None: it is none of ours."""
    match = _ID.fullmatch(raw)
    if match is None or int(match[1]) > _INDEX_MAX:
        return None
    index, told = int(match[1]), match[2]
    if told is not None and not index:
        return None
    return Point(index, -1 if told is None else int(told))


class _Feed:
    """One reader's place in the window."""

    def __init__(self, feeds: Feeds, prefix: bytes, point: Point | None) -> None:
        self._feeds = feeds
        self._prefix = prefix
        self._point = point
        self.position = Position(0, None)
        self._entry = self._entry_told = 0
        """The index whose changes are being told, and how many of them have been."""
        self._wants_state = False

    async def open(self, options: Options) -> None:
        """Find out where the feed begins.

        Raises:
            Compacted: The window does not reach back to where the reader was.
            NotNow: There is no leader to say what is newest.
        """
        feeds, point = self._feeds, self._point
        store = feeds.replica.store
        self._wants_state = "initial" in options.values and point is None
        await wait_for(partial(feeds.replica.read, options.consistency))
        if point is None:
            self.position = Position(store.applied_index, None)
            return
        self.position = point.position()
        if point.told >= 0:
            self._entry, self._entry_told = point.index, 0
        if point.index <= store.applied_index:
            feeds.read(self.position, self._prefix)
        elif options.consistency is not Consistency.STALE:
            raise Compacted(point.index, store.history_floor(), store.applied_index)
        # Else: a node that the client allows to be behind waits until it gets there.

    # -- the stream -------------------------------------------------------------------------------

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Tell everything, for ever."""
        try:
            async with aclosing(self._tell()) as telling:
                async for data in telling:
                    for at in range(0, len(data), _CHUNK_BYTES):
                        yield data[at : at + _CHUNK_BYTES]
        except Compacted as error:
            document = {
                "Error": str(error),
                "Index": error.index,
                "Oldest": error.oldest,
                "Newest": error.newest,
            }
            yield b"event: compacted\ndata: %b\n\n" % dump_json(document)
        except NotNow as error:
            yield b"event: cut\ndata: %b\n\n" % dump_json({"Error": str(error)})

    async def _tell(self) -> AsyncGenerator[bytes, None]:
        feeds = self._feeds
        ready = False
        if self._wants_state:
            async with feeds.initials, aclosing(self._tell_state()) as state:
                async for data in state:
                    yield data
        else:
            yield self._notice(b"start", self._begins_with_id())
        beat = b""
        while True:
            part = self._read()
            if part is None:
                beat = await self._park()
                continue
            if part.told:
                yield b"".join(self._events(part))
            self.position = part.position
            if not part.complete:
                await asyncio.sleep(0)  # others want to run, too
                continue
            if not ready:
                ready = True
                yield self._notice(b"ready", True)
            elif beat and not part.told:
                yield b": %b\nid: %d\n\n" % (beat, self.position.index)
            beat = await self._park()

    def _begins_with_id(self) -> bool:
        """A reader that goes on within an entry must not forget that it does."""
        return self._point is None or self._point.told < 0

    def _read(self) -> Part | None:
        """Read on; None: this node is not even where the reader was."""
        if self.position.index > self._feeds.replica.store.applied_index:
            return None
        return self._feeds.read(self.position, self._prefix)

    def _notice(self, name: bytes, with_id: bool) -> bytes:
        index = self.position.index
        document = {
            "Index": index,
            "Oldest": self._feeds.replica.store.history_floor(),
            "Node": self._feeds.settings.node_name,
        }
        head = b"id: %d\n" % index if with_id else b""
        return b"event: %b\n%bdata: %b\n\n" % (name, head, dump_json(document))

    def _events(self, part: Part) -> Iterator[bytes]:
        """Give each change its id, and leave out what the reader has had."""
        point = self._point
        skip = point.told if point is not None and point.told >= 0 else 0
        told = part.told
        for number, (index, event) in enumerate(told, 1):
            if index != self._entry:
                self._entry, self._entry_told = index, 0
            self._entry_told += 1
            if point is not None and index == point.index and self._entry_told <= skip:
                continue
            last = told[number].index != index if number < len(told) else part.whole
            if last:
                yield b"id: %d\n%b" % (index, event)
            else:
                yield b"id: %d.%d\n%b" % (index, self._entry_told, event)

    async def _tell_state(self) -> AsyncGenerator[bytes, None]:
        """Tell what there is, as of one moment; the changes after it come next.

        Raises:
            NotNow: The reader took too long.
            Compacted: The state was replaced meanwhile.
        """
        store = self._feeds.replica.store
        time = asyncio.get_running_loop().time
        limit_s = self._feeds.settings.feed_initial_s
        deadline = time() + limit_s
        view = store.view()
        self.position = Position(view.meta.applied_index, None)
        gathered: list[bytes] = []

        def visit(raw: bytes, record: bytes) -> None:
            pair = decode_key(raw, record)
            gathered.append(b"event: entry\ndata: %b\n\n" % entry_json(pair))

        try:
            yield self._notice(b"start", with_id=False)
            size = 0
            for _ in view.walk(self._prefix, visit):
                size += len(gathered[-1]) if gathered else 0
                if size >= _BYTES_MAX or len(gathered) >= _ROWS_MAX:
                    data = b"".join(gathered)
                    gathered.clear()
                    size = 0
                    yield data
                    await asyncio.sleep(0)
                    if time() > deadline:
                        raise NotNow(f"the state was not taken within {limit_s:g} s")
            yield b"".join(gathered)
        except InvariantBroken:
            # The engine was swapped for a snapshot's meanwhile.
            newest = store.applied_index
            raise Compacted(self.position.index, newest, newest) from None
        finally:
            view.close()

    async def _park(self) -> bytes:
        """Wait for a change under the prefix, or for the next heartbeat; return its text if it is."""
        feeds = self._feeds
        watches = feeds.replica.watches
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[bool] = loop.create_future()

        def wake(beat: bool) -> None:
            # Parked until now, so nothing under the prefix was missed up to here.
            if watches.settled > self.position.index:
                self.position = Position(watches.settled, None)
            if not woken.done():
                woken.set_result(beat)

        watcher = watches.watch(self._prefix, is_prefix=True, callback=lambda _index: wake(False))
        timer = loop.call_later(feeds.settings.feed_heartbeat_s, wake, True)
        try:
            beat = await woken
        finally:
            timer.cancel()
            watches.cancel(watcher)
        if not beat:
            return b""
        return b"up to date" if await feeds.confirm() else b"no leader: there may be more"


def _change_event(change: Change) -> bytes:
    """Encode a change without its id."""
    index, key, cause, old, new = change
    return b'event: %b\ndata: {"Index":%d,"By":%b,"Key":%b,"New":%b,"Old":%b}\n\n' % (
        b"delete" if new is None else b"set",
        index,
        cause_json(cause),
        json_string(key),
        pair_json(new),
        pair_json(old),
    )

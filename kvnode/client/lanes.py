"""The connections of a load: each asks, waits for the answer, and asks again."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import quote

import httptools

from kvnode.client.failures import is_certainly_not
from kvnode.client.plan import WRITES, Operation

if TYPE_CHECKING:
    from yarl import URL

    from kvnode.client.load import KeyState, Load, Tally

_RETRY_S: Final = 0.1
"""Before a connection that broke is opened again, at another node, and after a refusal."""
_RETRY_MAX_S: Final = 1.0
_LOOK_S: Final = 0.25
"""How often answers that take too long are looked for."""
_BODY_KEPT: Final = 512


class Request(NamedTuple):
    """One request."""

    operation: Operation
    number: int
    """Of the key."""
    written: int
    """Of the write; 0: none."""
    due: float
    data: bytes


class Lane(ABC):
    """One connection, opened again when it breaks; one request under way.

    ``done`` ends when it has nothing more to ask.
    """

    def __init__(self, load: Load, lane: int) -> None:
        self.load = load
        self.plan = load.plan
        self.loop = asyncio.get_running_loop()
        self.lane = lane
        self.own = range(lane, load.plan.keys, load.plan.connections)
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.current: Request | None = None
        self.sent_at = 0.0
        self._wire: Wire | None = None
        self._tries = 0
        self._target = lane
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._open()

    # to be defined by each kind of lane

    @abstractmethod
    def next(self, now: float) -> Request | float:
        """Return what to ask now, or from when on there is something. Not called when it is over."""

    @abstractmethod
    def over(self, now: float) -> bool:
        """Whether there will be nothing more to ask."""

    @abstractmethod
    def settle(self, request: Request, status: int, body: bytes, sure: bool, now: float) -> None:
        """Take what became of a request. Status 0: no answer; ``sure``: nothing happened."""

    # connection

    @property
    def address(self) -> URL:
        """The node that it talks to."""
        return self.plan.addresses[self._target % len(self.plan.addresses)]

    def _open(self) -> None:
        if not self.done.done():
            self._opening = self.loop.create_task(self._connect())

    async def _connect(self) -> None:
        address = self.address
        secure = address.scheme == "https"
        try:
            async with asyncio.timeout(self.plan.timeout_s):
                await self.loop.create_connection(
                    lambda: Wire(self),
                    cast("str", address.host),
                    cast("int", address.port),
                    ssl=(self.plan.ssl or True) if secure else None,
                    server_hostname=(self.plan.server_name or address.host) if secure else None,
                )
        except OSError as error:  # a time-out is one, too
            self.load.note_reason(f"{address.authority}: {error.strerror or 'cannot connect'}")
            self.broken()

    def opened(self, wire: Wire) -> None:
        """The connection is there."""
        self._wire = wire
        self._tries = 0
        self.ask()

    def broken(self) -> None:
        """The connection is gone, or was never there."""
        self._wire = None
        self.load.connections_lost += 1
        request, self.current = self.current, None
        if request is not None:
            self.load.note_reason(f"{self.address.authority}: the connection broke")
            self.settle(request, 0, b"", False, monotonic())
        self._target += 1
        self._tries += 1
        pause = min(_RETRY_MAX_S, _RETRY_S * self._tries)
        if self.over(monotonic()):
            self.finish()
        elif not self.done.done():
            self._timer = self.loop.call_later(pause, self._open)

    def ask(self) -> None:
        """Send the next request, now or when it is due."""
        if self.done.done() or self.current is not None or self._wire is None:
            return
        now = monotonic()
        if self.over(now):
            self.finish()
            return
        what = self.next(now)
        if isinstance(what, float):
            self._timer = self.loop.call_later(max(0.0, what - now), self.ask)
        else:
            self.current = what
            self.sent_at = now
            self._wire.send(what.data)

    def answered(self, status: int, body: bytes, node: str, may_retry: bool) -> None:
        """An answer arrived."""
        request, self.current = self.current, None
        if request is None:
            return
        now = monotonic()
        if node:
            self.load.nodes[node] += 1
        good = status == 200 or (status == 404 and request.operation not in WRITES)
        sure = not good and (
            status in (413, 429) or is_certainly_not(body.decode(errors="replace"))
        )
        if not good:
            self.load.note_reason(f"{status} {body[:100].decode(errors='replace').strip()}")
        self.settle(request, status, body, sure, now)
        if may_retry and not good:
            # Whoever says "not now" must not be asked again at once by everybody.
            self._timer = self.loop.call_later(_RETRY_S, self.ask)
        else:
            self.ask()

    def look(self, now: float) -> None:
        """Give an answer up that takes too long."""
        if self.current is not None and now - self.sent_at > self.plan.timeout_s and self._wire:
            self._wire.abort()

    def finish(self) -> None:
        """There is nothing more to ask."""
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        """End it in any state."""
        self.finish()
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._wire is not None:
            self._wire.abort()

    # requests

    def put(self, number: int, due: float) -> Request:
        """Make a put with a value of its own."""
        written, value = self.load.next_value()
        return Request(Operation.PUT, number, written, due,
                        self._head("PUT", self._path(number), len(value)) + value)  # fmt: skip

    def get(self, operation: Operation, number: int, due: float) -> Request:
        """Make a get of either kind."""
        path = self._path(number) + ("?raw&stale" if operation is Operation.STALE else "?raw")
        return Request(operation, number, 0, due, self._head("GET", path))

    def delete(self, number: int, due: float) -> Request:
        """Make a delete."""
        return Request(Operation.DELETE, number, 0, due, self._head("DELETE", self._path(number)))

    def names(self, number: int, due: float) -> Request:
        """Make a listing of the names that begin like a key."""
        path = f"/v1/kv/{quote(self.load.keys[number][:-1], safe='/')}?keys"
        return Request(Operation.LIST, number, 0, due, self._head("GET", path))

    def _path(self, number: int) -> str:
        return "/v1/kv/" + quote(self.load.keys[number], safe="/")

    def _head(self, method: str, path: str, length: int | None = None) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.address.authority}\r\n"
        if self.plan.token:
            head += f"X-Consul-Token: {self.plan.token}\r\n"
        if length is not None:
            head += f"Content-Length: {length}\r\n"
        return (head + "\r\n").encode()


class Filling(Lane):
    """Puts each of its keys once, again and again until it is stored."""

    def __init__(self, load: Load, lane: int, tally: Tally) -> None:
        self._left = list(range(lane, load.plan.keys, load.plan.connections))
        self._tally = tally
        self._end = monotonic() + load.fill_s
        super().__init__(load, lane)

    def over(self, now: float) -> bool:
        """See ``Lane``."""
        return not self._left or now >= self._end

    def next(self, now: float) -> Request | float:
        """See ``Lane``."""
        return self.put(self._left[-1], now)

    def settle(self, request: Request, status: int, body: bytes, sure: bool, now: float) -> None:
        """See ``Lane``."""
        _settle_put(self.load.states[request.number], request.written, status == 200, sure)
        if status == 200:
            self._left.pop()
            self._tally.answered += 1


class Mixing(Lane):
    """The load itself."""

    def __init__(self, load: Load, lane: int, began: float, end: float) -> None:
        plan = load.plan
        self._random = random.Random(f"{plan.seed}/{lane}" if plan.seed else None)
        self._operations = list(load.tallies)
        self._weights = [plan.mix[op] for op in self._operations]
        self._interval = plan.connections / plan.rate if plan.rate else 0.0
        self._due = began + self._interval * (lane / plan.connections)
        self._end = end
        super().__init__(load, lane)

    def over(self, now: float) -> bool:
        """See ``Lane``."""
        return now >= self._end

    def next(self, now: float) -> Request | float:
        """See ``Lane``."""
        due = now
        if self._interval:
            if self._due > now:
                return min(self._due, self._end)
            due, self._due = self._due, self._due + self._interval
        (operation,) = self._random.choices(self._operations, self._weights)
        number = self._random.choice(self.own)
        match operation:
            case Operation.PUT:
                return self.put(number, due)
            case Operation.DELETE:
                return self.delete(number, due)
            case Operation.LIST:
                return self.names(number, due)
            case Operation.GET | Operation.STALE:
                return self.get(operation, number, due)

    def settle(self, request: Request, status: int, body: bytes, sure: bool, now: float) -> None:
        """See ``Lane``."""
        operation = request.operation
        tally = self.load.tallies[operation]
        done = status == 200 or (status == 404 and operation not in WRITES)
        if done:
            tally.answered += 1
            tally.times.add(now - request.due)
            if operation in WRITES:
                self.load.note_write(min(now, self._end))
        elif sure:
            tally.refused += 1
        elif 400 <= status < 500:
            tally.failed += 1
        else:
            tally.unknown += 1
        state = self.load.states[request.number]
        if operation is Operation.PUT:
            _settle_put(state, request.written, done, sure or 400 <= status < 500)
        elif operation is Operation.DELETE and done:
            state.acknowledged, state.deleted = 0, True
        elif operation is Operation.DELETE and not sure:
            state.maybe.add(0)


class Verifying(Lane):
    """Gets each of its keys, again and again until it is answered."""

    def __init__(self, load: Load, lane: int, found: dict[int, bytes | None]) -> None:
        self._left = list(range(lane, load.plan.keys, load.plan.connections))
        self._found = found
        self._end = monotonic() + load.fill_s
        super().__init__(load, lane)

    def over(self, now: float) -> bool:
        """See ``Lane``."""
        return not self._left or now >= self._end

    def next(self, now: float) -> Request | float:
        """See ``Lane``."""
        return self.get(Operation.GET, self._left[-1], now)

    def settle(self, request: Request, status: int, body: bytes, sure: bool, now: float) -> None:
        """See ``Lane``."""
        if status in (200, 404):
            self._left.pop()
            self._found[request.number] = body if status == 200 else None


class Cleaning(Lane):
    """Deletes everything, by the first lane alone; a try more when that was not answered."""

    def __init__(self, load: Load, lane: int) -> None:
        self._tries_left = 0 if lane else 3
        super().__init__(load, lane)

    def over(self, now: float) -> bool:
        """See ``Lane``."""
        return not self._tries_left

    def next(self, now: float) -> Request | float:
        """See ``Lane``."""
        path = f"/v1/kv/{quote(self.plan.prefix, safe='/')}?recurse"
        return Request(Operation.DELETE, 0, 0, now, self._head("DELETE", path))

    def settle(self, request: Request, status: int, body: bytes, sure: bool, now: float) -> None:
        """See ``Lane``."""
        self._tries_left = 0 if status == 200 else self._tries_left - 1


class Wire(asyncio.Protocol):
    """One connection's bytes."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body = b""
        self._node = ""
        self._may_retry = False

    def send(self, data: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._transport.write(data)

    def abort(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        self._lane.opened(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lane.load.note_reason(f"not HTTP: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        if not self._lane.done.done():
            self._lane.broken()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        if len(name) == 13 and name.lower() == b"x-kvnode-node":
            self._node = value.decode("latin-1")
        elif len(name) == 11 and name.lower() == b"retry-after":
            self._may_retry = True

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        if len(self._body) < _BODY_KEPT:
            self._body += body[:_BODY_KEPT]

    def on_message_complete(self) -> None:
        """Called by httptools."""
        body, node, may_retry = self._body, self._node, self._may_retry
        self._body, self._node, self._may_retry = b"", "", False
        self._lane.answered(self._parser.get_status_code(), body, node, may_retry)


def _settle_put(state: KeyState, written: int, stored: bool, sure: bool) -> None:
    if stored:
        state.acknowledged, state.deleted = written, False
    elif not sure:
        state.maybe.add(written)


async def look_after(lanes: Sequence[Lane]) -> None:
    """Look for answers that take too long, until cancelled."""
    while True:
        await asyncio.sleep(_LOOK_S)
        now = monotonic()
        for lane in lanes:
            lane.look(now)

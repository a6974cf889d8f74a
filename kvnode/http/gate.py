"""Bounds on everything that clients can pile up (RC-67): connections, requests, bodies, answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvnode.errors import Overloaded

LARGE_ANSWER_BYTES = 8 * 1024
"""Answers up to this length are not counted: they are bounded by the number of requests."""
REFUSED_MAX = 1_024
"""Connections above the bound that may be open at a time, to be told so; the next ones are cut."""
LINGER_S = 2.0
"""After refusing a request that is still being sent: how long its bytes are thrown away before the
connection is cut. Closing at once would reset it, and the client might never see the answer."""
SLOW_S = 1.0
"""Under pressure, a client that has not taken its answer for so long makes room for the others."""


class Gate:
    """Counts what is in progress in both shells. Full means an answer at once, before any work."""

    __slots__ = (
        "_idle",
        "_slow",
        "answer_bytes",
        "body_bytes",
        "bytes_max",
        "connections",
        "connections_max",
        "parked",
        "rejected",
        "requests",
        "requests_max",
        "streams",
        "streams_max",
    )

    def __init__(
        self, *, connections_max: int, requests_max: int, bytes_max: int, streams_max: int = 1_000
    ) -> None:
        """Start empty."""
        self.connections = 0
        self.connections_max = connections_max
        self.requests = 0
        self.parked = 0
        """Blocking queries that wait for a change. They are bounded apart, by the watchers."""
        self.streams = 0
        """Endless streams. They are bounded apart, by ``streams_max``."""
        self.streams_max = streams_max
        self.requests_max = requests_max
        self.body_bytes = 0
        """Bytes of bodies received for requests that are not answered yet."""
        self.answer_bytes = 0
        """Bytes of large answers that their clients have not taken yet."""
        self.bytes_max = bytes_max
        """For bodies, and as much again for answers."""
        self.rejected = 0
        """How often something was refused, for the metrics."""
        self._idle: asyncio.Event | None = None
        self._slow: dict[object, tuple[float, Callable[[], None]]] = {}

    def enter(self) -> None:
        """Count a request that starts."""
        self.requests += 1

    def leave(self) -> None:
        """Count a request that was answered, or whose client is gone."""
        self.requests -= 1
        assert self.requests >= 0, "left more often than entered"
        if self._idle is not None and not self.requests:
            self._idle.set()

    def park(self) -> None:
        """A request in progress begins to wait: it takes no place among the others meanwhile."""
        self.leave()
        self.parked += 1

    def unpark(self) -> None:
        """A parked request goes on."""
        self.parked -= 1
        self.enter()

    def stream_refusal(self) -> Overloaded | None:
        """Return why no further endless stream may start, or None."""
        if self.streams >= self.streams_max:
            self.rejected += 1
            return Overloaded(f"{self.streams_max} streams are open")
        return None

    def flow(self) -> None:
        """A request in progress becomes an endless stream: it takes no place among the others."""
        self.leave()
        self.streams += 1

    def unflow(self) -> None:
        """The stream is at its end."""
        self.streams -= 1
        self.enter()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request is in progress; False when ``timeout_s`` passed first."""
        if not self.requests:
            return True
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def refusal(self) -> Overloaded | None:
        """Return why no further request may start, or None."""
        if self.requests >= self.requests_max:
            self.rejected += 1
            return Overloaded(f"{self.requests_max} requests are in progress")
        if self.body_bytes >= self.bytes_max:
            self.rejected += 1
            return Overloaded(f"{self.bytes_max} bytes of requests are in progress")
        return None

    def answer_refusal(self, size: int) -> Overloaded | None:
        """Return why a read's answer of ``size`` bytes may not be kept, or None and count it.

        Whoever counted it gives it back: ``answer_bytes -= size``.
        """
        if self.answer_bytes + size > self.bytes_max and self.answer_bytes:
            self.rejected += 1
            return Overloaded(f"{self.answer_bytes} bytes of answers wait to be taken")
        self.answer_bytes += size
        return None

    def is_slow(self, client: object, since: float, cut: Callable[[], None]) -> None:
        """A client has stopped taking its answer; ``cut`` ends its connection."""
        self._slow.setdefault(client, (since, cut))

    def is_quick(self, client: object) -> None:
        """It takes it again, or is gone."""
        self._slow.pop(client, None)

    def relieve(self, now: float) -> None:
        """Cut the slowest clients, when their answers leave no room for those of others."""
        while self._slow and 2 * self.answer_bytes > self.bytes_max:
            client, (since, cut) = next(iter(self._slow.items()))
            if now - since < SLOW_S:
                return
            del self._slow[client]
            cut()

    @property
    def is_crowded(self) -> bool:
        """Whether a connection that is already counted is not even worth an answer any more."""
        return self.connections > self.connections_max + min(self.connections_max, REFUSED_MAX)

    def connection_refusal(self) -> Overloaded | None:
        """Return why a connection that is already counted may not be served, or None."""
        if self.connections > self.connections_max:
            self.rejected += 1
            return Overloaded(f"{self.connections_max} connections are open")
        return None

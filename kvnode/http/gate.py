"""Bounds on everything that clients can pile up (RC-67): connections, requests, bodies."""

from __future__ import annotations

import asyncio

from kvnode.errors import Overloaded


class Gate:
    """Counts what is in progress in both shells. Full means an answer at once, before any work."""

    __slots__ = (
        "_idle",
        "body_bytes",
        "bytes_max",
        "connections",
        "connections_max",
        "parked",
        "rejected",
        "requests",
        "requests_max",
    )

    def __init__(self, *, connections_max: int, requests_max: int, bytes_max: int) -> None:
        """Start empty."""
        self.connections = 0
        self.connections_max = connections_max
        self.requests = 0
        self.parked = 0
        """Blocking queries that wait for a change. They are bounded apart, by the watchers."""
        self.requests_max = requests_max
        self.body_bytes = 0
        """Bytes of bodies received for requests that are not answered yet."""
        self.bytes_max = bytes_max
        self.rejected = 0
        """How often something was refused, for the metrics."""
        self._idle: asyncio.Event | None = None

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

    def connection_refusal(self) -> Overloaded | None:
        """Return why a connection that is already counted may not be served, or None."""
        if self.connections > self.connections_max:
            self.rejected += 1
            return Overloaded(f"{self.connections_max} connections are open")
        return None

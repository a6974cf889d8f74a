"""One request in progress on a connection of the lean shell, and the slot of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.http import errors
from kvnode.http.gate import LARGE_ANSWER_BYTES

if TYPE_CHECKING:
    from kvnode.http.blocking import Parked
    from kvnode.http.fast import Connection
    from kvnode.http.messages import Response


class Exchange:
    """One request in progress on a connection, and the slot of its answer."""

    __slots__ = ("connection", "label", "method", "parked", "response", "size", "started")

    def __init__(
        self, connection: Connection, method: str, label: str, size: int, now: float
    ) -> None:
        """Remember what the answer needs; ``size`` is the body's length in bytes."""
        self.connection = connection
        self.method = method
        self.label = label
        self.size = size
        self.started = now
        self.response: Response | None = None
        self.parked: Parked | None = None
        """The handle of a blocking query."""

    def give_up(self) -> None:
        """The client hung up: a blocking query stops, anything else goes on without it."""
        if self.parked is not None and self.response is None:
            hub = self.connection.hub
            hub.backend.blocking.cancel(self.parked)
            hub.gate.leave()
            hub.gate.body_bytes -= self.size

    def respond(self, response: Response) -> None:
        """Take the answer; also called when the client is long gone."""
        assert self.response is None, "answered twice"
        connection = self.connection
        hub = connection.hub
        gate = hub.gate
        size = len(response.body)
        if size > LARGE_ANSWER_BYTES and not connection.is_lost:
            refusal = gate.answer_refusal(size)
            if refusal is not None:  # only reads have large answers, so nothing happened
                v1 = self.label.startswith("/v1/")
                response = errors.refuse(refusal, v1=v1, write=False)
        self.response = response
        gate.leave()
        gate.body_bytes -= self.size
        now = hub.time()
        recorder = hub.recorder
        recorder.observe(self.label, self.method, response.status, now - self.started)
        recorder.fast += 1
        connection.flush(now)

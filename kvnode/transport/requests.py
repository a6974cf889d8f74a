"""Requests under way on one connection: what we asked, and what we were asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvnode.errors import KvnodeError, LocalProtocolError, PeerUnreachable, Timeout
from kvnode.ports import Done


class Asked:
    """The asking side: numbers requests, finds their completions again, and ends them in time.

    There is no timer per request: ``expire`` is called by the transport's sweep, and looks at the
    requests only once the earliest deadline has passed.
    """

    __slots__ = ("_earliest", "_last_id", "_waiting", "_written_id")

    def __init__(self) -> None:
        """Nothing is under way."""
        self._waiting: dict[int, tuple[float, Done[Any]]] = {}
        self._last_id = 0
        self._written_id = 0
        self._earliest = float("inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, deadline: float, done: Done[Any]) -> int:
        """Start a request; returns its number. ``done`` is called exactly once, by one of the below."""
        self._last_id += 1
        self._waiting[self._last_id] = (deadline, done)
        self._earliest = min(self._earliest, deadline)
        return self._last_id

    def withdraw(self, request_id: int) -> None:
        """Forget a request whose frame could not be made; its ``done`` is not called."""
        del self._waiting[request_id]

    def mark_written(self) -> None:
        """Every request so far was given to the socket: from here on it may have taken effect."""
        self._written_id = self._last_id

    def answer(self, request_id: Any, value: Any, error: KvnodeError | None) -> None:
        """The peer answered. Nothing happens for a number that is not (any more) waited for."""
        found = self._waiting.pop(request_id, None)
        if found is not None:
            found[1](None if error is not None else value, error)

    def expire(self, now: float) -> int:
        """End all requests whose deadline has passed with ``Timeout``; returns how many."""
        if now < self._earliest:
            return 0
        expired = [(i, done) for i, (deadline, done) in self._waiting.items() if deadline <= now]
        for request_id, _ in expired:
            del self._waiting[request_id]
        self._earliest = min((d for d, _ in self._waiting.values()), default=float("inf"))
        for _, done in expired:
            done(None, Timeout("the peer did not answer in time", took_effect="unknown"))
        return len(expired)

    def break_off(self, reason: str) -> None:
        """The connection is gone: end everything, and say what may have arrived (RC-58)."""
        waiting, self._waiting = self._waiting, {}
        self._earliest = float("inf")
        for request_id, (_, done) in waiting.items():
            written = request_id <= self._written_id
            done(None, PeerUnreachable(reason, took_effect="unknown" if written else "no"))


class Answer:
    """The answering side of one request: the ``reply`` and ``fail`` that the handler gets.

    They may be called at any later time; when the connection is gone by then, nothing is sent.
    """

    __slots__ = ("_request_id", "_send")

    def __init__(
        self, request_id: int, send: Callable[[int, Any, KvnodeError | None], None]
    ) -> None:
        """``send`` writes the answer to the connection, if it still exists."""
        self._request_id = request_id
        self._send: Callable[[int, Any, KvnodeError | None], None] | None = send

    def reply(self, value: Any) -> None:
        """Answer with plain data.

        Raises:
            LocalProtocolError: The request was answered before.
        """
        self._answer(value, None)

    def fail(self, error: KvnodeError) -> None:
        """Answer with an error. Raises as ``reply`` does."""
        self._answer(None, error)

    def _answer(self, value: Any, error: KvnodeError | None) -> None:
        send, self._send = self._send, None
        if send is None:
            raise LocalProtocolError("a request was answered twice")
        send(self._request_id, value, error)

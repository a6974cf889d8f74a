"""Requests on their way: what is waiting for a leader, for the log, or for the store to catch up.

Every request is answered exactly once through ``Desk.finish``. All of them are bounded together, in
count and in bytes (RC-67).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

from kvnode.errors import KvnodeError, LeadershipLost, NoLeader, Overloaded, Timeout
from kvnode.raft.types import Index, Term
from kvnode.store.commands import Command, Result

REQUEST_OVERHEAD = 256
"""Bytes counted per request besides its data."""


class WriteRequest:
    """One command that somebody waits for."""

    __slots__ = ("command", "data", "deadline", "done", "hopped")

    def __init__(
        self,
        command: Command,
        data: bytes,
        done: Callable[[Result | None, KvnodeError | None], None],
        deadline: float,
        *,
        hopped: bool,
    ) -> None:
        """``hopped``: a peer forwarded it, so it is not forwarded again (RC-59)."""
        self.command = command
        self.data = data
        self.done = done
        self.deadline = deadline
        self.hopped = hopped


class ReadRequest:
    """One linearizable read, or a peer's question for a read index."""

    __slots__ = ("deadline", "done", "hopped")

    def __init__(
        self, done: Callable[[Any, KvnodeError | None], None], deadline: float, *, hopped: bool
    ) -> None:
        """``hopped``: a peer asks; ``done`` gets the read index itself, without waiting for it."""
        self.done = done
        self.deadline = deadline
        self.hopped = hopped


Request = WriteRequest | ReadRequest


class Desk:
    """Keeps every open request of this node."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        """Bounds for all requests together."""
        self._count_max = count_max
        self._bytes_max = bytes_max
        self.count = 0
        self.bytes = 0
        self.writes: deque[WriteRequest] = deque()
        """Not proposed and not forwarded yet."""
        self.reads: deque[ReadRequest] = deque()
        """Not given to the core and not forwarded yet."""
        self._proposed: dict[Index, tuple[Term, WriteRequest]] = {}
        self._parked: list[tuple[Index, int, ReadRequest]] = []
        self._parked_count = 0
        self.callback_failed: Callable[[BaseException], None] = lambda _error: None

    # -- in and out -----------------------------------------------------------------------------

    def admit(self, request: Request) -> None:
        """Take a request in.

        Raises:
            Overloaded: A bound is reached. The request was not taken.
        """
        if self.count >= self._count_max or self.bytes >= self._bytes_max:
            raise Overloaded("too many requests are waiting on this node")
        self.count += 1
        self.bytes += REQUEST_OVERHEAD
        if isinstance(request, WriteRequest):
            self.bytes += len(request.data)
            self.writes.append(request)
        else:
            self.reads.append(request)

    def finish(self, request: Request, value: Any, error: KvnodeError | None = None) -> None:
        """Answer a request. A completion that raises must not take the driver down with it."""
        self.count -= 1
        self.bytes -= REQUEST_OVERHEAD
        if isinstance(request, WriteRequest):
            self.bytes -= len(request.data)
        try:
            request.done(value, error)
        except Exception as failure:  # noqa: BLE001  # reported, and nobody else's request may suffer
            self.callback_failed(failure)

    # -- writes in the log ------------------------------------------------------------------------

    def proposed(self, index: Index, term: Term, request: WriteRequest) -> None:
        """``request`` is the log's entry ``index`` of ``term`` now."""
        self._proposed[index] = (term, request)

    def at(self, index: Index, term: Term) -> WriteRequest | None:
        """The request that became this entry, if it was made here."""
        found = self._proposed.get(index)
        return found[1] if found is not None and found[0] == term else None

    def applied(self, index: Index, term: Term, result: Result) -> None:
        """The entry ``index`` of ``term`` was applied: answer whoever waits for that index."""
        found = self._proposed.pop(index, None)
        if found is None:
            return
        proposed_term, request = found
        if proposed_term == term:
            self.finish(request, result)
        else:
            # Another leader's entry took the place and is committed: ours can never be.
            lost = LeadershipLost("leadership lost while committing log", took_effect="no")
            self.finish(request, None, lost)

    def skipped_to(self, index: Index) -> None:
        """A snapshot replaced the log up to ``index``: what became of writes there is unknown."""
        for at in [known for known in self._proposed if known <= index]:
            _, request = self._proposed.pop(at)
            self.finish(request, None, LeadershipLost("leadership lost while committing log"))

    @property
    def has_proposed(self) -> bool:
        """Whether anybody waits for an entry in the log."""
        return bool(self._proposed)

    # -- reads that wait for the store --------------------------------------------------------------

    def park(self, index: Index, request: ReadRequest) -> None:
        """Hold a confirmed read until ``index`` is applied here."""
        self._parked_count += 1
        heapq.heappush(self._parked, (index, self._parked_count, request))

    def release(self, applied_index: Index) -> list[ReadRequest]:
        """Take out the reads whose index is applied."""
        ready = []
        while self._parked and self._parked[0][0] <= applied_index:
            ready.append(heapq.heappop(self._parked)[2])
        return ready

    # -- time and the end -----------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Answer everything whose deadline has passed."""
        for request in _expired(self.writes, now):
            self.finish(request, None, NoLeader("No cluster leader"))
        for read in _expired(self.reads, now):
            self.finish(read, None, NoLeader("No cluster leader"))
        late = [index for index, (_, request) in self._proposed.items() if request.deadline <= now]
        for index in late:
            _, request = self._proposed.pop(index)
            text = "the write was not confirmed in time; its outcome is unknown"
            self.finish(request, None, Timeout(text, took_effect="unknown"))
        overdue = [item for item in self._parked if item[2].deadline <= now]
        if overdue:
            self._parked = [item for item in self._parked if item[2].deadline > now]
            heapq.heapify(self._parked)
            for _, _, read in overdue:
                text = "this node could not catch up in time"
                self.finish(read, None, Timeout(text, took_effect="no"))

    def fail_hopped(self, error: Callable[[], KvnodeError]) -> None:
        """Send back what peers forwarded and this node cannot serve: it goes one hop only (RC-59)."""
        for queue in (self.writes, self.reads):
            hopped = [request for request in queue if request.hopped]
            if not hopped:
                continue
            kept = [request for request in queue if not request.hopped]
            queue.clear()
            queue.extend(kept)  # type: ignore[arg-type]  # the queue's own items go back
            for request in hopped:
                self.finish(request, None, error())

    def fail_all(self) -> None:
        """The node stops: nobody may be left waiting."""
        for write in self.writes:
            self.finish(write, None, NoLeader("this node is stopping"))
        for read in self.reads:
            self.finish(read, None, NoLeader("this node is stopping"))
        for _, write in self._proposed.values():
            self.finish(write, None, LeadershipLost("this node stopped before the write was known"))
        for _, _, read in self._parked:
            self.finish(read, None, NoLeader("this node is stopping"))
        self.writes.clear()
        self.reads.clear()
        self._proposed.clear()
        self._parked.clear()


def _expired(queue: deque[Any], now: float) -> list[Any]:
    """Take out the requests whose deadline has passed; the others keep their order."""
    if not any(request.deadline <= now for request in queue):
        return []
    late = [request for request in queue if request.deadline <= now]
    kept = [request for request in queue if request.deadline > now]
    queue.clear()
    queue.extend(kept)
    return late

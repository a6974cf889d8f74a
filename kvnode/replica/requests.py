"""Requests on their way: what is waiting for a leader, for the log, or for the store to catch up.

Every request is answered exactly once through ``Desk.finish``: the desk knows all open ones, wherever
they are, and a second answer falls on the floor. All of them are bounded together, in count and in
bytes (RC-67).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from kvnode.errors import KvnodeError, LeadershipLost, NoLeader, Overloaded, Timeout
from kvnode.raft.types import Index, Term
from kvnode.store.commands import Command, Result

REQUEST_OVERHEAD = 256
"""Bytes counted per request besides its data."""

# Where an open request is. Plain numbers: this is looked at for every request.
QUEUED: Final = 0
"""In the desk's queues: certainly not appended."""
IN_CORE: Final = 1
"""A read that the core confirms."""
IN_LOG: Final = 2
"""A write that was appended here."""
SENT: Final = 3
"""On its way to the leader, and back."""
PARKED: Final = 4
"""A confirmed read that waits for the store."""


class WriteRequest:
    """One command that somebody waits for."""

    __slots__ = ("command", "data", "deadline", "done", "hopped", "stage")

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
        self.stage = QUEUED


class ReadRequest:
    """One linearizable read, or a peer's question for a read index."""

    __slots__ = ("deadline", "done", "hopped", "stage")

    def __init__(
        self, done: Callable[[Any, KvnodeError | None], None], deadline: float, *, hopped: bool
    ) -> None:
        """``hopped``: a peer asks; ``done`` gets the read index itself, without waiting for it."""
        self.done = done
        self.deadline = deadline
        self.hopped = hopped
        self.stage = QUEUED


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
        self._open: dict[Request, None] = {}
        self._has_hopped = False
        """A peer's request may be in the queues; spares looking through them at each turn."""
        self._proposed: dict[Index, tuple[Term, WriteRequest]] = {}
        self._parked: list[tuple[Index, int, ReadRequest]] = []
        self._parked_count = 0
        self._earliest = float("inf")
        """No deadline is before it, so that a sweep looks at nothing most of the time."""
        self._closed = False
        self.callback_failed: Callable[[BaseException], None] = lambda _error: None

    # -- in and out -----------------------------------------------------------------------------

    def admit(self, request: Request, *, queued: bool = True) -> None:
        """Take a request in.

        Args:
            request: It is answered once, by ``finish``.
            queued: False: it is the leader's own and about to be proposed; no bound refuses it.

        Raises:
            Overloaded: A bound is reached. The request was not taken.
            NoLeader: The node stops. The request was not taken.
        """
        if self._closed:
            raise NoLeader("this node is stopping")
        if queued and (self.count >= self._count_max or self.bytes >= self._bytes_max):
            raise Overloaded("too many requests are waiting on this node")
        self.count += 1
        self.bytes += REQUEST_OVERHEAD
        self._open[request] = None
        self._has_hopped |= request.hopped
        self._earliest = min(self._earliest, request.deadline)
        if isinstance(request, WriteRequest):
            self.bytes += len(request.data)
            if queued:
                self.writes.append(request)
        else:
            self.reads.append(request)

    def finish(self, request: Request, value: Any, error: KvnodeError | None = None) -> None:
        """Answer a request, unless it was answered before. A completion that raises must not take the
        driver down with it.
        """
        if request not in self._open:
            return
        del self._open[request]
        self.count -= 1
        self.bytes -= REQUEST_OVERHEAD
        if isinstance(request, WriteRequest):
            self.bytes -= len(request.data)
        try:
            request.done(value, error)
        except Exception as failure:  # noqa: BLE001  # reported, and nobody else's request may suffer
            self.callback_failed(failure)

    # -- the queues -------------------------------------------------------------------------------

    def take_writes(self) -> list[WriteRequest]:
        """Take all writes that wait, in order: they are about to be proposed here."""
        batch = list(self.writes)
        self.writes.clear()
        self._has_hopped = bool(self.reads) and self._has_hopped
        return batch

    def take_reads(self, stage: int) -> list[ReadRequest]:
        """Take all reads that wait, in order, to where ``stage`` says."""
        batch = list(self.reads)
        self.reads.clear()
        self._has_hopped = bool(self.writes) and self._has_hopped
        for read in batch:
            read.stage = stage
        return batch

    def put_back(self, requests: Sequence[Request]) -> None:
        """Certainly not appended and not answered: wait again, before all others, until the deadline."""
        for request in reversed(requests):
            if request not in self._open:
                continue
            if self._closed:
                self.finish(request, None, NoLeader("this node is stopping"))
                continue
            request.stage = QUEUED
            self._earliest = min(self._earliest, request.deadline)
            if isinstance(request, WriteRequest):
                self.writes.appendleft(request)
            else:
                self.reads.appendleft(request)

    def fail_hopped(self, error: Callable[[], KvnodeError]) -> None:
        """Send back what peers forwarded and this node cannot serve: it goes one hop only (RC-59)."""
        if not self._has_hopped:
            return
        self._has_hopped = False
        hopped: list[Request] = [request for request in self.writes if request.hopped]
        hopped += [request for request in self.reads if request.hopped]
        self._keep(lambda request: not request.hopped)
        for request in hopped:
            self.finish(request, None, error())

    def _keep(self, wanted: Callable[[Request], bool]) -> None:
        """Drop the others from the queues, keeping the order."""
        writes = [request for request in self.writes if wanted(request)]
        reads = [request for request in self.reads if wanted(request)]
        self.writes.clear()
        self.writes.extend(writes)
        self.reads.clear()
        self.reads.extend(reads)

    # -- writes in the log ------------------------------------------------------------------------

    def proposed(self, index: Index, term: Term, request: WriteRequest) -> None:
        """``request`` is the log's entry ``index`` of ``term`` now."""
        request.stage = IN_LOG
        former = self._proposed.get(index)
        self._proposed[index] = (term, request)
        if former is not None:
            # Its entry was cut off here, under another leader. Somebody else may still hold it and
            # bring it back, so nobody can say (RC-58).
            lost = LeadershipLost("leadership lost while committing log")
            self.finish(former[1], None, lost)

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
        if request not in self._open:
            return
        request.stage = PARKED
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
        """Answer everything whose deadline has passed.

        A write on its way to the leader has no deadline here: the transport ends it, and only then is
        known whether it may have arrived.
        """
        if now < self._earliest:
            return
        late = [r for r in self._open if r.deadline <= now and not _is_carried(r)]
        gone = set(late)
        self._earliest = min(
            (r.deadline for r in self._open if r not in gone and not _is_carried(r)),
            default=float("inf"),
        )
        if not late:
            return
        self._keep(lambda request: request not in gone)
        for index in [i for i, (_, request) in self._proposed.items() if request in gone]:
            del self._proposed[index]
        self._parked = [item for item in self._parked if item[2] not in gone]
        heapq.heapify(self._parked)
        for request in late:
            self.finish(request, None, _late(request))

    def fail_all(self) -> None:
        """The node stops: nobody may be left waiting, wherever the request is, and nobody comes in."""
        self._closed = True
        self.writes.clear()
        self.reads.clear()
        self._proposed.clear()
        self._parked.clear()
        for request in list(self._open):
            error: KvnodeError = NoLeader("this node is stopping")
            if request.stage == IN_LOG or _is_carried(request):
                error = LeadershipLost("this node stopped before the write was known")
            self.finish(request, None, error)


def _is_carried(request: Request) -> bool:
    return request.stage == SENT and isinstance(request, WriteRequest)


def _late(request: Request) -> KvnodeError:
    """What to say when the deadline has passed, by where the request is."""
    if request.stage == IN_LOG:
        text = "the write was not confirmed in time; its outcome is unknown"
        return Timeout(text, took_effect="unknown")
    if request.stage == PARKED:
        return Timeout("this node could not catch up in time", took_effect="no")
    if request.stage in (IN_CORE, SENT):
        return Timeout("the leader was not confirmed in time", took_effect="no")
    return NoLeader("No cluster leader")

"""The one hop from a follower to the leader, both ends (RC-33, RC-58, RC-59).

Writes that gathered in a turn travel in one request, and so does the question for a read index. An
answer "certainly not appended" puts a write back into the queue until its deadline; anything else is
final. Reads are always safe to ask again, and are when the leader changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.errors import (
    BadRequest,
    DiskNearlyFull,
    KvnodeError,
    LeadershipLost,
    NotLeader,
    NotNow,
    Overloaded,
    PeerUnreachable,
    RemoteProtocolError,
    Timeout,
)
from kvnode.ports import Transport
from kvnode.raft.types import Index, NodeId
from kvnode.replica.codec import decode_foreign, decode_result, encode_result
from kvnode.replica.requests import SENT, Desk, ReadRequest, WriteRequest
from kvnode.replica.settings import ReplicaSettings
from kvnode.store.commands import Result, Txn

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

WRITE_REQUESTS_MAX = 32
READ_REQUESTS_MAX = 2
"""Requests under way to the leader; what comes meanwhile gathers into the next one."""
WRITES_PER_REQUEST_MAX = 1024

_CODES: dict[str, type[NotNow]] = {
    "not_leader": NotLeader,
    "overloaded": Overloaded,
    "disk_nearly_full": DiskNearlyFull,
    "leadership_lost": LeadershipLost,
    "timeout": Timeout,
}
_REFUSED = "refused"
"""Code of a write that no leader would ever take: the caller's fault."""


class _Window:
    """What is under way to one leader. The next leader gets a window of its own: an old one that does
    not answer must not hold its place.
    """

    __slots__ = ("leader", "reads", "writes")

    def __init__(self, leader: NodeId | None) -> None:
        self.leader = leader
        self.writes = 0
        self.reads: list[list[ReadRequest]] = []


class Forwarder:
    """A follower's side: carries the desk's waiting requests to the leader."""

    def __init__(
        self,
        settings: ReplicaSettings,
        desk: Desk,
        transport: Transport,
        on_progress: Callable[[], None],
    ) -> None:
        """Work on ``desk``'s queues.

        ``on_progress`` is called when the window opened. Requests that were put back wait for the next
        turn that something else causes, at the latest the next tick: a leader that refuses at once
        must not be asked in a hot loop.
        """
        self._settings = settings
        self._desk = desk
        self._transport = transport
        self._on_progress = on_progress
        self._window = _Window(None)

    def follow(self, leader: NodeId | None) -> None:
        """Who leads now. Reads that an earlier leader still has are asked again (RC-33)."""
        former = self._window
        if former.leader == leader:
            return
        self._window = _Window(leader)
        batches, former.reads = former.reads, []
        for reads in reversed(batches):
            self._desk.put_back(reads)

    def flush(self, leader: NodeId) -> None:
        """Send what waits to the leader, as far as the window allows."""
        self.follow(leader)
        desk, window = self._desk, self._window
        while desk.writes and window.writes < WRITE_REQUESTS_MAX:
            self._send_writes(window, leader, self._take_writes())
        if desk.reads and len(window.reads) < READ_REQUESTS_MAX:
            self._send_reads(window, leader, desk.take_reads(SENT))

    def _take_writes(self) -> list[WriteRequest]:
        batch: list[WriteRequest] = []
        size = 0
        queue = self._desk.writes
        while queue and len(batch) < WRITES_PER_REQUEST_MAX:
            size += _weight(queue[0])
            if batch and size > self._settings.forward_batch_bytes_max:
                break
            request = queue.popleft()
            request.stage = SENT
            batch.append(request)
        return batch

    def _send_writes(self, window: _Window, leader: NodeId, batch: list[WriteRequest]) -> None:
        window.writes += 1

        def answered(answers: Any, error: KvnodeError | None) -> None:
            window.writes -= 1
            if error is None and not _is_answer_list(answers, len(batch)):
                error = RemoteProtocolError("the leader's answer has the wrong form")
            if error is not None:
                back = self._batch_failed(batch, error)
            else:
                pairs = zip(batch, answers, strict=True)
                back = [request for request, answer in pairs if not self._settle(request, answer)]
            self._desk.put_back(back)
            if not back:
                self._on_progress()

        payload = [request.data for request in batch]
        timeout = self._settings.request_timeout_s
        self._transport.request(leader, "write", payload, timeout, answered)

    def _settle(self, request: WriteRequest, answer: Any) -> bool:
        """Answer one write. False: it was certainly not appended, and waits for a leader again."""
        code, *rest = answer
        if code == "ok":
            try:
                self._desk.finish(request, decode_result(rest[0]))
            except RemoteProtocolError as error:
                unknown = Timeout(f"the leader's answer is unreadable: {error}")
                self._desk.finish(request, None, unknown)
            return True
        text, took_effect = str(rest[0]), rest[1]
        if code == "not_leader" and took_effect == "no":
            return False
        if code == _REFUSED:
            self._desk.finish(request, None, BadRequest(text))
            return True
        kind = _CODES.get(code, Timeout)
        if kind is NotLeader:
            kind = LeadershipLost
        effect = "no" if took_effect == "no" else "unknown"
        self._desk.finish(request, None, kind(text, took_effect=effect))  # type: ignore[arg-type]
        return True

    def _batch_failed(
        self, batch: list[WriteRequest], error: KvnodeError
    ) -> Sequence[WriteRequest]:
        """The batch as a whole has no answer. Returns the writes that may be tried again."""
        if isinstance(error, NotNow) and error.took_effect == "no":
            return batch
        text = f"the leader could not be heard; the outcome is unknown ({error})"
        kind = PeerUnreachable if isinstance(error, PeerUnreachable) else Timeout
        for request in batch:
            self._desk.finish(request, None, kind(text, took_effect="unknown"))
        return ()

    def _send_reads(self, window: _Window, leader: NodeId, reads: list[ReadRequest]) -> None:
        window.reads.append(reads)

        def answered(index: Any, error: KvnodeError | None) -> None:
            if reads not in window.reads:
                return  # Taken over by the next leader's window.
            window.reads.remove(reads)
            if error is not None or type(index) is not int or index < 0:
                self._desk.put_back(reads)
                return
            for read in reads:
                self._desk.park(Index(index), read)
            self._on_progress()

        timeout = self._settings.read_index_timeout_s
        self._transport.request(leader, "read_index", None, timeout, answered)


def _weight(request: WriteRequest) -> int:
    """Return how many bytes a write may need on the way there, or on the way back."""
    command = request.command
    return len(request.data) + (command.read_bytes_max if type(command) is Txn else 0)


def _is_answer_list(answers: Any, count: int) -> bool:
    return (
        isinstance(answers, (list, tuple))
        and len(answers) == count
        and all(isinstance(a, (list, tuple)) and len(a) in (2, 3) for a in answers)
        and all(isinstance(a[0], str) and (len(a) == 3 or a[0] == "ok") for a in answers)
    )


# -- the leader's end -----------------------------------------------------------------------------


def serve_writes(
    replica: Replica,
    payload: Any,
    reply: Callable[[Any], None],
    fail: Callable[[KvnodeError], None],
) -> None:
    """Propose a follower's batch; answer when every write of it has an outcome.

    They are many clients' writes: one that cannot be taken is refused alone.
    """
    if not isinstance(payload, (list, tuple)) or not 0 < len(payload) <= WRITES_PER_REQUEST_MAX:
        fail(RemoteProtocolError("a forwarded batch has the wrong form"))
        return
    limit = replica.settings.command_bytes_max
    answers: list[Any] = [None] * len(payload)
    missing = len(payload)

    def answered(position: int, result: Result | None, error: KvnodeError | None) -> None:
        nonlocal missing
        answers[position] = _answer(result, error)
        missing -= 1
        if missing == 0:
            reply(answers)

    for position, data in enumerate(payload):
        try:
            command = decode_foreign(data, limit)
        except RemoteProtocolError as error:
            answered(position, None, BadRequest(str(error)))
            continue
        replica.intake.take_write(command, data, partial(answered, position), hopped=True)


def _answer(result: Result | None, error: KvnodeError | None) -> Sequence[Any]:
    if error is None:
        assert result is not None, "a completion has a value or an error"
        return ("ok", encode_result(result))
    if isinstance(error, BadRequest):
        return (_REFUSED, str(error), "no")
    effect = error.took_effect if isinstance(error, NotNow) else "unknown"
    for code, kind in _CODES.items():
        if isinstance(error, kind):
            return (code, str(error), effect)
    if effect == "no":
        return ("not_leader", str(error), effect)
    return ("timeout", str(error), effect)

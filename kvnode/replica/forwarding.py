"""The one hop from a follower to the leader, both ends (RC-33, RC-58, RC-59).

Writes that gathered in a turn travel in one request, and so does the question for a read index. An
answer "certainly not appended" puts a write back into the queue until its deadline; anything else is
final. Reads are always safe to ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.errors import (
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
from kvnode.replica.codec import decode_foreign, decode_result
from kvnode.replica.requests import Desk, ReadRequest, WriteRequest
from kvnode.replica.settings import ReplicaSettings
from kvnode.store.commands import Result

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

WRITE_REQUESTS_MAX = 32
READ_REQUESTS_MAX = 2
"""Requests under way to the leader; what comes meanwhile gathers into the next one."""
WRITES_PER_REQUEST_MAX = 1024

_CODES: dict[str, type[NotNow]] = {
    "not_leader": NotLeader,
    "overloaded": Overloaded,
    "leadership_lost": LeadershipLost,
    "timeout": Timeout,
}


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
        self._writes_open = 0
        self._reads_open = 0
        self._put_backs = 0

    def flush(self, leader: NodeId) -> None:
        """Send what waits to the leader, as far as the window allows."""
        desk = self._desk
        while desk.writes and self._writes_open < WRITE_REQUESTS_MAX:
            self._send_writes(leader, self._take_writes())
        if desk.reads and self._reads_open < READ_REQUESTS_MAX:
            reads = list(desk.reads)
            desk.reads.clear()
            self._reads_open += 1
            timeout = self._settings.request_timeout_s

            def answered(index: Any, error: KvnodeError | None) -> None:
                self._reads_open -= 1
                self._read_index_known(reads, index, error)

            self._transport.request(leader, "read_index", None, timeout, answered)

    def _take_writes(self) -> list[WriteRequest]:
        batch: list[WriteRequest] = []
        size = 0
        queue = self._desk.writes
        while queue and len(batch) < WRITES_PER_REQUEST_MAX:
            size += len(queue[0].data)
            if batch and size > self._settings.forward_batch_bytes_max:
                break
            batch.append(queue.popleft())
        return batch

    def _send_writes(self, leader: NodeId, batch: list[WriteRequest]) -> None:
        self._writes_open += 1

        def answered(answers: Any, error: KvnodeError | None) -> None:
            self._writes_open -= 1
            put_backs = self._put_backs
            if error is None and not _is_answer_list(answers, len(batch)):
                error = RemoteProtocolError("the leader's answer has the wrong form")
            if error is not None:
                self._batch_failed(batch, error)
            else:
                for request, answer in zip(batch, answers, strict=True):
                    self._settle(request, answer)
            if self._put_backs == put_backs:
                self._on_progress()

        payload = [request.data for request in batch]
        timeout = self._settings.request_timeout_s
        self._transport.request(leader, "write", payload, timeout, answered)

    def _settle(self, request: WriteRequest, answer: Any) -> None:
        code, *rest = answer
        if code == "ok":
            try:
                self._desk.finish(request, decode_result(rest[0]))
            except (RemoteProtocolError, IndexError, TypeError) as error:
                unknown = Timeout(f"the leader's answer is unreadable: {error}")
                self._desk.finish(request, None, unknown)
            return
        text, took_effect = str(rest[0]), rest[1]
        if code == "not_leader" and took_effect == "no":
            self._put_back(request)
            return
        kind = _CODES.get(code, Timeout)
        if kind is NotLeader:
            kind = LeadershipLost
        effect = "no" if took_effect == "no" else "unknown"
        self._desk.finish(request, None, kind(text, took_effect=effect))  # type: ignore[arg-type]

    def _batch_failed(self, batch: list[WriteRequest], error: KvnodeError) -> None:
        safe = isinstance(error, NotNow) and error.took_effect == "no"
        for request in reversed(batch):
            if safe:
                self._put_back(request, first=True)
            else:
                text = f"the leader could not be heard; the outcome is unknown ({error})"
                failure: KvnodeError = (
                    PeerUnreachable(text, took_effect="unknown")
                    if isinstance(error, PeerUnreachable)
                    else Timeout(text, took_effect="unknown")
                )
                self._desk.finish(request, None, failure)

    def _put_back(self, request: WriteRequest, *, first: bool = False) -> None:
        """Certainly not appended: wait for a leader again, until the deadline."""
        self._put_backs += 1
        if first:
            self._desk.writes.appendleft(request)
        else:
            self._desk.writes.append(request)

    def _read_index_known(
        self, reads: list[ReadRequest], index: Any, error: KvnodeError | None
    ) -> None:
        if error is not None or type(index) is not int or index < 0:
            self._desk.reads.extendleft(reversed(reads))
        else:
            for read in reads:
                self._desk.park(Index(index), read)
            self._on_progress()


def _is_answer_list(answers: Any, count: int) -> bool:
    return (
        isinstance(answers, (list, tuple))
        and len(answers) == count
        and all(isinstance(a, (list, tuple)) and len(a) in (2, 3) for a in answers)
        and all(len(a) == 3 or a[0] == "ok" for a in answers)
    )


# -- the leader's end -----------------------------------------------------------------------------


def serve_writes(
    replica: Replica,
    payload: Any,
    reply: Callable[[Any], None],
    fail: Callable[[KvnodeError], None],
) -> None:
    """Propose a follower's batch; answer when every write of it has an outcome."""
    if not isinstance(payload, (list, tuple)) or not 0 < len(payload) <= WRITES_PER_REQUEST_MAX:
        fail(RemoteProtocolError("a forwarded batch has the wrong form"))
        return
    limit = replica.settings.command_bytes_max
    try:
        commands = [decode_foreign(data, limit) for data in payload]
    except RemoteProtocolError as error:
        fail(error)
        return
    answers: list[Any] = [None] * len(payload)
    missing = len(payload)

    def answered(position: int, result: Result | None, error: KvnodeError | None) -> None:
        nonlocal missing
        answers[position] = _answer(result, error)
        missing -= 1
        if missing == 0:
            reply(answers)

    for position, (command, data) in enumerate(zip(commands, payload, strict=True)):
        replica.take_write(
            command,
            data,
            partial(answered, position),
            hopped=True,
        )


def _answer(result: Result | None, error: KvnodeError | None) -> Sequence[Any]:
    if error is None:
        return ("ok", result)
    effect = error.took_effect if isinstance(error, NotNow) else "unknown"
    for code, kind in _CODES.items():
        if isinstance(error, kind):
            return (code, str(error), effect)
    if effect == "no":
        return ("not_leader", str(error), effect)
    return ("timeout", str(error), effect)

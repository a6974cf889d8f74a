"""Where requests come in, and from where each turn takes them on: to the core, or to the leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvnode.errors import DiskNearlyFull, KvnodeError, NoLeader, NotLeader, NotNow, Overloaded
from kvnode.ports import Done
from kvnode.raft.types import Index
from kvnode.replica.check_timers import REPORTS
from kvnode.replica.codec import encode
from kvnode.replica.facade import Consistency, ReadView
from kvnode.replica.requests import IN_CORE, ReadRequest, WriteRequest
from kvnode.store.commands import Command, KvLock, Result, Txn, adds_data
from kvnode.store.own_commands import KvPut, Once

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica


_JUDGED = frozenset({KvLock, Txn, KvPut, Once})
"""Commands that may lock keys."""


class Intake:
    """Admits requests to the desk and flushes the desk, turn by turn."""

    def __init__(self, replica: Replica) -> None:
        """Admit everybody."""
        self._replica = replica
        self.closing = False
        """The node is about to stop: open requests are finished, new ones refused (RC-57)."""

    # -- in ---------------------------------------------------------------------------------------

    def write(self, command: Command, done: Done[Result]) -> None:
        """Replicate one command; see ``ReplicaFacade.write``."""
        self.take_write(command, encode(command), done, hopped=False)

    def take_write(
        self, command: Command, data: bytes, done: Done[Result], *, hopped: bool
    ) -> None:
        """Queue a write for this turn."""
        replica = self._replica
        if replica.write_refusal and adds_data(command):
            error = DiskNearlyFull(replica.write_refusal)
            replica.scheduler.call_soon(done, None, error)
            return
        deadline = replica.scheduler.time() + replica.settings.leader_wait_s
        self._admit(WriteRequest(command, data, done, deadline, hopped=hopped))

    def read(self, consistency: Consistency, done: Done[ReadView]) -> None:
        """Wait until the store may be read; see ``ReplicaFacade.read``."""
        if consistency is Consistency.STALE:
            replica = self._replica
            age_ms = replica.contact.age_ms(replica.is_leader)
            view = ReadView(replica.raft.leader_id is not None, age_ms)
            replica.scheduler.call_soon(done, view, None)
        else:
            self.take_read(done, hopped=False)

    def take_read(self, done: Done[Any], *, hopped: bool) -> None:
        """Queue a linearizable read (or a peer's question for a read index) for this turn."""
        replica = self._replica
        deadline = replica.scheduler.time() + replica.settings.leader_wait_s
        self._admit(ReadRequest(done, deadline, hopped=hopped))

    def _admit(self, request: WriteRequest | ReadRequest) -> None:
        replica = self._replica
        error: KvnodeError
        if replica.stopped or self.closing:
            error = NoLeader("this node is stopping")
        else:
            try:
                replica.desk.admit(request)
            except NotNow as refusal:
                error = refusal
            else:
                replica.wake()
                return
        replica.scheduler.call_soon(request.done, None, error)

    # -- on ---------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Give the core, or the leader, everything that waits."""
        replica = self._replica
        desk, raft = replica.desk, replica.raft
        if not (desk.writes or desk.reads):
            return
        if replica.is_leader and not raft.is_transferring:
            if desk.writes:
                self._propose()
            for read in desk.take_reads(IN_CORE):
                raft.read_index(read)
            return
        leader = raft.leader_id if not replica.is_leader else None
        desk.fail_hopped(lambda: NotLeader(leader))
        if leader is not None and replica.transport.connected().get(leader):
            replica.forwarder.flush(leader)

    def _propose(self) -> None:
        replica = self._replica
        desk = replica.desk
        batch = desk.take_writes()
        data = [request.data for request in batch]
        if any(type(request.command) in _JUDGED for request in batch):
            batch, data = self._judge(batch)
            if not batch:
                return
        try:
            last = replica.raft.propose(data)
        except Overloaded as error:
            for request in batch:
                desk.finish(request, None, error)
            return
        deadline = replica.scheduler.time() + replica.settings.request_timeout_s
        first = last.index - len(batch) + 1
        for offset, request in enumerate(batch):
            request.deadline = deadline
            desk.proposed(Index(first + offset), last.term, request)
            if type(request.command) in REPORTS:
                replica.registrar.timers.appended(request.command, first + offset)

    def propose_first(self, command: Command, done: Done[Result]) -> None:
        """Append a command of the leader's own at once, before everything that waits.

        What this leader's clock decided stands in the log right behind what the decision knew of: were it
        to wait in the queue, it would come behind a report that had come in time.
        """
        replica = self._replica
        raft, desk = replica.raft, replica.desk
        deadline = replica.scheduler.time() + replica.settings.request_timeout_s
        # As if a peer had forwarded it: it must not be carried on to another leader, whose clock has
        # just begun (RC-61).
        request = WriteRequest(command, encode(command), done, deadline, hopped=True)
        try:
            desk.admit(request, queued=False)
        except NotNow as error:
            replica.scheduler.call_soon(done, None, error)
            return
        try:
            position = raft.propose([request.data])
        except NotNow as error:
            desk.finish(request, None, error)
            return
        desk.proposed(position.index, position.term, request)
        replica.wake()

    def _judge(self, batch: list[WriteRequest]) -> tuple[list[WriteRequest], list[bytes]]:
        """Let the leader's clock decide which locks may be proposed (RC-62); answer the others.

        Returns:
            The requests that remain, and the data to propose for each.
        """
        replica = self._replica
        kept: list[WriteRequest] = []
        data: list[bytes] = []
        for request in batch:
            command = request.command
            if isinstance(command, (KvLock, Txn, KvPut, Once)):
                verdict = replica.sessions.delays.judge(command)
                if isinstance(verdict, Result):
                    replica.desk.finish(request, verdict)
                    continue
                request.command = verdict
                data.append(encode(verdict))
            else:
                data.append(request.data)
            kept.append(request)
        return kept, data

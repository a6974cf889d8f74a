"""The door to the core: inputs one by one, outputs as one ``Ready`` at a time.

The driver's contract, kept in ``kvnode.replica`` and nowhere else::

    while node.has_ready():
        ready = node.ready()
        queue ready.snapshot, ready.hard_state, ready.entries for the disk, in this order
        send ready.messages                      # while the disk works
        apply ready.committed; answer ready.reads; fail ready.failed_reads
        when the disk is done with this Ready: send node.advance(ready)

Several ``Ready`` may be with the disk at a time; ``advance`` is called for each, in order. If saving
fails the node stops: a replica that forgot its vote is worse than a dead one (RC-8).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, assert_never

from kvnode.errors import InvariantBroken, NotLeader, Overloaded
from kvnode.raft import confchange, election, read_index, replication
from kvnode.raft.core import Core, RaftConfig, Randomness, Tracer
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from kvnode.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    LogId,
    Membership,
    NodeId,
    Role,
    SnapshotMeta,
    Term,
)


class ReadState(NamedTuple):
    """Reads that are linearizable once everything up to ``index`` is applied here (thesis §6.4)."""

    index: Index  # type: ignore[assignment]  # a field, not tuple.index
    reads: list[object]


@dataclass(slots=True, kw_only=True)
class Ready:
    """One turn's outstanding work."""

    snapshot: SnapshotMeta | None
    """Reset the log to start after it and load its state; it is durable already."""
    hard_state: HardState | None
    """To be saved, when it changed."""
    entries: tuple[Entry, ...]
    """To be saved; the first may replace entries that were saved before."""
    messages: list[Message]
    """To be sent at once."""
    committed: tuple[Entry, ...]
    """To be applied, in order. They are durable here and on a majority."""
    reads: list[ReadState]
    failed_reads: list[object]
    """Leadership was lost: retry elsewhere (RC-32)."""
    held: list[Message] = field(default_factory=list)
    """Leave through ``RawNode.advance``; not for the driver."""

    @property
    def needs_disk(self) -> bool:
        """Whether ``advance`` must wait for the disk; else it is not called at all."""
        return bool(self.snapshot or self.hard_state or self.entries or self.held)


class RawNode:
    """One Raft node without I/O."""

    def __init__(
        self,
        config: RaftConfig,
        *,
        hard_state: HardState,
        base: LogId,
        membership: Membership,
        entries: Sequence[Entry],
        applied_index: Index,
        random: Randomness,
        tracer: Tracer = lambda _event, _fields: None,
    ) -> None:
        """Wake up with what the disk holds.

        Args:
            config: Settings.
            hard_state: Term and vote; ``HardState(0, None)`` on a new node.
            base: Where the log begins.
            membership: In force at ``base``.
            entries: The log after ``base``.
            applied_index: What the store has applied, ``base.index … last_index``.
            random: Seeded generator for election time-outs.
            tracer: Hears changes of state.

        Raises:
            InvariantBroken: The pieces do not fit together: something on the disk was lost.
        """
        log = RaftLog(base, membership, entries)
        if not base.index <= applied_index <= log.last_index:
            raise InvariantBroken(
                f"the store has applied {applied_index}, but the log holds "
                f"{log.first_index} to {log.last_index}"
            )
        if log.last.term > hard_state.term:
            raise InvariantBroken(f"the log ends at {log.last}, after term {hard_state.term}")
        # What was applied had been committed (RC-6).
        log.commit_index = log.applied_index = applied_index
        self._core = Core(config, hard_state, log, random, tracer)
        self._handed_state = hard_state
        self._outstanding: deque[Ready] = deque()

    # -- looking ------------------------------------------------------------------------------

    @property
    def id(self) -> NodeId:
        """This node."""
        return self._core.id

    @property
    def term(self) -> Term:
        """Current term."""
        return self._core.term

    @property
    def vote(self) -> NodeId | None:
        """Whom this node voted for in the current term."""
        return self._core.vote

    @property
    def role(self) -> Role:
        """Current role."""
        return self._core.role

    @property
    def leader_id(self) -> NodeId | None:
        """Who leads the current term, as far as known."""
        return self._core.leader_id

    @property
    def log(self) -> RaftLog:
        """The log, to look at only."""
        return self._core.log

    @property
    def membership(self) -> Membership:
        """The newest membership in the log."""
        return self._core.membership

    @property
    def is_transferring(self) -> bool:
        """Whether leadership is being handed over, so that proposals are refused."""
        return self._core.transfer_to is not None

    @property
    def has_term_commit(self) -> bool:
        """Leader: whether this term's no-op is committed (RC-22)."""
        core = self._core
        return core.role is Role.LEADER and core.log.commit_index >= core.term_start

    @property
    def read_load(self) -> int:
        """Number of reads that wait for a round."""
        core = self._core
        return len(core.waiting_reads) + sum(len(reads) for _, _, reads in core.open_rounds)

    def match_index(self, node: NodeId) -> Index:
        """Leader: how far a member is known to hold our log; 0 when unknown."""
        core = self._core
        if node == core.id:
            return core.log.stable_index
        progress = core.progress.get(node)
        return progress.match_index if progress else Index(0)

    def reachable(self) -> frozenset[NodeId]:
        """Leader: members heard within an election time-out, itself included; else empty."""
        return election.reachable(self._core) if self.role is Role.LEADER else frozenset()

    def ticks_since_heard(self, node: NodeId) -> int:
        """Leader: ticks since a member was last heard; 0 for itself and strangers."""
        progress = self._core.progress.get(node)
        return self._core.tick_count - progress.heard_tick if progress else 0

    def heard_since(self, tick: int) -> frozenset[NodeId]:
        """Leader: members heard in a tick after ``tick`` (of ``ticks``), itself included; else empty."""
        core = self._core
        if core.role is not Role.LEADER:
            return frozenset()
        heard = {node for node, progress in core.progress.items() if progress.heard_tick > tick}
        return frozenset(heard | {core.id})

    @property
    def ticks(self) -> int:
        """Ticks since the start."""
        return self._core.tick_count

    def progress_state(self, node: NodeId) -> str:
        """Leader: how entries are sent to a member: probe, replicate, snapshot; else empty."""
        progress = self._core.progress.get(node)
        return progress.state.value if progress else ""

    # -- inputs -------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        core = self._core
        core.tick_count += 1
        if core.role is not Role.LEADER:
            election.tick_follower(core)
            return
        election.tick_transfer(core)
        election.check_quorum(core)
        if self.role is Role.LEADER and core.tick_count % core.config.heartbeat_ticks == 0:
            replication.send_heartbeats(core)
            replication.probe_stalled(core)

    def campaign(self) -> None:
        """Start an election now instead of waiting for the time-out."""
        if self.role is Role.FOLLOWER and self._core.may_campaign:
            election.campaign(self._core)

    def propose(self, commands: Sequence[bytes]) -> LogId:
        """Append commands, in order.

        Returns:
            The last one's position; the first is ``len(commands) - 1`` before it, in the same term.

        Raises:
            NotLeader: Nothing was appended. Also while leadership is being handed over.
            Overloaded: Nothing was appended: too many bytes wait for a quorum (RC-67).
        """
        core = self._core
        if core.role is not Role.LEADER:
            raise NotLeader(core.leader_id)
        if core.transfer_to is not None:
            raise NotLeader(None)
        if core.uncommitted_bytes >= core.config.uncommitted_bytes_max:
            raise Overloaded("too many bytes wait for a quorum")
        return core.append([(EntryKind.COMMAND, command) for command in commands])

    def propose_membership(self, new: Membership) -> LogId:
        """Append a new membership; see ``confchange.propose``."""
        position = confchange.propose(self._core, new)
        # It is in effect at once; the voter that an open round waits for may be gone with it.
        read_index.confirm_rounds(self._core)
        return position

    def read_index(self, read: object) -> None:
        """Leader: confirm leadership for a read; it comes back in ``Ready.reads`` or ``failed_reads``.

        Raises:
            NotLeader: This node does not lead.
        """
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader_id)
        self._core.waiting_reads.append(read)

    def transfer_leadership(self, target: NodeId) -> None:
        """Leader: hand over to another voter. Ends in a new leader or after an election time-out.

        Raises:
            NotLeader: This node does not lead.
        """
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader_id)
        election.start_transfer(self._core, target)

    def spread_commit(self) -> None:
        """Leader: tell followers the commit index if no other message has."""
        if self.role is Role.LEADER:
            replication.spread_commit(self._core)

    def report_unreachable(self, node: NodeId) -> None:
        """The connection to a member broke; messages on it may be lost.

        When it was the leader's, its process has probably ended: stop vouching for it to others, and
        let the time-out run out sooner. If it lives, its next heartbeat takes that back, and the poll
        before an election protects it meanwhile (thesis §9.6).
        """
        replication.report_unreachable(self._core, node)
        election.suspect_leader(self._core, node)

    def report_snapshot(self, node: NodeId, reached: Index | None) -> None:
        """A snapshot stream to a member ended, see ``replication.report_snapshot``."""
        replication.report_snapshot(self._core, node, reached)

    def compact(self, index: Index) -> tuple[LogId, Membership]:
        """Forget log entries up to ``index`` (<= applied, and synced by the store: RC-10).

        Returns:
            The new base and the membership in force there, for the disk.
        """
        base = self._core.log.compact(index)
        return base, self._core.log.membership_at(base.index)

    # -- messages -----------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take in one message. Any order, doubled, late by minutes: all is fine (RC-27)."""
        core = self._core
        if message.to != core.id:
            return
        if message.term > core.term and not self._adopt_term(message):
            return
        if message.term < core.term and not isinstance(message, PreVote):
            self._answer_old_term(message)
            return
        self._handle(message)

    def _adopt_term(self, message: Message) -> bool:
        """A higher term makes the node a follower of it first (RC-13). False: ignore the message."""
        core = self._core
        match message:
            case PreVote():
                return True
            case PreVoteReply() if message.granted:
                return True
            case Vote() if not message.transfer and election.has_heard_leader(core):
                # A leader is alive: do not let a node that lost touch disturb it (thesis §4.2.3).
                return False
            case _:
                from_leader = isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)
                core.become_follower(message.term, message.sender if from_leader else None)
                return True

    def _answer_old_term(self, message: Message) -> None:
        """Let a leader of an older term learn ours, so that nobody stays stranded (RC-18)."""
        core = self._core
        if isinstance(message, AppendEntries | Heartbeat):
            core.send(HeartbeatReply(core.id, message.sender, core.term, 0))

    def _handle(self, message: Message) -> None:
        core = self._core
        match message:
            case PreVote():
                election.handle_pre_vote(core, message)
            case PreVoteReply():
                election.handle_pre_vote_reply(core, message)
            case Vote():
                election.handle_vote(core, message)
            case VoteReply():
                election.handle_vote_reply(core, message)
            case AppendEntries():
                self._hear_leader(message.sender)
                replication.handle_append(core, message)
            case Heartbeat():
                self._hear_leader(message.sender)
                replication.handle_heartbeat(core, message)
            case InstallSnapshot():
                self._hear_leader(message.sender)
                replication.handle_install_snapshot(core, message)
            case AppendEntriesReply():
                replication.handle_append_reply(core, message)
                self._after_progress()
            case HeartbeatReply():
                replication.handle_heartbeat_reply(core, message)
                read_index.confirm_rounds(core)
            case TimeoutNow():
                election.handle_timeout_now(core, message)
            case _:
                assert_never(message)

    def _hear_leader(self, leader: NodeId) -> None:
        """A valid message of this term's leader."""
        core = self._core
        if core.role is Role.LEADER:
            raise InvariantBroken(f"{leader} and {core.id} both lead term {core.term}")
        if core.role is not Role.FOLLOWER or core.leader_id != leader:
            core.become_follower(core.term, leader)
        core.elapsed = 0

    def _after_progress(self) -> None:
        core = self._core
        if core.role is Role.LEADER:
            confchange.after_commit(core)
        if core.role is Role.LEADER:
            election.advance_transfer(core)

    # -- outputs ------------------------------------------------------------------------------

    def has_ready(self, *, apply: bool = True) -> bool:
        """Whether ``ready`` would hand out anything; ``apply`` as there."""
        core = self._core
        log = core.log
        return bool(
            core.messages
            or core.held_messages
            or core.pending_snapshot
            or core.confirmed_reads
            or core.failed_reads
            or log.handed_index < log.last_index
            or self._handed_state != (core.term, core.vote)
            or (apply and min(log.commit_index, log.stable_index) > log.applied_index)
            or (core.waiting_reads and not core.open_rounds and self.has_term_commit)
            or replication.has_appends(core)
        )

    def ready(self, *, apply: bool = True) -> Ready:
        """Hand out the outstanding work.

        Args:
            apply: False while the store cannot take entries (a snapshot is being loaded).
        """
        core = self._core
        if core.role is Role.LEADER:
            read_index.start_round(core)
            replication.send_appends(core)
        state = HardState(core.term, core.vote)
        entries: tuple[Entry, ...] = ()
        writes = core.log.handed_index < core.log.last_index
        ready = Ready(
            snapshot=core.pending_snapshot,
            hard_state=state if state != self._handed_state else None,
            entries=entries,
            messages=core.messages,
            committed=core.log.take_committed(core.config.apply_bytes_max) if apply else (),
            reads=[ReadState(index, reads) for index, reads in core.confirmed_reads],
            failed_reads=core.failed_reads,
            held=core.held_messages,
        )
        core.messages, core.held_messages = [], []
        core.confirmed_reads, core.failed_reads = [], []
        core.pending_snapshot = None
        self._handed_state = state
        if writes or ready.needs_disk:
            ready.entries = core.log.hand_out()
            self._outstanding.append(ready)
        return ready

    def advance(self, ready: Ready) -> list[Message]:
        """The disk has done everything that ``ready`` asked, and all before it.

        Returns:
            Messages that may leave now.
        """
        core = self._core
        assert self._outstanding, "advance without a Ready"
        assert self._outstanding[0] is ready, "advance out of order"
        self._outstanding.popleft()
        core.log.stable_to()
        if ready.hard_state is not None:
            core.durable = ready.hard_state
            election.own_vote_durable(core)
        if core.role is Role.LEADER and replication.advance_commit(core):
            self._after_progress()
        return [message for message in ready.held if self._still_meant(message)]

    def _still_meant(self, message: Message) -> bool:
        """Votes and acknowledgements of a term that has passed help nobody: leave them out."""
        if isinstance(message, VoteReply | Vote | AppendEntriesReply):
            return message.term == self.term
        return True

    # -- for invariants and status --------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Plain values for logs and checkers."""
        log = self.log
        return {
            "node": self.id,
            "role": self.role.value,
            "term": self.term,
            "leader": self.leader_id or "",
            "base": str(log.base),
            "applied": log.applied_index,
            "commit": log.commit_index,
            "stable": log.stable_index,
            "last": str(log.last),
            "uncommitted_bytes": self._core.uncommitted_bytes,
        }

"""The state of one node, and its changes of role.

The protocol's parts (``election``, ``replication``, ``read_index``, ``confchange``) are functions
over this state, so that each can be read beside its section of the paper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvnode.raft.log import RaftLog, entry_bytes
from kvnode.raft.messages import AppendEntriesReply, Message
from kvnode.raft.progress import Progress
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

Tracer = Callable[[str, dict[str, Any]], None]
"""Hears each change of state: a past-tense name and plain values. Must not call back."""


class Randomness(Protocol):
    """The part of ``random.Random`` that the core uses."""

    def randrange(self, start: int, stop: int) -> int:
        """A number in ``[start, stop)``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """Settings of one core. All bounds are per node."""

    node_id: NodeId
    election_ticks: int = 20
    """Time-outs are drawn from ``[election_ticks, 2 * election_ticks)`` (RC-14)."""
    heartbeat_ticks: int = 2
    """A leader's heartbeat interval; well below ``election_ticks``."""
    append_bytes_max: int = 1 << 20
    """Entries in one AppendEntries (one entry always fits)."""
    inflight_messages_max: int = 128
    inflight_bytes_max: int = 8 << 20
    """Window of AppendEntries under way to one follower (RC-68)."""
    uncommitted_bytes_max: int = 64 << 20
    """Entries that a leader holds without a quorum, before it refuses proposals (RC-67)."""
    apply_bytes_max: int = 4 << 20
    """Entries handed out for applying in one ``Ready``."""

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_ticks < self.election_ticks


class Core:
    """One node's state: the fields of Raft fig. 2 and what the extensions need."""

    def __init__(
        self,
        config: RaftConfig,
        hard_state: HardState,
        log: RaftLog,
        random: Randomness,
        tracer: Tracer,
    ) -> None:
        """Wake up as a follower with what the disk holds."""
        self.config = config
        self.id = config.node_id
        self.log = log
        self.trace = tracer
        self.random = random

        self.term: Term = hard_state.term
        self.vote: NodeId | None = hard_state.vote
        self.durable = hard_state
        """The newest hard state known to be on disk."""

        self.role = Role.FOLLOWER
        self.leader_id: NodeId | None = None
        self.tick_count = 0
        self.elapsed = 0
        """Ticks since the last valid leader message, granted vote or own campaign."""
        self.timeout = 0
        self.votes: dict[NodeId, bool] = {}

        self.progress: dict[NodeId, Progress] = {}
        """Leader only: every other member."""
        self.term_start: Index = Index(0)
        """Leader only: index of this term's no-op (RC-22)."""
        self.uncommitted_bytes = 0
        self.transfer_to: NodeId | None = None
        self.transfer_elapsed = 0

        self.read_round = 0
        self.waiting_reads: list[object] = []
        """Reads without a round yet; they may wait for the term's no-op."""
        self.open_rounds: deque[tuple[int, Index, list[object]]] = deque()
        """Rounds begun and not confirmed: number, read index, reads."""
        self.confirmed_reads: list[tuple[Index, list[object]]] = []
        self.failed_reads: list[object] = []

        self.messages: list[Message] = []
        """May leave at once."""
        self.held_messages: list[Message] = []
        """May leave only when everything decided so far is durable."""
        self.pending_snapshot: SnapshotMeta | None = None
        self.redraw_timeout()

    # -- who takes part -----------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        """In effect as soon as it is appended, for votes and commit alike (thesis §4.1, RC-42)."""
        return self.log.membership

    @property
    def is_voter(self) -> bool:
        """Whether this node counts (RC-20)."""
        return self.id in self.membership.voters

    @property
    def may_campaign(self) -> bool:
        """Whether this node may start an election: a voter, or one whose removal is not committed.

        The latter may be the only one that holds the removal: when the leader of two removes itself,
        the other one cannot win against the longer log (thesis §4.2.2). It does not count itself.
        """
        log = self.log
        return self.is_voter or (
            log.membership_index > log.commit_index
            and self.id in log.membership_at(log.commit_index).voters
        )

    @property
    def is_state_durable(self) -> bool:
        """Whether the disk holds the current term and vote, so that anything may be said (RC-2)."""
        return self.durable == (self.term, self.vote)

    def other_voters(self) -> list[NodeId]:
        """Voters without this node, in a fixed order."""
        return [node for node in sorted(self.membership.voters) if node != self.id]

    # -- sending ------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message: to leave now, or once everything decided so far is durable.

        RC-2: any message says "my term is …", so the term and the vote must be durable. RC-3: an
        accepting reply says "I hold …", so the entries must be too. Everything else, above all a
        leader's AppendEntries, leaves while the disk still works (RC-4, thesis §10.2.1).
        """
        entries_durable = (
            not isinstance(message, AppendEntriesReply)
            or message.rejected
            or message.match_index <= self.log.stable_index
        )
        may_leave = self.is_state_durable and entries_durable
        (self.messages if may_leave else self.held_messages).append(message)

    # -- roles --------------------------------------------------------------------------------

    def redraw_timeout(self) -> None:
        """Draw a new election time-out (Raft §5.2)."""
        ticks = self.config.election_ticks
        self.timeout = self.random.randrange(ticks, 2 * ticks)

    def become_follower(self, term: Term, leader_id: NodeId | None) -> None:
        """Follow in ``term``. A term never falls; a vote is forgotten only with its term."""
        assert term >= self.term, "a term never falls"
        was_leader = self.role is Role.LEADER
        changed = (self.role, self.term, self.leader_id) != (Role.FOLLOWER, term, leader_id)
        if term > self.term:
            self.term = term
            self.vote = None
        if self.role is not Role.FOLLOWER:
            # Its own time-out has nothing to do with the new leader's; a follower keeps its clock,
            # since only a leader's message or a granted vote may restart it (RC-14).
            self.elapsed = 0
            self.redraw_timeout()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.votes = {}
        if was_leader:
            self._drop_leadership()
        if changed:
            self.trace(
                "became_follower",
                {"term": self.term, "index": self.log.last_index, "leader": leader_id or ""},
            )

    def become_pre_candidate(self) -> None:
        """Ask around without raising the term (thesis §9.6)."""
        assert self.role is not Role.LEADER
        self.role = Role.PRE_CANDIDATE
        self.leader_id = None
        self.votes = {self.id: True}
        self.elapsed = 0
        self.redraw_timeout()
        self.trace("became_pre_candidate", {"term": self.term, "index": self.log.last_index})

    def become_candidate(self) -> None:
        """Campaign in the next term. The own vote counts once it is durable (RC-2)."""
        assert self.role is not Role.LEADER
        self.role = Role.CANDIDATE
        self.leader_id = None
        self.term = Term(self.term + 1)
        self.vote = self.id
        self.votes = {}
        self.elapsed = 0
        self.redraw_timeout()
        self.trace("became_candidate", {"term": self.term, "index": self.log.last_index})

    def become_leader(self) -> None:
        """Lead in the current term, beginning with a no-op (RC-22)."""
        assert self.role is Role.CANDIDATE
        votes = sum(self.votes.values())
        self.role = Role.LEADER
        self.leader_id = self.id
        self.votes = {}
        self.elapsed = 0
        self.read_round = 0
        self.progress = {}
        self.track_members(Index(self.log.last_index + 1))
        self.uncommitted_bytes = self.log.bytes_after(self.log.commit_index)
        self.append([(EntryKind.NOOP, b"")])
        self.term_start = self.log.last_index
        self.trace(
            "became_leader", {"term": self.term, "index": self.log.last_index, "votes": votes}
        )

    def _drop_leadership(self) -> None:
        """Forget everything that only a leader knows; waiting reads fail as retryable (RC-32)."""
        self.progress = {}
        self.transfer_to = None
        self.uncommitted_bytes = 0
        self.failed_reads.extend(self.waiting_reads)
        for _, _, reads in self.open_rounds:
            self.failed_reads.extend(reads)
        for _, reads in self.confirmed_reads:
            # Confirmed but not handed out yet: a leader change wins (RC-32).
            self.failed_reads.extend(reads)
        self.waiting_reads = []
        self.open_rounds.clear()
        self.confirmed_reads = []

    def track_members(self, next_index: Index) -> None:
        """Leader: keep one ``Progress`` per other member; new ones begin at ``next_index``."""
        wanted = [node for node in self.membership.nodes() if node != self.id]
        for node in wanted:
            if node not in self.progress:
                self.progress[node] = Progress(next_index, self.tick_count)
        for node in [known for known in self.progress if known not in wanted]:
            del self.progress[node]
        if self.transfer_to is not None and self.transfer_to not in self.membership.voters:
            self.transfer_to = None

    # -- appending ----------------------------------------------------------------------------

    def append(self, items: Sequence[tuple[EntryKind, bytes]]) -> LogId:
        """Leader: append new entries of the current term. Returns the last one's position."""
        assert self.role is Role.LEADER
        for kind, data in items:
            entry = Entry(Index(self.log.last_index + 1), self.term, kind, data)
            self.log.append(entry)
            self.uncommitted_bytes += entry_bytes(entry)
        return self.log.last

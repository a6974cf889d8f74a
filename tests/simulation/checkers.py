"""What must be true after every event, whatever happened before (RC section 1, section 11).

``Invariants`` watches the whole cluster from outside. It is told what each disk holds durably
(``disk_*``), sees each message leave (``sending``) and looks at a core after each event that touched
it (``observe``). Everything is incremental: the work per event does not grow with the log.

- Election Safety: one leader per term, ever.  One vote per node and term, ever.
- Log Matching: an (index, term) has one content and one predecessor, on every disk.
- Leader Completeness: a new leader holds every committed entry.
- State Machine Safety: a committed entry never changes; applied digests are equal at equal indexes.
- Commit rule: when an entry is committed first, a majority of the voters holds it durably; a
  learner's copy or an unsynced one does not count. A leader counts entries of its own term only.
- Persisted before said: no message leaves that the sender's disk does not bear out (RC-1 … RC-3).
- Term, commit and applied index never fall; memberships differ by one voter from one to the next.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
)
from kvnode.raft.rawnode import RawNode
from kvnode.raft.types import Entry, EntryKind, HardState, Index, LogId, Membership, NodeId, Role


class Violation(AssertionError):
    """The cluster broke a promise."""


class Shape(NamedTuple):
    """What is remembered of an entry: enough to tell it from any other."""

    term: int
    kind: int
    digest: int


def shape_of(entry: Entry) -> Shape:
    """Term, kind and checksum of an entry."""
    return Shape(entry.term, int(entry.kind), zlib.crc32(entry.data))


@dataclass
class DurableLog:
    """What one incarnation's disk is known to hold."""

    term: int = 0
    vote: NodeId | None = None
    base: LogId = field(default_factory=lambda: LogId(0, 0))  # type: ignore[arg-type]
    terms: list[int] = field(default_factory=list)
    """Term of each entry from ``base.index + 1`` on."""

    @property
    def last_index(self) -> int:
        """Index of the last durable entry."""
        return self.base.index + len(self.terms)

    def term_at(self, index: int) -> int | None:
        """Term of the durable entry; None when compacted or not there."""
        if index == self.base.index:
            return self.base.term
        position = index - self.base.index - 1
        return self.terms[position] if 0 <= position < len(self.terms) else None


@dataclass
class _Seen:
    """What was last seen of one life of a node."""

    term: int = 0
    commit: int = 0
    applied: int = 0
    role: Role = Role.FOLLOWER


class Invariants:
    """See the module."""

    def __init__(self) -> None:
        self.leaders: dict[int, NodeId] = {}
        self.votes: dict[tuple[int, NodeId], NodeId] = {}
        self.entries: dict[tuple[int, int], tuple[Shape, int]] = {}
        """(index, term) -> content and the term before it."""
        self.committed: list[Shape] = [Shape(0, 0, 0)]
        """By index; position 0 is "before the log"."""
        self.commit_terms: list[int] = [0]
        """By index: the term of the leader that committed it. Never falls."""
        self.digests: dict[int, tuple[str, NodeId]] = {}
        self.disks: dict[NodeId, DurableLog] = {}
        self.membership: Membership | None = None
        """The newest committed one."""
        self.checked = 0
        self.on_committed: Callable[[Entry], None] = lambda _entry: None
        """Called for each entry when it is committed first."""
        self.core_of: Callable[[NodeId], RawNode | None] = lambda _node: None
        """The core of a node that runs now."""
        self._lost: dict[NodeId, list[DurableLog]] = {}
        """What disks held before an old copy took their place."""
        self._memberships: dict[bytes, Membership] = {}
        """Decoded once."""
        self._seen: dict[NodeId, _Seen] = {}
        self._writing: dict[NodeId, set[tuple[int, int]]] = {}
        """(index, term) of the entries that each disk was writing last."""

    @property
    def frontier(self) -> int:
        """The highest index known to be committed anywhere."""
        return len(self.committed) - 1

    # -- the disks ----------------------------------------------------------------------------

    def disk(self, node: NodeId) -> DurableLog:
        """The known content of a node's disk."""
        found = self.disks.get(node)
        if found is None:
            found = self.disks[node] = DurableLog()
        return found

    def forget_disk(self, node: NodeId) -> None:
        """An old copy of the volume came back. What the node said and voted is still true (RC-54).

        What it had acknowledged still counts where a majority is counted, as that of a node whose volume
        was lost does: who leads next without it is found by ``_complete``.
        """
        old = self.disks.pop(node, None)
        if old is not None:
            self._lost.setdefault(node, []).append(old)

    def disk_hard_state(self, node: NodeId, state: HardState) -> None:
        """A hard state is durable now."""
        disk = self.disk(node)
        if state.term < disk.term:
            raise Violation(f"{node}: durable term fell from {disk.term} to {state.term}")
        disk.term, disk.vote = state.term, state.vote
        if state.vote is not None:
            self._voted(node, state.term, state.vote)

    def disk_writing(self, node: NodeId, entries: Iterable[Entry]) -> None:
        """Entries are about to be written: a crash may leave them, or what came before."""
        self._writing.setdefault(node, set()).update((e.index, e.term) for e in entries)

    def disk_entries(self, node: NodeId, entries: tuple[Entry, ...] | list[Entry]) -> None:
        """Entries are durable now; the first may replace others."""
        disk = self.disk(node)
        self._writing.pop(node, None)
        for entry in entries:
            position = entry.index - disk.base.index - 1
            if position < 0:
                continue
            if position > len(disk.terms):
                raise Violation(f"{node}: entry {entry.id} was saved after a gap")
            before = disk.term_at(entry.index - 1)
            assert before is not None
            replaced = disk.term_at(entry.index)
            committed = self.committed[entry.index].term if entry.index <= self.frontier else None
            if replaced is not None and entry.term != replaced == committed:
                raise Violation(f"{node}: committed entry {entry.index} was overwritten")
            del disk.terms[position:]
            disk.terms.append(entry.term)
            known = self.entries.setdefault((entry.index, entry.term), (shape_of(entry), before))
            if known != (shape_of(entry), before):
                raise Violation(f"{node}: log matching: {entry.id} has two contents")

    def disk_base(self, node: NodeId, base: LogId, *, reset: bool) -> None:
        """The log now starts after ``base``: entries up to it are gone, or all of them."""
        disk = self.disk(node)
        if base.index > self.frontier or self.committed[base.index].term != base.term:
            raise Violation(f"{node}: log starts at {base}, which is not committed")
        keep = 0 if reset else max(0, disk.last_index - base.index)
        disk.terms = disk.terms[len(disk.terms) - keep :] if keep else []
        disk.base = base

    # -- what is said -------------------------------------------------------------------------

    def sending(self, message: Message) -> None:
        """A message leaves: the sender's disk must bear it out."""
        node = message.sender
        disk = self.disk(node)
        match message:
            case PreVote():
                said = message.term - 1
            case PreVoteReply() if message.granted:
                said = 0
            case _:
                said = message.term
        if said > disk.term:
            raise Violation(f"{node} says term {said}, its disk {disk.term}: {message!r:.200}")
        match message:
            case Vote():
                self._must_have_voted(disk, node, message.term, node)
            case VoteReply() if message.granted:
                self._must_have_voted(disk, node, message.term, message.to)
            case AppendEntriesReply() if not message.rejected:
                self._must_hold(disk, message)
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                self._leads(node, message.term)
            case _:
                pass

    def _must_have_voted(self, disk: DurableLog, node: NodeId, term: int, whom: NodeId) -> None:
        if disk.term == term and disk.vote != whom:
            raise Violation(f"{node} says it voted for {whom} in {term}, its disk: {disk.vote}")
        self._voted(node, term, whom)

    def _must_hold(self, disk: DurableLog, message: AppendEntriesReply) -> None:
        if message.term != disk.term:
            return  # A late message of an older term: it was checked by content when it was made.
        if message.match_index > disk.last_index:
            raise Violation(
                f"{message.sender} acknowledges {message.match_index}, "
                f"its disk ends at {disk.last_index}"
            )
        leader = self.core_of(message.to)
        if leader is None or leader.role is not Role.LEADER or leader.term != message.term:
            return
        log, index = leader.log, message.match_index
        ours = disk.term_at(index)
        if index > log.last_index or (
            index > log.base.index and ours is not None and log.term_at(index) != ours
        ):
            raise Violation(
                f"{message.sender} acknowledges {index}@{ours}, but its leader's log ends at "
                f"{log.last} and has {log.term_at(index)} there"
            )

    def _voted(self, node: NodeId, term: int, whom: NodeId) -> None:
        first = self.votes.setdefault((term, node), whom)
        if first != whom:
            raise Violation(f"{node} voted twice in term {term}: {first} and {whom}")

    def _leads(self, node: NodeId, term: int) -> None:
        first = self.leaders.setdefault(term, node)
        if first != node:
            raise Violation(f"term {term} has two leaders: {first} and {node}")

    # -- what is done -------------------------------------------------------------------------

    def recovered(
        self, node: NodeId, hard_state: HardState, base: LogId, entries: Sequence[Entry]
    ) -> None:
        """A life begins with what its disk gave back: at least what it is known to hold.

        A write that was under way may have replaced the tail; then all that differs is what it wrote.
        """
        disk, writing = self.disks.get(node), self._writing.pop(node, set())
        if disk is not None:
            fresh = DurableLog(hard_state.term, hard_state.vote, base, [e.term for e in entries])
            self._nothing_lost(node, disk, fresh, writing)
            if disk.base.index < base.index:
                self.disk_base(node, base, reset=disk.term_at(base.index) != base.term)
        else:
            self.disks[node] = DurableLog(base=base)
        self.disk_hard_state(node, hard_state)
        self.disk_entries(node, tuple(entries))
        self._seen[node] = _Seen(term=hard_state.term)

    def began(self, node: NodeId, base: LogId, last_index: int) -> None:
        """A life goes on from its log, or from a received snapshot beyond it: a whole one on the disk counts
        as much as the log that it is about to reset (RC-37).
        """
        disk = self.disk(node)
        if last_index < disk.last_index:
            raise Violation(
                f"{node} begins with a log up to {last_index}; its disk held {disk.last_index}"
            )
        if disk.base.index < base.index:
            self.disk_base(node, base, reset=True)

    @staticmethod
    def _nothing_lost(
        node: NodeId, disk: DurableLog, fresh: DurableLog, writing: set[tuple[int, int]]
    ) -> None:
        vote_kept = fresh.vote == disk.vote or disk.vote is None or fresh.term > disk.term
        if fresh.term < disk.term or not vote_kept:
            raise Violation(
                f"{node} woke up with term {fresh.term}, vote {fresh.vote}; "
                f"it had {disk.term}, {disk.vote}"
            )
        for index in range(max(fresh.base.index, disk.base.index + 1), disk.last_index + 1):
            held, had = fresh.term_at(index), disk.term_at(index)
            assert had is not None
            if held == had:
                continue
            found = ((i, fresh.term_at(i)) for i in range(index, fresh.last_index + 1))
            if held is None or not all(entry in writing for entry in found):
                raise Violation(
                    f"{node} lost durable entry {index}@{had}; it woke up with {held} there, "
                    f"and its log ends at {fresh.last_index}"
                )
            return

    def observe(self, node: NodeId, raw: RawNode) -> None:
        """Look at a core after an event that touched it."""
        self.checked += 1
        seen = self._seen.get(node)
        if seen is None:
            seen = self._seen[node] = _Seen(term=raw.term)
        log = raw.log
        if (
            raw.term < seen.term
            or log.commit_index < seen.commit
            or (log.applied_index < seen.applied)
        ):
            raise Violation(f"{node} went back: {seen} to {raw.describe()}")
        if raw.role is Role.LEADER and (seen.role is not Role.LEADER or seen.term != raw.term):
            self._leads(node, raw.term)
            self._complete(node, raw)
        self._in_force(node, raw)
        if log.commit_index > seen.commit:
            self._commits(node, raw, seen.commit)
        seen.term, seen.role = raw.term, raw.role
        seen.commit, seen.applied = log.commit_index, log.applied_index

    def _in_force(self, node: NodeId, raw: RawNode) -> None:
        """The membership in force is the log's newest, committed or not, and goes with its entry."""
        log, index = raw.log, raw.log.membership_index
        if index == log.base.index:
            return
        entries = log.slice(index, Index(index + 1), 1 << 62) if index <= log.last_index else ()
        if not entries or entries[0].kind != EntryKind.MEMBERSHIP:
            raise Violation(f"{node} goes by a membership of {index}, which its log does not hold")
        known = self._memberships.get(entries[0].data)
        if known is None:
            known = self._memberships[entries[0].data] = Membership.decode(entries[0].data)
        if known != log.membership:
            raise Violation(f"{node} goes by another membership than entry {entries[0].id}")

    def _complete(self, node: NodeId, raw: RawNode) -> None:
        """Leader Completeness; by Log Matching the last committed entry stands for all."""
        # A candidate that wakes up late may still win an older term: it owes nothing to later ones.
        index = bisect_left(self.commit_terms, raw.term) - 1
        if raw.log.base.index < index:
            held = raw.log.term_at(Index(index))
            if held != self.committed[index].term:
                raise Violation(f"{node} leads term {raw.term} without committed entry {index}")

    def _commits(self, node: NodeId, raw: RawNode, before: int) -> None:
        log = raw.log
        start = max(before, log.base.index)
        if log.base.index > self.frontier:
            raise Violation(f"{node} starts after {log.base}, which nobody committed")
        if start >= log.commit_index:
            return
        entries = log.slice(start + 1, log.commit_index + 1, 1 << 62)  # type: ignore[arg-type]
        news = False
        for entry in entries:
            if entry.index <= self.frontier:
                if self.committed[entry.index] != shape_of(entry):
                    raise Violation(
                        f"{node} committed {entry.id}, but {self.committed[entry.index]} "
                        f"was committed at {entry.index}"
                    )
                continue
            news = True
            self.committed.append(shape_of(entry))
            self.commit_terms.append(max(raw.term, self.commit_terms[-1]))
            if entry.kind == EntryKind.MEMBERSHIP:
                self._new_membership(Membership.decode(entry.data))
            self.on_committed(entry)
        if news:
            self._durable_on_majority(node, raw)
            if raw.role is Role.LEADER and entries[-1].term != raw.term:
                raise Violation(
                    f"{node} leads {raw.term} and committed {entries[-1].id} by counting"
                )

    def _new_membership(self, new: Membership) -> None:
        old = self.membership
        if old is not None and old.voters and len(old.voters ^ new.voters) > 1:
            raise Violation(f"memberships jump from {sorted(old.voters)} to {sorted(new.voters)}")
        self.membership = new

    def _durable_on_majority(self, node: NodeId, raw: RawNode) -> None:
        index = raw.log.commit_index
        term = raw.log.term_at(index)
        for membership in (raw.log.membership_at(index), raw.log.membership):
            held = [
                voter
                for voter in membership.voters
                if any(
                    disk.term_at(index) == term or disk.base.index > index
                    for disk in (self.disk(voter), *self._lost.get(voter, ()))
                )
            ]
            if 2 * len(held) > len(membership.voters):
                return
        raise Violation(f"{node} committed {index}@{term}, which no majority holds durably")

    def applied(self, node: NodeId, index: int, digest: str) -> None:
        """The digest of a node's state after it applied ``index``."""
        first = self.digests.setdefault(index, (digest, node))
        if first[0] != digest:
            raise Violation(
                f"states differ at {index}: {first[1]} has {first[0]}, {node} has {digest}"
            )


class NoInvariants(Invariants):
    """For a process that must not be heard: what it believes is its own affair."""

    def recovered(self, *_: object) -> None:
        """Believe it."""

    disk_hard_state = disk_entries = disk_writing = sending = observe = applied = began = recovered

    def disk_base(self, *_: object, **__: object) -> None:
        """Believe it."""

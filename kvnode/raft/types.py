"""The vocabulary of the core: identities, positions, entries, membership.

Everything here is a value: immutable, comparable, without I/O. ``Entry`` and ``LogId`` are named
tuples and not dataclasses because they are made for every record on the hot path and travel as plain
arrays on the wire and on disk.
"""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from typing import NamedTuple, NewType

NodeId = NewType("NodeId", str)
"""Identity of a node: its incarnation id, made once per data directory. Never an address or reused."""

Term = NewType("Term", int)
"""Election number, from 0 (Raft §5.1)."""

Index = NewType("Index", int)
"""Position in the log; the first entry is 1, and 0 means "before the log" (Raft §5.3)."""


class LogId(NamedTuple):
    """A position and the term of the entry there. Printed ``42@7``."""

    index: Index  # type: ignore[assignment]  # a field, not tuple.index
    term: Term

    def __str__(self) -> str:
        return f"{self.index}@{self.term}"


ZERO = LogId(Index(0), Term(0))
"""The position before the first entry."""


class Role(Enum):
    """What a node does in its current term (Raft §5.1, thesis §9.6)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class EntryKind(IntEnum):
    """What an entry's data means. The numbers are written to disk: never reuse one."""

    NOOP = 0
    """Appended by each new leader, empty (RC-22)."""
    COMMAND = 1
    """Opaque to the core; the store's business."""
    MEMBERSHIP = 2
    """``Membership.encode()``; takes effect when appended (thesis §4.1)."""


class Entry(NamedTuple):
    """One record of the log."""

    index: Index  # type: ignore[assignment]  # a field, not tuple.index
    term: Term
    kind: EntryKind
    data: bytes

    @property
    def id(self) -> LogId:
        """The entry's position and term."""
        return LogId(self.index, self.term)


class HardState(NamedTuple):
    """What must be durable before any message that depends on it leaves (Raft fig. 2, RC-1, RC-2).

    The commit index is not part of it: it is volatile here (RC-6) and is learned again from the
    leader, or recovered from the store's applied index.
    """

    term: Term
    vote: NodeId | None


class Member(NamedTuple):
    """A node in the membership, as people know it."""

    node_id: NodeId
    name: str
    """The stable name, e.g. the pod's. A name can come back with another node id."""
    address: str
    """``host:port`` of the peer port when it joined. A hint for dialling, never an identity."""


class Membership(NamedTuple):
    """Who takes part (the thesis calls it "configuration", §4.1).

    ``voters`` and ``learners`` are disjoint; ``members`` has one record for each of both, ordered by
    node id. ``removed`` lists incarnations that were removed and may never come back (RC-47), oldest
    first, at most ``REMOVED_MAX``. ``read_replicas`` are those learners that never become voters.
    ``kept_out`` are names that are not let in again for so many seconds, counted by each node from when it
    learns of it; the leader takes a name off when its time is over.
    """

    voters: frozenset[NodeId] = frozenset()
    learners: frozenset[NodeId] = frozenset()
    members: tuple[Member, ...] = ()
    removed: tuple[NodeId, ...] = ()
    read_replicas: frozenset[NodeId] = frozenset()
    kept_out: tuple[tuple[str, int], ...] = ()

    def member(self, node_id: NodeId) -> Member | None:
        """Return the record of a node, or None."""
        for member in self.members:
            if member.node_id == node_id:
                return member
        return None

    def by_name(self, name: str) -> Member | None:
        """Return a member with this name; a voter before a learner when a replacement is under way."""
        found = [m for m in self.members if m.name == name]
        found.sort(key=lambda m: (m.node_id not in self.voters, m.node_id))
        return found[0] if found else None

    def nodes(self) -> list[NodeId]:
        """All members, voters and learners, in one fixed order."""
        return sorted(self.voters | self.learners)

    def with_learner(self, member: Member, *, read_replica: bool = False) -> Membership:
        """The membership after ``member`` joined as a learner; a read replica stays one."""
        members = tuple(sorted((*(m for m in self.members if m.node_id != member.node_id), member)))
        lasting = self.read_replicas | ({member.node_id} if read_replica else frozenset())
        return self._replace(
            learners=self.learners | {member.node_id}, members=members, read_replicas=lasting
        )

    def with_voter(self, node_id: NodeId) -> Membership:
        """The membership after a learner was promoted."""
        return self._replace(
            voters=self.voters | {node_id},
            learners=self.learners - {node_id},
            read_replicas=self.read_replicas - {node_id},
        )

    def without(self, node_id: NodeId) -> Membership:
        """The membership after a node was removed; its id goes onto the ``removed`` list."""
        return Membership(
            voters=self.voters - {node_id},
            learners=self.learners - {node_id},
            members=tuple(m for m in self.members if m.node_id != node_id),
            removed=(*(r for r in self.removed if r != node_id), node_id)[-REMOVED_MAX:],
            read_replicas=self.read_replicas - {node_id},
            kept_out=self.kept_out,
        )

    def keeping_out(self, name: str, seconds: int) -> Membership:
        """The membership with a name that stays out for so long; 0: that may come in."""
        others = tuple(kept for kept in self.kept_out if kept[0] != name)
        mine = ((name, seconds),) if seconds else ()
        return self._replace(kept_out=tuple(sorted((*others, *mine)))[:KEPT_OUT_MAX])

    def encode(self) -> bytes:
        """One spelling per value, so that equal memberships are equal bytes."""
        value: dict[str, object] = {
            "voters": sorted(self.voters),
            "learners": sorted(self.learners),
            "members": [list(m) for m in self.members],
            "removed": list(self.removed),
        }
        if self.read_replicas:  # absent in what older builds wrote, and without any
            value["read_replicas"] = sorted(self.read_replicas)
        if self.kept_out:
            value["kept_out"] = [list(kept) for kept in self.kept_out]
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes) -> Membership:
        """Inverse of ``encode``.

        Raises:
            ValueError: The bytes are no membership. (``KeyError``, ``TypeError`` and the
                ``RecursionError`` of a deep nesting are mapped.)
        """
        try:
            value = json.loads(data)
            return Membership(
                voters=frozenset(NodeId(str(v)) for v in value["voters"]),
                learners=frozenset(NodeId(str(v)) for v in value["learners"]),
                members=tuple(
                    Member(NodeId(str(i)), str(n), str(a)) for i, n, a in value["members"]
                ),
                removed=tuple(NodeId(str(v)) for v in value["removed"]),
                read_replicas=frozenset(NodeId(str(v)) for v in value.get("read_replicas", ())),
                kept_out=tuple((str(n), int(s)) for n, s in value.get("kept_out", ())),
            )
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a membership: {error}") from error


KEPT_OUT_MAX = 100
"""Bound on the list of names that are kept out."""

REMOVED_MAX = 1000
"""Bound on the list of removed incarnations."""


class SnapshotMeta(NamedTuple):
    """What a snapshot replaces: the log up to ``last``, with the membership in force there (RC-36)."""

    last: LogId
    membership: Membership

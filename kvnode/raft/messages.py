"""The wire vocabulary of Raft: one named tuple per message.

Every message starts with ``sender``, ``to`` and ``term``. Except for ``PreVote`` and granted
``PreVoteReply``, ``term`` is the sender's current term and has been durable since before the message
left (RC-2). The order of the fields is the order on the wire.
"""

from __future__ import annotations

from typing import NamedTuple

from kvnode.raft.types import Entry, Index, LogId, NodeId, SnapshotMeta, Term


class PreVote(NamedTuple):
    """Would you vote for me in ``term``? Changes nothing at either end (thesis §9.6)."""

    sender: NodeId
    to: NodeId
    term: Term
    """The term that the sender would campaign in: its own + 1."""
    last: LogId
    """Last entry of the sender's log (Raft §5.4.1)."""


class PreVoteReply(NamedTuple):
    """Answer to ``PreVote``."""

    sender: NodeId
    to: NodeId
    term: Term
    """The request's term when granted, the replier's own when refused."""
    granted: bool


class Vote(NamedTuple):
    """Vote for me in ``term`` (Raft §5.2)."""

    sender: NodeId
    to: NodeId
    term: Term
    last: LogId
    transfer: bool
    """Set when the leader asked for this election, so that stickiness does not refuse it (RC-19)."""


class VoteReply(NamedTuple):
    """Answer to ``Vote``; sent only once the vote is durable (RC-2)."""

    sender: NodeId
    to: NodeId
    term: Term
    granted: bool


class AppendEntries(NamedTuple):
    """Entries that follow ``prev`` (Raft §5.3). May be empty: a probe."""

    sender: NodeId
    to: NodeId
    term: Term
    prev: LogId
    entries: tuple[Entry, ...]
    commit_index: Index


class AppendEntriesReply(NamedTuple):
    """How far the sender's durable log is known to match the leader's (RC-3)."""

    sender: NodeId
    to: NodeId
    term: Term
    prev_index: Index
    """``prev.index`` of the request that this answers; tells late refusals from current ones."""
    rejected: bool
    match_index: Index
    """Accepted: the last index proven to match and durable. Refused: where a search may go on: no
    entry after it can match (RC-26)."""
    hint_term: Term
    """Refused: the replier's term at ``match_index``; 0 otherwise."""


class Heartbeat(NamedTuple):
    """The leader is alive (Raft §5.2). Carries no entries and never waits behind any (RC-69)."""

    sender: NodeId
    to: NodeId
    term: Term
    commit_index: Index
    """At most the receiver's ``match_index`` (RC-25)."""
    read_round: int
    """Number of the newest ReadIndex round, 0 before the first; rises within a term (RC-31)."""


class HeartbeatReply(NamedTuple):
    """Confirms the sender's leadership for every round up to ``read_round``."""

    sender: NodeId
    to: NodeId
    term: Term
    read_round: int


class InstallSnapshot(NamedTuple):
    """Replace your state by this snapshot (thesis §5.1).

    The leader's core emits it to say "stream one"; the driver streams its newest state, and the
    receiver's driver steps this message into its core once the whole stream is durable on its disk.
    """

    sender: NodeId
    to: NodeId
    term: Term
    meta: SnapshotMeta


class TimeoutNow(NamedTuple):
    """Campaign at once: leadership is being handed to you (thesis §3.10)."""

    sender: NodeId
    to: NodeId
    term: Term


Message = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | AppendEntries
    | AppendEntriesReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | TimeoutNow
)

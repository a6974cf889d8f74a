"""Membership changes: one voter at a time, with guards (thesis §4.1, §4.2; RC-42 to RC-46).

A change is one log entry that holds the whole new membership. It is in effect as soon as it is
appended, for votes and commit alike, and is rolled back with the log. Joint consensus is not needed:
majorities of memberships that differ by one voter always overlap.
"""

from __future__ import annotations

from kvnode.errors import MembershipRefused, NotLeader
from kvnode.raft import election
from kvnode.raft.core import Core
from kvnode.raft.quorum import has_majority
from kvnode.raft.types import EntryKind, LogId, Membership, Role


def propose(core: Core, new: Membership) -> LogId:
    """Append a new membership.

    Returns:
        The position of its entry.

    Raises:
        NotLeader: This node does not lead.
        MembershipRefused: A guard refused; the text says which. Nothing was appended.
    """
    if core.role is not Role.LEADER or core.transfer_to is not None:
        raise NotLeader(core.leader_id if core.role is not Role.LEADER else None)
    _guard(core, new)
    position = core.append([(EntryKind.MEMBERSHIP, new.encode())])
    core.track_members(position.index)
    core.trace(
        "membership_changed",
        {
            "term": core.term,
            "index": position.index,
            "voters": sorted(new.voters),
            "learners": sorted(new.learners),
        },
    )
    return position


def _guard(core: Core, new: Membership) -> None:
    old = core.membership
    if core.log.commit_index < core.term_start:
        # Two leaders could otherwise split the cluster (Ongaro, raft-dev 2015; RC-43).
        raise MembershipRefused("this term has no committed entry yet")
    if core.log.membership_index > core.log.commit_index:
        raise MembershipRefused("another membership change is not committed yet")
    if len(old.voters ^ new.voters) > 1:
        raise MembershipRefused("only one voter can change at a time")
    if not new.voters:
        raise MembershipRefused("the last voter cannot be removed")
    if new.voters & new.learners:
        raise MembershipRefused("a node is either a voter or a learner")
    if not new.read_replicas <= new.learners:
        raise MembershipRefused("a read replica is a learner")
    if {m.node_id for m in new.members} != new.voters | new.learners:
        raise MembershipRefused("every member needs a record")
    if (new.voters | new.learners) & frozenset(old.removed):
        raise MembershipRefused("a removed incarnation cannot come back")
    if old.voters != new.voters and not has_majority(new.voters, election.answering(core)):
        # RC-45: never change into a membership that cannot commit anything.
        raise MembershipRefused("the reachable voters would be no majority afterwards")


def after_commit(core: Core) -> None:
    """Leader: a removed leader leads until its removal is committed, then steps down (RC-46)."""
    committed = core.log.commit_index >= core.log.membership_index
    if core.role is Role.LEADER and committed and not core.is_voter:
        core.trace("stepped_down_removed", {"term": core.term})
        election.name_successor(core)
        core.become_follower(core.term, None)

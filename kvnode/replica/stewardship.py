"""The leader's care for the membership: admit, promote, replace, remove (design §5, RC-42 to RC-49).

Everything goes through the log, one change at a time, under the core's guards. Nothing here acts on
discovery or on silence alone: a member leaves because an operator says so, or because a new
incarnation of the same name has caught up in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError, MembershipRefused, NotLeader
from kvnode.raft.types import Member, Membership, NodeId, Role

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

Answer = Callable[[Any, KvnodeError | None], None]

JOIN_TIMEOUT_S = 5.0


class Steward:
    """Runs on every node; acts only while it leads."""

    def __init__(self, replica: Replica) -> None:
        """Nothing under way."""
        self._replica = replica
        self._caught_up_since: dict[NodeId, float] = {}

    # -- every tick of upkeep ---------------------------------------------------------------------

    def run(self, now: float) -> None:
        """One round: promote what has caught up, then drop what was replaced."""
        raft = self._replica.raft
        if raft.role is not Role.LEADER or not raft.has_term_commit:
            self._caught_up_since.clear()
            return
        if raft.log.membership_index > raft.log.commit_index or raft.is_transferring:
            return
        change = self._next_change(now)
        if change is not None:
            what, node_id, membership = change
            self._replica.trace(what, {"term": raft.term, "member": node_id})
            self._try(membership)

    def _next_change(self, now: float) -> tuple[str, NodeId, Membership] | None:
        membership = self._replica.raft.membership
        for member in membership.members:
            if member.node_id in membership.learners and self._is_ready(member.node_id, now):
                return "learner_promoted", member.node_id, membership.with_voter(member.node_id)
        for member in membership.members:
            if member.node_id in membership.voters and self._is_replaced(member):
                return "replaced_member_removed", member.node_id, membership.without(member.node_id)
        return None

    def _is_ready(self, learner: NodeId, now: float) -> bool:
        """Whether a learner has kept up for long enough (RC-44, thesis §4.2.1)."""
        raft, settings = self._replica.raft, self._replica.settings
        lag = raft.log.last_index - raft.match_index(learner)
        near = lag <= settings.promote_lag_entries and raft.progress_state(learner) == "replicate"
        if not near or learner not in raft.reachable():
            self._caught_up_since.pop(learner, None)
            return False
        since = self._caught_up_since.setdefault(learner, now)
        return now - since >= settings.promote_stable_s

    def _is_replaced(self, member: Member) -> bool:
        """Whether a newer incarnation of the same name votes in this silent one's place (RC-49)."""
        raft = self._replica.raft
        reachable = raft.reachable()
        return member.node_id not in reachable and any(
            other.name == member.name
            and other.node_id != member.node_id
            and other.node_id in raft.membership.voters
            and other.node_id in reachable
            for other in raft.membership.members
        )

    def _try(self, membership: Membership) -> None:
        try:
            self._replica.raft.propose_membership(membership)
        except (MembershipRefused, NotLeader) as error:
            self._replica.trace("membership_refused", {"reason": str(error)})
        self._replica.wake()

    # -- asked by others ----------------------------------------------------------------------------

    def join(self, member: Member, done: Answer) -> None:
        """Admit a node as a learner; answers when that is committed.

        The answer is the leader's id. Errors: ``NotLeader``, ``MembershipRefused`` (try again).
        """
        raft = self._replica.raft
        if raft.role is not Role.LEADER:
            done(None, NotLeader(raft.leader_id))
            return
        membership = raft.membership
        if raft.membership.member(member.node_id) is not None:
            done(raft.id, None)
            return
        namesake = membership.by_name(member.name)
        if namesake is not None and namesake.node_id in raft.reachable():
            text = f"a live member is already called {member.name}: two nodes cannot share a name"
            done(None, MembershipRefused(text))
            return
        wanted = membership
        for other in membership.members:
            if other.name == member.name and other.node_id in membership.learners:
                wanted = wanted.without(other.node_id)
        self._change(wanted.with_learner(member), "learner_added", member.node_id, done)

    def remove(self, node_id: NodeId, done: Answer) -> None:
        """Remove a member; answers when that is committed."""
        raft = self._replica.raft
        if raft.role is not Role.LEADER:
            done(None, NotLeader(raft.leader_id))
        elif raft.membership.member(node_id) is None:
            done(None, MembershipRefused(f'id "{node_id}" was not found in the Raft configuration'))
        else:
            self._change(raft.membership.without(node_id), "member_removed", node_id, done)

    def _change(self, membership: Membership, what: str, node_id: NodeId, done: Answer) -> None:
        replica = self._replica
        try:
            position = replica.raft.propose_membership(membership)
        except (MembershipRefused, NotLeader) as error:
            done(None, error)
            return
        replica.trace(what, {"term": position.term, "index": position.index, "member": node_id})
        replica.admin.when_committed(
            position, JOIN_TIMEOUT_S, lambda error: done(replica.raft.id, error)
        )
        replica.wake()

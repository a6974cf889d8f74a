"""The leader's care for the membership: admit, promote, replace, remove (design §5, RC-42 to RC-49).

Everything goes through the log, one change at a time, under the core's guards. Nothing here acts on
discovery: a member leaves because an operator says so, because a new incarnation of the same name has caught
up in its place, because its StatefulSet has no place for it (``scaling``), or because it was silent for
very long (``autopilot``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError, MembershipRefused, NotLeader
from kvnode.raft.quorum import has_majority
from kvnode.raft.types import Member, Membership, NodeId, Role
from kvnode.replica.autopilot import NS

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

Answer = Callable[[Any, KvnodeError | None], None]

JOIN_TIMEOUT_S = 5.0
READMIT_S_MAX = 3600.0


class Steward:
    """Runs on every node; acts only while it leads."""

    def __init__(self, replica: Replica) -> None:
        """Nothing under way."""
        self._replica = replica
        self._caught_up_since: dict[NodeId, float] = {}
        self._refusals: dict[NodeId, str] = {}
        self._kept_out_since: dict[str, float] = {}
        """When this node learned of each name that the membership keeps out."""

    # -- several times a second -------------------------------------------------------------------

    def run(self, now: float) -> None:
        """One round: drop what was replaced, then promote what has caught up; one change at a time."""
        raft = self._replica.raft
        names = [name for name, _ in raft.membership.kept_out]
        self._kept_out_since = {name: self._kept_out_since.get(name, now) for name in names}
        if raft.role is not Role.LEADER or not raft.has_term_commit:
            self._caught_up_since.clear()
            return
        self._watch_learners(now)
        if raft.log.membership_index > raft.log.commit_index or raft.is_transferring:
            return
        for what, node_id, membership in self._changes(now):
            if self._propose(what, node_id, membership):
                return

    def _watch_learners(self, now: float) -> None:
        """Since when each learner has kept up without a break (RC-44, thesis §4.2.1)."""
        raft = self._replica.raft
        candidates = raft.membership.learners - raft.membership.read_replicas
        since = {node: self._caught_up_since.get(node, now) for node in candidates}
        self._caught_up_since = {node: at for node, at in since.items() if self._keeps_up(node)}

    def _keeps_up(self, learner: NodeId) -> bool:
        raft, settings = self._replica.raft, self._replica.settings
        lag = raft.log.last_index - raft.match_index(learner)
        near = lag <= settings.promote_lag_entries and raft.progress_state(learner) == "replicate"
        return near and learner in raft.reachable()

    def _changes(self, now: float) -> list[tuple[str, NodeId, Membership]]:
        """What could be done, best first: a guard may refuse the first and allow the next.

        A dead voter that was replaced goes before anybody new counts: it is what a quorum misses.
        """
        raft = self._replica.raft
        membership = raft.membership
        changes = [
            ("replaced_member_removed", member.node_id, membership.without(member.node_id))
            for member in membership.members
            if member.node_id in membership.voters and self._is_replaced(member)
        ]
        stable_s = self._replica.pilot.parameters().server_stabilization_ns / NS
        for node, since in sorted(self._caught_up_since.items()):
            if now - since >= stable_s:
                changes.append(("learner_promoted", node, membership.with_voter(node)))
        changes += [
            ("read_replica_removed", node, membership.without(node))
            for node in sorted(membership.read_replicas)
            if self._is_given_up(node)
        ]
        changes += [
            ("name_let_in_again", raft.id, membership.keeping_out(name, 0))
            for name, _ in membership.kept_out
            if not self._kept_out_s(name)
        ]
        return changes

    def _kept_out_s(self, name: str) -> float:
        """For how much longer a name stays out; 0: it may come in."""
        now = self._replica.scheduler.time()
        for kept, seconds in self._replica.raft.membership.kept_out:
            if kept == name:
                return max(0.0, self._kept_out_since.get(name, now) + seconds - now)
        return 0.0

    def _is_given_up(self, read_replica: NodeId) -> bool:
        """Whether nothing was heard of a read replica for the grace: it costs no vote to remove it."""
        settings = self._replica.settings
        silent_s = self._replica.raft.ticks_since_heard(read_replica) * settings.tick_s
        return 0 < settings.read_replica_grace_s <= silent_s

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

    def _propose(self, what: str, node_id: NodeId, membership: Membership) -> bool:
        replica = self._replica
        try:
            position = replica.raft.propose_membership(membership)
        except (MembershipRefused, NotLeader) as error:
            self.note_refusal(what, node_id, str(error))
            return False
        self._refusals.clear()
        replica.trace(what, {"term": position.term, "index": position.index, "member": node_id})
        replica.wake()
        return True

    def note_refusal(self, what: str, node_id: NodeId, reason: str) -> None:
        """Say once why a change must wait; it is tried again several times a second."""
        if self._refusals.get(node_id) != reason:
            self._refusals[node_id] = reason
            fields = {"wanted": what, "member": node_id, "reason": reason}
            self._replica.trace("membership_refused", fields)

    # -- asked by others ----------------------------------------------------------------------------

    def join(self, member: Member, done: Answer, *, read_replica: bool = False) -> None:
        """Admit a node as a learner, for good if it is a read replica; answers when that is committed.

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
        wait_s = self._kept_out_s(member.name)
        if wait_s > 0:
            text = f"{member.name} was removed to be stopped, and is let in again in {wait_s:.0f} s"
            done(None, MembershipRefused(text))
            return
        namesakes = [m.node_id for m in membership.members if m.name == member.name]
        if raft.reachable().intersection(namesakes):
            text = f"a live member is already called {member.name}: two nodes cannot share a name"
            done(None, MembershipRefused(text))
            return
        wanted = membership.keeping_out(member.name, 0)
        for node in namesakes:
            if node in membership.learners:
                wanted = wanted.without(node)
        wanted = wanted.with_learner(member, read_replica=read_replica)
        what = "read_replica_added" if read_replica else "learner_added"
        self._change(wanted, what, member.node_id, done)

    def remove(self, node_id: NodeId, done: Answer, *, readmit_s: float = 0) -> None:
        """Remove a member; answers when that is committed, at once for one that was removed before.

        Its name stays out for ``readmit_s``: a pod that is removed ahead of its end is started again by
        Kubernetes at once, and would be back before the StatefulSet is smaller.
        """
        raft = self._replica.raft
        if raft.role is not Role.LEADER:
            done(None, NotLeader(raft.leader_id))
        elif self._replica.is_removed(node_id):
            done(raft.id, None)
        elif raft.membership.member(node_id) is None:
            done(None, MembershipRefused(f'id "{node_id}" was not found in the Raft configuration'))
        else:
            kept_s = round(max(0.0, min(readmit_s, READMIT_S_MAX)))
            self._when_spared(node_id, kept_s, raft.ticks, done)

    def _when_spared(self, node_id: NodeId, kept_s: int, asked_at: int, done: Answer) -> None:
        """Remove a member once a majority of who is left has answered after it was asked for.

        The core's guard believes whoever was heard within an election time-out. When several nodes go at
        once, one that has just died could so be counted upon, and the change never be committed.
        """
        replica = self._replica
        raft = replica.raft
        if raft.role is not Role.LEADER or replica.stopped:
            done(None, NotLeader(raft.leader_id))
            return
        left = raft.membership.without(node_id)
        member = raft.membership.member(node_id)
        if kept_s and member is not None:
            left = left.keeping_out(member.name, kept_s)
        unchanged = left.voters == raft.membership.voters
        # Nobody left is for the core to refuse.
        if unchanged or not left.voters or has_majority(left.voters, raft.heard_since(asked_at)):
            self._change(left, "member_removed", node_id, done)
        elif raft.ticks - asked_at > replica.settings.election_ticks:
            text = "the voters that would be left do not answer: without it they are no majority"
            done(None, MembershipRefused(text))
        else:
            pause = replica.settings.tick_s
            replica.scheduler.call_later(pause, self._when_spared, node_id, kept_s, asked_at, done)

    def _change(self, membership: Membership, what: str, node_id: NodeId, done: Answer) -> None:
        replica = self._replica
        try:
            position = replica.raft.propose_membership(membership)
        except (MembershipRefused, NotLeader) as error:
            done(None, error)
            return
        replica.trace(what, {"term": position.term, "index": position.index, "member": node_id})

        def committed(error: KvnodeError | None) -> None:
            done(replica.raft.id if error is None else None, error)

        replica.admin.when_committed(position, JOIN_TIMEOUT_S, committed)
        replica.wake()

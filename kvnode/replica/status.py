"""What a replica says of itself, and since when it heard of whom."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from kvnode.ports import Hello, Scheduler
from kvnode.raft.types import Index, Member, NodeId
from kvnode.replica.facade import MemberStatus, Status

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

GREETERS_MAX = 16


class Contact:
    """When a leader was last heard, in the node's own monotonic time; and who greeted us."""

    def __init__(self, scheduler: Scheduler) -> None:
        """Never heard anybody: counts from now (RC-35)."""
        self._scheduler = scheduler
        self._heard_at = scheduler.time()
        self._lost_at: float | None = self._heard_at
        self._greeters: OrderedDict[NodeId, Hello] = OrderedDict()

    def heard(self) -> None:
        """The current leader spoke."""
        self._heard_at = self._scheduler.time()

    def leader_known(self, known: bool) -> None:
        """Whether a leader is known, as of now."""
        if known:
            self._lost_at = None
            self.heard()
        elif self._lost_at is None:
            self._lost_at = self._scheduler.time()

    def age_ms(self, is_leader: bool) -> int:
        """Milliseconds since the leader was heard; 0 on the leader itself."""
        return 0 if is_leader else max(0, int((self._scheduler.time() - self._heard_at) * 1000))

    def lost_ms(self) -> int:
        """For how long no leader has been known; 0 while one is."""
        if self._lost_at is None:
            return 0
        return max(1, int((self._scheduler.time() - self._lost_at) * 1000))

    def greeted(self, hello: Hello) -> None:
        """A peer of some cluster introduced itself; perhaps of the one that we are about to join."""
        self._greeters[hello.node_id] = hello
        self._greeters.move_to_end(hello.node_id)
        if len(self._greeters) > GREETERS_MAX:
            self._greeters.popitem(last=False)

    def greeters(self, cluster_id: str) -> list[Hello]:
        """Peers of this cluster that introduced themselves."""
        return [h for h in self._greeters.values() if h.cluster_id == cluster_id and cluster_id]


def describe(replica: Replica) -> Status:
    """Collect a ``Status``."""
    raft, log = replica.raft, replica.raft.log
    leader = raft.membership.member(raft.leader_id) if raft.leader_id is not None else None
    reason = (
        replica.reason
        or replica.comparison.alarm
        or replica.write_refusal
        or replica.receiver.progress
        or replica.scaling.problem
        or _role_differs(replica)
    )
    if not replica.cluster_id and not reason:
        reason = replica.formation.reason
    return Status(
        node_id=raft.id,
        name=replica.transport.hello.name,
        cluster_id=replica.cluster_id,
        role=raft.role,
        term=raft.term,
        leader_id=raft.leader_id,
        leader_name=leader.name if leader else "",
        leader_address=shown_address(replica, leader) if leader else "",
        commit_index=log.commit_index,
        applied_index=Index(replica.store.applied_index),
        last_index=log.last_index,
        last_term=log.last.term,
        first_index=log.first_index,
        snapshot_index=log.base.index,
        snapshot_term=log.base.term,
        last_contact_ms=replica.contact.age_ms(replica.is_leader),
        leader_lost_ms=replica.contact.lost_ms(),
        catch_up_index=replica.catch_up_index,
        voters=len(raft.membership.voters),
        members=tuple(_member(replica, member) for member in raft.membership.members),
        state=replica.state,
        reason=reason,
    )


def shown_address(replica: Replica, member: Member) -> str:
    """Where a member is now, for people and for the registry.

    Nobody introduces itself to itself, so the book knows of us only where we joined.
    """
    own = member.node_id == replica.raft.id
    return replica.transport.hello.address if own else replica.book.address(member)


def _role_differs(replica: Replica) -> str:
    """Say so when the setting is not what the node joined as: only a node that joins anew changes that."""
    membership, own = replica.raft.membership, replica.raft.id
    wanted = replica.settings.read_replica
    if membership.member(own) is None or wanted == (own in membership.read_replicas):
        return ""
    differs = "no read replica, and was told to be one"
    if not wanted:
        differs = "a read replica, and was not told to be one"
    return (
        f"this node is {differs}: it stays what it joined as. To change that, remove it (kvnode operator "
        "raft remove-peer) and start it again"
    )


def _member(replica: Replica, member: Member) -> MemberStatus:
    raft = replica.raft
    own = member.node_id == raft.id
    hello = replica.transport.hello if own else replica.book.heard(member.node_id)
    return MemberStatus(
        node_id=member.node_id,
        name=member.name,
        address=shown_address(replica, member),
        http_address=hello.http_address if hello is not None else "",
        voter=member.node_id in raft.membership.voters,
        leader=member.node_id == raft.leader_id,
        connected=own or bool(replica.transport.connected().get(member.node_id)),
        match_index=raft.match_index(member.node_id) if replica.is_leader else Index(0),
        read_replica=member.node_id in raft.membership.read_replicas,
    )

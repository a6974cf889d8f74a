"""Whom to stay connected with, and looking for those who cannot be reached (RC-53, RC-56)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.errors import KvnodeError
from kvnode.raft.types import Membership, NodeId

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica


class PeerFinder:
    """Keeps the transport's list of peers and their candidate addresses true."""

    def __init__(self, replica: Replica) -> None:
        """Know nobody."""
        self._replica = replica
        self._looking = False
        self._next_look = 0.0
        self._peers: dict[NodeId, tuple[str, ...]] = {}

    def look(self, now: float) -> None:
        """While a member cannot be reached, ask discovery for more addresses (RC-53)."""
        replica = self._replica
        if self._looking or now < self._next_look or not replica.cluster_id:
            return
        if not replica.settings.has_discovery:
            return
        connected = replica.transport.connected()
        membership = replica.raft.membership
        needed = [n for n in self._peers if membership.member(n) is not None] or list(self._peers)
        if needed and all(connected.get(node) for node in needed):
            return
        self._looking = True

        def found(addresses: list[str] | None, _error: KvnodeError | None) -> None:
            self._looking = False
            pause = replica.settings.discovery_interval_s * (1 + 2 * replica.rng.random())
            self._next_look = replica.scheduler.time() + pause
            if addresses and not replica.stopped:
                replica.book.seeds = list(addresses)
                self.refresh()

        replica.discover(found)

    def refresh(self) -> None:
        """Tell the transport whom to stay connected with, and where they may be found."""
        replica = self._replica
        membership = replica.raft.membership
        wanted = set(membership.voters | membership.learners)
        pledge = replica.formation.pledge
        if pledge is not None:
            wanted |= {member.node_id for member in pledge.members}
            membership = Membership(members=pledge.members)
        else:
            # Our membership may be old, or not there yet: a leader, or a candidate, that we do not know
            # as a member needs our answers all the same (RC-20). Those who were removed do not.
            greeters = {hello.node_id for hello in replica.contact.greeters(replica.cluster_id)}
            wanted |= greeters - frozenset(membership.removed)
        wanted.discard(replica.raft.id)
        peers = {
            node: replica.book.candidates(node, membership, replica.transport.hello.address)
            for node in sorted(wanted)
        }
        if peers != self._peers:
            self._peers = peers
            replica.transport.set_peers(peers)

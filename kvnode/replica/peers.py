"""Whom to stay connected with, and looking for those who cannot be reached (RC-53, RC-56)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError
from kvnode.raft.types import Membership, NodeId

if TYPE_CHECKING:
    from kvnode.replica.addresses import AddressBook
    from kvnode.replica.replica import Replica

WHERE_MAX = 64
"""Nodes asked for in one question."""
WHERE_TIMEOUT_S = 1.0


class PeerFinder:
    """Keeps the transport's list of peers and their candidate addresses true."""

    def __init__(self, replica: Replica) -> None:
        """Know nobody."""
        self._replica = replica
        self._looking = False
        self._next_look = 0.0
        self._peers: dict[NodeId, tuple[str, ...]] = {}

    def look(self, now: float) -> None:
        """While a member cannot be reached, ask the others and discovery for addresses (RC-53)."""
        replica = self._replica
        if self._looking or now < self._next_look or not replica.cluster_id:
            return
        connected = replica.transport.connected()
        membership = replica.raft.membership
        needed = [n for n in self._peers if membership.member(n) is not None] or list(self._peers)
        missing = [node for node in needed if not connected.get(node)]
        if needed and not missing:
            return
        self._ask(missing, [node for node in needed if connected.get(node)])
        if not replica.settings.has_discovery:
            self._next_look = now + self._pause()
            return
        self._looking = True

        def found(addresses: list[str] | None, _error: KvnodeError | None) -> None:
            self._looking = False
            self._next_look = replica.scheduler.time() + self._pause()
            if addresses and not replica.stopped:
                replica.book.seeds = list(addresses)
                self.refresh()
                self._knock(addresses)

        replica.discover(found)

    def _knock(self, addresses: list[str]) -> None:
        """A node that was let in and has not heard of anybody since asks to be let in again.

        Its log is empty, so it knows no member to dial, and was removed perhaps before anybody dialled it:
        whoever is asked says so (RC-47). For a member the answer changes nothing.
        """
        replica = self._replica
        if replica.raft.membership.members or any(replica.transport.connected().values()):
            return
        address = replica.rng.choice(addresses)
        payload = replica.formation.join_payload()
        timeout = replica.settings.leader_wait_s
        replica.transport.request_address(
            address, "join", payload, timeout, lambda _value, _error: None
        )

    def _pause(self) -> float:
        return self._replica.settings.discovery_interval_s * (1 + 2 * self._replica.rng.random())

    def _ask(self, missing: list[NodeId], connected: list[NodeId]) -> None:
        """Ask one of those we see where those are that we do not see: it may have heard from them."""
        replica = self._replica
        if not missing or not connected:
            return

        def answered(value: Any, error: KvnodeError | None) -> None:
            if error is None and not replica.stopped and _take(replica.book, missing, value):
                self.refresh()

        payload = [str(node) for node in missing[:WHERE_MAX]]
        asked = replica.rng.choice(connected)
        replica.transport.request(asked, "where", payload, WHERE_TIMEOUT_S, answered)

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
            # as a member needs our answers all the same (RC-20). Those who were removed do not; but a
            # removal that is not committed may be one that just this leader is going to take back (RC-42).
            greeters = {hello.node_id for hello in replica.contact.greeters(replica.cluster_id)}
            log = replica.raft.log
            wanted |= greeters - frozenset(log.membership_at(log.commit_index).removed)
        wanted.discard(replica.raft.id)
        peers = {
            node: replica.book.candidates(node, membership, replica.transport.hello.address)
            for node in sorted(wanted)
        }
        if peers != self._peers:
            self._peers = peers
            replica.transport.set_peers(peers)


def where(book: AddressBook, payload: Any) -> list[list[Any]] | None:
    """Answer ``where``: node id, boot number and address of those asked for that were heard of here.

    Returns None when the question has the wrong form.
    """
    if not isinstance(payload, (list, tuple)) or len(payload) > WHERE_MAX:
        return None
    if not all(isinstance(node, str) for node in payload):
        return None
    heard = [book.heard(NodeId(node)) for node in payload]
    return [[hello.node_id, hello.boot, hello.address] for hello in heard if hello is not None]


def _take(book: AddressBook, asked: list[NodeId], answer: Any) -> bool:
    """Note what another node heard; what does not answer the question is dropped. Returns news."""
    news = False
    for row in answer if isinstance(answer, (list, tuple)) else ():
        match row:
            case [str(node), int(boot), str(address)] if node in asked and 0 < len(address) <= 512:
                news |= book.tell(NodeId(node), boot, address)
            case _:
                continue
    return news

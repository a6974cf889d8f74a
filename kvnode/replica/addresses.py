"""Where peers may be found: a book of hints, never of identities (RC-53).

Sources, best first: what discovery names after the member, what the peer itself said when it last
introduced itself (to us, or to somebody who told us: two nodes that moved while they did not see each
other have no other way), what the membership remembers from the day it joined, and any other address
that discovery gave. A connection to the wrong node is noticed by its introduction and costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict

from kvnode.ports import Hello
from kvnode.raft.types import Member, Membership, NodeId

CANDIDATES_MAX = 16
KNOWN_MAX = 1024


def host_label(address: str) -> str:
    """First label of an address's host: ``kvnode-1`` of ``kvnode-1.kvnode.default.svc:8300``."""
    return address.rsplit(":", 1)[0].split(".", 1)[0]


class AddressBook:
    """Hints about addresses, bounded."""

    def __init__(self) -> None:
        """Know nobody."""
        self._heard: OrderedDict[NodeId, Hello] = OrderedDict()
        self._told: OrderedDict[NodeId, tuple[int, str]] = OrderedDict()
        """Boot number and address that others heard, where they are newer than what we heard."""
        self.seeds: list[str] = []
        """What discovery answered last, in its order."""

    def learn(self, hello: Hello) -> bool:
        """Remember an introduction. Returns whether it brought anything new."""
        known = self._heard.pop(hello.node_id, None)
        self._heard[hello.node_id] = hello
        if len(self._heard) > KNOWN_MAX:
            self._heard.popitem(last=False)
        told = self._told.get(hello.node_id)
        if told is not None and told[0] <= hello.boot:
            del self._told[hello.node_id]
        return known is None or known != hello

    def tell(self, node_id: NodeId, boot: int, address: str) -> bool:
        """Remember what somebody else heard. Returns whether it is newer than what is known here."""
        heard, told = self._heard.get(node_id), self._told.get(node_id)
        if (heard is not None and heard.boot >= boot) or (told is not None and told[0] >= boot):
            return False
        self._told[node_id] = boot, address
        if len(self._told) > KNOWN_MAX:
            self._told.popitem(last=False)
        return True

    def heard(self, node_id: NodeId) -> Hello | None:
        """The last introduction of a node."""
        return self._heard.get(node_id)

    def address(self, member: Member) -> str:
        """The best single address to show to people."""
        hello = self._heard.get(member.node_id)
        return hello.address if hello is not None and hello.address else member.address

    def candidates(self, node_id: NodeId, membership: Membership, own: str) -> tuple[str, ...]:
        """Addresses to try for a node, best first, without repetition; never our ``own``."""
        member = membership.member(node_id)
        found: list[str] = []
        if member is not None:
            found += [seed for seed in self.seeds if host_label(seed) == member.name]
        if node_id in self._told:
            found.append(self._told[node_id][1])
        hello = self._heard.get(node_id)
        if hello is not None:
            found.append(hello.address)
        if member is not None:
            found.append(member.address)
            found += self._unclaimed(membership, member)
        unique = dict.fromkeys(address for address in found if address and address != own)
        return tuple(unique)[:CANDIDATES_MAX]

    def _unclaimed(self, membership: Membership, member: Member) -> list[str]:
        """Seeds that no other member is known to answer at."""
        others = [other for other in membership.members if other.node_id != member.node_id]
        names = {other.name for other in others if other.name != member.name}
        heard = {self.address(other) for other in others if other.node_id in self._heard}
        return [seed for seed in self.seeds if host_label(seed) not in names and seed not in heard]

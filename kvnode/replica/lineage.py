"""Whose volume is an old copy of itself, and what becomes of a node that is told so (RC-52, RC-54).

A volume that was brought back from a backup, or cloned, holds an older log and maybe an older vote than its
node has told the others of; with them it could elect a leader that lacks acknowledged writes. Such a volume
looks sound from inside. Two things give it away to the others, at its introduction:

- every process draws a number, its *run*, and every volume remembers its last runs. Every node keeps,
  durably, the newest process of each member that it has heard of: a later one on the same volume has its run
  among its own, and one on a copy from before has not, however often it was started;
- it found less on its disk than it has acknowledged to the leader of the present term, who asks.

It is refused, is told why by a member of its own cluster, and stops for good: a mark keeps the directory
from being started again, until an operator empties it, or ``--heal-corruption`` sets it aside (decision
0008). What is not noticed: a copy that was taken in the same life of the process, while nobody who leads
now was told by that process of anything newer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvnode.errors import KvnodeError, MustStop, VolumeRolledBack
from kvnode.ports import Hello, PeerBoot
from kvnode.raft.types import NodeId

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

KNOWN_MAX: Final = 1024
"""Nodes remembered, before those who are no members are forgotten."""
ROLLED_BACK: Final = (
    "the other members have seen newer data of this node than its volume holds: an old copy of the volume "
    "was brought back, or two processes live on copies of it. Empty the directory to join as a new node, or "
    "bring the right volume back and remove the file DAMAGED"
)


class Lineage:
    """One node's knowledge of the processes of the others, and of itself."""

    def __init__(self, replica: Replica) -> None:
        """Start from what was stored."""
        self._replica = replica
        self._known: dict[NodeId, PeerBoot] = {
            peer.node_id: peer for peer in replica.identity.record.peers
        }
        self._saving = False
        self._fencing = False

    def is_rolled_back(self, hello: Hello) -> bool:
        """Whether somebody who introduces itself lives on an old copy of its volume."""
        replica = self._replica
        if not replica.cluster_id or hello.cluster_id != replica.cluster_id:
            return False
        known = self._known.get(hello.node_id)
        if known is None:
            return False
        since = hello.boot - known.boot
        if since < 0 or (since < len(hello.runs) and hello.runs[since] != known.run):
            return True
        if not since or not hello.runs or not replica.is_leader:
            return False
        # A new process: it has to hold whatever its node has acknowledged in this very term.
        acknowledged = replica.raft.match_index(hello.node_id)
        return bool(acknowledged) and (hello.term, hello.last_index) < (
            replica.raft.term,
            acknowledged,
        )

    def heard(self, hello: Hello) -> None:
        """A node was admitted: remember its process, if it is a member's."""
        replica = self._replica
        if hello.cluster_id != replica.cluster_id or not hello.cluster_id or not hello.runs:
            return
        known = self._known.get(hello.node_id)
        if known is not None and (known.boot, known.run) == (hello.boot, hello.runs[0]):
            return
        if known is None and len(self._known) >= KNOWN_MAX:
            self._prune()
        self._known[hello.node_id] = PeerBoot(hello.node_id, hello.boot, hello.runs[0])
        self._save()

    def members_changed(self) -> None:
        """Who has become a member is worth keeping now."""
        self._save()

    def _prune(self) -> None:
        """Forget who is no member."""
        member = self._replica.raft.membership.member
        self._known = {node: peer for node, peer in self._known.items() if member(node) is not None}

    def _save(self) -> None:
        if self._saving:
            return
        replica = self._replica
        peers = self._worth_keeping()
        if peers == replica.identity.record.peers:
            return
        self._saving = True

        def saved(error: KvnodeError | None) -> None:
            self._saving = False
            if error is not None:
                replica.fail_disk(error)
            elif not replica.stopped:
                self._save()

        replica.identity.remember(peers, saved)

    def _worth_keeping(self) -> tuple[PeerBoot, ...]:
        """Members' processes."""
        member = self._replica.raft.membership.member
        return tuple(sorted(p for p in self._known.values() if member(p.node_id) is not None))

    def accused(self) -> None:
        """A member of our cluster refused us: our volume is an old copy."""
        replica = self._replica
        if self._fencing or replica.stopped:
            return
        self._fencing = True
        replica.trace("volume_rolled_back", {"term": replica.raft.term})

        def fenced(error: KvnodeError | None) -> None:
            replica.fail(error if isinstance(error, MustStop) else VolumeRolledBack(ROLLED_BACK))

        replica.identity.fence(ROLLED_BACK, fenced)

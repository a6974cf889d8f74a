"""Do all members hold the same data? The leader compares digests every few seconds (RC-74).

It takes an index that it applied a while ago, so that members which keep up have applied it too, and
asks each for its digest there. Whoever differs from a majority of the voters stops and says so, be it
the leader itself. Without a majority on either side nobody can tell who is right: then it is an alarm.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError, StateDiverged
from kvnode.raft.types import NodeId

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica


class Comparison:
    """Asks while this node leads; answers always."""

    def __init__(self, replica: Replica) -> None:
        """Nothing is under way."""
        self._replica = replica
        self._next_at = 0.0
        self._index = 0
        """Applied here when the last round began; the next one asks for it."""
        self._open = 0
        self.alarm = ""
        """Members differ and nobody knows who is right: a sentence for an operator, else empty."""

    def run(self, now: float) -> None:
        """One round, when it is time; called about once a second."""
        replica = self._replica
        if not replica.is_leader or not replica.may_apply:
            self._index = 0
            return
        if now < self._next_at or self._open:
            return
        self._next_at = now + replica.settings.compare_interval_s
        index, self._index = self._index, replica.store.applied_index
        own = replica.store.digest_at(index) if index else None
        if own is not None:
            self._ask(index, own)

    def _ask(self, index: int, own: str) -> None:
        replica = self._replica
        membership = replica.raft.membership
        digests = {replica.raft.id: own}
        others = [node for node in membership.nodes() if node != replica.raft.id]
        self._open = len(others)

        def answered(node: NodeId, value: Any, error: KvnodeError | None) -> None:
            self._open -= 1
            if error is None and isinstance(value, str) and value:
                digests[node] = value
            if not self._open and not replica.stopped and replica.is_leader:
                self._judge(index, digests, membership.voters)

        timeout = replica.settings.compare_interval_s
        for node in others:
            replica.transport.request(node, "digest", index, timeout, partial(answered, node))

    def _judge(self, index: int, digests: dict[NodeId, str], voters: frozenset[NodeId]) -> None:
        replica = self._replica
        if len(set(digests.values())) == 1:
            self.alarm = ""
            return
        votes = Counter(digest for node, digest in digests.items() if node in voters)
        digest, count = votes.most_common(1)[0]
        if 2 * count <= len(voters):
            self.alarm = f"members hold different data at index {index}, and none has a majority"
            replica.trace(
                "digest_mismatch", {"index": index, "digests": dict(sorted(digests.items()))}
            )
            return
        self.alarm = ""
        wrong = sorted(node for node, found in digests.items() if found != digest)
        for node in wrong:
            replica.trace("digest_mismatch", {"index": index, "member": node})
            if node != replica.raft.id:
                timeout = replica.settings.compare_interval_s
                replica.transport.request(
                    node, "diverged", [index, digest], timeout, lambda _value, _error: None
                )
        if replica.raft.id in wrong:
            self._stop(index)

    def told(self, sender: NodeId, payload: Any) -> bool:
        """The leader says what a majority holds. Stops this node when it does not hold the same.

        Returns:
            Whether it does not.
        """
        replica = self._replica
        match payload:
            case [int(index), str(digest)] if sender == replica.raft.leader_id:
                own = replica.store.digest_at(index)
                if own is not None and own != digest:
                    replica.trace("digest_mismatch", {"index": index, "member": replica.raft.id})
                    self._stop(index)
                    return True
        return False

    def _stop(self, index: int) -> None:
        self._replica.fail(
            StateDiverged(
                f"this node's data at index {index} is not what a majority of the voters holds"
            )
        )

"""What the transport tells the driver: ``kvnode.ports.TransportHandler``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError, MustStop, NoLeader
from kvnode.ports import Hello
from kvnode.raft.messages import InstallSnapshot, Message
from kvnode.raft.types import NodeId, SnapshotMeta
from kvnode.replica.service import Service

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica


class Listener:
    """Passes on what is meant for a running node; a stopped one hears nothing."""

    def __init__(self, replica: Replica) -> None:
        """Listen for ``replica``."""
        self._replica = replica
        self._service = Service(replica)

    def on_messages(self, sender: Hello, messages: Sequence[Message]) -> None:
        """Raft messages from a peer of our cluster."""
        replica = self._replica
        if replica.stopped or not replica.cluster_id:
            return
        try:
            for message in messages:
                # A snapshot is stepped in when all of it is durable here, never by its announcement.
                if not isinstance(message, InstallSnapshot):
                    replica.raft.step(message)
        except MustStop as error:
            replica.fail(error)
            return
        if sender.node_id == replica.raft.leader_id:
            replica.contact.heard()
        replica.wake()

    def on_request(
        self,
        sender: Hello,
        method: str,
        payload: Any,
        reply: Callable[[Any], None],
        fail: Callable[[KvnodeError], None],
    ) -> None:
        """A peer asks something."""
        if self._replica.stopped:
            fail(NoLeader("this node is stopping"))
        else:
            self._service.handle(sender, method, payload, reply, fail)

    def on_peer_hello(self, sender: Hello) -> None:
        """A peer introduced itself."""
        replica = self._replica
        if replica.stopped:
            return
        news = replica.book.learn(sender)
        replica.lineage.heard(sender)
        if sender.cluster_id:
            replica.contact.greeted(sender)
        replica.formation.greeted(sender)
        if news:
            replica.peers.refresh()
        replica.wake()

    def on_unreachable(self, node_id: NodeId) -> None:
        """The connection to a member broke."""
        if not self._replica.stopped:
            self._replica.raft.report_unreachable(node_id)
            self._replica.wake()

    def accepts_cluster(self, sender: Hello) -> bool:
        """Raft messages are taken only once the cluster id is durable here; see ``formation``."""
        return False

    def on_removed(self, cluster_id: str) -> None:
        """A member of this cluster says that it has removed this incarnation (RC-47)."""
        self._replica.removed(cluster_id)

    def on_rolled_back(self) -> None:
        """A member of our cluster has seen newer data of ours (RC-54)."""
        self._replica.lineage.accused()

    def on_snapshot_begin(self, sender: Hello, term: int, meta: SnapshotMeta) -> bool:
        """A peer wants to stream a snapshot."""
        replica = self._replica
        if replica.stopped or not replica.cluster_id:
            return False
        return replica.receiver.begin(sender, term, meta)

    def on_snapshot_chunk(
        self, sender: Hello, chunk: bytes, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """One chunk of it."""
        self._replica.receiver.chunk(sender, chunk, done)

    def on_snapshot_end(
        self, sender: Hello, ok: bool, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """Its end."""
        self._replica.receiver.end(sender, ok, done)

"""The seams between the driver and the outside world.

The driver (``kvnode.replica``) is plain synchronous code: it is called, it calls these ports, it
returns. Time, the disk and the network are handed to it, so that the simulator runs the very same
code on virtual time with a faulty disk and network. Nothing below may be called from another thread,
and no port calls back into the driver from inside a call that the driver makes: completions always
arrive in a later turn of the loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from kvnode.errors import KvnodeError
from kvnode.raft.messages import Message
from kvnode.raft.types import Entry, HardState, LogId, Membership, NodeId, SnapshotMeta

T = TypeVar("T")

Done = Callable[[T | None, KvnodeError | None], None]
"""A completion: called exactly once, with a value and None, or with None and an error."""


class Timer(Protocol):
    """A pending call; ``asyncio.TimerHandle`` is one."""

    def cancel(self) -> None:
        """Do not call. Idempotent, also after the call."""
        ...


class Scheduler(Protocol):
    """Monotonic time and later calls; an ``asyncio`` loop is one."""

    def time(self) -> float:
        """Seconds of a monotonic clock with no defined start."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        """Call in the next turn of the loop, in order."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call after ``delay`` seconds."""
        ...


class Scale(NamedTuple):
    """How large a StatefulSet is to be. Its pods are called ``name-ordinal``."""

    name: str
    replicas: int
    """``spec.replicas``."""
    first_ordinal: int
    """``spec.ordinals.start``."""

    def ordinal(self, node_name: str) -> int | None:
        """Return the ordinal of one of its pods; None for any other name."""
        stem, _, digits = node_name.rpartition("-")
        if stem != self.name or not re.fullmatch("0|[1-9][0-9]{0,8}", digits):
            return None
        return int(digits)

    def is_surplus(self, node_name: str) -> bool:
        """Whether a pod of this name is one too many.

        Never with 0 replicas: who stops everything wants to start it again. Never below the first
        ordinal: such pods may be another cluster's part of the same Raft group.
        """
        ordinal = self.ordinal(node_name)
        return (
            self.replicas > 0
            and ordinal is not None
            and ordinal >= self.first_ordinal + self.replicas
        )


ScaleSource = Callable[[Done[Scale]], None]
"""Asks anew how large this node's StatefulSet is to be; answers within seconds, ``ApiServerFailed`` else."""


class LogBase(NamedTuple):
    """Where the durable log starts: everything up to ``last`` has been compacted away."""

    last: LogId
    membership: Membership


class Recovered(NamedTuple):
    """What a node finds on its disk at start."""

    hard_state: HardState
    base: LogBase
    entries: list[Entry]
    """Contiguous, from ``base.last.index + 1``."""


class Journal(Protocol):
    """The durable Raft state: log, base and hard state. All work happens in order on one thread.

    Each call queues work and returns at once; ``done(error)`` is called in a later turn of the loop,
    in the order of the calls, with None once everything queued up to this call is durable. Calls that
    wait together share one sync (group commit). After a failure every further call fails with the
    same ``DiskFailed`` and nothing more is written (RC-8).
    """

    def save(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """Make a hard state and entries durable.

        An entry whose index is not above the log's last one replaces that entry and everything after
        it. No hard state and no entries: only keeps the order, nothing is synced.
        """
        ...

    def compact(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        """Forget entries up to ``base.last``, which the log holds."""
        ...

    def reset(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        """Drop the whole log and start after ``base.last``, in one crash-safe step (RC-37)."""
        ...

    def pending(self) -> int:
        """Number of queued calls whose ``done`` has not been called yet."""
        ...


class PeerBoot(NamedTuple):
    """One process of a peer; see ``Hello``."""

    node_id: NodeId
    boot: int
    run: int


class IdentityRecord(NamedTuple):
    """Who this node is; one small file, written whole (RC-9) with a checksum."""

    node_id: NodeId
    """The incarnation id: a uuid made with the data directory."""
    name: str
    cluster_id: str
    """Empty until the node belongs to a cluster; then it never changes."""
    pledge: str
    """While bootstrapping: JSON of the cluster that this empty node has promised itself to, else
    empty. A promised node promises itself to no other (RC-55)."""
    boot: int
    """Raised and synced at each start, before the first message (RC-52)."""
    runs: tuple[int, ...] = ()
    """See ``Hello``; this process's is stored before the first message, too."""
    peers: tuple[PeerBoot, ...] = ()
    """The newest process of each member that was heard of (RC-54)."""


class IdentityStore(Protocol):
    """Keeps the identity record."""

    record: IdentityRecord

    def save(
        self, cluster_id: str, pledge: str, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """Store both durably; ``record`` shows them once ``done`` was called."""
        ...

    def set_aside(self, done: Callable[[KvnodeError | None], None]) -> None:
        """Mark the directory so that the next start sets its data aside (never deletes it) and
        begins as a new incarnation with an empty log (RC-51).
        """
        ...

    def remember(
        self, peers: tuple[PeerBoot, ...], done: Callable[[KvnodeError | None], None]
    ) -> None:
        """Store ``record.peers`` durably."""
        ...

    def fence(self, text: str, done: Callable[[KvnodeError | None], None]) -> None:
        """Keep every later process from starting on these data, and say why (RC-54).

        Errors: ``DirectoryInUse`` when another process has started on them meanwhile; nothing was done.
        """
        ...


class Worker(Protocol):
    """Runs slow work (engine flush, snapshot reading and loading) off the loop, one job at a time."""

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """Run ``job`` in order on the worker; ``done`` is called later, on the loop.

        An exception that is no ``KvnodeError`` arrives wrapped as ``InvariantBroken``.
        """
        ...


class SnapshotStore(Protocol):
    """Received snapshots on disk. Every method is slow and is called from ``Worker`` jobs only."""

    def begin(self, meta: SnapshotMeta) -> SnapshotWriter:
        """Start to receive; replaces any unfinished one."""
        ...

    def complete(self) -> tuple[SnapshotMeta, str] | None:
        """Return the finished, not yet discarded snapshot and its handle, or None."""
        ...

    def read(self, handle: str) -> Iterator[bytes]:
        """Yield its chunks again, each checked.

        Raises:
            CorruptLog: A chunk is not what was written.
        """
        ...

    def discard(self) -> None:
        """Remove the finished snapshot, after the store and the log hold its state."""
        ...


class SnapshotWriter(Protocol):
    """One snapshot being received."""

    def write(self, chunk: bytes) -> None:
        """Append a chunk; not synced yet."""
        ...

    def commit(self) -> None:
        """Sync, rename, sync the directory: from here on the snapshot survives a crash (RC-9)."""
        ...

    def abort(self) -> None:
        """Remove what was written. Idempotent, nothing after ``commit``."""
        ...


class Hello(NamedTuple):
    """How a node introduces itself on every connection (RC-49 … RC-55)."""

    protocol: int
    cluster_id: str
    """Empty before the node belongs to a cluster."""
    node_id: NodeId
    name: str
    boot: int
    """Number of this process start; rises with each start of one incarnation (RC-52)."""
    address: str
    """``host:port`` where the node's peer port can be reached; looked up again at each dial."""
    http_address: str
    expect: int
    """``--bootstrap-expect``, 0 when not given."""
    runs: tuple[int, ...] = ()
    """A number that each process draws at random: this one's, the one's before it on the same volume, and
    so on for some. Who lacks a run that was heard of lives on a copy of the volume (RC-52, RC-54).
    Empty: nobody to be remembered, or from a build that has none."""
    term: int = 0
    last_index: int = 0
    """What this process found on its disk when it started (RC-54)."""


class TransportHandler(Protocol):
    """What the transport calls in the driver, always in a fresh turn of the loop."""

    def on_messages(self, sender: Hello, messages: Sequence[Message]) -> None:
        """Raft messages from a peer of our own cluster; each message's ``sender`` was checked."""
        ...

    def on_request(
        self,
        sender: Hello,
        method: str,
        payload: Any,
        reply: Callable[[Any], None],
        fail: Callable[[KvnodeError], None],
    ) -> None:
        """A request; answer exactly once. ``payload`` is plain data, not yet checked."""
        ...

    def on_peer_hello(self, sender: Hello) -> None:
        """A peer introduced itself: learn its name, its address and its boot number."""
        ...

    def on_unreachable(self, node_id: NodeId) -> None:
        """The connection to a member broke: messages on it may be lost."""
        ...

    def accepts_cluster(self, sender: Hello) -> bool:
        """Whether this node, which belongs to no cluster yet, listens to Raft messages of the
        sender's: the one that it is promised to, or that it asked to join (RC-55). Asked only while
        our own ``cluster_id`` is empty and the sender's is not; must be cheap.
        """
        ...

    def on_removed(self, cluster_id: str) -> None:
        """A member of this cluster says that it has removed this incarnation (RC-47): it is our own cluster,
        or any while we belong to none. Called again for every connection that is refused for it.
        """
        ...

    def on_rolled_back(self) -> None:
        """A member of our own cluster says that our volume is older than what it has heard of us
        (RC-54). Called again for every connection that is refused for it.
        """
        ...

    def on_snapshot_begin(self, sender: Hello, term: int, meta: SnapshotMeta) -> bool:
        """A peer wants to stream a snapshot. False refuses it."""
        ...

    def on_snapshot_chunk(
        self, sender: Hello, chunk: bytes, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """One chunk, in order. The next one is asked for only after ``done``: back-pressure."""
        ...

    def on_snapshot_end(
        self, sender: Hello, ok: bool, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """The stream ended. ``ok`` False: it broke off and must be forgotten."""
        ...


class Transport(Protocol):
    """Talks to peers by node id, over connections that it makes, keeps and repairs by itself."""

    handler: TransportHandler | None
    """The driver. Set before the first connection."""
    hello: Hello
    """What this node says of itself; set anew when it changes, and open connections are told."""
    is_removed: Callable[[NodeId], bool]
    """Whether an incarnation may never come back (RC-47)."""
    is_rolled_back: Callable[[Hello], bool]
    """Whether a node that introduces itself lives on an old copy of its volume (RC-54)."""

    def set_peers(self, peers: Mapping[NodeId, tuple[str, ...]]) -> None:
        """Set the peers to stay connected with, and where each may be found (``host:port``, best
        first). Connections to nodes no longer listed are closed.
        """
        ...

    def send(self, to: NodeId, messages: Sequence[Message]) -> None:
        """Send Raft messages, best effort: dropped when not connected or when the peer's queue is
        full. One frame per call. Heartbeats, votes and their replies take the fast lane (RC-69).
        """
        ...

    def request(
        self, to: NodeId, method: str, payload: Any, timeout_s: float, done: Done[Any]
    ) -> None:
        """Ask a peer. Errors: ``PeerUnreachable`` (``took_effect="no"`` when it was never written to
        a connection, else ``"unknown"``), ``Timeout``, or the error that the peer answered.
        """
        ...

    def request_address(
        self,
        address: str,
        method: str,
        payload: Any,
        timeout_s: float,
        done: Done[tuple[Hello, Any]],
    ) -> None:
        """Ask whoever listens at ``host:port`` over a connection of its own, in any cluster state."""
        ...

    def send_snapshot(
        self,
        to: NodeId,
        term: int,
        meta: SnapshotMeta,
        next_chunk: Callable[[Done[bytes]], None],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """Stream a snapshot over a connection of its own. ``next_chunk`` gives the next chunk, an
        empty one at the end. ``done(None)`` only after the peer said that all of it is durable.
        """
        ...

    def connected(self) -> Mapping[NodeId, bool]:
        """Which of the peers can be reached now."""
        ...

"""Counters as plain ints, and a brake on log lines."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from kvnode.raft.types import NodeId

PEERS_MAX = 1024
LOGGED_MAX = 256


@dataclass(slots=True)
class PeerCounters:
    """Traffic with one peer since the start, in both directions and on all lanes."""

    frames_out: int = 0
    bytes_out: int = 0
    frames_in: int = 0
    bytes_in: int = 0
    dropped: int = 0
    """Raft messages not sent: no connection, or its lane was full."""
    connects: int = 0
    """Connections that we dialled and greeted; more than one per lane are reconnects."""
    disconnects: int = 0
    rtt_s: float = 0.0
    """Last measured round trip of a ping on the fast lane; 0: none yet."""


@dataclass(slots=True)
class TransportMetrics:
    """Counters of one transport. Read them at any time; never reset."""

    accepted: int = 0
    refused: int = 0
    """Introductions refused, by us or by a peer."""
    secret_refused: int = 0
    """Peers that did not prove the peer secret."""
    tls_refused: int = 0
    """Connections refused before any introduction for want of TLS or of a good certificate, and peers
    whose certificate is for somebody else."""
    protocol_errors: int = 0
    strangers_dropped: int = 0
    """Connections closed before any introduction: too many, or silent for too long."""
    messages_foreign: int = 0
    """Raft messages ignored because the sender's cluster is not ours."""
    identity_conflicts: int = 0
    """One incarnation seen at two places (RC-52): look at it."""
    requests_timed_out: int = 0
    snapshots_sent: int = 0
    snapshots_received: int = 0
    peers: dict[NodeId, PeerCounters] = field(default_factory=dict)
    """Peers that were set, and those that introduced themselves; at most ``PEERS_MAX``."""

    def peer(self, node_id: NodeId) -> PeerCounters:
        """Return the peer's counters, made on first use. Above ``PEERS_MAX`` the oldest are dropped."""
        counters = self.peers.get(node_id)
        if counters is None:
            if len(self.peers) >= PEERS_MAX:
                self.peers.pop(next(iter(self.peers)))
            counters = self.peers[node_id] = PeerCounters()
        return counters


class LogBrake:
    """Lets one event per key and interval through; remembers at most ``LOGGED_MAX`` keys.

    When there are more keys than that, the oldest is forgotten, so a flood from many addresses logs
    at most as many lines as there are new addresses; ``total_per_interval`` bounds those as well.
    """

    __slots__ = ("_count", "_interval_s", "_next", "_total_max", "_window_end")

    def __init__(self, interval_s: float = 10.0, total_per_interval: int = 20) -> None:
        """At most one line per key and ``total_per_interval`` lines in all each ``interval_s``."""
        self._interval_s = interval_s
        self._total_max = total_per_interval
        self._next: OrderedDict[str, float] = OrderedDict()
        self._window_end = float("-inf")
        self._count = 0

    def allows(self, key: str, now: float) -> bool:
        """Whether to log now; True is remembered."""
        if now < self._next.get(key, float("-inf")):
            return False
        if now >= self._window_end:
            self._window_end, self._count = now + self._interval_s, 0
        if self._count >= self._total_max:
            return False
        self._count += 1
        self._next[key] = now + self._interval_s
        self._next.move_to_end(key)
        if len(self._next) > LOGGED_MAX:
            self._next.popitem(last=False)
        return True

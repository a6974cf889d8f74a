"""What the process knows and the HTTP room does not: the disk's and the transport's counters.

Read at each scrape; nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvnode.disk.data_dir import DataDir
from kvnode.disk.journal import ThreadJournal
from kvnode.errors import KvnodeError
from kvnode.transport.metrics import PeerCounters, TransportMetrics


class DiskCollector(Collector):
    """Syncs and space of the data directory."""

    def __init__(self, journal: ThreadJournal, data_dir: DataDir) -> None:
        """Remember whom to ask."""
        self._journal = journal
        self._data_dir = data_dir

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        yield CounterMetricFamily(
            "kvnode_log_syncs", "Data syncs of the log since the start.", value=self._journal.syncs
        )
        yield GaugeMetricFamily(
            "kvnode_log_calls_pending",
            "Calls that wait for the log's disk.",
            value=self._journal.pending(),
        )
        yield GaugeMetricFamily(
            "kvnode_log_spare_missing",
            "1 while the volume has no space for the log's next segment.",
            value=float(self._journal.spare_missing),
        )
        try:
            free = self._data_dir.free_bytes()
        except KvnodeError:
            return  # a scrape must not fail because a volume does; the log says so
        yield GaugeMetricFamily(
            "kvnode_volume_free_bytes", "Bytes that may still be written.", value=free
        )


class _Counter(NamedTuple):
    name: str
    text: str
    value: Callable[[PeerCounters], float]


_PER_PEER = (
    _Counter("frames_out", "Frames sent.", lambda peer: peer.frames_out),
    _Counter("bytes_out", "Bytes sent.", lambda peer: peer.bytes_out),
    _Counter("frames_in", "Frames received.", lambda peer: peer.frames_in),
    _Counter("bytes_in", "Bytes received.", lambda peer: peer.bytes_in),
    _Counter("dropped", "Raft messages not sent: no connection, or full.", lambda p: p.dropped),
    _Counter("connects", "Connections made.", lambda peer: peer.connects),
    _Counter("disconnects", "Connections lost.", lambda peer: peer.disconnects),
)
_WHOLE = (
    ("accepted", "Connections accepted."),
    ("refused", "Introductions refused, by us or by a peer."),
    ("secret_refused", "Peers that did not prove the peer secret."),
    ("tls_refused", "Peers refused for want of TLS or of a good certificate."),
    ("protocol_errors", "Connections ended because a peer broke the protocol."),
    ("strangers_dropped", "Connections closed before any introduction."),
    ("messages_foreign", "Raft messages of other clusters, ignored."),
    ("identity_conflicts", "One incarnation seen at two places."),
    ("requests_timed_out", "Requests to peers without an answer in time."),
    ("snapshots_sent", "Snapshots sent."),
    ("snapshots_received", "Snapshots received."),
)


class TransportCollector(Collector):
    """Traffic with the other nodes."""

    def __init__(self, metrics: TransportMetrics) -> None:
        """Remember whom to ask."""
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        for name, text in _WHOLE:
            value = float(getattr(self._metrics, name))
            yield CounterMetricFamily(f"kvnode_peers_{name}", text, value=value)
        peers = sorted(self._metrics.peers.items())
        for counter in _PER_PEER:
            family = CounterMetricFamily(
                f"kvnode_peer_{counter.name}", counter.text, labels=("peer",)
            )
            yield _filled(family, ((node, counter.value(found)) for node, found in peers))
        rtt = GaugeMetricFamily(
            "kvnode_peer_rtt_seconds", "Last round trip of a ping; 0: none yet.", labels=("peer",)
        )
        yield _filled(rtt, ((node, found.rtt_s) for node, found in peers))


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[str, float]]
) -> Metric:
    for label, value in values:
        family.add_metric((label,), value)
    return family

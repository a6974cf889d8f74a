"""Metrics: counted for next to nothing on the hot path, put into words at scrape time.

A request costs one dictionary increment and one bisection. Prometheus' own counters take a lock and
build label tuples per increment, several microseconds here, so its library only prints.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from kvnode.http.context import HttpContext
    from kvnode.http.gate import Gate
    from kvnode.replica.facade import Status

BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, seconds."""
CONTENT_TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Recorder:
    """Counts of answered requests. Labels come from our own route table, so they are bounded."""

    __slots__ = ("counts", "durations", "fast")

    def __init__(self) -> None:
        """Start at zero."""
        self.counts: dict[tuple[str, str, int], int] = {}
        """Route, method, status -> number of answers."""
        self.durations: dict[str, list[float]] = {}
        """Route -> one count per bucket, one above all buckets, and the sum of seconds."""
        self.fast = 0
        """Answers of the lean path."""

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer."""
        key = (route, method, status)
        counts = self.counts
        counts[key] = counts.get(key, 0) + 1
        row = self.durations.get(route)
        if row is None:
            row = self.durations[route] = [0.0] * (len(BUCKETS_S) + 2)
        row[bisect_left(BUCKETS_S, seconds)] += 1
        row[-1] += seconds


class HttpCollector(Collector):
    """Reads the recorder and the gate at scrape time."""

    def __init__(self, recorder: Recorder, gate: Gate) -> None:
        """Remember where to read."""
        self._recorder = recorder
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        requests = CounterMetricFamily(
            "kvnode_http_requests",
            "Answered requests.",
            labels=("route", "method", "status"),
        )
        for (route, method, status), count in sorted(self._recorder.counts.items()):
            requests.add_metric((route, method, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "kvnode_http_request_duration_seconds",
            "From the complete request to its answer.",
            labels=("route",),
        )
        for route, row in sorted(self._recorder.durations.items()):
            total = 0.0
            buckets = []
            for bound, answers in zip((*map(str, BUCKETS_S), "+Inf"), row, strict=False):
                total += answers
                buckets.append((bound, total))
            durations.add_metric((route,), buckets, sum_value=row[-1])
        yield durations
        yield CounterMetricFamily(
            "kvnode_http_fast_path_requests",
            "Answers given without aiohttp.",
            value=self._recorder.fast,
        )
        yield CounterMetricFamily(
            "kvnode_http_rejected",
            "Requests and connections refused because a bound was reached.",
            value=self._gate.rejected,
        )
        for name, text, value in (
            ("connections", "Open connections.", self._gate.connections),
            ("requests_in_progress", "Requests in progress.", self._gate.requests),
            ("blocking_queries", "Parked blocking queries.", self._gate.parked),
            ("streams", "Endless streams, such as server-sent events.", self._gate.streams),
            ("request_bytes_in_progress", "Received body bytes.", self._gate.body_bytes),
        ):
            yield GaugeMetricFamily(f"kvnode_http_{name}", text, value=value)


def _gauges(status: Status) -> Iterable[tuple[str, str, float]]:
    leader = status.leader_id == status.node_id
    return (
        ("raft_term", "Current term.", status.term),
        ("raft_commit_index", "Highest committed index known.", status.commit_index),
        ("raft_applied_index", "Highest index applied to the store.", status.applied_index),
        ("raft_last_index", "Highest index in the log.", status.last_index),
        ("raft_first_index", "Lowest index in the log.", status.first_index),
        ("raft_snapshot_index", "Log base: everything up to here is compacted.",
         status.snapshot_index),
        ("raft_is_leader", "1 on the leader.", float(leader)),
        ("raft_has_leader", "1 while a leader is known.", float(status.leader_id is not None)),
        ("raft_leader_lost_seconds", "For how long no leader has been known.",
         status.leader_lost_ms / 1000),
        ("raft_last_contact_seconds", "Since the leader was last heard.",
         status.last_contact_ms / 1000),
        ("raft_voters", "Voting members.", status.voters),
        ("raft_members", "Members.", len(status.members)),
        ("raft_peers_connected", "Other members this node is connected with.",
         sum(m.connected and m.node_id != status.node_id for m in status.members)),
    )  # fmt: skip


class ReplicaCollector(Collector):
    """Reads the replica's status and the store's counters at scrape time."""

    def __init__(self, context: HttpContext) -> None:
        """Remember where to read."""
        self._context = context

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        status = self._context.replica.status()
        info = GaugeMetricFamily(
            "kvnode_info",
            "Always 1; who this node is.",
            labels=("version", "node", "node_id", "cluster_id", "role", "state"),
        )
        info.add_metric(
            (
                self._context.settings.version,
                status.name,
                status.node_id,
                status.cluster_id,
                status.role.value,
                status.state,
            ),
            1,
        )
        yield info
        for name, text, value in _gauges(status):
            yield GaugeMetricFamily(f"kvnode_{name}", text, value=value)
        lag = GaugeMetricFamily(
            "kvnode_raft_follower_lag",
            "Entries that a member is behind the leader's log; known on the leader.",
            labels=("member",),
        )
        if status.leader_id == status.node_id:
            for member in status.members:
                if member.node_id != status.node_id:
                    behind = max(0, status.last_index - member.match_index)
                    lag.add_metric((member.name,), behind)
        yield lag
        store = self._context.replica.store
        yield GaugeMetricFamily("kvnode_store_keys", "Keys in the store.", value=store.count())
        yield GaugeMetricFamily(
            "kvnode_store_kv_index", "Index of the last change to any key.", value=store.kv_index()
        )
        meta = store.meta
        for name, text, value in (
            ("changes", "Changes kept as history.", meta.history_rows),
            ("bytes", "Bytes that they take.", meta.history_bytes),
            ("oldest_index", "Index from which on they are kept.", store.history_floor()),
        ):
            yield GaugeMetricFamily(f"kvnode_history_{name}", text, value=value)
        yield GaugeMetricFamily(
            "kvnode_store_idempotency_keys",
            "Writes that are remembered by their idempotency key.",
            value=store.once_count(),
        )


def build_registry(context: HttpContext, recorder: Recorder, gate: Gate) -> CollectorRegistry:
    """Make a registry of its own: several nodes may live in one process in tests."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(HttpCollector(recorder, gate))
    registry.register(ReplicaCollector(context))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    for collector in context.collectors:
        registry.register(collector)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """Return Prometheus' text format, version 0.0.4."""
    return generate_latest(registry)


def consul_document(registry: CollectorRegistry) -> dict[str, Any]:
    """Return the same numbers in the form of ``/v1/agent/metrics`` (spec §10)."""
    gauges: list[dict[str, Any]] = []
    counters: list[dict[str, Any]] = []
    summed: dict[str, tuple[str, dict[str, str], dict[str, float]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            if family.type == "gauge":
                gauges.append({"Name": sample.name, "Value": sample.value, "Labels": labels})
            elif family.type == "histogram" and sample.name.endswith(("_sum", "_count")):
                name = f"{family.name}\n{sorted(labels.items())}"
                summed.setdefault(name, (family.name, labels, {}))[2][
                    sample.name.rpartition("_")[2]
                ] = sample.value
            elif sample.name.endswith("_total"):
                count = int(sample.value)
                counters.append({
                    "Name": sample.name, "Count": count, "Rate": 0, "Sum": count, "Min": count,
                    "Max": count, "Mean": count, "Stddev": 0, "Labels": labels,
                })  # fmt: skip
    samples = [
        {
            "Name": name, "Count": int(found["count"]), "Rate": 0, "Sum": found["sum"], "Min": 0,
            "Max": 0, "Mean": found["sum"] / found["count"] if found["count"] else 0, "Stddev": 0,
            "Labels": labels,
        }
        for name, labels, found in summed.values()
    ]  # fmt: skip
    stamp = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime())
    return {
        "Timestamp": stamp,
        "Gauges": gauges,
        "Points": [],
        "Counters": counters,
        "Samples": samples,
    }

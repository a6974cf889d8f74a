"""Takes the turns: one cell after the other, one system under load at a time, each run proved."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.loader import load
from benchmarks.processes import HarnessError, machine_busy_s
from benchmarks.stats import Cell, Sample
from benchmarks.systems import NODES, Cluster
from benchmarks.wrk import WrkResult, run_wrk, void_reason

_STARTED = time.monotonic()
WORKLOADS = ("put", "get")
WARM_UP_S = 1
SETTLE_S = 3.0
LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure, and for how long."""

    systems: tuple[str, ...]
    only: tuple[str, ...]
    targets: tuple[str, ...]
    connections: tuple[int, ...]
    seconds: int
    rounds: int
    keys: int
    memory_keys: int
    idle_peers: str
    data_dir: Path
    json: Path


def say(text: str) -> None:
    """Tell the one who waits, with the seconds since the start."""
    print(f"{time.monotonic() - _STARTED:6.1f} {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Run:
    """The clusters of one run and what has been measured so far."""

    options: Options
    clusters: list[Cluster]
    failures: list[str]
    measurements: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    _serials: Iterator[int] = field(default_factory=lambda: count(1))
    _seeds: dict[str, int] = field(default_factory=dict)
    """Per system the serial that all its keys carry; absent once a put has changed them."""

    def idle_cpu_percent(self, seconds: float = SETTLE_S) -> dict[str, float]:
        """Return what each cluster, all nodes together, takes of one core when nothing is asked."""
        time.sleep(seconds)  # elections and first compactions are over then
        before = {cluster.name: sum(cluster.cpu_s()) for cluster in self.clusters}
        time.sleep(seconds)
        return {
            cluster.name: round((sum(cluster.cpu_s()) - before[cluster.name]) / seconds * 100, 2)
            for cluster in self.clusters
        }

    @contextmanager
    def only_running(self, cluster: Cluster) -> Iterator[None]:
        """Stop the other clusters meanwhile, if asked for; they hold elections when they go on."""
        others = [other for other in self.clusters if other is not cluster]
        if self.options.idle_peers == "run":
            yield
            return
        for other in others:
            other.pause()
        try:
            yield
        finally:
            for other in others:
                other.resume()
            for other in others:
                other.leader()

    def measure_cell(self, cell: Cell) -> None:
        """Warm up with every answer checked, then take turns.

        A system that fails is left out of the rest of the cell, and ``failures`` says why.
        """
        answer_bytes: dict[str, float] = {}
        for cluster in self.clusters:
            with self._noting_failure(cluster, cell), self.only_running(cluster):
                answer_bytes[cluster.name] = self._warm_up(cluster, cell)
        for number in range(self.options.rounds):
            turn = number % len(self.clusters)  # no system always follows the same one
            for cluster in self.clusters[turn:] + self.clusters[:turn]:
                expected = answer_bytes.pop(cluster.name, None)
                if expected is None:
                    continue
                with self._noting_failure(cluster, cell), self.only_running(cluster):
                    self._measure(cluster, cell, number, expected)
                    answer_bytes[cluster.name] = expected

    @contextmanager
    def _noting_failure(self, cluster: Cluster, cell: Cell) -> Iterator[None]:
        try:
            yield
        except (HarnessError, OSError) as error:
            self.failures.append(f"{cluster.name} {'/'.join(map(str, cell))}: {error}")
            say(f"FAILED {self.failures[-1]}")

    def _warm_up(self, cluster: Cluster, cell: Cell) -> float:
        """Run once with every answer checked; return the mean size of an answer in bytes."""
        if cell.workload == "get":
            self._seed(cluster)
        result, _ = self._drive(cluster, cell, WARM_UP_S, check=True)
        if problem := void_reason(result, cell.connections, None):
            raise HarnessError(problem)
        return result.answer_bytes

    def _seed(self, cluster: Cluster) -> None:
        """Give every key a value with one known tag, unless they still have it."""
        if cluster.name in self._seeds:
            return
        serial = next(self._serials)
        requests = workload.seed_requests(cluster.dialect, self.options.keys, serial)
        port = cluster.http_ports[cluster.leader()]
        load(port, requests, cluster.dialect.put_proof, timeout_s=LOAD_TIMEOUT_S)
        self._seeds[cluster.name] = serial

    def _replay(self, cluster: Cluster, cell: Cell) -> tuple[workload.Replay, int]:
        """Return what to send, and the serial that its values carry."""
        if cell.workload == "get":
            serial = self._seeds[cluster.name]
            return workload.get_replay(cluster.dialect, self.options.keys, serial), serial
        self._seeds.pop(cluster.name, None)
        serial = next(self._serials)
        return workload.put_replay(cluster.dialect, self.options.keys, serial), serial

    def _drive(
        self, cluster: Cluster, cell: Cell, seconds: int, *, check: bool
    ) -> tuple[WrkResult, int]:
        """Run wrk; return its result and the serial of the values that it wrote or read."""
        ports = cluster.http_ports
        if cell.target == "leader":
            ports = [ports[cluster.leader()]]
        replay, serial = self._replay(cluster, cell)
        result = run_wrk(ports, replay, connections=cell.connections, seconds=seconds, check=check)
        return result, serial

    def _measure(self, cluster: Cluster, cell: Cell, number: int, answer_bytes: float) -> None:
        """Do one measurement and prove it."""
        leader = cluster.leader()
        busy, clock, own = machine_busy_s(), time.monotonic(), time.process_time()
        ours = sum(sum(each.cpu_s()) for each in self.clusters)
        cpu = cluster.cpu_s()
        result, serial = self._drive(cluster, cell, self.options.seconds, check=False)
        cpu = [after - before for before, after in zip(cpu, cluster.cpu_s(), strict=True)]
        ours = sum(sum(each.cpu_s()) for each in self.clusters) - ours
        own = time.process_time() - own
        foreign = machine_busy_s() - busy - ours - own - result.client_cpu_s
        wall = time.monotonic() - clock
        void = void_reason(result, cell.connections, answer_bytes)
        if void is None and cluster.leader() != leader:
            void = "the leader moved meanwhile"
        if void is None and cell.workload == "put":
            void = self._missing_writes(cluster, cell, result, serial)
        sample = Sample(
            cell=cell,
            system=cluster.name,
            round=number,
            per_s=result.per_s,
            p50_ms=result.p50_us / 1e3,
            p99_ms=result.p99_us / 1e3,
            cpu_us=sum(cpu) / max(1, result.requests) * 1e6,
            foreign_cpu=max(0.0, foreign) / wall,
            void=void,
        )
        self.samples.append(sample)
        extra = {"leader": leader, "cpu_s": cpu, "wrk": asdict(result)}
        self.measurements.append({**asdict(sample), "cell": cell._asdict(), **extra})
        say(
            f"  {cell.workload} {cell.target} c={cell.connections} round {number + 1} "
            f"{cluster.name:7} {sample.per_s:9,.0f}/s p50 {sample.p50_ms:7.2f} ms "
            f"p99 {sample.p99_ms:7.2f} ms{f'  VOID {void}' if void else ''}"
        )

    def _missing_writes(
        self, cluster: Cluster, cell: Cell, result: WrkResult, serial: int
    ) -> str | None:
        """Read every key back; return what is wrong when acknowledged writes are not there."""
        written = workload.count_written(cluster.read_all(cluster.leader()), serial)
        least = workload.least_written(
            result.requests,
            self.options.keys,
            cell.connections,
            threads=NODES if cell.target == "any" else 1,
        )
        if written >= least:
            return None
        return f"{result.requests} writes acknowledged, but only {written} keys carry them"


def cells(options: Options) -> list[Cell]:
    """Return what to measure; connections to any node are rounded up to a multiple of three."""
    found = [
        Cell(name, target, -(-conns // NODES) * NODES if target == "any" else conns)
        for target, name, conns in product(options.targets, WORKLOADS, options.connections)
        if name in options.only
    ]
    return list(dict.fromkeys(found))


def measure_memory(kind: type[Cluster], directory: Path, keys: int) -> dict[str, Any]:
    """Return resident memory of a fresh cluster and of the same one with ``keys`` keys, leader first.

    Raises:
        HarnessError: it did not start, or did not take all keys.
    """
    cluster = kind(directory)
    try:
        cluster.start()
        time.sleep(SETTLE_S)
        leader = cluster.leader()
        order = [leader, *(node for node in range(NODES) if node != leader)]
        fresh = [asdict(cluster.processes[node].memory()) for node in order]
        requests = workload.seed_requests(cluster.dialect, keys, 1)
        started = time.monotonic()
        port = cluster.http_ports[leader]
        loaded_keys = load(port, requests, cluster.dialect.put_proof, timeout_s=LOAD_TIMEOUT_S)
        say(f"  memory {kind.name:7} {loaded_keys:,} keys in {time.monotonic() - started:.1f} s")
        time.sleep(SETTLE_S)
        return {
            "system": kind.name,
            "keys": loaded_keys,
            "fresh": fresh,
            "loaded": [asdict(cluster.processes[node].memory()) for node in order],
            "disk_kib": [_disk_kib(cluster.data(node)) for node in order],
        }
    finally:
        cluster.stop()


def _disk_kib(directory: Path) -> int:
    return sum(path.lstat().st_blocks for path in directory.rglob("*")) // 2

"""Compaction never passes what the engine has flushed, and memory stays bounded (RC-10, RC-39, RC-67)."""

from __future__ import annotations

from typing import Any

from kvnode.errors import DiskFailed, Overloaded
from kvnode.raft.types import Index
from kvnode.store.commands import KvDelete
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store
from tests.replica.harness import Cluster, Machine


def start(count: int = 1, **settings: Any) -> tuple[Cluster, Machine]:
    cluster = Cluster(count, **{"log_entries_max": 20, **settings}).found()
    return cluster, cluster.led_by(0)


def fill(cluster: Cluster, machine: Machine, count: int, size: int = 1) -> None:
    answers = [machine.write(b"%d" % number, bytes(size)) for number in range(count)]
    cluster.until(lambda: all(found.calls for found in answers))
    assert [found.error for found in answers] == [None] * count


def flushed_index(machine: Machine) -> int:
    """What a power cut would leave of the store."""
    return Store(MemoryEngine(machine.engines._current)).applied_index


def test_an_outgrown_log_loses_its_older_half_after_a_flush() -> None:
    cluster, node = start()
    fill(cluster, node, 40)
    before = node.replica.raft.log.base.index
    cluster.until(lambda: node.replica.raft.log.base.index > before)
    log = node.replica.raft.log
    assert 15 <= log.last_index - log.base.index <= 25
    cluster.run(0.1)
    assert node.base.last == log.base
    assert flushed_index(node) >= log.base.index


def test_the_log_is_never_cut_beyond_what_the_engine_has_flushed() -> None:
    """The target is chosen before the flush; more is applied and lost in between."""
    cluster, node = start(log_entries_max=10)
    for _ in range(30):
        fill(cluster, node, 7)
        cluster.run(1.1)
        assert node.base.last.index <= flushed_index(node)
        node.kill()
        node.engines.crash(0)
        node.start()
        cluster.until(lambda: node.replica.is_leader and node.replica.raft.has_term_commit)
    assert node.base.last.index > 50
    assert node.fatal is None


def test_a_log_of_few_but_large_entries_is_compacted_by_its_bytes() -> None:
    cluster, node = start(log_bytes_max=10_000)
    fill(cluster, node, 3, 9000)
    cluster.run(10.0)
    assert node.replica.raft.log.bytes <= 10_000
    fill(cluster, node, 1, 50_000)
    cluster.run(10.0)
    assert node.replica.raft.log.bytes <= 10_000


def test_what_is_not_applied_is_not_dropped() -> None:
    cluster, node = start(3)
    for machine in cluster.machines[1:]:
        machine.journal.queue.hold = True
    for number in range(100):
        node.write(b"%d" % number)
    cluster.run(0.8)
    applied = node.replica.store.applied_index
    assert node.replica.raft.log.last_index > 90
    assert node.replica.raft.log.base.index <= applied


def test_a_stream_holds_the_log_back_for_a_while_and_not_without_bounds() -> None:
    """RC-39: what it needs stays, but a slow receiver does not cost the leader its memory."""
    cluster, node = start(snapshot_hold_s=5.0)
    sender = node.replica.sender
    fill(cluster, node, 5)
    held = Index(node.replica.store.applied_index)
    sender.busy_with, sender._held_index = node.record.node_id, held
    sender._held_since = cluster.world.now
    fill(cluster, node, 40)
    cluster.run(3.0)
    assert 0 < node.replica.raft.log.base.index <= held
    fill(cluster, node, 60)
    cluster.run(1.5)
    assert node.replica.raft.log.base.index > held, "four times the bound is too much"


def test_a_stream_that_takes_too_long_holds_nothing_back() -> None:
    cluster, node = start(snapshot_hold_s=2.0)
    sender = node.replica.sender
    fill(cluster, node, 5)
    held = Index(node.replica.store.applied_index)
    sender.busy_with, sender._held_index = node.record.node_id, held
    sender._held_since = cluster.world.now
    fill(cluster, node, 40)
    cluster.run(6.0)
    assert node.replica.raft.log.base.index > held


def test_a_failed_flush_stops_the_node_and_compacts_nothing() -> None:
    """RC-8."""
    cluster, node = start()
    engine: Any = node.replica.store.engine

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return self.fail if name == "flush" else getattr(engine, name)

        def fail(self) -> None:
            raise DiskFailed("input/output error")

    node.replica.store.engine = Failing()  # type: ignore[assignment]
    for number in range(40):
        node.write(b"%d" % number)
    cluster.until(lambda: node.fatal)
    assert node.replica.raft.log.base.index == 0


def test_a_flush_that_was_not_done_is_tried_again() -> None:
    cluster, node = start()
    node.worker.refusal = Overloaded("busy")
    fill(cluster, node, 40)
    cluster.run(3.0)
    assert node.replica.raft.log.base.index == 0
    node.worker.refusal = None
    cluster.until(lambda: node.replica.raft.log.base.index)


def test_nothing_is_compacted_while_a_snapshot_is_loaded() -> None:
    """RC-38."""
    cluster, node = start()
    node.worker.queue.hold = True
    fill(cluster, node, 40)
    cluster.until(lambda: len(node.worker.queue))
    node.replica.receiver.loading = True
    node.worker.queue.release()
    assert node.replica.raft.log.base.index == 0
    node.worker.queue.hold = False
    cluster.run(3.0)
    assert node.replica.raft.log.base.index == 0


def test_old_tombstones_are_reaped_by_the_leaders_clock_alone() -> None:
    cluster, node = start(3, grave_age_s=10.0, grave_interval_s=1.0)
    fill(cluster, node, 1)
    answers = node.ask(KvDelete(b"0"))
    cluster.until(lambda: answers.calls)
    cluster.run(5.0)
    assert all(len(machine.replica.store.graves()) == 1 for machine in cluster.machines)
    cluster.run(10.0)
    assert all(machine.replica.store.graves() == [] for machine in cluster.machines)

"""The window of history stays within its bounds, on every node, by the leader's settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvnode.store.checks import check
from kvnode.store.commands import KvDelete
from tests.replica.harness import Cluster, Machine


def start(count: int = 1, **settings: Any) -> tuple[Cluster, Machine]:
    cluster = Cluster(count, **settings).found()
    return cluster, cluster.led_by(0)


def fill(cluster: Cluster, machine: Machine, count: int, size: int = 1) -> None:
    answers = [machine.write(b"%d" % number, bytes(size)) for number in range(count)]
    cluster.until(lambda: all(found.calls for found in answers))
    assert [found.error for found in answers] == [None] * count


def test_the_number_of_changes_is_bounded_on_every_node() -> None:
    cluster, node = start(3, history_entries_max=64)
    fill(cluster, node, 300)
    cluster.run(2.0)
    for machine in cluster.machines:
        store = machine.replica.store
        assert 64 <= store.meta.history_rows <= 68
        assert store.history_floor() == node.replica.store.history_floor() > 200
        assert check(store) == []


def test_their_bytes_are_bounded_too() -> None:
    cluster, node = start(history_bytes_max=100_000)
    fill(cluster, node, 10, 50_000)
    for _ in range(3):
        fill(cluster, node, 3, 60_000)
        cluster.run(0.5)
        assert node.replica.store.meta.history_bytes <= 106_250


def test_more_than_one_entry_forgets_is_forgotten_in_several() -> None:
    cluster, node = start(history_entries_max=3000)
    fill(cluster, node, 2900)
    cluster.run(1.0)
    assert node.replica.store.meta.history_rows == 2900
    node.replica.write_refusal = "the volume is nearly full"
    cluster.run(1.0)
    assert node.replica.store.meta.history_rows == 0, "what was deleted gives its space back"
    assert not node.replica.store.meta.recording, "deletes leave nothing behind"
    node.replica.write_refusal = ""
    cluster.run(0.5)
    fill(cluster, node, 5, 2)
    assert node.replica.store.meta.history_rows == 5


def test_deletes_on_a_nearly_full_volume_leave_nothing_behind() -> None:
    cluster, node = start()
    fill(cluster, node, 5, 1000)
    node.replica.write_refusal = "the volume is nearly full"
    for number in range(5):
        answer = node.ask(KvDelete(b"%d" % number))
        cluster.until(lambda answer=answer: answer.calls > 0)  # type: ignore[misc]
    cluster.run(0.5)
    assert node.replica.store.meta.history_bytes == 0


def test_history_is_switched_off_and_on_by_the_leaders_setting() -> None:
    cluster, node = start(3, history_entries_max=0)
    cluster.run(1.0)
    assert [m.replica.store.meta.recording for m in cluster.machines] == [False] * 3
    fill(cluster, node, 5)
    assert node.replica.store.meta.history_rows == 0

    index = node.replica.store.applied_index
    cluster.run(5.0)
    assert node.replica.store.applied_index == index, "said once"

    node.replica.settings = replace(node.replica.settings, history_entries_max=9)
    cluster.run(0.5)
    fill(cluster, node, 5, 9)
    cluster.run(0.5)
    assert [m.replica.store.meta.history_rows for m in cluster.machines] == [5] * 3

"""``GET /pods``: all are asked, within a bound in time; digests are compared at one index (RC-74)."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.replica.facade import PodStatus
from tests.replica.harness import Answers, Cluster


def ask(cluster: Cluster, number: int, *addresses: str) -> list[PodStatus]:
    answers = Answers()
    began = cluster.world.now
    cluster.machines[number].replica.pods(addresses, answers)
    assert answers.calls == 0
    cluster.until(lambda: answers.calls)
    assert cluster.world.now - began <= 2.1
    found: list[PodStatus] = answers.value
    return found


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster(3).found()
    leader = found.led_by(0)
    for number in range(10):
        leader.write(b"%d" % number)
    found.run(0.5)
    return found


@pytest.mark.parametrize("number", [0, 1])
def test_every_pod_is_there_once_with_an_equal_digest(cluster: Cluster, number: int) -> None:
    rows = ask(cluster, number, "n0:1", "n1:1", "n2:1")
    assert sorted(row.name for row in rows) == ["n0", "n1", "n2"]
    assert {row.keys for row in rows} == {10}
    assert len({(row.digest, row.digest_index) for row in rows}) == 1
    assert rows[0].digest
    assert sorted(row.role for row in rows) == ["follower", "follower", "leader"]
    assert {row.lag for row in rows} == {0}


def test_a_pod_that_lags_is_compared_at_the_index_that_all_have(cluster: Cluster) -> None:
    slow = cluster.machines[2]
    slow.journal.queue.hold = True
    cluster.machines[0].write(b"more")
    cluster.run(0.2)
    rows = {row.name: row for row in ask(cluster, 0)}
    assert rows["n2"].lag == 1
    assert len({row.digest for row in rows.values()}) == 1
    assert {row.digest_index for row in rows.values()} == {rows["n2"].applied_index}


def test_who_is_away_is_listed_with_the_reason(cluster: Cluster) -> None:
    cluster.machines[2].kill()
    rows = {row.address: row for row in ask(cluster, 0, "nobody:1")}
    assert not rows["n2:1"].reachable
    assert rows["n2:1"].error
    assert not rows["nobody:1"].reachable
    assert rows["n0:1"].digest == rows["n1:1"].digest != ""


def test_a_silent_pod_costs_a_second_and_not_more(cluster: Cluster) -> None:
    cluster.machines[1].clock.pause()
    n1: Any = cluster.machines[1].transport
    n1.receive_request = lambda *_: None
    rows = {row.address: row for row in ask(cluster, 0)}
    assert not rows["n1:1"].reachable


def test_a_pod_of_another_cluster_is_shown_and_not_compared(cluster: Cluster) -> None:
    stranger = Cluster(1)
    alone = cluster.add("n9")
    alone.seeds = []
    alone.start()
    rows = {row.name: row for row in ask(cluster, 0, "n9:1")}
    assert rows["n9"].cluster_id == ""
    assert rows["n9"].digest == ""
    assert rows["n0"].digest
    assert stranger.machines


def test_an_answer_of_the_wrong_form_is_an_error_in_its_row(cluster: Cluster) -> None:
    request = cluster.machines[0].transport.request_address

    def lying(address: str, method: str, payload: Any, timeout_s: float, done: Any) -> None:
        def changed(value: Any, error: Any) -> None:
            done((value[0], ["follower", "x"]) if method == "pod" and value else value, error)

        request(address, method, payload, timeout_s, changed)

    cluster.machines[0].transport.request_address = lying  # type: ignore[method-assign]
    rows = ask(cluster, 0)
    assert [row.reachable for row in rows if row.address != "n0:1"] == [False, False]


def test_an_empty_node_answers_for_itself() -> None:
    cluster = Cluster(3)
    cluster.machines[0].seeds = []
    cluster.machines[0].start()
    rows = ask(cluster, 0)
    assert [(row.name, row.digest) for row in rows] == [("n0", "")]

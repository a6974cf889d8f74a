"""Who may found a cluster, whatever its settings say (RC-55; decision 0006)."""

from __future__ import annotations

import pytest

from kvnode.agent_founding import licence
from kvnode.config import Config

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def expect(name: str, *, pod: bool = True, aside: bool = False, **settings: object) -> int:
    config = Config(node_name=name, **{"bootstrap_expect": 3, **settings})  # type: ignore[arg-type]
    found, why = licence(config, POD if pod else {}, name, set_aside=aside)
    assert bool(why) == (found == 0 < config.bootstrap_expect)
    return found


@pytest.mark.parametrize(("name", "number"), [("kv-0", 3), ("kv-2", 3), ("kv-3", 0), ("kv-12", 0)])
def test_a_later_pod_of_a_statefulset_is_never_a_founder(name: str, number: int) -> None:
    """New, empty pods would found a second cluster while the first one is down."""
    assert expect(name) == number
    assert expect(name, pod=False, kubernetes_statefulset="kv") == number


def test_outside_kubernetes_numbers_may_begin_anywhere() -> None:
    """``node-1`` to ``node-3`` are three founders."""
    assert expect("node-3", pod=False) == 3
    assert expect("node-17", pod=False) == 3


def test_a_name_that_is_not_the_pods_says_nothing() -> None:
    config = Config(node_name="kv-7", bootstrap_expect=3)
    assert licence(config, POD, "some-pod-x7k2p", set_aside=False).expect == 3
    assert expect("other-7", kubernetes_statefulset="kv") == 3


def test_a_node_to_try_things_out_is_its_own_cluster_in_any_pod() -> None:
    assert expect("playground-7", dev=True, bootstrap=True, bootstrap_expect=1) == 1


def test_ordinals_may_begin_above_zero() -> None:
    numbers = [expect(f"kv-{n}", kubernetes_first_ordinal=5) for n in (5, 7, 8)]
    assert numbers == [3, 3, 0]


def test_neither_a_read_replica_nor_who_set_data_aside_founds_anything() -> None:
    assert expect("kv-0", read_replica=True) == 0
    assert expect("kv-0", aside=True) == 0


def test_who_was_not_told_to_found_needs_no_reason() -> None:
    assert licence(Config(read_replica=True), POD, "kv-9", set_aside=True).ruled_out == ""

"""What Patroni asks of a store, through its own Consul back end, without a PostgreSQL."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chaos.processes import Node
from tests.clients.programs import Trio, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TTL_S = 20
"""Patroni's smallest: it asks for sessions of half of it."""

Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three nodes that allow no session below 12 s."""
    made = Trio(tmp_path_factory.mktemp("strict"), flags=("--session-ttl-min-s=12",))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Connect:
    """Make a back end as Patroni does; each test has a cluster of its own name."""
    pytest.importorskip("patroni", reason="needs the package patroni[consul]")
    from patroni.dcs import get_dcs

    def make(node: Node, name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_dcs(
                {
                    "scope": request.node.name.replace("_", "-"),
                    "name": name,
                    "ttl": TTL_S,
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "consul": {"url": node.url},
                }
            )

    return make


def test_the_race_for_the_leader_key_has_one_winner(trio: Trio, connect: Connect) -> None:
    """Each through a node of its own, at the same moment."""
    stores = [connect(node, f"pg-{n}") for n, node in enumerate(trio.nodes)]
    won: list[str] = []
    start = threading.Barrier(len(stores))

    def race(store: Any) -> None:
        store.touch_member({"state": "running"})
        start.wait(30)
        if store.attempt_to_acquire_leader():
            won.append(store._name)

    threads = [threading.Thread(target=race, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    for store in stores:
        cluster = store.get_cluster()
        assert cluster.leader.name == won[0]
        assert sorted(member.name for member in cluster.members) == ["pg-0", "pg-1", "pg-2"]


def test_initialise_configure_and_delete(trio: Trio, connect: Connect) -> None:
    one, other = (connect(node, f"pg-{n}") for n, node in enumerate(trio.nodes[:2]))
    assert one.initialize(create_new=True, sysid="7")
    assert not other.initialize(create_new=True, sysid="8")
    assert one.set_config_value('{"ttl":20}')
    version = other.get_cluster().config.version
    assert other.set_config_value('{"ttl":30}', version)
    assert not one.set_config_value('{"ttl":40}', version)  # cas
    assert one.get_cluster().config.data == {"ttl": 30}
    assert one.set_history_value("[[1,2]]")
    state = one.set_sync_state_value('{"leader":"pg-0","sync_standby":null}')
    assert state
    assert not other.set_sync_state_value("{}", int(state) - 1)
    assert one.delete_cluster()
    assert other.get_cluster().initialize is None


def test_a_watch_ends_when_the_leader_key_changes(trio: Trio, connect: Connect) -> None:
    leader, follower = (connect(node, f"pg-{n}") for n, node in enumerate(trio.nodes[:2]))
    leader.touch_member({"state": "running"})
    assert leader.attempt_to_acquire_leader()
    version = follower.get_cluster().leader.version
    follower.watch(version, 1)  # the first one ends at once, since the TTL was just set
    began = time.monotonic()
    assert follower.watch(version, 1.5) is not True  # nothing changed: the time ran out
    assert time.monotonic() - began >= 1.0
    threading.Timer(0.5, lambda: leader.delete_leader(leader.get_cluster().leader)).start()
    began = time.monotonic()
    follower.watch(version, 30)
    assert time.monotonic() - began < 10
    assert follower.get_cluster().is_unlocked()


def test_the_leader_key_goes_when_its_patroni_is_gone(trio: Trio, connect: Connect) -> None:
    """After the session's TTL, and not before: nobody renews it any more."""
    dead, alive = (connect(node, f"pg-{n}") for n, node in enumerate(trio.nodes[:2]))
    dead.touch_member({"state": "running"})
    assert dead.attempt_to_acquire_leader()
    gone_at = time.monotonic()
    assert not alive.attempt_to_acquire_leader()
    wait_for(lambda: alive.get_cluster().is_unlocked(), "the key is free", 2 * TTL_S)
    assert time.monotonic() - gone_at >= TTL_S / 2
    assert alive.attempt_to_acquire_leader()


def test_it_adapts_to_the_shortest_ttl_allowed(strict: Trio, connect: Connect) -> None:
    """It recognises the refusal by its text, and reads ``Config.SessionTTLMin`` of ``agent/self``."""
    store = connect(strict.followers[0], "pg-0")
    assert store.touch_member({"state": "running"})
    assert store.attempt_to_acquire_leader()
    session = strict.json(strict.nodes[0], "/v1/session/list")[0]
    assert float(session["TTL"].removesuffix("s")) >= 12


def test_it_keeps_its_lock_through_a_change_of_kvnodes_leader(trio: Trio, connect: Connect) -> None:
    store = connect(trio.followers[0], "pg-0")
    store.touch_member({"state": "running"})
    assert store.attempt_to_acquire_leader()
    leader = store.get_cluster().leader
    status, body = trio.ask(trio.leader, "POST", "/v1/operator/raft/transfer-leader")
    assert status == 200, body
    assert store.update_leader(store.get_cluster(), None, None, None) or store._update_leader(
        leader
    )
    assert store.get_cluster().leader.name == "pg-0"

"""One cluster, whatever crashes, whoever sees whom, and however late a message is (RC-50, RC-55, RC-56)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvnode.errors import DiskFailed, KvnodeError, Removed
from kvnode.ports import Hello
from kvnode.raft.types import Member, NodeId
from kvnode.replica.formation import Pledge, by_ordinal
from kvnode.transport.handshake import PROTOCOL
from tests.replica.harness import CLUSTER, Answers, Cluster, Died, Machine


def start(count: int = 3, **settings: Any) -> Cluster:
    cluster = Cluster(count, **settings)
    for machine in cluster.machines:
        machine.start()
    return cluster


def formed(cluster: Cluster) -> bool:
    """Everybody belongs, and there is a leader whose data everybody may change."""
    leader = cluster.leader()
    return (
        leader is not None
        and leader.replica.raft.has_term_commit
        and all(m.replica.cluster_id and not m.replica.stopped for m in cluster.machines)
    )


def check_one_cluster(cluster: Cluster) -> None:
    assert len({machine.record.cluster_id for machine in cluster.machines}) == 1
    answers = [machine.write(machine.name.encode()) for machine in cluster.machines]
    cluster.until(lambda: all(found.calls for found in answers))
    assert [found.error for found in answers] == [None] * len(answers)


def hello(machine: Machine, **changes: Any) -> Hello:
    return machine.transport.hello._replace(**changes)


def take(machine: Machine, sender: Hello, pledge: str | Pledge) -> list[bool]:
    """Ask a machine for its pledge; what it says arrives in the list."""
    said: list[bool] = []
    payload = pledge.encode() if isinstance(pledge, Pledge) else pledge
    machine.replica.formation.take_pledge(sender, payload, said.append)
    return said


def pledge_of(cluster: Cluster, bootstrapper: int, name: str = "c1") -> Pledge:
    members = tuple(machine.member() for machine in cluster.machines)
    return Pledge(name, members[bootstrapper].node_id, members)


# -- the plain story ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_all_that_are_expected_found_one_cluster(count: int) -> None:
    cluster = start(count)
    cluster.until(lambda: formed(cluster))
    check_one_cluster(cluster)
    founders = [m.name for m in cluster.machines if m.events("cluster_founded")]
    assert founders == ["n0"]
    assert all(machine.record.pledge == "" for machine in cluster.machines)


def test_nobody_bootstraps_before_all_have_answered() -> None:
    cluster = Cluster(3)
    for machine in cluster.machines[:2]:
        machine.start()
    cluster.run(30.0)
    assert not any(machine.record.cluster_id for machine in cluster.machines)
    assert "found 2 of 3" in cluster.machines[0].replica.status().reason
    cluster.machines[2].start()
    cluster.until(lambda: formed(cluster))
    check_one_cluster(cluster)


def test_nobody_bootstraps_who_can_reach_data() -> None:
    """RC-50: a wiped node asks to join, whatever it was told to expect."""
    cluster = start()
    cluster.until(lambda: formed(cluster))
    first = cluster.machines[0]
    cluster_id = first.record.cluster_id
    first.kill()
    first.wipe()
    first.start()
    cluster.until(lambda: first.record.cluster_id)
    assert first.record.cluster_id == cluster_id
    assert not first.events("cluster_founded")


def test_nodes_that_expect_different_numbers_wait_and_say_so() -> None:
    cluster = Cluster(3)
    cluster.machines[1].settings = Cluster(2).settings
    for machine in cluster.machines:
        machine.start()
    cluster.run(20.0)
    assert not any(machine.record.cluster_id for machine in cluster.machines)
    assert "expects 2 nodes, not 3" in cluster.machines[0].replica.status().reason


def test_two_nodes_of_one_name_wait_and_say_so() -> None:
    cluster = Cluster(3)
    cluster.machines[2].record = cluster.machines[2].record._replace(name="n1")
    for machine in cluster.machines:
        machine.start()
    cluster.run(20.0)
    assert not any(machine.record.cluster_id for machine in cluster.machines)
    assert "two nodes are called n1" in cluster.machines[0].replica.status().reason


def test_a_node_that_is_not_told_to_bootstrap_never_does() -> None:
    cluster = Cluster(0)
    alone = cluster.add("n0")
    alone.start()
    cluster.run(20.0)
    assert not alone.record.cluster_id
    assert "not told to bootstrap" in alone.replica.status().reason


def test_discovery_that_fails_or_knows_nobody_is_asked_again() -> None:
    """RC-56."""
    cluster = Cluster(3)
    cluster.machines[0].seeds = []
    for machine in cluster.machines:
        machine.start()
    cluster.run(10.0)
    assert not any(machine.record.cluster_id for machine in cluster.machines)
    cluster.machines[0].seeds = None
    cluster.until(lambda: formed(cluster))


def test_a_failed_write_of_the_identity_stops_the_node() -> None:
    """RC-8."""
    cluster = start()
    victim = cluster.machines[1]

    def save(_cluster_id: str, _pledge: str, done: Any) -> None:
        victim.clock.call_soon(done, DiskFailed("input/output error"))

    victim.identity.save = save  # type: ignore[method-assign, assignment]
    cluster.until(lambda: victim.fatal)
    assert isinstance(victim.fatal, DiskFailed)


# -- crashes ------------------------------------------------------------------------------------------


def run_with_deaths(cluster: Cluster, *, wipe: bool = False) -> bool:
    """Until there is a cluster; whoever dies on the way is started again. Whether anybody did."""
    died = False
    for _ in range(3):
        try:
            cluster.until(lambda: formed(cluster), 60.0)
        except Died as death:
            death.machine.kill()
            if wipe:
                death.machine.wipe()
            cluster.run(0.5)
            death.machine.start()
            died = True
        else:
            return died
    raise AssertionError("dies again and again")


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_any_node_may_die_at_any_write_of_the_bootstrap(victim: int) -> None:
    at, died = 0, True
    while died:
        at += 1
        cluster = start()
        cluster.machines[victim].dies_in = at
        died = run_with_deaths(cluster)
        if died:
            check_one_cluster(cluster)
        assert at < 40
    assert at > 3


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_any_node_may_lose_its_volume_while_pledges_are_collected(victim: int) -> None:
    """Whoever was bound to it must become free again; nothing had been founded."""
    for at in (1, 2):
        cluster = start()
        cluster.machines[victim].dies_in = at
        assert run_with_deaths(cluster, wipe=True)
        check_one_cluster(cluster)


@pytest.mark.parametrize("victim", [1, 2])
def test_a_member_may_lose_its_volume_at_any_write(victim: int) -> None:
    """RC-49: it comes back as a new incarnation, in the old one's place."""
    at, died = 0, True
    while died:
        at += 1
        cluster = start()
        cluster.machines[victim].dies_in = at
        died = run_with_deaths(cluster, wipe=True)
        if died:
            check_one_cluster(cluster)
        assert at < 40


def test_all_may_die_at_once_at_any_time() -> None:
    for pause in range(1, 40, 2):
        cluster = start()
        cluster.run(pause * 0.002)
        for machine in cluster.machines:
            machine.kill()
        for machine in cluster.machines:
            machine.start()
        cluster.until(lambda cluster=cluster: formed(cluster), 60.0)  # type: ignore[misc]
        check_one_cluster(cluster)


# -- who sees whom ------------------------------------------------------------------------------------


def test_two_halves_that_each_see_enough_found_one_cluster() -> None:
    """RC-55: a node is bound to one of them at a time."""
    for seed in range(10):
        cluster = Cluster(3)
        extra = cluster.add("n3")
        names = cluster.addresses()
        cluster.machines[0].seeds = names[:3]
        for machine in cluster.machines[1:3]:
            machine.seeds = names[1:]
        extra.seeds = names[1:]
        for machine in cluster.machines[seed % 4 :] + cluster.machines[: seed % 4]:
            machine.start()
            cluster.run(0.3)
        cluster.until(lambda cluster=cluster: formed(cluster), 120.0)  # type: ignore[misc]
        check_one_cluster(cluster)


# -- pledges ------------------------------------------------------------------------------------------


def idle(count: int = 3) -> Cluster:
    """Nodes that know nobody and do nothing by themselves."""
    cluster = Cluster(count)
    for machine in cluster.machines:
        machine.seeds = []
        machine.start()
    return cluster


def test_a_pledge_is_answered_once_it_is_durable() -> None:
    cluster = idle()
    n0, n1, _ = cluster.machines
    n1.identity.queue.hold = True
    said = take(n1, hello(n0), pledge_of(cluster, 0))
    cluster.run(0.1)
    assert said == []
    n1.identity.queue.release()
    assert said == [True]
    assert n1.record.pledge


def test_a_second_bootstrapper_is_refused_also_while_the_first_pledge_is_being_written() -> None:
    """Two yeses from one node could found two clusters."""
    cluster = idle()
    n0, n1, n2 = cluster.machines
    n1.identity.queue.hold = True
    first = take(n1, hello(n0), pledge_of(cluster, 0))
    second = take(n1, hello(n2), pledge_of(cluster, 2, "c2"))
    n1.identity.queue.hold = False
    n1.identity.queue.release()
    third = take(n1, hello(n2), pledge_of(cluster, 2, "c2"))
    assert (first, second, third) == ([True], [False], [False])
    assert Pledge.decode(n1.record.pledge).cluster_id == "c1"


def test_the_same_bootstrapper_may_begin_again() -> None:
    cluster = idle()
    n0, n1, _ = cluster.machines
    for name in ("c1", "c2"):
        said = take(n1, hello(n0), pledge_of(cluster, 0, name))
        cluster.run(0.1)
        assert said == [True]
    assert Pledge.decode(n1.record.pledge).cluster_id == "c2"


def test_every_try_of_one_bootstrapper_has_the_same_id() -> None:
    """Else a late request of an earlier try would bind a node to what will never be."""
    seen: set[str] = set()
    cluster = start()
    cluster.machines[2].identity.queue.hold = True  # it never says yes
    for _ in range(3):
        cluster.until(lambda: cluster.machines[0].record.pledge)
        seen.add(Pledge.decode(cluster.machines[0].record.pledge).cluster_id)
        cluster.until(lambda: not cluster.machines[0].record.pledge)
    assert len(seen) == 1


def test_an_old_answer_does_not_free_a_node_from_a_pledge_given_since() -> None:
    """It asked who the bootstrapper is, then gave its pledge anew, then the answer came."""
    cluster = Cluster(3)
    n0, n1, n2 = cluster.machines
    n0.seeds = n2.seeds = []
    n1.seeds = [n0.address]
    for machine in cluster.machines:
        machine.start()
    pledge = pledge_of(cluster, 0)
    request = n1.transport.request_address
    held: list[Any] = []

    def slow(address: str, method: str, payload: Any, timeout_s: float, done: Any) -> None:
        request(
            address,
            method,
            payload,
            timeout_s,
            lambda value, error: held.append((done, value, error)),
        )

    n1.transport.request_address = slow  # type: ignore[method-assign]
    first = take(n1, hello(n0), pledge)
    cluster.run(0.1)
    assert held, "the answers of one round, on their way"
    again = take(n1, hello(n0), pledge)
    cluster.run(0.1)
    assert (first, again) == ([True], [True])
    for done, value, error in held:
        done(value, error)
    cluster.run(0.01)
    assert n1.record.pledge == pledge.encode()


def test_a_pledge_is_released_when_its_bootstrapper_holds_no_such_cluster() -> None:
    cluster = idle()
    n0, n1, _ = cluster.machines
    take(n1, hello(n0), pledge_of(cluster, 0))
    cluster.run(0.1)
    cluster.until(lambda: not n1.record.pledge)


def test_a_pledge_is_kept_as_long_as_its_bootstrapper_is_silent() -> None:
    """It may have founded the cluster, and be down."""
    cluster = idle()
    n0, n1, n2 = cluster.machines
    take(n1, hello(n0), pledge_of(cluster, 0))
    cluster.run(0.01)
    n0.kill()
    n1.seeds = n2.seeds = None
    cluster.run(30.0)
    assert n1.record.pledge
    assert "promised to a cluster that n0 is forming" in n1.replica.status().reason


@pytest.mark.parametrize(
    "change",
    ["no_json", "wrong_shape", "deep", "not_bootstrapper", "without_me", "too_few", "twice", "no_id",
     "stranger", "expects", "number"],
)  # fmt: skip
def test_a_pledge_that_is_not_right_is_refused(change: str) -> None:
    """What a peer sends is never trusted."""
    cluster = idle()
    n0, n1, n2 = cluster.machines
    good = pledge_of(cluster, 0)
    sender = hello(n0)
    payload: Any = {
        "no_json": "{",
        "wrong_shape": json.dumps(["c1", "n0", [5]]),
        "deep": "[" * 100_000,
        "without_me": good._replace(
            members=(n0.member(), n2.member(), Member(NodeId("x"), "x", "x:1"))
        ),
        "too_few": good._replace(members=good.members[:2]),
        "twice": good._replace(members=(n0.member(), n1.member(), n1.member())),
        "no_id": good._replace(cluster_id=""),
        "stranger": good._replace(bootstrapper=NodeId("x")),
        "number": 5,
    }.get(change, good)
    if change == "not_bootstrapper":
        sender = hello(n2)
    if change == "stranger":
        sender = hello(n0, node_id=NodeId("x"))
    if change == "expects":
        sender = hello(n0, expect=5)
    said: list[bool] = []
    text = payload.encode() if isinstance(payload, Pledge) else payload
    n1.replica.formation.take_pledge(sender, text, said.append)
    cluster.run(0.1)
    assert said == [False]
    assert n1.record.pledge == ""


def test_a_node_that_belongs_somewhere_gives_no_pledge() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    said = take(cluster.machines[1], hello(cluster.machines[0]), pledge_of(cluster, 0))
    assert said == [False]
    assert cluster.machines[1].record.cluster_id == CLUSTER


def test_a_node_that_is_asking_to_join_gives_no_pledge() -> None:
    cluster = idle()
    n0, n1, n2 = cluster.machines
    n1.replica.formation._join(Hello(PROTOCOL, "other", NodeId("z"), "z", 1, n2.address, "", 0))
    assert take(n1, hello(n0), pledge_of(cluster, 0)) == [False]


# -- joining ------------------------------------------------------------------------------------------


def test_a_node_is_greeted_by_the_cluster_of_its_pledge_and_belongs() -> None:
    cluster = idle()
    n0, n1, _ = cluster.machines
    take(n1, hello(n0), pledge_of(cluster, 0))
    cluster.run(0.01)
    n1.replica.formation.greeted(hello(n0, cluster_id="another"))
    cluster.run(0.01)
    assert not n1.record.cluster_id
    n1.replica.formation.greeted(hello(n0, cluster_id="c1"))
    n1.replica.formation.greeted(hello(n0, cluster_id="c1"))
    cluster.run(0.01)
    assert n1.record.cluster_id == "c1"
    assert n1.record.pledge == ""


def test_nobody_can_talk_a_bootstrapper_into_its_own_cluster_before_it_is_founded() -> None:
    cluster = start()
    n0, n1, n2 = cluster.machines
    n2.identity.queue.hold = True  # not everybody has said yes
    cluster.until(lambda: n0.record.pledge)
    mine = Pledge.decode(n0.record.pledge)
    n0.replica.formation.greeted(hello(n1, cluster_id=mine.cluster_id))
    cluster.run(0.1)
    assert not n0.record.cluster_id
    n2.identity.queue.hold = False
    n2.identity.queue.release()
    cluster.until(lambda: formed(cluster))
    check_one_cluster(cluster)


def test_a_voter_that_never_heard_of_its_cluster_is_let_in_without_a_leader() -> None:
    """Its vote may be the one that the others need; nobody leads, so nobody could admit it."""
    cluster = Cluster(3)
    members = tuple(machine.member() for machine in cluster.machines)
    for machine in cluster.machines[:2]:
        machine.belongs(members)
    cluster.machines[0].start()
    third = cluster.machines[2]
    third.start()
    cluster.until(lambda: third.record.cluster_id, 20.0)
    assert third.record.cluster_id == CLUSTER
    cluster.machines[1].start()
    cluster.until(lambda: formed(cluster))


def test_a_node_that_is_not_let_in_yet_asks_again() -> None:
    cluster = Cluster(3).found()
    new = cluster.add("n3")
    new.start()
    for machine in cluster.machines[:3]:
        machine.kill()
    cluster.run(5.0)
    assert not new.record.cluster_id
    for machine in cluster.machines[:3]:
        machine.start()
    cluster.until(lambda: new.record.cluster_id)


def test_nobody_joins_in_somebody_elses_name() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    errors: list[KvnodeError | None] = []
    for payload in (
        ["x", "x", "x:1"],
        ["n1", "other", "x:1"],
        ["n1"],
        None,
        [1, 2, 3],
        ["", "n", "a"],
    ):
        answers = Answers()
        cluster.machines[1].transport.request(NodeId("n0"), "join", payload, 5.0, answers)
        cluster.until(lambda found=answers: found.calls)  # type: ignore[misc]
        errors.append(answers.error)
    assert all(error is not None for error in errors)


# -- names --------------------------------------------------------------------------------------------


def test_names_are_sorted_by_ordinal() -> None:
    names = ["kv-10", "kv-2", "kv-0", "a", "kv", "10", "9", "kv-2-1", "kv-x", "²", "kv-²"]
    ordered = sorted(names, key=by_ordinal)
    assert ordered.index("kv-2") < ordered.index("kv-10")
    assert ordered.index("9") < ordered.index("10")
    assert sorted(ordered) == sorted(names)


def test_an_empty_node_that_was_removed_before_it_heard_that_it_was_let_in_begins_anew() -> None:
    """Its incarnation can never come back, and it has nothing to lose (RC-47). Found by the simulator."""
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    new = cluster.add("n3")
    for step in ("join", "remove"):
        answers = Answers()
        if step == "join":
            leader.replica.steward.join(new.member(), answers)
        else:
            leader.replica.remove_member(new.record.node_id, answers)
        cluster.until(lambda answers=answers: answers.calls)  # type: ignore[misc]
        assert answers.error is None
    new.start()
    cluster.until(lambda: new.fatal is not None, 20.0)
    assert isinstance(new.fatal, Removed)
    assert new.identity.aside
    new.kill()
    new.wipe()
    new.start()
    cluster.until(lambda: "n3-2" in leader.replica.raft.membership.voters, 30.0)


def promised_to(cluster_id: str) -> tuple[Cluster, Machine]:
    cluster = Cluster(3)
    machine = cluster.machines[1]
    members = tuple(m.member() for m in cluster.machines)
    pledge = Pledge(cluster_id, members[0].node_id, members).encode()
    machine.record = machine.record._replace(pledge=pledge)
    machine.start()
    return cluster, machine


def test_a_promised_node_is_not_talked_out_of_its_promise() -> None:
    """Not even by a cluster that once removed it."""
    cluster, machine = promised_to("c")
    machine.replica.removed("another")
    cluster.run(1.0)
    assert machine.fatal is None
    assert not machine.identity.aside


def test_a_promised_node_that_its_cluster_removed_before_it_heard_of_it_begins_anew() -> None:
    """It was there when the cluster was founded, and would wait for ever. Found by the simulator."""
    cluster, machine = promised_to("c")
    machine.replica.removed("c")
    cluster.until(lambda: machine.fatal is not None)
    assert isinstance(machine.fatal, Removed)
    assert machine.identity.aside

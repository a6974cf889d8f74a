"""Members in the registry, their health, and the leader's clocks of checks, on a cluster of virtual time."""

from __future__ import annotations

from typing import Any

from kvnode.replica.check_timers import DEREGISTER_MIN_S
from kvnode.replica.deadlines import Deadlines
from kvnode.store.checks import check as audit
from kvnode.store.commands import KvLock, SessionCreate
from kvnode.store.own_commands import Refused
from kvnode.store.records import RELEASE
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_reads import Registry
from kvnode.store.registry_records import Check, CheckDefinition, Service
from tests.replica.harness import Cluster, Machine

ONE = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
TWO = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a78"


def registry(machine: Machine) -> Registry:
    return machine.replica.store.registry()


def status(machine: Machine, node: str, check_id: str = "serfHealth") -> str:
    found = registry(machine).check(node, check_id)
    return found.status if found is not None else ""


def ask(cluster: Cluster, machine: Machine, command: Any) -> Any:
    answers = machine.ask(command)
    cluster.until(lambda: answers.calls)
    assert answers.error is None, answers.error
    return answers.value.value


def session(session_id: str, node: str, *checks: str) -> SessionCreate:
    return SessionCreate(session_id, "", node, 0, RELEASE, "", 0, checks, (), checked=True)


def service(node: str = "n0", **definition: int) -> Register:
    check = Check(
        node,
        "c",
        "c",
        "passing",
        service_id="web",
        type="ttl",
        definition=CheckDefinition(**definition),
        is_local=True,
    )
    return Register(node, service=Service(node, "web", "web"), checks=(check,))


def led(count: int = 3, **settings: Any) -> tuple[Cluster, Machine]:
    cluster = Cluster(count, **settings).found()
    return cluster, cluster.led_by(0)


def sound(cluster: Cluster) -> None:
    for machine in cluster.machines:
        if not machine.replica.stopped:
            assert audit(machine.replica.store) == []


# --- members


def test_every_member_is_a_healthy_node_at_once() -> None:
    """A client of a new cluster may make a session in the first moment."""
    cluster = Cluster(3).found()
    cluster.until(cluster.leader)
    leader = cluster.leader()
    assert leader is not None
    assert ask(cluster, leader, session(ONE, "n2", "serfHealth")) is True
    nodes = registry(leader).nodes()
    assert [node.name for node in nodes] == ["n0", "n1", "n2"]
    assert len(registry(leader).instances("consul")) == 3
    sound(cluster)


def test_what_somebody_took_away_comes_back() -> None:
    cluster, leader = led()
    ask(cluster, leader, Deregister("n1"))
    cluster.until(lambda: status(leader, "n1") == "passing")


def test_a_node_that_somebody_registered_is_left_alone() -> None:
    cluster, leader = led()
    cluster.until(lambda: status(leader, "n1"))
    outside = Check("n9", "serfHealth", "s", "critical")
    node = registry(leader).node("n1")
    assert node is not None
    ask(cluster, leader, Register("n9", node._replace(node_id="", name="n9"), checks=(outside,)))
    cluster.run(20.0)
    assert status(leader, "n9") == "critical"


def test_a_short_silence_costs_nobody_a_session_and_a_long_one_does() -> None:
    """Spec §11 [k]: a restart is short."""
    cluster, leader = led(node_failure_s=5.0)
    ask(cluster, leader, session(ONE, "n2", "serfHealth"))
    ask(cluster, leader, session(TWO, "n2"))
    ask(cluster, leader, KvLock(b"k", b"", ONE))
    machine = cluster.machines[2]
    machine.kill()
    cluster.run(4.0)
    machine.start()
    cluster.run(3.0)
    assert status(leader, "n2") == "passing"
    machine.kill()
    cluster.until(lambda: status(leader, "n2") == "critical", 10.0)
    store = leader.replica.store
    assert store.session(ONE) is None
    assert store.session(TWO) is not None
    pair = store.get(b"k")
    assert pair is not None
    assert pair.session == ""
    refused = ask(cluster, leader, session(ONE, "n2", "serfHealth"))
    assert isinstance(refused, Refused)
    assert refused.key == b"Check 'serfHealth' is in critical state"
    machine.start()
    cluster.until(lambda: status(leader, "n2") == "passing", 10.0)
    sound(cluster)


def test_a_new_leader_gives_a_silent_member_its_time_in_full() -> None:
    cluster, leader = led(5, node_failure_s=4.0)
    cluster.machines[4].kill()
    cluster.run(3.0)
    leader.kill()
    cluster.until(lambda: cluster.leader() not in (None, leader))
    new = cluster.leader()
    assert new is not None
    cluster.run(3.0)
    assert status(new, "n4") == "passing"
    cluster.until(lambda: status(new, "n4") == "critical", 10.0)


def test_who_is_removed_is_deregistered_and_sessions_without_checks_go_on() -> None:
    """Spec §11 [k]: a session without checks does not depend on a node."""
    cluster, leader = led()
    ask(cluster, leader, session(ONE, "n2", "serfHealth"))
    ask(cluster, leader, session(TWO, "n2"))
    leader.replica.remove_member(cluster.machines[2].record.node_id, lambda _value, _error: None)
    cluster.until(lambda: registry(leader).node("n2") is None)
    store = leader.replica.store
    assert store.session(ONE) is None
    assert store.session(TWO) is not None


def test_who_is_removed_goes_although_a_change_of_it_is_under_way() -> None:
    """It is a voter no more as soon as its removal is in the log, and that is registered meanwhile."""
    cluster, leader = led()
    cluster.run(1.0)
    log, writes = leader.replica.raft.log, leader.journal.queue
    before = log.last_index
    writes.hold = True
    leader.replica.remove_member(cluster.machines[2].record.node_id, lambda _value, _error: None)
    cluster.until(lambda: log.last_index == before + 2)
    writes.release(1)
    cluster.until(lambda: log.commit_index == before + 1)
    cluster.run(1.0)  # the leader looks for who has left: something of that one is under way
    writes.hold = False
    writes.release()
    cluster.until(lambda: registry(leader).node("n2") is None, 5.0)


# --- checks


def test_a_check_that_nobody_reports_expires_and_not_before_its_ttl() -> None:
    """RC-61."""
    cluster, leader = led()
    ask(cluster, leader, service(ttl_ns=2 * 10**9))
    for _ in range(5):
        cluster.run(1.5)
        assert status(leader, "n0", "c") == "passing"
        assert ask(cluster, cluster.machines[1], UpdateCheck("n0", "c", "ttl", "passing", "o"))
    cluster.run(1.8)
    assert status(leader, "n0", "c") == "passing"
    cluster.run(0.5)
    found = registry(leader).check("n0", "c")
    assert found is not None
    assert found.status == "critical"
    assert found.output == "TTL expired (last output before timeout follows): o"
    index = found.modify_index
    cluster.run(10.0)
    found = registry(leader).check("n0", "c")
    assert found is not None
    assert found.modify_index == index


def test_a_new_leader_gives_a_check_its_ttl_in_full() -> None:
    """RC-61."""
    cluster, leader = led()
    ask(cluster, leader, service(ttl_ns=4 * 10**9))
    cluster.run(3.5)
    leader.kill()
    cluster.until(cluster.leader)
    new = cluster.leader()
    assert new is not None
    cluster.run(3.0)
    assert status(new, "n0", "c") == "passing"
    cluster.until(lambda: status(new, "n0", "c") == "critical", 5.0)


def test_a_new_leaders_wait_for_its_first_commit_is_not_taken_from_a_report() -> None:
    cluster, leader = led()
    ask(cluster, leader, service(ttl_ns=5 * 10**8))
    leader.kill()
    new, other = cluster.machines[1:]
    new.replica.raft.campaign()
    new.replica.wake()
    cluster.until(lambda: new.replica.is_leader)
    other.journal.queue.hold = True
    report = new.ask(UpdateCheck("n0", "c", "ttl", "passing", "o"))
    cluster.run(0.9)
    other.journal.queue.hold = False
    other.journal.queue.release()
    cluster.until(lambda: report.calls)
    cluster.run(0.4)
    assert status(new, "n0", "c") == "passing"
    cluster.run(0.4)
    assert status(new, "n0", "c") == "critical"


def test_nothing_expires_before_a_report_in_the_log_is_applied() -> None:
    """A registration with a longer TTL waits for a majority while the shorter one runs out."""
    cluster, leader = led()
    ask(cluster, leader, service(ttl_ns=10**9))
    others = cluster.machines[1:]
    for machine in others:
        machine.journal.queue.hold = True
    longer = leader.ask(service(ttl_ns=60 * 10**9))
    cluster.run(0.9)
    for machine in others:
        machine.journal.queue.hold = False
        machine.journal.queue.release()
    cluster.until(lambda: longer.calls)
    cluster.run(5.0)
    assert status(leader, "n0", "c") == "passing"


def test_a_service_that_stays_critical_is_deregistered() -> None:
    cluster, leader = led()
    ask(cluster, leader, service(ttl_ns=10**9, deregister_ns=1))
    cluster.until(lambda: status(leader, "n0", "c") == "critical")
    cluster.run(DEREGISTER_MIN_S - 2.0)
    assert registry(leader).service("n0", "web") is not None
    cluster.until(lambda: registry(leader).service("n0", "web") is None, 5.0)
    sound(cluster)


def test_a_service_that_recovers_begins_anew() -> None:
    cluster, leader = led()
    ask(cluster, leader, service(ttl_ns=3600 * 10**9, deregister_ns=1))
    for seen in ("critical", "passing", "critical"):
        ask(cluster, leader, UpdateCheck("n0", "c", "ttl", seen, ""))
        cluster.run(DEREGISTER_MIN_S - 5.0)
        assert registry(leader).service("n0", "web") is not None


def test_deadlines_come_in_order_and_can_be_moved() -> None:
    deadlines = Deadlines()
    for number in range(3000):
        deadlines.set(b"%d" % (number % 10), number)
    deadlines.set(b"0", 5.0)
    deadlines.drop(b"1")
    assert b"1" not in deadlines
    assert deadlines.take_due(4.9, 100) == []
    assert deadlines.take_due(5.0, 100) == [b"0"]
    assert deadlines.take_due(2995.0, 2) == [b"2", b"3"]
    assert deadlines.take_due(1e9, 100) == [b"4", b"5", b"6", b"7", b"8", b"9"]
    assert deadlines.take_due(1e9, 100) == []

"""What operators ask: removing, handing over, and waiting for a commit without wishful thinking."""

from __future__ import annotations

from kvnode.errors import (
    KvnodeError,
    LeadershipLost,
    MembershipRefused,
    NoLeader,
    NotLeader,
    Timeout,
)
from kvnode.raft.types import Index, LogId, NodeId, Term
from tests.replica.harness import Answers, Cluster, Machine


def start(count: int = 3) -> tuple[Cluster, list[Machine]]:
    cluster = Cluster(count).found()
    cluster.led_by(0)
    return cluster, cluster.machines


def remove(machine: Machine, name: str) -> Answers:
    answers = Answers()
    machine.replica.remove_member(NodeId(name), answers)
    return answers


def transfer(machine: Machine, name: str | None) -> Answers:
    answers = Answers()
    machine.replica.transfer_leadership(NodeId(name) if name else None, answers)
    return answers


def test_any_node_may_be_asked_to_remove_a_member() -> None:
    cluster, machines = start()
    answers = remove(machines[1], "n2")
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    assert machines[0].replica.raft.membership.nodes() == ["n0", "n1"]


def test_a_leader_that_removes_itself_hands_over_first() -> None:
    cluster, machines = start()
    answers = remove(machines[0], "n0")
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    cluster.until(lambda: machines[0].fatal)
    leader = cluster.leader()
    assert leader is not None
    assert leader.replica.raft.membership.nodes() == ["n1", "n2"]


def test_a_leader_that_cannot_hand_over_says_why_it_cannot_go() -> None:
    """It used to say that there is no leader."""
    cluster, machines = start()
    cluster.isolate(machines[0])
    answers = remove(machines[0], "n0")
    cluster.until(lambda: answers.calls)
    assert not isinstance(answers.error, NoLeader)


def test_the_last_voter_and_strangers_are_not_removed() -> None:
    cluster, machines = start(1)
    for name in ("n0", "somebody"):
        answers = remove(machines[0], name)
        cluster.until(lambda found=answers: found.calls)  # type: ignore[misc]
        assert isinstance(answers.error, MembershipRefused)


def test_leadership_goes_to_whom_the_operator_names_from_anywhere() -> None:
    cluster, machines = start()
    answers = transfer(machines[1], "n2")
    cluster.until(lambda: answers.calls)
    assert answers.value == "n2"
    assert cluster.leader() is machines[2]


def test_leadership_goes_to_the_most_advanced_voter_by_default() -> None:
    cluster, machines = start()
    cluster.network.cut(NodeId("n0"), NodeId("n1"))
    write = machines[0].write(b"k")
    cluster.until(lambda: write.calls)
    answers = transfer(machines[0], None)
    cluster.until(lambda: answers.calls)
    assert answers.value == "n2"


def test_a_transfer_to_nobody_is_refused() -> None:
    cluster, machines = start()
    for name in ("n0", "somebody"):
        answers = transfer(machines[0], name)
        cluster.until(lambda found=answers: found.calls)  # type: ignore[misc]
        assert isinstance(answers.error, MembershipRefused)


def test_a_transfer_that_nobody_takes_up_ends_and_writes_go_on() -> None:
    """RC-19."""
    cluster, machines = start()
    machines[1].clock.pause()
    answers, write = transfer(machines[0], "n1"), machines[0].write(b"k")
    cluster.until(lambda: answers.calls)
    assert isinstance(answers.error, Timeout)
    assert answers.effect == "no"
    cluster.until(lambda: write.calls)
    assert write.error is None


def test_without_a_leader_an_operator_is_told_at_once() -> None:
    cluster, machines = start()
    cluster.isolate(machines[0])
    cluster.until(lambda: machines[0].replica.raft.leader_id is None)
    for answers in (remove(machines[0], "n2"), transfer(machines[0], "n2")):
        cluster.until(lambda found=answers: found.calls, 0.1)  # type: ignore[misc]
        assert isinstance(answers.error, NoLeader)


def test_only_a_leader_hands_over() -> None:
    cluster, machines = start()
    answers = Answers()
    machines[1].replica.admin.transfer_here(None, answers)
    cluster.run(0.01)
    assert isinstance(answers.error, NotLeader)


# -- waiting for a commit -----------------------------------------------------------------------------


def test_a_change_is_done_only_when_its_very_entry_is_committed() -> None:
    cluster, machines = start()
    replica = machines[0].replica
    log = replica.raft.log
    seen: dict[str, list[KvnodeError | None]] = {name: [] for name in ("same", "other", "never")}
    admin = replica.admin
    admin.when_committed(log.last, 9.0, seen["same"].append)
    other = LogId(log.last.index, Term(log.last.term + 5))
    admin.when_committed(other, 9.0, seen["other"].append)
    admin.when_committed(LogId(Index(999), log.last.term), 1.0, seen["never"].append)
    cluster.run(0.5)
    assert seen["same"] == [None]
    assert isinstance(seen["other"][0], LeadershipLost)
    assert seen["other"][0].took_effect == "no"
    assert seen["never"] == []
    cluster.run(1.0)
    assert isinstance(seen["never"][0], Timeout)
    assert seen["never"][0].took_effect == "unknown"


def test_at_the_end_nobody_waits_for_a_commit() -> None:
    cluster, machines = start()
    cluster.isolate(machines[0])
    seen: list[KvnodeError | None] = []
    machines[0].replica.admin.when_committed(LogId(Index(999), Term(9)), 99.0, seen.append)
    done: list[bool] = []
    machines[0].replica.stop(lambda: done.append(True))
    cluster.until(lambda: done)
    assert isinstance(seen[0], LeadershipLost)

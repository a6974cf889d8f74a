"""What comes in, and what is refused at the door (RC-57, RC-67, RC-70)."""

from __future__ import annotations

from kvnode.errors import DiskNearlyFull, Overloaded
from kvnode.store.commands import KvDelete, KvDeleteTree, KvSet, ReapGraves
from tests.replica.harness import Answers, Cluster


def test_a_node_that_is_nearly_full_refuses_sets_and_nothing_else() -> None:
    """RC-70: reads, deletes, votes and the log's own upkeep go on, and sets come back."""
    cluster = Cluster(3).found()
    leader, follower, _ = (cluster.led_by(0), *cluster.machines[1:])
    kept = leader.write(b"k")
    cluster.until(lambda: kept.calls)
    leader.replica.write_refusal = "1 MiB free"
    for machine in (leader, follower):
        refused = machine.write(b"more")
        cas = machine.ask(KvSet(b"more", b"", 0, 0))
        cluster.until(lambda a=refused, b=cas: a.calls and b.calls)  # type: ignore[misc]
        for answers in (refused, cas):
            assert isinstance(answers.error, DiskNearlyFull)
            assert answers.effect == "no"
            assert "1 MiB free" in str(answers.error)
    going_on = [leader.read(), follower.read()]
    going_on += [follower.ask(KvDelete(b"k")), leader.ask(KvDeleteTree(b"x"))]
    going_on.append(leader.ask(ReapGraves(1)))
    removed = Answers()
    leader.replica.remove_member(cluster.machines[2].record.node_id, removed)
    cluster.until(lambda: all(answers.calls for answers in [*going_on, removed]))
    assert [answers.error for answers in [*going_on, removed]] == [None] * 6
    assert leader.replica.status().reason == "1 MiB free"
    assert leader.replica.status().state == "running"
    leader.replica.write_refusal = ""
    back = follower.write(b"more")
    cluster.until(lambda: back.calls)
    assert back.error is None


def test_a_full_follower_refuses_what_comes_to_itself() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    follower = cluster.machines[1]
    follower.replica.write_refusal = "full"
    refused, other = follower.write(b"k"), cluster.machines[2].write(b"k")
    cluster.until(lambda: refused.calls and other.calls)
    assert isinstance(refused.error, DiskNearlyFull)
    assert other.error is None


def test_too_many_requests_are_refused_before_anything_is_appended() -> None:
    """RC-67."""
    cluster = Cluster(3, waiting_requests_max=10).found()
    leader = cluster.led_by(0)
    # What a new leader registers of its own counts as well.
    cluster.until(lambda: not leader.replica.desk.count)
    answers = [leader.write(b"%d" % number) for number in range(15)]
    cluster.until(lambda: all(found.calls for found in answers))
    refused = [found for found in answers if found.error is not None]
    assert len(refused) == 5
    assert all(isinstance(found.error, Overloaded) for found in refused)
    assert leader.replica.store.count() == 10


def test_a_leader_without_its_quorum_bounds_what_it_holds() -> None:
    """RC-67: loss of the quorum cannot exhaust memory."""
    cluster = Cluster(3, uncommitted_bytes_max=10_000).found()
    leader = cluster.led_by(0)
    cluster.isolate(leader)
    answers = []
    for number in range(20):
        answers.append(leader.write(b"%d" % number, bytes(2000)))
        cluster.run(0.001)
    refused = [found for found in answers if found.calls]
    assert len(refused) > 10
    assert all(isinstance(found.error, Overloaded) for found in refused)
    assert all(found.effect == "no" for found in refused)


def test_a_write_at_the_leader_is_never_answered_inside_the_call() -> None:
    cluster = Cluster(1).found()
    cluster.until(lambda: cluster.leader())
    node = cluster.machines[0]
    node.replica.write_refusal = "full"
    answers = node.write(b"k")
    assert answers.calls == 0
    node.replica.stopped = True
    late = node.read()
    assert late.calls == 0
    cluster.run(0.01)
    assert (answers.calls, late.calls) == (1, 1)

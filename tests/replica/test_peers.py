"""Whom to stay connected with, and where to look for those who cannot be reached (RC-53, RC-56)."""

from __future__ import annotations

import pytest

from kvnode.ports import LogBase
from kvnode.raft.types import ZERO, Membership, NodeId
from kvnode.replica.peers import _take
from tests.replica.harness import CLUSTER, Answers, Cluster, Machine


def peers(machine: Machine) -> list[str]:
    return sorted(machine.transport._peers)


def asked(machine: Machine) -> list[int]:
    """How often discovery is asked from now on."""
    count = [0]
    discover = machine.replica.discover

    def spy(done: object) -> None:
        count[0] += 1
        discover(done)  # type: ignore[arg-type]

    machine.replica.discover = spy
    return count


def test_members_stay_connected_and_a_removed_one_does_not() -> None:
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    assert peers(leader) == ["n1", "n2"]
    done: list[object] = []
    leader.replica.remove_member(NodeId("n2"), lambda *answer: done.append(answer))
    cluster.until(lambda: done)
    cluster.run(0.1)
    assert peers(leader) == ["n1"]


def test_discovery_rests_while_everybody_is_connected() -> None:
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    cluster.run(3.0)
    count = asked(leader)
    cluster.run(20.0)
    assert count == [0]
    cluster.machines[2].kill()
    cluster.run(20.0)
    assert 3 < count[0] < 25


def test_a_member_at_a_new_address_is_found_by_discovery() -> None:
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    moved = cluster.machines[2]
    moved.kill()
    moved.address = "elsewhere:1"
    moved.seeds = []
    moved.start()
    cluster.until(lambda: leader.transport.connected().get(NodeId("n2")))


def test_a_node_without_discovery_asks_nobody() -> None:
    cluster = Cluster(3, has_discovery=False).found()
    leader = cluster.led_by(0)
    count = asked(leader)
    cluster.machines[2].kill()
    cluster.run(10.0)
    assert count == [0]


def test_a_learner_answers_before_it_knows_its_membership() -> None:
    """It has no log yet, and its answers must find the way back."""
    cluster = Cluster(3).found()
    cluster.led_by(0)
    new = cluster.add("n3")
    new.start()
    cluster.until(lambda: new.replica.cluster_id)
    cluster.until(lambda: new.replica.raft.log.last_index)
    cluster.until(lambda: "n0" in peers(new))


def test_who_is_pledged_stays_connected_with_the_others() -> None:
    cluster = Cluster(3)
    cluster.machines[2].dies_in = 10**9
    for machine in cluster.machines:
        machine.start()
    cluster.machines[2].identity.queue.hold = True
    cluster.until(lambda: cluster.machines[1].record.pledge)
    assert peers(cluster.machines[1]) == ["n0", "n2"]


def moved(machine: Machine, address: str) -> None:
    machine.kill()
    machine.address = address
    machine.start()


@pytest.mark.parametrize("has_discovery", [True, False])
def test_two_that_moved_out_of_each_others_sight_find_each_other_through_a_third(
    has_discovery: bool,
) -> None:
    """Discovery knows old addresses only; the third node was greeted from both new ones."""
    cluster = Cluster(3, has_discovery=has_discovery).found()
    cluster.led_by(2)
    for machine in cluster.machines:
        machine.seeds = ["n0:1", "n1:1", "n2:1"]
    one, two, third = cluster.machines
    one.kill()
    moved(two, "new-two:1")
    cluster.until(lambda: third.transport.connected().get(NodeId("n1")))
    one.address = "new-one:1"
    one.start()
    cluster.until(lambda: one.transport.connected().get(NodeId("n1")))
    cluster.until(lambda: two.transport.connected().get(NodeId("n0")))


@pytest.mark.parametrize(
    "answer", [None, 3, [3], [["n1"]], [["n1", "1", "x:1"]], [["n9", 9, "x:1"]], [["n1", 9, ""]]]
)
def test_a_nonsensical_answer_about_addresses_changes_nothing(answer: object) -> None:
    cluster = Cluster(3).found()
    machine = cluster.led_by(0)
    book = machine.replica.book
    before = book.candidates(NodeId("n1"), machine.replica.raft.membership, "")
    assert not _take(book, [NodeId("n1")], answer)
    assert book.candidates(NodeId("n1"), machine.replica.raft.membership, "") == before


def test_a_node_answers_a_leader_whose_removal_was_taken_back() -> None:
    """The removal was never committed; it goes with the log (RC-42), and the leader is a peer again."""
    cluster = Cluster(3).found()
    lonely = cluster.led_by(0)
    cluster.isolate(lonely)
    raft = lonely.replica.raft
    raft.propose_membership(raft.membership.without(NodeId("n2")))
    lonely.replica.wake()
    cluster.run(3.0)
    lonely.replica.peers.refresh()
    successor = cluster.machines[2]
    successor.replica.raft.campaign()
    successor.replica.wake()
    cluster.until(lambda: successor.replica.is_leader and successor.replica.raft.has_term_commit)
    cluster.network.heal()
    answers = successor.write(b"k")
    cluster.until(lambda: answers.calls)
    cluster.until(lambda: lonely.replica.store.get(b"k") is not None)
    assert peers(lonely) == ["n1", "n2"]


def test_a_learner_that_was_removed_before_it_heard_of_anybody_learns_that() -> None:
    """Its log is empty, so it knows no member to dial, and nobody dials it any more.

    Found by the simulator: a pod that was added and at once scaled away came back to its volume, and waited
    for ever.
    """
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    new = cluster.add("n3")
    new.start()
    cluster.until(lambda: new.record.cluster_id)
    new.kill()
    new.entries, new.base = [], LogBase(ZERO, Membership())
    removed = Answers()
    leader.replica.remove_member(NodeId("n3"), removed)
    cluster.until(lambda: removed.calls)
    assert removed.error is None
    new.start()
    cluster.until(lambda: new.identity.aside, 20.0)


def test_a_learner_that_was_forgotten_is_let_in_again() -> None:
    """The leader that let it in was replaced, and its log with it (thesis §4.1)."""
    cluster = Cluster(3).found()
    cluster.led_by(0)
    new = cluster.add("n3")
    new.record = new.record._replace(cluster_id=CLUSTER)
    new.start()
    cluster.until(lambda: "n3" in cluster.machines[0].replica.raft.membership.voters, 30.0)

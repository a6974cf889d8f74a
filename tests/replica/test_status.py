"""What a node says of itself: honest about what it has not heard (RC-35)."""

from __future__ import annotations

from kvnode.replica.status import GREETERS_MAX, Contact
from tests.replica.harness import Cluster
from tests.simulation.clock import NodeClock, World


def test_a_node_that_never_heard_a_leader_counts_from_its_start() -> None:
    world = World()
    contact = Contact(NodeClock(world, "n"))
    world.run_until(2.0)
    assert contact.age_ms(False) == 2000
    assert contact.lost_ms() == 2000
    assert contact.age_ms(True) == 0


def test_losing_and_finding_a_leader() -> None:
    world = World()
    contact = Contact(NodeClock(world, "n"))
    world.run_until(1.0)
    contact.leader_known(True)
    assert (contact.age_ms(False), contact.lost_ms()) == (0, 0)
    world.run_until(3.0)
    contact.leader_known(False)
    assert contact.lost_ms() == 1, "lost is never shown as known"
    contact.leader_known(False)
    world.run_until(4.0)
    assert contact.lost_ms() == 1000
    assert contact.age_ms(False) == 3000


def test_greeters_are_bounded_and_sorted_by_cluster() -> None:
    cluster = Cluster(1)
    cluster.machines[0].start()
    hello = cluster.machines[0].transport.hello
    contact = Contact(cluster.machines[0].clock)
    for number in range(GREETERS_MAX + 5):
        contact.greeted(hello._replace(node_id=str(number), cluster_id="c" if number % 2 else "d"))
    assert len(contact.greeters("c")) == len(contact.greeters("d")) == GREETERS_MAX // 2
    assert contact.greeters("") == []


def test_a_status_of_each_role() -> None:
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    cluster.until(lambda: all(m.replica.catch_up_index for m in cluster.machines))
    cluster.run(0.5)
    status = leader.replica.status()
    assert (status.state, status.reason) == ("running", "")
    assert status.leader_name == "n0"
    assert status.leader_address == "n0:1"
    assert [member.leader for member in status.members] == [True, False, False]
    assert all(member.connected and member.voter for member in status.members)
    assert {member.match_index for member in status.members} == {status.last_index}
    follower = cluster.machines[1].replica.status()
    assert {member.match_index for member in follower.members} == {0}
    assert follower.last_contact_ms < 200


def test_a_leader_that_came_back_elsewhere_says_where_it_is_now() -> None:
    """All pods may have new addresses; the membership remembers those of the day they joined."""
    cluster = Cluster(3).found()
    leader = cluster.led_by(0)
    leader.transport._hello = leader.transport.hello._replace(address="elsewhere:1")
    status = leader.replica.status()
    assert status.leader_address == status.members[0].address == "elsewhere:1"


def test_a_node_that_waits_says_for_what() -> None:
    cluster = Cluster(3)
    cluster.machines[0].start()
    cluster.run(3.0)
    status = cluster.machines[0].replica.status()
    assert status.state == "bootstrapping"
    assert status.reason == "found 1 of 3 expected nodes"
    joining = cluster.add("n3")
    joining.settings = Cluster(0).settings
    joining.start()
    cluster.run(3.0)
    assert joining.replica.status().state == "joining"
    assert "no cluster found" in joining.replica.status().reason


def test_an_isolated_node_knows_that_it_knows_nobody() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    n2 = cluster.machines[2]
    cluster.isolate(n2)
    cluster.run(10.0)
    status = n2.replica.status()
    assert status.leader_id is None
    assert status.leader_name == status.leader_address == ""
    assert 5000 < status.leader_lost_ms < 10_000
    assert [member.connected for member in status.members] == [False, False, True]

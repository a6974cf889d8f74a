"""The leader's judgement of its members (spec §9)."""

from __future__ import annotations

import pytest

from kvnode.errors import (
    BadRequest,
    PeerUnreachable,
    RemoteProtocolError,
    Timeout,
)
from kvnode.replica.autopilot import decode_health, encode_health
from kvnode.replica.facade import ClusterHealth, ServerHealth
from kvnode.replica.formation import INVITATIONS_MAX
from kvnode.store.control_commands import AutopilotSet
from tests.replica.harness import Answers, Cluster, Machine

NS = 10**9


def start(count: int = 3, **settings: float) -> tuple[Cluster, Machine]:
    cluster = Cluster(count, **settings).found()
    return cluster, cluster.led_by(0)


def apply(cluster: Cluster, machine: Machine, **changes: object) -> None:
    """Set what a test asks for, the rest as it is."""
    command = AutopilotSet(*machine.replica.autopilot()[:8])._replace(**changes)
    answers = machine.ask(command)
    cluster.until(lambda: answers.calls)
    assert answers.value.value is True
    cluster.run(1.0)


def health(cluster: Cluster, machine: Machine) -> ClusterHealth:
    answers = Answers()
    machine.replica.health(answers)
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    found: ClusterHealth = answers.value
    return found


def names(machine: Machine) -> list[str]:
    return sorted(machine.replica.raft.membership.voters)


def test_everybody_is_healthy_at_first_from_any_node() -> None:
    cluster, leader = start()
    cluster.run(2.0)
    for machine in cluster.machines:
        found = health(cluster, machine)
        assert found.healthy
        assert found.failure_tolerance == 1
        assert [server.leader for server in found.servers] == [True, False, False]
        assert all(server.voter and server.alive for server in found.servers)
        assert {server.last_index for server in found.servers} == {
            leader.replica.raft.log.last_index
        }
        assert {server.last_term for server in found.servers} == {leader.replica.raft.term}
        assert min(server.stable_ms for server in found.servers) >= 500


def test_a_silent_member_is_unhealthy_and_not_alive() -> None:
    cluster, leader = start()
    cluster.run(2.0)
    cluster.machines[2].kill()
    cluster.run(3.0)
    found = health(cluster, leader)
    assert not found.healthy
    assert found.failure_tolerance == 0
    lost = found.servers[2]
    assert (lost.healthy, lost.alive, lost.voter) == (False, False, True)
    assert lost.last_contact_ms >= 2500
    assert 2000 <= lost.stable_ms <= 3500  # it has been unhealthy for so long
    cluster.machines[2].start()
    cluster.run(3.0)
    assert health(cluster, leader).healthy


def test_the_contact_threshold_decides() -> None:
    cluster, leader = start()
    apply(cluster, leader, last_contact_threshold_ns=60 * NS)
    cluster.machines[2].kill()
    cluster.run(0.5)
    assert health(cluster, leader).servers[2].healthy  # still within the election time-out
    cluster.run(10.0)
    assert not health(cluster, leader).servers[2].healthy  # dead is unhealthy, whatever is set


def test_who_is_too_far_behind_is_unhealthy() -> None:
    cluster, leader = start()
    apply(cluster, leader, max_trailing_logs=3)
    slow = cluster.machines[2]
    slow.journal.queue.hold = True
    for number in range(10):
        leader.write(b"%d" % number)
    cluster.run(1.0)
    found = health(cluster, leader)
    assert [server.healthy for server in found.servers] == [True, True, False]
    slow.journal.queue.hold = False
    slow.journal.queue.release()
    cluster.run(1.0)
    assert health(cluster, leader).healthy


def test_a_learner_is_promoted_after_the_time_that_is_set() -> None:
    cluster, leader = start(promote_stable_s=0.1)
    apply(cluster, leader, server_stabilization_ns=5 * NS)
    cluster.add("n3").start()
    cluster.until(lambda: leader.replica.raft.membership.learners)
    began = cluster.world.now
    cluster.until(lambda: not leader.replica.raft.membership.learners)
    assert 5.0 <= cluster.world.now - began < 7.0


# -- dead members


def test_a_dead_member_is_removed_after_the_grace() -> None:
    cluster, leader = start(4, dead_server_grace_s=5.0)
    cluster.run(1.0)
    cluster.machines[3].kill()
    cluster.run(4.0)
    assert names(leader) == ["n0", "n1", "n2", "n3"]
    cluster.run(3.0)
    assert names(leader) == ["n0", "n1", "n2"]
    assert len(leader.events("dead_member_removed")) == 1


def test_a_cluster_of_three_gives_nobody_up() -> None:
    """It would tolerate no more failures without the dead one, and could not take it back at once."""
    cluster, leader = start(dead_server_grace_s=2.0)
    cluster.machines[2].kill()
    cluster.run(20.0)
    assert names(leader) == ["n0", "n1", "n2"]


def test_once_a_replacement_votes_the_dead_one_goes() -> None:
    cluster, leader = start(dead_server_grace_s=4.0)
    cluster.machines[2].kill()
    cluster.add("n3").start()
    cluster.until(lambda: names(leader) == ["n0", "n1", "n3"], 30.0)


def test_who_comes_back_in_time_stays_and_its_grace_begins_anew() -> None:
    cluster, leader = start(5, dead_server_grace_s=5.0)
    flaky = cluster.machines[4]
    for _ in range(3):
        flaky.kill()
        cluster.run(4.0)
        flaky.start()
        cluster.run(2.0)
    assert len(names(leader)) == 5


def test_half_of_the_voters_are_never_given_up() -> None:
    cluster, leader = start(5, dead_server_grace_s=2.0)
    cluster.machines[3].kill()
    cluster.machines[4].kill()
    cluster.run(20.0)
    assert len(names(leader)) == 5


@pytest.mark.parametrize(
    "changes", [{"cleanup_dead_servers": False}, {"min_quorum": 5}], ids=["off", "min_quorum"]
)
def test_the_parameters_forbid_it(changes: dict[str, object]) -> None:
    cluster, leader = start(5, dead_server_grace_s=2.0)
    apply(cluster, leader, **changes)
    cluster.machines[4].kill()
    cluster.run(20.0)
    assert len(names(leader)) == 5


def test_no_grace_means_never() -> None:
    cluster, leader = start(5, dead_server_grace_s=0.0)
    cluster.machines[4].kill()
    cluster.run(20.0)
    assert len(names(leader)) == 5


def test_a_new_leader_counts_the_silence_anew() -> None:
    cluster, leader = start(5, dead_server_grace_s=6.0)
    cluster.machines[4].kill()
    cluster.run(4.0)
    leader.replica.transfer_leadership(None, Answers())
    cluster.until(lambda: cluster.leader() not in (None, leader))
    cluster.run(4.0)
    successor = cluster.leader()
    assert successor is not None
    assert len(names(successor)) == 5
    cluster.run(6.0)
    assert len(names(successor)) == 4


# -- force-leave


@pytest.mark.parametrize("asked", [0, 1])
def test_force_leave_removes_whom_nothing_is_heard_of(asked: int) -> None:
    cluster, leader = start()
    cluster.machines[2].kill()
    cluster.run(3.0)
    answers = Answers()
    cluster.machines[asked].replica.force_leave("n2", answers)
    cluster.until(lambda: answers.calls)
    assert answers.value is True
    cluster.until(lambda: names(leader) == ["n0", "n1"])


def test_force_leave_spares_the_living_and_knows_no_strangers() -> None:
    cluster, leader = start()
    cluster.run(1.0)
    for name, known in (("n2", True), ("nobody", False)):
        answers = Answers()
        leader.replica.force_leave(name, answers)
        cluster.until(lambda answers=answers: answers.calls)  # type: ignore[misc]
        assert answers.value is known
    assert len(names(leader)) == 3


# -- over the wire


def test_a_judgement_comes_back_as_it_was() -> None:
    cluster, leader = start()
    cluster.run(1.0)
    judged = leader.replica.pilot.judge()
    assert decode_health(encode_health(judged)) == judged


GOOD: list[object] = ["id", "n", "a:1", True, True, True, 0, 1, 1, True, 5]


@pytest.mark.parametrize(
    "value",
    [
        None, 7, [True, 1], [True, 1, [[]]], [1, 1, [GOOD]], [True, "1", [GOOD]],
        [True, 1, [[*GOOD[:-1], "5"]]], [True, 1, [GOOD[:-1]]], [True, 1, [{}]],
    ],
)  # fmt: skip
def test_what_is_no_judgement_is_refused(value: object) -> None:
    assert decode_health([True, 1, [GOOD]]).servers == (ServerHealth(*GOOD),)  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError):
        decode_health(value)


# -- join


def lonely(cluster: Cluster, name: str) -> Machine:
    """A new node to which discovery names nobody."""
    machine = cluster.add(name)
    machine.seeds = []
    machine.start()
    cluster.run(5.0)
    assert not machine.replica.cluster_id
    return machine


def join(cluster: Cluster, machine: Machine, address: str) -> Answers:
    answers = Answers()
    machine.replica.join(address, answers)
    cluster.until(lambda: answers.calls)
    return answers


def test_a_node_that_knew_nobody_joins_where_it_is_told_to() -> None:
    cluster, leader = start()
    new = lonely(cluster, "n3")
    assert join(cluster, new, "n1:1").value == "n1"
    cluster.until(lambda: "n3" in names(leader))


def test_a_member_can_be_told_of_a_newcomer() -> None:
    cluster, leader = start()
    new = lonely(cluster, "n3")
    assert join(cluster, leader, "n3").value == "n3"  # without a port: our own
    cluster.until(lambda: new.replica.cluster_id and "n3" in names(leader))


def test_where_nobody_listens_is_said() -> None:
    cluster, leader = start()
    assert isinstance(join(cluster, leader, "n9:1").error, PeerUnreachable | Timeout)
    assert isinstance(join(cluster, leader, "n9:port").error, BadRequest)


def test_another_cluster_is_not_joined() -> None:
    cluster, leader = start()
    other = cluster.add("m0")
    other.belongs((other.member(),))
    other.record = other.record._replace(cluster_id="another")
    other.start()
    assert isinstance(join(cluster, leader, "m0:1").error, PeerUnreachable)
    assert names(leader) == ["n0", "n1", "n2"]


def test_invitations_are_bounded() -> None:
    cluster, _ = start()
    new = lonely(cluster, "n3")
    for number in range(100):
        new.replica.formation.invited(f"host-{number}:1")
    new.replica.formation.invited("x" * 1000)
    assert len(new.replica.formation._invitations) == INVITATIONS_MAX
    assert "host-99:1" in new.replica.formation._invitations

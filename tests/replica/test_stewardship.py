"""The leader's care for the membership: admit, promote, replace, remove (RC-42 to RC-49)."""

from __future__ import annotations

import pytest

from kvnode.errors import MembershipRefused, NotLeader
from kvnode.raft.types import Index, Member, NodeId, Term
from kvnode.replica.stewardship import Steward
from tests.replica.harness import Answers, Cluster, Machine


def start(count: int = 3, **settings: float) -> tuple[Cluster, Machine]:
    cluster = Cluster(count, **settings).found()
    return cluster, cluster.led_by(0)


def join(machine: Machine, node_id: str, name: str) -> Answers:
    answers = Answers()
    machine.replica.steward.join(Member(NodeId(node_id), name, f"{name}:1"), answers)
    return answers


def ids(machine: Machine) -> tuple[list[str], list[str]]:
    membership = machine.replica.raft.membership
    return sorted(membership.voters), sorted(membership.learners)


def test_a_new_node_becomes_a_voter_through_a_learner() -> None:
    """RC-44."""
    cluster, leader = start()
    new = cluster.add("n3")
    new.start()
    cluster.until(lambda: ids(leader)[1])
    assert ids(leader) == (["n0", "n1", "n2"], ["n3"])
    cluster.until(lambda: not ids(leader)[1])
    assert ids(leader)[0] == ["n0", "n1", "n2", "n3"]
    answers = new.write(b"k")
    cluster.until(lambda: answers.calls)
    assert answers.error is None


@pytest.mark.parametrize("stable_s", [0.5, 1.0, 3.0])
def test_a_learner_is_promoted_after_it_has_kept_up_for_the_time_set(stable_s: float) -> None:
    """Not earlier, and not a second later because somebody looks once a second."""
    cluster, leader = start(promote_stable_s=stable_s)
    new = cluster.add("n3")
    new.start()
    cluster.until(lambda: leader.replica.raft.progress_state(NodeId("n3")) == "replicate")
    began = cluster.world.now
    cluster.until(lambda: not ids(leader)[1])
    assert stable_s <= cluster.world.now - began < stable_s + 0.6


def test_a_learner_that_falls_behind_begins_its_time_anew() -> None:
    """Also while another change is under way, when nothing can be promoted."""
    cluster, leader = start(promote_stable_s=2.0, promote_lag_entries=5)
    new = cluster.add("n3")
    new.start()
    steward: Steward = leader.replica.steward
    cluster.until(lambda: NodeId("n3") in steward._caught_up_since)
    new.journal.queue.hold = True
    for number in range(10):
        leader.write(b"%d" % number)
    cluster.run(0.5)
    assert NodeId("n3") not in steward._caught_up_since
    new.journal.queue.hold = False
    new.journal.queue.release()
    cluster.until(lambda: NodeId("n3") in steward._caught_up_since)
    began = cluster.world.now
    cluster.until(lambda: not ids(leader)[1])
    assert cluster.world.now - began >= 1.9


def test_a_lost_volume_comes_back_as_a_new_voter_in_the_old_ones_place() -> None:
    """RC-49: through a learner; the old incarnation goes last, and never comes back."""
    cluster, leader = start()
    lost = cluster.machines[2]
    lost.kill()
    lost.wipe()
    lost.start()
    cluster.until(lambda: ids(leader) == (["n0", "n1", "n2-2"], []))
    assert leader.replica.raft.membership.removed == ("n2",)
    names = [
        event for event, _ in leader.traces if event.endswith(("_added", "_promoted", "removed"))
    ]
    assert names == ["learner_added", "learner_promoted", "replaced_member_removed"]


def test_a_name_is_not_taken_from_a_live_member() -> None:
    cluster, leader = start()
    answers = join(leader, "other", "n2")
    cluster.run(0.5)
    assert isinstance(answers.error, MembershipRefused)


def test_a_name_is_not_taken_from_a_live_learner_whose_voter_is_gone() -> None:
    """Two processes would replace each other for ever."""
    cluster, leader = start(promote_stable_s=1000.0)
    lost = cluster.machines[2]
    lost.kill()
    lost.wipe()
    lost.start()
    cluster.until(lambda: ids(leader)[1] == ["n2-2"])
    cluster.run(1.0)
    answers = join(leader, "third", "n2")
    cluster.run(1.0)
    assert isinstance(answers.error, MembershipRefused)
    assert ids(leader)[1] == ["n2-2"]


def test_a_silent_learner_of_the_same_name_makes_room() -> None:
    cluster, leader = start(promote_stable_s=1000.0)
    first = cluster.add("n3")
    first.start()
    cluster.until(lambda: ids(leader)[1] == ["n3"])
    first.kill()
    first.wipe()
    first.start()
    cluster.until(lambda: ids(leader)[1] == ["n3-2"])


def test_a_member_that_joins_again_is_welcome_and_changes_nothing() -> None:
    cluster, leader = start()
    before = leader.replica.raft.log.membership_index
    answers = join(leader, "n1", "n1")
    cluster.run(0.1)
    assert answers.value == "n0"
    assert leader.replica.raft.log.membership_index == before


def test_a_removed_incarnation_does_not_join_again() -> None:
    """RC-47, RC-51."""
    cluster, leader = start()
    removed = Answers()
    leader.replica.remove_member(NodeId("n2"), removed)
    cluster.until(lambda: removed.calls)
    answers = join(leader, "n2", "n2")
    cluster.run(0.1)
    assert isinstance(answers.error, MembershipRefused)


def test_one_change_at_a_time() -> None:
    """RC-43: the second is refused and asks again, it does not wait in line."""
    cluster, leader = start()
    first, second = join(leader, "x", "x"), join(leader, "y", "y")
    cluster.until(lambda: first.calls)
    assert first.error is None
    assert isinstance(second.error, MembershipRefused)


def test_a_follower_admits_nobody() -> None:
    cluster, _ = start()
    answers = join(cluster.machines[1], "x", "x")
    assert isinstance(answers.error, NotLeader)
    removed = Answers()
    cluster.machines[1].replica.steward.remove(NodeId("n2"), removed)
    assert isinstance(removed.error, NotLeader)


def test_a_guards_refusal_is_said_once_and_is_no_promotion() -> None:
    """RC-45: with two of three dead the learner would not make a quorum that can commit."""
    cluster, leader = start(5)
    new = cluster.add("n5")
    new.start()
    cluster.until(lambda: leader.replica.steward._caught_up_since)
    for machine in cluster.machines[3:5]:
        machine.kill()
    replica = leader.replica
    refuse = MembershipRefused("the reachable voters would be no majority afterwards")

    def propose(_membership: object) -> None:
        raise refuse

    replica.raft.propose_membership = propose  # type: ignore[method-assign, assignment]
    cluster.run(5.0)
    assert len(leader.events("membership_refused")) == 1
    assert leader.events("learner_promoted") == []
    assert ids(leader)[1] == ["n5"]


def test_a_refused_change_does_not_hold_up_the_next_one() -> None:
    """What was replaced goes first, since a quorum misses it; then whoever may be promoted."""
    _, leader = start(3, promote_stable_s=0.0)
    steward, raft = leader.replica.steward, leader.replica.raft
    tried: list[str] = []

    def changes(_now: float) -> list[tuple[str, NodeId, object]]:
        return [("a", NodeId("a"), 1), ("b", NodeId("b"), 2), ("c", NodeId("c"), 3)]

    def propose(membership: int) -> object:
        tried.append(str(membership))
        if membership == 1:
            raise MembershipRefused("no")
        return raft.log.last

    steward._changes = changes  # type: ignore[method-assign, assignment]
    raft.propose_membership = propose  # type: ignore[method-assign, assignment]
    steward.run(0.0)
    assert tried == ["1", "2"]


def test_a_leader_change_midway_leaves_the_join_open_and_the_next_leader_finishes() -> None:
    cluster, leader = start()
    new = cluster.add("n3")
    new.start()
    cluster.until(lambda: ids(leader)[1])
    cluster.network.cut(NodeId("n0"), NodeId("n1"))
    cluster.network.cut(NodeId("n0"), NodeId("n2"))
    cluster.network.cut(NodeId("n0"), NodeId("n3"))
    cluster.until(lambda: any("n3" in ids(machine)[0] for machine in cluster.machines[1:3]), 60.0)
    assert new.replica.cluster_id


def test_nothing_is_promoted_before_the_terms_own_entry_is_committed() -> None:
    """RC-43, and a deposed leader forgets what it had seen."""
    cluster, leader = start(promote_stable_s=1000.0)
    new = cluster.add("n3")
    new.start()
    steward = leader.replica.steward
    cluster.until(lambda: steward._caught_up_since)
    cluster.isolate(leader)
    cluster.until(lambda: not leader.replica.is_leader)
    cluster.run(0.5)
    assert steward._caught_up_since == {}


def test_a_removal_that_its_leader_did_not_see_committed_is_no_success() -> None:
    cluster, leader = start()
    cluster.isolate(leader)
    answers = Answers()
    leader.replica.steward.remove(NodeId("n2"), answers)
    cluster.until(lambda: answers.calls)
    assert answers.value is None
    assert answers.effect in ("unknown", "no")
    assert Index(0) < leader.replica.raft.log.last_index
    assert Term(0) < leader.replica.raft.term


def test_a_voter_that_died_a_moment_ago_is_not_counted_upon() -> None:
    """The core still believes in it for an election time-out; the removal could never be committed."""
    cluster, leader = start()
    cluster.machines[1].kill()
    answers = Answers()
    leader.replica.remove_member(NodeId("n2"), answers)
    cluster.until(lambda: answers.calls)
    assert isinstance(answers.error, MembershipRefused)
    assert ids(leader)[0] == ["n0", "n1", "n2"]
    assert leader.write(b"k").calls == 0
    cluster.run(1.0)
    assert leader.replica.is_leader


def test_a_name_that_was_removed_to_be_stopped_stays_out_for_a_while() -> None:
    """Kubernetes starts the removed pod again at once; it must not be back before it is scaled away."""
    cluster, leader = start()
    answers = Answers()
    cluster.machines[1].replica.remove_member(NodeId("n2"), answers, readmit_s=30.0)
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    removed = cluster.machines[2]
    removed.kill()
    removed.wipe()
    removed.start()
    cluster.run(20.0)
    assert ids(leader) == (["n0", "n1"], [])
    assert "is let in again in" in removed.replica.status().reason
    # Also the next leader keeps it out, as one of those removed may have been the leader.
    leader.replica.transfer_leadership(None, Answers())
    cluster.until(lambda: cluster.machines[1].replica.raft.has_term_commit)
    cluster.run(5.0)
    assert ids(leader) == (["n0", "n1"], [])
    cluster.until(lambda: ids(leader)[0] == ["n0", "n1", "n2-2"], 30.0)
    assert leader.replica.raft.membership.kept_out == ()


def test_a_name_is_let_in_again_also_when_it_never_asks() -> None:
    cluster, leader = start()
    answers = Answers()
    cluster.machines[2].kill()
    leader.replica.remove_member(NodeId("n2"), answers, readmit_s=5.0)
    cluster.until(lambda: answers.calls)
    assert leader.replica.raft.membership.kept_out == (("n2", 5),)
    cluster.until(lambda: not leader.replica.raft.membership.kept_out, 10.0)

"""The door: what goes in, what comes out, in which order."""

from __future__ import annotations

import pytest

from kvnode.errors import InvariantBroken, NotLeader
from kvnode.raft import RaftConfig, RawNode, election
from kvnode.raft.messages import AppendEntries, Heartbeat, PreVote, Vote, VoteReply
from kvnode.raft.types import ZERO, HardState, Index, Role, Term
from tests.raft.cluster import Cluster, FixedDraw, command, lid, membership, nid


def wake(**over: object) -> RawNode:
    values: dict[str, object] = {
        "hard_state": HardState(Term(2), None),
        "base": lid(3, 1),
        "membership": membership([1, 2, 3]),
        "entries": [command(4, 1), command(5, 2)],
        "applied_index": Index(4),
        "random": FixedDraw(),
    }
    return RawNode(RaftConfig(node_id=nid(1)), **{**values, **over})  # type: ignore[arg-type]


def test_a_node_wakes_up_with_what_its_disk_holds() -> None:
    """RC-6: what was applied had been committed."""
    raw = wake()
    assert (raw.term, raw.vote, raw.role, raw.leader_id) == (2, None, Role.FOLLOWER, None)
    assert (raw.log.base, raw.log.last) == (lid(3, 1), lid(5, 2))
    assert raw.log.commit_index == raw.log.applied_index == 4
    assert not raw.has_ready(), "waking up is nothing to save"
    assert raw.describe()["last"] == "5@2"


@pytest.mark.parametrize(
    "over",
    [
        {"applied_index": Index(2)},
        {"applied_index": Index(6)},
        {"hard_state": HardState(Term(1), None)},
        {"entries": [command(5, 2)]},
    ],
    ids=["store behind the base", "store ahead of the log", "term behind the log", "gap"],
)
def test_pieces_that_do_not_fit_are_not_woken(over: dict[str, object]) -> None:
    """Something on the disk was lost: stop instead of guessing (RC-73, RC-75)."""
    with pytest.raises(InvariantBroken):
        wake(**over)


def test_an_idle_node_has_nothing_to_say() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.run(2)
    for node in cluster.nodes.values():
        assert not node.raw.has_ready()


def test_followers_refuse_and_name_the_leader() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    with pytest.raises(NotLeader) as caught:
        cluster.raw(2).propose([b"x"])
    assert caught.value.leader_id == nid(1)
    with pytest.raises(NotLeader):
        cluster.raw(2).transfer_leadership(nid(3))
    assert cluster.raw(2).reachable() == frozenset()


def test_propose_returns_the_last_position() -> None:
    cluster = Cluster(1)
    leader = cluster.elect(1)
    assert leader.raw.propose([b"a", b"b", b"c"]) == lid(4, 1)


def test_several_readies_may_be_with_the_disk_and_end_in_order() -> None:
    """The driver does not wait for a sync before the next turn (group commit)."""
    cluster = Cluster(1)
    leader = cluster.elect(1)
    leader.syncs = False
    for number in range(3):
        leader.raw.propose([b"%d" % number])
        leader.handle()
    assert [[e.index for e in r.entries] for r in leader.queue] == [[2], [3], [4]]
    with pytest.raises(AssertionError):
        leader.raw.advance(leader.queue[1])
    leader.sync_one()
    assert leader.raw.log.commit_index == 2
    leader.sync_one()
    leader.sync_one()
    leader.handle()
    assert sorted(leader.applied) == [1, 2, 3, 4]
    with pytest.raises(AssertionError):
        leader.raw.advance(leader.raw.ready())


def test_a_term_leaves_after_it_is_saved() -> None:
    """RC-2: nothing is said in a term that a crash could forget; not even an answer to a poll."""
    cluster = Cluster(3)
    node = cluster[2]
    node.syncs = False
    node.raw.step(Heartbeat(nid(1), nid(2), Term(4), Index(0), 1))
    node.raw.step(PreVote(nid(3), nid(2), Term(9), ZERO))
    assert not node.handle()
    (answer,) = node.sync_one()
    assert answer.term == 4


def test_a_vote_leaves_after_it_is_saved_and_only_in_its_term() -> None:
    """RC-2."""
    cluster = Cluster(3)
    node = cluster[2]
    node.syncs = False
    node.raw.step(Vote(nid(1), nid(2), Term(1), ZERO, transfer=False))
    assert not node.handle()
    node.raw.step(Vote(nid(3), nid(2), Term(2), ZERO, transfer=False))
    assert not node.handle()
    assert not node.sync_one(), "term 1 is over; its vote would help nobody"
    (answer,) = node.sync_one()
    assert answer == VoteReply(nid(2), nid(3), Term(2), granted=True)


def test_a_candidates_request_leaves_after_its_own_vote_is_saved() -> None:
    cluster = Cluster(2)
    node = cluster[1]
    node.syncs = False
    node.raw.campaign()
    node.handle()
    node.core.votes[nid(2)] = True
    election.elect(node.core, transfer=False)
    assert not [m for m in node.handle() if isinstance(m, Vote)]
    assert [type(m) for m in node.sync_one()] == [Vote]


def test_a_leader_sends_while_its_disk_works() -> None:
    """RC-4, thesis §10.2.1."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    leader.syncs = False
    leader.raw.propose([b"x"])
    assert [m.to for m in leader.handle() if isinstance(m, AppendEntries)] == [nid(2), nid(3)]


def test_nothing_is_applied_while_the_store_is_being_loaded() -> None:
    """RC-38: and the driver's loop ends all the same."""
    cluster = Cluster(1)
    node = cluster.elect(1)
    node.raw.propose([b"a"])
    spins = 0
    while node.raw.has_ready(apply=False):
        ready = node.raw.ready(apply=False)
        assert not ready.committed
        if ready.needs_disk:
            node.disk.write(ready)
            node.raw.advance(ready)
        spins += 1
        assert spins < 10
    assert [e.data for e in node.raw.ready().committed] == [b"a"]


def test_a_batch_to_apply_is_bounded_but_never_empty() -> None:
    cluster = Cluster(1, apply_bytes_max=1)
    node = cluster.elect(1)
    batches: list[int] = []
    node.handed = lambda _node, ready: batches.append(len(ready.committed))
    node.raw.propose([b"x"] * 5)
    node.handle()
    assert [size for size in batches if size] == [1] * 5


def test_compaction_keeps_what_is_not_applied_and_names_the_new_base() -> None:
    """RC-39."""
    cluster = Cluster(1)
    node = cluster.elect(1)
    cluster.propose(1, "a", "b", "c")
    with pytest.raises(AssertionError):
        node.raw.compact(Index(9))
    base, members = node.raw.compact(Index(3))
    assert (base, members) == (lid(3, 1), cluster.first)
    assert node.raw.log.last_index == 4
    with pytest.raises(AssertionError):
        node.raw.compact(Index(2))


def test_ticks_since_heard_and_reachable_tell_who_is_silent() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.run(1)
    cluster.isolate(3)
    cluster.run(5)
    assert leader.raw.ticks_since_heard(nid(2)) <= 1
    assert leader.raw.ticks_since_heard(nid(3)) >= 5
    assert leader.raw.reachable() == {nid(1), nid(2), nid(3)}
    cluster.run(6)
    assert leader.raw.reachable() == {nid(1), nid(2)}
    assert leader.raw.match_index(nid(1)) == leader.raw.log.stable_index


def test_the_same_inputs_give_the_same_outputs() -> None:
    """The core has no clock, no chance and no order of its own."""

    def story() -> list[object]:
        said: list[object] = []
        cluster = Cluster(5, tracer=lambda *what: said.append(what))
        for node in cluster.nodes.values():
            node.said = lambda _node, message: said.append(message)
        cluster.elect(2)
        cluster.propose(2, "a", "b")
        cluster.isolate(2)
        cluster.run(40)
        cluster.heal()
        cluster.run(10)
        return said

    assert story() == story()


def test_a_long_log_is_caught_up_in_bounded_messages() -> None:
    cluster = Cluster(2, append_bytes_max=1 << 20)
    leader = cluster.elect(1)
    sizes: list[int] = []
    leader.said = lambda _node, m: (
        sizes.append(len(m.entries)) if isinstance(m, AppendEntries) else None
    )  # type: ignore[func-returns-value]
    cluster.isolate(2)
    leader.raw.propose([b"x" * 64] * 20_000)
    cluster.pump(leader)
    cluster.heal()
    cluster.run(3)
    assert cluster.raw(2).log.last_index == leader.raw.log.last_index
    assert max(sizes) <= (1 << 20) // 128

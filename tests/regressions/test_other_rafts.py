"""What the other Python Rafts were seen to get wrong, each told here as a short story of whole nodes.

The deep tests of each law stand beside the code, as listed; a test below makes sure that they exist.

- a crash between a snapshot's rename and the cut of the log leaves a gap (PySyncObj)
    tests/replica/test_recovery.py::test_the_machine_may_stop_at_any_step
    tests/replica/test_recovery.py::test_the_machine_may_stop_again_at_any_step_of_the_start
    tests/replica/test_recovery.py::test_the_process_may_die_between_any_two_completions
    tests/storage/test_compaction_crashes.py::test_a_power_cut_at_any_step_leaves_a_log_and_a_store_that_meet
    tests/disk/test_journal_crashes.py::test_after_a_crash_at_any_operation_the_old_or_the_new_state_is_found
- after a full restart nothing is committed any more (raftos)
    tests/chaos/test_kill.py::test_acknowledged_writes_survive_sigkill_of_all_nodes
    tests/raft/test_paper.py::test_5_3_a_commit_covers_all_preceding_entries_of_earlier_leaders
- a duplicate, late or empty AppendEntries cuts off good entries (raftos)
    tests/raft/test_raft_log_memory.py::test_only_a_real_conflict_cuts
    tests/raft/test_paper.py::test_5_5_requests_are_idempotent
    tests/scripts/raft/append_never_truncates.txt
- two votes in one term, around a restart (raftos)
    tests/raft/test_paper.py::test_3_8_a_vote_survives_a_restart
    tests/raft/test_election.py::test_one_vote_per_term_and_the_same_again
    tests/disk/test_hard_state.py::test_a_term_never_falls_and_a_vote_is_never_changed
    tests/replica/test_replica.py::test_a_vote_leaves_after_it_is_on_disk
- an old leader with a longer log breaks the new one, or stays apart (raftos)
    tests/raft/test_paper.py::test_5_3_figure_7_each_follower_is_brought_into_line
    tests/scripts/raft/leader_rolled_back.txt
- a write's future is resolved by another entry of its index, or never (raftos, PySyncObj)
    tests/replica/test_requests.py::test_a_write_whose_index_a_later_write_takes_is_answered
    tests/replica/test_requests.py::test_a_write_whose_place_was_committed_to_another_entry_certainly_failed
    tests/replica/test_requests.py::test_the_end_answers_everything_wherever_it_is
- half of an even number counts as a majority (raftos)
    tests/raft/test_quorum.py::test_a_majority_is_more_than_half
    tests/raft/test_quorum.py::test_commit_table
- a value too large for the wire hangs every later write (raftos)
    tests/conformance/test_bad_input.py::test_a_600_kib_value_is_413_on_both_routes
    tests/replica/test_forwarding.py::test_one_write_that_cannot_be_taken_is_refused_alone_and_certainly
- a leader that is cut off goes on answering reads (PySyncObj)
    tests/raft/test_read_index.py::test_a_read_waits_for_a_quorum_of_a_round_that_began_after_it
    tests/raft/test_paper.py::test_6_2_a_leader_without_a_quorum_steps_down
    tests/scripts/raft/read_old_leader.txt
- whoever comes back with a higher term deposes a good leader (raftos, PySyncObj)
    tests/raft/test_paper.py::test_9_6_pre_vote_a_partitioned_server_does_not_depose_the_leader
    tests/chaos/test_identity.py::test_an_old_volume_of_a_removed_member_comes_back_as_a_new_incarnation
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from kvnode.errors import LeadershipLost, RemoteProtocolError
from kvnode.http import HttpSettings, kv
from kvnode.http.messages import Response
from kvnode.raft.messages import AppendEntries
from kvnode.raft.types import HardState, Index, LogId, NodeId, Term
from kvnode.replica.codec import decode_foreign, encode
from kvnode.store.commands import KvSet
from tests.replica.harness import Answers, Cluster, Machine

ROOT = Path(__file__).parent.parent.parent


def test_what_the_list_names_exists() -> None:
    """A pointer to a test that was renamed would be a promise that nobody keeps."""
    assert __doc__ is not None
    found = re.findall(r"(tests/[\w/]+\.(?:py|txt))(?:::(\w+))?", __doc__)
    assert len(found) > 25
    missing = [
        f"{path}::{name}"
        for path, name in found
        if not (ROOT / path).exists() or (name and f"def {name}(" not in (ROOT / path).read_text())
    ]
    assert missing == []
    assert __doc__.count("\n- ") == 10, "there are ten"


def founded(count: int, **settings: object) -> Cluster:
    cluster = Cluster(count, **settings).found()
    cluster.led_by(0)
    return cluster


def written(cluster: Cluster, machine: Machine, *keys: bytes) -> None:
    answers = [machine.write(key, b"v" + key) for key in keys]
    cluster.until(lambda: all(a.calls for a in answers))
    assert all(a.error is None for a in answers), [a.error for a in answers]


def leader(cluster: Cluster) -> Machine:
    cluster.until(lambda: cluster.leader() is not None)
    found = cluster.leader()
    assert found is not None
    cluster.until(lambda: found.replica.raft.has_term_commit)
    return found


def converged(cluster: Cluster, *keys: bytes) -> bool:
    stores = [m.replica.store for m in cluster.machines if not m.replica.stopped]
    return len({s.digest for s in stores}) == 1 and all(
        store.get(key) is not None for store in stores for key in keys
    )


# -- crash between the snapshot and the log --------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_crash_between_a_snapshot_and_the_cut_of_the_log_leaves_no_gap(steps: int) -> None:
    """The snapshot's file is the commit point: what a crash leaves of the rest is done at the start."""
    cluster = founded(3, log_entries_max=8)
    late = cluster.machines[2]
    cluster.isolate(late)
    for number in range(40):
        written(cluster, cluster.machines[0], b"k%d" % number)
    cluster.run(5.0)
    assert cluster.machines[0].replica.raft.log.base.index > late.replica.raft.log.last_index
    late.journal.queue.hold = late.worker.queue.hold = True
    cluster.network.heal()
    done = 0
    while done < steps:
        queue = late.journal.queue if (done + steps) % 2 and len(late.journal.queue) else None
        queue = queue or next((q for q in (late.worker.queue, late.journal.queue) if len(q)), None)
        if queue is None:
            cluster.run(0.02)
            if converged(cluster, b"k39"):
                break
            continue
        queue.release(1)
        done += 1
    late.kill()
    late.start()
    cluster.until(lambda: converged(cluster, b"k0", b"k39"))
    assert late.fatal is None


# -- restarts ------------------------------------------------------------------------------------------


def test_after_a_full_restart_old_writes_are_there_and_new_ones_commit() -> None:
    """Raftos stops at any entry of an older term; here the new leader's own entry commits them (RC-22)."""
    cluster = founded(3)
    written(cluster, cluster.machines[0], b"before")
    unfinished = cluster.machines[0].write(b"unfinished")
    cluster.run(0.0005)
    for machine in cluster.machines:
        machine.kill()
    assert unfinished.calls == 0
    for machine in cluster.machines:
        machine.start()
    written(cluster, leader(cluster), b"after")
    cluster.until(lambda: converged(cluster, b"before", b"after"))


def test_one_vote_per_term_also_when_killed_right_after_it() -> None:
    """RC-2: whatever was said before the crash binds the node after it."""
    cluster = founded(3)
    rng = random.Random(4)
    votes: dict[tuple[str, Term], set[NodeId]] = {}
    for _ in range(30):
        victim = rng.choice(cluster.machines)
        cluster.run(rng.uniform(0.0, 2.5))
        for machine in cluster.machines:
            if machine.hard_state.vote is not None:
                key = (machine.name, machine.hard_state.term)
                votes.setdefault(key, set()).add(machine.hard_state.vote)
        before = victim.hard_state
        victim.kill()
        victim.start()
        core = victim.replica.raft._core
        assert HardState(core.term, core.vote) == before
    assert len(votes) > 3, "there were elections"
    assert all(len(given) == 1 for given in votes.values()), votes


def test_who_comes_back_does_not_raise_the_term() -> None:
    """Pre-vote (thesis §9.6): neither the cut-off node nor the restarted one deposes anybody."""
    cluster = founded(3)
    apart = cluster.machines[2]
    term = cluster.machines[0].replica.raft.term
    cluster.isolate(apart)
    cluster.run(60.0)
    assert apart.replica.raft.term == term, "it campaigned for real"
    cluster.network.heal()
    written(cluster, cluster.machines[0], b"a")
    apart.kill()
    cluster.run(20.0)
    apart.start()
    cluster.run(10.0)
    written(cluster, cluster.machines[0], b"b")
    assert {m.replica.raft.term for m in cluster.machines} == {term}
    assert cluster.leader() is cluster.machines[0]


# -- appends -------------------------------------------------------------------------------------------


def test_doubled_late_and_empty_appends_never_cut_anything_off() -> None:
    """RC-23, RC-27: every request ever sent, again, in any order, and the empty ones with them."""
    cluster = founded(3)
    sent: list[AppendEntries] = []
    first = cluster.machines[0]
    send = first.transport.send

    def spy(to: NodeId, batch: object) -> None:
        sent.extend(m for m in batch if isinstance(m, AppendEntries))  # type: ignore[attr-defined]
        send(to, batch)  # type: ignore[arg-type]

    first.transport.send = spy  # type: ignore[method-assign]
    for number in range(30):
        written(cluster, first, b"k%d" % number)
    cluster.run(1.0)
    assert len(sent) > 30
    follower = cluster.machines[1]
    log = follower.replica.raft.log
    before = [log.term_at(Index(i)) for i in range(1, log.last_index + 1)]
    committed = log.commit_index
    hello = first.transport.hello
    rng = random.Random(9)
    handler = follower.transport.handler
    assert handler is not None
    mine = [m for m in sent if m.to == follower.record.node_id]
    empty = [m._replace(entries=(), commit_index=Index(0)) for m in mine]
    beginning = mine[0]._replace(prev=LogId(Index(0), Term(0)), entries=(), commit_index=Index(0))
    for _ in range(200):
        handler.on_messages(hello, [rng.choice([*mine, *empty, beginning])])
    cluster.run(1.0)
    assert [log.term_at(Index(i)) for i in range(1, len(before) + 1)] == before
    assert log.commit_index >= committed
    assert len(follower.entries) >= len(before), "not on the disk either"


def test_an_old_leader_with_a_longer_log_comes_back_and_follows() -> None:
    """Its uncommitted tail is longer than the new leader's log: it is cut."""
    cluster = founded(3)
    old = cluster.machines[0]
    written(cluster, old, b"shared")
    cluster.isolate(old)
    lost = [old.write(b"lost%d" % number) for number in range(50)]
    cluster.until(lambda: not old.replica.is_leader)
    new = leader(cluster)
    assert new is not old
    written(cluster, new, b"kept")
    assert old.replica.raft.log.last_index > new.replica.raft.log.last_index
    cluster.network.heal()
    cluster.until(lambda: converged(cluster, b"shared", b"kept"))
    cluster.until(lambda: all(answer.calls for answer in lost))
    assert old.replica.raft.log.last == new.replica.raft.log.last
    assert all(old.replica.store.get(b"lost%d" % number) is None for number in range(50))
    assert all(answer.error is not None for answer in lost), "nobody was told that it is stored"


def test_a_write_is_answered_once_and_never_by_another_entry_of_its_index() -> None:
    """Same index, other term: the one who waits for the first must not hear of the second's success."""
    cluster = founded(3)
    old = cluster.machines[0]
    cluster.isolate(old)
    mine: Answers = old.write(b"mine")
    cluster.run(0.01)
    index = old.replica.raft.log.last_index
    cluster.until(lambda: not old.replica.is_leader)
    new = leader(cluster)
    while new.replica.raft.log.last_index < index + 2:
        written(cluster, new, b"other")
    cluster.network.heal()
    cluster.until(lambda: mine.calls)
    assert isinstance(mine.error, LeadershipLost), "the entry at its index is somebody else's"
    assert mine.effect == "no"
    cluster.run(5.0)  # ``Answers`` complains about a second call
    assert old.replica.store.get(b"mine") is None


# -- majorities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "lost", "goes_on"), [(2, 1, False), (4, 1, True), (4, 2, False),
                                                        (6, 2, True), (6, 3, False)])  # fmt: skip
def test_half_is_no_majority(count: int, lost: int, goes_on: bool) -> None:
    """Raftos commits with two of four, on both sides of a partition."""
    cluster = founded(count)
    written(cluster, cluster.machines[0], b"before")
    for machine in cluster.machines[count - lost :]:
        machine.kill()
    answer = cluster.machines[0].write(b"after")
    cluster.run(60.0)
    assert answer.calls == 1
    assert (answer.error is None) == goes_on
    if not goes_on:
        assert cluster.leader() is None, "a leader of half of them"
        for machine in cluster.machines[: count - lost]:
            assert machine.replica.store.get(b"after") is None


# -- sizes and reads -----------------------------------------------------------------------------------


def test_an_oversized_value_is_refused_before_the_log() -> None:
    """At the door, and once more where a follower forwards: one too large for a frame hangs nobody."""
    settings = HttpSettings(node_name="n", value_bytes_max=1000)
    body = b"x" * (1 << 20)
    with pytest.raises(RemoteProtocolError):
        decode_foreign(encode(KvSet(b"k", body)), 1 << 19)
    key = kv.parse("PUT", b"/v1/kv/" + b"k" * 5000, b"", b"", settings)
    assert isinstance(key, Response)
    assert key.status == 400
    cluster = founded(3)
    last = cluster.machines[0].replica.raft.log.last_index
    follower = cluster.machines[1]
    answer = Answers()
    too_large = b"x" * (cluster.settings.command_bytes_max + 1)
    follower.replica.write(KvSet(b"k", too_large), answer)
    cluster.until(lambda: answer.calls)
    assert answer.error is not None
    assert cluster.machines[0].replica.raft.log.last_index == last, "nothing was appended"
    written(cluster, follower, b"small")


def test_a_leader_that_is_cut_off_refuses_linearizable_reads() -> None:
    """PySyncObj answered stale values for half a minute. Here nobody confirms the round (RC-30)."""
    cluster = founded(3, leader_wait_s=3.0)
    old = cluster.machines[0]
    written(cluster, old, b"k")
    cluster.isolate(old)
    new = leader(cluster) if cluster.leader() is not old else None
    early = old.read()
    cluster.until(lambda: not old.replica.is_leader)
    new = new or leader(cluster)
    newer = Answers()
    new.replica.write(KvSet(b"k", b"newer"), newer)
    cluster.until(lambda: newer.calls)
    late = old.read()
    cluster.until(lambda: early.calls and late.calls)
    assert early.value is None
    assert late.value is None
    assert early.effect == late.effect == "no"

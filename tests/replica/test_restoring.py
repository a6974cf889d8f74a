"""A restore through the log: every node, whole or not at all, whatever dies on the way (decision 0009)."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import DiskFull, KvnodeError
from kvnode.raft.types import Index, LogId, SnapshotMeta
from kvnode.replica.facade import Consistency
from kvnode.store.checks import check
from kvnode.store.commands import Command, RestoreFinish, SessionCreate
from kvnode.store.records import RELEASE, Session, encode_session
from tests.replica.harness import Answers, Cluster, Died, Machine
from tests.store.restores import HOLDER, OTHER, RESTORE, key_row, pieces, session_row

ROWS = [session_row(), *[key_row(b"new/%02d" % number) for number in range(9)]]
ONE = "8a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"


def used(count: int = 3, **settings: Any) -> tuple[Cluster, Machine]:
    cluster = Cluster(count, **settings).found()
    leader = cluster.led_by(0)
    done = [leader.write(b"old/%d" % number) for number in range(5)]
    cluster.until(lambda: all(answers.calls for answers in done))
    return cluster, leader


def ask(cluster: Cluster, machine: Machine, commands: list[Command]) -> list[Any]:
    values = []
    for command in commands:
        answers = machine.ask(command)
        cluster.until(lambda: answers.calls, 60)  # noqa: B023  # called here and now
        assert answers.error is None, answers.error
        values.append(answers.value.value)
    return values


def restored(machine: Machine) -> bool:
    store = machine.replica.store
    return store.get(b"new/00") is not None and machine.replica.may_apply


def old(machine: Machine) -> bool:
    return machine.replica.store.get(b"old/4") is not None


def alike(cluster: Cluster) -> None:
    """All nodes hold the same at the same index, and nothing contradicts itself."""
    lengths = lambda: {m.replica.store.applied_index for m in cluster.machines}  # noqa: E731
    cluster.until(lambda: len(lengths()) == 1)
    assert len({m.replica.store.digest for m in cluster.machines}) == 1
    for machine in cluster.machines:
        assert check(machine.replica.store) == []
        assert machine.fatal is None


@pytest.mark.parametrize("through", [0, 1])
def test_a_restore_asked_of_any_node_reaches_all(through: int) -> None:
    cluster, _ = used()
    assert ask(cluster, cluster.machines[through], pieces(ROWS, 3)) == [True] * 5
    cluster.until(lambda: all(map(restored, cluster.machines)))
    assert not any(map(old, cluster.machines))
    alike(cluster)


def staged() -> tuple[Cluster, Machine, RestoreFinish]:
    cluster, leader = used()
    commands = pieces(ROWS, 3)
    finish = commands.pop()
    assert isinstance(finish, RestoreFinish)
    ask(cluster, leader, commands)
    cluster.until(lambda: all(m.replica.store.staging() == (RESTORE, 4) for m in cluster.machines))
    return cluster, leader, finish


def begin(cluster: Cluster, leader: Machine, finish: RestoreFinish) -> Answers:
    """Up to where every node is about to build the new state."""
    for machine in cluster.machines:
        machine.worker.queue.hold = True
    answers = leader.ask(finish)
    cluster.until(lambda: all(m.replica.applier.rebuilding for m in cluster.machines))
    return answers


def release(cluster: Cluster) -> None:
    for machine in cluster.machines:
        machine.worker.queue.hold = False
        machine.worker.queue.release()


def test_what_comes_behind_waits_and_is_applied_afterwards() -> None:
    cluster, leader, finish = staged()
    answers = begin(cluster, leader, finish)
    after = [leader.write(b"new/after"), cluster.machines[1].write(b"new/after too")]
    read, stale = leader.read(), Answers()
    leader.replica.read(Consistency.STALE, stale)
    cluster.run(1.0)
    assert leader.replica.is_leader, "heartbeats go on"
    assert (answers.calls, read.calls, stale.calls) == (0, 0, 1)
    assert [a.calls for a in after] == [0, 0]
    assert old(leader), "stale reads see the old state, whole"
    assert not restored(leader)
    release(cluster)
    cluster.until(lambda: answers.calls and read.calls and all(a.calls for a in after))
    assert answers.value.value is True
    assert [a.error for a in after] == [None, None]
    assert leader.replica.store.get(b"new/after") is not None
    assert after[0].value.index > answers.value.index
    alike(cluster)


def test_two_restores_in_one_batch_of_entries_take_effect_in_turn() -> None:
    cluster, leader, finish = staged()
    answers = begin(cluster, leader, finish)
    second = [leader.ask(command) for command in pieces([key_row(b"newer")], 3, OTHER)]
    cluster.run(0.5)
    release(cluster)
    cluster.until(lambda: answers.calls and all(a.calls for a in second))
    assert [a.value.value for a in second] == [True, True]
    cluster.until(lambda: all(m.replica.store.keys(b"") == [b"newer"] for m in cluster.machines))
    alike(cluster)


def test_everybody_who_waits_hears_of_it() -> None:
    cluster, leader, finish = staged()
    heard: list[int] = []
    for machine in cluster.machines:
        for watches in (machine.replica.watches, machine.replica.session_watches):
            watches.watch(b"anything", is_prefix=False, callback=heard.append)
            watches.watch(b"x/", is_prefix=True, callback=heard.append)
    answers = leader.ask(finish)
    cluster.until(lambda: all(map(restored, cluster.machines)))
    assert heard == [answers.value.index] * 12


class Dying:
    """The process ends at one moment of the rebuild, as a real one's might."""

    def __init__(self, machine: Machine, when: str) -> None:
        self._factory = machine.engines
        self._machine = machine
        self._when = when

    def create_next(self) -> Any:
        made = self._factory.create_next()
        self._die("created")
        return made

    def switch_to_next(self) -> None:
        self._die("built")
        self._factory.switch_to_next()
        self._die("switched")

    def _die(self, moment: str) -> None:
        if moment == self._when:
            raise Died(self._machine)


@pytest.mark.parametrize("when", ["created", "built", "switched"])
@pytest.mark.parametrize("who", [0, 1])
def test_a_node_that_dies_on_the_way_finds_the_old_or_the_new_state(when: str, who: int) -> None:
    """RC-37: and never a mix; the log brings it to the new one."""
    cluster, leader, finish = staged()
    victim = cluster.machines[who]
    victim.replica.engines = Dying(victim, when)  # type: ignore[assignment]
    leader.ask(finish)
    with pytest.raises(Died):
        cluster.run(10.0)
    victim.kill()
    victim.start()
    assert old(victim) != (victim.replica.store.get(b"new/00") is not None)
    assert check(victim.replica.store) == []
    assert old(victim) == (when != "switched")
    cluster.until(lambda: all(map(restored, cluster.machines)))
    alike(cluster)


def test_a_leader_that_dies_before_the_finish_is_committed_leaves_the_old_state() -> None:
    cluster, leader, finish = staged()
    cluster.isolate(leader)
    answers = leader.ask(finish)
    cluster.run(0.1)
    leader.kill()
    successor = cluster.led_by(1)
    assert ask(cluster, successor, []) == []
    assert all(map(old, cluster.machines[1:]))
    cluster.network.heal()
    leader.start()
    cluster.run(3.0)
    assert all(map(old, cluster.machines))
    assert answers.calls == 0
    # Whoever asked asks again, and it is done.
    assert ask(cluster, cluster.machines[2], [finish]) == [True]
    cluster.until(lambda: all(map(restored, cluster.machines)))
    alike(cluster)


def test_what_is_not_sound_is_dropped_everywhere_and_changes_nothing() -> None:
    cluster, leader = used()
    assert ask(cluster, leader, pieces([key_row(b"b"), key_row(b"a")])) == [True, None]
    assert ask(cluster, leader, pieces([key_row(b"b"), key_row(b"b")], 1)) == [True, True, None]
    assert all(map(old, cluster.machines))
    alike(cluster)
    assert all(m.replica.store.staging() is None for m in cluster.machines)
    assert ask(cluster, leader, pieces(ROWS, 3)) == [True] * 5


def test_a_node_that_has_no_room_for_the_new_state_stops() -> None:
    """It can neither skip the entry nor go on; the others do."""
    cluster, leader, finish = staged()
    victim = cluster.machines[2]

    class Full(Dying):
        def create_next(self) -> Any:
            raise DiskFull("no space")

    victim.replica.engines = Full(victim, "")  # type: ignore[assignment]
    leader.ask(finish)
    cluster.until(lambda: victim.fatal is not None)
    assert isinstance(victim.fatal, DiskFull)
    cluster.until(lambda: all(map(restored, cluster.machines[:2])))


@pytest.mark.parametrize("finished", [False, True])
def test_a_follower_far_behind_gets_what_is_staged_or_restored(finished: bool) -> None:
    cluster, leader = used(log_entries_max=4)
    late = cluster.machines[2]
    cluster.isolate(late)
    commands = pieces(ROWS, 3)
    ask(cluster, leader, commands if finished else commands[:-1])
    done = [leader.write(b"new/more%d" % number) for number in range(12)]
    cluster.until(lambda: all(a.calls for a in done))
    cluster.until(lambda: leader.replica.raft.log.base.index > 12)
    cluster.network.heal()
    cluster.until(lambda: late.events("snapshot_loaded"))
    if not finished:
        assert ask(cluster, leader, commands[-1:]) == [True]
    cluster.until(lambda: all(map(restored, cluster.machines)))
    alike(cluster)


def test_a_stream_to_a_follower_breaks_off_and_begins_again() -> None:
    """What it reads from is closed once the new state is in place."""
    cluster, leader = used(log_entries_max=4)
    late = cluster.machines[2]
    cluster.isolate(late)
    done = [leader.write(b"old/more%d" % number, bytes(300_000)) for number in range(12)]
    cluster.until(lambda: all(a.calls for a in done))
    cluster.until(lambda: leader.replica.raft.log.base.index > 12)
    commands = pieces(ROWS, 3)
    ask(cluster, leader, commands[:-1])
    cluster.network.heal()
    cluster.until(lambda: late.events("snapshot_receiving"))
    assert ask(cluster, leader, commands[-1:]) == [True]
    cluster.until(lambda: all(map(restored, cluster.machines)), 60)
    assert any("replaced" in event["error"] for event in leader.events("snapshot_send_failed"))
    alike(cluster)


def test_a_stream_that_ends_during_a_rebuild_is_not_taken() -> None:
    """Two states would be put in the store's place."""
    cluster, _leader, _finish = staged()
    follower = cluster.machines[1]
    receiver = follower.replica.receiver
    hello = cluster.machines[0].transport.hello
    log = follower.replica.raft.log
    last = LogId(Index(log.last_index + 50), follower.replica.raft.term)
    meta = SnapshotMeta(last, log.membership_at(log.commit_index))
    assert receiver.begin(hello, follower.replica.raft.term, meta)
    follower.replica.applier.rebuilding = True
    heard: list[KvnodeError | None] = []
    receiver.end(hello, True, heard.append)
    cluster.run(0.2)
    assert len(heard) == 1
    assert heard[0] is not None
    assert not receiver.loading
    assert not receiver.begin(hello, follower.replica.raft.term, meta), "and none begins"


def test_what_nobody_goes_on_with_is_given_up() -> None:
    cluster, leader = used(restore_idle_s=20.0)
    commands = pieces(ROWS, 3)
    ask(cluster, leader, commands[:2])
    cluster.run(15.0)
    ask(cluster, leader, commands[2:3])
    cluster.run(15.0)
    assert leader.replica.store.staging() == (RESTORE, 3), "somebody goes on"
    cluster.until(lambda: leader.replica.store.staging() is None, 60)
    assert leader.events("restore_given_up")
    assert ask(cluster, leader, commands[3:]) == [False, False]
    alike(cluster)


def test_restored_sessions_have_their_time_in_full_and_then_end() -> None:
    """RC-61. Twice their TTL, by the leader's clock, from the restore on."""
    cluster, leader = used()
    session = SessionCreate(ONE, "", "n1", 0, RELEASE, "10s", 10 * 10**9, (), ())
    ask(cluster, leader, [session])
    cluster.run(15.0)
    ask(cluster, leader, pieces([session_row(HOLDER), key_row(b"new/00", session=HOLDER)], 3))
    store = leader.replica.store
    assert store.session(ONE) is None
    cluster.run(38.0)  # twice 20 s
    assert store.session(HOLDER) is not None
    cluster.until(lambda: store.session(HOLDER) is None, 10)
    freed = store.get(b"new/00")
    assert freed is not None
    assert freed.session == ""
    assert {event["session"] for event in leader.events("session_expired")} == {HOLDER}
    alike(cluster)


def test_a_restored_session_of_a_foreign_node_stays_for_a_minute() -> None:
    """As long as Consul takes to notice that its node is not there."""
    cluster, leader = used()
    raw, _ = session_row()
    foreign = Session(HOLDER, "", "elsewhere", 0, RELEASE, "", 0, ("serfHealth",), (), 1, 1)
    ask(cluster, leader, pieces([(raw, encode_session(raw, foreign)), key_row(b"new/00")]))
    cluster.run(55.0)
    assert leader.replica.store.session(HOLDER) is not None
    cluster.until(lambda: leader.replica.store.session(HOLDER) is None, 20)
    alike(cluster)

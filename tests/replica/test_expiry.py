"""Keys that expire: never too early, not much too late, whoever leads; and writes that are done once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvnode.replica.expiry import EXPIRE_AT_ONCE, WALK_AT_ONCE, KeyTimers
from kvnode.store.checks import check
from kvnode.store.commands import Command, KvDelete, KvSet, SessionCreate, SessionDestroy
from kvnode.store.memory import MemoryEngine
from kvnode.store.own_commands import KvAdd, KvExpire, KvPut, Mode, Once
from kvnode.store.records import RELEASE
from kvnode.store.store import Store
from tests.replica.harness import Answers, Cluster, Machine

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"
SECOND = 10**9
TICK_S = 0.05


def put(key: bytes, ttl_s: float, value: bytes = b"v") -> KvPut:
    return KvPut(key, value, ttl_ns=int(ttl_s * SECOND))


class Leader:
    """A store, a clock, and the timers; deletions are applied at once unless ``refuse`` is set."""

    def __init__(self) -> None:
        self.now = 500.0
        self.store = Store(MemoryEngine())
        self.gone: list[tuple[float, bytes]] = []
        self.refuse = False
        self.entries = 0
        self.timers = KeyTimers(self.store, self.expire)
        self.store.on_ttl = lambda key, since, ttl_ns: (
            self.timers.began(key, since, ttl_ns, self.now) if since else self.timers.ended(key)
        )
        self.timers.begin(self.now)

    def apply(self, *commands: Command) -> None:
        first = self.store.applied_index + 1
        self.store.apply_batch(list(enumerate(commands, first)))

    def expire(self, keys: tuple[tuple[bytes, int], ...]) -> None:
        self.entries += 1
        self.gone += [(round(self.now, 6), key) for key, _ in keys]
        if self.refuse:
            self.timers.failed(keys)
        else:
            self.apply(KvExpire(keys))

    def run(self, seconds: float, tick_s: float = TICK_S) -> None:
        for _ in range(round(seconds / tick_s)):
            self.now += tick_s
            self.timers.run(self.now)


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_a_key_is_deleted_when_its_time_is_over_and_not_before(leader: Leader) -> None:
    """Also when it was written between two ticks."""
    leader.run(1)
    leader.now += 0.04
    began = leader.now
    leader.apply(put(b"a", 10))
    leader.run(20)
    [(when, key)] = leader.gone
    assert key == b"a"
    assert began + 9.999 <= when <= began + 10 + 2 * TICK_S


def test_writing_it_anew_begins_anew(leader: Leader) -> None:
    leader.apply(put(b"a", 10))
    for _ in range(5):
        leader.run(8)
        leader.apply(put(b"a", 10))
    assert leader.gone == []
    leader.apply(put(b"a", 2))
    leader.run(3)
    assert len(leader.gone) == 1
    assert leader.timers.count == 0


@pytest.mark.parametrize("end", [KvSet(b"a", b"v"), KvDelete(b"a")], ids=repr)
def test_what_ends_the_time_ends_the_clock(leader: Leader, end: Command) -> None:
    leader.apply(put(b"a", 10))
    leader.apply(end)
    assert leader.timers.count == 0
    leader.run(20)
    assert leader.gone == []


def test_a_pause_of_the_process_is_not_counted(leader: Leader) -> None:
    """Writes that would have renewed the key were waiting outside."""
    leader.apply(put(b"a", 10))
    leader.run(5)
    leader.now += 3600
    leader.timers.run(leader.now)
    leader.run(3)
    assert leader.gone == []
    leader.run(3)
    assert len(leader.gone) == 1


def test_a_deletion_that_failed_is_proposed_again(leader: Leader) -> None:
    leader.apply(put(b"a", 2))
    leader.refuse = True
    leader.run(5)
    assert 3 <= len(leader.gone) <= 4
    leader.refuse = False
    leader.run(2)
    assert leader.store.get(b"a") is None


def test_a_deletion_that_failed_does_not_harm_a_key_written_anew(leader: Leader) -> None:
    leader.apply(put(b"a", 2))
    leader.timers.failed(((b"a", 99),))
    leader.run(1)
    leader.apply(put(b"a", 10))
    leader.timers.failed(((b"a", 1),))
    leader.run(9)
    assert leader.gone == []


def test_a_new_leader_gives_every_key_its_time_in_full(leader: Leader) -> None:
    leader.apply(*[put(b"%d" % number, 10) for number in range(3 * WALK_AT_ONCE)])
    leader.run(9)
    began = leader.now
    leader.timers.begin(leader.now)
    leader.run(30)
    assert len(leader.gone) == 3 * WALK_AT_ONCE
    assert began + 9.999 <= min(when for when, _ in leader.gone)
    assert leader.store.count() == 0


def test_many_keys_expire_in_small_entries_and_a_bounded_number_at_once(leader: Leader) -> None:
    count = 4 * EXPIRE_AT_ONCE
    leader.apply(*[put(b"%d" % number, 1) for number in range(count)])
    leader.run(1)
    gone: list[int] = []
    for _ in range(10):
        before = len(leader.gone)
        leader.run(TICK_S)
        gone.append(len(leader.gone) - before)
    assert max(gone) == EXPIRE_AT_ONCE
    assert leader.store.count() == 0
    assert leader.entries >= count / 64


def test_the_heap_does_not_keep_what_is_gone(leader: Leader) -> None:
    for number in range(20_000):
        leader.apply(
            put(b"a%d" % (number % 10), 1000 + number % 7), KvDelete(b"a%d" % (number % 10))
        )
    assert len(leader.timers._heap) < 2000


def test_the_heap_does_not_keep_what_was_renewed(leader: Leader) -> None:
    for number in range(20_000):
        leader.apply(put(b"a", 1000 - number % 2 * 500))
    assert len(leader.timers._heap) < 2000


def test_no_key_is_ever_early(leader: Leader) -> None:
    """A thousand random writes, against plain arithmetic."""
    rng = random.Random(7)
    due: dict[bytes, float] = {}
    for _ in range(1000):
        key = b"%d" % rng.randrange(30)
        leader.now += rng.random() * 0.1
        if rng.random() < 0.3:
            leader.apply(KvSet(key, b"v"))
            due.pop(key, None)
        else:
            ttl_s = rng.choice([0.5, 1.0, 3.0])
            leader.apply(put(key, ttl_s))
            due[key] = leader.now + ttl_s
        before = len(leader.gone)
        leader.timers.run(leader.now)
        for when, gone in leader.gone[before:]:
            assert due.pop(gone) <= when + 1e-6
    assert len(leader.gone) > 50
    assert check(leader.store) == []


# --- in a cluster


def done(cluster: Cluster, answers: Answers) -> Any:
    cluster.until(lambda: answers.calls)
    assert answers.error is None, answers.error
    return answers.value


def ask(cluster: Cluster, machine: Machine, command: Any) -> Any:
    return done(cluster, machine.ask(command)).value


@pytest.fixture
def cluster() -> Cluster:
    """Three nodes, led by the first."""
    found = Cluster(3).found()
    found.led_by(0)
    found.run(0.1)
    return found


def hand_over(cluster: Cluster, number: int) -> Machine:
    leader, successor = cluster.leader(), cluster.machines[number]
    assert leader is not None
    leader.replica.transfer_leadership(successor.record.node_id, Answers())
    cluster.until(lambda: successor.replica.is_leader and successor.replica.raft.has_term_commit)
    cluster.run(0.1)
    return successor


def test_a_key_expires_on_all_nodes_whoever_wrote_it(cluster: Cluster) -> None:
    ask(cluster, cluster.machines[2], put(b"a", 3))
    cluster.run(2.9)
    assert all(m.replica.store.get(b"a") is not None for m in cluster.machines)
    cluster.run(0.5)
    assert all(m.replica.store.get(b"a") is None for m in cluster.machines)


def test_a_change_of_leader_begins_the_time_anew(cluster: Cluster) -> None:
    ask(cluster, cluster.machines[0], put(b"a", 5))
    cluster.run(4)
    successor = hand_over(cluster, 1)
    cluster.run(4.5)
    assert successor.replica.store.get(b"a") is not None
    cluster.run(1)
    assert successor.replica.store.get(b"a") is None


def once(key: bytes, command: Any) -> Once:
    return Once(key, bytes(16), 1000, 4096, command)


def test_a_write_is_done_once_across_leaders_and_restarts(cluster: Cluster) -> None:
    assert ask(cluster, cluster.machines[2], once(b"k", KvAdd(b"n", 5))) == 5
    hand_over(cluster, 1)
    assert ask(cluster, cluster.machines[0], once(b"k", KvAdd(b"n", 5))) == 5
    for machine in cluster.machines:
        machine.kill()
    for machine in cluster.machines:
        machine.start()
    cluster.until(lambda: cluster.leader() is not None)
    assert ask(cluster, cluster.machines[2], once(b"k", KvAdd(b"n", 5))) == 5
    assert ask(cluster, cluster.machines[2], once(b"l", KvAdd(b"n", 5))) == 10


def test_keys_of_writes_are_forgotten_after_their_window() -> None:
    cluster = Cluster(1, once_age_s=30.0).found()
    node = cluster.led_by(0)
    assert ask(cluster, node, once(b"k", KvAdd(b"n", 5))) == 5
    cluster.run(28)
    assert ask(cluster, node, once(b"k", KvAdd(b"n", 5))) == 5
    cluster.run(6)
    assert node.replica.store.once_count() == 0
    assert ask(cluster, node, once(b"k", KvAdd(b"n", 5))) == 10


def test_a_lock_that_was_taken_is_told_again_in_spite_of_a_lock_delay(cluster: Cluster) -> None:
    """The leader's clock refuses locks before the log; but this one may have been taken long ago."""
    leader = cluster.machines[0]
    for who in (A, B):
        ask(cluster, leader, SessionCreate(who, "", "n0", 5 * SECOND, RELEASE, "", 0, (), ()))
    lock = once(b"k", KvPut(b"a", b"", 0, None, A, Mode.LOCK))
    assert ask(cluster, leader, lock) is True
    ask(cluster, leader, SessionDestroy(A))
    assert ask(cluster, leader, lock) is True
    other = KvPut(b"a", b"", 0, None, B, Mode.LOCK)
    assert ask(cluster, leader, once(b"l", other)) is False
    assert ask(cluster, leader, other) is False
    cluster.run(6)
    assert ask(cluster, leader, once(b"m", other)) is True

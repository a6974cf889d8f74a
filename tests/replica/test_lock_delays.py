"""How long ago sessions ended: lock-delays may be lengthened, and are never shortened (RC-62)."""

from __future__ import annotations

import pytest

from kvnode.replica.lock_delays import MARKS_MAX, LockDelays
from kvnode.store.commands import (
    Command,
    KvLock,
    Problem,
    ReapLockDelays,
    Result,
    SessionCreate,
    SessionDestroy,
    Trouble,
    Txn,
    TxnOp,
    TxnOutcome,
    Verb,
)
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import RELEASE
from kvnode.store.store import Store

SECOND = 10**9


class Node:
    """A store, a clock that the test sets, and the notes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.store = Store(MemoryEngine())
        self.delays = LockDelays(self.store, lambda: self.now)
        self.store.on_session = lambda index, who, session: (
            self.delays.ended(index) if who and session is None else None
        )
        self.sessions = 0

    def apply(self, *commands: Command) -> list[Result]:
        first = self.store.applied_index + 1
        return self.store.apply_batch(list(enumerate(commands, first)))

    def held_and_lost(self, *keys: bytes, delay_ns: int = 15 * SECOND) -> None:
        """A session locks keys, and ends."""
        self.sessions += 1
        who = f"{self.sessions:08d}-0c4d-4a44-8e0e-5d6f3f1f0a77"
        self.apply(SessionCreate(who, "", "n", delay_ns, RELEASE, "", 0, (), ()))
        index = self.store.applied_index
        assert all(r.value for r in self.apply(*[KvLock(k, b"", who, 0, index) for k in keys]))
        self.apply(SessionDestroy(who))


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_delay_runs_for_its_length_from_when_the_end_was_learned(node: Node) -> None:
    assert not node.delays.is_running(b"a")
    node.held_and_lost(b"a")
    for passed, running in ((0.0, True), (14.999, True), (15.0, False), (100.0, False)):
        node.now = 100.0 + passed
        assert node.delays.is_running(b"a") is running
    assert not node.delays.is_running(b"other")


def test_each_end_has_a_time_of_its_own(node: Node) -> None:
    for key in (b"a", b"b", b"c"):
        node.held_and_lost(key)
        node.now += 10
    assert [node.delays.is_running(key) for key in (b"a", b"b", b"c")] == [False, False, True]


def test_a_minute_is_the_longest(node: Node) -> None:
    """Spec §5.1."""
    node.held_and_lost(b"a", delay_ns=3600 * SECOND)
    node.now += 59.9
    assert node.delays.is_running(b"a")
    node.now += 0.1
    assert not node.delays.is_running(b"a")


def test_a_node_that_starts_counts_from_then(node: Node) -> None:
    """The store that it opens may hold delays of any age."""
    node.held_and_lost(b"a")
    node.now += 14
    restarted = LockDelays(node.store, lambda: node.now)
    node.now += 14
    assert restarted.is_running(b"a")
    assert not node.delays.is_running(b"a")
    node.now += 1
    assert not restarted.is_running(b"a")


def test_a_node_that_was_given_a_snapshot_counts_from_then(node: Node) -> None:
    source = Node()
    source.held_and_lost(b"a")
    node.now += 30
    node.store.replace(source.store.engine)
    node.delays.restart()
    node.now += 14.9
    assert node.delays.is_running(b"a")
    node.now += 0.1
    assert not node.delays.is_running(b"a")


def test_what_is_over_for_certain_may_be_forgotten(node: Node) -> None:
    node.held_and_lost(b"a")
    node.now += 30
    node.held_and_lost(b"b")
    assert node.delays.over_upto() == 0
    node.now += 30.1
    first_end = node.delays.over_upto()
    assert node.store.delays_bound(first_end, 10) == 3
    node.apply(ReapLockDelays(first_end))
    assert node.store.lock_delay(b"a") is None
    assert node.store.lock_delay(b"b") is not None
    node.now += 30
    assert node.delays.over_upto() >= 6
    assert not node.delays.is_running(b"b")


def test_after_the_marks_are_forgotten_a_later_end_is_still_timed(node: Node) -> None:
    node.held_and_lost(b"a")
    node.now += 100
    node.delays.over_upto()
    node.held_and_lost(b"b")
    assert node.delays.is_running(b"b")
    assert not node.delays.is_running(b"a")
    node.now += 15
    assert not node.delays.is_running(b"b")


def test_notes_are_bounded_and_the_oldest_are_taken_for_younger(node: Node) -> None:
    """RC-67."""
    node.held_and_lost(b"first")
    for number in range(MARKS_MAX + 50):
        node.now += 0.001
        node.held_and_lost(b"%d" % number)
    assert len(node.delays._indexes) == len(node.delays._times) == MARKS_MAX
    node.now = 100.0 + 15.0
    assert node.delays.is_running(b"first"), "lengthened, by no more than the time of the others"
    node.now += 0.1
    assert not node.delays.is_running(b"first")


# --- what the leader proposes


def test_a_lock_is_stamped_with_what_it_was_judged_by_or_refused(node: Node) -> None:
    node.held_and_lost(b"a")
    lock = KvLock(b"a", b"v", "x", 7)
    assert node.delays.judge(lock) == Result(False, 3)
    assert node.delays.judge(lock._replace(key=b"b")) == KvLock(b"b", b"v", "x", 7, 3)
    node.now += 15
    assert node.delays.judge(lock) == lock._replace(as_of=3)
    assert node.delays.judge(lock._replace(as_of=99)) == lock._replace(as_of=3), "nobody else may"


def test_of_a_transaction_only_the_delayed_locks_are_told(node: Node) -> None:
    """Spec §6: they are looked at before anything else."""
    node.held_and_lost(b"a", b"b")
    txn = Txn(
        (
            TxnOp(Verb.GET, b"missing"),
            TxnOp(Verb.LOCK, b"a", session="x"),
            TxnOp(Verb.LOCK, b"free", session="x"),
            TxnOp(Verb.SET, b"a"),
            TxnOp(Verb.LOCK, b"b", session="x"),
        ),
        100,
    )
    problems = (Problem(1, Trouble.LOCK_DELAY), Problem(4, Trouble.LOCK_DELAY))
    assert node.delays.judge(txn) == Result(TxnOutcome((), problems), 4)
    node.now += 15
    assert node.delays.judge(txn) == txn._replace(as_of=4)
    plain = Txn((TxnOp(Verb.SET, b"a"),), 0)
    assert node.delays.judge(plain) is plain

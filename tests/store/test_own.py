"""What Consul cannot do: times to live, locks with conditions, counters, copies of prefixes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    Result,
    SessionCreate,
    SessionDestroy,
    Txn,
    TxnOp,
    Verb,
)
from kvnode.store.engine import Engine
from kvnode.store.memory import MemoryEngine
from kvnode.store.own_commands import (
    KvAdd,
    KvCopy,
    KvExpire,
    KvPut,
    Mode,
    Once,
    ReapOnce,
    Refused,
    Why,
)
from kvnode.store.records import RELEASE, KVPair
from kvnode.store.snapshot import load
from kvnode.store.store import Store

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"
SECOND = 10**9
MAX, MIN = 2**63 - 1, -(2**63)


def session(session_id: str, delay_ns: int = 0) -> SessionCreate:
    return SessionCreate(session_id, "", "n1", delay_ns, RELEASE, "", 0, (), ())


def apply(store: Store, command: Command) -> Result:
    [result] = store.apply_batch([(store.applied_index + 1, command)])
    assert check(store) == []
    return result


def put(key: bytes, value: bytes = b"v", seconds: int = 0, **others: object) -> KvPut:
    return KvPut(key, value, ttl_ns=seconds * SECOND)._replace(**others)


def copy(source: bytes, target: bytes, **others: object) -> KvCopy:
    plain = KvCopy(source, target, True, False, False, None, 100, 10_000, 64)
    return plain._replace(**others)


# --- time to live


def test_a_key_with_a_time_to_live_is_listed_until_its_time_is_over(store: Store) -> None:
    assert apply(store, put(b"a", b"1", 30)) == Result(True, 1, 1)
    assert store.get(b"a") == KVPair(b"a", b"1", 0, 1, 1, 0, "")
    assert store.ttl(b"a") == (1, 30 * SECOND)
    assert store.ttls() == [(b"a", 1, 30 * SECOND)]
    assert apply(store, KvExpire(((b"a", 1), (b"missing", 1)))) == Result(1, 2)
    assert store.get(b"a") is None
    assert store.ttls() == []
    assert store.graves() == [(b"a", 2, False)]
    assert store.prefix_index(b"a") == 2


@pytest.mark.parametrize(
    "write",
    [
        KvSet(b"a", b"1"),
        KvSet(b"a", b"2"),
        KvSet(b"a", b"1", 0, 1),
        KvPut(b"a", b"1"),
        KvLock(b"a", b"1", A),
        Txn((TxnOp(Verb.SET, b"a", b"1"),), 0),
    ],
    ids=repr,
)
def test_a_write_without_a_time_to_live_ends_it(store: Store, write: Command) -> None:
    """Also one that is otherwise identical: what reads show has changed."""
    apply(store, put(b"a", b"1", 30))
    apply(store, session(A))
    apply(store, write)
    pair = store.get(b"a")
    assert pair is not None
    assert pair.modify_index == 3
    assert store.ttl(b"a") is None
    assert apply(store, KvExpire(((b"a", 1),))).value == 0
    assert store.get(b"a") == pair


def test_a_conditional_write_that_fails_leaves_the_time_alone(store: Store) -> None:
    apply(store, put(b"a", b"1", 30))
    assert apply(store, KvSet(b"a", b"2", 0, 7)).value is False
    assert apply(store, put(b"a", b"2", 60, cas=7)).value is False
    assert store.ttl(b"a") == (1, 30 * SECOND)


def test_the_same_write_again_renews_the_time_and_changes_nothing_else(store: Store) -> None:
    heard: list[tuple[int, bytes, bool]] = []
    apply(store, put(b"a", b"1", 30))
    store.on_change = lambda *change: heard.append(change)
    assert apply(store, put(b"a", b"1", 60)) == Result(True, 2, 1)
    assert (heard, store.kv_index()) == ([], 1)
    assert store.ttl(b"a") == (2, 60 * SECOND)
    assert apply(store, KvExpire(((b"a", 1),))).value == 0, "it was written since"
    assert apply(store, KvExpire(((b"a", 2),))).value == 1
    assert heard == [(4, b"a", False)]


def test_a_time_to_live_for_a_key_that_had_none_is_a_change(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    assert apply(store, put(b"a", b"1", 30)) == Result(True, 2, 2)


@pytest.mark.parametrize("deletion", [KvDelete(b"a"), KvDeleteTree(b"")], ids=repr)
def test_a_deletion_takes_the_time_with_it(store: Store, deletion: Command) -> None:
    apply(store, put(b"a", b"1", 30))
    apply(store, deletion)
    apply(store, KvSet(b"a", b"new"))
    assert store.ttls() == []
    apply(store, KvExpire(((b"a", 1),)))
    assert store.get(b"a") is not None


def test_the_end_of_a_session_leaves_the_time_of_its_keys(store: Store) -> None:
    apply(store, session(A))
    assert apply(store, put(b"a", b"1", 30, mode=Mode.LOCK, session=A)).value is True
    apply(store, SessionDestroy(A))
    pair = store.get(b"a")
    assert pair is not None
    assert not pair.session
    assert store.ttl(b"a") == (2, 30 * SECOND)


def test_a_locked_key_whose_time_is_over_is_let_go(store: Store) -> None:
    apply(store, session(A, 15 * SECOND))
    apply(store, put(b"a", b"1", 30, mode=Mode.LOCK, session=A))
    apply(store, KvExpire(((b"a", 2),)))
    assert store.held(A) == []
    assert store.lock_delay(b"a") is None


def test_the_listener_hears_of_beginnings_and_ends(store: Store) -> None:
    heard: list[tuple[bytes, int, int]] = []
    store.on_ttl = lambda *change: heard.append(change)
    apply(store, put(b"a", b"1", 30))
    apply(store, put(b"a", b"1", 30))
    apply(store, KvSet(b"a", b"1"))
    apply(store, put(b"b", b"1", 10))
    apply(store, KvDelete(b"b"))
    assert heard == [
        (b"a", 1, 30 * SECOND),
        (b"a", 2, 30 * SECOND),
        (b"a", 0, 0),
        (b"b", 4, 10 * SECOND),
        (b"b", 0, 0),
    ]


def test_keys_with_a_time_are_paged(store: Store) -> None:
    for name in (b"c", b"a", b"b"):
        apply(store, put(name, b"", 5))
    assert [row[0] for row in store.ttls(limit=2)] == [b"a", b"b"]
    assert [row[0] for row in store.ttls(after=b"b", limit=2)] == [b"c"]


# --- locks with conditions, and without the value


def test_a_lock_can_have_a_condition_and_keep_the_value(store: Store) -> None:
    apply(store, session(A))
    apply(store, session(B))
    apply(store, KvSet(b"a", b"1", 7))
    lock = put(b"a", b"", mode=Mode.LOCK, session=A, keep=True)
    assert apply(store, lock._replace(cas=2)).value is False
    assert apply(store, lock._replace(cas=3)) == Result(True, 5, 5)
    assert store.get(b"a") == KVPair(b"a", b"1", 7, 3, 5, 1, A)
    assert apply(store, lock._replace(session=B)).value is False
    assert apply(store, lock._replace(session="cccccccc" + A[8:])).value is None
    assert apply(store, lock._replace(mode=Mode.UNLOCK, session=B)).value is False
    assert apply(store, lock._replace(mode=Mode.UNLOCK)) == Result(True, 9, 9)
    assert store.get(b"a") == KVPair(b"a", b"1", 7, 3, 9, 1, "")


def test_a_lock_that_was_judged_before_the_delay_is_refused(store: Store) -> None:
    apply(store, session(A, 15 * SECOND))
    apply(store, put(b"a", mode=Mode.LOCK, session=A))
    apply(store, session(B))
    apply(store, SessionDestroy(A))
    lock = put(b"a", mode=Mode.LOCK, session=B, as_of=3)
    assert apply(store, lock).value is False
    assert apply(store, lock._replace(as_of=4)).value is True


def test_a_holder_whose_lock_index_was_reset_can_lock_again(store: Store) -> None:
    """LockIndex 0 is no refusal (spec §2.1)."""
    apply(store, session(A))
    apply(store, KvLock(b"a", b"1", A))
    apply(store, KvSet(b"a", b"2"))
    assert apply(store, KvLock(b"a", b"3", A)).value is True
    assert apply(store, put(b"a", b"4", mode=Mode.LOCK, session=A)).value is True


# --- counters


def test_a_counter_begins_at_nothing_and_keeps_everything_else(store: Store) -> None:
    assert apply(store, KvAdd(b"n", 5)) == Result(5, 1, 1)
    assert apply(store, KvAdd(b"n", -7)) == Result(-2, 2, 2)
    assert store.get(b"n") == KVPair(b"n", b"-2", 0, 1, 2, 0, "")
    apply(store, session(A))
    apply(store, KvLock(b"n", b" 40\n", A, 9))
    assert apply(store, KvAdd(b"n", 2)).value == 42
    assert store.get(b"n") == KVPair(b"n", b"42", 9, 1, 5, 1, A)


def test_adding_nothing_changes_nothing(store: Store) -> None:
    apply(store, KvSet(b"n", b"+7\n"))
    assert apply(store, KvAdd(b"n", 0)) == Result(7, 2, 1)
    assert store.kv_index() == 1


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.5", b"0x10", b"1 2", b"1_0", b"9" * 30, "٣".encode()]
)
def test_what_is_no_number_is_refused(store: Store, value: bytes) -> None:
    apply(store, KvSet(b"n", value))
    assert apply(store, KvAdd(b"n", 1)).value == Refused(Why.NOT_A_NUMBER)
    assert store.kv_index() == 1


def test_a_counter_does_not_wrap_around(store: Store) -> None:
    assert apply(store, KvAdd(b"n", MAX)).value == MAX
    assert apply(store, KvAdd(b"n", 1)).value == Refused(Why.OVERFLOW)
    assert apply(store, KvAdd(b"m", MIN)).value == MIN
    assert apply(store, KvAdd(b"m", -1)).value == Refused(Why.OVERFLOW)
    assert apply(store, KvAdd(b"n", MIN)).value == -1


def test_a_counter_can_have_a_condition(store: Store) -> None:
    assert apply(store, KvAdd(b"n", 1, 5)).value is False
    assert apply(store, KvAdd(b"n", 1, 0)).value == 1
    assert apply(store, KvAdd(b"n", 1, 0)).value is False
    assert apply(store, KvAdd(b"n", 1, 2)).value == 2


def test_a_counters_time_goes_on_unless_it_is_told(store: Store) -> None:
    """So that a window of time can be counted in."""
    apply(store, KvAdd(b"n", 1, None, 60 * SECOND))
    apply(store, KvAdd(b"n", 1))
    assert store.ttl(b"n") == (1, 60 * SECOND)
    apply(store, KvAdd(b"n", 1, None, 30 * SECOND))
    assert store.ttl(b"n") == (3, 30 * SECOND)


# --- copy and move


@pytest.fixture
def tree(store: Store) -> Store:
    """``a/1`` = x with flags, ``a/2`` = y for 30 s, ``b`` = z; up to index 3."""
    apply(store, KvSet(b"a/1", b"x", 7))
    apply(store, put(b"a/2", b"y", 30))
    apply(store, KvSet(b"b", b"z"))
    return store


def names(store: Store) -> list[bytes]:
    return list(store.keys(b""))


def test_a_prefix_is_copied_in_one_entry(tree: Store) -> None:
    assert apply(tree, copy(b"a/", b"c/d/")) == Result(2, 4)
    assert names(tree) == [b"a/1", b"a/2", b"b", b"c/d/1", b"c/d/2"]
    assert tree.get(b"c/d/1") == KVPair(b"c/d/1", b"x", 7, 4, 4, 0, "")
    assert tree.ttl(b"c/d/2") == (4, 30 * SECOND), "the copy's time begins anew"


def test_a_prefix_is_moved_in_one_entry(tree: Store) -> None:
    heard: list[tuple[int, bytes, bool]] = []
    tree.on_change = lambda *change: heard.append(change)
    assert apply(tree, copy(b"a/", b"c/", move=True)) == Result(2, 4)
    assert names(tree) == [b"b", b"c/1", b"c/2"]
    assert tree.graves() == [(b"a/1", 4, False), (b"a/2", 4, False)]
    assert {key for _, key, _ in heard} == {b"a/1", b"a/2", b"c/1", b"c/2"}


def test_one_key_is_copied_without_what_only_begins_like_it(tree: Store) -> None:
    apply(tree, KvSet(b"b2", b"other"))
    assert apply(tree, copy(b"b", b"x", tree=False)).value == 1
    assert names(tree) == [b"a/1", b"a/2", b"b", b"b2", b"x"]


def test_a_key_that_exists_refuses_the_whole_unless_overwritten(tree: Store) -> None:
    apply(tree, KvSet(b"c/2", b"here", 1))
    before = tree.digest
    assert apply(tree, copy(b"a/", b"c/")).value == Refused(Why.TARGET_EXISTS, 0, b"c/2")
    assert tree.digest == before
    assert apply(tree, copy(b"a/", b"c/", overwrite=True)).value == 2
    assert tree.get(b"c/2") == KVPair(b"c/2", b"y", 0, 4, 6, 0, "")


def test_a_single_copy_can_have_a_condition(tree: Store) -> None:
    one = copy(b"a/1", b"b", tree=False)
    assert apply(tree, one._replace(cas=0)).value is False
    assert apply(tree, one._replace(cas=2)).value is False
    assert apply(tree, one._replace(cas=3)).value == 1


def test_a_locked_key_is_not_moved_and_an_overwritten_one_stays_locked(tree: Store) -> None:
    apply(tree, session(A))
    apply(tree, KvLock(b"a/1", b"x", A, 7))
    assert apply(tree, copy(b"a/", b"c/", move=True)).value == Refused(Why.SOURCE_LOCKED, 0, b"a/1")
    assert apply(tree, copy(b"a/", b"c/")).value == 2
    copied = tree.get(b"c/1")
    assert copied is not None
    assert not copied.session
    assert apply(tree, copy(b"b", b"a/1", tree=False, overwrite=True)).value == 1
    assert tree.get(b"a/1") == KVPair(b"a/1", b"z", 0, 1, 8, 1, A)


@pytest.mark.parametrize("bounds", [{"keys_max": 1}, {"bytes_max": 100}], ids=repr)
def test_more_than_the_entry_allows_is_refused(tree: Store, bounds: dict[str, int]) -> None:
    assert apply(tree, copy(b"a/", b"c/", **bounds)).value == Refused(Why.TOO_MUCH)


def test_no_key_becomes_empty_or_too_long(tree: Store) -> None:
    long = copy(b"a/", b"c/" + b"x" * 62)
    assert apply(tree, long).value == Refused(Why.KEY_LENGTH, 0, b"a/1")
    assert apply(tree, copy(b"b", b"")).value == Refused(Why.KEY_LENGTH, 0, b"b")
    assert apply(tree, copy(b"a/", b"", move=True)).value == 2
    assert names(tree) == [b"1", b"2", b"b"]


def test_nothing_to_copy_is_told(tree: Store) -> None:
    assert apply(tree, copy(b"none", b"c")).value == Refused(Why.NO_SOURCE)
    assert apply(tree, copy(b"a", b"c", tree=False)).value == Refused(Why.NO_SOURCE)


def test_prefixes_may_overlap(tree: Store) -> None:
    """Everything is read before anything is written."""
    apply(tree, copy(b"a/", b"a/a/"))
    assert names(tree) == [b"a/1", b"a/2", b"a/a/1", b"a/a/2", b"b"]
    apply(tree, copy(b"a/", b"a/a/", move=True))
    assert names(tree) == [b"a/a/1", b"a/a/2", b"a/a/a/1", b"a/a/a/2", b"b"]
    apply(tree, copy(b"a/a/", b"a/", move=True))
    assert names(tree) == [b"a/1", b"a/2", b"a/a/1", b"a/a/2", b"b"]


def test_a_move_and_back_leaves_what_was(tree: Store) -> None:
    before = [(pair.key, pair.value, pair.flags) for pair in tree.list(b"")]
    apply(tree, copy(b"", b"all/", move=True))
    assert all(name.startswith(b"all/") for name in names(tree))
    apply(tree, copy(b"all/", b"", move=True))
    assert [(pair.key, pair.value, pair.flags) for pair in tree.list(b"")] == before


# --- all of it: batches do not matter, and a snapshot holds everything


def _commands(rng: random.Random) -> Iterator[Command]:
    keys = [b"a", b"a/1", b"a/2", b"b", b"b/1", b"n"]

    def key() -> bytes:
        return rng.choice(keys)

    yield session(A, 15 * SECOND)
    yield session(B)
    makers: list[Callable[[], Command]] = [
        lambda: KvSet(key(), rng.choice([b"1", b"x"]), rng.choice([0, 3])),
        lambda: KvDelete(key()),
        lambda: KvDeleteTree(rng.choice([b"a/", b"b"])),
        lambda: put(key(), b"1", rng.choice([0, 5, 9]), cas=rng.choice([None, None, 0])),
        lambda: put(key(), b"2", 5, mode=Mode.LOCK, session=rng.choice([A, B]), keep=True),
        lambda: put(key(), b"2", 0, mode=Mode.UNLOCK, session=rng.choice([A, B])),
        lambda: KvAdd(key(), rng.choice([-1, 0, 1, MAX]), None, rng.choice([0, 5 * SECOND])),
        lambda: KvExpire(tuple((key(), rng.randrange(60)) for _ in range(20))),
        lambda: copy(b"a", b"b", move=rng.random() < 0.5, overwrite=rng.random() < 0.8),
        lambda: copy(b"b", b"a/", overwrite=True, keys_max=3),
        lambda: Txn((TxnOp(Verb.SET, key(), b"t"), TxnOp(Verb.CHECK_NOT_EXISTS, b"n")), 0),
        lambda: Txn((TxnOp(Verb.GET, b"a"), TxnOp(Verb.DELETE, key())), 4096),
    ]
    for number in range(60):
        command = rng.choice(makers)()
        if rng.random() < 0.4:
            key_of_write = b"%d" % rng.randrange(number // 2 + 1)
            command = Once(key_of_write, bytes(15) + bytes([rng.randrange(2)]), 8, 200, command)
        yield command
        if rng.random() < 0.1:
            yield ReapOnce(rng.randrange(60))


@pytest.mark.parametrize("seed", range(20))
def test_batches_change_no_result_and_no_digest(
    new_engine: Callable[[], Engine], seed: int
) -> None:
    rng = random.Random(seed)
    entries = list(enumerate(_commands(rng), 1))
    one_by_one, batched = Store(new_engine()), Store(new_engine())
    results = []
    for entry in entries:
        results += one_by_one.apply_batch([entry])
        assert check(one_by_one) == []
    others = []
    while entries:
        size = rng.randrange(1, 30)
        others += batched.apply_batch(entries[:size])
        entries = entries[size:]
    assert results == others
    assert one_by_one.digest == batched.digest
    assert check(batched) == []
    dump = batched.dump()
    try:
        copied = MemoryEngine()
        load(copied, dump)
    finally:
        dump.close()
    assert check(Store(copied)) == []
    assert Store(copied).ttls() == one_by_one.ttls()
    assert Store(copied).once_count() == one_by_one.once_count()

"""Sessions and locks, row by row of spec §2.1, §4.2 and §5.5; and what the leader could not see yet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    KvUnlock,
    ReapLockDelays,
    Result,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.engine import Engine
from kvnode.store.records import DELETE, RELEASE, KVPair, Session
from kvnode.store.store import Store

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"
SECOND = 10**9


def session(session_id: str, delay_ns: int = 15 * SECOND, behavior: int = RELEASE) -> SessionCreate:
    return SessionCreate(session_id, "", "n1", delay_ns, behavior, "", 0, ("serfHealth",), ())


def apply(store: Store, command: Command) -> Result:
    [result] = store.apply_batch([(store.applied_index + 1, command)])
    assert check(store) == []
    return result


@pytest.fixture
def locked(store: Store) -> Store:
    """Sessions A and B since 1 and 2; A holds ``a`` = ``1``, flags 7, since 3."""
    apply(store, session(A))
    apply(store, session(B))
    assert apply(store, KvLock(b"a", b"1", A, 7)) == Result(True, 3, 3)
    return store


# --- acquire and release, spec §2.1 and §4.2


def test_acquire_makes_a_missing_key_with_lock_index_one(locked: Store) -> None:
    assert locked.get(b"a") == KVPair(b"a", b"1", 7, 3, 3, 1, A)
    assert locked.held(A) == [b"a"]


def test_acquire_of_a_free_key_counts_the_lock_and_keeps_the_create_index(locked: Store) -> None:
    apply(locked, KvUnlock(b"a", b"1", A))
    assert apply(locked, KvLock(b"a", b"2", B)) == Result(True, 5, 5)
    assert locked.get(b"a") == KVPair(b"a", b"2", 0, 3, 5, 2, B)


def test_acquire_by_the_holder_with_the_same_value_changes_nothing(locked: Store) -> None:
    digest, heard = locked.digest, []
    locked.on_change = lambda *change: heard.append(change)
    assert apply(locked, KvLock(b"a", b"1", A, 7)) == Result(True, 4, 3)
    assert (locked.get(b"a"), locked.digest) == (KVPair(b"a", b"1", 7, 3, 3, 1, A), digest)
    assert heard == []


def test_acquire_by_the_holder_with_another_value_keeps_the_lock_index(locked: Store) -> None:
    assert apply(locked, KvLock(b"a", b"2", A)) == Result(True, 4, 4)
    assert locked.get(b"a") == KVPair(b"a", b"2", 0, 3, 4, 1, A)


def test_acquire_by_another_is_false_and_never_changes_the_value(locked: Store) -> None:
    assert apply(locked, KvLock(b"a", b"2", B)) == Result(False, 4)
    assert locked.get(b"a") == KVPair(b"a", b"1", 7, 3, 3, 1, A)


@pytest.mark.parametrize("who", [B[:-1] + "0", "short", "", "ç" * 18])
def test_acquire_without_a_session_is_told_apart_from_false(locked: Store, who: str) -> None:
    assert apply(locked, KvLock(b"a", b"2", who)) == Result(None, 4)
    assert apply(locked, KvLock(b"new", b"2", who)) == Result(None, 5)
    assert locked.get(b"new") is None


def test_release_by_the_holder_replaces_value_and_flags(locked: Store) -> None:
    assert apply(locked, KvUnlock(b"a", b"", A)) == Result(True, 4, 4)
    assert locked.get(b"a") == KVPair(b"a", b"", 0, 3, 4, 1, "")
    assert locked.held(A) == []


@pytest.mark.parametrize("who", [B, "any text", ""])
def test_release_by_anybody_else_is_false(locked: Store, who: str) -> None:
    apply(locked, KvSet(b"free", b""))
    for key in (b"a", b"free", b"missing"):
        assert apply(locked, KvUnlock(key, b"2", who)).value is False
    assert locked.get(b"a") == KVPair(b"a", b"1", 7, 3, 3, 1, A)


@pytest.mark.parametrize("cas", [None, 3])
def test_a_plain_put_resets_the_lock_index_and_keeps_the_session(
    locked: Store, cas: int | None
) -> None:
    """Spec §2.1: surprising, and Consul's."""
    assert apply(locked, KvSet(b"a", b"1", 7, cas)) == Result(True, 4, 4)
    assert locked.get(b"a") == KVPair(b"a", b"1", 7, 3, 4, 0, A)
    assert apply(locked, KvSet(b"a", b"1", 7)) == Result(True, 5, 4), "now it is identical"
    assert apply(locked, KvLock(b"a", b"1", B)).value is False, "it is still held"


@pytest.mark.parametrize("command", [KvDelete(b"a"), KvDelete(b"a", 3), KvDeleteTree(b"")])
def test_a_deletion_takes_the_lock_along_without_lock_delay(
    locked: Store, command: Command
) -> None:
    """Spec §4.2."""
    assert apply(locked, command).value is True
    assert (locked.held(A), locked.lock_delay(b"a")) == ([], None)
    assert apply(locked, KvLock(b"a", b"1", B)).value is True
    assert locked.get(b"a") == KVPair(b"a", b"1", 0, 5, 5, 1, B)


# --- the end of a session, spec §5.5


def test_the_end_releases_every_key_in_one_entry(locked: Store) -> None:
    apply(locked, KvLock(b"b", b"2", A))
    apply(locked, KvLock(b"c", b"3", B))
    assert apply(locked, SessionDestroy(A)) == Result(True, 6)
    assert locked.list(b"") == [
        KVPair(b"a", b"1", 7, 3, 6, 1, ""),
        KVPair(b"b", b"2", 0, 4, 6, 1, ""),
        KVPair(b"c", b"3", 0, 5, 5, 1, B),
    ]
    assert locked.session(A) is None
    assert [s.session_id for s in locked.sessions()] == [B]
    assert (locked.session_index(), locked.kv_index()) == (6, 6)
    assert locked.lock_delay(b"a") == locked.lock_delay(b"b") == (6, 15 * SECOND)
    assert locked.lock_delay(b"c") is None


def test_the_end_deletes_when_it_was_asked_to(store: Store) -> None:
    apply(store, session(A, behavior=DELETE))
    apply(store, KvLock(b"a", b"1", A))
    apply(store, KvSet(b"b", b"1"))
    apply(store, SessionDestroy(A))
    assert [pair.key for pair in store.list(b"")] == [b"b"]
    assert store.graves() == [(b"a", 4, False)]
    assert store.lock_delay(b"a") == (4, 15 * SECOND), "also when the key was deleted"


def test_the_end_of_an_unknown_session_is_true_and_changes_nothing(locked: Store) -> None:
    digest = locked.digest
    assert apply(locked, SessionDestroy(B[:-1] + "0")) == Result(True, 4)
    assert (locked.digest, locked.session_index()) == (digest, 2)


def test_a_session_made_twice_stays_what_it_was(locked: Store) -> None:
    assert apply(locked, session(A, 0)) == Result(False, 4)
    made = locked.session(A)
    assert made == Session(A, "", "n1", 15 * SECOND, RELEASE, "", 0, ("serfHealth",), (), 1, 1)


@pytest.mark.parametrize("delay_ns", [0, -5])
def test_no_lock_delay_when_none_was_asked_for(store: Store, delay_ns: int) -> None:
    apply(store, session(A, delay_ns))
    apply(store, session(B))
    apply(store, KvLock(b"a", b"1", A))
    apply(store, SessionDestroy(A))
    assert store.lock_delay(b"a") is None
    assert apply(store, KvLock(b"a", b"2", B)).value is True
    assert store.get(b"a") == KVPair(b"a", b"2", 0, 3, 5, 2, B)


def test_a_lock_delay_above_a_minute_acts_as_a_minute(store: Store) -> None:
    """Spec §5.1."""
    apply(store, session(A, 3600 * SECOND))
    apply(store, KvLock(b"a", b"1", A))
    apply(store, SessionDestroy(A))
    assert store.lock_delay(b"a") == (3, 60 * SECOND)


def test_a_lock_that_was_judged_before_the_end_is_refused(locked: Store) -> None:
    """RC-62: the leader proposed it with its eye on index 3, the session ended at 4. Time has no say."""
    locked.apply_batch([(4, SessionDestroy(A)), (5, KvLock(b"a", b"2", B, as_of=3))])
    assert locked.get(b"a") == KVPair(b"a", b"1", 7, 3, 4, 1, "")
    assert apply(locked, KvLock(b"a", b"2", B, as_of=3)).value is False
    assert apply(locked, KvLock(b"a", b"2", B, as_of=4)).value is True
    assert locked.lock_delay(b"a") is None, "it is over, or the leader would not have proposed it"


def test_a_plain_put_and_a_deletion_leave_the_lock_delay(locked: Store) -> None:
    apply(locked, SessionDestroy(A))
    apply(locked, KvSet(b"a", b"9"))
    apply(locked, KvDelete(b"a"))
    assert locked.lock_delay(b"a") == (4, 15 * SECOND)
    assert apply(locked, KvLock(b"a", b"2", B, as_of=3)).value is False


def test_a_later_end_begins_the_lock_delay_anew(locked: Store) -> None:
    apply(locked, SessionDestroy(A))
    apply(locked, KvLock(b"a", b"2", B, as_of=4))
    apply(locked, SessionDestroy(B))
    assert locked.lock_delay(b"a") == (6, 15 * SECOND)
    assert apply(locked, ReapLockDelays(5)) == Result(0, 7)
    assert apply(locked, ReapLockDelays(6)) == Result(1, 8)
    assert locked.lock_delay(b"a") is None


def test_reaping_takes_the_oldest_and_moves_no_index(store: Store) -> None:
    for number, key in enumerate((b"a", b"b", b"c")):
        session_id = f"{number:08d}{A[8:]}"
        apply(store, session(session_id))
        apply(store, KvLock(key, b"", session_id))
        apply(store, SessionDestroy(session_id))
    before = store.meta
    assert [store.delays_bound(at, 10) for at in (2, 3, 8, 9)] == [0, 3, 6, 9]
    assert store.delays_bound(9, 2) == 6
    assert apply(store, ReapLockDelays(6)) == Result(2, 10)
    assert [store.lock_delay(key) is None for key in (b"a", b"b", b"c")] == [True, True, False]
    assert store.meta._replace(applied_index=9, digest=before.digest) == before


# --- reads, listeners, batches


def test_sessions_are_listed_in_pages_by_id(store: Store) -> None:
    ids = [f"{number:08d}{A[8:]}" for number in (3, 1, 2, 0)]
    for session_id in ids:
        apply(store, session(session_id))
    assert [s.session_id for s in store.sessions()] == sorted(ids)
    page = store.sessions(after=min(ids), limit=2)
    assert [s.session_id for s in page] == sorted(ids)[1:3]
    assert store.session("x" * 36) is None
    assert store.session("\udcff") is None
    assert store.meta.sessions == 4


def test_listeners_hear_of_sessions_after_the_batch(locked: Store) -> None:
    heard: list[tuple[int, str, bool]] = []
    locked.on_session = lambda index, who, session: heard.append((index, who, session is not None))
    changes: list[tuple[int, bytes, bool]] = []
    locked.on_change = lambda *change: changes.append(change)
    other = "c" * 36
    locked.apply_batch([(4, session(other)), (5, SessionDestroy(A)), (6, KvSet(b"z", b""))])
    assert heard == [(4, other, True), (5, A, False)]
    assert changes == [(5, b"a", False), (6, b"z", False)]
    heard.clear()
    locked.replace(locked.engine)
    assert heard == [(6, "", False)]


def test_where_batches_end_changes_nothing(new_engine: Callable[[], Engine]) -> None:
    """RC-28."""
    commands: list[Command] = [
        session(A),
        session(B, 0, DELETE),
        KvLock(b"a", b"1", A),
        KvLock(b"b", b"1", B),
        KvLock(b"b", b"2", A),
        SessionDestroy(A),
        SessionDestroy(B),
        KvLock(b"a", b"1", B),
        ReapLockDelays(6),
        session(B),
        KvLock(b"a", b"1", B, as_of=5),
    ]
    entries = list(enumerate(commands, 1))
    one, many = Store(new_engine()), Store(new_engine())
    results = one.apply_batch(entries)
    assert results == [result for entry in entries for result in many.apply_batch([entry])]
    assert [one.digest_at(index) for index in range(1, 12)] == [
        many.digest_at(index) for index in range(1, 12)
    ]
    assert list(one.engine.scan(b"", None)) == list(many.engine.scan(b"", None))
    assert check(one) == []

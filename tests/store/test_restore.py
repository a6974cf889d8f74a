"""Everything replaced by an archive's content: staged, checked, put in place at one index (decision 0009)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvLock,
    KvSet,
    ReapGraves,
    RestoreDrop,
    RestoreFinish,
    RestorePiece,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.control_commands import EventFire
from kvnode.store.engine import Engine
from kvnode.store.memory import MemoryEngine
from kvnode.store.own_commands import KvPut, Once
from kvnode.store.records import DELAYS, GRAVES, KV, META_KEY, RELEASE
from kvnode.store.restore import PIECES, rebuild
from kvnode.store.snapshot import Row, encode_rows, load
from kvnode.store.store import Store
from tests.store.restores import (
    HOLDER,
    OTHER,
    RESTORE,
    apply,
    delay_row,
    key_row,
    pieces,
    session_row,
)

NewEngine = Callable[[], Engine]
ROWS = [
    session_row(index=4),
    delay_row(b"late"),
    key_row(b"a", b"1", index=3, created=2),
    key_row(b"b", b"2", index=10**9, created=10**8, session=HOLDER),
    key_row(b"c/d", b"3", index=1, ttl_ns=10**9),
]
ONE = "8a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"


def create(session_id: str) -> SessionCreate:
    return SessionCreate(session_id, "n", "n0", 10**9, RELEASE, "", 0, (), ())


BEFORE: list[Command] = [
    *[KvSet(b"old/%d" % number, b"v") for number in range(20)],
    KvSet(b"a", b"other"),
    create(ONE),
    KvLock(b"old/1", b"x", ONE),
    KvDelete(b"old/2"),
    KvPut(b"old/ttl", b"v", ttl_ns=10**9),
    EventFire(ONE, "deploy", b"p", "", "", ""),
    Once(b"retry", bytes(16), 100, 4096, KvSet(b"old/once", b"v")),
]


@pytest.fixture
def used(store: Store, new_engine: NewEngine) -> Store:
    """A store with a past, over each kind of engine."""
    apply(store, BEFORE, new_engine)
    return store


def test_a_restore_replaces_everything_at_its_own_index(used: Store, new_engine: NewEngine) -> None:
    changes: list[tuple[int, bytes, bool]] = []
    used.on_change = lambda *change: changes.append(change)
    index = used.applied_index + 4
    assert apply(used, pieces(ROWS), new_engine) == [True, True, True, True]
    assert used.applied_index == index
    assert used.keys(b"") == [b"a", b"b", b"c/d"]
    assert [s.session_id for s in used.sessions()] == [HOLDER]
    assert used.held(HOLDER) == [b"b"]
    assert used.lock_delay(b"late") == (index, 10**9)
    assert changes == [(index, b"", True)], "everybody hears of it"
    assert check(used) == []
    assert (used.restored_index, used.kv_index(), used.session_index()) == (index, index, index)


def test_indexes_of_the_past_are_kept_and_those_of_the_future_become_the_restores(
    used: Store, new_engine: NewEngine
) -> None:
    apply(used, pieces(ROWS), new_engine)
    index = used.applied_index
    a, b = used.get(b"a"), used.get(b"b")
    assert a is not None
    assert b is not None
    assert (a.create_index, a.modify_index, a.lock_index, a.flags) == (2, 3, 3, 7)
    assert (b.create_index, b.modify_index, b.session) == (index, index, HOLDER)
    session = used.session(HOLDER)
    assert session is not None
    assert (session.create_index, session.modify_index) == (1, 4)


def test_the_index_of_a_read_never_falls_below_the_restores(
    used: Store, new_engine: NewEngine
) -> None:
    """A watcher of ``a`` knew 21, and the restored one is of 3 (RC-64)."""
    apply(used, pieces(ROWS), new_engine)
    index = used.applied_index
    a = used.get(b"a")
    assert a is not None
    assert used.key_index(a) == index
    for prefix in (b"", b"a", b"c/", b"old/", b"nowhere"):
        assert used.prefix_index(prefix) == index
        view = used.view()
        assert list(view.walk(prefix, lambda _raw, _record: None))[-1] == index
        view.close()
    apply(used, [KvSet(b"c/e", b"new")], new_engine)
    assert used.prefix_index(b"c/") == index + 1
    assert used.prefix_index(b"a") == index


def test_what_is_staged_is_seen_by_nobody(used: Store, new_engine: NewEngine) -> None:
    keys, digest, count = used.keys(b""), used.digest, used.count()
    kv_index, session_index = used.kv_index(), used.session_index()
    apply(used, pieces(ROWS)[:-1], new_engine)
    assert (used.keys(b""), used.digest, used.count()) == (keys, digest, count)
    assert (used.kv_index(), used.session_index()) == (kv_index, session_index)
    assert used.staging() == (RESTORE, 3)
    assert check(used) == []


def test_what_the_cluster_knows_about_itself_and_what_was_done_once_stay(
    used: Store, new_engine: NewEngine
) -> None:
    events = used.events()
    apply(used, pieces(ROWS), new_engine)
    assert used.events() == events
    values = apply(
        used, [Once(b"retry", bytes(16), 100, 4096, KvSet(b"old/once", b"v"))], new_engine
    )
    assert values == [True]
    assert used.get(b"old/once") is None, "it had been done, and is not done again"
    assert check(used) == []


def test_history_begins_anew(used: Store, new_engine: NewEngine) -> None:
    apply(used, pieces(ROWS), new_engine)
    assert used.history_floor() == used.applied_index
    assert used.meta.history_rows == 0
    apply(used, [KvSet(b"a", b"next")], new_engine)
    assert used.meta.history_rows == 1
    assert check(used) == []


def test_a_key_with_a_time_to_live_has_it_in_full_again(used: Store, new_engine: NewEngine) -> None:
    told: list[tuple[bytes, int, int]] = []
    used.on_ttl = lambda *what: told.append(what)
    apply(used, pieces(ROWS), new_engine)
    assert told == [(b"", 0, 0)], "any may have changed"
    assert check(used) == []
    pair = used.get(b"c/d")
    assert pair is not None
    assert pair.value == b"3"


def test_the_store_goes_on_as_usual(used: Store, new_engine: NewEngine) -> None:
    apply(used, pieces(ROWS), new_engine)
    values = apply(
        used,
        [
            KvLock(b"b", b"x", ONE),
            create(ONE),
            KvLock(b"b", b"x", ONE),
            KvLock(b"late", b"x", ONE, as_of=used.applied_index),
            SessionDestroy(HOLDER),
            KvDelete(b"a"),
            ReapGraves(10**6),
        ],
        new_engine,
    )
    assert values == [None, True, False, True, True, True, 1]
    assert check(used) == []
    freed = used.get(b"b")
    assert freed is not None
    assert freed.session == ""


# --- staging -----------------------------------------------------------------------------------


def piece(number: int, restore_id: str = RESTORE) -> RestorePiece:
    return RestorePiece(restore_id, number, encode_rows([key_row(b"k%d" % number)]))


def test_pieces_may_come_twice_and_not_out_of_order(store: Store, new_engine: NewEngine) -> None:
    commands = [
        piece(0),
        piece(0),
        piece(2),
        piece(1),
        piece(0),
        piece(1),
        RestoreFinish(RESTORE, 3),
    ]
    assert apply(store, commands, new_engine) == [True, True, False, True, True, True, False]
    assert apply(store, [RestoreFinish(RESTORE, 2)], new_engine) == [True]
    assert store.keys(b"") == [b"k0", b"k1"]


def test_a_finish_may_come_twice(store: Store, new_engine: NewEngine) -> None:
    apply(store, [piece(0), RestoreFinish(RESTORE, 1), KvSet(b"later", b"v")], new_engine)
    assert apply(store, [RestoreFinish(RESTORE, 1)], new_engine) == [True]
    assert store.get(b"later") is not None, "the second one changed nothing"
    assert store.staging() is None


def test_the_newest_restore_wins(store: Store, new_engine: NewEngine) -> None:
    commands = [piece(0), piece(1), piece(0, OTHER), piece(2), RestoreFinish(RESTORE, 2)]
    assert apply(store, commands, new_engine) == [True, True, True, False, False]
    assert store.staging() == (OTHER, 1)
    assert apply(store, [RestoreFinish(OTHER, 1)], new_engine) == [True]
    assert apply(store, [RestoreFinish(RESTORE, 2)], new_engine) == [False]


def test_a_restore_that_is_given_up_leaves_nothing(store: Store, new_engine: NewEngine) -> None:
    apply(store, [piece(0), piece(1), RestoreDrop(OTHER)], new_engine)
    assert store.staging() == (RESTORE, 2)
    assert apply(store, [RestoreDrop(RESTORE), RestoreDrop(RESTORE)], new_engine) == [True, True]
    assert store.staging() is None
    assert list(store.engine.scan(PIECES, PIECES + b"\xff")) == []
    assert apply(store, [piece(1), RestoreFinish(RESTORE, 2)], new_engine) == [False, False]


def test_a_due_finish_cannot_be_applied_like_others(store: Store, new_engine: NewEngine) -> None:
    apply(store, [piece(0)], new_engine)
    with pytest.raises(InvariantBroken, match="like others"):
        store.apply_batch([(2, RestoreFinish(RESTORE, 1))])
    assert store.applied_index == 1


@pytest.mark.parametrize("finished", [False, True])
def test_staging_and_the_last_restore_are_part_of_a_snapshot(
    used: Store, new_engine: NewEngine, finished: bool
) -> None:
    apply(used, pieces(ROWS) if finished else pieces(ROWS)[:-1], new_engine)
    fresh = new_engine()
    with_dump = used.dump()
    load(fresh, with_dump)
    with_dump.close()
    copy = Store(fresh)
    assert (copy.staging(), copy.restored_index) == (used.staging(), used.restored_index)
    assert copy.digest == used.digest
    apply(copy, [RestoreFinish(RESTORE, 3)], new_engine)
    apply(used, [RestoreFinish(RESTORE, 3)], new_engine)
    assert copy.digest == used.digest
    assert check(copy) == []


def test_both_engines_and_any_pieces_give_the_same_state() -> None:
    """Results depend on the entries alone (RC-28)."""
    digests = set()
    for each in (1, 2, 5):
        store = Store(MemoryEngine())
        apply(store, BEFORE, MemoryEngine)
        while store.applied_index < 50 - len(pieces(ROWS, each)):
            apply(store, [RestoreDrop(OTHER)], MemoryEngine)
        apply(store, pieces(ROWS, each), MemoryEngine)
        assert store.applied_index == 50
        digests.add(store.digest)
    assert len(digests) == 1


# --- what is not sound -------------------------------------------------------------------------

UNSOUND: dict[str, list[Row]] = {
    "a key twice": [key_row(b"a"), key_row(b"a")],
    "keys out of order": [key_row(b"b"), key_row(b"a")],
    "tables out of order": [key_row(b"b"), session_row()],
    "a holder that is not there": [key_row(b"b", session=HOLDER)],
    "a mark that does not match": [(KV + b"a", bytes(16) + key_row(b"a")[1][16:])],
}


@pytest.mark.parametrize("rows", UNSOUND.values(), ids=UNSOUND)
def test_what_contradicts_itself_is_refused(store: Store, rows: list[Row]) -> None:
    commands = pieces(rows)
    finish = commands.pop()
    assert isinstance(finish, RestoreFinish)
    apply(store, [KvSet(b"kept", b"v"), *commands], MemoryEngine)
    fresh = MemoryEngine()
    assert rebuild(store.engine.snapshot(), fresh, store.applied_index + 1, finish)
    assert fresh.get(META_KEY) is None, "not a store, and so never taken for one"


def test_what_is_of_a_newer_version_stops_the_node(store: Store) -> None:
    """RC-29: others may understand it, so that refusing it would be a divergence."""
    apply(
        store, [RestorePiece(RESTORE, 0, encode_rows([(GRAVES + b"x", bytes(40))]))], MemoryEngine
    )
    with pytest.raises(InvariantBroken, match="upgrade"):
        rebuild(store.engine.snapshot(), MemoryEngine(), 2, RestoreFinish(RESTORE, 1))


@pytest.mark.parametrize("damage", ["missing", "flipped", "extra"])
def test_a_damaged_piece_stops_the_node(store: Store, damage: str) -> None:
    commands = pieces([key_row(b"%02d" % number) for number in range(6)])
    finish = commands.pop()
    assert isinstance(finish, RestoreFinish)
    apply(store, commands, MemoryEngine)
    raw, data = next(itertools.islice(store.engine.scan(PIECES, PIECES + b"\xff"), 1, 2))
    if damage == "missing":
        store.engine.write([(raw, None)])
    elif damage == "flipped":
        store.engine.write([(raw, data[:-1] + bytes((data[-1] ^ 1,)))])
    else:
        store.engine.write([(PIECES + bytes(7) + b"\x09", data)])
    with pytest.raises(CorruptLog):
        rebuild(store.engine.snapshot(), MemoryEngine(), 9, finish)


def test_a_delay_of_a_longer_life_begins_anew(store: Store) -> None:
    """RC-62: it may be lengthened, never shortened."""
    apply(store, [KvSet(b"x", b"v"), *pieces([delay_row(b"k", 60 * 10**9)])], MemoryEngine)
    assert store.lock_delay(b"k") == (store.applied_index, 60 * 10**9)
    assert store.delays_bound(10**6, 10) == store.applied_index
    assert [raw for raw, _ in store.engine.scan(DELAYS, DELAYS + b"\xff")] == [DELAYS + b"k"]

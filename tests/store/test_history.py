"""The window of changes: what is kept, what is told, and how it ends."""

from __future__ import annotations

import pytest

from kvnode.errors import Compacted, CorruptLog
from kvnode.store.change_records import revision_key
from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    KvUnlock,
    SessionCreate,
    SessionDestroy,
    TrimHistory,
    Txn,
    TxnOp,
    Verb,
)
from kvnode.store.engine import Engine
from kvnode.store.history import Change, Position
from kvnode.store.records import DELETE, RELEASE, Cause, decode_meta, encode_meta
from kvnode.store.store import Store

WHO = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
START = Position(0, None)


def fill(store: Store, *commands: Command | None) -> None:
    first = store.applied_index + 1
    store.apply_batch(list(enumerate(commands, first)))
    assert check(store) == []


def session(behavior: int) -> SessionCreate:
    return SessionCreate(WHO, "", "n1", 10**9, behavior, "", 0, (), ())


def told(store: Store, since: Position = START, prefix: bytes = b"") -> list[Change]:
    found: list[Change] = []
    while True:
        part = store.changes(since, prefix, rows_max=3)
        found += part.found
        since = part.position
        if part.complete:
            return found


def plain(changes: list[Change]) -> list[tuple[int, bytes, int, bytes | None, bytes | None]]:
    return [
        (c.index, c.key, c.cause, c.old and c.old.value, c.new and c.new.value) for c in changes
    ]


def test_every_way_to_change_a_key_is_told_with_what_did_it(store: Store) -> None:
    fill(
        store,
        KvSet(b"a", b"1"),
        KvSet(b"a", b"2"),
        KvDelete(b"a"),
        session(RELEASE),
        KvLock(b"a", b"3", WHO),
        KvUnlock(b"a", b"4", WHO),
        KvLock(b"a", b"5", WHO),
        SessionDestroy(WHO),
        KvDeleteTree(b"a"),
        session(DELETE),
        KvLock(b"b", b"6", WHO, as_of=10),
        SessionDestroy(WHO),
    )
    assert plain(told(store)) == [
        (1, b"a", Cause.PUT, None, b"1"),
        (2, b"a", Cause.PUT, b"1", b"2"),
        (3, b"a", Cause.DELETE, b"2", None),
        (5, b"a", Cause.ACQUIRE, None, b"3"),
        (6, b"a", Cause.RELEASE, b"3", b"4"),
        (7, b"a", Cause.ACQUIRE, b"4", b"5"),
        (8, b"a", Cause.SESSION_END, b"5", b"5"),
        (9, b"a", Cause.DELETE_TREE, b"5", None),
        (11, b"b", Cause.ACQUIRE, None, b"6"),
        (12, b"b", Cause.SESSION_END, b"6", None),
    ]
    assert told(store)[3].new == store.as_of(b"a", 5)
    assert [change.new.session for change in told(store)[3:7] if change.new] == [WHO, "", WHO, ""]


def test_a_write_that_changes_nothing_is_no_change(store: Store) -> None:
    fill(store, KvSet(b"a", b"1"), KvSet(b"a", b"1"), KvSet(b"a", b"2", 0, 9), KvDelete(b"b"), None)
    assert [change.index for change in told(store)] == [1]


def test_what_one_entry_does_to_a_key_is_one_change(store: Store) -> None:
    """What was in between was never visible to anybody."""
    ops = (
        TxnOp(Verb.SET, b"a", b"2"),
        TxnOp(Verb.SET, b"a", b"3"),
        TxnOp(Verb.SET, b"passing", b"x"),
        TxnOp(Verb.DELETE, b"passing"),
        TxnOp(Verb.DELETE, b"b"),
        TxnOp(Verb.SET, b"b", b"again"),
    )
    fill(store, KvSet(b"a", b"1"), KvSet(b"b", b"1"), Txn(ops, 1000), KvSet(b"a", b"4"))
    assert plain(told(store, Position(2, None))) == [
        (3, b"a", Cause.PUT, b"1", b"3"),
        (3, b"b", Cause.PUT, b"1", b"again"),
        (4, b"a", Cause.PUT, b"3", b"4"),
    ]
    assert [r.index for r in store.history(b"passing", limit=9, bytes_max=99).found] == []


def test_a_transaction_that_fails_leaves_no_change(store: Store) -> None:
    ops = (TxnOp(Verb.SET, b"a", b"2"), TxnOp(Verb.GET, b"missing"))
    fill(store, KvSet(b"a", b"1"), Txn(ops, 1000))
    assert [change.index for change in told(store)] == [1]
    assert store.meta.history_rows == 1


def test_a_point_within_an_entry_can_be_gone_on_from(store: Store) -> None:
    fill(store, *[KvSet(b"a/%d" % number, b"") for number in range(5)], KvDeleteTree(b"a/"))
    everything = told(store)
    assert len(everything) == 10
    for at, change in enumerate(everything, 1):
        assert told(store, Position(change.index, change.key)) == everything[at:]
    assert told(store, Position(6, None)) == []


def test_rows_of_other_prefixes_are_passed_over_in_steps(store: Store) -> None:
    fill(store, *[KvSet(b"busy", b"%d" % number) for number in range(10)], KvSet(b"quiet", b""))
    part = store.changes(START, b"quiet", rows_max=4)
    assert (part.found, part.complete, part.position.index) == ((), False, 4)
    assert [change.key for change in told(store, part.position, b"quiet")] == [b"quiet"]


def test_what_is_trimmed_is_told_plainly_and_the_rest_is_whole(store: Store) -> None:
    fill(store, *[KvSet(b"a", b"%d" % number) for number in range(10)])
    before = told(store, Position(6, None))
    fill(store, TrimHistory(6))
    assert store.history_floor() == 6
    assert told(store, Position(6, None)) == before
    assert before[0].old is not None
    for since in (Position(5, None), Position(6, b"a"), START):
        with pytest.raises(Compacted, match="the history begins at 6"):
            store.changes(since)
    with pytest.raises(Compacted, match="compacted"):
        store.as_of(b"a", 5)
    at_the_floor = store.as_of(b"a", 6)
    assert at_the_floor is not None
    assert at_the_floor.value == b"5"
    revisions = store.history(b"a", limit=99, bytes_max=99)
    assert [revision.index for revision in revisions.found] == [10, 9, 8, 7, 6]
    assert [revision.cause for revision in revisions.found] == [1, 1, 1, 1, 0]


def test_the_future_is_told_apart_from_what_is_compacted(store: Store) -> None:
    fill(store, KvSet(b"a", b"1"))
    with pytest.raises(Compacted, match="lies in the future") as caught:
        store.as_of(b"a", 2)
    assert (caught.value.index, caught.value.oldest, caught.value.newest) == (2, 0, 1)


def test_history_shows_deletions_and_new_lives(store: Store) -> None:
    fill(store, KvSet(b"a", b"1"), KvDelete(b"a"), KvSet(b"a", b"2"), KvDeleteTree(b""))
    revisions = store.history(b"a", limit=9, bytes_max=99)
    assert revisions.complete
    assert [(r.index, r.cause, r.pair and r.pair.value) for r in revisions.found] == [
        (4, Cause.DELETE_TREE, None),
        (3, Cause.PUT, b"2"),
        (2, Cause.DELETE, None),
        (1, Cause.PUT, b"1"),
    ]


def test_history_is_bounded_in_number_and_bytes(store: Store) -> None:
    fill(store, *[KvSet(b"a", bytes([number]) * 100) for number in range(9)])
    assert len(store.history(b"a", limit=3, bytes_max=10_000).found) == 3
    few = store.history(b"a", limit=99, bytes_max=250)
    assert (len(few.found), few.complete) == (3, False)
    assert store.history(b"a", limit=9, bytes_max=10_000).complete


def test_no_other_keys_revisions_are_mistaken_for_a_keys_own(store: Store) -> None:
    """Keys that contain what looks like an index."""
    strange = [b"a", b"a" + bytes(8), b"a" + bytes(7) + b"\x01", b"a" + b"\xff" * 8, b"", b"\0"]
    for value in (b"1", b"2"):
        fill(store, *[KvSet(key, value) for key in strange])
    for key in strange:
        found = store.history(key, limit=9, bytes_max=99).found
        assert [revision.pair and revision.pair.value for revision in found] == [b"2", b"1"]


def test_recording_is_switched_by_an_entry_and_nothing_is_known_any_more(store: Store) -> None:
    fill(store, KvSet(b"a", b"1"), KvSet(b"a", b"2"), TrimHistory(0, recording=False))
    fill(store, KvSet(b"a", b"3"))
    assert store.history_floor() == store.applied_index == 4
    assert told(store, Position(4, None)) == []
    with pytest.raises(Compacted):
        store.changes(Position(3, None))
    fill(store, TrimHistory(0, recording=True), KvSet(b"a", b"4"))
    assert store.history_floor() == 5
    assert plain(told(store, Position(5, None))) == [(6, b"a", Cause.PUT, b"3", b"4")]
    found = store.history(b"a", limit=9, bytes_max=99).found
    assert [revision.index for revision in found] == [6, 4], (
        "what is left from before is not looked at"
    )


def test_what_is_left_after_the_switch_goes_a_little_at_a_time(store: Store) -> None:
    fill(store, *[KvSet(b"a", b"%d" % number) for number in range(9)])
    fill(store, TrimHistory(0, recording=False))
    assert store.meta.history_rows == 9
    assert store.trim_bound(9, 0, 4) == 4
    fill(store, TrimHistory(4, recording=False))
    assert (store.meta.history_rows, store.trim_bound(9, 0, 99)) == (5, 9)
    fill(store, TrimHistory(9, recording=False))
    assert (store.meta.history_rows, store.meta.history_bytes) == (0, 0)


def test_no_entry_makes_the_window_twice_as_large_as_it_may_be(store: Store) -> None:
    """A deleted tree is one entry, however large: on a volume that is nearly full it must not need room."""
    fill(store, TrimHistory(0, bytes_max=10_000))
    fill(store, *[KvSet(b"tree/%d" % number, bytes(1000)) for number in range(30)])
    first = store.meta.history_bytes
    fill(store, KvDeleteTree(b"tree/"))
    assert store.meta.history_bytes == first, "what it would have added was dropped"
    assert store.history_floor() == store.applied_index
    fill(store, KvSet(b"a", b"1"), KvSet(b"a", b"2"))
    assert [change.index for change in told(store, Position(32, None))] == [33, 34]
    with pytest.raises(Compacted):
        store.changes(Position(31, None))


def test_a_full_window_begins_anew_until_it_is_trimmed(store: Store) -> None:
    fill(store, TrimHistory(0, bytes_max=1000))
    for number in range(20):
        fill(store, KvSet(b"a", bytes([number]) * 300))
        assert store.meta.history_bytes <= 2000
    assert store.history_floor() == store.applied_index
    bound = store.trim_bound(0, store.meta.history_bytes - 1000, 99)
    fill(store, TrimHistory(bound, bytes_max=1000), KvSet(b"a", b"x"))
    assert [change.index for change in told(store, Position(store.history_floor(), None))] == [23]


def test_a_transaction_that_does_not_fit_leaves_nothing_behind(store: Store) -> None:
    fill(store, KvSet(b"a", bytes(3000)), KvSet(b"b", bytes(3000)), TrimHistory(0, bytes_max=2000))
    ops = tuple(TxnOp(Verb.SET, key, b"") for key in (b"a", b"b", b"c", b"d"))
    rows = store.meta.history_rows
    failed = TxnOp(Verb.GET, b"missing")
    fill(store, Txn((*ops, failed), 1000))
    assert store.history_floor() == 0, "it failed, so it changes nothing"
    fill(store, Txn(ops, 1000))
    assert (store.history_floor(), store.meta.history_rows) == (5, rows)


def test_trimming_moves_no_index_and_no_digest(store: Store) -> None:
    fill(store, KvSet(b"a", b"1"), KvSet(b"a", b"2"))
    before = (store.digest, store.kv_index(), store.prefix_index(b"a"))
    fill(store, TrimHistory(99))
    assert (store.digest, store.kv_index(), store.prefix_index(b"a")) == before
    assert store.history_floor() == 3, "never above the entry itself"


def test_the_digest_does_not_depend_on_whether_there_is_a_history(
    engine: Engine, store: Store
) -> None:
    fill(store, KvSet(b"a", b"1"), KvSet(b"a", b"2"))
    digest = store.digest
    fill(store, TrimHistory(0, recording=False))
    assert store.digest == digest


def test_a_trim_goes_by_whole_entries_and_not_too_many_at_a_time(store: Store) -> None:
    fill(
        store,
        KvSet(b"a/1", b""),
        KvSet(b"a/2", b""),
        KvSet(b"a/3", b""),
        KvDeleteTree(b"a/"),
        KvSet(b"b", b""),
    )
    assert store.meta.history_rows == 7
    assert store.trim_bound(0, 0, 10) == 0
    assert store.trim_bound(1, 0, 10) == 1
    assert store.trim_bound(4, 0, 10) == 4, "what one entry did goes as a whole"
    assert store.trim_bound(7, 0, 10) == 5
    assert store.trim_bound(7, 0, 2) == 2
    assert store.trim_bound(0, 1, 10) == 1
    fill(store, TrimHistory(3))
    assert store.trim_bound(1, 0, 1) == 4, "never nothing"
    assert store.meta.history_rows == 4


def test_a_stored_value_stands_in_the_window_once(store: Store) -> None:
    """Ten revisions of a value cost nine old values, and the new one is the key's own."""
    fill(store, *[KvSet(b"a", bytes([number]) * 10_000) for number in range(10)])
    assert 9 * 10_000 < store.meta.history_bytes < 9 * 10_000 + 2_000


def test_a_damaged_change_is_refused(engine: Engine, store: Store) -> None:
    fill(store, KvSet(b"a", b"1"), KvSet(b"a", b"2"))
    raw = revision_key(b"a", 2)
    row = engine.get(raw)
    assert row is not None
    for bad in (b"", row[:3], b"\x09" + row[1:], row[:1] + b"\x07" + row[2:], row[:-1]):
        engine.write([(raw, bad)])
        with pytest.raises(CorruptLog):
            told(store)
        assert check(store)


def test_a_store_from_before_there_was_a_history_begins_with_none(
    engine: Engine, store: Store
) -> None:
    fill(store, KvSet(b"a", b"1"), TrimHistory(1, recording=False))
    version_2 = b"\x02" + encode_meta(store.meta)[1:-41]
    assert decode_meta(version_2).history_floor == 2
    engine.write([(b"m", version_2)])
    upgraded = Store(engine)
    assert (upgraded.history_floor(), upgraded.meta.recording) == (2, True)
    fill(upgraded, KvSet(b"a", b"2"))
    assert plain(told(upgraded, Position(2, None))) == [(3, b"a", Cause.PUT, b"1", b"2")]

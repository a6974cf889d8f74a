"""The store as a whole: batches, digests, listeners, refusals, opening and replacing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.errors import BadRequest, CorruptLog, DiskFailed, InvariantBroken
from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvSet,
    ReapGraves,
    Result,
    check_command,
)
from kvnode.store.engine import Engine, Write
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import META_KEY
from kvnode.store.snapshot import load
from kvnode.store.store import DIGESTS_KEPT, Store


class Unknown(NamedTuple):
    """A command of a later version."""

    key: bytes


class RecordingEngine(MemoryEngine):
    """Remembers its batches; can refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Write]] = []
        self.refuse = False

    def write(self, batch: object) -> None:
        if self.refuse:
            raise DiskFailed("no")
        self.batches.append(list(batch))  # type: ignore[call-overload]
        super().write(batch)  # type: ignore[arg-type]


def state(store: Store) -> tuple[object, ...]:
    """Everything that must be equal on two nodes."""
    return list(store.engine.scan(b"", None)), store.meta, store.digest


# --- RC-6


def test_one_call_is_one_engine_batch_that_ends_with_the_applied_index() -> None:
    """RC-6: the applied index is exactly as durable as the changes."""
    engine = RecordingEngine()
    store = Store(engine)
    entries: list[tuple[int, Command | None]] = [
        (1, KvSet(b"a", b"1")),
        (2, KvDeleteTree(b"a")),
        (3, None),
        (4, KvSet(b"b", b"1")),
        (5, KvDelete(b"b")),
        (6, ReapGraves(5)),
    ]
    store.apply_batch(entries)
    assert len(engine.batches) == 1
    assert engine.batches[0][-1][0] == META_KEY
    assert Store(engine).meta == store.meta


def test_an_entry_without_a_command_still_makes_the_applied_index_durable() -> None:
    engine = RecordingEngine()
    Store(engine).apply_batch([(1, None)])
    assert Store(engine).applied_index == 1


def test_no_entries_write_nothing() -> None:
    engine = RecordingEngine()
    assert Store(engine).apply_batch([]) == []
    assert engine.batches == []


def test_entries_of_one_batch_see_each_other(store: Store) -> None:
    results = store.apply_batch(
        [
            (1, KvSet(b"a", b"1", cas=0)),
            (2, KvSet(b"a", b"2", cas=0)),
            (3, KvSet(b"a", b"2", cas=1)),
            (4, KvSet(b"a", b"2")),
            (5, KvDelete(b"a", 3)),
            (6, KvSet(b"a/x", b"")),
            (7, KvSet(b"a/y", b"")),
            (8, KvDelete(b"a/y")),
            (9, KvDeleteTree(b"a/")),
            (10, KvSet(b"a", b"3", cas=0)),
        ]
    )
    assert [r.value for r in results] == [
        True,
        False,
        True,
        True,
        True,
        True,
        True,
        True,
        True,
        True,
    ]
    assert [r.modify_index for r in results[:4]] == [1, 0, 3, 3]
    assert store.graves() == [(b"a", 5, False), (b"a/", 9, True), (b"a/y", 8, False)]
    assert check(store) == []


def test_a_deleted_tree_takes_rows_of_the_engine_and_of_the_batch_alike(store: Store) -> None:
    store.apply_batch(
        [(1, KvSet(b"a/old", b"")), (2, KvSet(b"a/gone", b"")), (3, KvSet(b"b", b""))]
    )
    store.apply_batch(
        [
            (4, KvSet(b"a/new", b"")),
            (5, KvSet(b"a/old", b"2")),
            (6, KvDelete(b"a/gone")),
            (7, KvDeleteTree(b"a/")),
        ]
    )
    assert store.keys(b"") == [b"b"]
    assert store.count() == 1
    assert check(store) == []


# --- order


@pytest.mark.parametrize("indexes", [[5], [3], [2], [4, 6], [4, 4], [4, 3], [0]])
def test_a_gap_or_a_repetition_stops_the_node_and_changes_nothing(
    store: Store, indexes: list[int]
) -> None:
    """RC-75: an entry applied twice or skipped would make nodes differ."""
    store.apply_batch([(i, KvSet(b"%d" % i, b"")) for i in (1, 2, 3)])
    before = state(store)
    with pytest.raises(InvariantBroken):
        store.apply_batch([(i, KvSet(b"x", b"%d" % i)) for i in indexes])
    assert state(store) == before


def test_the_first_entry_of_a_store_may_have_any_index(store: Store) -> None:
    store.apply_batch([(7, KvSet(b"a", b"1")), (8, None)])
    assert store.applied_index == 8
    assert store.digest_at(6) is None
    assert store.digest_at(7) == store.digest
    with pytest.raises(InvariantBroken):
        Store(MemoryEngine()).apply_batch([(0, None)])


def test_an_unknown_command_stops_the_node_before_anything_is_written(store: Store) -> None:
    """RC-29: never skipped."""
    with pytest.raises(InvariantBroken, match="unknown command"):
        store.apply_batch([(1, KvSet(b"a", b"1")), (2, Unknown(b"x"))])  # type: ignore[list-item]
    assert store.applied_index == 0
    assert store.get(b"a") is None


@pytest.mark.parametrize(
    "command",
    [
        KvSet(b"a", b"1", 2**64),
        KvSet(b"a", b"1", -1),
        KvSet("a", b"1"),  # type: ignore[arg-type]
        KvSet(b"a", "1"),  # type: ignore[arg-type]
        KvSet(b"a", b"1", 1.5),  # type: ignore[arg-type]
        KvDelete("a"),  # type: ignore[arg-type]
        KvDeleteTree(7),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_stored_is_refused_before_it_is_proposed_and_stops_the_node_after(
    store: Store, command: Command
) -> None:
    """An entry that no node can apply would stop all of them, at every start."""
    with pytest.raises(BadRequest):
        check_command(command)
    with pytest.raises(InvariantBroken):
        store.apply_batch([(1, command)])
    assert store.applied_index == 0


@pytest.mark.parametrize(
    "command",
    [
        KvSet(b"", b""),
        KvSet(b"a", b"1", 2**64 - 1, 2**64 - 1),
        KvDelete(b"a"),
        KvDelete(b"a", 0),
        KvDeleteTree(b""),
        ReapGraves(2**64 - 1),
    ],
)
def test_what_is_let_through_can_be_applied(store: Store, command: Command) -> None:
    check_command(command)
    store.apply_batch([(1, command)])


@pytest.mark.parametrize("wrong", [None, (b"a", b"1"), KvDelete(b"a", True), ReapGraves(-1)])
def test_what_is_no_command_is_refused(wrong: object) -> None:
    with pytest.raises(BadRequest):
        check_command(wrong)


def test_a_refusal_of_the_engine_leaves_the_store_where_it_was() -> None:
    engine = RecordingEngine()
    store = Store(engine)
    store.apply_batch([(1, KvSet(b"a", b"1"))])
    heard: list[object] = []
    store.on_change = lambda *change: heard.append(change)
    engine.refuse = True
    before = state(store)
    with pytest.raises(DiskFailed):
        store.apply_batch([(2, KvSet(b"a", b"2"))])
    assert state(store) == before
    assert heard == []


# --- digest, RC-74

keys = st.sampled_from([b"", b"a", b"a/", b"a/b", b"a/c", b"b", b"\xff"])
commands = st.one_of(
    st.none(),
    st.builds(
        KvSet,
        keys,
        st.sampled_from([b"", b"1", b"2"]),
        st.sampled_from([0, 1]),
        st.sampled_from([None, None, 0, 1, 3, 6]),
    ),
    st.builds(KvDelete, keys, st.sampled_from([None, 0, 2, 4])),
    st.builds(KvDeleteTree, keys),
    st.builds(ReapGraves, st.integers(0, 30)),
)


@settings(max_examples=150, deadline=None)
@given(commands=st.lists(commands, max_size=30), cuts=st.sets(st.integers(1, 29)))
def test_batch_borders_change_no_result_no_record_and_no_digest(
    commands: list[Command | None], cuts: set[int]
) -> None:
    """RC-28: nodes batch as they please."""
    entries = list(enumerate(commands, 1))
    whole, single, cut = (Store(MemoryEngine()) for _ in range(3))
    results = whole.apply_batch(entries)
    assert [r for e in entries for r in single.apply_batch([e])] == results
    borders = [0, *sorted(c for c in cuts if c < len(entries)), len(entries)]
    parts = [entries[a:b] for a, b in pairwise(borders)]
    assert [r for part in parts for r in cut.apply_batch(part)] == results
    assert state(whole) == state(single) == state(cut)
    for index in range(len(entries) + 1):
        assert whole.digest_at(index) == single.digest_at(index) == cut.digest_at(index) is not None
    assert check(whole) == []


def test_the_digest_depends_on_everything_that_a_client_can_see() -> None:
    def digest(*commands: Command) -> str:
        store = Store(MemoryEngine())
        store.apply_batch(list(enumerate(commands, 1)))
        return store.digest

    base = digest(KvSet(b"a", b"1"), KvSet(b"b", b"2"))
    assert len(base) == 32
    others = [
        digest(KvSet(b"a", b"1")),
        digest(KvSet(b"a", b"1"), KvSet(b"b", b"3")),
        digest(KvSet(b"a", b"1"), KvSet(b"b", b"2", 1)),
        digest(KvSet(b"a", b"1"), KvSet(b"c", b"2")),
        digest(KvSet(b"b", b"2"), KvSet(b"a", b"1")),
        digest(KvSet(b"a", b""), KvSet(b"b", b"12")),
        digest(KvSet(b"a", b"1"), KvSet(b"b", b"2"), KvSet(b"c", b""), KvDelete(b"c")),
    ]
    assert len({base, *others}) == len(others) + 1


def test_digest_at_knows_a_bounded_number_of_indexes() -> None:
    store = Store(MemoryEngine())
    assert store.digest_at(0) == "0" * 32
    assert store.digest_at(1) is None
    store.apply_batch([(1, KvSet(b"a", b"1"))])
    first = store.digest
    store.apply_batch([(i, None) for i in range(2, DIGESTS_KEPT + 1)])
    assert store.digest_at(1) == first
    assert store.digest_at(0) is None
    store.apply_batch([(DIGESTS_KEPT + 1, KvSet(b"a", b"2"))])
    assert store.digest_at(1) is None
    assert store.digest_at(2) == first
    assert store.digest_at(DIGESTS_KEPT + 1) == store.digest != first


# --- listener


def test_changes_are_told_in_order_after_the_whole_batch_was_written() -> None:
    engine = RecordingEngine()
    store = Store(engine)
    heard: list[tuple[int, bytes, bool]] = []

    def listen(index: int, key: bytes, tree: bool) -> None:
        assert len(engine.batches) == 1, "told before it was written"
        assert store.applied_index == 8
        heard.append((index, key, tree))

    store.on_change = listen
    store.apply_batch(
        [
            (1, KvSet(b"a", b"1")),
            (2, KvSet(b"a", b"1")),
            (3, KvSet(b"a", b"2", cas=9)),
            (4, KvDelete(b"missing")),
            (5, KvDelete(b"a")),
            (6, KvDeleteTree(b"nothing/")),
            (7, KvSet(b"t/x", b"")),
            (8, KvDeleteTree(b"t/")),
        ]
    )
    assert heard == [(1, b"a", False), (5, b"a", False), (7, b"t/x", False), (8, b"t/", True)]


# --- opening


def test_reopening_finds_everything_and_goes_on(new_engine: Callable[[], Engine]) -> None:
    engine = new_engine()
    store = Store(engine)
    store.apply_batch([(1, KvSet(b"a", b"1")), (2, KvSet(b"b", b"1")), (3, KvDelete(b"b"))])
    again = Store(engine)
    assert state(again) == state(store)
    assert again.digest_at(3) == store.digest
    assert again.digest_at(2) is None, "not known to this process"
    again.apply_batch([(4, KvSet(b"a", b"2"))])
    assert again.count() == 1
    assert again.digest_at(3) == store.digest
    assert check(again) == []


def test_replaying_what_lies_above_the_applied_index_gives_the_same_state() -> None:
    """RC-10: the engine may lag behind the log, which replays the rest."""
    entries: list[tuple[int, Command | None]] = [
        (i, KvSet(b"%d" % (i % 7), b"%d" % i) if i % 5 else KvDelete(b"%d" % (i % 3)))
        for i in range(1, 60)
    ]
    whole = Store(MemoryEngine())
    whole.apply_batch(entries)
    for applied in (1, 17, 58):
        engine = MemoryEngine()
        Store(engine).apply_batch(entries[:applied])
        reopened = Store(engine)
        reopened.apply_batch([e for e in entries if e[0] > reopened.applied_index])
        assert state(reopened) == state(whole)


def test_rows_without_a_meta_record_are_not_an_empty_store(engine: Engine) -> None:
    """RC-50: an interrupted load or lost files, never "fresh"."""
    engine.write([(b"ka", b"x")])
    with pytest.raises(CorruptLog):
        Store(engine)


@pytest.mark.parametrize("record", [b"", b"\x02" + bytes(56), bytes(57), b"\x01" + bytes(20)])
def test_a_meta_record_of_an_unknown_form_is_refused(record: bytes) -> None:
    engine = MemoryEngine()
    engine.write([(META_KEY, record)])
    with pytest.raises(CorruptLog):
        Store(engine)


def test_replace_goes_on_with_the_loaded_state_and_tells_everybody(
    new_engine: Callable[[], Engine],
) -> None:
    """Spec §2.4: a restore wakes everybody."""
    ahead = Store(MemoryEngine())
    ahead.apply_batch([(i, KvSet(b"%d" % i, b"")) for i in range(1, 10)])
    store = Store(new_engine())
    store.apply_batch([(1, KvSet(b"old", b""))])
    heard: list[object] = []
    store.on_change = lambda *change: heard.append(change)
    fresh = new_engine()
    dump = ahead.dump()
    load(fresh, dump)
    dump.close()
    old = store.replace(fresh)
    old.close()
    assert state(store) == state(ahead)
    assert heard == [(9, b"", True)]
    assert store.digest_at(1) is None
    assert store.digest_at(9) == ahead.digest
    assert store.apply_batch([(10, KvSet(b"x", b""))]) == [Result(True, 10, 10)]

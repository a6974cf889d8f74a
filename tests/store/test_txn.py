"""Transactions: every verb, every way to fail, and all or nothing (spec §6, RC-66)."""

from __future__ import annotations

import pytest

from kvnode.store.checks import check
from kvnode.store.commands import (
    KvLock,
    KvSet,
    Problem,
    Result,
    SessionCreate,
    SessionDestroy,
    Trouble,
    Txn,
    TxnOp,
    TxnOutcome,
    Verb,
)
from kvnode.store.records import RELEASE, KVPair
from kvnode.store.store import Store

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"
NOBODY = "00000000-0c4d-4a44-8e0e-5d6f3f1f0a77"


def run(store: Store, *ops: TxnOp, room: int = 10_000, as_of: int = 0) -> TxnOutcome:
    index = store.applied_index + 1
    [result] = store.apply_batch([(index, Txn(ops, room, as_of))])
    assert check(store) == []
    assert isinstance(result.value, TxnOutcome)
    assert result == Result(result.value, index)
    return result.value


def op(verb: Verb, key: bytes, **members: object) -> TxnOp:
    return TxnOp(verb, key, **members)  # type: ignore[arg-type]


@pytest.fixture
def filled(store: Store) -> Store:
    """Sessions A and B; ``a`` = 1 since 3, ``b/x`` and ``b/y`` since 4 and 5, ``held`` by A since 6."""
    store.apply_batch(
        [
            (1, SessionCreate(A, "", "n", 10**9, RELEASE, "", 0, (), ())),
            (2, SessionCreate(B, "", "n", 10**9, RELEASE, "", 0, (), ())),
            (3, KvSet(b"a", b"1", 7)),
            (4, KvSet(b"b/x", b"x")),
            (5, KvSet(b"b/y", b"y")),
            (6, KvLock(b"held", b"h", A)),
        ]
    )
    return store


PAIR_A = KVPair(b"a", b"1", 7, 3, 3, 0, "")


@pytest.mark.parametrize(
    ("operation", "returned"),
    [
        (op(Verb.SET, b"a", value=b"2"), [KVPair(b"a", b"", 0, 3, 7, 0, "")]),
        (op(Verb.SET, b"a", value=b"1", flags=7), [PAIR_A._replace(value=b"")]),
        (op(Verb.SET, b"n", flags=9), [KVPair(b"n", b"", 9, 7, 7, 0, "")]),
        (op(Verb.CAS, b"a", index=3), [KVPair(b"a", b"", 0, 3, 7, 0, "")]),
        (op(Verb.CAS, b"n", index=0), [KVPair(b"n", b"", 0, 7, 7, 0, "")]),
        (op(Verb.LOCK, b"a", session=B), [KVPair(b"a", b"", 0, 3, 7, 1, B)]),
        (op(Verb.LOCK, b"held", session=A), [KVPair(b"held", b"", 0, 6, 7, 1, A)]),
        (op(Verb.UNLOCK, b"held", session=A), [KVPair(b"held", b"", 0, 6, 7, 1, "")]),
        (op(Verb.GET, b"a"), [PAIR_A]),
        (op(Verb.GET_OR_EMPTY, b"a"), [PAIR_A]),
        (op(Verb.GET_OR_EMPTY, b"n"), [KVPair(b"n", b"", 0, 0, 0, 0, "")]),
        (
            op(Verb.GET_TREE, b"b/"),
            [KVPair(b"b/x", b"x", 0, 4, 4, 0, ""), KVPair(b"b/y", b"y", 0, 5, 5, 0, "")],
        ),
        (op(Verb.GET_TREE, b"none/"), []),
        (op(Verb.CHECK_INDEX, b"a", index=3), [PAIR_A._replace(value=b"")]),
        (op(Verb.CHECK_SESSION, b"held", session=A), [KVPair(b"held", b"", 0, 6, 6, 1, A)]),
        (op(Verb.CHECK_SESSION, b"a"), [PAIR_A._replace(value=b"")]),
        (op(Verb.CHECK_NOT_EXISTS, b"n"), []),
        (op(Verb.DELETE, b"a"), []),
        (op(Verb.DELETE, b"n"), []),
        (op(Verb.DELETE_TREE, b"b/"), []),
        (op(Verb.DELETE_TREE, b""), []),
        (op(Verb.DELETE_CAS, b"a", index=3), []),
        (op(Verb.DELETE_CAS, b"n", index=3), []),
    ],
    ids=lambda value: repr(value) if isinstance(value, TxnOp) else "",
)
def test_every_verb_that_succeeds(filled: Store, operation: TxnOp, returned: list[KVPair]) -> None:
    assert run(filled, operation) == TxnOutcome(tuple(returned), ())


@pytest.mark.parametrize(
    ("operation", "trouble", "detail"),
    [
        (op(Verb.CAS, b"a", index=0), Trouble.STALE_SET, 0),
        (op(Verb.CAS, b"n", index=3), Trouble.STALE_SET, 0),
        (op(Verb.LOCK, b"held", session=B), Trouble.LOCK_HELD, 0),
        (op(Verb.LOCK, b"a", session=NOBODY), Trouble.INVALID_SESSION, 0),
        (op(Verb.LOCK, b"a", session="x"), Trouble.INVALID_SESSION, 0),
        (op(Verb.LOCK, b"a"), Trouble.MISSING_SESSION, 0),
        (op(Verb.UNLOCK, b"held", session=B), Trouble.LOCK_NOT_HELD, 0),
        (op(Verb.UNLOCK, b"a", session=A), Trouble.LOCK_NOT_HELD, 0),
        (op(Verb.UNLOCK, b"n", session=A), Trouble.LOCK_NOT_HELD, 0),
        (op(Verb.UNLOCK, b"held"), Trouble.MISSING_SESSION, 0),
        (op(Verb.GET, b"n"), Trouble.NO_KEY, 0),
        (op(Verb.CHECK_INDEX, b"n", index=1), Trouble.NO_KEY, 0),
        (op(Verb.CHECK_INDEX, b"a", index=1), Trouble.OTHER_INDEX, 3),
        (op(Verb.CHECK_SESSION, b"n", session=A), Trouble.NO_KEY, 0),
        (op(Verb.CHECK_SESSION, b"held", session=B), Trouble.OTHER_SESSION, A),
        (op(Verb.CHECK_SESSION, b"a", session=B), Trouble.OTHER_SESSION, ""),
        (op(Verb.CHECK_NOT_EXISTS, b"a"), Trouble.KEY_EXISTS, 0),
        (op(Verb.DELETE_CAS, b"a", index=4), Trouble.STALE_DELETE, 0),
        (op(Verb.DELETE_CAS, b"a", index=0), Trouble.STALE_DELETE, 0),
    ],
    ids=lambda value: repr(value) if isinstance(value, TxnOp) else "",
)
def test_every_verb_that_fails_takes_the_others_back(
    filled: Store, operation: TxnOp, trouble: Trouble, detail: int | str
) -> None:
    before, heard = filled.meta, []
    filled.on_change = lambda *change: heard.append(change)
    filled.on_session = filled.on_change  # type: ignore[assignment]
    rows = list(filled.engine.scan(b"", b"m"))
    outcome = run(
        filled,
        op(Verb.SET, b"first", value=b"1"),
        op(Verb.DELETE_TREE, b"b/"),
        operation,
        op(Verb.SET, b"last", value=b"1"),
        op(Verb.LOCK, b"locked", session=A),
    )
    assert outcome == TxnOutcome((), (Problem(2, trouble, detail),))
    assert filled.meta == before._replace(applied_index=7)
    assert list(filled.engine.scan(b"", b"m")) == rows
    assert heard == []


def test_all_failures_are_told(filled: Store) -> None:
    """Spec §6: not only the first."""
    outcome = run(
        filled,
        op(Verb.GET, b"n"),
        op(Verb.SET, b"n", value=b"1"),
        op(Verb.GET, b"n"),
        op(Verb.CHECK_NOT_EXISTS, b"a"),
    )
    assert outcome.problems == (Problem(0, Trouble.NO_KEY), Problem(3, Trouble.KEY_EXISTS))
    assert filled.get(b"n") is None


def test_operations_see_each_other_and_share_one_index(filled: Store) -> None:
    outcome = run(
        filled,
        op(Verb.SET, b"b/w", value=b"w"),
        op(Verb.DELETE, b"b/x"),
        op(Verb.GET_TREE, b"b/"),
        op(Verb.LOCK, b"b/y", value=b"Y", session=A),
        op(Verb.CHECK_SESSION, b"b/y", session=A),
        op(Verb.CHECK_INDEX, b"b/y", index=7),
        op(Verb.DELETE_TREE, b"b/"),
        op(Verb.GET_TREE, b"b/"),
        op(Verb.CAS, b"b/x", value=b"again", index=0),
    )
    assert outcome.problems == ()
    assert [(p.key, p.value) for p in outcome.pairs] == [
        (b"b/w", b""),
        (b"b/w", b"w"),
        (b"b/y", b"y"),
        (b"b/y", b""),
        (b"b/y", b""),
        (b"b/y", b""),
        (b"b/x", b""),
    ]
    assert filled.list(b"b/") == [KVPair(b"b/x", b"again", 0, 7, 7, 0, "")]
    assert filled.held(A) == [b"held"]
    assert filled.graves() == [(b"b/", 7, True), (b"b/x", 7, False)]


def test_one_batch_may_hold_transactions_that_build_on_each_other(filled: Store) -> None:
    first = Txn((op(Verb.SET, b"a", value=b"2"),), 0)
    failing = Txn((op(Verb.SET, b"a", value=b"3"), op(Verb.GET, b"n")), 99)
    last = Txn((op(Verb.CHECK_INDEX, b"a", index=7), op(Verb.GET_TREE, b"")), 9999)
    results = filled.apply_batch([(7, first), (8, failing), (9, KvSet(b"c", b"")), (10, last)])
    assert [bool(r.value.problems) for r in results if isinstance(r.value, TxnOutcome)] == [
        False,
        True,
        False,
    ]
    final = results[-1].value
    assert isinstance(final, TxnOutcome)
    assert [pair.key for pair in final.pairs[1:]] == [b"a", b"b/x", b"b/y", b"c", b"held"]
    assert check(filled) == []


def test_gets_return_no_more_than_was_agreed(filled: Store) -> None:
    """The bound is in the command, so it is the same on every node and in every version."""
    tree = op(Verb.GET_TREE, b"b/")
    assert run(filled, tree, room=2 * (64 + 4)).problems == ()
    assert run(filled, tree, room=2 * (64 + 4) - 1).problems == (Problem(0, Trouble.TOO_LARGE),)
    assert run(filled, op(Verb.GET, b"a"), tree, room=200).problems == (
        Problem(1, Trouble.TOO_LARGE),
    )
    assert run(filled, op(Verb.SET, b"a", value=b"x" * 300), room=0).problems == ()


def test_a_lock_that_was_judged_before_the_end_of_a_session_is_refused(filled: Store) -> None:
    """RC-62, as for a plain acquire."""
    filled.apply_batch([(7, SessionDestroy(A))])
    lock = op(Verb.LOCK, b"held", session=B)
    assert run(filled, lock, as_of=6).problems == (Problem(0, Trouble.LOCK_DELAY),)
    assert run(filled, lock, as_of=7).problems == ()


def test_an_evaluation_keeps_nothing(filled: Store) -> None:
    before, rows = filled.meta, list(filled.engine.scan(b"", None))
    command = Txn((op(Verb.SET, b"n", value=b"1"), op(Verb.GET, b"n")), 999)
    outcome = filled.evaluate(command)
    assert [pair.modify_index for pair in outcome.pairs] == [7, 7]
    unknown = Txn((op(Verb.UNKNOWN, b"n"), op(Verb.GET, b"n")), 999)
    assert filled.evaluate(unknown).problems == (
        Problem(0, Trouble.UNKNOWN_VERB),
        Problem(1, Trouble.NO_KEY),
    )
    assert (filled.meta, list(filled.engine.scan(b"", None))) == (before, rows)

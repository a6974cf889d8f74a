"""Transactions: several operations in one entry, all or nothing (spec §6, RC-66). Deterministic: RC-28.

The operations run in order on a part of the batch, each sees what those before it did, and the part is
merged only if none failed. All of them run in any case, so that every one that fails is told.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Final

from kvnode.store.commands import (
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    KvUnlock,
    Problem,
    Result,
    Trouble,
    Txn,
    TxnOp,
    TxnOutcome,
    Verb,
)
from kvnode.store.kv import delete_key, delete_tree, set_key
from kvnode.store.locks import lock_key, unlock_key
from kvnode.store.records import KV, KVPair, decode_key, key_range
from kvnode.store.tables import Transaction

PAIR_OVERHEAD: Final = 64
"""Bytes counted per returned pair besides its key and value."""


def run_txn(tx: Transaction, index: int, command: Txn) -> Result:
    """Run a transaction as the entry ``index``."""
    part = tx.fork()
    outcome = evaluate(part, index, command)
    if not outcome.problems:
        tx.merge(part)
    return Result(outcome, index)


def evaluate(tx: Transaction, index: int, command: Txn) -> TxnOutcome:
    """Run the operations on ``tx``; whether anything is kept of them is the caller's business."""
    run = _Run(tx, index, command)
    for position, op in enumerate(command.ops):
        step = _STEPS.get(op[0])
        trouble = _fail(Trouble.UNKNOWN_VERB) if step is None else step(run, TxnOp(*op))
        if trouble is not None:
            run.problems.append(Problem(position, *trouble))
    if run.problems:
        return TxnOutcome((), tuple(run.problems))
    return TxnOutcome(tuple(run.pairs), ())


_Failure = tuple[int, int | str]


def _fail(trouble: Trouble, detail: int | str = 0) -> _Failure:
    return int(trouble), detail


class _Run:
    """One transaction under way."""

    __slots__ = ("_room", "as_of", "index", "pairs", "problems", "tx")

    def __init__(self, tx: Transaction, index: int, command: Txn) -> None:
        self.tx = tx
        self.index = index
        self.as_of = command.as_of
        self.pairs: list[KVPair] = []
        self.problems: list[Problem] = []
        self._room = command.read_bytes_max

    def pair(self, key: bytes) -> KVPair | None:
        record = self.tx.get(KV + key)
        return None if record is None else decode_key(KV + key, record)

    def written(self, key: bytes) -> None:
        """Return what a key has become, without its value."""
        pair = self.pair(key)
        assert pair is not None, "it was just written, or read"
        self.pairs.append(pair._replace(value=b""))

    def read(self, pair: KVPair) -> _Failure | None:
        """Return a pair with its value, if there is still room."""
        self._room -= len(pair.key) + len(pair.value) + PAIR_OVERHEAD
        if self._room < 0:
            return _fail(Trouble.TOO_LARGE)
        self.pairs.append(pair)
        return None


def _set(run: _Run, op: TxnOp) -> _Failure | None:
    set_key(run.tx, run.index, KvSet(op.key, op.value, op.flags))
    run.written(op.key)
    return None


def _cas(run: _Run, op: TxnOp) -> _Failure | None:
    if not set_key(run.tx, run.index, KvSet(op.key, op.value, op.flags, op.index)).value:
        return _fail(Trouble.STALE_SET)
    run.written(op.key)
    return None


def _lock(run: _Run, op: TxnOp) -> _Failure | None:
    tx = run.tx
    if not op.session:
        return _fail(Trouble.MISSING_SESSION)
    command = KvLock(op.key, op.value, op.session, op.flags, run.as_of)
    done = lock_key(tx, run.index, command).value
    if done is None:
        return _fail(Trouble.INVALID_SESSION)
    if done:
        run.written(op.key)
        return None
    pair = run.pair(op.key)
    held = pair is not None and pair.session
    return _fail(Trouble.LOCK_HELD if held else Trouble.LOCK_DELAY)


def _unlock(run: _Run, op: TxnOp) -> _Failure | None:
    if not op.session:
        return _fail(Trouble.MISSING_SESSION)
    command = KvUnlock(op.key, op.value, op.session, op.flags)
    if not unlock_key(run.tx, run.index, command).value:
        return _fail(Trouble.LOCK_NOT_HELD)
    run.written(op.key)
    return None


def _get(run: _Run, op: TxnOp) -> _Failure | None:
    pair = run.pair(op.key)
    return _fail(Trouble.NO_KEY) if pair is None else run.read(pair)


def _get_or_empty(run: _Run, op: TxnOp) -> _Failure | None:
    return run.read(run.pair(op.key) or KVPair(op.key, b"", 0, 0, 0, 0, ""))


def _get_tree(run: _Run, op: TxnOp) -> _Failure | None:
    found = []
    with closing(run.tx.scan(*key_range(KV, op.key))) as rows:
        for raw, record in rows:
            found.append(pair := decode_key(raw, record))
            failure = run.read(pair)
            if failure is not None:
                return failure
    # What the batch itself wrote comes first in a scan.
    run.pairs[len(run.pairs) - len(found) :] = sorted(found)
    return None


def _check_index(run: _Run, op: TxnOp) -> _Failure | None:
    pair = run.pair(op.key)
    if pair is None:
        return _fail(Trouble.NO_KEY)
    if pair.modify_index != op.index:
        return _fail(Trouble.OTHER_INDEX, pair.modify_index)
    run.written(op.key)
    return None


def _check_session(run: _Run, op: TxnOp) -> _Failure | None:
    pair = run.pair(op.key)
    if pair is None:
        return _fail(Trouble.NO_KEY)
    if pair.session != op.session:
        return _fail(Trouble.OTHER_SESSION, pair.session)
    run.written(op.key)
    return None


def _check_not_exists(run: _Run, op: TxnOp) -> _Failure | None:
    return None if run.pair(op.key) is None else _fail(Trouble.KEY_EXISTS)


def _delete(run: _Run, op: TxnOp) -> _Failure | None:
    delete_key(run.tx, run.index, KvDelete(op.key))
    return None


def _delete_tree(run: _Run, op: TxnOp) -> _Failure | None:
    delete_tree(run.tx, run.index, KvDeleteTree(op.key))
    return None


def _delete_cas(run: _Run, op: TxnOp) -> _Failure | None:
    if not delete_key(run.tx, run.index, KvDelete(op.key, op.index)).value:
        return _fail(Trouble.STALE_DELETE)
    return None


_STEPS: Final[dict[int, Callable[[_Run, TxnOp], _Failure | None]]] = {
    Verb.SET: _set,
    Verb.CAS: _cas,
    Verb.LOCK: _lock,
    Verb.UNLOCK: _unlock,
    Verb.GET: _get,
    Verb.GET_OR_EMPTY: _get_or_empty,
    Verb.GET_TREE: _get_tree,
    Verb.CHECK_INDEX: _check_index,
    Verb.CHECK_SESSION: _check_session,
    Verb.CHECK_NOT_EXISTS: _check_not_exists,
    Verb.DELETE: _delete,
    Verb.DELETE_TREE: _delete_tree,
    Verb.DELETE_CAS: _delete_cas,
}

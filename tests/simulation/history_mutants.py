"""Deliberate bugs in the window of changes, and in how a feed goes on."""

from __future__ import annotations

from unittest import mock

from kvnode.replica.watches import Watches
from kvnode.store import history
from kvnode.store.change_records import encode_revision, revision_key
from kvnode.store.commands import Result, TrimHistory
from kvnode.store.records import Cause
from kvnode.store.store import _HANDLERS
from kvnode.store.tables import Transaction
from tests.simulation.mutant import Mutant, replacing

_real_record = Transaction.record


def _forgets_trees(tx: Transaction, index: int, key: bytes, old: bytes | None, cause: int) -> None:
    """What a deleted tree held is not told."""
    if cause != Cause.DELETE_TREE:
        _real_record(tx, index, key, old, cause)


def _records_every_step(
    tx: Transaction, index: int, key: bytes, old: bytes | None, cause: int
) -> None:
    """The record before the last step of an entry counts, not the one before the entry."""
    _real_record(tx, index, key, old, cause)
    raw = revision_key(key, index)
    if tx.overlay.get(raw):
        tx.overlay[raw] = encode_revision(raw, cause, old or b"")


def _keeps_the_floor(tx: Transaction, index: int, command: TrimHistory) -> Result:
    """A trim does not say where the window begins."""
    floor = tx.history_floor
    result = history.trim_history(tx, index, command)
    tx.history_floor = floor
    return result


_real_wake = Watches.wake


def _settles_first(watches: Watches, applied: int = 0) -> None:
    """Whoever is woken believes that it has seen what woke it."""
    watches.settled = max(watches.settled, applied)
    _real_wake(watches, applied)


_real_changes = history.changes


def _goes_on_behind_the_entry(*args: object) -> history.Changes:
    """A place within an entry is taken for the place behind it."""
    part = _real_changes(*args)  # type: ignore[arg-type]
    return part._replace(position=history.Position(part.position.index, None))


_WORK = ("change feed",)

HISTORY_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a deleted tree leaves no changes", "decision 0013", "cluster", 10,
        replacing(Transaction, "record", _forgets_trees), workloads=_WORK,
    ),
    Mutant(
        "a change for each step of an entry", "decision 0013", "cluster", 10,
        replacing(Transaction, "record", _records_every_step), workloads=_WORK,
    ),
    Mutant(
        "a trim that keeps the floor", "decision 0013", "cluster", 20,
        lambda: mock.patch.dict(_HANDLERS, {TrimHistory: _keeps_the_floor}), workloads=_WORK,
    ),
    Mutant(
        "a feed that has seen what woke it", "RC-65", "cluster", 10,
        replacing(Watches, "wake", _settles_first), workloads=_WORK,
    ),
    Mutant(
        "a place within an entry is behind it", "decision 0013", "cluster", 10,
        replacing(history, "changes", _goes_on_behind_the_entry), workloads=_WORK,
    ),
)  # fmt: skip

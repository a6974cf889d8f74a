"""Deliberate bugs in what Consul cannot do: keys that expire, writes done once, prefixes that move."""

from __future__ import annotations

import heapq
import math
from unittest import mock

from kvnode.replica.expiry import KeyTimers
from kvnode.store import own
from kvnode.store.commands import Result
from kvnode.store.own_commands import KvCopy, KvExpire, Once
from kvnode.store.records import KV, Cause
from kvnode.store.store import _HANDLERS
from kvnode.store.tables import Transaction
from tests.simulation.mutant import Mutant, replacing


def _goes_on(self: KeyTimers, _now: float) -> None:
    """A new leader counts what it counted when it led before."""
    self._walked = b""


def _begins_at_the_last_tick(
    self: KeyTimers, key: bytes, since: int, ttl_ns: int, _now: float
) -> None:
    self._set(key, since, self._clock.now + ttl_ns / 1e9)


def _forgets_the_renewal(self: KeyTimers, key: bytes, since: int, due: float) -> None:
    """The first deadline of a key holds, whatever comes later."""
    known = self._deadlines.get(key)
    if known is not None and known[0] < math.inf:
        self._deadlines[key] = (known[0], since)
        return
    self._deadlines[key] = (due, since)
    heapq.heappush(self._heap, (due, key))


def _deletes_whatever(tx: Transaction, index: int, command: KvExpire) -> Result:
    """What was written since is deleted as well."""
    gone = 0
    for key, _ in command.keys:
        old = tx.get(KV + key)
        if old is not None:
            own.drop_key(tx, index, key, old, Cause.EXPIRE)
            gone += 1
    return Result(gone, index)


def _does_it_again(tx: Transaction, index: int, command: Once) -> Result:
    return _HANDLERS[type(command.command)](tx, index, command.command)


def _leaves_the_source(tx: Transaction, index: int, command: KvCopy) -> Result:
    return own.copy_keys(tx, index, command._replace(move=False))


BEYOND_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a leader goes on with old times of keys",
        "RC-61",
        "cluster",
        60,
        lambda: mock.patch.multiple(KeyTimers, begin=_goes_on, stop=lambda _self: None),
        ("transfer", "cut_isolate"),
        ("beyond consul",),
    ),
    Mutant(
        "a key's time begins at the last tick",
        "RC-61",
        "cluster",
        20,
        replacing(KeyTimers, "began", _begins_at_the_last_tick),
        workloads=("beyond consul",),
    ),
    Mutant(
        "a key that was renewed expires all the same",
        "RC-61",
        "cluster",
        20,
        replacing(KeyTimers, "_set", _forgets_the_renewal),
        workloads=("beyond consul",),
    ),
    Mutant(
        "a key expires whatever was written since",
        "RC-61",
        "cluster",
        60,
        lambda: mock.patch.dict(_HANDLERS, {KvExpire: _deletes_whatever}),
        workloads=("beyond consul",),
    ),
    Mutant(
        "a write sent again is done again",
        "RC-58",
        "cluster",
        10,
        lambda: mock.patch.dict(_HANDLERS, {Once: _does_it_again}),
        workloads=("beyond consul",),
    ),
    Mutant(
        "a move that leaves its source",
        "RC-66",
        "cluster",
        10,
        lambda: mock.patch.dict(_HANDLERS, {KvCopy: _leaves_the_source}),
        workloads=("beyond consul",),
    ),
)

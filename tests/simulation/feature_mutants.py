"""Deliberate bugs in what stands upon the log: sessions, locks, transactions and watches."""

from __future__ import annotations

from typing import Any
from unittest import mock

from kvnode.http import blocking
from kvnode.replica import session_timers, watches
from kvnode.replica.check_timers import CheckTimers
from kvnode.replica.lineage import Lineage
from kvnode.replica.lock_delays import LockDelays
from kvnode.replica.session_timers import SessionTimers
from kvnode.replica.sessions import Sessions
from kvnode.store import kv, locks, registry, txn
from kvnode.store.commands import KvDelete, KvLock, KvUnlock, Result, Txn
from kvnode.store.records import KV, decode_key, key_range
from kvnode.store.registry_records import Check
from kvnode.store.store import _HANDLERS
from kvnode.store.view import View
from tests.simulation.mutant import Mutant, replacing

# -- sessions and locks ---------------------------------------------------------------------------


_real_begin = SessionTimers.begin


def _goes_on(timers: SessionTimers, now: float) -> None:
    """A new leader goes on with the clocks of its last office (RC-61)."""
    if timers._deadlines:
        timers._clock.resume(now)
        timers._walked = ""
    else:
        _real_begin(timers, now)


def _renews_alone(self: Sessions, ids: list[str], done: Any) -> None:
    """A leader renews without being confirmed (RC-61)."""
    self.follow()
    done(self._renew(ids), None)


def _never_runs(_delays: LockDelays, _key: bytes) -> bool:
    """No lock-delay is ever seen by the leader (RC-62)."""
    return False


_real_is_running = LockDelays.is_running


def _forgets_older(delays: LockDelays, key: bytes) -> bool:
    """Lock-delays from before this process learned of anything are over for it (RC-62)."""
    found = delays._store.lock_delay(key)
    return found is not None and found[0] > delays._indexes[0] and _real_is_running(delays, key)


_real_lock_key = locks.lock_key


def _ignores_as_of(tx: Any, index: int, command: KvLock) -> Result:
    """A lock that was judged before its lock-delay began is taken (RC-62)."""
    return _real_lock_key(tx, index, command._replace(as_of=1 << 60))


def _takes_over(tx: Any, index: int, command: KvLock) -> Result:
    """A lock is given to whoever asks for it."""
    raw = KV + command.key
    record = tx.get(raw)
    pair = None if record is None else decode_key(raw, record)
    if pair is not None and pair.session not in ("", command.session):
        locks.unlock_key(tx, index, KvUnlock(command.key, pair.value, pair.session))
    return _real_lock_key(tx, index, command)


# -- the registry ---------------------------------------------------------------------------------


_real_reported = CheckTimers._reported


def _unheard(timers: CheckTimers, check: Check, *, written: bool) -> None:
    """A report does not begin a TTL anew (RC-61)."""
    _real_reported(timers, check, written=False)


def _outlives(_tx: Any, _index: int, _node: str, _check_id: str) -> None:
    """Sessions go on when their check turns critical (spec §5)."""


# -- transactions ---------------------------------------------------------------------------------


def _half_applied(tx: Any, index: int, command: Txn) -> Result:
    """What went well before the first failure is kept (RC-66)."""
    part = tx.fork()
    outcome = txn.evaluate(part, index, command)
    tx.merge(part)
    return Result(outcome, index)


# -- watches --------------------------------------------------------------------------------------


_real_delete_key = kv.delete_key


def _deletes_quietly(tx: Any, index: int, command: KvDelete) -> Result:
    """Nobody is woken when a key is deleted (RC-65)."""
    told = len(tx.changes) if tx.changes is not None else 0
    result = _real_delete_key(tx, index, command)
    if tx.changes is not None:
        del tx.changes[told:]
    return result


def _walk_without_graves(self: View, prefix: bytes, visit: Any) -> Any:
    """The index of a list forgets what was deleted, and falls (RC-64)."""
    highest = 0
    start, stop = key_range(KV, prefix)
    for raw, record in self._snapshot.scan(start, stop):
        visit(raw, record)
        highest = max(highest, decode_key(raw, record).modify_index)
        yield highest
    yield highest or self.meta.kv_index


def _parks_later(self: blocking.Blocking, parked: blocking.Parked) -> None:
    """A query is parked some time after it looked (RC-65)."""
    if not parked.settled:
        self._loop.call_later(0.02, _real_park, self, parked)


_real_park = blocking.Blocking._park


def _changed_keys_only(self: watches.Watches, index: int, key: bytes, tree: bool) -> None:
    """Watchers of a prefix are not woken by a key under it (RC-65)."""
    group = self._keys.get(key)
    if group is not None and not tree:
        self._hit.update(dict.fromkeys(group, index))


FEATURE_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a report that does not count",
        "RC-61",
        "cluster",
        10,
        replacing(CheckTimers, "_reported", _unheard),
        workloads=("registry",),
    ),
    Mutant(
        "a session that outlives its check",
        "spec §5",
        "cluster",
        10,
        replacing(registry, "_end_sessions", _outlives),
        workloads=("registry",),
    ),
    Mutant(
        "nobody notices an old copy of a volume",
        "RC-54",
        "cluster",
        60,
        replacing(Lineage, "is_rolled_back", lambda *_: False),
        ("roll_back", "crash", "transfer"),
    ),
    Mutant(
        "a session ends after its TTL alone",
        "RC-61",
        "cluster",
        20,
        replacing(session_timers, "FACTOR", 1),
        workloads=("sessions",),
    ),
    Mutant(
        "a leader goes on with old clocks",
        "RC-61",
        "cluster",
        60,
        lambda: mock.patch.multiple(SessionTimers, begin=_goes_on, stop=lambda _self: None),
        ("transfer", "cut_isolate"),
        ("sessions",),
    ),
    Mutant(
        "renew without being confirmed",
        "RC-61",
        "cluster",
        80,
        replacing(Sessions, "_confirm", _renews_alone),
        ("cut_isolate", "cut_one_way", "pause", "clog"),
        ("sessions",),
    ),
    Mutant(
        "no lock-delay",
        "RC-62",
        "cluster",
        20,
        replacing(LockDelays, "is_running", _never_runs),
        workloads=("sessions",),
    ),
    Mutant(
        "a lock-delay forgotten at a restart",
        "RC-62",
        "cluster",
        40,
        replacing(LockDelays, "is_running", _forgets_older),
        ("crash_all", "transfer"),
        ("sessions",),
    ),
    Mutant(
        "a lock judged before its lock-delay",
        "RC-62",
        "cluster",
        60,
        lambda: mock.patch.dict(_HANDLERS, {KvLock: _ignores_as_of}),
        workloads=("sessions",),
    ),
    Mutant(
        "a lock for whoever asks",
        "RC-63",
        "cluster",
        10,
        lambda: mock.patch.dict(_HANDLERS, {KvLock: _takes_over}),
        workloads=("sessions",),
    ),
    Mutant(
        "a session's end keeps its locks",
        "RC-61",
        "cluster",
        20,
        replacing(locks, "_let_go", lambda *_: None),
        workloads=("sessions",),
    ),
    Mutant(
        "a transaction half applied",
        "RC-66",
        "cluster",
        10,
        lambda: mock.patch.dict(_HANDLERS, {Txn: _half_applied}),
        workloads=("transactions",),
    ),
    Mutant(
        "a deletion wakes no watcher",
        "RC-65",
        "cluster",
        20,
        lambda: mock.patch.dict(_HANDLERS, {KvDelete: _deletes_quietly}),
        workloads=("keys", "blocking queries"),
    ),
    Mutant(
        "a key wakes no watcher of its prefix",
        "RC-65",
        "cluster",
        10,
        replacing(watches.Watches, "changed", _changed_keys_only),
        workloads=("keys", "blocking queries"),
    ),
    Mutant(
        "the index of a list goes back",
        "RC-64",
        "cluster",
        40,
        replacing(View, "walk", _walk_without_graves),
        workloads=("keys", "blocking queries"),
    ),
    Mutant(
        "a query parked after a pause",
        "RC-65",
        "cluster",
        60,
        replacing(blocking.Blocking, "_park", _parks_later),
        workloads=("keys", "blocking queries"),
    ),
)

"""Housekeeping: flushing the store, compacting the log, reaping tombstones, trimming history."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvnode.errors import KvnodeError, MustStop
from kvnode.ports import LogBase
from kvnode.raft.types import Index, Role
from kvnode.replica.history import HistoryKeeper
from kvnode.store.commands import ReapGraves

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

REAP_AT_MOST = 1000
"""Tombstones reaped by one entry, so that applying it stays short."""

HOLD_FACTOR = 4
"""A stream to a follower holds compaction back only while the log is below so many times its bounds:
what is retained is in memory (RC-39, RC-67)."""


class Upkeep:
    """Looks after one node's log and store; called about once a second."""

    def __init__(self, replica: Replica) -> None:
        """Start with nothing known to be flushed but what the log's base proves."""
        self._replica = replica
        self.history = HistoryKeeper(replica)
        self._flushing = False
        self._ages: deque[tuple[float, int]] = deque()
        """(time, applied index) marks for the age of tombstones; this leader's own clock."""

    def tick(self, _now: float) -> None:
        """What cannot wait for a round: history grows with every write."""
        self.history.look()

    def run(self, now: float) -> None:
        """One round."""
        self._compact(now)
        if self._replica.raft.role is Role.LEADER:
            self._reap(now)
            self._replica.sessions.reap()
        else:
            self._ages.clear()

    def _compact(self, now: float) -> None:
        """Drop the older half of an outgrown log, after the store has flushed that far (RC-10, RC-39)."""
        replica = self._replica
        log, settings = replica.raft.log, replica.settings
        count = log.last_index - log.base.index
        if count <= settings.log_entries_max and log.bytes <= settings.log_bytes_max:
            return
        if self._flushing or replica.receiver.loading:
            return
        applied = Index(replica.store.applied_index)
        target = min(applied, Index(log.base.index + max(1, count // 2)))
        hold = replica.sender.hold_index(now)
        crowded = (
            count > HOLD_FACTOR * settings.log_entries_max
            or log.bytes > HOLD_FACTOR * settings.log_bytes_max
        )
        if hold is not None and not crowded:
            target = min(target, hold)
        if target <= log.base.index:
            return
        self._flushing = True

        def flushed(_value: None, error: KvnodeError | None) -> None:
            self._flushing = False
            if isinstance(error, MustStop):
                replica.fail(error)
            elif error is None and not replica.receiver.loading:
                self._drop(target)

        replica.worker.submit(replica.store.engine.flush, flushed)

    def _drop(self, target: Index) -> None:
        replica = self._replica
        if target <= replica.raft.log.base.index:
            return
        base, membership = replica.raft.compact(target)
        replica.journal.compact(LogBase(base, membership), replica.journal_done)
        replica.trace("log_compacted", {"term": replica.raft.term, "index": base.index})

    def _reap(self, now: float) -> None:
        """Propose to forget tombstones that are old enough (spec §2.3)."""
        replica, ages = self._replica, self._ages
        settings = replica.settings
        if not ages or now - ages[-1][0] >= settings.grave_interval_s:
            ages.append((now, replica.store.applied_index))
        old = 0
        while ages and now - ages[0][0] >= settings.grave_age_s:
            old = ages.popleft()[1]
        if not old:
            return
        bound = replica.store.reap_bound(old, REAP_AT_MOST)
        if bound:
            replica.write(ReapGraves(bound), lambda _result, _error: None)
        if 0 < bound < old:
            ages.appendleft((now - settings.grave_age_s, old))

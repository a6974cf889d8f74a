"""Housekeeping: flushing the store, compacting the log, reaping tombstones, trimming history,
expiring keys, forgetting idempotency keys.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvnode.errors import KvnodeError, MustStop
from kvnode.ports import LogBase
from kvnode.raft.types import Index, Role
from kvnode.replica.expiry import Expiry
from kvnode.replica.history import HistoryKeeper
from kvnode.store.commands import ReapGraves, RestoreDrop
from kvnode.store.own_commands import ReapOnce
from kvnode.store.restore import Note

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

REAP_AT_MOST = 1000
"""Tombstones, or idempotency keys, forgotten by one entry, so that applying it stays short."""

HOLD_FACTOR = 4
"""A stream to a follower holds compaction back only while the log is below so many times its bounds:
what is retained is in memory (RC-39, RC-67)."""


class _Ages:
    """How old entries are, by this leader's own clock: marks of time and applied index."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def clear(self) -> None:
        """Nothing is known to be old."""
        self._marks.clear()

    def old(self, now: float, applied: int, age_s: float, interval_s: float) -> int:
        """Mark this moment, about every ``interval_s``; return up to which index entries are older than
        ``age_s``, once: 0 when that is none more.
        """
        marks = self._marks
        if not marks or now - marks[-1][0] >= interval_s:
            marks.append((now, applied))
        found = 0
        while marks and now - marks[0][0] >= age_s:
            found = marks.popleft()[1]
        return found

    def again(self, time: float, index: int) -> None:
        """Not everything up to ``index`` was reaped: tell it once more."""
        self._marks.appendleft((time, index))


class Upkeep:
    """Looks after one node's log and store; called about once a second."""

    def __init__(self, replica: Replica) -> None:
        """Start with nothing known to be flushed but what the log's base proves."""
        self._replica = replica
        self.history = HistoryKeeper(replica)
        self._flushing = False
        self.expiry = Expiry(replica)
        self._grave_ages = _Ages()
        self._once_ages = _Ages()
        self._staging: tuple[float, Note] | None = None
        """What is staged for a restore, and since when it is the same."""

    def tick(self, now: float) -> None:
        """What cannot wait for a round: history grows with every write, and keys expire."""
        self.history.look()
        self.expiry.tick(now)

    def run(self, now: float) -> None:
        """One round."""
        self._compact(now)
        if self._replica.raft.role is Role.LEADER:
            self._reap(now)
            self._reap_once(now)
            self._drop_staging(now)
            self._replica.sessions.reap()
        else:
            self._grave_ages.clear()
            self._once_ages.clear()
            self._staging = None

    def _compact(self, now: float) -> None:
        """Drop the older half of an outgrown log, after the store has flushed that far (RC-10, RC-39)."""
        replica = self._replica
        log, settings = replica.raft.log, replica.settings
        count = log.last_index - log.base.index
        if count <= settings.log_entries_max and log.bytes <= settings.log_bytes_max:
            return
        if self._flushing or not replica.may_apply:
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
            elif error is None and replica.may_apply:
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
        replica, settings = self._replica, self._replica.settings
        applied = replica.store.applied_index
        old = self._grave_ages.old(now, applied, settings.grave_age_s, settings.grave_interval_s)
        if not old:
            return
        bound = replica.store.reap_bound(old, REAP_AT_MOST)
        if bound:
            replica.write(ReapGraves(bound), lambda _result, _error: None)
        if 0 < bound < old:
            self._grave_ages.again(now - settings.grave_age_s, old)

    def _reap_once(self, now: float) -> None:
        """Propose to forget idempotency keys that are old enough."""
        replica, age_s = self._replica, self._replica.settings.once_age_s
        old = self._once_ages.old(now, replica.store.applied_index, age_s, age_s / 20)
        if not old:
            return
        bound = replica.store.once_bound(old, REAP_AT_MOST)
        if bound:
            replica.write(ReapOnce(bound), lambda _result, _error: None)
        if 0 < bound < old:
            self._once_ages.again(now - age_s, old)

    def _drop_staging(self, now: float) -> None:
        """Propose to give up a restore that nobody goes on with: whoever began it is gone."""
        replica = self._replica
        note = replica.store.staging()
        if note is None:
            self._staging = None
        elif self._staging is None or self._staging[1] != note:
            self._staging = (now, note)
        elif now - self._staging[0] >= replica.settings.restore_idle_s:
            replica.trace("restore_given_up", {"restore": note.restore_id, "pieces": note.number})
            self._staging = (now, note)
            replica.write(RestoreDrop(note.restore_id), lambda _result, _error: None)

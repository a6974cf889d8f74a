"""Committed entries reach the store: all at once, except for the one that ends a restore (decision 0009).

That one puts another engine in the store's place, and a thread needs seconds to build it. Until then
nothing is applied: what was committed behind it waits here, and the core hands out nothing more. Heartbeats,
appends and stale reads go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvnode.errors import InvariantBroken, KvnodeError, MustStop
from kvnode.raft.types import Entry, EntryKind
from kvnode.replica.codec import decode
from kvnode.store.commands import Command, RestoreDrop, RestoreFinish, Result
from kvnode.store.engine import Engine
from kvnode.store.restore import rebuild

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

Rebuilt = tuple[Engine | None, str]
"""The fresh engine, which is current from now on; or None and what was wrong."""


class Applier:
    """One node's way from the log to the store."""

    def __init__(self, replica: Replica) -> None:
        """Nothing is under way."""
        self._replica = replica
        self.rebuilding = False
        """A restore is being carried out: nothing may be applied."""

    def apply(self, committed: Sequence[Entry]) -> None:
        """Apply entries in order and answer whoever waits for them.

        Raises:
            MustStop: As ``Store.apply_batch``.
        """
        assert not self.rebuilding, "entries came while a restore is being carried out"
        desk, store = self._replica.desk, self._replica.store
        batch: list[tuple[int, Command | None]] = []
        first = 0
        membership_changed = False
        for at, (index, term, kind, data) in enumerate(committed):
            if kind != EntryKind.COMMAND:
                batch.append((index, None))
                membership_changed |= kind == EntryKind.MEMBERSHIP
                continue
            own = desk.at(index, term) if desk.has_proposed else None
            command = own.command if own is not None else decode(data)
            if type(command) is RestoreFinish:
                # Whether it is due depends on everything before it.
                self._run(committed[first:at], batch, membership_changed)
                if store.is_restore_due(command):
                    self._begin(committed[at], command, committed[at + 1 :])
                    return
                batch, first, membership_changed = [], at, False
            batch.append((index, command))
        self._run(committed[first:], batch, membership_changed)

    def _run(
        self,
        committed: Sequence[Entry],
        batch: list[tuple[int, Command | None]],
        membership_changed: bool,
    ) -> None:
        replica = self._replica
        desk = replica.desk
        if membership_changed:
            # First: a session that begins in this batch is judged by the members that there are.
            replica.sessions.members_changed()
        results = replica.store.apply_batch(batch)
        if desk.has_proposed:
            for entry, result in zip(committed, results, strict=True):
                desk.applied(entry.index, entry.term, result)
        self._tell(membership_changed)

    def _tell(self, membership_changed: bool) -> None:
        replica = self._replica
        replica.wake_watchers()
        if membership_changed:
            replica.peers.refresh()
            replica.registrar.members_changed()
        replica.admin.sweep(replica.scheduler.time())

    # -- the end of a restore -----------------------------------------------------------------------

    def _begin(self, entry: Entry, command: RestoreFinish, rest: Sequence[Entry]) -> None:
        """Build the new state beside the old one; then go on behind it with ``rest``."""
        replica = self._replica
        engines, index = replica.engines, entry.index
        source = replica.store.engine.snapshot()
        self.rebuilding = True
        replica.trace("restore_applying", {"term": entry.term, "index": index})

        def job() -> Rebuilt:
            try:
                fresh = engines.create_next()
                try:
                    problem = rebuild(source, fresh, index, command)
                    if problem:
                        fresh.close()
                        return None, problem
                    fresh.flush()
                    engines.switch_to_next()
                except BaseException:
                    fresh.close()
                    raise
            finally:
                source.close()
            return fresh, ""

        def done(rebuilt: Rebuilt | None, error: KvnodeError | None) -> None:
            if replica.stopped:
                return
            if rebuilt is None:
                replica.fail(_as_stop(error))
                return
            try:
                self._end(entry, command, rebuilt)
                self.apply(rest)
            except MustStop as failure:
                replica.fail(failure)
                return
            replica.wake()

        replica.worker.submit(job, done)

    def _end(self, entry: Entry, command: RestoreFinish, rebuilt: Rebuilt) -> None:
        replica = self._replica
        store = replica.store
        fresh, problem = rebuilt
        self.rebuilding = False
        result = Result(True, entry.index)
        if fresh is None:
            # The entry changes nothing but this, so that every node goes on from the same state.
            store.apply_batch([(entry.index, RestoreDrop(command.restore_id))])
            result = Result(None, entry.index)
        else:
            replica.worker.submit(store.replace(fresh).close, self._closed)
            if store.applied_index != entry.index:
                raise InvariantBroken(
                    f"the restore of entry {entry.index} made a store at {store.applied_index}"
                )
        fields = {
            "term": entry.term,
            "index": entry.index,
            "keys": store.count(),
            "problem": problem,
        }
        replica.trace("restore_applied", fields)
        replica.desk.applied(entry.index, entry.term, result)
        self._tell(membership_changed=False)

    def _closed(self, _value: None, error: KvnodeError | None) -> None:
        if isinstance(error, MustStop):
            self._replica.fail(error)


def _as_stop(error: KvnodeError | None) -> MustStop:
    # Other nodes have carried it out, and this one can neither skip it nor try again now.
    if isinstance(error, MustStop):
        return error
    return InvariantBroken(f"a restore could not be carried out: {error}")

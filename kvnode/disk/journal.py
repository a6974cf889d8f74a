"""The durable Raft state: log, base and hard state behind one queue.

``JournalCore`` is synchronous: it executes a list of queued operations, with one sync for consecutive
saves. ``ThreadJournal`` runs it on a thread of its own for an ``asyncio`` loop; the simulator runs
the same core on virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kvnode.disk.files import FileSystem
from kvnode.disk.hard_state import HARD_STATE_NAME, HardStateFile, check_step
from kvnode.disk.raft_log import RaftLog
from kvnode.disk.whole_file import TEMPORARY
from kvnode.disk.worker import complete
from kvnode.errors import CorruptLog, DiskFailed, DiskFull, InvariantBroken, KvnodeError
from kvnode.ports import LogBase, Recovered
from kvnode.raft.types import ZERO, Entry, HardState, Membership

REST_S = 1.0
"""After so many seconds without a call the end of the log is noted. See ``JournalCore.rest``."""
OPERATIONS_MAX = 100_000
"""Calls that may wait in a ``ThreadJournal``. The driver's own bounds are far below (RC-67)."""


class Save(NamedTuple):
    """See ``kvnode.ports.Journal.save``."""

    hard_state: HardState | None
    entries: Sequence[Entry]


class Compact(NamedTuple):
    """See ``kvnode.ports.Journal.compact``."""

    base: LogBase


class Reset(NamedTuple):
    """See ``kvnode.ports.Journal.reset``."""

    base: LogBase


Operation = Save | Compact | Reset


def _no_check() -> None:
    """Nothing to check."""


class JournalCore:
    """Executes journal operations in order. Owned by one thread."""

    def __init__(self, log: RaftLog, hard_state: HardStateFile, check: Callable[[], None]) -> None:
        """Only for ``open_journal``.

        Args:
            log: The open log.
            hard_state: The open hard state.
            check: Called before each group is written; raises when the directory is not ours any more.
        """
        self._log = log
        self._hard_state = hard_state
        self._check = check
        self.failure: KvnodeError | None = None
        """The first error. From then on nothing is written (RC-8)."""
        self.spare_missing = False
        """The last ``maintain`` found no space for the next segment: the disk is nearly full."""

    def run(self, operations: Sequence[Operation]) -> None:
        """Execute operations in order; when it returns, all of them are durable.

        Consecutive saves are joined: the last hard state, then one frame with all entries.

        Raises:
            KvnodeError: An operation failed, and so will every later call, with the same error. What
                became of the operations of this call is unknown until a restart reads it back.
        """
        if self.failure is not None:
            raise self.failure
        with self._remembering():
            self._run(operations)

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        """Whatever goes wrong in here is the journal's failure for good, a bug as well: the thread must
        live to report it.
        """
        try:
            yield
        except KvnodeError as error:
            self.failure = error
            raise
        except Exception as error:
            self.failure = InvariantBroken(f"the journal broke: {error!r}")
            raise self.failure from error

    def maintain(self) -> bool:
        """Do a piece of the work that nobody waits for: see ``RaftLog.prepare``. Never raises; the next
        call does, if it fails.

        Returns:
            Whether there is more to do. A few milliseconds at most each time.
        """
        if self.failure is not None or not self._log.wants_spare:
            return False
        more = False
        with contextlib.suppress(KvnodeError), self._remembering():
            self._check()
            try:
                more = self._log.prepare()
                self.spare_missing = False
            except DiskFull:
                self.spare_missing = True
        return more

    @property
    def is_at_rest(self) -> bool:
        """It is noted how far the log is synced, or can no longer be."""
        return self.failure is not None or self._hard_state.log_end == self._log.end

    def rest(self) -> None:
        """Note durably how far the log is synced, for moments when nobody waits. Never raises; the next
        call does, if it fails.

        What a disk loses of that afterwards is damage to the next start. Without the note the newest
        frames, turned to zeros, would look like writes that a crash had cut off (RC-71).
        """
        if self.is_at_rest:
            return
        with contextlib.suppress(KvnodeError), self._remembering():
            self._check()
            self._hard_state.save(self._hard_state.state, self._log.end)

    def close(self) -> None:
        """Release the files, at rest. Everything that was reported durable is."""
        self.rest()
        self._log.close()
        self._hard_state.close()

    @property
    def syncs(self) -> int:
        """Number of data syncs so far."""
        return self._log.syncs + self._hard_state.syncs

    def _run(self, operations: Sequence[Operation]) -> None:
        hard_state: HardState | None = None
        entries: list[Entry] = []
        for operation in operations:
            match operation:
                case Save():
                    if operation.hard_state is not None:
                        check_step(hard_state or self._hard_state.state, operation.hard_state)
                        hard_state = operation.hard_state
                    _join(entries, operation.entries)
                case Compact():
                    self._save(hard_state, entries)
                    hard_state, entries = None, []
                    self._check()
                    self._log.compact(operation.base)
                case Reset():
                    # Entries that still wait would be dropped by the reset, but the hard state counts.
                    self._save(hard_state, [])
                    hard_state, entries = None, []
                    self._check()
                    self._log.reset(operation.base)
        self._save(hard_state, entries)

    def _save(self, hard_state: HardState | None, entries: list[Entry]) -> None:
        """Write the hard state first: entries never have a term that the hard state has not seen."""
        if hard_state is None and not entries:
            return
        self._check()
        if hard_state is not None:
            self._hard_state.save(hard_state, self._log.end)
        if entries:
            if entries[-1].term > self._hard_state.state.term:
                raise InvariantBroken(
                    f"entry {entries[-1].id} is of a later term than the hard state's "
                    f"{self._hard_state.state.term}"
                )
            self._log.append(entries)


def _join(entries: list[Entry], more: Sequence[Entry]) -> None:
    """Append entries that wait for the same sync; like in the log, a lower index cuts the rest off."""
    if not more:
        return
    if entries:
        keep = more[0].index - entries[0].index
        if keep > len(entries):
            raise InvariantBroken(f"entry {more[0].index} does not follow {entries[-1].index}")
        if keep < len(entries):
            del entries[max(0, keep) :]
    entries.extend(more)


def open_journal(
    fs: FileSystem,
    directory: str,
    *,
    fresh: bool,
    check: Callable[[], None] = _no_check,
) -> tuple[JournalCore, Recovered]:
    """Open the journal in ``directory``, making it when the node is new.

    A new journal is built beside its place and renamed whole, so that a journal that exists is a
    whole one and whatever it lacks was lost.

    Args:
        fs: Where the directory is.
        directory: Its path; its parent exists.
        fresh: This node has never had a journal. False: a missing directory is an error (RC-50).
        check: See ``JournalCore``.

    Returns:
        The journal, and what it holds; all of that is durable.

    Raises:
        CorruptLog: Something is missing or damaged; the text names the file and the offset.
        DiskFull: A new journal does not fit.
    """
    check()
    if not fs.exists(directory):
        if not fresh:
            raise CorruptLog(
                f"{directory}: missing, but this node had a log there. Bring the volume back, or "
                f"empty the whole data directory to begin as a new node"
            )
        _create(fs, directory)
    hard_state = HardStateFile.open(fs, directory)
    try:
        log, entries = RaftLog.open(fs, directory, hard_state.log_end)
    except KvnodeError:
        hard_state.close()
        raise
    core = JournalCore(log, hard_state, check)
    newest = entries[-1].id if entries else log.base.last
    if newest.term > hard_state.state.term:
        log.close()
        hard_state.close()
        raise CorruptLog(
            f"{directory}/{HARD_STATE_NAME}: term {hard_state.state.term}, but the log is at "
            f"{newest}: an old copy of the file?"
        )
    core.rest()
    if core.failure is not None:
        core.close()
        raise core.failure
    return core, Recovered(hard_state.state, log.base, entries)


def _create(fs: FileSystem, directory: str) -> None:
    parent = directory.rpartition("/")[0]
    building = directory + TEMPORARY
    fs.mkdir(building)
    for name in fs.listdir(building):  # left by a crash while building
        fs.unlink(f"{building}/{name}")
    RaftLog.create(fs, building, LogBase(ZERO, Membership()))
    HardStateFile.create(fs, building)
    fs.sync_dir(building)
    fs.rename(building, directory)
    fs.sync_dir(parent)


class ThreadJournal:
    """``kvnode.ports.Journal`` on one dedicated thread.

    Called on the loop's thread only. Completions are called on the loop, in the order of the calls.
    """

    def __init__(
        self,
        core: JournalCore,
        loop: asyncio.AbstractEventLoop,
        *,
        operations_max: int = OPERATIONS_MAX,
    ) -> None:
        """Take over ``core`` and start the thread."""
        self._core = core
        self._loop = loop
        self._operations_max = operations_max
        self._wake = threading.Condition()
        self._queue: list[tuple[Operation, Callable[[KvnodeError | None], None]]] = []
        self._closing = False
        self._pending = 0
        self._on_thread = 0
        self._failure: KvnodeError | None = None
        self._thread = threading.Thread(target=self._work, name="kvnode-journal", daemon=True)
        self._thread.start()

    def save(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """See ``kvnode.ports.Journal``."""
        if hard_state is None and not entries and not self._on_thread and self._failure is None:
            # Only keeps the order, and nothing is ahead of it: the thread need not wake.
            self._pending += 1
            self._loop.call_soon(self._complete_one, done)
            return
        self._put(Save(hard_state, entries), done)

    def compact(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        """See ``kvnode.ports.Journal``."""
        self._put(Compact(base), done)

    def reset(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        """See ``kvnode.ports.Journal``."""
        self._put(Reset(base), done)

    def pending(self) -> int:
        """See ``kvnode.ports.Journal``."""
        return self._pending

    @property
    def spare_missing(self) -> bool:
        """The disk had no space left for the log's next segment."""
        return self._core.spare_missing

    @property
    def syncs(self) -> int:
        """Number of data syncs so far."""
        return self._core.syncs

    def close(self) -> None:
        """Finish what is queued, stop the thread and release the files. Idempotent.

        Blocks for the syncs that are still due. Completions not yet delivered still arrive, if the
        loop goes on to run.
        """
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._core.close()

    def _put(self, operation: Operation, done: Callable[[KvnodeError | None], None]) -> None:
        self._pending += 1
        with self._wake:
            if self._failure is None and self._closing:
                self._failure = DiskFailed("the journal was closed")
            if self._failure is None and len(self._queue) >= self._operations_max:
                # Dropping one call would break the order of all later ones.
                self._failure = InvariantBroken(f"{len(self._queue)} calls wait for the journal")
            if self._closing:
                self._loop.call_soon(self._complete, [done], self._failure)
                return
            self._on_thread += 1
            self._queue.append((operation, done))
            self._wake.notify()

    def _work(self) -> None:
        """Take everything that waits, execute it as one group, report it, and again; or rest a while."""
        while True:
            with self._wake:
                notified = True
                while notified and not self._queue and not self._closing:
                    notified = self._wake.wait(None if self._core.is_at_rest else REST_S)
                taken, self._queue = self._queue, []
                failure = self._failure
                if not taken and self._closing:
                    return
            if failure is None:
                if taken:
                    with contextlib.suppress(KvnodeError):
                        self._core.run([operation for operation, _ in taken])
                else:
                    self._core.rest()
                failure = self._core.failure
            try:
                self._loop.call_soon_threadsafe(
                    self._complete_group, [done for _, done in taken], failure
                )
            except RuntimeError:
                return  # the loop was closed under us: nobody is left to be told
            # One piece after each group, and all of them while nobody waits. (Reading the queue
            # without the lock is fine: at worst a call waits for one more piece.)
            while failure is None and self._core.maintain() and not self._queue:
                pass

    def _complete_group(
        self, dones: list[Callable[[KvnodeError | None], None]], failure: KvnodeError | None
    ) -> None:
        self._on_thread -= len(dones)
        self._complete(dones, failure)

    def _complete(
        self, dones: list[Callable[[KvnodeError | None], None]], failure: KvnodeError | None
    ) -> None:
        if self._failure is None:
            self._failure = failure
        for done in dones:
            self._pending -= 1
            complete(done, failure)

    def _complete_one(self, done: Callable[[KvnodeError | None], None]) -> None:
        self._pending -= 1
        complete(done, self._failure)

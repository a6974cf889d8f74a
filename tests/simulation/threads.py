"""The threads of a process on virtual time: the journal's, with group commit, and the worker's.

The real code runs (``JournalCore``, the jobs), each group or job in one event, at a drawn moment after
it was asked for. What is queued while a group is with the disk goes into the next one. When the
process dies in the middle, the group or job under way is run up to a drawn operation (``SimCrash``).
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kvnode.disk.journal import REST_S, Compact, JournalCore, Operation, Reset, Save
from kvnode.errors import InvariantBroken, KvnodeError
from kvnode.ports import Done, LogBase
from kvnode.raft.types import Entry, HardState
from tests.simulation.clock import NodeClock
from tests.simulation.disk import SimCrash, SimDisk

T = TypeVar("T")

OPERATIONS_OF_A_JOB = 12
"""A crash in the middle of a job falls into one of so many first disk operations, or after them."""


class SimJournal:
    """``kvnode.ports.Journal``."""

    def __init__(
        self,
        core: JournalCore,
        clock: NodeClock,
        disk: SimDisk,
        rng: random.Random,
        latency: Callable[[], float],
        on_writing: Callable[[Operation], None],
        on_durable: Callable[[Operation], None],
    ) -> None:
        self._core = core
        self._clock = clock
        self._disk = disk
        self._rng = rng
        self._latency = latency
        self._on_writing = on_writing
        self._on_durable = on_durable
        self._queue: list[tuple[Operation, Callable[[KvnodeError | None], None]]] = []
        self._running: list[tuple[Operation, Callable[[KvnodeError | None], None]]] = []
        self._undelivered = 0
        self._failure: KvnodeError | None = None
        self.groups = 0
        self._rests = False

    def save(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """See ``Journal``."""
        if hard_state is None and not entries and not self.pending():
            self._undelivered += 1
            self._clock.call_soon(self._deliver, [done], self._failure)
            return
        self._put(Save(hard_state, tuple(entries)), done)

    def compact(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        """See ``Journal``."""
        self._put(Compact(base), done)

    def reset(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        """See ``Journal``."""
        self._put(Reset(base), done)

    def pending(self) -> int:
        """See ``Journal``."""
        return len(self._queue) + len(self._running) + self._undelivered

    def _put(self, operation: Operation, done: Callable[[KvnodeError | None], None]) -> None:
        self._queue.append((operation, done))
        if not self._running:
            self._clock.call_later(0.00002, self._begin)

    def _begin(self) -> None:
        if self._running or not self._queue:
            return
        self._running, self._queue = self._queue, []
        for operation, _ in self._running:
            self._on_writing(operation)
        self._clock.call_later(self._latency(), self._finish)

    def _finish(self) -> None:
        taken, self._running = self._running, []
        self.groups += 1
        if self._failure is None:
            try:
                self._core.run([operation for operation, _ in taken])
            except KvnodeError as error:
                self._failure = error
            else:
                for operation, _ in taken:
                    self._on_durable(operation)
        self._undelivered += len(taken)
        self._clock.call_soon(self._deliver, [done for _, done in taken], self._failure)
        if self._queue:
            self._begin()
        elif self._failure is None:
            self._core.maintain()
            self._rest_later()

    def _rest_later(self) -> None:
        if not self._rests:
            self._rests = True
            self._clock.call_later(REST_S, self._rest, self.groups)

    def _rest(self, groups: int) -> None:
        """Nothing was written for one to two times the real journal's pause."""
        self._rests = False
        if groups != self.groups or self._running or self._queue:
            self._rest_later()
        else:
            self._core.rest()
            self._failure = self._failure or self._core.failure

    def _deliver(
        self, dones: list[Callable[[KvnodeError | None], None]], failure: KvnodeError | None
    ) -> None:
        for done in dones:
            self._undelivered -= 1
            done(failure)

    def die(self) -> None:
        """The process is killed: the group under way got as far as it got."""
        if (self._running or self._rests) and self._failure is None and self._rng.random() < 0.7:
            self._disk.crash_after = self._rng.randrange(OPERATIONS_OF_A_JOB)
            with contextlib.suppress(SimCrash, KvnodeError):
                self._core.run([operation for operation, _ in self._running])
                self._core.rest()
        self._queue.clear()
        self._running.clear()


class SimWorker:
    """``kvnode.ports.Worker``."""

    def __init__(
        self, clock: NodeClock, disk: SimDisk, rng: random.Random, latency: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._disk = disk
        self._rng = rng
        self._latency = latency
        self._jobs: deque[tuple[Callable[[], Any], Done[Any]]] = deque()
        self._busy = False

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """See ``Worker``."""
        self._jobs.append((job, done))
        if not self._busy:
            self._busy = True
            self._clock.call_later(self._latency(), self._run)

    def _run(self) -> None:
        job, done = self._jobs.popleft()
        value: Any = None
        error: KvnodeError | None = None
        try:
            value = job()
        except KvnodeError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001  # as ThreadWorker does
            error = InvariantBroken(f"a job broke: {failure!r}")
        self._clock.call_soon(done, value, error)
        self._busy = bool(self._jobs)
        if self._busy:
            self._clock.call_later(self._latency(), self._run)

    def die(self) -> None:
        """The process is killed: the job under way got as far as it got."""
        if self._jobs and self._rng.random() < 0.7:
            self._disk.crash_after = self._rng.randrange(OPERATIONS_OF_A_JOB)
            with contextlib.suppress(SimCrash, KvnodeError):
                self._jobs[0][0]()
        self._jobs.clear()

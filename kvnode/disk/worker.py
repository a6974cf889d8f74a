"""Slow jobs, one at a time, on a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from kvnode.errors import InvariantBroken, KvnodeError, MustStop, Overloaded
from kvnode.ports import Done

T = TypeVar("T")

JOBS_MAX = 10_000
"""Jobs that may wait. Each is a snapshot chunk or a flush, asked for one after the other."""


class ThreadWorker:
    """``kvnode.ports.Worker`` on one dedicated thread.

    Called on the loop's thread only. Jobs run in order; completions are called on the loop, in order.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, name: str = "kvnode-worker", jobs_max: int = JOBS_MAX
    ) -> None:
        """Start the thread."""
        self._loop = loop
        self._jobs_max = jobs_max
        self._wake = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Done[Any]]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        """See ``kvnode.ports.Worker``. ``Overloaded`` when full or closed: the job does not run."""
        with self._wake:
            if not self._closing and len(self._jobs) < self._jobs_max:
                self._jobs.append((job, done))
                self._wake.notify()
                return
        why = "the worker was closed" if self._closing else f"{self._jobs_max} jobs wait already"
        self._loop.call_soon(done, None, Overloaded(why))

    def close(self) -> None:
        """Finish the jobs that wait, then stop the thread. Blocks meanwhile. Idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                if not self._jobs:
                    return
                job, done = self._jobs.popleft()
            value, error = _run(job)
            try:
                self._loop.call_soon_threadsafe(complete, done, value, error)
            except RuntimeError:
                return  # the loop was closed under us: nobody is left to be told


def complete(done: Callable[..., None], *outcome: object) -> None:
    """Call a completion of something durable.

    Raises:
        MustStop: It raised, whatever it was. What it should have begun was not begun, and nobody would
            begin it again: such a node does not go on (RC-75).
    """
    try:
        done(*outcome)
    except (MustStop, AssertionError):
        raise
    except Exception as error:
        raise InvariantBroken(f"a completion broke off: {error!r}") from error


def _run(job: Callable[[], T]) -> tuple[T | None, KvnodeError | None]:
    try:
        return job(), None
    except KvnodeError as error:
        return None, error
    except Exception as error:  # noqa: BLE001  # a job's bug must stop the node, not this thread
        broken = InvariantBroken(f"a job on the worker broke: {error!r}")
        broken.__cause__ = error
        return None, broken

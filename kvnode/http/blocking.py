"""Blocking queries: reads that wait until what they read has changed (spec §2.4, RC-65).

A query looks at the store inside a read's completion; when there is nothing new it is parked in the
same call, so that no change can fall between. A parked query is a small object: no task, no thread, one
timer. Whoever is woken in one pass shares one read of the replica, so that leadership is confirmed again
before every evaluation without a round for each.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kvnode.errors import KvnodeError, Overloaded

if TYPE_CHECKING:
    from kvnode.http.gate import Gate
    from kvnode.ports import Scheduler, Timer
    from kvnode.replica.facade import Consistency, ReadView, ReplicaFacade
    from kvnode.replica.watches import Watcher, Watches

JITTER = 16
"""Waits are lengthened by up to this fraction, so that parked clients do not return together."""

Deliver = Callable[["ReadView | None", KvnodeError | None], None]


class Query(NamedTuple):
    """What one request waits for."""

    key: bytes
    is_prefix: bool
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    """Answer when the read's index is above this."""
    wait_s: float
    consistency: Consistency
    has_news: Callable[[], bool]
    """Whether the read's index is above ``index`` now. Called when the store may be read."""
    deliver: Deliver
    """Answers; called once, when the store may be read, or with an error."""
    watches: Watches | None = None
    """Where to wait; None: for keys. ``replica.session_watches``: ``key`` is a session's id, and the
    prefix stands for all of them."""
    patient: bool = False
    """Not every change of what it watches concerns this query: whoever is woken looks again, and waits on
    if there is nothing new."""


class Parked:
    """One blocking query, from its first look to its answer."""

    __slots__ = ("deadline", "final", "query", "settled", "watcher")

    def __init__(self, query: Query) -> None:
        """Not parked yet."""
        self.query = query
        self.watcher: Watcher | None = None
        self.deadline: Timer | None = None
        self.final = False
        """The next look answers, news or not."""
        self.settled = False
        """Answered, or given up by its client."""


class Blocking:
    """All blocking queries of one server."""

    def __init__(
        self,
        replica: ReplicaFacade,
        gate: Gate,
        loop: Scheduler | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Nobody is waiting. Time and chance: the running loop's and the process's own, or as given."""
        self._replica = replica
        self._gate = gate
        self._loop: Scheduler = loop or asyncio.get_running_loop()
        self._rng = rng or random.Random()
        self._parked: dict[Parked, None] = {}
        self._due: dict[Consistency, list[Parked]] = {}
        self._closing = False

    def start(self, query: Query) -> Parked:
        """Look for news, and wait for it. Give the result to ``cancel`` when the client hangs up."""
        parked = Parked(query)
        self._replica.read(query.consistency, lambda view, error: self._look(parked, view, error))
        return parked

    def cancel(self, parked: Parked) -> None:
        """The client is gone: forget its query. Idempotent."""
        if not parked.settled:
            parked.settled = True
            self._unpark(parked)

    def close(self) -> None:
        """The server stops: everybody gets the current state."""
        self._closing = True
        for parked in list(self._parked):
            self._expire(parked)

    # -- looking ----------------------------------------------------------------------------------

    def _look(self, parked: Parked, view: ReadView | None, error: KvnodeError | None) -> None:
        """The store may be read: is there anything new?"""
        if parked.settled:
            return
        query = parked.query
        try:
            waits = not (error or parked.final or self._closing or query.has_news())
            if waits:
                self._park(parked)
                return
        except KvnodeError as problem:
            view, error = None, problem
        parked.settled = True
        if parked.deadline is not None:
            parked.deadline.cancel()
        query.deliver(view, error)

    def _park(self, parked: Parked) -> None:
        """Wait for a change, or for the time-out.

        Raises:
            Overloaded: Too many queries are parked.
        """
        query = parked.query
        parked.watcher = self._watches(query).watch(
            query.key,
            is_prefix=query.is_prefix,
            callback=lambda index: self._changed(parked, index),
        )
        if parked.deadline is None:
            wait_s = query.wait_s + self._rng.uniform(0, query.wait_s / JITTER)
            parked.deadline = self._loop.call_later(wait_s, self._expire, parked)
        self._parked[parked] = None
        self._gate.park()

    def _watches(self, query: Query) -> Watches:
        return self._replica.watches if query.watches is None else query.watches

    def _unpark(self, parked: Parked) -> None:
        if parked.deadline is not None:
            parked.deadline.cancel()
        if parked.watcher is not None:
            self._watches(parked.query).cancel(parked.watcher)
            parked.watcher = None
        if parked in self._parked:
            del self._parked[parked]
            self._gate.unpark()

    # -- waking -----------------------------------------------------------------------------------

    def _changed(self, parked: Parked, index: int) -> None:
        """What it watches has changed; the watcher is spent."""
        parked.watcher = None
        if index <= parked.query.index:
            # The client is ahead of us (spec §2.4): it waits on, until its time-out.
            self._watch_on(parked)
            return
        if parked.query.patient:
            del self._parked[parked]
            self._gate.unpark()
            self._read_again(parked)
            return
        self._unpark(parked)
        parked.final = True
        self._read_again(parked)

    def _watch_on(self, parked: Parked) -> None:
        del self._parked[parked]
        self._gate.unpark()
        try:
            self._park(parked)
        except Overloaded as error:
            parked.settled = True
            parked.query.deliver(None, error)

    def _expire(self, parked: Parked) -> None:
        """Its time is over: answer with what there is."""
        self._unpark(parked)
        parked.final = True
        self._read_again(parked)

    def _read_again(self, parked: Parked) -> None:
        """Read once for everybody who is woken before that read completes."""
        consistency = parked.query.consistency
        due = self._due.get(consistency)
        if due is not None:
            due.append(parked)
            return
        self._due[consistency] = [parked]
        self._replica.read(consistency, lambda view, error: self._woken(consistency, view, error))

    def _woken(
        self, consistency: Consistency, view: ReadView | None, error: KvnodeError | None
    ) -> None:
        for parked in self._due.pop(consistency):
            self._look(parked, view, error)

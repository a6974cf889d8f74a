"""Virtual time: one heap of events for the whole world, and one clock per process life.

An event is ``(time, number, clock, callback, args)``. Numbers break ties, so the order never depends
on anything but the seed. A clock may run fast or slow (rate 0.5 to 2) and may be paused, as a process
is by SIGSTOP: its monotonic time goes on, its events wait, and after the pause they run in order.
When a life ends its clock is dead, and its remaining events are dropped.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any


def derive(seed: int, purpose: str) -> random.Random:
    """A generator for one purpose. Seeding from a string hashes it with SHA-512, not ``hash()``."""
    return random.Random(f"{seed}/{purpose}")


class Event:
    """A pending call; also the ``Timer`` that is handed out."""

    __slots__ = ("args", "callback", "clock", "when")

    def __init__(
        self,
        when: float,
        clock: NodeClock | None,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self.when = when
        self.clock = clock
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Do not call. Idempotent."""
        self.callback = None
        self.args = ()


class World:
    """True time and everything that is going to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """Events run so far."""
        self._heap: list[tuple[float, int, Event]] = []
        self._numbers = 0
        self.after_event: Callable[[NodeClock | None], None] | None = None
        """Called after every event, with the clock of the process that it ran in."""

    def at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        clock: NodeClock | None = None,
    ) -> Event:
        """Call at a true time (now, when that has passed)."""
        self._numbers += 1
        if when < self.now:
            when = self.now
        event = Event(when, clock, callback, args)
        heapq.heappush(self._heap, (when, self._numbers, event))
        return event

    def after(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        clock: NodeClock | None = None,
    ) -> Event:
        """Call after a true delay."""
        return self.at(self.now + delay, callback, *args, clock=clock)

    def step(self) -> bool:
        """Run the next event. Returns False when there is none."""
        while self._heap:
            when, _, event = heapq.heappop(self._heap)
            callback, clock = event.callback, event.clock
            if callback is None or (clock is not None and clock.dead):
                continue
            self.now = when
            if clock is not None and clock.paused:
                clock.deferred.append(event)
                continue
            self.events += 1
            event.callback = None
            callback(*event.args)
            if self.after_event is not None:
                self.after_event(clock)
            return True
        return False

    def run_until(self, when: float, events_max: int = 2_000_000) -> None:
        """Run everything up to a true time.

        Raises:
            RuntimeError: More than ``events_max`` events: something spins without time passing.
        """
        stop = self.events + events_max
        while self._heap and self._heap[0][0] <= when:
            self.step()
            if self.events > stop:
                raise RuntimeError(f"more than {events_max} events before {when}: a busy loop")
        self.now = max(self.now, when)


class NodeClock:
    """``kvnode.ports.Scheduler`` for one life of one process."""

    def __init__(self, world: World, name: str, rate: float = 1.0, start: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.dead = False
        self.paused = False
        self.deferred: list[Event] = []
        self.after_event: Callable[[], None] | None = None
        """Looks at this life after each of its events."""
        self._start = start
        self._born = world.now

    def time(self) -> float:
        """Local monotonic seconds."""
        return self._start + (self.world.now - self._born) * self.rate

    def run_at(self, rate: float) -> None:
        """Run at another rate from now on; timers that are set keep their moment."""
        self._start, self._born, self.rate = self.time(), self.world.now, rate

    def step(self, seconds: float) -> None:
        """Jump forwards, as after the suspension of a virtual machine. Never backwards (monotonic)."""
        assert seconds >= 0
        self._start += seconds

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Event:
        """In the next turn, in order."""
        return self.world.at(self.world.now, callback, *args, clock=self)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Event:
        """After ``delay`` local seconds."""
        return self.world.after(max(0.0, delay) / self.rate, callback, *args, clock=self)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: what came due in the meantime happens now, in order."""
        self.paused = False
        deferred, self.deferred = self.deferred, []
        for event in deferred:
            if event.callback is not None:
                later = self.world.at(self.world.now, self._run_deferred, event, clock=self)
                assert later.when == self.world.now

    @staticmethod
    def _run_deferred(event: Event) -> None:
        callback, args = event.callback, event.args
        if callback is not None:
            event.cancel()
            callback(*args)

    def kill(self) -> None:
        """The life is over: nothing of it runs any more."""
        self.dead = True
        self.deferred.clear()

"""Keys that expire: the leader's clocks, and its proposals to delete (the time to live of a key).

Built as ``session_timers``: a heap, and neither a task nor a timer per key. A key is never deleted before its
time is over, counted from when this leader applied the write that began it: the client sent that earlier, and
whoever leads next starts every clock in full. What one leader decided names the index at which the key's time
began, so that a key which was written anew meanwhile is left alone, whoever's entry comes first.

The time counted is the leader's monotonic time without its own pauses, as of sessions.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvnode.errors import KvnodeError
from kvnode.raft.types import Term
from kvnode.replica.codec import encode
from kvnode.replica.office_clock import OfficeClock
from kvnode.store.commands import Result
from kvnode.store.own_commands import KvExpire
from kvnode.store.store import Store

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

RETRY_S: Final = 1.0
"""Pause before a deletion is proposed again."""
WALK_AT_ONCE: Final = 500
"""Keys looked at in one run, after a change of leader; a run comes with every tick."""
EXPIRE_AT_ONCE: Final = 256
"""Keys whose deletion is proposed in one run."""
KEYS_PER_ENTRY: Final = 64
"""So that applying an entry stays short."""
_SPARE: Final = 1000
"""Stale places that the heap may hold before it is made anew."""

Timed = tuple[bytes, int]
"""A key, and the index at which its time began."""


class KeyTimers:
    """Runs while this node leads, and is empty otherwise. About 250 bytes for each key that expires."""

    def __init__(self, store: Store, expire: Callable[[tuple[Timed, ...]], None]) -> None:
        """Not in office yet.

        Args:
            store: Where the keys are.
            expire: Proposes deletions; ``failed`` is called when that came to nothing.
        """
        self._store = store
        self._expire = expire
        self._deadlines: dict[bytes, tuple[float, int]] = {}
        """By this object's own clock, and the index at which the time began; infinity: the deletion has
        been proposed."""
        self._heap: list[tuple[float, bytes]] = []
        """Deadlines as they once were: when one comes up, the table says whether it still holds."""
        self._walked: bytes | None = None
        """Up to which key the store's keys were looked at; None: all were."""
        self._clock = OfficeClock()

    @property
    def count(self) -> int:
        """Keys whose time is being counted."""
        return len(self._deadlines)

    def begin(self, now: float) -> None:
        """This node leads from now on: every key gets its time in full."""
        self.stop()
        self._clock.resume(now)
        self._walked = b""

    def stop(self) -> None:
        """This node does not lead."""
        self._deadlines.clear()
        self._heap.clear()
        self._walked = None

    def began(self, key: bytes, since: int, ttl_ns: int, now: float) -> None:
        """The store was told the time of a key just now."""
        self._clock.advance(now)
        self._set(key, since, self._clock.now + ttl_ns / 1e9)

    def _set(self, key: bytes, since: int, due: float) -> None:
        known = self._deadlines.get(key)
        self._deadlines[key] = (due, since)
        if known is None or due < known[0]:
            heapq.heappush(self._heap, (due, key))
            self._tidy()

    def ended(self, key: bytes) -> None:
        """It does not expire any more, or is gone."""
        self._deadlines.pop(key, None)
        self._tidy()

    def _tidy(self) -> None:
        """Make the heap anew when most of its places are stale."""
        if len(self._heap) > 2 * len(self._deadlines) + _SPARE:
            self._heap = [
                (due, waiting) for waiting, (due, _) in self._deadlines.items() if due < math.inf
            ]
            heapq.heapify(self._heap)

    def failed(self, keys: tuple[Timed, ...]) -> None:
        """The deletions that were proposed may not come about: propose them again."""
        for key, since in keys:
            if self._deadlines.get(key) == (math.inf, since):
                self._set(key, since, self._clock.now + RETRY_S)

    def run(self, now: float) -> None:
        """Go on to ``now``, and propose the deletions that are due; called with every tick in office."""
        self._clock.advance(now)
        if self._walked is not None:
            self._walk(self._walked)
        due: list[Timed] = []
        for _ in range(EXPIRE_AT_ONCE):
            if not self._heap or self._heap[0][0] > self._clock.now:
                break
            deadline, key = heapq.heappop(self._heap)
            known = self._deadlines.get(key)
            if known is None or known[0] == math.inf:
                continue
            if known[0] > deadline:
                heapq.heappush(self._heap, (known[0], key))
                continue
            self._deadlines[key] = (math.inf, known[1])
            due.append((key, known[1]))
        for at in range(0, len(due), KEYS_PER_ENTRY):
            self._expire(tuple(due[at : at + KEYS_PER_ENTRY]))

    def _walk(self, after: bytes) -> None:
        page = self._store.ttls(after=after, limit=WALK_AT_ONCE)
        for key, since, ttl_ns in page:
            if key not in self._deadlines:
                self._set(key, since, self._clock.now + ttl_ns / 1e9)
        self._walked = page[-1][0] if len(page) == WALK_AT_ONCE else None


class Expiry:
    """One node's part in the expiry of keys."""

    def __init__(self, replica: Replica) -> None:
        """Listen to the store."""
        self._replica = replica
        self.timers = KeyTimers(replica.store, self._expire)
        self._office: Term | None = None
        """The term in which this node leads, and counts."""
        replica.store.on_ttl = self._on_ttl

    def _on_ttl(self, key: bytes, since: int, ttl_ns: int) -> None:
        if self._office is None:
            return
        now = self._replica.scheduler.time()
        if not key:
            self.timers.begin(now)
        elif since:
            self.timers.began(key, since, ttl_ns, now)
        else:
            self.timers.ended(key)

    def tick(self, now: float) -> None:
        """Every tick: the clocks of a leader."""
        replica = self._replica
        office = replica.raft.term if replica.is_leader else None
        if office != self._office:
            self._office = office
            if office is None:
                self.timers.stop()
            else:
                self.timers.begin(now)
        if office is not None and replica.raft.has_term_commit:
            self.timers.run(now)

    def _expire(self, keys: tuple[Timed, ...]) -> None:
        """The time of these keys is over: let the log say so."""
        office = self._office

        def done(_result: Result | None, error: KvnodeError | None) -> None:
            if error is not None and self._office == office:
                self.timers.failed(keys)

        command = KvExpire(keys)
        # As if a peer had forwarded it: what this leader's clock decided must not be carried on to
        # another leader, whose clock has just begun.
        self._replica.intake.take_write(command, encode(command), done, hopped=True)

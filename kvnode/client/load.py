"""A load of its own: requests to a cluster in a given mix, at a rate or as fast as they are answered.

For ``kvnode bench``. It does not use ``KvnodeClient``: a generator that costs more than the server
would measure itself. Each connection is one ``asyncio.Protocol`` with one request under way.

What makes its figures believable:

- With a rate, a request's time counts from when it was due, not from when the connection was free at
  last: a server that stalls is charged for all who waited (no coordinated omission).
- Each connection has keys of its own, and every value says which write it was. So after the load it
  is known for each key which values it may hold, and ``verify`` reads them all back: an acknowledged write
  that is gone is found, also when nodes were killed meanwhile.
- Outcomes are kept apart: *refused* (the server says that nothing happened), *unknown* (no answer, or one
  that does not say), *failed* (wrong request).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

from kvnode.client import lanes
from kvnode.client.histogram import Histogram
from kvnode.client.plan import WRITES, Plan
from kvnode.errors import PeerUnreachable


@dataclass(slots=True)
class Tally:
    """What became of the requests of one kind."""

    answered: int = 0
    refused: int = 0
    failed: int = 0
    unknown: int = 0
    times: Histogram = field(default_factory=Histogram)
    """Seconds from due to answered, of ``answered``."""


class Lost(NamedTuple):
    """A key that does not hold what it must."""

    key: str
    acknowledged: int
    """Number of the last acknowledged write; 0 none."""
    found: str
    """What is there, in words."""


class KeyState:
    """What one key may hold. Written by one connection alone, one request at a time."""

    __slots__ = ("acknowledged", "deleted", "maybe")

    def __init__(self) -> None:
        self.acknowledged = 0
        """Number of the last acknowledged put; 0: none, or it was deleted."""
        self.deleted = True
        self.maybe: set[int] = set()
        """Puts of unknown outcome, for ever: one may still be on its way. 0: a delete."""


class Load:
    """One run. Call ``fill``, ``run`` and, if wanted, ``verify`` and ``clean``, in this order.

    Attributes:
        tallies: By operation, while it runs too.
        nodes: How many answers each node gave, by X-Kvnode-Node.
        connections_lost: How often a connection broke or could not be opened.
        longest_gap_s: The longest time within the run without one acknowledged write; 0 without writes.
        fill_s: How long filling and verifying may take.
        reasons: The last words of each kind of failure, and how often; at most a few.
    """

    def __init__(self, plan: Plan) -> None:
        """Take a plan; nothing is connected yet."""
        self.plan = plan
        self.tallies = {op: Tally() for op, weight in plan.mix.items() if weight}
        self.nodes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.connections_lost = 0
        self.longest_gap_s = 0.0
        self.fill_s = max(30.0, plan.timeout_s * 3)
        self.keys = [f"{plan.prefix}{number:08d}" for number in range(plan.keys)]
        self.states = [KeyState() for _ in range(plan.keys)]
        self.run_id = f"{random.Random(plan.seed or None).getrandbits(32):08x}"
        self._numbers = 0
        self._acknowledged_at = 0.0
        self._began = 0.0
        self._took = 0.0

    @property
    def seconds(self) -> float:
        """How long the run took, or has taken until now."""
        if self._took or not self._began:
            return self._took
        return monotonic() - self._began

    @property
    def answered(self) -> int:
        """Requests that were answered as asked."""
        return sum(tally.answered for tally in self.tallies.values())

    # --- phases ------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """Write every key once, so that reads find something. Counts nowhere.

        Raises:
            PeerUnreachable: Not all could be written.
        """
        tally = Tally()
        await self._in_turn(lambda lane: lanes.Filling(self, lane, tally))
        if tally.answered < self.plan.keys:
            raise PeerUnreachable(
                f"only {tally.answered} of {self.plan.keys} keys could be written before the load: "
                f"{self.words() or 'no node answered'}"
            )
        self.nodes.clear()
        self.connections_lost = 0

    async def run(self) -> None:
        """Ask for ``duration_s``, then wait for the answers under way, at most ``timeout_s``."""
        self._began = self._acknowledged_at = monotonic()
        end = self._began + self.plan.duration_s
        await self._in_turn(lambda lane: lanes.Mixing(self, lane, self._began, end))
        self._took = min(monotonic(), end) - self._began
        if self.writes:
            self._note_gap(end)

    async def verify(self) -> list[Lost]:
        """Read every key that was written, and return those that hold what they must not.

        Raises:
            PeerUnreachable: Some could not be read at all, so that nothing can be said.
        """
        found: dict[int, bytes | None] = {}
        await self._in_turn(lambda lane: lanes.Verifying(self, lane, found))
        if len(found) < self.plan.keys:
            raise PeerUnreachable(
                f"{self.plan.keys - len(found)} keys could not be read back: {self.words()}"
            )
        return [lost for number in sorted(found) if (lost := self._judge(number, found[number]))]

    async def clean(self) -> None:
        """Delete the load's keys in one request."""
        await self._in_turn(lambda lane: lanes.Cleaning(self, lane))

    @property
    def writes(self) -> bool:
        """Whether the mix has any."""
        return any(op in WRITES for op in self.tallies)

    def words(self) -> str:
        """What the failures said, most frequent first."""
        return "; ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common(3))

    def _judge(self, number: int, value: bytes | None) -> Lost | None:
        state = self.states[number]
        if value is None:
            if state.deleted or 0 in state.maybe:
                return None
            return Lost(self.keys[number], state.acknowledged, "nothing")
        run_id, _, rest = value.partition(b"-")
        digits = rest.partition(b"-")[0]
        written = int(digits) if run_id == self.run_id.encode() and digits.isdigit() else -1
        if written in state.maybe or (written == state.acknowledged and not state.deleted):
            return None
        what = f"write {written}" if written >= 0 else "a value that this load did not write"
        return Lost(self.keys[number], state.acknowledged, what)

    async def _in_turn(self, make: Callable[[int], lanes.Lane]) -> None:
        """Run one lane per connection to its end."""
        made = [make(number) for number in range(self.plan.connections)]
        watch = asyncio.get_running_loop().create_task(lanes.look_after(made))
        try:
            await asyncio.gather(*(lane.done for lane in made))
        finally:
            watch.cancel()
            for lane in made:
                lane.close()

    # --- what lanes tell ----------------------------------------------------------------------------

    def next_value(self) -> tuple[int, bytes]:
        """Return a number never used before, and the value that carries it."""
        self._numbers += 1
        value = b"%b-%d-" % (self.run_id.encode(), self._numbers)
        return self._numbers, value.ljust(self.plan.value_bytes, b"v")

    def note_write(self, now: float) -> None:
        """A write was acknowledged."""
        self._note_gap(now)
        self._acknowledged_at = now

    def _note_gap(self, now: float) -> None:
        self.longest_gap_s = max(self.longest_gap_s, now - self._acknowledged_at)

    def note_reason(self, reason: str) -> None:
        """Something failed."""
        if reason in self.reasons or len(self.reasons) < 20:
            self.reasons[reason] += 1


def report(load: Load) -> dict[str, Any]:
    """Return the run's figures as one JSON document. Times are in milliseconds."""
    seconds = load.seconds
    plan = load.plan
    return {
        "settings": {
            "addresses": [str(address) for address in plan.addresses],
            "mix": {op.value: weight for op, weight in plan.mix.items() if weight},
            "connections": plan.connections,
            "rate": plan.rate or None,
            "duration_s": plan.duration_s,
            "keys": plan.keys,
            "value_bytes": plan.value_bytes,
        },
        "seconds": round(seconds, 3),
        "requests": load.answered,
        "per_second": round(load.answered / seconds, 1) if seconds else 0.0,
        "operations": {
            op.value: {
                "answered": tally.answered,
                "per_second": round(tally.answered / seconds, 1) if seconds else 0.0,
                "refused": tally.refused,
                "failed": tally.failed,
                "unknown": tally.unknown,
                "latency_ms": tally.times.document(),
            }
            for op, tally in load.tallies.items()
        },
        "connections_lost": load.connections_lost,
        "longest_gap_ms": round(load.longest_gap_s * 1000, 1) if load.writes else None,
        "nodes": dict(sorted(load.nodes.items())),
        "failures": dict(load.reasons.most_common()),
    }

"""How a feature takes part in every seed: its operations and its invariants.

To add a feature to the simulation, write a module beside this one with one subclass of ``Workload``
and name it in ``catalog.py``. Each seed draws for each workload whether and how often it takes part, by
a generator of its own, so that a new workload changes nothing that the others draw. In a run

1. ``turn`` is called whenever a client is free and the draw falls on this workload: it chooses one
   operation and a node and asks (``Bench.write``, ``read`` or ``ask``); what comes next for this client
   follows by itself after the answer;
2. the hooks tell it what happens: a life began, a node applied something, an entry was committed;
3. after the faults have ended and the cluster is whole again, ``missing`` must become None within half
   a minute (what must happen at last), and then ``finish`` looks at the end.

An invariant that does not hold raises ``Violation`` at once, wherever it is noticed. Randomness comes
from ``self.rng`` and ``client.rng`` only, and nothing may walk over a set of strings: a seed must tell the
same story in every process. ``bench.note`` counts what happened, for the coverage report.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from kvnode.raft.types import Membership
from kvnode.store.commands import Command, Value
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.clock import derive
from tests.simulation.node import SimNode


class Workload:
    """One feature. Every method but ``turn`` may be left as it is."""

    name: ClassVar[str]
    """Also names the generator that it draws from: never change it."""
    weights: ClassVar[tuple[float, ...]] = (0.0, 0.0, 2.0, 6.0)
    """One of these is drawn per seed, relative to the others' (keys and values have 10); 0: not in
    this seed."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rng: random.Random = derive(bench.seed, f"workload/{self.name}")

    @classmethod
    def draw(cls, seed: int) -> float:
        """How often this workload's turn comes in a seed."""
        return derive(seed, f"workload/{cls.name}/weight").choice(cls.weights)

    def begin(self) -> None:
        """The run begins; no node has been started yet."""

    def turn(self, client: Client) -> None:
        """Let a client do one thing: exactly one ``ask``, ``read`` or ``write``; some node is up."""
        raise NotImplementedError

    def started(self, node: SimNode) -> None:
        """A life began: its replica exists and is about to start."""

    def applied(self, node: SimNode) -> None:
        """A node's store has applied something."""

    def event(self, node: SimNode, what: str, fields: dict[str, Any]) -> None:
        """A node's replica traced an event."""

    def committed(self, index: int, command: Command, value: Value) -> None:
        """An entry was committed first, somewhere; ``value``: what the oracle answered."""

    def members_changed(self, membership: Membership) -> None:
        """A membership was committed first, somewhere."""

    def missing(self) -> str | None:
        """After the healing, no client begins anything new: what is still to come? None: nothing."""
        return None

    def finish(self, store: Store) -> None:
        """The end: all nodes are equal, and this is what they hold."""

"""Events, and the parameters by which the leader looks after the members.

- Every node holds the newest events that were committed, up to where it has applied, in their order: none is
  lost, none is there twice, through restarts, compaction and snapshots.
- Whoever waits for events is told of each that comes, and of none before it was applied.
- The parameters are those of the last change that was committed; a cas that lost changed nothing.
"""

from __future__ import annotations

from typing import Any

from kvnode.store.commands import Command, Value
from kvnode.store.control import Autopilot
from kvnode.store.control_commands import EVENTS_KEPT, AutopilotSet, EventFire
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

_NS = 10**9


class Control(Workload):
    """See the module."""

    name = "control"
    weights = (0.0, 0.0, 1.0, 3.0)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._numbers = 0
        self._fired: list[tuple[int, str]] = []
        """Index and id of every event that was committed."""
        self._parameters: Autopilot | None = None
        self._told: dict[str, int] = {}
        """Node -> newest event that its standing watch has seen."""

    def turn(self, client: Client) -> None:
        rng, bench = client.rng, self.bench
        node = rng.choice(bench.up())
        kind = rng.choices(("fire", "set", "list"), (6, 2, 2))[0]
        if kind == "fire":
            self._numbers += 1
            event_id = f"{self._numbers:08d}-0000-4000-9000-{bench.seed % 10**12:012d}"
            bench.write(client, node, EventFire(event_id, "e", b"%d" % self._numbers), _ignore)
        elif kind == "set":
            known = 0 if self._parameters is None else self._parameters.modify_index
            # Members of a simulated cluster must become voters soon after the healing.
            stable_ns = rng.choice((0, _NS // 2, _NS))
            command = AutopilotSet(
                rng.random() < 0.5, rng.choice((1, 5)) * _NS, 250, 0, stable_ns, "", False, "",
                rng.choice((None, known, 1)),
            )  # fmt: skip
            bench.write(client, node, command, _ignore)
        else:
            bench.read(client, node, "events", lambda store: len(store.events()), _ignore)

    # -- what must hold -----------------------------------------------------------------------

    def committed(self, index: int, command: Command, value: Value) -> None:
        if isinstance(command, EventFire):
            self._fired.append((index, command.event_id))
            self.bench.note("event fired")
        elif isinstance(command, AutopilotSet):
            known = self._parameters
            fits = command.cas in (None, 0 if known is None else known.modify_index)
            if value is not fits:
                raise Violation(
                    f"{command} at {index} answered {value}, the parameters were {known}"
                )
            if fits:
                created = index if known is None else known.create_index
                self._parameters = Autopilot(*command[:8], created, index)
                self.bench.note("parameters set")

    def started(self, node: SimNode) -> None:
        self._watch(node)

    def _watch(self, node: SimNode) -> None:
        """Read and watch in one go, as a blocking query does; once more after each call."""
        replica = node.replica
        assert replica is not None

        def changed(index: int) -> None:
            if index > replica.store.applied_index:
                raise Violation(f"{node.name}: told of event {index} before it was applied")
            self._watch(node)

        self._told[node.name] = _newest(replica.store)
        replica.event_watches.watch(b"", is_prefix=True, callback=changed)

    def applied(self, node: SimNode) -> None:
        assert node.replica is not None
        store = node.replica.store
        if self._told.get(node.name) != _newest(store):
            raise Violation(
                f"{node.name}: a watch of events slept from {self._told.get(node.name)} to {_newest(store)}"
            )
        self._compare(node.name, store)

    def _compare(self, name: str, store: Store) -> None:
        expected = [pair for pair in self._fired if pair[0] <= store.applied_index][-EVENTS_KEPT:]
        held = [(event.fired_at, event.event_id) for event in store.events()]
        if held != expected:
            raise Violation(f"{name} holds the events {held[-5:]}, not {expected[-5:]}")

    def finish(self, store: Store) -> None:
        self._compare("the end", store)
        if store.autopilot() != self._parameters:
            raise Violation(f"at the end {store.autopilot()}, not {self._parameters}")


def _newest(store: Store) -> int:
    events = store.events()
    return events[-1].fired_at if events else 0


def _ignore(*_: Any) -> None:
    pass

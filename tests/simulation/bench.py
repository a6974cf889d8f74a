"""What a workload stands on: clients and their requests, the oracle, and what is known from outside.

A *request* travels to a node and is lost if its process ends first; one that arrived must be answered
once, as long as that process lives. A client gives up after a while; then it is told ``GaveUp``, whose
outcome is unknown.

The *oracle* is a store of its own. It is given every committed entry once, in order, at the moment at
which the first node commits it: its state is what the log says, whatever the nodes make of it. Every
answer to a write is compared with the oracle's result at that index, and every node's digest with its.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from kvnode.errors import KvnodeError, NotNow, TookEffect
from kvnode.ports import Done
from kvnode.raft.types import Entry, EntryKind, Membership
from kvnode.replica.codec import decode
from kvnode.replica.facade import Consistency, ReadView
from kvnode.replica.replica import Replica
from kvnode.store.commands import (
    Command,
    KvLock,
    RestoreDrop,
    RestoreFinish,
    Result,
    Trouble,
    TxnOutcome,
    Value,
)
from kvnode.store.memory import MemoryEngine, MemoryEngineFactory
from kvnode.store.restore import rebuild
from kvnode.store.store import Store
from tests.history.operations import Recorder
from tests.simulation.checkers import Invariants, Violation
from tests.simulation.clock import NodeClock, World
from tests.simulation.node import SimNode

if TYPE_CHECKING:
    from tests.simulation.swarm import Swarm

T = TypeVar("T")
Answered = Callable[[T | None, KvnodeError | None], None]
CommitListener = Callable[[int, Command, Value], None]


class GaveUp(NotNow):
    """The client waits no longer."""

    took_effect: TookEffect = "unknown"


@dataclass
class Client:
    """Does one thing after the other."""

    name: str
    rng: random.Random
    again: Callable[[], None]
    """Called a while after each answer."""
    think_s: float


class Bench:
    """One seed's clients, and what workloads may know."""

    def __init__(
        self,
        seed: int,
        swarm: Swarm,
        world: World,
        invariants: Invariants,
        trace: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.seed = seed
        self.swarm = swarm
        self.world = world
        self.trace = trace
        self.note = note
        self.nodes: list[SimNode] = []
        self.invariants = invariants
        self.recorder = Recorder()
        self.winding_down = False
        """Clients begin nothing new."""
        self.asked = 0
        """Requests so far, of all workloads."""
        self.clock_steps: list[tuple[float, str]] = []
        """When a clock jumped ahead, and whose."""
        self.on_committed: list[CommitListener] = []
        self.on_membership: list[Callable[[Membership], None]] = []
        self.oracle = Store(MemoryEngineFactory().open_current())
        self._results: list[Value] = [None]
        """By index: what the oracle answered."""
        self._answers: list[tuple[int, Value, str]] = []
        """Given to clients, and not compared yet."""
        self._unanswered: dict[int, tuple[SimNode, int, str, Done[Any]]] = {}
        self._numbers = 0
        self._last_number: int | None = None
        self._failure: Exception | None = None
        self.is_due = False
        """``after_event`` has something to do."""
        invariants.on_committed = self._committed

    # -- what is known ------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """True time, seconds."""
        return self.world.now

    def up(self) -> list[SimNode]:
        """Machines with a running process, maybe a paused one."""
        return [node for node in self.nodes if node.is_up]

    @property
    def clock_rate_max(self) -> float:
        """No clock runs faster than this; jumps come on top (``steps_since``)."""
        return 1.0 + max(0.1, self.swarm.clock_spread)

    @property
    def clock_rate_min(self) -> float:
        """No clock runs slower."""
        return 1.0 - max(0.1, self.swarm.clock_spread)

    def steps_since(self, when: float) -> int:
        """How many times some clock has jumped ahead since then."""
        return sum(1 for at, _ in self.clock_steps if at >= when)

    def _committed(self, entry: Entry) -> None:
        command = decode(entry.data) if entry.kind == EntryKind.COMMAND else None
        if isinstance(command, RestoreFinish) and self.oracle.is_restore_due(command):
            result = self._restored(entry.index, command)
        else:
            result = self.oracle.apply_batch([(entry.index, command)])[0]
        self._results.append(result.value)
        self.invariants.applied("oracle", entry.index, self.oracle.digest)  # type: ignore[arg-type]
        if command is not None:
            for listener in self.on_committed:
                listener(entry.index, command, result.value)
        elif entry.kind == EntryKind.MEMBERSHIP:
            membership = self.invariants.membership
            assert membership is not None, "it was noted before"
            for told in self.on_membership:
                told(membership)

    def _restored(self, index: int, command: RestoreFinish) -> Result:
        fresh = MemoryEngine()
        if rebuild(self.oracle.engine.snapshot(), fresh, index, command):
            self.oracle.apply_batch([(index, RestoreDrop(command.restore_id))])
            return Result(None, index)
        self.oracle.replace(fresh)
        return Result(True, index)

    def after_event(self) -> None:
        """What a client noticed inside of a node's code is raised here, where nothing catches it.

        Every answer to a write is what the log says.
        """
        self.is_due = False
        if self._failure is not None:
            raise self._failure
        for index, value, text in self._answers:
            if index >= len(self._results):
                raise Violation(f"{text} was answered at {index}, which nobody committed")
            if value != self._results[index]:
                raise Violation(
                    f"{text} was answered {value} at {index}, the log says {self._results[index]}"
                )
        self._answers.clear()

    # -- requests -----------------------------------------------------------------------------

    def ask(
        self,
        client: Client,
        node: SimNode,
        text: str,
        send: Callable[[Replica, Done[T]], None],
        answered: Answered[T],
        *,
        timeout_s: float = 5.0,
    ) -> None:
        """Send one request; the client goes on after its answer.

        Args:
            client: Who asks.
            node: Whom.
            text: For the story.
            send: Runs in the node's process, and must see to it that its ``done`` is called once.
            answered: Called once: with a value, or with an error (``GaveUp``: no answer came).
            timeout_s: After so long the client gives up.
        """
        self.asked += 1
        self.trace(f"{client.name} asks {node.name} {text}")
        over = False

        def finish(value: T | None, error: KvnodeError | None) -> None:
            nonlocal over
            if over:
                return
            over = True
            self.trace(f"{client.name} {text} -> {error if error is not None else value!r}")
            try:
                answered(value, error)
            except Exception as failure:  # noqa: BLE001  # raised again outside of the node's code
                self._failure = self._failure or failure
                self.is_due = True
            if not self.winding_down:
                self.world.after(self._pause(client), client.again)

        # From now on, not only from its arrival: what is on its way when the clients stop is waited for.
        self._numbers += 1
        number = self._numbers
        self._unanswered[number] = (node, node.life, text, finish)

        def done(value: T | None, error: KvnodeError | None) -> None:
            if self._unanswered.pop(number, None) is None:
                raise Violation(f"{node.name} answered twice: {text}")
            finish(value, error)

        def arrive() -> None:
            if node.replica is not None:
                send(node.replica, done)

        self.world.after(0.0005, arrive, clock=node.clock)
        self.world.after(timeout_s, finish, None, GaveUp("the client waits no longer"))

    def _pause(self, client: Client) -> float:
        """How long a client thinks; longer when all of them are ahead of the seed's measure of work."""
        pause = client.think_s * client.rng.uniform(0.5, 1.5)
        if self.asked > self.swarm.operations * self.now / self.swarm.seconds:
            pause += client.rng.uniform(0.0, 1.0)
        return pause

    def process_ended(self, node: SimNode) -> None:
        """A process was killed: its clients' connections are reset."""
        for at, life, _, finish in self._unanswered.values():
            if at is node and life == node.life:
                self.world.after(0.01, finish, None, GaveUp("the connection was reset"))

    def write(
        self,
        client: Client,
        node: SimNode,
        command: Command,
        answered: Answered[Result],
        text: str = "",
    ) -> None:
        """Ask for a write."""
        text = text or repr(command)

        def checked(result: Result | None, error: KvnodeError | None) -> None:
            if result is not None and not _was_refused_outside(command, result.value):
                self._answers.append((result.index, result.value, text))
                self.is_due = True
            answered(result, error)

        def send(replica: Replica, done: Done[Result]) -> None:
            replica.write(command, done)

        self.ask(client, node, text, send, checked)

    def read(
        self,
        client: Client,
        node: SimNode,
        text: str,
        look: Callable[[Store], T],
        answered: Answered[T],
        consistency: Consistency = Consistency.DEFAULT,
    ) -> None:
        """Ask for a read; ``look`` runs at the moment at which the store may be read."""

        def send(replica: Replica, done: Done[T]) -> None:
            def may_read(view: ReadView | None, error: KvnodeError | None) -> None:
                done(None if view is None else look(replica.store), error)

            replica.read(consistency, may_read)

        self.ask(client, node, text, send, answered)

    def unanswered(self) -> list[str]:
        """Requests at processes that still live, without an answer, from before the clients stopped."""
        if self._last_number is None:
            self._last_number = self._numbers
        self._unanswered = {
            number: item
            for number, item in self._unanswered.items()
            if item[0].is_up and item[0].life == item[1]
        }
        return [
            f"{node.name}: {text}"
            for number, (node, _, text, _) in self._unanswered.items()
            if number <= self._last_number
        ]

    # -- time ---------------------------------------------------------------------------------

    def in_process(self, node: SimNode, delay: float, work: Callable[[], object]) -> None:
        """Call within a node's process, unless it ends first."""
        clock: NodeClock | None = node.clock
        self.world.after(delay, work, clock=clock)

    def later(self, delay: float, work: Callable[..., object], *args: Any) -> None:
        """Call outside of all processes."""
        self.world.after(delay, partial(work, *args))


def _was_refused_outside(command: Command, value: Value) -> bool:
    """Whether the answer may come from the leader's clock instead of the log: a lock-delay ran."""
    if isinstance(value, TxnOutcome):
        return any(problem.trouble == Trouble.LOCK_DELAY for problem in value.problems)
    return isinstance(command, KvLock) and value is False

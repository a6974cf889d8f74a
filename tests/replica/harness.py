"""Nodes in one process: the real driver on virtual time, with parts that do what a test tells them.

A ``Machine`` keeps what a disk would keep (hard state, log, identity, engine, received snapshot) and can
be started, killed and started again. Its journal and its worker may be held: then completions wait until
they are released, one by one or all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from kvnode.errors import InvariantBroken, KvnodeError, MustStop
from kvnode.ports import Done, Hello, IdentityRecord, LogBase, PeerBoot, Recovered, ScaleSource
from kvnode.raft.types import (
    ZERO,
    Entry,
    EntryKind,
    HardState,
    Index,
    Member,
    Membership,
    NodeId,
    SnapshotMeta,
    Term,
)
from kvnode.replica.facade import Consistency
from kvnode.replica.replica import Replica
from kvnode.replica.settings import ReplicaSettings
from kvnode.store.commands import Command, KvSet
from kvnode.store.memory import MemoryEngineFactory
from kvnode.transport.handshake import PROTOCOL
from kvnode.transport.memory import MemoryNetwork, MemoryTransport
from tests.simulation.clock import NodeClock, World

CLUSTER = "the-cluster"


class Died(BaseException):  # not an error: a process ended, and nobody may catch it
    """A machine's process ended at the moment that the test had chosen."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.name)
        self.machine = machine


class Held:
    """Completions in order; they arrive by themselves in a later turn, unless ``hold`` is set."""

    def __init__(self, clock: NodeClock) -> None:
        self._clock = clock
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.hold = False
        self.delivered = 0

    def later(self, callback: Callable[..., None], *args: Any) -> None:
        self._waiting.append((callback, args))
        if not self.hold:
            self._clock.call_soon(self.release, 1)

    def release(self, count: int | None = None) -> None:
        for _ in range(len(self._waiting) if count is None else min(count, len(self._waiting))):
            callback, args = self._waiting.pop(0)
            self.delivered += 1
            callback(*args)

    def __len__(self) -> int:
        return len(self._waiting)


class FakeJournal:
    """``kvnode.ports.Journal``: what was completed is on the machine's disk."""

    def __init__(self, machine: Machine, clock: NodeClock) -> None:
        self._machine = machine
        self.queue = Held(clock)
        self.failure: KvnodeError | None = None
        self.calls: list[str] = []

    def save(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        self.calls.append("save" + ("+state" if hard_state else "") + ("+log" if entries else ""))

        def write() -> None:
            machine = self._machine
            if hard_state is not None:
                machine.hard_state = hard_state
            if entries:
                keep = entries[0].index - machine.base.last.index - 1
                assert 0 <= keep <= len(machine.entries), "a gap in the log"
                machine.entries[keep:] = entries

        self._put(write, done)

    def compact(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        self.calls.append("compact")

        def write() -> None:
            machine = self._machine
            del machine.entries[: base.last.index - machine.base.last.index]
            machine.base = base

        self._put(write, done)

    def reset(self, base: LogBase, done: Callable[[KvnodeError | None], None]) -> None:
        self.calls.append("reset")

        def write() -> None:
            assert base.last.term <= self._machine.hard_state.term, "a log ahead of its hard state"
            self._machine.base, self._machine.entries = base, []

        self._put(write, done)

    def pending(self) -> int:
        return len(self.queue)

    def _put(self, write: Callable[[], None], done: Callable[[KvnodeError | None], None]) -> None:
        def complete() -> None:
            if self.failure is None:
                write()
                self._machine.durable()
            done(self.failure)

        self.queue.later(complete)


class FakeWorker:
    """``kvnode.ports.Worker``: a job runs when its completion is due."""

    def __init__(self, clock: NodeClock) -> None:
        self.queue = Held(clock)
        self.refusal: KvnodeError | None = None

    def submit(self, job: Callable[[], Any], done: Done[Any]) -> None:
        self.queue.later(self._run, job, done)

    def _run(self, job: Callable[[], Any], done: Done[Any]) -> None:
        if self.refusal is not None:
            done(None, self.refusal)
            return
        try:
            value = job()
        except KvnodeError as error:
            done(None, error)
        except Exception as error:  # noqa: BLE001  # as the real one does
            done(None, InvariantBroken(f"a job broke: {error!r}"))
        else:
            done(value, None)


class FakeIdentity:
    """``kvnode.ports.IdentityStore``."""

    def __init__(self, machine: Machine, clock: NodeClock) -> None:
        self._machine = machine
        self._newest = machine.record
        self.record = machine.record
        self.queue = Held(clock)
        self.aside = False

    def save(
        self, cluster_id: str, pledge: str, done: Callable[[KvnodeError | None], None]
    ) -> None:
        assert self._newest.cluster_id in ("", cluster_id), "a node never changes its cluster"
        record = self._newest = self._newest._replace(cluster_id=cluster_id, pledge=pledge)

        def complete() -> None:
            self._machine.record = record
            self._machine.durable()
            self.record = record
            done(None)

        self.queue.later(complete)

    def remember(
        self, peers: tuple[PeerBoot, ...], done: Callable[[KvnodeError | None], None]
    ) -> None:
        record = self._newest = self._newest._replace(peers=peers)

        def complete() -> None:
            self._machine.record = record
            self.record = record
            done(None)

        self.queue.later(complete)

    def fence(self, text: str, done: Callable[[KvnodeError | None], None]) -> None:
        def complete() -> None:
            self._machine.fenced = text
            done(None)

        self.queue.later(complete)

    def set_aside(self, done: Callable[[KvnodeError | None], None]) -> None:
        def complete() -> None:
            self.aside = True
            done(None)

        self.queue.later(complete)


class FakeSnapshots:
    """``kvnode.ports.SnapshotStore`` and its one writer; ``fail`` names the step that fails, and how."""

    def __init__(self) -> None:
        self.whole: tuple[SnapshotMeta, list[bytes]] | None = None
        self.fail: dict[str, KvnodeError] = {}
        self.log: list[str] = []
        self._meta: SnapshotMeta | None = None
        self._chunks: list[bytes] = []

    def _step(self, name: str) -> None:
        self.log.append(name)
        if name in self.fail:
            raise self.fail[name]

    def begin(self, meta: SnapshotMeta) -> FakeSnapshots:
        self._step("begin")
        self._meta, self._chunks = meta, []
        return self

    def write(self, chunk: bytes) -> None:
        self._step("write")
        self._chunks.append(chunk)

    def commit(self) -> None:
        self._step("commit")
        assert self._meta is not None
        self.whole = (self._meta, self._chunks)

    def abort(self) -> None:
        self._step("abort")
        self._chunks = []

    def complete(self) -> tuple[SnapshotMeta, str] | None:
        return (self.whole[0], "handle") if self.whole else None

    def read(self, handle: str) -> Iterator[bytes]:
        assert self.whole is not None
        return iter(self.whole[1])

    def discard(self) -> None:
        self._step("discard")
        self.whole = None


class Machine:
    """One node: its disk, and the life that runs on it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.address = f"{name}:1"
        self.settings = cluster.settings
        self.seeds: list[str] | None = None
        self.scale: ScaleSource | None = None
        self.incarnations = 0
        self.fenced = ""
        self.dies_in = 0
        """The process dies when so many more writes are durable, before it hears of the last."""
        self.wipe()

    def wipe(self) -> None:
        """A new, empty volume."""
        self.incarnations += 1
        node_id = self.name if self.incarnations == 1 else f"{self.name}-{self.incarnations}"
        self.record = IdentityRecord(NodeId(node_id), self.name, "", "", 0)
        self.hard_state = HardState(Term(0), None)
        self.base = LogBase(ZERO, Membership())
        self.entries: list[Entry] = []
        self.engines = MemoryEngineFactory()
        self.snapshots = FakeSnapshots()

    def belongs(self, members: tuple[Member, ...], learners: tuple[Member, ...] = ()) -> None:
        """Be a founding member, as after a bootstrap."""
        membership = Membership(
            voters=frozenset(m.node_id for m in members),
            learners=frozenset(m.node_id for m in learners),
            members=tuple(sorted((*members, *learners))),
        )
        self.record = self.record._replace(cluster_id=CLUSTER)
        self.hard_state = HardState(Term(1), None)
        self.entries = [Entry(Index(1), Term(1), EntryKind.MEMBERSHIP, membership.encode())]

    def durable(self) -> None:
        """A write of the identity or of the journal has reached the disk."""
        self.dies_in -= 1
        if self.dies_in == 0:
            raise Died(self)

    def member(self) -> Member:
        return Member(self.record.node_id, self.name, self.address)

    def start(self) -> Replica:
        clock = self.clock = NodeClock(self.cluster.world, self.name)
        runs = (self.cluster.runs(), *self.record.runs)
        self.record = self.record._replace(boot=self.record.boot + 1, runs=runs[:16])
        self.journal = FakeJournal(self, clock)
        self.worker = FakeWorker(clock)
        self.identity = FakeIdentity(self, clock)
        self.fatal: MustStop | None = None
        self.traces: list[tuple[str, dict[str, Any]]] = []
        record = self.record
        hello = Hello(
            PROTOCOL, record.cluster_id, record.node_id, record.name, record.boot, self.address, "",
            self.settings.expect, record.runs, self.hard_state.term,
            self.base.last.index + len(self.entries),
        )  # fmt: skip
        self.transport = MemoryTransport(self.cluster.network, hello)
        self.replica = Replica(
            settings=self.settings,
            identity=self.identity,
            recovered=Recovered(self.hard_state, self.base, list(self.entries)),
            journal=self.journal,
            engines=self.engines,
            snapshots=self.snapshots,
            worker=self.worker,
            transport=self.transport,
            scheduler=clock,
            rng=random.Random(self.name),
            discover=self._discover,
            scale=self.scale,
            on_fatal=self._on_fatal,
            trace=lambda event, fields: self.traces.append((event, fields)),
        )
        self.transport.start()
        self.replica.start()
        return self.replica

    def kill(self) -> None:
        """The process is gone, and what the journal had not completed with it."""
        self.replica.stopped = True
        self.clock.kill()
        self.transport.close()

    def _discover(self, done: Done[list[str]]) -> None:
        seeds = self.cluster.addresses() if self.seeds is None else self.seeds
        self.clock.call_soon(done, list(seeds), None)

    def _on_fatal(self, error: MustStop) -> None:
        assert self.fatal is None, "said once"
        self.fatal = error

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.traces if event == name]

    # -- requests -------------------------------------------------------------------------------

    def write(self, key: bytes, value: bytes = b"v") -> Answers:
        return self.ask(KvSet(key, value))

    def ask(self, command: Command) -> Answers:
        answers = Answers()
        self.replica.write(command, answers)
        return answers

    def read(self) -> Answers:
        answers = Answers()
        self.replica.read(Consistency.CONSISTENT, answers)
        return answers


class Answers:
    """A completion that remembers, and complains about a second call."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: KvnodeError | None = None
        self.calls = 0

    def __call__(self, value: Any, error: KvnodeError | None) -> None:
        self.calls += 1
        assert self.calls == 1, "answered twice"
        assert value is None or error is None
        self.value, self.error = value, error

    @property
    def effect(self) -> str:
        assert self.error is not None, f"answered {self.value}"
        return str(getattr(self.error, "took_effect", "-"))


class Cluster:
    """Machines ``n0``, ``n1`` … on one network."""

    def __init__(self, count: int, **settings: Any) -> None:
        self.world = World()
        self.network = MemoryNetwork(NodeClock(self.world, "network"), 0.001)
        self.settings = replace(ReplicaSettings(expect=count), **settings)
        self._runs = 0
        self.machines = [Machine(self, f"n{number}") for number in range(count)]

    def runs(self) -> int:
        """A number for a process, never given before."""
        self._runs += 1
        return self._runs

    def addresses(self) -> list[str]:
        return [machine.address for machine in self.machines]

    def add(self, name: str) -> Machine:
        self.machines.append(Machine(self, name))
        return self.machines[-1]

    def found(self) -> Cluster:
        """Skip the bootstrap: everybody is a founding member, and runs."""
        members = tuple(machine.member() for machine in self.machines)
        for machine in self.machines:
            machine.belongs(members)
        for machine in self.machines:
            machine.start()
        return self

    def led_by(self, number: int = 0) -> Machine:
        """Let a machine win an election, and everybody know."""
        machine = self.machines[number]
        self.run(0.01)
        machine.replica.raft.campaign()
        machine.replica.wake()
        self.until(
            lambda: (
                all(
                    m.replica.raft.leader_id == machine.record.node_id
                    for m in self.machines
                    if not m.replica.stopped
                )
                and machine.replica.raft.has_term_commit
            )
        )
        return machine

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds, 200_000)

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        end = self.world.now + seconds
        while not condition():
            assert self.world.now < end, "it did not happen in time"
            assert self.world.step(), "nothing is going to happen any more"

    def leader(self) -> Machine | None:
        leading = [m for m in self.machines if m.replica.is_leader and not m.replica.stopped]
        return max(leading, key=lambda m: m.replica.raft.term) if leading else None

    def isolate(self, machine: Machine) -> None:
        for other in self.machines:
            if other is not machine:
                self.network.cut(machine.record.node_id, other.record.node_id)

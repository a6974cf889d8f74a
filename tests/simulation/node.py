"""One simulated machine: a disk that stays, and process lives that come and go on it.

A life is the real driver over the real log, identity and snapshot files, the memory engine, and the
simulated clock, threads and network. Whatever a life tells the outside, the invariants see.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kvnode.disk.identity import open_identity, write_identity
from kvnode.disk.identity_store import IdentityFile
from kvnode.disk.journal import Compact, Operation, Reset, Save, open_journal
from kvnode.disk.quarantine import check_mark
from kvnode.disk.snapshots import FileSnapshotStore
from kvnode.errors import CorruptLog, DiskFailed, InvariantBroken, KvnodeError, MustStop, Removed
from kvnode.ports import Done, Hello, LogBase, Recovered, Scale
from kvnode.raft.messages import Message
from kvnode.raft.types import ZERO, HardState, Membership, NodeId, Term
from kvnode.replica.replica import Replica
from kvnode.replica.settings import ReplicaSettings
from kvnode.store.memory import MemoryEngine, MemoryEngineFactory
from kvnode.transport.handshake import PROTOCOL
from tests.simulation.checkers import Invariants, NoInvariants, Violation
from tests.simulation.clock import NodeClock, World, derive
from tests.simulation.disk import Faults, SimCrash, SimDisk
from tests.simulation.network import Network, SimTransport
from tests.simulation.threads import SimJournal, SimWorker

DATA = "/data"
CAPACITY = 4 << 20
"""Bytes of a volume: so small that log segments are of the smallest size."""


class _Engine(MemoryEngine):
    """The memory engine over a disk that can fail, and die, under a flush."""

    __slots__ = ("_sim_disk",)

    def __init__(self, engine_disk: Any, sim_disk: SimDisk) -> None:
        super().__init__(engine_disk)
        self._sim_disk = sim_disk

    def flush(self) -> None:
        self._sim_disk.operate("state", write=False, sync=True)
        super().flush()


class SimEngines(MemoryEngineFactory):
    """``EngineFactory`` whose flushes and switches are operations of the simulated disk."""

    __slots__ = ("_sim_disk",)

    def __init__(self, sim_disk: SimDisk) -> None:
        super().__init__()
        self._sim_disk = sim_disk

    def open_current(self) -> MemoryEngine:
        super().open_current()
        return _Engine(self._current, self._sim_disk)

    def create_next(self) -> MemoryEngine:
        self._sim_disk.operate("state", write=True)
        super().create_next()
        return _Engine(self._next, self._sim_disk)

    def switch_to_next(self) -> None:
        self._sim_disk.operate("state", write=False, sync=True)
        super().switch_to_next()

    def copy_disk(self) -> Any:
        """What the volume holds now, for clones and roll-backs."""
        return copy.deepcopy(self._current)

    def restore(self, disk: Any) -> None:
        """Become that volume."""
        self._current = copy.deepcopy(disk)
        self._next = None


@dataclass
class Surroundings:
    """What all nodes of a world share."""

    seed: int
    world: World
    network: Network
    invariants: Invariants
    settings: ReplicaSettings
    trace: Callable[[str], None]
    discover: Callable[[SimNode, Done[list[str]]], None]
    scale: Callable[[SimNode, Done[Scale]], None] | None
    """How large the machines' StatefulSet is to be; None: they belong to none."""
    disk_latency: Callable[[random.Random], float]
    new_node_id: Callable[[str], str]
    exited: Callable[[SimNode], None]
    """A process ended by itself."""
    note: Callable[[str], None]
    """Counts what happened."""
    ended: Callable[[SimNode], None]
    """A process was killed, and its machine lives on: its clients notice."""
    started: Callable[[SimNode], None]
    applied: Callable[[SimNode], None]
    event: Callable[[SimNode, str, dict[str, Any]], None]
    """The workloads' hooks of the same names."""


class SimNode:
    """One machine, known by its name."""

    def __init__(self, around: Surroundings, ordinal: int) -> None:
        self.around = around
        self.name = f"kv-{ordinal}"
        self.rng = derive(around.seed, f"machine/{self.name}")
        self.disk = SimDisk(derive(around.seed, f"disk/{self.name}"))
        self.engines = SimEngines(self.disk)
        self._engines_of: NodeId | None = None
        self.life = 0
        self.rate = 1.0
        self.replica: Replica | None = None
        self.clock: NodeClock | None = None
        self.transport: SimTransport | None = None
        self.journal: SimJournal | None = None
        self.worker: SimWorker | None = None
        self.address_generation = 0
        self.ordinal = ordinal
        self.settings = around.settings
        if ordinal >= around.settings.expect:
            # Enough later machines, all empty, could otherwise found a second cluster while nobody of
            # the first is up: whoever deploys them gives only the first ones the licence.
            self.settings = replace(around.settings, expect=0)
        self.fatal: MustStop | None = None
        """Why the present or last life stopped by itself."""
        self.expects_fatal = False
        """A fault was injected for which a node must stop."""
        self.decayed = False
        """A bit flipped since the last start that read everything."""
        self.outdated = False
        """The volume is an old copy of itself, or another machine has a copy of it."""
        self.retired = False
        """Removed by an operator, and not to be started again."""
        self.applied = 0
        """Highest index whose digest was checked in this life."""
        self._observed: tuple[Any, ...] | None = None
        """What the invariants saw last of this life's core: they look again when it has changed."""
        self.blank()

    # -- the volume ---------------------------------------------------------------------------

    def repair(self) -> bool:
        """End the disk's faults; whether it had any."""
        sound = Faults(capacity=CAPACITY)
        had, self.disk.faults = self.disk.faults != sound, sound
        return had

    def roll_back(self, files: dict[str, bytes], engine: Any) -> None:
        """Bring an old copy of the volume back."""
        self.repair()
        self.outdated = True
        self.disk.restore(files)
        self.engines = SimEngines(self.disk)
        self.engines.restore(engine)
        assert self._engines_of is not None
        self.around.invariants.forget_disk(self._engines_of)

    def twin(self, files: dict[str, bytes], engine: Any) -> SimNode:
        """Another machine of the same name, with a copy of this one's volume from some time ago."""

        def nobody(*_: Any) -> None:
            """No workload looks at it."""

        around = replace(
            self.around,
            invariants=NoInvariants(),
            started=nobody,
            applied=nobody,
            event=nobody,
            ended=nobody,
            exited=nobody,
        )
        twin = SimNode(around, self.ordinal)
        twin.address_generation = 1000 + self.life
        twin.life = 1000 + self.life
        twin._engines_of = self._engines_of
        twin.roll_back(files, engine)
        return twin

    def blank(self) -> None:
        """A new, empty volume."""
        if self.settings.expect == 1 and self.around.invariants.membership is not None:
            # It needs nobody's pledge, so where discovery shows it nobody it would found a second cluster:
            # whoever empties the volume of a lone founder takes its licence away (decision 0006).
            self.settings = replace(self.settings, expect=0)
        self.repair()
        self.decayed = self.outdated = False
        self.disk.wipe()
        self.disk.mkdir(DATA)
        self.disk.sync_dir("/")
        self.engines = SimEngines(self.disk)

    @property
    def address(self) -> str:
        """Where this machine listens in its present life."""
        return f"{self.name}.g{self.address_generation}:8300"

    @property
    def is_up(self) -> bool:
        """Whether a process runs, maybe paused."""
        return self.replica is not None

    @property
    def node_id(self) -> NodeId | None:
        """The present incarnation."""
        return self.replica.raft.id if self.replica is not None else None

    # -- lives --------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start a process. False: it died while starting, and may be started again."""
        assert self.replica is None, "started twice"
        around = self.around
        self.life += 1
        self.fatal = None
        self.applied = 0
        self._observed = None
        clock = NodeClock(around.world, self.name, self.rate, start=self.rng.uniform(0, 1e6))
        self.clock = clock
        clock.after_event = self.check
        if self.rng.random() < 0.05:
            self.disk.crash_after = self.rng.randrange(40)
        try:
            self._open(clock)
        except SimCrash:
            around.trace(f"{self.name} died while starting")
            self._end_of_life(power_lost=self.rng.random() < 0.5)
            return False
        except MustStop as error:
            around.trace(f"{self.name} refused to start: {error}")
            self._end_of_life(power_lost=False)
            self.on_fatal(error)
            return False
        self.disk.crash_after = None
        self.decayed = False
        return True

    def _open(self, clock: NodeClock) -> None:
        around, disk = self.around, self.disk
        rng = derive(around.seed, f"life/{self.name}/{self.life}")
        latency = derive(around.seed, f"latency/{self.name}/{self.life}")
        check_mark(disk, DATA)
        opened = open_identity(
            disk,
            DATA,
            self.name,
            lambda: around.new_node_id(self.name),
            lambda: 1 + rng.getrandbits(62),
        )
        identity = opened.identity
        if self._engines_of != identity.record.node_id:
            # A new incarnation's state directory is empty; the old one was set aside with the rest.
            self.engines = SimEngines(disk)
            self._engines_of = identity.record.node_id
        core, recovered = open_journal(disk, f"{DATA}/raft", fresh=opened.fresh)
        if opened.fresh:
            identity = identity._replace(log_made=True)
            write_identity(disk, DATA, identity)
        node_id = identity.record.node_id
        around.invariants.recovered(
            node_id, recovered.hard_state, recovered.base.last, recovered.entries
        )
        self.worker = SimWorker(clock, disk, rng, lambda: around.disk_latency(latency))
        self.journal = SimJournal(
            core,
            clock,
            disk,
            rng,
            lambda: around.disk_latency(latency),
            lambda operation: self._writing(node_id, operation),
            lambda operation: self._durable(node_id, operation),
        )
        hello = Hello(
            PROTOCOL,
            identity.record.cluster_id,
            node_id,
            self.name,
            identity.record.boot,
            self.address,
            "",
            self.settings.expect,
            identity.record.runs,
            recovered.hard_state.term,
            recovered.base.last.index + len(recovered.entries),
        )
        self.transport = SimTransport(around.network, self.name, hello, clock, self._sent)
        try:
            replica = Replica(
                settings=self.settings,
                identity=IdentityFile(disk, DATA, identity, self.worker),
                recovered=recovered,
                journal=self.journal,
                engines=self.engines,
                snapshots=FileSnapshotStore(disk, f"{DATA}/snapshots"),
                worker=self.worker,
                transport=self.transport,
                scheduler=clock,
                rng=rng,
                discover=lambda done: around.discover(self, done),
                scale=None if around.scale is None else partial(around.scale, self),
                on_fatal=self.on_fatal,
                trace=self._trace,
            )
        except BaseException:
            self.transport.stop()
            raise
        log = replica.raft.log
        around.invariants.began(node_id, log.base, log.last_index)
        around.trace(
            f"{self.name} life {self.life} is {node_id} boot {identity.record.boot} "
            f"{replica.raft.describe()}"
        )
        self.replica = replica
        around.started(self)
        replica.start()

    def _writing(self, node_id: NodeId, operation: Operation) -> None:
        if isinstance(operation, Save):
            self.around.invariants.disk_writing(node_id, operation.entries)

    def _durable(self, node_id: NodeId, operation: Operation) -> None:
        invariants = self.around.invariants
        match operation:
            case Save(hard_state, entries):
                if hard_state is not None:
                    invariants.disk_hard_state(node_id, hard_state)
                invariants.disk_entries(node_id, tuple(entries))
            case Compact(base):
                invariants.disk_base(node_id, base.last, reset=False)
            case Reset(base):
                invariants.disk_base(node_id, base.last, reset=True)

    def _sent(self, message: Message) -> None:
        self.around.trace(f"{self.name} sends {message!r}")
        self.around.invariants.sending(message)

    def _trace(self, event: str, fields: dict[str, Any]) -> None:
        self.around.trace(f"{self.name} {event} {fields}")
        self.around.note(f"event {event}")
        self.around.event(self, event, fields)
        if event == "completion_failed":
            raise Violation(f"{self.name}: a completion raised {fields}")

    def on_fatal(self, error: MustStop) -> None:
        """The node says that it must stop: the process ends in a turn of its own."""
        self.around.trace(f"{self.name} must stop: {type(error).__name__}: {error}")
        self.fatal = error
        expected = (
            isinstance(error, Removed)
            or (isinstance(error, DiskFailed) and self.expects_fatal)
            or (isinstance(error, CorruptLog) and (self.decayed or self.outdated))
        )
        if isinstance(error, InvariantBroken) or not expected:
            raise Violation(f"{self.name} stopped: {type(error).__name__}: {error}") from error
        if self.replica is not None:
            self.around.world.after(0.0, self._exit)

    def _exit(self) -> None:
        self.kill(False)
        self.around.exited(self)

    def kill(self, power_lost: bool) -> None:
        """The process ends at once, in the middle of whatever it does."""
        if self.replica is None:
            return
        self.around.trace(f"{self.name} is killed, power lost: {power_lost}")
        self.around.note(f"ended as {self.replica.raft.role.value}")
        self.replica.stopped = True  # nothing of a dead process may run, not even by mistake
        assert self.journal is not None
        assert self.worker is not None
        self.journal.die()
        self.worker.die()
        self._end_of_life(power_lost=power_lost)

    def _end_of_life(self, *, power_lost: bool) -> None:
        if self.clock is not None:
            self.clock.kill()
        if self.transport is not None and not self.transport.stopped:
            self.transport.stop()
        self.replica = self.journal = self.worker = None
        self.disk.crash(lost=power_lost)
        if not power_lost:
            self.around.ended(self)
        else:
            self.engines.crash(self.rng.randint(0, self.engines.unsynced_batches()))

    def check(self) -> None:
        """After an event of this node: everything that must hold."""
        replica = self.replica
        if replica is None:
            return
        invariants = self.around.invariants
        raft = replica.raft
        log = raft.log
        now = (raft.term, raft.role, log.commit_index, log.applied_index)
        if now != self._observed:
            invariants.observe(raft.id, raft)
            self._observed = now
        applied = replica.store.applied_index
        if applied != self.applied:
            if applied < self.applied:
                raise Violation(f"{self.name}: applied fell from {self.applied} to {applied}")
            for index in range(self.applied + 1, applied + 1):
                digest = replica.store.digest_at(index)
                if digest is not None:
                    invariants.applied(replica.raft.id, index, digest)
            self.applied = applied
            self.around.applied(self)
        if replica.desk.count < 0 or replica.desk.bytes < 0:
            raise Violation(f"{self.name}: the desk counts {replica.desk.count}")


def empty_start() -> Recovered:
    """What a new disk gives back."""
    return Recovered(HardState(Term(0), None), LogBase(ZERO, Membership()), [])


def is_retryable(error: KvnodeError) -> bool:
    """Whether an error says that nothing happened."""
    return getattr(error, "took_effect", "no") == "no"

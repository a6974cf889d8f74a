"""A whole cluster for one seed: swarm settings, clients, faults, and the two phases.

*Safety*: faults come and go while the workloads' clients work. *Liveness*: faults end (for all machines,
or only for a majority of the voters), and then within a bound there is a leader, every request is
answered, all members hold the same state, every machine that runs is a member, and no workload misses
anything. At the end each workload looks at what is left.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from kvnode.errors import ApiServerFailed, CorruptLog, KvnodeError, PeerUnreachable, Removed
from kvnode.ports import Done, Scale
from kvnode.raft.rawnode import RawNode
from kvnode.raft.types import NodeId, Role
from kvnode.replica.settings import ReplicaSettings
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Invariants, Violation
from tests.simulation.clock import NodeClock, World, derive
from tests.simulation.disk import SimCrash
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import Network
from tests.simulation.node import SimNode, Surroundings
from tests.simulation.swarm import Swarm, draw
from tests.simulation.workloads.catalog import CATALOG


@dataclass
class Outcome:
    """What a run amounted to."""

    seed: int
    trace_hash: str
    events: int
    frames: int
    operations: int
    committed: int
    leaders: int
    seconds: float
    notes: dict[str, int] = field(default_factory=dict)


class Simulation:
    """One seed."""

    def __init__(
        self, seed: int, *, swarm: Swarm | None = None, trace: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.swarm = swarm or draw(seed)
        self.world = World()
        self.world.after_event = self._after_event
        self.invariants = Invariants()
        self.network = Network(self.world, derive(seed, "network"))
        self.network.weather = replace(self.swarm.weather)
        self.notes: dict[str, int] = {}
        self.faults_on = True
        self.rng = derive(seed, "cluster")
        self.nemesis = Nemesis(self)
        self._hash = hashlib.blake2b(digest_size=12)
        self._tell = trace
        self._ids = 0
        self.bench = Bench(seed, self.swarm, self.world, self.invariants, self.trace, self.note)
        self.workloads = [
            kind(self.bench) for kind in CATALOG if self.swarm.workloads.get(kind.name)
        ]
        self._weights = [self.swarm.workloads[workload.name] for workload in self.workloads]
        for workload in self.workloads:
            self.bench.on_committed.append(workload.committed)
            self.bench.on_membership.append(workload.members_changed)
        self.around = Surroundings(
            seed=seed,
            world=self.world,
            network=self.network,
            invariants=self.invariants,
            settings=_settings(self.swarm),
            trace=self.trace,
            discover=self._discover,
            scale=self._scale if "scale" in self.swarm.faults else None,
            disk_latency=self._disk_latency,
            new_node_id=self._new_node_id,
            exited=self._exited,
            note=self.note,
            ended=self.bench.process_ended,
            started=self._each("started"),
            applied=self._each("applied"),
            event=self._each("event"),
        )
        self.nodes = [SimNode(self.around, ordinal) for ordinal in range(self.swarm.machines)]
        self.bench.nodes = self.nodes
        self.invariants.core_of = self._core_of

    # -- the surroundings ---------------------------------------------------------------------

    def _each(self, hook: str) -> Callable[..., None]:
        """Call a hook of all workloads."""
        hooks = [getattr(workload, hook) for workload in self.workloads]

        def call(*args: Any) -> None:
            for one in hooks:
                one(*args)

        return call

    def trace(self, line: str) -> None:
        """One line of the story; the same seed tells the same story, byte for byte."""
        line = f"{self.world.now:.6f} {line}"
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        if self._tell is not None:
            self._tell(line)

    def note(self, what: str) -> None:
        """Count something that happened."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def _new_node_id(self, name: str) -> str:
        self._ids += 1
        return f"{name}.{self._ids}"

    def _core_of(self, node_id: NodeId) -> RawNode | None:
        for node in self.nodes:
            if node.replica is not None and node.replica.raft.id == node_id:
                return node.replica.raft
        return None

    def _disk_latency(self, rng: random.Random) -> float:
        swarm = self.swarm
        took = swarm.disk_latency_s * rng.uniform(0.5, 2.0)
        if self.faults_on and swarm.disk_stall and rng.random() < swarm.disk_stall:
            took *= 100
        return min(took, 2.0)

    def _discover(self, node: SimNode, done: Done[list[str]]) -> None:
        rng = node.rng
        assert node.clock is not None
        known = [other.address for other in self.nodes if other.life and not other.retired]
        error: KvnodeError | None = None
        match self.nemesis.dns:
            case "empty":
                known = []
            case "partial":
                known = known[: len(known) // 2]
            case "stale":
                known = [
                    f"{other.name}.g{max(0, other.address_generation - 1)}:8300"
                    for other in self.nodes
                ]
            case "failing":
                error = PeerUnreachable("SERVFAIL")
            case _:
                pass
        if self.faults_on and self.swarm.dns and rng.random() < self.swarm.dns:
            known = rng.sample(known, rng.randint(0, len(known)))
            if rng.random() < 0.3:
                error = PeerUnreachable("SERVFAIL")
        node.clock.call_later(rng.uniform(0.001, 0.05), done, None if error else known, error)

    def _scale(self, node: SimNode, done: Done[Scale]) -> None:
        """The API server: slow, at times ill, and for the rest it tells the truth of this moment."""
        assert node.clock is not None
        clock, rng = node.clock, node.rng

        def answer() -> None:
            if self.faults_on and rng.random() < 0.15:
                done(None, ApiServerFailed("it is ill"))
            else:
                done(Scale("kv", self.nemesis.replicas, 0), None)

        clock.call_later(rng.choice((0.001, 0.01, 0.3, 3.0)) * rng.random(), answer)

    def _after_event(self, clock: NodeClock | None) -> None:
        if clock is not None and clock.after_event is not None:
            clock.after_event()
        if self.bench.is_due:
            self.bench.after_event()

    # -- the run ------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Both phases.

        Raises:
            Violation: A promise was broken; the seed says how.
        """
        swarm = self.swarm
        self.trace(f"seed {self.seed} {swarm}")
        for node in self.nodes[: swarm.size]:
            node.rate = 1.0 + swarm.clock_spread * self.rng.uniform(-1, 1)
            self.world.after(self.rng.uniform(0, 0.5), self.start, node)
        for workload in self.workloads:
            workload.begin()
        for number in range(swarm.clients):
            self._add_client(number)
        if swarm.faults:
            self.world.after(self.rng.uniform(0.5, 3.0), self.nemesis.strike)
        self.world.run_until(swarm.seconds)
        self._heal()
        self._await_progress()
        self._finish()
        return Outcome(
            seed=self.seed,
            trace_hash=self._hash.hexdigest(),
            events=self.world.events,
            frames=self.network.frames,
            operations=self.bench.asked,
            committed=self.invariants.frontier,
            leaders=len(self.invariants.leaders),
            seconds=self.world.now,
            notes=dict(sorted(self.notes.items())),
        )

    def start(self, node: SimNode) -> None:
        """Start a machine's process, and again when it dies while it starts."""
        if node.is_up or node.retired:
            return
        if not node.start():
            if isinstance(node.fatal, CorruptLog):
                # The operator empties the volume: a new incarnation joins (RC-49).
                self.note("corrupt")
                node.blank()
            self.world.after(self.rng.uniform(0.05, 0.5), self.start, node)

    def _exited(self, node: SimNode) -> None:
        """A process ended by itself. A removed one stays down, or comes back on its stale volume."""
        if isinstance(node.fatal, Removed):
            self.note("removed")
            if self.faults_on and self.rng.random() < 0.5:
                node.retired = True
                return
        if not node.expects_fatal:
            self.world.after(self.rng.uniform(0.1, 1.0), self.start, node)

    def up(self) -> list[SimNode]:
        """Machines with a running process, maybe a paused one."""
        return [node for node in self.nodes if node.is_up]

    # -- clients ------------------------------------------------------------------------------

    def _add_client(self, number: int) -> None:
        rng = derive(self.seed, f"client/{number}")
        client = Client(f"c{number}", rng, lambda: None, self.swarm.think_s)
        client.again = partial(self._client_turn, client)
        self.world.after(0.1, client.again)

    def _client_turn(self, client: Client) -> None:
        if self.bench.winding_down:
            return
        if not self.up():
            self.world.after(0.2, client.again)
            return
        client.rng.choices(self.workloads, self._weights)[0].turn(client)

    # -- the second phase ---------------------------------------------------------------------

    def leader(self) -> SimNode | None:
        """Who leads in the highest term."""
        leaders = [
            n for n in self.up() if n.replica is not None and n.replica.raft.role is Role.LEADER
        ]
        return max(leaders, key=lambda n: n.replica.raft.term if n.replica else 0, default=None)

    def _heal(self) -> None:
        """No more faults. Perhaps some machines stay dead, but never a majority of the voters."""
        self.faults_on = False
        self.trace("healing")
        self.network.cuts.clear()
        self.network.clogs.clear()
        self.nemesis.dns = ""
        self.nemesis.calm()
        self.nemesis.scale_back()
        self.network.healed()
        self.network.hurry()
        self.swarm = replace(self.swarm, disk_latency_s=0.0005, disk_stall=0.0)
        for twin in self.nemesis.twins:
            twin.kill(False)
        dead = self._dead_for_good()
        for node in self.nodes:
            if node.clock is not None and node.clock.paused:
                node.clock.resume()
            if node.repair() or node.fatal is not None:
                node.kill(False)
            node.expects_fatal = False
            if node in dead:
                self.trace(f"{node.name} stays dead")
                node.kill(True)
                node.retired = True
            elif node.life and not node.retired:
                self.world.after(self.rng.random(), self.start, node)

    def _dead_for_good(self) -> list[SimNode]:
        membership = self.invariants.membership
        if self.swarm.heal_all or membership is None:
            return []
        voters = [n for n in self.nodes if n.node_id in membership.voters]
        spare = (len(membership.voters) - 1) // 2 - (len(membership.voters) - len(voters))
        leader = self.leader()
        if spare <= 0 or self.invariants.membership != (
            leader.replica.raft.membership if leader is not None and leader.replica else None
        ):
            return []
        return self.rng.sample(voters, self.rng.randint(0, spare))

    def _await_progress(self) -> None:
        swarm = self.swarm
        election_s = 2 * swarm.election_ticks * swarm.tick_s / (1 - swarm.clock_spread)
        # Machines come back within a second, and their peers find them within a back-off of two.
        limit = self.world.now + 4.0 + 10 * election_s
        while self.leader() is None:
            self._go_on(limit, "a leader")
        # Joining goes through discovery, a learner's catching up and one change at a time.
        limit = self.world.now + 60.0
        while (missing := self._missing()) is not None:
            self._go_on(limit, missing)

    def _go_on(self, limit: float, goal: str) -> None:
        if self.world.now > limit:
            states = "\n".join(
                f"  {n.name} up {n.is_up} "
                + (
                    f"{n.replica.state} ({n.replica.reason or n.replica.formation.reason}) "
                    f"{n.replica.raft.describe()}"
                    if n.replica is not None
                    else ""
                )
                for n in self.nodes
            )
            raise Violation(f"no progress after the faults ended: {goal}\n{states}")
        self.world.run_until(self.world.now + 0.1)

    def _missing(self) -> str | None:
        """What the healed cluster still lacks; None: nothing."""
        leader = self.leader()
        if leader is None or leader.replica is None:
            return "a leader"
        raft = leader.replica.raft
        running = [n for n in self.nodes if n.is_up]
        for node in self.nodes:
            if node.life and not node.retired and not node.is_up:
                return f"{node.name} to run"
        by_id: dict[NodeId, SimNode] = {n.node_id: n for n in running if n.node_id is not None}
        for node in running:
            if node.node_id not in raft.membership.voters:
                return f"{node.name} ({node.node_id}) to become a voter"
        for member in raft.membership.nodes():
            holder = by_id.get(member)
            if holder is None or holder.replica is None:
                continue
            if holder.replica.store.applied_index < raft.log.commit_index - 3:
                return f"{holder.name} to catch up"
        return None

    def _finish(self) -> None:
        """Stop the clients, wait for what is under way, and compare everything."""
        self.bench.winding_down = True
        limit = self.world.now + 20.0
        while unanswered := self.bench.unanswered():
            self._go_on(limit, f"answers to {unanswered[:3]}")
        limit = self.world.now + 40.0
        while (missing := self._unsettled()) is not None:
            self._go_on(limit, missing)
        replica = self.up()[0].replica
        assert replica is not None
        for workload in self.workloads:
            workload.finish(replica.store)

    def _unsettled(self) -> str | None:
        """What is still to come. All at once: a write that nobody waited for may be committed late."""
        for workload in self.workloads:
            if (missing := workload.missing()) is not None:
                return f"{workload.name}: {missing}"
        return None if self._is_equal() else "equal states"

    def _is_equal(self) -> bool:
        leader = self.leader()
        if leader is None or leader.replica is None:
            return False
        states = {
            (n.replica.store.applied_index, n.replica.store.digest)
            for n in self.up()
            if n.replica is not None
        }
        return len(states) == 1 and not leader.replica.desk.count


def _settings(swarm: Swarm) -> ReplicaSettings:
    return ReplicaSettings(
        tick_s=swarm.tick_s,
        election_ticks=swarm.election_ticks,
        heartbeat_ticks=swarm.heartbeat_ticks,
        expect=swarm.size,
        leader_wait_s=2.0,
        request_timeout_s=3.0,
        log_entries_max=swarm.log_entries_max,
        history_entries_max=swarm.history_entries_max,
        promote_stable_s=0.2,
        promote_lag_entries=20,
        snapshot_hold_s=2.0,
        grave_age_s=2.0,
        grave_interval_s=0.5,
        discovery_interval_s=0.3,
        stop_wait_s=1.0,
        removal_timeout_s=6.0,
        scaled_away_grace_s=2.0,
        scale_interval_s=0.5,
        scale_check_s=5.0,
        node_failure_s=4.0,
    )


def run_seed(
    seed: int, trace: Callable[[str], None] | None = None, swarm: Swarm | None = None
) -> Outcome:
    """Run one seed; a failure carries the seed and the command that repeats it."""
    simulation = Simulation(seed, swarm=swarm, trace=trace)
    try:
        return simulation.run()
    except SimCrash as crash:
        raise Violation(f"seed {seed}: a crash escaped its job") from crash
    except BaseException as error:
        error.add_note(
            f"seed {seed} at {simulation.world.now:.6f}s, {simulation.swarm}\n"
            f"repeat it: python -m tests.simulation.run --seed {seed} --trace"
        )
        raise

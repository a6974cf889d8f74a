"""A whole cluster for one seed: swarm settings, clients, faults, and the two phases.

*Safety*: faults come and go while clients work. *Liveness*: faults end (for all machines, or only for
a majority of the voters), and then within a bound there is a leader, every request is answered, all
members hold the same state, and every machine that runs is a member. At the end the clients' history
is checked for linearizability.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from kvnode.errors import CorruptLog, KvnodeError, PeerUnreachable, Removed
from kvnode.ports import Done
from kvnode.raft.types import Membership, NodeId, Role
from kvnode.replica.facade import Consistency, ReadView
from kvnode.replica.settings import ReplicaSettings
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, Result
from tests.history.linearizability import Verdict, check
from tests.history.operations import Kind, Pending, Recorder
from tests.simulation.checkers import Invariants, Violation
from tests.simulation.clock import NodeClock, World, derive
from tests.simulation.disk import SimCrash
from tests.simulation.network import Network, Weather
from tests.simulation.node import SimNode, Surroundings, is_retryable
from tests.simulation.swarm import Swarm, draw


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
        self.rng = derive(seed, "nemesis")
        self.invariants = Invariants()
        self.network = Network(self.world, derive(seed, "network"))
        self.network.weather = replace(self.swarm.weather)
        self.recorder = Recorder()
        self.notes: dict[str, int] = {}
        self._hash = hashlib.blake2b(digest_size=12)
        self._tell = trace
        self._ids = 0
        self._values = 0
        self._slow: dict[str, float] = {}
        self._dns = ""
        """How discovery is broken for everybody at the moment."""
        self._reads: list[tuple[float, float, int]] = []
        self._unanswered: dict[int, str] = {}
        self._requests = 0
        self._faults_on = True
        self.winding_down = False
        """Clients begin nothing new."""
        self._removing: set[str] = set()
        swarm = self.swarm
        settings = ReplicaSettings(
            tick_s=swarm.tick_s,
            election_ticks=swarm.election_ticks,
            heartbeat_ticks=swarm.heartbeat_ticks,
            expect=swarm.size,
            leader_wait_s=2.0,
            request_timeout_s=3.0,
            log_entries_max=swarm.log_entries_max,
            promote_stable_s=0.2,
            promote_lag_entries=20,
            snapshot_hold_s=2.0,
            grave_age_s=2.0,
            grave_interval_s=0.5,
            discovery_interval_s=0.3,
            stop_wait_s=1.0,
        )
        self.around = Surroundings(
            seed=seed,
            world=self.world,
            network=self.network,
            invariants=self.invariants,
            settings=settings,
            trace=self.trace,
            discover=self._discover,
            disk_latency=self._disk_latency,
            new_node_id=self._new_node_id,
            exited=self._exited,
            note=self.note,
        )
        self.nodes = [SimNode(self.around, ordinal) for ordinal in range(swarm.machines)]
        self._clients = [derive(seed, f"client/{number}") for number in range(swarm.clients)]

    # -- the surroundings ---------------------------------------------------------------------

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

    def _disk_latency(self, rng: random.Random) -> float:
        swarm = self.swarm
        took = swarm.disk_latency_s * rng.uniform(0.5, 2.0)
        if self._faults_on and swarm.disk_stall and rng.random() < swarm.disk_stall:
            took *= 100
        return min(took, 2.0)

    def _discover(self, node: SimNode, done: Done[list[str]]) -> None:
        rng = node.rng
        assert node.clock is not None
        known = [other.address for other in self.nodes if other.life and not other.retired]
        error: KvnodeError | None = None
        match self._dns:
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
        if self._faults_on and self.swarm.dns and rng.random() < self.swarm.dns:
            known = rng.sample(known, rng.randint(0, len(known)))
            if rng.random() < 0.3:
                error = PeerUnreachable("SERVFAIL")
        node.clock.call_later(rng.uniform(0.001, 0.05), done, None if error else known, error)

    def _after_event(self, clock: NodeClock | None) -> None:
        if clock is not None:
            for node in self.nodes:
                if node.clock is clock:
                    node.check()
                    return

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
            self.world.after(self.rng.uniform(0, 0.5), self._start, node)
        for number in range(swarm.clients):
            self.world.after(0.1, self._client_turn, number)
        if swarm.faults:
            self.world.after(self.rng.uniform(0.5, 3.0), self._nemesis)
        self.world.run_until(swarm.seconds)
        self._heal()
        self._await_progress()
        self._finish()
        return Outcome(
            seed=self.seed,
            trace_hash=self._hash.hexdigest(),
            events=self.world.events,
            frames=self.network.frames,
            operations=len(self.recorder.operations),
            committed=self.invariants.frontier,
            leaders=len(self.invariants.leaders),
            seconds=self.world.now,
            notes=dict(sorted(self.notes.items())),
        )

    def _start(self, node: SimNode) -> None:
        if node.is_up or node.retired:
            return
        if not node.start():
            if isinstance(node.fatal, CorruptLog):
                # The operator empties the volume: a new incarnation joins (RC-49).
                self.note("corrupt")
                node.blank()
            self.world.after(self.rng.uniform(0.05, 0.5), self._start, node)

    def _exited(self, node: SimNode) -> None:
        """A process ended by itself. A removed one stays down, or comes back on its stale volume."""
        if isinstance(node.fatal, Removed):
            self.note("removed")
            if self._faults_on and self.rng.random() < 0.5:
                node.retired = True
                return
        if not node.expects_fatal:
            self.world.after(self.rng.uniform(0.1, 1.0), self._start, node)

    # -- faults -------------------------------------------------------------------------------

    def _nemesis(self) -> None:
        if not self._faults_on:
            return
        swarm, rng = self.swarm, self.rng
        kinds = sorted(swarm.faults)
        kind = rng.choices(kinds, [swarm.faults[kind] for kind in kinds])[0]
        self.trace(f"fault {kind}")
        self.note(f"fault {kind}")
        getattr(self, f"_fault_{kind}")()
        self.world.after(rng.expovariate(1 / swarm.pace_s), self._nemesis)

    def _up(self) -> list[SimNode]:
        return [node for node in self.nodes if node.is_up]

    def _down_for(self, node: SimNode, *, power_lost: bool) -> None:
        node.kill(power_lost)
        self._restart_later(node)

    def _restart_later(self, node: SimNode) -> None:
        swarm, rng = self.swarm, self.rng
        node.rate = 1.0 + swarm.clock_spread * rng.uniform(-1, 1)
        if rng.random() < 0.3:
            node.address_generation += 1
        self.world.after(rng.choice((0.0, 0.1, 1.0, 4.0)) * rng.random(), self._start, node)

    def _fault_crash(self) -> None:
        if self._up():
            self._down_for(self.rng.choice(self._up()), power_lost=False)

    def _fault_power(self) -> None:
        if self._up():
            self._down_for(self.rng.choice(self._up()), power_lost=True)

    def _fault_crash_all(self) -> None:
        power_lost = self.rng.random() < 0.7
        for node in self._up():
            self._down_for(node, power_lost=power_lost)

    def _fault_pause(self) -> None:
        up = self._up()
        if up:
            clock = self.rng.choice(up).clock
            assert clock is not None
            clock.pause()
            self.world.after(self.rng.choice((0.05, 0.5, 2.0)), clock.resume)

    def _hosts(self) -> list[str]:
        return [node.name for node in self.nodes]

    def _cut(self, pairs: set[tuple[str, str]]) -> None:
        self.network.cuts |= pairs
        self.world.after(self.rng.choice((0.2, 1.0, 3.0, 6.0)), self._mend, pairs)

    def _mend(self, pairs: set[tuple[str, str]]) -> None:
        self.network.cuts -= pairs
        self.network.healed()

    def _fault_cut_isolate(self) -> None:
        alone = self.rng.choice(self._hosts())
        self._cut({p for o in self._hosts() if o != alone for p in ((alone, o), (o, alone))})

    def _fault_cut_halves(self) -> None:
        hosts = self._hosts()
        half = set(self.rng.sample(hosts, len(hosts) // 2))
        self._cut({(a, b) for a in hosts for b in hosts if (a in half) != (b in half)})

    def _fault_cut_bridge(self) -> None:
        hosts = self._hosts()
        middle = self.rng.choice(hosts)
        half = set(self.rng.sample(hosts, len(hosts) // 2))
        self._cut(
            {
                (a, b)
                for a in hosts
                for b in hosts
                if (a in half) != (b in half) and middle not in {a, b}
            }
        )

    def _fault_cut_ring(self) -> None:
        hosts = list(self._hosts())
        self.rng.shuffle(hosts)
        count = len(hosts)
        near = {(i, (i + 1) % count) for i in range(count)}
        near |= {(b, a) for a, b in near}
        self._cut(
            {
                (hosts[i], hosts[j])
                for i in range(count)
                for j in range(count)
                if i != j and (i, j) not in near
            }
        )

    def _fault_cut_one_way(self) -> None:
        hosts = self._hosts()
        self._cut({(self.rng.choice(hosts), self.rng.choice(hosts))})

    def _fault_clog(self) -> None:
        hosts = self._hosts()
        pair = (self.rng.choice(hosts), self.rng.choice(hosts))
        self.network.clogs[pair] = self.world.now + self.rng.uniform(0.1, 2.0)

    def _fault_storm(self) -> None:
        weather = self.network.weather
        weather.loss, weather.double, weather.reorder, weather.breaks = 0.3, 0.2, True, 0.02
        self.world.after(self.rng.uniform(0.2, 2.0), self._calm)

    def _calm(self) -> None:
        calm = self.swarm.weather if self._faults_on else Weather(delay_max=0.002)
        self.network.weather = replace(calm)

    def _fault_disk_error(self) -> None:
        """The disk fails; the process must stop, and comes back on a disk that works again."""
        up = self._up()
        if not up:
            return
        node = self.rng.choice(up)
        node.expects_fatal = True
        faults = node.disk.faults
        if self.rng.random() < 0.5:
            faults.sync_error = 1.0
        else:
            faults.write_error = 1.0
        self.world.after(self.rng.uniform(0.1, 1.0), self._repair_disk, node)

    def _fault_full_disk(self) -> None:
        """No space left for a while. Serving on is fine, and so is stopping; losing data is not."""
        up = self._up()
        if up:
            node = self.rng.choice(up)
            node.expects_fatal = True
            node.disk.faults.capacity = node.disk.used_bytes() + self.rng.choice((0, 1000, 70_000))
            self.world.after(self.rng.uniform(0.1, 2.0), self._repair_disk, node)

    def _fault_bit_flip(self) -> None:
        """One bit decays while the process is down: it is repaired, unread or noticed (RC-71)."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self._up() if n.node_id in membership.voters])
        node.kill(True)
        files = {path: data for path, data in node.disk.files().items() if data}
        path = self.rng.choice(sorted(files))
        place = self.rng.randrange(8 * len(files[path].rstrip(b"\0")) or 8)
        self.trace(f"bit {place} of {path} of {node.name} flips")
        node.disk.flip(path, place)
        node.decayed = True
        self._restart_later(node)

    def _repair_disk(self, node: SimNode) -> None:
        if not self._faults_on:
            return  # healed with everything else
        node.repair()
        node.kill(self.rng.random() < 0.5)
        node.expects_fatal = False
        self._restart_later(node)

    def _fault_slow_disk(self) -> None:
        swarm = self.swarm
        slow = replace(swarm, disk_latency_s=min(0.5, swarm.disk_latency_s * 50))
        self.swarm = slow
        self.world.after(self.rng.uniform(0.2, 2.0), self._quick_disk, swarm.disk_latency_s)

    def _quick_disk(self, latency_s: float) -> None:
        if not self._faults_on:
            return
        self.swarm = replace(self.swarm, disk_latency_s=latency_s)

    def _fault_transfer(self) -> None:
        leader = self._leader()
        if leader is not None and leader.replica is not None:
            leader.replica.transfer_leadership(None, lambda _value, _error: None)

    def _fault_stop(self) -> None:
        """SIGTERM, and a start afterwards."""
        up = self._up()
        if not up:
            return
        node = self.rng.choice(up)
        replica, life = node.replica, node.life
        assert replica is not None

        def exited() -> None:
            if node.life == life and node.is_up:
                self.world.after(0.0, stopped)

        def stopped() -> None:
            if node.life == life and node.is_up:
                self._down_for(node, power_lost=False)

        replica.stop(exited)

    def _membership(self) -> Membership | None:
        """The newest committed membership, when it is in full order: then one voter may be lost."""
        membership = self.invariants.membership
        leader = self._leader()
        if membership is None or leader is None or leader.replica is None:
            return None
        raft = leader.replica.raft
        present = {node.node_id for node in self._up()}
        if raft.membership != membership or membership.learners or self._removing:
            return None
        return membership if membership.voters <= present else None

    def _fault_wipe(self) -> None:
        """A volume is lost: a new incarnation under the old name (RC-49)."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self._up() if n.node_id in membership.voters])
        self.trace(f"{node.name} loses its volume")
        node.kill(True)
        node.blank()
        self.note("wiped")
        self._restart_later(node)

    def _fault_remove(self) -> None:
        """Scale down: an operator removes a member for good; its volume stays."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 2:
            return
        node = max(
            (n for n in self._up() if n.node_id in membership.voters), key=lambda n: n.ordinal
        )
        asked = self.rng.choice(self._up()).replica
        target = node.node_id
        assert asked is not None
        assert target is not None
        self._removing.add(node.name)

        def answered(_value: Any, error: KvnodeError | None) -> None:
            self.trace(f"removal of {target}: {error or 'done'}")
            self._removing.discard(node.name)

        asked.remove_member(target, answered)

    def _fault_grow(self) -> None:
        """Scale up: start a machine that does not run, maybe on a stale volume (RC-51)."""
        down = [node for node in self.nodes if not node.is_up]
        if down and self.invariants.frontier:
            node = self.rng.choice(down)
            node.retired = False
            self._start(node)

    def _fault_move(self) -> None:
        """Everybody restarts with a new address (RC-53)."""
        for node in self._up():
            node.address_generation += 1
            self._down_for(node, power_lost=False)

    def _fault_clock_rate(self) -> None:
        """A running clock gets faster or slower."""
        up = self._up()
        if up:
            node = self.rng.choice(up)
            spread = max(0.1, self.swarm.clock_spread)
            node.rate = 1.0 + spread * self.rng.uniform(-1, 1)
            assert node.clock is not None
            node.clock.run_at(node.rate)

    def _fault_clock_step(self) -> None:
        """A clock jumps ahead: seconds, or the minutes of a suspended machine."""
        up = self._up()
        if up:
            clock = self.rng.choice(up).clock
            assert clock is not None
            clock.step(self.rng.choice((0.5, 10.0, 600.0)))

    def _break_dns(self, how: str) -> None:
        self._dns = how
        self.world.after(self.rng.uniform(0.5, 6.0), self._mend_dns, how)

    def _mend_dns(self, how: str) -> None:
        if self._dns == how:
            self._dns = ""

    def _fault_dns_empty(self) -> None:
        """Every answer is empty (RC-56)."""
        self._break_dns("empty")

    def _fault_dns_partial(self) -> None:
        """Every answer lacks half of the machines."""
        self._break_dns("partial")

    def _fault_dns_stale(self) -> None:
        """Answers name where machines listened in their life before."""
        self._break_dns("stale")

    def _fault_dns_failing(self) -> None:
        """No answers but errors."""
        self._break_dns("failing")

    def _fault_double_burst(self) -> None:
        """Nearly every Raft message arrives twice, in any order (RC-27)."""
        weather = self.network.weather
        weather.double, weather.reorder = 0.9, True
        self.world.after(self.rng.uniform(0.2, 3.0), self._calm)

    def _fault_delay_long(self) -> None:
        """A tenth of the messages is late by many election time-outs, and overtaken (RC-27)."""
        weather = self.network.weather
        weather.slow, weather.slow_max, weather.reorder = 0.1, 10.0, True
        self.world.after(self.rng.uniform(0.2, 3.0), self._calm)

    # -- clients ------------------------------------------------------------------------------

    def _client_turn(self, number: int) -> None:
        """Choose an operation and a node, and send it there."""
        if self.winding_down:
            return
        rng = self._clients[number]
        again = partial(self._client_turn, number)
        up = self._up()
        if not up:
            self.world.after(0.2, again)
            return
        node = rng.choice(up)
        key = f"k/{rng.randrange(self.swarm.keys)}"
        kind = rng.choices(("set", "cas", "read", "list", "delete", "tree"), (8, 4, 8, 1, 2, 0.2))[
            0
        ]
        call = _Call(self, f"c{number}", again)
        if kind == "read":
            call.begin("read", [key])
            self._submit(node, call, partial(self._read, key))
        elif kind == "list":
            call.begin("read", [f"k/{i}" for i in range(self.swarm.keys)])
            self._submit(node, call, self._list)
        else:
            command = self._command(rng, kind, key, call)
            self._submit(node, call, partial(self._write, command))

    def _command(self, rng: random.Random, kind: str, key: str, call: _Call) -> Command:
        if kind == "tree":
            call.begin("delete", [f"k/{i}" for i in range(self.swarm.keys)])
            return KvDeleteTree(b"k/")
        if kind == "delete":
            call.begin("delete", [key])
            return KvDelete(key.encode())
        self._values += 1
        value = f"v{self._values}"
        cas = None
        if kind == "cas":
            known = [op.index for op in self.recorder.operations[-20:] if op.key == key]
            cas = rng.choice([0, *(index for index in known if index)])
        call.begin("set", [key], value, cas)
        return KvSet(key.encode(), value.encode(), cas=cas)

    def _submit(self, node: SimNode, call: _Call, work: Callable[[SimNode, _Call], None]) -> None:
        """The request travels to the node; it is lost if the process ends before."""
        self.trace(f"{call.client} asks {node.name} {call.text}")
        self.world.after(0.0005, work, node, call, clock=node.clock)
        self.world.after(call.timeout_s, call.timed_out)

    def _answerable(self, node: SimNode, call: _Call) -> int:
        """Every request that reached a node must be answered, unless its process ends."""
        self._requests += 1
        self._unanswered[self._requests] = f"{node.name} life {node.life}: {call.text}"
        return self._requests

    def _write(self, command: Command, node: SimNode, call: _Call) -> None:
        if node.replica is None:
            return
        number = self._answerable(node, call)

        def done(result: Result | None, error: KvnodeError | None) -> None:
            del self._unanswered[number]
            self.trace(f"{call.client} {call.text} -> {result} {error!r}")
            if error is not None or result is None:
                call.error(error)
            else:
                call.wrote(bool(result.value), result.index)

        node.replica.write(command, done)

    def _read(self, key: str, node: SimNode, call: _Call) -> None:
        replica = node.replica
        if replica is None:
            return
        number = self._answerable(node, call)

        def done(view: ReadView | None, error: KvnodeError | None) -> None:
            del self._unanswered[number]
            if error is not None or view is None:
                self.trace(f"{call.client} {call.text} -> {error!r}")
                call.error(error)
                return
            pair = replica.store.get(key.encode())
            self._reads.append((call.called, self.world.now, replica.store.kv_index()))
            self.trace(f"{call.client} {call.text} -> {pair}")
            call.read({key: (pair.value.decode(), pair.modify_index)} if pair is not None else {})

        replica.read(Consistency.CONSISTENT, done)

    def _list(self, node: SimNode, call: _Call) -> None:
        replica = node.replica
        if replica is None:
            return
        number = self._answerable(node, call)

        def done(view: ReadView | None, error: KvnodeError | None) -> None:
            del self._unanswered[number]
            if error is not None or view is None:
                call.error(error)
                return
            pairs = replica.store.list(b"k/")
            call.read({p.key.decode(): (p.value.decode(), p.modify_index) for p in pairs})

        replica.read(Consistency.DEFAULT, done)

    # -- the second phase ---------------------------------------------------------------------

    def _leader(self) -> SimNode | None:
        leaders = [
            n for n in self._up() if n.replica is not None and n.replica.raft.role is Role.LEADER
        ]
        return max(leaders, key=lambda n: n.replica.raft.term if n.replica else 0, default=None)

    def _heal(self) -> None:
        """No more faults. Perhaps some machines stay dead, but never a majority of the voters."""
        self._faults_on = False
        self.trace("healing")
        self.network.cuts.clear()
        self.network.clogs.clear()
        self._dns = ""
        self._calm()
        self.network.healed()
        self.swarm = replace(self.swarm, disk_latency_s=0.0005, disk_stall=0.0)
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
                self.world.after(self.rng.random(), self._start, node)

    def _dead_for_good(self) -> list[SimNode]:
        membership = self.invariants.membership
        if self.swarm.heal_all or membership is None:
            return []
        voters = [n for n in self.nodes if n.node_id in membership.voters]
        spare = (len(membership.voters) - 1) // 2 - (len(membership.voters) - len(voters))
        leader = self._leader()
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
        while self._leader() is None:
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
        leader = self._leader()
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
        self.winding_down = True
        limit = self.world.now + 10.0
        while self._unanswered_now():
            self._go_on(limit, f"answers to {self._unanswered_now()[:3]}")
        limit = self.world.now + 20.0
        while not self._is_equal():
            self._go_on(limit, "equal states")
        for call in list(self.recorder.pending.values()):
            call.unknown()
        self._check_read_indexes()
        report = check(self.recorder.operations, steps_max=300_000)
        if report.verdict is Verdict.VIOLATION:
            raise Violation(f"the history is not linearizable: {report.explanation}")
        if report.verdict is Verdict.UNKNOWN:
            self.note("history_unknown")
        self._check_final_state()

    def _unanswered_now(self) -> list[str]:
        alive = {f"{n.name} life {n.life}" for n in self._up()}
        return [text for text in self._unanswered.values() if text.split(":")[0] in alive]

    def _is_equal(self) -> bool:
        leader = self._leader()
        if leader is None or leader.replica is None:
            return False
        states = {
            (n.replica.store.applied_index, n.replica.store.digest)
            for n in self._up()
            if n.replica is not None
        }
        return len(states) == 1 and not leader.replica.desk.count

    def _check_read_indexes(self) -> None:
        """The index that a linearizable read shows never falls from one to a later one (RC-64)."""
        highest = 0
        by_return = sorted(self._reads, key=lambda r: r[1])
        position = 0
        for called, _returned, index in sorted(self._reads):
            while position < len(by_return) and by_return[position][1] < called:
                highest = max(highest, by_return[position][2])
                position += 1
            if index < highest:
                raise Violation(f"a read showed index {index} after one had shown {highest}")

    def _check_final_state(self) -> None:
        """Whatever a last write acknowledged is there (the history says so, too)."""
        replica = self._up()[0].replica
        assert replica is not None
        newest: dict[str, tuple[int, str | None]] = {}
        for op in self.recorder.operations:
            if op.kind != "read" and op.applied and op.index is not None:
                value = op.value if op.kind == "set" else None
                newest[op.key] = max(newest.get(op.key, (0, None)), (op.index, value), key=_first)
        for key, (index, value) in sorted(newest.items()):
            pair = replica.store.get(key.encode())
            unknown = any(o.unknown and o.key == key for o in self.recorder.operations)
            found = pair.value.decode() if pair is not None else None
            if found != value and not unknown:
                raise Violation(f"{key} ends as {found}, but index {index} wrote {value}")


def _first(item: tuple[int, str | None]) -> int:
    return item[0]


class _Call:
    """One operation of one client: noted for every key that it touches."""

    def __init__(self, simulation: Simulation, client: str, again: Callable[[], None]) -> None:
        self._simulation = simulation
        self._again = again
        self._pending: dict[str, Pending] = {}
        self._over = False
        self.client = client
        self.called = simulation.world.now
        self.timeout_s = 5.0
        self.text = ""

    def begin(
        self, kind: Kind, keys: list[str], value: str | None = None, cas: int | None = None
    ) -> None:
        """Note the call."""
        simulation = self._simulation
        self.text = f"{kind} {','.join(keys)} {value} cas={cas}"
        for key in keys:
            self._pending[key] = simulation.recorder.call(
                self.client, kind, key, self.called, value=value, cas=cas
            )

    def _finish(self) -> bool:
        """Whether this is the first end of the call; the client goes on after it."""
        if self._over:
            return False
        self._over = True
        simulation = self._simulation
        if not simulation.winding_down:
            think = simulation.swarm.think_s
            simulation.world.after(think * (0.5 + len(self._pending) % 2), self._again)
        return True

    def wrote(self, applied: bool, index: int) -> None:
        """The write was answered."""
        if self._finish():
            for pending in self._pending.values():
                pending.ok(self._simulation.world.now, applied=applied, index=index)

    def read(self, found: dict[str, tuple[str, int]]) -> None:
        """The read was answered."""
        if self._finish():
            for key, pending in self._pending.items():
                value, index = found.get(key, (None, None))
                pending.ok(self._simulation.world.now, value=value, index=index)

    def error(self, error: KvnodeError | None) -> None:
        """It failed, certainly or not."""
        if self._finish():
            assert error is not None
            for pending in self._pending.values():
                if is_retryable(error):
                    pending.failed()
                else:
                    pending.unknown()

    def timed_out(self) -> None:
        """The client waits no longer."""
        if self._finish():
            for pending in self._pending.values():
                pending.unknown()


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

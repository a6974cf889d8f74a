"""The faults: one kind strikes after the other, as the seed's mix says, and passes after a while."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kvnode.disk.files import SECTOR
from kvnode.disk.hard_state import log_end_noted
from kvnode.disk.log_format import LogEnd, SegmentHeader, scan
from kvnode.errors import KvnodeError
from kvnode.raft.types import Membership, NodeId
from tests.simulation.clock import derive
from tests.simulation.network import Weather
from tests.simulation.node import SimNode

if TYPE_CHECKING:
    from tests.simulation.cluster import Simulation


class Copy(NamedTuple):
    """A volume as it was at one moment."""

    node_id: NodeId
    boot: int
    files: dict[str, bytes]
    engine: Any


class Nemesis:
    """What goes wrong in one seed."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.rng = derive(sim.seed, "nemesis")
        self.dns = ""
        """How discovery is broken for everybody at the moment."""
        self.removing: set[str] = set()
        """Machines that an operator is removing."""
        self.replicas = sim.swarm.size
        """How many pods their StatefulSet is to have."""
        self.copies: dict[str, Copy] = {}
        """Of volumes, by machine."""
        self.twins: list[SimNode] = []
        """Processes that were started on copies."""

    def strike(self) -> None:
        """One fault, and then the next one after a while."""
        if not self.sim.faults_on:
            return
        swarm, rng = self.sim.swarm, self.rng
        kinds = sorted(swarm.faults)
        kind = rng.choices(kinds, [swarm.faults[kind] for kind in kinds])[0]
        self.sim.trace(f"fault {kind}")
        self.sim.note(f"fault {kind}")
        getattr(self, f"_fault_{kind}")()
        self.sim.world.after(rng.expovariate(1 / swarm.pace_s), self.strike)

    def _down_for(self, node: SimNode, *, power_lost: bool) -> None:
        node.kill(power_lost)
        self._restart_later(node)

    def _restart_later(self, node: SimNode) -> None:
        swarm, rng = self.sim.swarm, self.rng
        node.rate = 1.0 + swarm.clock_spread * rng.uniform(-1, 1)
        if rng.random() < 0.3:
            node.address_generation += 1
        self.sim.world.after(rng.choice((0.0, 0.1, 1.0, 4.0)) * rng.random(), self.sim.start, node)

    def _fault_crash(self) -> None:
        if self.sim.up():
            self._down_for(self.rng.choice(self.sim.up()), power_lost=False)

    def _fault_power(self) -> None:
        if self.sim.up():
            self._down_for(self.rng.choice(self.sim.up()), power_lost=True)

    def _fault_crash_all(self) -> None:
        power_lost = self.rng.random() < 0.7
        for node in self.sim.up():
            self._down_for(node, power_lost=power_lost)

    def _fault_pause(self) -> None:
        up = self.sim.up()
        if up:
            clock = self.rng.choice(up).clock
            assert clock is not None
            clock.pause()
            self.sim.world.after(self.rng.choice((0.05, 0.5, 2.0)), clock.resume)

    def _hosts(self) -> list[str]:
        return [node.name for node in self.sim.nodes]

    def _cut(self, pairs: set[tuple[str, str]]) -> None:
        self.sim.network.cuts |= pairs
        self.sim.world.after(self.rng.choice((0.2, 1.0, 3.0, 6.0)), self._mend, pairs)

    def _mend(self, pairs: set[tuple[str, str]]) -> None:
        self.sim.network.cuts -= pairs
        self.sim.network.healed()

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
        self.sim.network.clogs[pair] = self.sim.world.now + self.rng.uniform(0.1, 2.0)

    def _fault_storm(self) -> None:
        weather = self.sim.network.weather
        weather.loss, weather.double, weather.reorder, weather.breaks = 0.3, 0.2, True, 0.02
        self.sim.world.after(self.rng.uniform(0.2, 2.0), self.calm)

    def calm(self) -> None:
        """The weather that the seed drew, or none at all once the faults have ended."""
        calm = self.sim.swarm.weather if self.sim.faults_on else Weather(delay_max=0.002)
        self.sim.network.weather = replace(calm)

    def _fault_disk_error(self) -> None:
        """The disk fails; the process must stop, and comes back on a disk that works again."""
        up = self.sim.up()
        if not up:
            return
        node = self.rng.choice(up)
        node.expects_fatal = True
        faults = node.disk.faults
        if self.rng.random() < 0.5:
            faults.sync_error = 1.0
        else:
            faults.write_error = 1.0
        self.sim.world.after(self.rng.uniform(0.1, 1.0), self._repair_disk, node)

    def _fault_full_disk(self) -> None:
        """No space left for a while. Serving on is fine, and so is stopping; losing data is not."""
        up = self.sim.up()
        if up:
            node = self.rng.choice(up)
            node.expects_fatal = True
            node.disk.faults.capacity = node.disk.used_bytes() + self.rng.choice((0, 1000, 70_000))
            self.sim.world.after(self.rng.uniform(0.1, 2.0), self._repair_disk, node)

    def _fault_bit_flip(self) -> None:
        """One bit decays while the process is down: it is repaired, unread or noticed (RC-71)."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self.sim.up() if n.node_id in membership.voters])
        node.kill(True)
        files = {path: data for path, data in node.disk.files().items() if data}
        path = self.rng.choice(sorted(files))
        place = self.rng.randrange(8 * len(files[path].rstrip(b"\0")) or 8)
        self.sim.trace(f"bit {place} of {path} of {node.name} flips")
        node.disk.flip(path, place)
        node.decayed = True
        self._restart_later(node)

    def _repair_disk(self, node: SimNode) -> None:
        if not self.sim.faults_on:
            return  # healed with everything else
        node.repair()
        node.kill(self.rng.random() < 0.5)
        node.expects_fatal = False
        self._restart_later(node)

    def _fault_slow_disk(self) -> None:
        swarm = self.sim.swarm
        slow = replace(swarm, disk_latency_s=min(0.5, swarm.disk_latency_s * 50))
        self.sim.swarm = slow
        self.sim.world.after(self.rng.uniform(0.2, 2.0), self._quick_disk, swarm.disk_latency_s)

    def _quick_disk(self, latency_s: float) -> None:
        if not self.sim.faults_on:
            return
        self.sim.swarm = replace(self.sim.swarm, disk_latency_s=latency_s)

    def _fault_transfer(self) -> None:
        leader = self.sim.leader()
        if leader is not None and leader.replica is not None:
            leader.replica.transfer_leadership(None, lambda _value, _error: None)

    def _fault_stop(self) -> None:
        """SIGTERM, and a start afterwards."""
        up = [n for n in self.sim.up() if n.replica and not n.replica.departure.is_under_way]
        if not up:
            return
        node = self.rng.choice(up)
        replica, life = node.replica, node.life
        assert replica is not None

        def exited() -> None:
            if node.life == life and node.is_up:
                self.sim.world.after(0.0, stopped)

        def stopped() -> None:
            if node.life == life and node.is_up:
                self._down_for(node, power_lost=False)

        replica.stop(exited)

    def _membership(self) -> Membership | None:
        """The newest committed membership, when it is in full order: then one voter may be lost."""
        membership = self.sim.invariants.membership
        leader = self.sim.leader()
        if membership is None or leader is None or leader.replica is None:
            return None
        raft = leader.replica.raft
        # A voter on an old copy of its volume is as good as lost, though it was not noticed yet.
        present = {node.node_id for node in self.sim.up() if not node.outdated}
        if raft.membership != membership or membership.learners or self.removing:
            return None
        return membership if membership.voters <= present else None

    def _fault_wipe(self) -> None:
        """A volume is lost: a new incarnation under the old name (RC-49)."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self.sim.up() if n.node_id in membership.voters])
        self.sim.trace(f"{node.name} loses its volume")
        node.kill(True)
        node.blank()
        self.sim.note("wiped")
        self._restart_later(node)

    def _fault_roll_back(self) -> None:
        """An old copy of a volume is brought back, or one is taken for later (RC-54).

        Only when every other voter knows, durably, of a newer process than the copy can start: what is
        not known to anybody cannot be noticed.
        """
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self.sim.up() if n.node_id in membership.voters])
        assert node.replica is not None
        copy, record = self.copies.get(node.name), node.replica.identity.record
        if copy is None or copy.node_id != record.node_id:
            self.copies[node.name] = Copy(
                record.node_id, record.boot, node.disk.image(), node.engines.copy_disk()
            )
            self.sim.note("volume copied")
        elif copy.boot < record.boot and self._is_known(node.node_id, record.boot, membership):
            self.sim.trace(f"{node.name} gets an old copy of its volume, boot {copy.boot}")
            self.sim.note("volume rolled back")
            node.kill(True)
            node.roll_back(copy.files, copy.engine)
            self._restart_later(node)

    def _is_known(self, node_id: NodeId | None, boot: int, membership: Membership) -> bool:
        """Whether all other voters keep in mind that they have heard of this process."""
        others = [n for n in self.sim.up() if n.node_id in membership.voters - {node_id}]
        return all(
            n.replica is not None
            and any(
                peer.node_id == node_id and peer.boot >= boot
                for peer in n.replica.identity.record.peers
            )
            for n in others
        )

    def _fault_clone(self) -> None:
        """A copy of a running node's volume is started on another machine (RC-52)."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self.sim.up() if n.node_id in membership.voters])
        assert node.replica is not None
        copy, record = self.copies.get(node.name), node.replica.identity.record
        if copy is None or copy.node_id != record.node_id:
            self._fault_roll_back()
        elif copy.boot < record.boot and self._is_known(node.node_id, record.boot, membership):
            self.sim.trace(f"a second process starts on a copy of the volume of {node.name}")
            self.sim.note("volume cloned")
            twin = node.twin(copy.files, copy.engine)
            twin.start()
            if twin.transport is not None:
                twin.transport.impostor = True
            self.twins.append(twin)
            self.sim.world.after(self.rng.uniform(1.0, 5.0), twin.kill, False)

    def _fault_misdirect(self) -> None:
        """While a process is down, one sector of a file lands in the place of another (RC-71)."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 3:
            return
        node = self.rng.choice([n for n in self.sim.up() if n.node_id in membership.voters])
        node.kill(True)
        files = {path: data for path, data in node.disk.files().items() if data}
        source, target = self.rng.choice(sorted(files)), self.rng.choice(sorted(files))
        written = [max(1, len(files[path].rstrip(b"\0")) // SECTOR) for path in (source, target)]
        at, to = (SECTOR * self.rng.randrange(count) for count in written)
        if not files[source][at : at + SECTOR].strip(b"\0") and _is_log_tail(files, target, to):
            self.sim.note("damage that a crash could have left")
            self._restart_later(node)
            return
        self.sim.trace(f"{node.name}: {source} at {at} was written to {target} at {to}")
        node.disk.misdirect(source, at, target, to)
        node.decayed = True
        self._restart_later(node)

    def _fault_wipe_crash(self) -> None:
        """A volume is lost, and in the same moment other processes die (RC-49)."""
        before = set(self.sim.up())
        self._fault_wipe()
        lost = before - set(self.sim.up())
        if lost:
            for node in self.sim.up():
                if self.rng.random() < 0.7:
                    self._down_for(node, power_lost=self.rng.random() < 0.5)

    def _fault_remove(self) -> None:
        """Scale down: an operator removes a member for good; its volume stays."""
        membership = self._membership()
        if membership is None or len(membership.voters) < 2:
            return
        node = max(
            (n for n in self.sim.up() if n.node_id in membership.voters), key=lambda n: n.ordinal
        )
        asked = self.rng.choice(self.sim.up()).replica
        target = node.node_id
        assert asked is not None
        assert target is not None
        self.removing.add(node.name)

        def answered(_value: Any, error: KvnodeError | None) -> None:
            self.sim.trace(f"removal of {target}: {error or 'done'}")
            self.removing.discard(node.name)

        asked.remove_member(target, answered)

    def _fault_grow(self) -> None:
        """Scale up: start a machine that does not run, maybe on a stale volume (RC-51)."""
        down = [node for node in self.sim.nodes if not node.is_up]
        if down and self.sim.invariants.frontier:
            node = self.rng.choice(down)
            node.retired = False
            self.sim.start(node)

    def _fault_scale(self) -> None:
        """The StatefulSet gets another size: pods are started, stopped in parallel, or die unasked."""
        sim, rng = self.sim, self.rng
        self.replicas = rng.randint(0 if rng.random() < 0.1 else 1, len(sim.nodes))
        sim.trace(f"scaled to {self.replicas}")
        for node in sim.nodes:
            if node.ordinal < self.replicas:
                node.retired = False
                if not node.is_up and (node.life or sim.invariants.frontier):
                    sim.world.after(rng.uniform(0.0, 0.5), sim.start, node)
            elif not node.retired and self.replicas:
                node.retired = True
                if rng.random() < 0.8:
                    self._terminate(node)
                else:
                    node.kill(rng.random() < 0.5)

    def _terminate(self, node: SimNode) -> None:
        """SIGTERM to a pod that is one too many; it is killed when its grace is over."""
        replica, life = node.replica, node.life
        if replica is None or replica.departure.is_under_way:
            return

        def gone() -> None:
            if node.life == life and node.is_up:
                node.kill(False)
                self.sim.world.after(0.1, self.sim.start, node)  # if it is wanted again by then

        replica.stop(lambda: self.sim.world.after(0.0, gone))
        self.sim.world.after(12.0, gone)

    def scale_back(self) -> None:
        """The faults have ended: everybody is wanted again, so that a lost majority comes back too."""
        if "scale" in self.sim.swarm.faults:
            self.replicas = len(self.sim.nodes)
            for node in self.sim.nodes:
                node.retired = False

    def _fault_move(self) -> None:
        """Everybody restarts with a new address (RC-53)."""
        for node in self.sim.up():
            node.address_generation += 1
            self._down_for(node, power_lost=False)

    def _fault_clock_rate(self) -> None:
        """A running clock gets faster or slower."""
        up = self.sim.up()
        if up:
            node = self.rng.choice(up)
            spread = max(0.1, self.sim.swarm.clock_spread)
            node.rate = 1.0 + spread * self.rng.uniform(-1, 1)
            assert node.clock is not None
            node.clock.run_at(node.rate)

    def _fault_clock_step(self) -> None:
        """A clock jumps ahead: seconds, or the minutes of a suspended machine."""
        up = self.sim.up()
        if up:
            clock = self.rng.choice(up).clock
            assert clock is not None
            clock.step(self.rng.choice((0.5, 10.0, 600.0)))
            self.sim.bench.clock_steps.append((self.sim.world.now, clock.name))

    def _break_dns(self, how: str) -> None:
        self.dns = how
        self.sim.world.after(self.rng.uniform(0.5, 6.0), self._mend_dns, how)

    def _mend_dns(self, how: str) -> None:
        if self.dns == how:
            self.dns = ""

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
        weather = self.sim.network.weather
        weather.double, weather.reorder = 0.9, True
        self.sim.world.after(self.rng.uniform(0.2, 3.0), self.calm)

    def _fault_delay_long(self) -> None:
        """A tenth of the messages is late by many election time-outs, and overtaken (RC-27)."""
        weather = self.sim.network.weather
        weather.slow, weather.slow_max, weather.reorder = 0.1, 10.0, True
        self.sim.world.after(self.rng.uniform(0.2, 3.0), self.calm)


def _is_log_tail(files: dict[str, bytes], path: str, at: int) -> bool:
    """Whether nothing on the disk tells zeros there from a last write that a crash cut off (RC-71).

    That is so for the newest frame, and those that share its sectors, until the journal notes at rest
    how far it was synced (``kvnode/disk/DESIGN.md``, "Torn or damaged?").
    """
    if not path.endswith(".seg"):
        return False
    header = SegmentHeader.decode(files[path], path)
    noted = max(log_end_noted(data) for name, data in files.items() if name.endswith("hard_state"))
    if LogEnd(header.sequence, at) < noted:
        return False
    return at + SECTOR > scan(files[path], header, path).last

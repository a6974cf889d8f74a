"""What is done to the cluster: kinds of faults, drawn at random from a seed, each healed before it ends.

A *fault* is a coroutine of ``Nemesis`` that breaks something, holds it, heals it, and returns a few words
on what it did. Network faults and all others may run at the same time, two of one sort may not, so
that a fault knows what it may expect. Nothing here decides whether the cluster behaved: the clients'
history does (``verdict``), and the bound on the time until writes are acknowledged again.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from signal import SIGCONT, SIGSTOP

import aiohttp

from tests.chaos.lab import LabCluster, LabNode
from tests.chaos.machines import lacks_faketime, lacks_strace
from tests.chaos.netswitch import Link
from tests.chaos.verdict import healthy
from tests.chaos.workload import Workload

RECOVERY_S_MAX = 20.0
"""Writes are acknowledged again within this after healing: ten election time-outs of up to two seconds."""
EXIT_S_MAX = 15.0
"""A node whose disk failed is gone within this; traffic makes it sync many times a second."""
DIED_OF_DISK = 1
"""Exit code of a node whose disk failed (RC-8)."""

NETWORK = (
    "halves", "leader_isolated", "follower_isolated", "all_isolated", "leader_mute", "leader_deaf",
    "one_way_link", "bridge", "flapping", "slow_network", "slow_link", "lossy_network",
    "dirty_network", "clients_cut_from_leader", "clients_lossy",
)  # fmt: skip
OTHER = (
    "pause_leader", "pause_follower", "pause_all", "stutter", "kill_one", "kill_leader", "kill_majority",
    "kill_all", "stop_one", "roll", "transfer_leader", "new_address", "lost_volume",
)  # fmt: skip
STRACE = ("kill_at_sync", "eio_on_sync", "disk_full_error", "slow_disk")
VOLUME = ("volume_nearly_full", "power_cut_one", "power_cut_all")
CLOCK = ("clock_jump_one", "clock_jump_all")


def kinds(*, volumes: bool) -> dict[str, str]:
    """Every kind of fault, and why it cannot be done here; empty when it can."""
    reasons = dict.fromkeys((*NETWORK, *OTHER), "")
    reasons |= dict.fromkeys(STRACE, lacks_strace())
    reasons |= dict.fromkeys(VOLUME, "" if volumes else "no volume of its own for each node")
    reasons |= dict.fromkeys(CLOCK, lacks_faketime())
    return reasons


@dataclass
class Nemesis:
    """Does faults to a cluster, one step after the other."""

    cluster: LabCluster
    load: Workload
    rng: random.Random
    volumes: bool
    done: list[tuple[str, str]] = field(default_factory=list)
    """Kind and description of each fault done."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from healing to the first acknowledged write, per step."""
    _bags: dict[bool, list[str]] = field(default_factory=dict)
    _readdressed: int = 0

    def _draw(self, network: bool) -> str:
        """The next kind; every kind comes once before any comes again."""
        bag = self._bags.get(network)
        if not bag:
            known = kinds(volumes=self.volumes)
            bag = [kind for kind, why in known.items() if not why and (kind in NETWORK) == network]
            self.rng.shuffle(bag)
            self._bags[network] = bag
        return bag.pop()

    async def step(self) -> None:
        """One fault, or two at a time; then wait until writes are acknowledged again."""
        first = self.rng.random()
        chosen = []
        if first < 0.55:
            chosen.append(self._draw(network=False))
        if first > 0.4:
            chosen.append(self._draw(network=True))
        began = time.monotonic()
        done = await asyncio.gather(*(self._run(kind) for kind in chosen))
        healed = time.monotonic()
        for kind, what in zip(chosen, done, strict=True):
            self.done.append((kind, what))
        silent = [node.name for node in self.cluster.lab_nodes if not node.is_running]
        assert not silent, f"{silent} ended by themselves during {chosen}\n{self.cluster.tails()}"
        assert not self.load.failed, "a client has ended"
        recovery = await self.load.first_after(healed, RECOVERY_S_MAX)
        self.recoveries.append(recovery)
        words = "; ".join(f"{kind}: {what}" for kind, what in zip(chosen, done, strict=True))
        print(f"{healed - began:5.1f} s, then {recovery:4.2f} s  {words}", flush=True)
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0.2, 2.0))

    async def _run(self, kind: str) -> str:
        fault: Callable[[], Awaitable[str]] = getattr(self, kind)
        return await fault()

    async def _hold(self, least: float = 1.0, most: float = 5.0) -> None:
        await asyncio.sleep(self.rng.uniform(least, most))

    async def _leader(self) -> LabNode:
        """Who leads now; anybody when that is not clear at once."""
        for node in self.cluster.lab_nodes:
            if node.is_running:
                try:
                    async with asyncio.timeout(1.0):
                        facts = await self.cluster.status(node)
                except TimeoutError:
                    continue
                if facts is not None and facts["state"].lower() == "leader":
                    return node
        return self.rng.choice(self.cluster.lab_nodes)

    async def _victim(self) -> tuple[LabNode, str]:
        """A node, the leader half of the time, and what it was."""
        leader = await self._leader()
        if self.rng.random() < 0.5:
            return leader, f"{leader.name} (leader)"
        victim = self.rng.choice(self.cluster.followers(leader))
        return victim, victim.name

    # -- network -----------------------------------------------------------------------------------

    async def _cut(
        self, side: list[LabNode], other: list[LabNode], words: str, *, both: bool = True
    ) -> str:
        machines = self.cluster.machines
        self.cluster.network.cut(machines(side), machines(other), both=both)
        await self._hold(2.0, 6.0)
        self.cluster.network.heal()
        return words

    async def _everywhere(self, link: Link, words: str) -> str:
        self.cluster.network.everywhere(self.cluster.lab.machines, link)
        await self._hold(3.0, 7.0)
        self.cluster.network.heal()
        return words

    async def halves(self) -> str:
        nodes = self.rng.sample(self.cluster.lab_nodes, len(self.cluster.lab_nodes))
        at = self.rng.randrange(1, len(nodes))
        words = f"{_names(nodes[:at])} | {_names(nodes[at:])}"
        return await self._cut(nodes[:at], nodes[at:], words)

    async def leader_isolated(self) -> str:
        leader = await self._leader()
        return await self._cut([leader], self.cluster.followers(leader), leader.name)

    async def follower_isolated(self) -> str:
        follower = self.rng.choice(self.cluster.followers(await self._leader()))
        return await self._cut([follower], self.cluster.followers(follower), follower.name)

    async def all_isolated(self) -> str:
        self.cluster.network.everywhere(self.cluster.lab.machines, Link(cut=True))
        await self._hold(1.0, 4.0)
        self.cluster.network.heal()
        return "nobody hears anybody"

    async def leader_mute(self) -> str:
        leader = await self._leader()
        words = f"{leader.name} hears, but is not heard"
        return await self._cut([leader], self.cluster.followers(leader), words, both=False)

    async def leader_deaf(self) -> str:
        leader = await self._leader()
        words = f"{leader.name} is heard, but hears nobody"
        return await self._cut(self.cluster.followers(leader), [leader], words, both=False)

    async def one_way_link(self) -> str:
        a, b = self.rng.sample(self.cluster.lab_nodes, 2)
        return await self._cut([a], [b], f"{a.name} -x-> {b.name}", both=False)

    async def bridge(self) -> str:
        """Two sides that see each other only through one node that sees both (RC-18)."""
        nodes = self.rng.sample(self.cluster.lab_nodes, len(self.cluster.lab_nodes))
        middle, *rest = nodes
        half = len(rest) // 2
        words = f"{_names(rest[:half])} | {_names(rest[half:])}, both see {middle.name}"
        return await self._cut(rest[:half], rest[half:], words)

    async def flapping(self) -> str:
        leader = await self._leader()
        times = self.rng.randrange(4, 12)
        for _ in range(times):
            machines = self.cluster.machines
            self.cluster.network.cut([leader.machine], machines(self.cluster.followers(leader)))
            await self._hold(0.1, 0.6)
            self.cluster.network.heal()
            await self._hold(0.1, 0.6)
        return f"{leader.name} away {times} times"

    async def slow_network(self) -> str:
        link = Link(delay_ms=self.rng.uniform(5, 60), jitter_ms=self.rng.uniform(0, 60))
        return await self._everywhere(link, f"{link.delay_ms:.0f}+{link.jitter_ms:.0f} ms")

    async def slow_link(self) -> str:
        leader = await self._leader()
        follower = self.rng.choice(self.cluster.followers(leader))
        link = Link(delay_ms=self.rng.uniform(100, 400))
        self.cluster.network.set(
            {
                (leader.machine, follower.machine): link,
                (follower.machine, leader.machine): link,
            }
        )
        await self._hold(3.0, 6.0)
        self.cluster.network.heal()
        return f"{link.delay_ms:.0f} ms between {leader.name} and {follower.name}"

    async def lossy_network(self) -> str:
        link = Link(loss=self.rng.uniform(0.02, 0.25))
        return await self._everywhere(link, f"{link.loss:.0%} lost")

    async def dirty_network(self) -> str:
        link = Link(
            loss=self.rng.uniform(0, 0.1),
            duplicate=self.rng.uniform(0, 0.3),
            delay_ms=self.rng.uniform(0, 20),
            jitter_ms=self.rng.uniform(5, 80),
        )
        return await self._everywhere(link, "loss, duplicates, reordering")

    async def clients_cut_from_leader(self) -> str:
        leader = await self._leader()
        self.cluster.network.cut([self.cluster.lab.clients], [leader.machine])
        await self._hold(2.0, 5.0)
        self.cluster.network.heal()
        return leader.name

    async def clients_lossy(self) -> str:
        link = Link(loss=0.2, jitter_ms=20)
        clients = self.cluster.lab.clients
        self.cluster.network.set(
            {(clients, m): link for m in self.cluster.lab.machines}
            | {(m, clients): link for m in self.cluster.lab.machines}
        )
        await self._hold(2.0, 5.0)
        self.cluster.network.heal()
        return "requests and answers lost"

    # -- processes ---------------------------------------------------------------------------------

    async def _pause(self, nodes: list[LabNode], words: str) -> str:
        for node in nodes:
            node.signal(SIGSTOP)
        await self._hold(0.5, 6.0)
        for node in nodes:
            node.signal(SIGCONT)
        return words

    async def pause_leader(self) -> str:
        leader = await self._leader()
        return await self._pause([leader], leader.name)

    async def pause_follower(self) -> str:
        follower = self.rng.choice(self.cluster.followers(await self._leader()))
        return await self._pause([follower], follower.name)

    async def pause_all(self) -> str:
        return await self._pause(list(self.cluster.lab_nodes), "everybody")

    async def stutter(self) -> str:
        """A node that runs a fifth of the time: its clock is slow, it believes old news for longer."""
        victim, words = await self._victim()
        return await self._stutter(victim, words)

    async def stutter_leader(self) -> str:
        leader = await self._leader()
        return await self._stutter(leader, leader.name)

    async def _stutter(self, victim: LabNode, words: str) -> str:
        until = time.monotonic() + self.rng.uniform(2.0, 6.0)
        while time.monotonic() < until:
            victim.signal(SIGSTOP)
            await self._hold(0.05, 0.3)
            victim.signal(SIGCONT)
            await self._hold(0.01, 0.06)
        return words

    async def _kill(self, nodes: list[LabNode], words: str) -> str:
        for node in nodes:
            node.kill()
        if self.rng.random() < 0.5:
            await self._hold(0.1, 4.0)
        for node in nodes:
            node.start()
        return words

    async def kill_one(self) -> str:
        victim, words = await self._victim()
        return await self._kill([victim], words)

    async def kill_leader(self) -> str:
        leader = await self._leader()
        return await self._kill([leader], leader.name)

    async def kill_majority(self) -> str:
        nodes = self.cluster.lab_nodes
        victims = self.rng.sample(nodes, len(nodes) // 2 + 1)
        return await self._kill(victims, _names(victims))

    async def kill_all(self) -> str:
        nodes = self.cluster.lab_nodes
        return await self._kill(self.rng.sample(nodes, len(nodes)), "everybody")

    async def _stop(self, node: LabNode) -> None:
        await node.started()
        code = await asyncio.to_thread(node.stop)
        assert code == 0, f"{node.name} stopped with {code}\n{self.cluster.tails()}"

    async def stop_one(self) -> str:
        """In good order: SIGTERM, leadership handed over, and back."""
        victim, words = await self._victim()
        await self._stop(victim)
        await self._hold(0.0, 2.0)
        victim.start()
        return words

    async def roll(self) -> str:
        for node in self.cluster.lab_nodes:
            await self._stop(node)
            node.start()
            await self._hold(0.5, 1.5)
        return "each in turn"

    async def transfer_leader(self) -> str:
        leader = await self._leader()
        statuses = []
        for _ in range(self.rng.randrange(1, 4)):
            url = f"{leader.url}/v1/operator/raft/transfer-leader"
            try:
                async with asyncio.timeout(5.0), self.cluster.session.post(url) as answer:
                    statuses.append(answer.status)
            except (aiohttp.ClientError, OSError, TimeoutError):
                statuses.append(0)
            await self._hold(0.3, 1.0)
            leader = await self._leader()
        return f"asked {len(statuses)} times: {statuses}"

    async def new_address(self) -> str:
        victim, words = await self._victim()
        victim.kill()
        self._readdressed += 1
        number = 100 + self._readdressed
        victim.machine.readdress(number)
        self.cluster.network.announce()
        victim.start()
        return f"{words} is now {victim.machine.address}"

    async def lost_volume(self) -> str:
        """RC-49. Over when the new incarnation votes: a second loss before that is one too many."""
        victim, words = await self._victim()
        victim.kill()
        victim.wipe()
        victim.start()
        await healthy(self.cluster)
        return words

    # -- system calls ------------------------------------------------------------------------------

    async def _until_ended(self, node: LabNode) -> int | None:
        """Its exit code; None when nothing happened to it."""
        assert node.process is not None
        deadline = time.monotonic() + EXIT_S_MAX
        while time.monotonic() < deadline:
            if (code := node.process.poll()) is not None:
                return code
            await asyncio.sleep(0.02)
        return None

    async def kill_at_sync(self) -> str:
        victim, words = await self._victim()
        number = self.rng.randrange(1, 25)
        inject = f"inject=fdatasync:signal=KILL:when={number}"
        with victim.traced("-e", "trace=fdatasync", "-e", inject):
            code = await self._until_ended(victim)
        if code is None:
            return f"{words} did not sync {number} times"
        assert code == -9, (code, self.cluster.tails())
        victim.start()
        return f"{words} at sync {number}"

    async def eio_on_sync(self) -> str:
        """Once: the next sync would succeed, if there were one."""
        return await self._disk_error("fdatasync:error=EIO:when=1", "fdatasync")

    async def disk_full_error(self) -> str:
        return await self._disk_error("pwrite64:error=ENOSPC:when=1+", "pwrite64")

    async def _disk_error(self, inject: str, call: str) -> str:
        victim, words = await self._victim()
        with victim.traced("-e", f"trace={call}", "-e", f"inject={inject}"):
            code = await self._until_ended(victim)
        if code is None:
            trace = (victim.directory / "strace").read_text(errors="replace")
            assert "INJECTED" not in trace, f"{victim.name} goes on after an error of its disk"
            return f"{words} did not {call} at all"
        assert code == DIED_OF_DISK, (code, self.cluster.tails())
        # It may still have been starting, after an earlier fault.
        last = victim.events("node_must_stop", "node_cannot_start")[-1]
        assert re.search("Input/output error|No space left on device", last["error"]), last
        victim.start()
        return words

    async def slow_disk(self) -> str:
        victim, words = await self._victim()
        delay_ms = self.rng.choice((20, 100, 400))
        inject = f"inject=fdatasync:delay_exit={delay_ms * 1000}"
        with victim.traced("-e", "trace=fdatasync", "-e", inject):
            await self._hold(2.0, 6.0)
        return f"{words}: {delay_ms} ms for each sync"

    # -- volumes -----------------------------------------------------------------------------------

    async def volume_nearly_full(self) -> str:
        victim, words = await self._victim()
        volume = victim.volume
        assert volume is not None
        leave = volume.size // self.rng.choice((6, 12))
        await asyncio.to_thread(volume.fill, leave)
        await self._hold(2.0, 6.0)
        await asyncio.to_thread(volume.relieve)
        return f"{words}: {leave >> 20} MiB left"

    async def _lose_power(self, nodes: list[LabNode]) -> None:
        for node in nodes:
            assert node.volume is not None
            node.volume.cut_power()
        for node in nodes:
            node.kill()
        await self._hold(0.0, 1.0)
        for node in nodes:
            assert node.volume is not None
            await asyncio.to_thread(node.volume.unmount)
            await asyncio.to_thread(node.volume.mount)
        for node in nodes:
            node.start()

    async def power_cut_one(self) -> str:
        victim, words = await self._victim()
        await self._lose_power([victim])
        return words

    async def power_cut_all(self) -> str:
        await self._lose_power(list(self.cluster.lab_nodes))
        return "everybody"

    # -- clocks ------------------------------------------------------------------------------------

    def _jump(self, nodes: list[LabNode]) -> str:
        jumps = []
        for node in nodes:
            seconds = self.rng.choice((-1, 1)) * 10 ** self.rng.uniform(0, 7)
            node.set_clock(seconds)
            jumps.append(f"{node.name} {seconds:+.0f} s")
        return ", ".join(jumps)

    async def clock_jump_one(self) -> str:
        victim, _ = await self._victim()
        words = self._jump([victim])
        await self._hold(2.5, 4.5)  # libfaketime looks every second or two
        return words

    async def clock_jump_all(self) -> str:
        words = self._jump(list(self.cluster.lab_nodes))
        await self._hold(2.5, 4.5)  # libfaketime looks every second or two
        return words


def _names(nodes: list[LabNode]) -> str:
    return " ".join(node.name for node in nodes)

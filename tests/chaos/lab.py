"""Nodes on machines of their own: the cluster that the faults are done to."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.chaos.machines import (
    ROOT,
    Laboratory,
    Machine,
    Volume,
    faketime_library,
    laboratory,
    tool,
)
from tests.chaos.processes import Cluster, Node

HTTP_PORT = 8500
PEER_PORT = 8300
ATTACH_TIMEOUT_S = 10.0
VOLUME_MIB = 128


@dataclass
class LabNode(Node):
    """A node's process on a machine."""

    machine: Machine = None  # type: ignore[assignment]  # follows fields with defaults
    volume: Volume | None = None
    left_behind: list[Path] = field(default_factory=list)
    life_at: int = 0
    """Where this life's lines begin in the log."""

    @property
    def data(self) -> Path:
        """As the node sees it; ``seen_data`` is the way for this process."""
        base = self.volume.path if self.volume is not None else self.directory
        return base / "data"

    @property
    def seen_data(self) -> Path:
        return self.machine.inside(self.data)

    @property
    def clock(self) -> Path:
        """What libfaketime adds to the clock of the day."""
        return self.directory / "clock"

    def start(self, *strace: str) -> None:
        """Start the process, under strace if arguments for it are given.

        strace runs as the node's grandchild (``-D``): the process id is the node's own.
        """
        inside: list[str] = []
        if strace:
            trace = self.directory / "strace"
            # Not --seccomp-bpf, which would be quicker: with it no injected signal is delivered.
            inside = [str(tool("strace")), "-D", "-f", "-y", "-o", str(trace), *strace]
        self.wrapper = self.machine.wrapper(*inside)
        self.host = self.machine.address
        self.life_at = self.log.stat().st_size if self.log.exists() else 0
        super().start()
        if "LD_PRELOAD" in self.environment:
            assert self.process is not None
            self.left_behind += [
                Path(f"/dev/shm/{name}_{self.process.pid}")
                for name in ("faketime_shm", "sem.faketime_sem")
            ]

    async def started(self, timeout_s: float = 30.0) -> None:
        """Wait until this life is under way: before, a signal finds no handler."""
        deadline = time.monotonic() + timeout_s
        while b'"node_started"' not in self.log.read_bytes()[self.life_at :]:
            assert time.monotonic() < deadline, f"{self.name} does not start"
            assert self.is_running, f"{self.name} ended while it started"
            await asyncio.sleep(0.05)

    def tidy(self) -> None:
        """Remove what libfaketime leaves of a process that was killed."""
        for path in self.left_behind:
            path.unlink(missing_ok=True)
        self.left_behind.clear()

    def wipe(self) -> None:
        """Lose the volume."""
        assert not self.is_running
        if self.volume is None:
            super().wipe()
        else:
            self.volume.wipe()

    def set_clock(self, seconds: float) -> None:
        """Move the clock of the day of this process: so many seconds from the true time."""
        beside = self.clock.with_suffix(".new")
        beside.write_text(f"{seconds:+.1f}\n")
        beside.rename(self.clock)

    @contextmanager
    def traced(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Attach strace to the running process, such as to make its next syncs fail."""
        assert self.process is not None
        trace = self.directory / "strace"
        tracer = subprocess.Popen(
            [str(tool("setpriv")), "--pdeathsig", "TERM", str(tool("strace")), "-f", "-y",
             "-o", str(trace), "-p", str(self.process.pid), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                raise OSError(f"strace: {said.strip()}")
            yield tracer
        finally:
            if tracer.poll() is None:
                tracer.send_signal(signal.SIGINT)  # lets go of the process, which goes on
                tracer.wait()
            if tracer.stderr is not None:
                tracer.stderr.close()


class LabCluster(Cluster):
    """Nodes on machines; requests come from the clients' machine."""

    def __init__(
        self, lab: Laboratory, nodes: list[LabNode], session: aiohttp.ClientSession
    ) -> None:
        super().__init__(list(nodes), session)
        self.lab = lab
        self.network = lab.network
        self.lab_nodes = nodes

    def machines(self, nodes: Sequence[LabNode]) -> list[Machine]:
        return [node.machine for node in nodes]

    async def lab_leader(self, timeout_s: float = 60.0) -> LabNode:
        """The leader; of two that say so, the one of the later term."""
        deadline = time.monotonic() + timeout_s
        while True:
            await self.leader(max(0.1, deadline - time.monotonic()))
            leading: list[tuple[int, LabNode]] = []
            for node in self.lab_nodes:
                if node.is_running:
                    facts = await self.status(node)
                    if facts is not None and facts["state"].lower() == "leader":
                        leading.append((int(facts["term"]), node))
            if leading:
                return max(leading, key=lambda pair: pair[0])[1]

    def followers(self, leader: LabNode) -> list[LabNode]:
        return [node for node in self.lab_nodes if node is not leader]


def node_on(
    machine: Machine, name: str, flags: list[str], *, volume_mib: int, fake_clock: bool
) -> LabNode:
    """Prepare a node; it is not started."""
    volume = Volume(machine, volume_mib) if volume_mib else None
    environment = {"PYTHONPATH": str(ROOT)}
    node = LabNode(
        name,
        machine.directory,
        HTTP_PORT,
        PEER_PORT,
        flags,
        host=machine.address,
        environment=environment,
        machine=machine,
        volume=volume,
    )
    if fake_clock and faketime_library():
        node.set_clock(0)
        environment |= {
            "LD_PRELOAD": faketime_library(),
            "FAKETIME_TIMESTAMP_FILE": str(node.clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else timed waits of threads on the monotonic clock never end in time: the "fix" is for
            # a C library of another age, and the interpreter's own lock waits that way.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
    return node


@asynccontextmanager
async def lab_cluster(
    directory: Path,
    count: int = 3,
    *,
    flags: Sequence[str] = (),
    volume_mib: int = 0,
    fake_clock: bool = False,
    seed: int = 0,
    start: bool = True,
    module: tuple[str, ...] = ("kvnode",),
) -> AsyncIterator[LabCluster]:
    """Machines, and on each a node that knows the others by address; all gone at the end.

    Args:
        directory: For logs, images and, without volumes, the data.
        count: Nodes.
        flags: More flags for every node.
        volume_mib: Size of each node's own ext4; 0: data in ``directory``.
        fake_clock: Let ``LabNode.set_clock`` work, where libfaketime is installed.
        seed: Of the network's chance.
        start: Start the nodes.
        module: What the nodes run, see ``planted``.
    """
    with laboratory(directory, count, seed=seed) as lab:
        joins = [f"--retry-join={machine.address}:{PEER_PORT}" for machine in lab.machines]
        base = ["--bootstrap-expect", str(count), *joins, *flags]
        nodes = [
            node_on(machine, f"kvnode-{number}", base, volume_mib=volume_mib, fake_clock=fake_clock)
            for number, machine in enumerate(lab.machines)
        ]
        for node in nodes:
            node.module = module
        connector = aiohttp.TCPConnector(socket_factory=lab.clients.socket)
        timeout = aiohttp.ClientTimeout(total=15)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                if start:
                    for node in nodes:
                        node.start()
                yield LabCluster(lab, nodes, session)
            finally:
                for node in nodes:
                    if node.is_running:
                        node.signal(signal.SIGCONT)
                        node.kill()
                    node.tidy()

"""A StatefulSet of real nodes: each pod a machine, a real DNS server, and a stand-in for the API server.

What the controllers do is done here by hand, as they were seen to do it: pods are started and stopped in
parallel, ``spec.replicas`` changes before anybody gets SIGTERM, DNS knows a pod a moment after its process
began, a pod that comes back has its old volume and a new address if one likes.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.lab import HTTP_PORT, PEER_PORT, LabCluster, LabNode, node_on
from tests.chaos.machines import Laboratory, laboratory, lacks_machines, tool
from tests.k8s.api_server import ApiServer

NAME = "kvnode"
DOMAIN = "kvnode-headless.default.svc.cluster.local"
SERVICE = f"_raft._tcp.{DOMAIN}"
API_PORT = 6443
ROLE = ("get", "statefulsets", NAME)
READY_S = 60.0


def lacks_statefulsets() -> str:
    """Why this cannot run here; empty when it can."""
    missing = [name for name in ("dnsmasq", "openssl") if tool(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else lacks_machines()


class StatefulSet:
    """Pods ``kvnode-0`` …, on machines of their own."""

    def __init__(self, lab: Laboratory, session: aiohttp.ClientSession, api: ApiServer) -> None:
        self.lab = lab
        self.api = api
        self.cluster = LabCluster(lab, [], session)
        self.pods: dict[str, LabNode] = {}
        """Those that exist now, by name."""
        self._known: dict[str, LabNode] = {}
        """All that ever existed: a pod that comes back has its old volume."""
        self._dns: subprocess.Popen[bytes] | None = None
        self._account = api.account(NAME, ROLE)
        self.flags: list[str] = []

    # -- pods ---------------------------------------------------------------------------------------

    def pod(self, name: str, *, expect: int = 0, flags: Sequence[str] = ()) -> LabNode:
        """Prepare a pod as the chart does, on the next free machine."""
        if name not in self._known:
            machine = self.lab.machines[len(self._known)]
            node = node_on(machine, name, [], volume_mib=0, fake_clock=False)
            node.environment |= {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}  # nobody: the flag wins
            self._known[name] = node
        node = self._known[name]
        node.flags = [
            f"--advertise={name}.{DOMAIN}",
            f"--join-srv={SERVICE}",
            f"--dns-servers={self.lab.clients.address}",
            f"--bootstrap-expect={expect}",
            f"--kubernetes-statefulset={name.rpartition('-')[0]}",
            f"--kubernetes-api=https://{self.lab.clients.address}:{API_PORT}",
            f"--kubernetes-credentials={self._account}",
            *self.flags,
            *flags,
        ]
        return node

    def start(self, *ordinals: int, expect: int = 0, flags: Sequence[str] = ()) -> None:
        """Start pods at once; DNS knows them after that."""
        self.start_names([f"{NAME}-{n}" for n in ordinals], expect=expect, flags=flags)

    def start_names(
        self, names: Iterable[str], *, expect: int = 0, flags: Sequence[str] = ()
    ) -> None:
        for name in names:
            node = self.pod(name, expect=expect, flags=flags)
            node.start()
            self.pods[name] = node
        self._list()
        self.publish()

    def __getitem__(self, ordinal: int) -> LabNode:
        return self.pods[f"{NAME}-{ordinal}"]

    async def stop(self, *names: str) -> list[int]:
        """SIGTERM to all of them at once; their exit codes. Pods that are gone are not in DNS."""
        for name in names:
            self.pods[name].signal(15)
        codes = await asyncio.gather(
            *(asyncio.to_thread(self.pods[name].process.wait, 60) for name in names)  # type: ignore[union-attr]
        )
        for name in names:
            del self.pods[name]
        self._list()
        self.publish()
        return list(codes)

    def kill(self, *names: str) -> None:
        """The pods are gone without a word."""
        for name in names:
            self.pods.pop(name).kill()
        self._list()
        self.publish()

    async def scale(self, replicas: int, *, expect: int = 0) -> list[int]:
        """``kubectl scale``: start what is missing, stop what is too much, all at once."""
        self.api.statefulset(NAME, replicas)
        wanted = [f"{NAME}-{n}" for n in range(replicas)]
        self.start_names([name for name in wanted if name not in self.pods], expect=expect)
        mine = [name for name in self.pods if name.rpartition("-")[0] == NAME]
        return await self.stop(*[name for name in mine if name not in wanted])

    def move(self, *names: str) -> None:
        """New addresses; the pods must not run."""
        taken = max(m.number for m in (*self.lab.machines, self.lab.clients))
        taken = max(taken, *(int(m.address.rpartition(".")[2]) for m in self.lab.machines))
        for step, name in enumerate(names, 1):
            self._known[name].machine.readdress(taken + step)
        self.lab.network.announce()

    def _list(self) -> None:
        self.cluster.nodes[:] = list(self.pods.values())
        self.cluster.lab_nodes[:] = list(self.pods.values())

    # -- DNS ----------------------------------------------------------------------------------------

    def publish(self, names: Iterable[str] | None = None, **stale: str) -> None:
        """Let DNS answer with these pods; None: with those that exist. ``stale``: other addresses."""
        self.silence()
        address = self.lab.clients.address
        words = [
            str(tool("dnsmasq")), "--keep-in-foreground", "--no-resolv", "--no-hosts", "--no-daemon",
            f"--listen-address={address}", "--bind-interfaces", "--conf-file=/dev/null", "--pid-file=",
            "--user=root", "--local-ttl=1", "--local=/cluster.local/",
        ]  # fmt: skip
        for name in self.pods if names is None else names:
            host = f"{name}.{DOMAIN}"
            found = stale.get(name.replace("-", "_"), self._known[name].machine.address)
            words += [f"--host-record={host},{found}", f"--srv-host={SERVICE},{host},{PEER_PORT}"]
        self._dns = subprocess.Popen(
            self.lab.clients.wrapper(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def silence(self) -> None:
        """DNS does not answer at all."""
        if self._dns is not None:
            self._dns.kill()
            self._dns.wait()
            self._dns = None

    # -- the API server -----------------------------------------------------------------------------

    async def start_api(self) -> None:
        listening = self.lab.clients.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((self.lab.clients.address, API_PORT))
        listening.listen(64)
        await self.api.start(listening)

    # -- what is seen -------------------------------------------------------------------------------

    async def ready(self, *ordinals: int, timeout_s: float = READY_S) -> None:
        """Wait until these pods, or all, are ready."""
        nodes = [self[n] for n in ordinals] or list(self.pods.values())

        async def all_ready() -> bool:
            return all([await self.cluster.is_ready(node) for node in nodes])

        await self.cluster.until(all_ready, f"ready: {[n.name for n in nodes]}", timeout_s)

    async def members(self) -> dict[str, bool]:
        """Name of each member and whether it votes, as some running pod says."""
        for node in self.pods.values():
            if node.is_running:
                try:
                    found = await self.cluster.members(node)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    continue
                if found:
                    return {f"{m['Node']}": m["Voter"] for m in found}
        return {}

    async def become(self, *voters: int, timeout_s: float = READY_S, **others: bool) -> None:
        """Wait until exactly these ordinals vote, besides others by name."""
        wanted = {f"{NAME}-{n}": True for n in voters}
        wanted |= {name.replace("_", "-"): votes for name, votes in others.items()}

        async def they_are() -> bool:
            return await self.members() == wanted

        await self.cluster.until(they_are, f"members {wanted}", timeout_s)

    async def says(self, node: LabNode, path: str = "/health/ready") -> tuple[int, str]:
        """Status and body; 0 and the reason when nobody answers."""
        try:
            async with self.cluster.session.get(f"{node.url}{path}") as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, repr(error)

    async def until_says(self, node: LabNode, words: str, timeout_s: float = 30.0) -> str:
        """Wait until readiness mentions something; its whole body."""
        said = ""

        async def it_does() -> bool:
            nonlocal said
            said = (await self.says(node))[1]
            return words in said

        try:
            await self.cluster.until(it_does, words, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{words!r} is not in {said!r}\n{error}") from error
        return said

    async def run(self, node: LabNode, *words: str) -> tuple[int, str]:
        """``kubectl exec``: run the command line beside a pod."""
        import sys

        process = await asyncio.create_subprocess_exec(
            *node.machine.wrapper(sys.executable, "-m", "kvnode", *words),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**node.environment, "PATH": "/usr/bin:/bin",
                 "KVNODE_HTTP_ADDR": f"{node.machine.address}:{HTTP_PORT}"},
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()


@asynccontextmanager
async def statefulset(
    folder: Path, machines: int, *, replicas: int = 0, flags: Sequence[str] = ()
) -> AsyncIterator[StatefulSet]:
    """So many machines, and the first ``replicas`` pods booted for the first time; ``flags`` for all."""
    with laboratory(folder, machines) as lab:
        connector = aiohttp.TCPConnector(socket_factory=lab.clients.socket)
        timeout = aiohttp.ClientTimeout(total=15)
        api = ApiServer(folder / "kubernetes", names=[lab.clients.address])
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            made = StatefulSet(lab, session, api)
            made.flags = list(flags)
            try:
                await made.start_api()
                made.publish()
                if replicas:
                    await made.scale(replicas, expect=replicas)
                    await made.ready()
                yield made
            finally:
                made.silence()
                for node in made._known.values():
                    if node.is_running:
                        node.signal(18)
                        node.kill()
                await api.stop()


def events(node: LabNode, name: str) -> list[dict[str, Any]]:
    """Log lines of a pod's present life."""
    return node.events(name, since=node.life_at)


async def eventually(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Poll something that is not asynchronous."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)

"""Real node processes on loopback: start, kill, pause, wipe; and writers that remember what was promised."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from tests.ports import free_ports

START_TIMEOUT_S = 60.0
POLL_S = 0.05
_ENVIRONMENT = {name: os.environ[name] for name in os.environ if not name.startswith("KVNODE_")}
"""Without what steers the tests: a node would take it for settings, and say so."""


@dataclass
class Node:
    """One node's process, which can be ended and started again."""

    name: str
    directory: Path
    http_port: int
    peer_port: int
    flags: list[str]
    host: str = "127.0.0.1"
    environment: dict[str, str] = field(default_factory=dict)
    wrapper: list[str] = field(default_factory=list)
    """What stands before the interpreter: a program that runs it elsewhere, or watches it."""
    module: tuple[str, ...] = ("kvnode",)
    """What is run; see ``planted`` for another one."""
    process: subprocess.Popen[bytes] | None = None
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.http_port}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> None:
        """Start the process; it is not waited for."""
        assert not self.is_running
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [
            *self.wrapper,
            sys.executable, "-m", *self.module, "agent",
            "--node-name", self.name,
            "--data-dir", str(self.data),
            "--bind", self.host,
            "--client", self.host,
            "--http-port", str(self.http_port),
            "--peer-port", str(self.peer_port),
            "--log-format", "json",
            *self.flags,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**_ENVIRONMENT, **self.environment},
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to this very process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and wait for the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def wipe(self) -> None:
        """Lose the volume."""
        assert not self.is_running
        shutil.rmtree(self.data)

    @property
    def log_end(self) -> int:
        """Where the log's next line will begin, for ``events``."""
        return self.log.stat().st_size if self.log.exists() else 0

    def events(self, *names: str, since: int = 0) -> list[dict[str, Any]]:
        """Log lines of this node, over all its lives or since a ``log_end``: those of these names, or all."""
        found = []
        for line in self.log.read_bytes()[since:].decode(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and (not names or event.get("event") in names):
                found.append(event)
        return found


class Cluster:
    """Nodes, and a client session to ask them with."""

    def __init__(self, nodes: list[Node], session: aiohttp.ClientSession) -> None:
        self.nodes = nodes
        self.session = session

    async def status(self, node: Node) -> dict[str, Any] | None:
        """Raft facts of one node from ``/v1/agent/self``; None when it does not answer."""
        try:
            async with self.session.get(f"{node.url}/v1/agent/self") as answer:
                body = await answer.json()
                return dict(body["Stats"]["raft"])
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Log lines of all nodes, as ``Node.events`` gives them, node by node."""
        return [event for node in self.nodes for event in node.events(*names)]

    async def highest_term(self) -> int:
        """The latest term that a running node knows of."""
        facts = [await self.status(node) for node in self.nodes if node.is_running]
        return max(int(found["term"]) for found in facts if found is not None)

    async def leader(self, timeout_s: float = START_TIMEOUT_S) -> Node:
        """Wait until a running node says that it leads."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node.is_running:
                    facts = await self.status(node)
                    if facts is not None and facts["state"].lower() == "leader":
                        return node
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"no leader within {timeout_s} s\n{self.tails()}")

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every running node is ready."""

        async def all_ready() -> bool:
            for node in self.nodes:
                if node.is_running and not await self.is_ready(node):
                    return False
            return True

        await self.until(all_ready, "every node is ready", timeout_s)

    async def is_ready(self, node: Node) -> bool:
        try:
            async with self.session.get(f"{node.url}/health/ready") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def until(
        self, condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Poll an asynchronous condition."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if await condition():
                return
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"not within {timeout_s} s: {what}\n{self.tails()}")

    async def put(self, node: Node, key: str, value: str, timeout_s: float = 15.0) -> bool:
        """Write. Returns whether it was acknowledged; anything else is an unknown outcome.

        A refused connection proves nothing: the client library asks a second time when a kept
        connection broke under the first request.
        """
        try:
            return await self.put_once(node, key, value, timeout_s)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def put_once(self, node: Node, key: str, value: str, timeout_s: float) -> bool:
        """As ``put``, and raise what kept the answer from coming."""
        limit = aiohttp.ClientTimeout(total=timeout_s)
        async with self.session.put(f"{node.url}/v1/kv/{key}", data=value, timeout=limit) as answer:
            body = await answer.text()
            return answer.status == 200 and body == "true"

    async def write(
        self, node: Node, key: str, value: str, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Write until it is acknowledged. To leave a write's outcome unknown is a leader's right when it
        loses office, and to write it once more changes nothing.
        """
        await self.until(lambda: self.put(node, key, value), f"{key} is written", timeout_s)

    async def get(self, node: Node, key: str, query: str = "") -> str | None:
        async with self.session.get(f"{node.url}/v1/kv/{key}?raw{query}") as answer:
            if answer.status == 404:
                return None
            assert answer.status == 200, (answer.status, await answer.text())
            return await answer.text()

    async def dump(self, node: Node, prefix: str = "") -> dict[str, bytes]:
        """All keys under a prefix, linearizable."""
        import base64

        async with self.session.get(f"{node.url}/v1/kv/{prefix}?recurse") as answer:
            if answer.status == 404:
                return {}
            assert answer.status == 200, (answer.status, await answer.text())
            return {
                item["Key"]: base64.b64decode(item["Value"] or "") for item in await answer.json()
            }

    async def members(self, node: Node) -> list[dict[str, Any]]:
        async with self.session.get(f"{node.url}/v1/operator/raft/configuration") as answer:
            if answer.status != 200:
                return []
            return list((await answer.json())["Servers"])

    async def pods(self, node: Node) -> list[dict[str, Any]]:
        headers = {"Accept": "application/json"}
        async with self.session.get(f"{node.url}/pods", headers=headers) as answer:
            body = await answer.json()
            return list(body["pods"] if isinstance(body, dict) else body)

    def tails(self) -> str:
        """The end of every node's log, for a failure's text."""
        parts = []
        for node in self.nodes:
            if node.log.exists():
                lines = node.log.read_text(errors="replace").splitlines()[-15:]
                parts.append(f"--- {node.name}\n" + "\n".join(line[:300] for line in lines))
        return "\n".join(parts)


@asynccontextmanager
async def cluster(
    directory: Path, count: int = 3, *, flags: list[str] | None = None
) -> AsyncIterator[Cluster]:
    """Start ``count`` nodes that know each other by address; end them afterwards, by process id."""
    ports = free_ports(2 * count)
    joins = [f"--retry-join=127.0.0.1:{port}" for port in ports[count:]]
    nodes = [
        Node(
            f"kvnode-{number}",
            directory / f"kvnode-{number}",
            ports[number],
            ports[count + number],
            ["--bootstrap-expect", str(count), *joins, *(flags or [])],
        )
        for number in range(count)
    ]
    async with running(nodes) as made:
        yield made


@asynccontextmanager
async def running(nodes: list[Node], tls: ssl.SSLContext | None = None) -> AsyncIterator[Cluster]:
    """Start given nodes; end them afterwards, by process id. ``tls`` is for nodes at https addresses."""
    timeout = aiohttp.ClientTimeout(total=15)
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        try:
            for node in nodes:
                node.start()
            yield Cluster(nodes, session)
        finally:
            for node in nodes:
                if node.is_running:
                    node.signal(signal.SIGCONT)
                    node.kill()


class Writers:
    """Concurrent clients that each write new keys one after the other, and note every outcome."""

    def __init__(self, made: Cluster, count: int, prefix: str) -> None:
        self._cluster = made
        self._count = count
        self._prefix = prefix
        self.acknowledged: dict[str, str] = {}
        self.unknown: dict[str, str] = {}
        self.broken: list[str] = []
        """What became of each connection that broke, or could not be made; its write is unknown, too."""
        self.times: list[float] = []
        """When each acknowledgement arrived, ``time.monotonic``."""
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Writers:
        self._tasks = [asyncio.create_task(self._write(n)) for n in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _write(self, number: int) -> None:
        sequence = 0
        at = number
        while not self._stop.is_set():
            running = [node for node in self._cluster.nodes if node.is_running]
            if not running:
                await asyncio.sleep(POLL_S)
                continue
            node = running[at % len(running)]
            key, value = f"{self._prefix}/{number}/{sequence}", f"{number}-{sequence}"
            sequence += 1
            outcome = False
            try:
                outcome = await self._cluster.put_once(node, key, value, timeout_s=4.0)
            except TimeoutError:
                pass
            except (aiohttp.ClientError, OSError) as error:
                self.broken.append(f"{node.name}: {error!r}")
            if outcome:
                self.acknowledged[key] = value
                self.times.append(time.monotonic())
            else:
                at += 1
                self.unknown[key] = value
                await asyncio.sleep(0.01)

    async def first_after(self, moment: float, timeout_s: float) -> float:
        """Seconds from ``moment`` to the first acknowledgement that came after it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            later = [at for at in self.times[-4096:] if at > moment]
            if later:
                return later[0] - moment
            await asyncio.sleep(0.01)
        raise AssertionError(f"no write in {timeout_s} s\n{self._cluster.tails()}")

    def longest_gap(self, since: float) -> float:
        """Seconds for which nothing was acknowledged, at the longest, from ``since`` until now."""
        times = [since, *(at for at in self.times if at >= since), time.monotonic()]
        return max(later - at for at, later in pairwise(times))


async def in_one_of_three(play: Callable[[], Awaitable[list[str]]]) -> None:
    """Play a round that says what was not as it should be, up to three times: a machine that stalls for so
    long is no reason to fail.
    """
    for _ in range(3):
        trouble = await play()
        if not trouble:
            return
    raise AssertionError(trouble)


def check_kept(writers: Writers, found: dict[str, bytes]) -> None:
    """Every acknowledged write is there; nothing is there that nobody wrote."""
    missing = [key for key in writers.acknowledged if key not in found]
    assert not missing, f"{len(missing)} acknowledged writes are lost: {missing[:5]}"
    asked = writers.acknowledged | writers.unknown
    for key, value in found.items():
        assert asked.get(key, "").encode() == value, (key, value)

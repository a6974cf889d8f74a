"""Far more than a cluster can do, and clients and peers that hold on to what they get (RC-67 to RC-69).

Laws: memory stays within a stated bound; what is refused was not stored and says so; what is acknowledged is
there; the health routes answer throughout; the leader stays the leader; and seconds later all is as before.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.processes import Cluster, Node, cluster, running
from tests.overload.bystander import Bystander
from tests.ports import free_ports

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

RSS_MIB_MAX = 350
"""For any node in any of these tests. It has about 70 at rest, 64 MiB each for bodies and for answers, 32 of
log, and 64 of the engine's caches and buffers; the rest is the allocator's."""
HEALTH_S_MAX = 5.0
"""On two cores that also run the clients. Kubernetes gives a probe a second and three tries."""


def rss_mib(node: Node) -> int:
    assert node.process is not None
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


@dataclass
class Watch:
    """What a bystander saw: memory, health, and who led."""

    made: Cluster
    bystander: Bystander
    rss: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    probes: int = 0
    failed: list[str] = field(default_factory=list)
    terms: set[tuple[int, str]] = field(default_factory=set)

    async def look(self) -> None:
        """Ask each node's probes once, over a connection of its own, as a kubelet does."""
        for node in self.made.nodes:
            self.rss[node.name] = max(self.rss.get(node.name, 0), rss_mib(node))
            for path in ("/health/live", "/health/ready"):
                began = time.monotonic()
                try:
                    async with asyncio.timeout(HEALTH_S_MAX):
                        status = await probe(node, path)
                except (TimeoutError, OSError, ValueError, IndexError) as error:
                    self.failed.append(f"{node.name}{path}: {error!r}")
                    continue
                self.probes += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if status != 200:
                    self.failed.append(f"{node.name}{path}: {status}")

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(0.25)

    def check(self, elections_before: int) -> None:
        print(json.dumps({"rss_mib": self.rss, "probe_s_max": round(self.slowest_s, 3),
                          "probes": self.probes, "failed": self.failed[:5],
                          "stall_s_max": round(self.bystander.longest_s, 3)}))  # fmt: skip
        assert self.probes > 10
        assert not self.failed or self.bystander.stalled, self.failed[:10]
        assert max(self.rss.values()) < RSS_MIB_MAX, self.rss
        led_on = elections(self.made) == elections_before
        assert led_on or self.bystander.stalled, self.made.tails()


async def probe(node: Node, path: str) -> int:
    reader, writer = await asyncio.open_connection(node.host, node.http_port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def elections(made: Cluster) -> int:
    """How often anybody began to lead."""
    return len(made.events("became_leader"))


@asynccontextmanager
async def watched(made: Cluster) -> AsyncIterator[Watch]:
    with Bystander(made.nodes[0].directory) as bystander:
        watch = Watch(made, bystander)
        before = elections(made)
        task = asyncio.create_task(watch.run())
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.wait([task])
    watch.check(before)


async def generate(
    directory: Path, targets: list[Node], **options: Any
) -> tuple[dict[str, Any], Any]:
    """Run the generator; return its report and what became of each key."""
    keys = directory / f"keys-{time.monotonic_ns()}"
    words = [f"--{name}={value}" for name, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.overload.generator",
        "--targets", ",".join(f"{node.host}:{node.http_port}" for node in targets),
        "--keys", str(keys), *words,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out), json.loads(keys.read_text())


async def names(made: Cluster, node: Node, prefix: str) -> set[str]:
    async with made.session.get(f"{node.url}/v1/kv/{prefix}/?keys") as answer:
        return set(await answer.json()) if answer.status == 200 else set()


async def back_to_normal(made: Cluster, seconds: float = 10.0) -> float:
    """Seconds until every node takes a write within half a second, three times in a row."""
    began = time.monotonic()
    row = 0
    while row < 3:
        assert time.monotonic() - began < seconds, "it did not recover"
        quick = True
        for node in made.nodes:
            asked = time.monotonic()
            quick &= await made.put(node, "recovered", "1") and time.monotonic() - asked < 0.5
        row = row + 1 if quick else 0
    return time.monotonic() - began


async def test_ten_times_the_load_for_a_minute(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.leader()
        await made.ready()
        usual, _ = await generate(
            tmp_path, made.nodes, seconds=5, connections=48, prefix="usual", drain=5
        )
        rate = usual["per_second"]
        assert rate > 100, usual
        async with watched(made):
            report, (acknowledged, refused, unknown) = await generate(
                tmp_path, made.nodes, seconds=60, connections=600, depth=4, rate=10 * rate
            )
        recovered_s = await back_to_normal(made)
        print(json.dumps({"usual": usual, "load": report, "recovered_s": round(recovered_s, 2)}))
        counts = report["counts"]
        assert counts["asked"] + counts.get("turned_away", 0) > 5 * rate * 60, "no overload"
        known = {"200", "404", "500+retry", "500", "turned_away", "asked", "unanswered"}
        assert set(counts) <= known | {"broken"}, counts
        assert report["per_second"] > rate / 3, "it did less, not more"
        for node in made.nodes:
            stored = await names(made, node, "load")
            lost = set(acknowledged) - stored
            assert not lost, f"{len(lost)} acknowledged writes are not on {node.name}"
            wrong = set(refused) & stored
            assert not wrong, f"{len(wrong)} refused writes were stored"
            assert stored <= set(acknowledged) | set(unknown)


async def test_idle_silent_and_dripping_clients_cost_little_and_end(tmp_path: Path) -> None:
    """2,000 idle connections, 300 that drip a head, 200 that never read: all at once, at one node."""
    async with cluster(tmp_path) as made:
        leader = await made.leader()
        await made.ready()
        for number in range(4):
            await made.write(leader, f"big/{number}", "x" * 500_000)
        at_rest = rss_mib(leader)
        async with watched(made):
            crowd = Crowd(leader)
            with closing(crowd):
                await crowd.gather()
                began = time.monotonic()
                done = 0
                while time.monotonic() - began < 36.0:
                    for node in made.nodes:
                        assert await made.put(node, f"k/{done}", "1", timeout_s=HEALTH_S_MAX)
                        done += 1
                    crowd.drip()
                    await asyncio.sleep(0.5)
                dripping = crowd.alive(crowd.dripping)
                idle = crowd.alive(crowd.idle)
        print(
            json.dumps({"at_rest_mib": at_rest, "writes": done, "dripping": dripping, "idle": idle})
        )
        assert dripping == 0, "a head may take 30 s, in either shell"
        assert idle == 2000, "an idle connection may stay for two minutes"
        await back_to_normal(made)


class Crowd:
    """Connections that do nothing good."""

    def __init__(self, node: Node) -> None:
        self._address = (node.host, node.http_port)
        self.idle: list[socket.socket] = []
        self.dripping: list[socket.socket] = []
        self.silent: list[socket.socket] = []

    async def gather(self) -> None:
        lean = b"GET /v1/kv/a HTTP/1.1\r\nHost: x\r\n"
        full = b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n"
        for number in range(2000):
            self.idle.append(self._connect(b""))
            if number < 300:
                self.dripping.append(self._connect(lean if number % 2 else full))
            if number < 200:
                big = f"GET /v1/kv/big/{number % 4}?raw HTTP/1.1\r\nHost: x\r\n"
                odd = "Upgrade: odd\r\n" if number % 2 else ""
                self.silent.append(self._connect((big + odd + "\r\n").encode() * 16, small=True))
            if number % 50 == 0:
                await asyncio.sleep(0.01)

    def _connect(self, data: bytes, *, small: bool = False) -> socket.socket:
        made = socket.socket()
        if small:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(5)
        made.connect(self._address)
        if data:
            made.sendall(data)
        made.setblocking(False)
        return made

    def drip(self) -> None:
        for made in self.dripping:
            try:
                made.send(b"X-A: b\r\n")
            except OSError:
                continue

    def alive(self, sockets: list[socket.socket]) -> int:
        """How many the node has not closed."""
        count = 0
        for made in sockets:
            try:
                while made.recv(65536):
                    pass
            except BlockingIOError:
                count += 1
            except OSError:
                continue
        return count

    def close(self) -> None:
        for made in [*self.idle, *self.dripping, *self.silent]:
            made.close()


class Throttle:
    """A proxy in front of a peer port; throttled, it takes one byte a second from whoever dials."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self.throttled = False
        self.passed = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", self.port, limit=4096
        )

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers.add(far_writer)
        for source, sink, slow in ((reader, far_writer, True), (far_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, slow=slow))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        try:
            while True:
                if slow and self.throttled:
                    await asyncio.sleep(1.0)
                    data = await source.read(1)
                else:
                    data = await source.read(4096)
                if not data:
                    break
                self.passed += len(data)
                sink.write(data)
                await sink.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            sink.close()


@asynccontextmanager
async def cluster_behind_throttles(
    directory: Path,
) -> AsyncIterator[tuple[Cluster, list[Throttle]]]:
    """Three nodes that reach each other through proxies only."""
    ports = free_ports(9)
    throttles = [Throttle(ports[6 + n], ports[3 + n]) for n in range(3)]
    for throttle in throttles:
        await throttle.start()
    joins = [f"--retry-join=127.0.0.1:{throttle.port}" for throttle in throttles]
    nodes = [
        Node(
            f"kvnode-{n}",
            directory / f"kvnode-{n}",
            ports[n],
            ports[3 + n],
            ["--bootstrap-expect", "3", "--advertise", f"127.0.0.1:{throttles[n].port}", *joins,
             "--log-entries-max", "2000"],
        )
        for n in range(3)
    ]  # fmt: skip
    try:
        async with running(nodes) as made:
            yield made, throttles
    finally:
        for throttle in throttles:
            await throttle.close()


async def test_a_follower_that_reads_one_byte_a_second_holds_nobody_up(tmp_path: Path) -> None:
    """RC-68: it costs constant memory and is never waited for; when it reads again it catches up."""
    with Bystander(tmp_path) as bystander:
        async with cluster_behind_throttles(tmp_path) as (made, throttles):
            leader = await made.leader()
            await made.ready()
            slow = next(node for node in made.nodes if node is not leader)
            throttle = throttles[made.nodes.index(slow)]
            quick = [node for node in made.nodes if node is not slow]
            usual, _ = await generate(
                tmp_path, quick, seconds=3, connections=16, prefix="u", drain=5
            )
            before = elections(made)
            at_rest = rss_mib(leader)
            throttle.throttled = True
            began = time.monotonic()
            report, (acknowledged, _, _) = await generate(
                tmp_path, quick, seconds=20, connections=16, prefix="slow"
            )
            most = rss_mib(leader)
            for node in quick:
                assert await probe(node, "/health/ready") == 200
            led_on = elections(made) == before
            assert led_on or bystander.stalled, "a slow reader deposed the leader"
            slow_facts = await made.status(slow)
            throttle.throttled = False
            released = time.monotonic()

            async def level() -> bool:
                pods = await made.pods(leader)
                digests = {pod["digest"] for pod in pods}
                return len(pods) == 3 and len(digests) == 1 and not any(pod["lag"] for pod in pods)

            await made.until(level, "the slow follower caught up", 30.0)
            print(json.dumps({
                "usual": usual["per_second"], "meanwhile": report["per_second"],
                "max_s": report["max_s"], "leader_mib": [at_rest, most],
                "behind": slow_facts, "caught_up_s": round(time.monotonic() - released, 1),
                "throttled_s": round(released - began, 1), "elections": elections(made) - before,
                "stall_s_max": round(bystander.longest_s, 3),
            }))  # fmt: skip
            assert report["per_second"] > usual["per_second"] / 3
            assert report["max_s"] < 3.0 + bystander.longest_s, "writes were held up"
            assert most < at_rest + 150, "the slow follower costs memory"
            led_on = elections(made) == before
            assert led_on or bystander.stalled, "its return deposed the leader"
            stored = await names(made, slow, "slow")
            assert set(acknowledged) <= stored


async def test_a_leader_without_followers_refuses_before_it_fills_up(tmp_path: Path) -> None:
    """What cannot be committed is bounded in bytes; "nothing was stored" can be trusted."""
    flags = [
        "--uncommitted-bytes-max",
        "1048576",
        "--leader-wait-s",
        "2",
        "--request-timeout-s",
        "3",
    ]
    async with cluster(tmp_path, flags=flags) as made:
        leader = await made.leader()
        await made.ready()
        followers = [node for node in made.nodes if node is not leader]
        at_rest = rss_mib(leader)
        for node in followers:
            node.signal(signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(burst(made, leader, n) for n in range(400)))
            health = await probe(leader, "/health/live")
            most = rss_mib(leader)
        finally:
            for node in followers:
                node.signal(signal.SIGCONT)
        outcomes = {}
        for _, status, retry in answers:
            kind = f"{status}{'+retry' if retry else ''}"
            outcomes[kind] = outcomes.get(kind, 0) + 1
        print(json.dumps({"outcomes": outcomes, "leader_mib": [at_rest, most]}))
        assert health == 200
        assert not any(status == 200 for _, status, _ in answers), "a write without a majority"
        assert all(status == 500 for _, status, _ in answers)
        assert sum(retry for _, _, retry in answers) > 100, "most were refused at once"
        assert most < at_rest + 200
        await made.leader()
        await back_to_normal(made, 20.0)
        for node in made.nodes:
            stored = await names(made, node, "burst")
            wrong = {key for key, _, retry in answers if retry} & stored
            assert not wrong, f"{len(wrong)} writes were stored although they were refused"


async def burst(made: Cluster, node: Node, number: int) -> tuple[str, int, bool]:
    key = f"burst/{number}"
    async with made.session.put(f"{node.url}/v1/kv/{key}", data=b"x" * 100_000) as answer:
        await answer.read()
        return key, answer.status, "Retry-After" in answer.headers

"""Those who wait: how fast watchers wake, how many a node holds, how fast a lock changes hands.

    python benchmarks/waiting.py [--systems kvnode,consul] [--watchers 1000] [--parked 20000] [--rounds 5]

kvnode beside Consul, in turns, one client for both, everything at the leader; transactions a second besides.
A watcher is a connection with a blocking query parked on it. *Woken* counts from when the write was sent
until the watcher's answer arrived, so the write itself and the client's own work (the same for both)
are in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":  # run as a file: the package is found from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import HarnessError
from benchmarks.systems import ROOT, Cluster, Consul, Kvnode
from benchmarks.turns import say

CONNECTIONS_MAX = 100_000
TXN_CONNECTIONS = 32
TXN_S = 3.0
_ANSWER_S = 120.0
_AT_ONCE = 200
"""Connections that are opened at a time."""


class ManyKvnode(Kvnode):
    """With its bound on connections out of the way."""

    def _argv(self, node: int) -> Sequence[str]:
        return [*super()._argv(node), f"--http-connections-max={CONNECTIONS_MAX}"]


class ManyConsul(Consul):
    """The same."""

    def _argv(self, node: int) -> Sequence[str]:
        argv = super()._argv(node)
        path = self.directory / f"node-{node}.json"
        config = json.loads(path.read_text())
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # It refuses to start with more than it could have.
        config["limits"] = {"http_max_conns_per_client": min(CONNECTIONS_MAX, files - 200)}
        path.write_text(json.dumps(config))
        return argv


SYSTEMS: dict[str, type[Cluster]] = {"kvnode": ManyKvnode, "consul": ManyConsul}


class Client:
    """One connection to one node."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    def send(self, method: str, target: str, body: bytes = b"") -> None:
        assert self._writer is not None
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)

    async def answer(self) -> tuple[dict[str, str], bytes]:
        """Read one answer.

        Raises:
            HarnessError: It is an error, or none came.
        """
        assert self._reader is not None
        try:
            async with asyncio.timeout(_ANSWER_S):
                head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                status, *lines = head[:-4].split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await self._reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError, TimeoutError) as error:
            raise HarnessError(f"no answer: {error!r}") from error
        if not status.startswith("HTTP/1.1 200"):
            raise HarnessError(f"{status}: {body[:200]!r}")
        return headers, body

    async def ask(
        self, method: str, target: str, body: bytes = b""
    ) -> tuple[dict[str, str], bytes]:
        self.send(method, target, body)
        return await self.answer()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


async def watchers(port: int, key: str, count: int) -> list[Client]:
    """Park blocking queries on a key, as many as the node takes up to ``count``."""
    writer = await Client(port).open()
    await writer.ask("PUT", f"/v1/kv/{key}", b"first")
    headers, _ = await writer.ask("GET", f"/v1/kv/{key}")
    writer.close()
    target = f"/v1/kv/{key}?index={headers['x-consul-index']}&wait=10m"
    parked: list[Client] = []
    while len(parked) < count:
        some = [Client(port) for _ in range(min(_AT_ONCE, count - len(parked)))]
        opened = await asyncio.gather(*(each.open() for each in some), return_exceptions=True)
        parked += [each for each in opened if isinstance(each, Client)]
        for each in opened:
            if isinstance(each, Client):
                each.send("GET", target)
        if any(isinstance(each, BaseException) for each in opened):
            break
    return parked


async def wake(port: int, parked: list[Client], key: str, value: bytes) -> list[float]:
    """Write once; return each watcher's time to its answer, s."""
    writer = await Client(port).open()

    async def woken(each: Client) -> float:
        await each.answer()
        return time.perf_counter() - began

    tasks = [asyncio.ensure_future(woken(each)) for each in parked]
    await asyncio.sleep(0)
    began = time.perf_counter()
    await writer.ask("PUT", f"/v1/kv/{key}", value)
    writer.close()
    return await asyncio.gather(*tasks)


async def measure_wakes(port: int, count: int, number: int) -> list[float]:
    key = f"bench/woken{number}"
    parked = await watchers(port, key, count)
    try:
        if len(parked) < count:
            raise HarnessError(f"only {len(parked)} of {count} watchers were taken")
        await settle(port)
        return await wake(port, parked, key, b"second")
    finally:
        for each in parked:
            each.close()


async def settle(port: int) -> None:
    """Wait until what was sent before has been read: a request of a new connection comes after it."""
    await asyncio.sleep(0.3)
    last = await Client(port).open()
    await last.ask("GET", "/v1/status/leader")
    last.close()


async def measure_parked(cluster: Cluster, port: int, leader: int, count: int) -> dict[str, Any]:
    """Park as many as the node takes; what they cost, and that one write wakes all of them."""
    before = cluster.processes[leader].memory().resident
    parked = await watchers(port, "bench/parked", count)
    try:
        await settle(port)
        after = cluster.processes[leader].memory().resident
        idle = cluster.processes[leader].cpu_s()
        await asyncio.sleep(3.0)
        idle = cluster.processes[leader].cpu_s() - idle
        times = await wake(port, parked, "bench/parked", b"second")
    finally:
        for each in parked:
            each.close()
    return {
        "held": len(parked),
        "kib_each": round((after - before) / max(1, len(parked)), 2),
        "idle_cpu_percent": round(idle / 3.0 * 100, 1),
        "all_woken_s": round(max(times), 3),
    }


async def measure_hand_over(port: int, times: int) -> list[float]:
    """One gives a lock back, another that watches it takes it: release sent to lock taken, s."""
    key, clients, sessions = "bench/lock", [], []
    for _ in range(2):
        client = await Client(port).open()
        body = json.dumps({"LockDelay": "0s", "TTL": "600s", "Checks": []}).encode()
        _, made = await client.ask("PUT", "/v1/session/create", body)
        clients.append(client)
        sessions.append(json.loads(made)["ID"])
    found: list[float] = []
    _, taken = await clients[0].ask("PUT", f"/v1/kv/{key}?acquire={sessions[0]}", b"0")
    assert taken == b"true"
    for number in range(times):
        holder, other = number % 2, (number + 1) % 2
        headers, _ = await clients[other].ask("GET", f"/v1/kv/{key}?consistent")
        index = headers["x-consul-index"]
        clients[other].send("GET", f"/v1/kv/{key}?consistent&index={index}&wait=60s")
        await asyncio.sleep(0.01)  # so that it is parked
        began = time.perf_counter()
        clients[holder].send("PUT", f"/v1/kv/{key}?release={sessions[holder]}", b"free")
        await clients[other].answer()
        _, taken = await clients[other].ask(
            "PUT", f"/v1/kv/{key}?acquire={sessions[other]}", b"%d" % number
        )
        found.append(time.perf_counter() - began)
        if taken != b"true":
            raise HarnessError("the lock was free and was not given")
        await clients[holder].answer()
    for client, session in zip(clients, sessions, strict=True):
        await client.ask("PUT", f"/v1/session/destroy/{session}")
        client.close()
    return found


async def measure_transactions(port: int, seconds: float) -> float:
    """Two sets and a get in each, from 32 connections; transactions a second."""
    done = 0
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal done
        mine = await Client(port).open()
        turn = 0
        while time.perf_counter() < end:
            turn += 1
            value = "dmFsdWU=" if turn % 2 else "b3RoZXI="
            verbs = [
                {"KV": {"Verb": "set", "Key": f"bench/txn/{number}/a", "Value": value}},
                {"KV": {"Verb": "set", "Key": f"bench/txn/{number}/b", "Value": value}},
                {"KV": {"Verb": "get", "Key": f"bench/txn/{number}/a"}},
            ]
            await mine.ask("PUT", "/v1/txn", json.dumps(verbs).encode())
            done += 1
        mine.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(TXN_CONNECTIONS)))
    return done / (time.perf_counter() - began)


def percentile(times: Sequence[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def raise_file_limit() -> None:
    """As far as it may be: each connection is one here and one in the node."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (CONNECTIONS_MAX, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (OSError, ValueError):
            continue
        return


async def measure(options: argparse.Namespace, clusters: list[Cluster]) -> dict[str, Any]:
    figures: dict[str, dict[str, list[float]]] = {
        cluster.name: {"wake": [], "hand_over": [], "txn": []} for cluster in clusters
    }
    found: dict[str, Any] = {}
    for number in range(options.rounds):
        turn = number % len(clusters)
        for cluster in clusters[turn:] + clusters[:turn]:
            port = cluster.http_ports[cluster.leader()]
            mine = figures[cluster.name]
            mine["wake"] += await measure_wakes(port, options.watchers, number)
            mine["hand_over"] += await measure_hand_over(port, 50)
            mine["txn"].append(await measure_transactions(port, TXN_S))
            say(f"  round {number + 1} {cluster.name}")
    for cluster in clusters:
        mine = figures[cluster.name]
        found[cluster.name] = {
            "wake_ms": {
                "p50": round(percentile(mine["wake"], 0.5) * 1e3, 2),
                "p99": round(percentile(mine["wake"], 0.99) * 1e3, 2),
                "max": round(max(mine["wake"]) * 1e3, 2),
            },
            "hand_over_ms": {
                "p50": round(percentile(mine["hand_over"], 0.5) * 1e3, 2),
                "p99": round(percentile(mine["hand_over"], 0.99) * 1e3, 2),
            },
            "txn_per_s": round(median(mine["txn"])),
        }
        leader = cluster.leader()
        port = cluster.http_ports[leader]
        if options.parked:
            found[cluster.name]["parked"] = await measure_parked(
                cluster, port, leader, options.parked
            )
            say(f"  parked {cluster.name}")
    return found


def show(found: dict[str, Any]) -> str:
    """Return a table of the figures, a system in each column."""
    rows = [
        ("woken, p50 ms", lambda f: f["wake_ms"]["p50"]),
        ("woken, p99 ms", lambda f: f["wake_ms"]["p99"]),
        ("lock changes hands, p50 ms", lambda f: f["hand_over_ms"]["p50"]),
        ("lock changes hands, p99 ms", lambda f: f["hand_over_ms"]["p99"]),
        ("transactions a second", lambda f: f["txn_per_s"]),
        ("watchers held", lambda f: f.get("parked", {}).get("held", "-")),
        ("KiB for each", lambda f: f.get("parked", {}).get("kib_each", "-")),
        ("all of them woken, s", lambda f: f.get("parked", {}).get("all_woken_s", "-")),
        ("CPU while they wait, % of a core", lambda f: f.get("parked", {}).get("idle_cpu_percent", "-")),
    ]  # fmt: skip
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for name, of in rows:
        lines.append(f"| {name} | " + " | ".join(str(of(each)) for each in found.values()) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    parser.add_argument("--systems", default="kvnode,consul")
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--parked", type=int, default=20_000, help="0: not measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, default=ROOT / ".cache/bench")
    parser.add_argument(
        "--json", type=Path, default=ROOT / f"benchmarks/results/waiting-{started}.json"
    )
    options = parser.parse_args(argv)
    raise_file_limit()
    options.data_dir.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="waiting-", dir=options.data_dir))
    clusters: list[Cluster] = []
    try:
        for name in options.systems.split(","):
            kind = SYSTEMS[name]
            if kind.version() is None:
                say(f"{name} is not on this machine: left out")
                continue
            cluster = kind(directory)
            clusters.append(cluster)
            cluster.start()
        found = asyncio.run(measure(options, clusters))
    except HarnessError as error:
        say(f"FAILED {error}")
        return 1
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(show(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "watchers": options.watchers,
        "rounds": options.rounds,
        "systems": found,
    }
    options.json.write_text(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""An open-loop client in a process of its own: it asks at a given rate, whether or not it is answered.

The number of connections and of requests under way on each is bounded; what finds no place is counted as
turned away at the door. Prints one JSON object. Run as ``python -m tests.overload.generator``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter, deque
from pathlib import Path
from typing import cast

TICK_S = 0.005
VALUE = b"v" * 100


class Client(asyncio.Protocol):
    """One connection; answers arrive in the order of the requests."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.under_way: deque[tuple[str, float]] = deque()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        while True:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                break
            head = buffer[:end].lower()
            at = head.find(b"content-length: ")
            stop = head.find(b"\r\n", at)
            length = int(head[at + 16 : stop if stop > 0 else None]) if at >= 0 else 0
            if len(buffer) < end + 4 + length:
                break
            self._answered(int(head[9:12]), b"retry-after" in head, buffer[end + 4 :][:length])
            buffer = buffer[end + 4 + length :]
        self._buffer = buffer

    def _answered(self, status: int, may_retry: bool, body: bytes) -> None:
        key, started = self.under_way.popleft()
        self.load.answered(key, status, may_retry, body, time.monotonic() - started)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        for key, _ in self.under_way:
            self.load.broken(key)
        self.under_way.clear()

    def ask(self, key: str) -> None:
        assert self.transport is not None
        self.under_way.append((key, time.monotonic()))
        if key:
            head = f"PUT /v1/kv/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(VALUE)}\r\n\r\n"
            self.transport.write(head.encode() + VALUE)
        else:
            self.transport.write(b"GET /v1/kv/nothing HTTP/1.1\r\nHost: x\r\n\r\n")


class Load:
    """All connections, and what became of each request."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self.last_s = 0.0

    def answered(self, key: str, status: int, may_retry: bool, body: bytes, took_s: float) -> None:
        self.counts[f"{status}{'+retry' if may_retry else ''}"] += 1
        self.latencies.append(took_s)
        self.last_s = time.monotonic()
        if not key:
            return
        if status == 200 and body == b"true":
            self.acknowledged.append(key)
        elif may_retry:
            self.refused.append(key)
        else:
            self.unknown.append(key)

    def broken(self, key: str) -> None:
        self.counts["broken"] += 1
        if key:
            self.unknown.append(key)

    async def run(self) -> None:
        options = self.options
        loop = asyncio.get_running_loop()
        clients: list[Client] = []
        targets = [target.rsplit(":", 1) for target in options.targets.split(",")]
        for number in range(options.connections):
            host, port = targets[number % len(targets)]
            clients.append(await self._connect(loop, host, int(port)))
        began = last = time.monotonic()
        owed, turn, sequence = 0.0, 0, 0
        while (now := time.monotonic()) < began + options.seconds:
            owed += (now - last) * options.rate if options.rate else len(clients)
            last = now
            free = [c for c in clients if c.transport and len(c.under_way) < options.depth]
            turn = (turn + 1) % max(1, len(free))
            for client in free[turn:] + free[:turn]:
                if owed < 1:
                    break
                owed -= 1
                sequence += 1
                key = f"{options.prefix}/{sequence}" if sequence % 5 else ""
                client.ask(key)
            if options.rate:
                self.counts["turned_away"] += int(owed)
            owed = 0.0
            for number, client in enumerate(clients):
                if client.transport is None:
                    host, port = targets[number % len(targets)]
                    clients[number] = await self._connect(loop, host, int(port))
            await asyncio.sleep(TICK_S)
        self.counts["asked"] = sequence
        end = time.monotonic() + options.drain
        while any(c.under_way for c in clients) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.counts["unanswered"] = sum(len(c.under_way) for c in clients)
        for client in clients:
            for key, _ in client.under_way:
                if key:
                    self.unknown.append(key)
            client.under_way.clear()
            if client.transport is not None:
                client.transport.abort()

    async def _connect(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> Client:
        try:
            _, client = await loop.create_connection(lambda: Client(self), host, port)
        except OSError:
            self.counts["no_connection"] += 1
            return Client(self)
        return client

    def report(self, took_s: float) -> dict[str, object]:
        ordered = sorted(self.latencies) or [0.0]
        return {
            "counts": dict(self.counts),
            "per_second": round(len(self.latencies) / took_s),
            "p50_s": round(ordered[len(ordered) // 2], 4),
            "p99_s": round(ordered[len(ordered) * 99 // 100], 4),
            "max_s": round(ordered[-1], 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", required=True)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="requests per second; 0: closed loop"
    )
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--prefix", default="load")
    parser.add_argument("--drain", type=float, default=20.0)
    parser.add_argument("--keys", type=Path, required=True, help="file for what became of each key")
    options = parser.parse_args()
    load = Load(options)
    began = time.monotonic()
    try:
        import uvloop
    except ImportError:
        asyncio.run(load.run())
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(load.run())
    took_s = max(load.last_s - began, 0.001)
    options.keys.write_text(
        json.dumps([load.acknowledged, load.refused, load.unknown]), encoding="utf-8"
    )
    print(json.dumps(load.report(took_s)))


if __name__ == "__main__":
    main()

"""Clients that hold locks, and watchers, which write down what they were told and when."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.plain_http import Answer, Connection, NeverSent, NoAnswer
from tests.chaos.processes import Cluster

TTL_S = 5.0
LOCK_DELAY_S = 1.0
_ASK_S = 15.0
"""A node without a leader holds a request for 7 s before it says so."""


class Asker:
    """One request after the other, to any node that runs; moves on when one does not answer."""

    def __init__(self, made: Cluster, rng: random.Random) -> None:
        self._made = made
        self._rng = rng
        self._connection: Connection | None = None

    async def try_once(self, method: str, target: str, body: bytes = b"") -> Answer | None:
        """Ask; None when nobody knows what became of it, or nobody was asked."""
        if self._connection is None:
            running = [node for node in self._made.nodes if node.is_running]
            if not running:
                await asyncio.sleep(0.05)
                return None
            node = self._rng.choice(running)
            self._connection = Connection(socket_of, node.host, node.http_port)
        try:
            answer = await self._connection.request(method, target, body, timeout_s=_ASK_S)
        except (NeverSent, NoAnswer):
            self.close()
            await asyncio.sleep(0.02)
            return None
        return answer if answer.status in (200, 404) else None

    async def until_answered(self, method: str, target: str, body: bytes = b"") -> Answer:
        """For what may be done twice."""
        while (answer := await self.try_once(method, target, body)) is None:
            self.close()
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def socket_of() -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    return made


@dataclass
class Hold:
    """A lock that a client was told to have."""

    key: str
    session: str
    index: int
    """Of the entry that gave it."""
    told_at: float
    renewed_at: float
    """When the last renewal that succeeded was sent; the session lives for the TTL from then at least."""
    released: int = 0
    """Index of the release; 0: none, or unknown."""
    release_asked_at: float = 0.0
    """When a release was asked for of which nobody knows what became; 0: there is none."""
    destroyed_at: float = 0.0
    """When the session's end was asked for; 0: it was not."""


@dataclass
class Notes:
    """What all clients together saw."""

    holds: list[Hold] = field(default_factory=list)
    refused: int = 0
    sessions: int = 0
    violations: list[str] = field(default_factory=list)


class Locker:
    """Takes locks and gives them back, lets go of sessions, or abandons them, until told to stop."""

    def __init__(
        self, made: Cluster, number: int, keys: list[str], notes: Notes, stop: asyncio.Event
    ) -> None:
        self._rng = random.Random(f"locker {number}")
        self._ask = Asker(made, self._rng)
        self._number = number
        self._keys = keys
        self._notes = notes
        self._stop = stop

    async def run(self) -> None:
        while not self._stop.is_set():
            await self._live()
        self._ask.close()

    async def _live(self) -> None:
        """One session."""
        renewed_at = time.monotonic()
        body = {"TTL": f"{TTL_S:g}s", "LockDelay": f"{LOCK_DELAY_S:g}s", "Name": f"c{self._number}"}
        made = await self._ask.try_once("PUT", "/v1/session/create", json.dumps(body).encode())
        if made is None:
            return
        session = json.loads(made.body)["ID"]
        self._notes.sessions += 1
        key = self._rng.choice(self._keys)
        for _ in range(self._rng.randint(1, 60)):
            if self._stop.is_set():
                break
            if time.monotonic() - renewed_at > TTL_S / 3:
                alive, renewed_at = await self._renew(session, renewed_at)
                if not alive:
                    return
            value = f"{self._number} {session}".encode()
            answer = await self._ask.try_once("PUT", f"/v1/kv/{key}?acquire={session}", value)
            if answer is None:
                break  # it may come true later: the session ends, and nothing with it
            if answer.body == b"true":
                hold = Hold(key, session, answer.index, time.monotonic(), renewed_at)
                self._notes.holds.append(hold)
                await self._hold(hold)
                return
            self._notes.refused += 1
            await asyncio.sleep(self._rng.uniform(0.02, 0.3))
        await self._ask.until_answered("PUT", f"/v1/session/destroy/{session}")

    async def _hold(self, hold: Hold) -> None:
        until = time.monotonic() + self._rng.uniform(0.0, 2.5)
        while time.monotonic() < until:
            alive, hold.renewed_at = await self._renew(hold.session, hold.renewed_at)
            if not alive:
                return
            seen = await self._ask.try_once("GET", f"/v1/kv/{hold.key}?consistent")
            if seen is not None:
                owner = json.loads(seen.body)[0].get("Session") if seen.status == 200 else None
                age = time.monotonic() - hold.renewed_at
                if owner != hold.session and age < TTL_S:
                    self._complain(f"{hold} was lost after {age:.2f} s to {owner}")
            await asyncio.sleep(self._rng.uniform(0.05, 0.4))
        way = self._rng.random()
        if way < 0.6:
            target = f"/v1/kv/{hold.key}?release={hold.session}"
            asked_at = time.monotonic()
            answer = await self._ask.try_once("PUT", target, b"free")
            hold.release_asked_at = asked_at if answer is None else 0.0
            if answer is not None and answer.body == b"true":
                hold.released = answer.index
                await self._ask.until_answered("PUT", f"/v1/session/destroy/{hold.session}")
                return
        if way < 0.9:
            hold.destroyed_at = time.monotonic()
            await self._ask.until_answered("PUT", f"/v1/session/destroy/{hold.session}")

    async def _renew(self, session: str, renewed_at: float) -> tuple[bool, float]:
        sent = time.monotonic()
        answer = await self._ask.try_once("PUT", f"/v1/session/renew/{session}")
        if answer is None:
            return True, renewed_at
        if answer.status == 200:
            return True, sent
        age = time.monotonic() - renewed_at
        if age < TTL_S:
            self._complain(f"session {session} was gone {age:.2f} s after a renewal, TTL {TTL_S}")
        return False, renewed_at

    def _complain(self, text: str) -> None:
        self._notes.violations.append(text)


def check_holds(notes: Notes) -> None:
    """Never two holders by index, no session ended early, lock-delay kept."""
    assert not notes.violations, notes.violations[:5]
    by_key: dict[str, list[Hold]] = {}
    for hold in notes.holds:
        by_key.setdefault(hold.key, []).append(hold)
    for holds in by_key.values():
        holds.sort(key=lambda hold: hold.index)
        for one, other in itertools.pairwise(holds):
            assert one.index < other.index, (one, other)
            assert one.session != other.session, (one, other)
            if one.released:
                assert one.released < other.index, (one, other)
            elif one.release_asked_at:  # if it came true, no session ended, and there is no delay
                assert other.told_at >= one.release_asked_at, (one, other)
            elif one.destroyed_at:
                assert other.told_at >= one.destroyed_at + LOCK_DELAY_S, (one, other)
            else:
                assert other.told_at >= one.renewed_at + TTL_S + LOCK_DELAY_S, (one, other)


class Watcher:
    """Follows a prefix by blocking queries, over all nodes, and keeps what it saw last."""

    def __init__(self, made: Cluster, number: int, prefix: str) -> None:
        self._ask = Asker(made, random.Random(f"watcher {number}"))
        self.prefix = prefix
        self.index = 0
        self.state: dict[str, tuple[str, int]] = {}
        self.wakes = 0
        self.fell: list[tuple[int, int]] = []

    async def run(self) -> None:
        while True:
            target = f"/v1/kv/{self.prefix}?recurse&wait=10s"
            answer = await self._ask.try_once(
                "GET", target + (f"&index={self.index}" if self.index else "")
            )
            if answer is None:
                self._ask.close()
                continue
            index = int(answer.headers["x-consul-index"])
            if index < self.index:
                self.fell.append((self.index, index))
            self.wakes += index != self.index
            self.index = index
            self.state = pairs(answer)


def pairs(answer: Answer) -> dict[str, tuple[str, int]]:
    """What a recursive read returned: value and ModifyIndex by key."""
    found: list[dict[str, Any]] = json.loads(answer.body) if answer.status == 200 else []
    return {
        item["Key"]: (base64.b64decode(item["Value"] or "").decode(), item["ModifyIndex"])
        for item in found
    }


async def write_under(
    made: Cluster, number: int, prefix: str, stop: asyncio.Event, counts: dict[str, int]
) -> None:
    """Put and delete some keys of a prefix until told to stop."""
    rng = random.Random(f"writer {number}")
    ask = Asker(made, rng)
    sequence = 0
    while not stop.is_set():
        sequence += 1
        key = f"{prefix}{rng.randrange(5)}"
        way = rng.random()
        if way < 0.75:
            answer = await ask.try_once("PUT", f"/v1/kv/{key}", f"{sequence}".encode())
        elif way < 0.95:
            answer = await ask.try_once("DELETE", f"/v1/kv/{key}")
        else:
            answer = await ask.try_once("DELETE", f"/v1/kv/{prefix}?recurse")
        counts["acknowledged" if answer is not None else "unknown"] += 1
        await asyncio.sleep(rng.uniform(0.0, 0.1))
    ask.close()

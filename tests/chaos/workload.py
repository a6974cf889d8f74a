"""Clients that write down everything: what they asked, when, and what came of it.

Two kinds of keys. *Shared* keys (``h<epoch>/k<n>``) are written by all clients at once, and are what the
linearizability checker works on; they are left behind every few seconds for new ones, so that each key's
history stays short. *Ledger* keys (``w/<client>/<n>``) are written once by one client: an acknowledged one
that is not there in the end is a lost write, without any theory.

An operation's outcome is what the manual promises (``docs/http.md``): an answer with ``Retry-After``
has changed nothing, so it is recorded as *failed*, and a value that shows up all the same is a violation.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.lab import HTTP_PORT, LabCluster, LabNode
from tests.chaos.plain_http import Answer, Connection, NeverSent, NoAnswer
from tests.history.operations import Operation, Pending, Recorder

SHARED_KEYS = 8
EPOCH_S = 12.0
"""How long a set of shared keys is used."""
TIMEOUT_S = 3.0
"""How long a client waits for an answer."""
_UNKNOWN = b"the outcome of this write is unknown"
_LARGE_BYTES = 20_000

WEIGHTS = {
    "read": 36,
    "set": 24,
    "cas": 12,
    "ledger": 12,
    "delete": 4,
    "delete_cas": 2,
    "list": 4,
    "names": 2,
    "stale": 4,
    "delete_all": 0.4,
}


@dataclass(frozen=True)
class Listing:
    """One whole list of an epoch's keys: the state of one moment."""

    called: float
    returned: float
    epoch: int
    found: dict[str, int]
    """ModifyIndex of each key that was there."""


@dataclass
class Workload:
    """The clients, and what they wrote down."""

    cluster: LabCluster
    seed: int
    clients: int = 6
    think_s: float = 0.02
    """Average pause of a client between an answer and its next question."""
    recorder: Recorder = field(default_factory=Recorder)
    ledger: dict[str, str] = field(default_factory=dict)
    """Value of each acknowledged ledger key."""
    in_doubt: dict[str, str] = field(default_factory=dict)
    """Ledger keys whose outcome is unknown."""
    listings: list[Listing] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    """Answers that the manual does not know, and lies: each is a failure."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Texts of refusals."""
    acknowledged: list[tuple[float, float]] = field(default_factory=list)
    """When each acknowledged write was asked for, and when it was answered."""
    epochs: int = 1
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _asked: set[str] = field(default_factory=set)
    """Every value that anybody ever tried to write."""

    async def __aenter__(self) -> Workload:
        self._tasks = [
            asyncio.create_task(_Client(self, number).run(), name=f"client-{number}")
            for number in range(self.clients)
        ]
        self._tasks.append(asyncio.create_task(self._turn_epochs(), name="epochs"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let every client finish what it asked; then close the books. Idempotent."""
        self._stop.set()
        tasks, self._tasks = self._tasks, []
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        for pending in list(self.recorder.pending.values()):
            pending.unknown()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def failed(self) -> bool:
        """A client has ended, which none does by itself."""
        return any(task.done() for task in self._tasks)

    async def _turn_epochs(self) -> None:
        while not self._stop.is_set():
            try:
                async with asyncio.timeout(EPOCH_S):
                    await self._stop.wait()
            except TimeoutError:
                self.epochs += 1

    async def pause(self, seconds: float) -> None:
        """Sleep, or less when it is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def first_after(self, moment: float, timeout_s: float) -> float:
        """Seconds from ``moment`` to the first acknowledgement of a write asked for after it.

        Raises:
            AssertionError: None within the time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for called, at in self.acknowledged[-1000:]:
                if called > moment:
                    return at - moment
            await asyncio.sleep(0.02)
        raise AssertionError(f"no write in {timeout_s} s\n{self.cluster.tails()}")

    def completed(self) -> int:
        """Operations with a known outcome other than a refusal."""
        return sum(n for what, n in self.outcomes.items() if what.endswith(" ok"))


def shared_keys(epoch: int) -> list[str]:
    """Names of an epoch's keys."""
    return [f"h{epoch}/k{number}" for number in range(SHARED_KEYS)]


class _Client:
    """One client: one operation at a time, mostly with one node."""

    def __init__(self, load: Workload, number: int) -> None:
        self._load = load
        self._number = number
        self._rng = random.Random(load.seed * 1000 + number)
        self._name = f"c{number}"
        self._retired = 0
        self._sequence = 0
        self._node = self._rng.choice(load.cluster.lab_nodes)
        self._connections: dict[str, Connection] = {}
        self._seen: dict[str, int] = {}
        """ModifyIndex of a key, as last seen by this client."""

    async def run(self) -> None:
        load, rng = self._load, self._rng
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        try:
            while not load.stopping:
                if rng.random() < 0.05:
                    self._node = rng.choice(load.cluster.lab_nodes)
                kind = rng.choices(kinds, weights)[0]
                well = await getattr(self, f"_{kind}")()
                load.outcomes[f"{kind} {'ok' if well else 'not'}"] += 1
                if not well:
                    self._node = rng.choice(load.cluster.lab_nodes)
                    await load.pause(0.05)
                await load.pause(rng.expovariate(1 / load.think_s))
        finally:
            for connection in self._connections.values():
                connection.close()

    # -- operations: each returns whether it was answered ------------------------------------------

    async def _read(self) -> bool:
        key = self._key()
        pending = self._call("read", key)
        style = self._rng.choice(("/v1/kv/{}", "/v1/kv/{}?raw", "/v1/kv/{}?consistent", "/kv/{}"))
        answer = await self._ask("GET", style.format(key), pending)
        if answer is None:
            return False
        if answer.status == 404:
            pending.ok(time.monotonic())
            return True
        value, index = _value_of(answer, v1=style in {"/v1/kv/{}", "/v1/kv/{}?consistent"})
        self._seen[key] = index
        pending.ok(time.monotonic(), value=value, index=index)
        return True

    async def _set(self, cas: int | None = None) -> bool:
        key, value = self._key(), self._value()
        return await self._write("set", key, value, cas)

    async def _cas(self) -> bool:
        key = self._key()
        return await self._write("set", key, self._value(), self._condition(key))

    async def _delete(self) -> bool:
        return await self._write("delete", self._key(), None, None)

    async def _delete_cas(self) -> bool:
        key = self._key()
        return await self._write("delete", key, None, self._seen.get(key, 1))

    async def _write(self, kind: str, key: str, value: str | None, cas: int | None) -> bool:
        pending = self._call("set" if kind == "set" else "delete", key, value=value, cas=cas)
        v1 = self._rng.random() < 0.5
        target = f"{'/v1' if v1 else ''}/kv/{key}" + ("" if cas is None else f"?cas={cas}")
        method = "DELETE" if kind == "delete" else self._rng.choice(("PUT", "PUT", "POST"))
        answer = await self._ask(method, target, pending, (value or "").encode())
        if answer is None:
            return False
        applied = answer.body == b"true" if v1 else answer.status == 200
        now = time.monotonic()
        pending.ok(now, applied=applied, index=answer.index)
        if applied:
            self._seen[key] = answer.index
            self._load.acknowledged.append((pending.called, now))
        return True

    async def _ledger(self) -> bool:
        load = self._load
        self._sequence += 1
        key, value = f"w/{self._name}/{self._sequence}", self._value()
        called = time.monotonic()
        answer = await self._ask("PUT", f"/v1/kv/{key}", None, value.encode(), key)
        if answer is None:
            return False
        if answer.body != b"true":
            load.surprises.append(f"{key}: a plain write answered {answer.body!r}")
        load.ledger[key] = value
        load.acknowledged.append((called, time.monotonic()))
        return True

    async def _list(self) -> bool:
        """A read of every key of the epoch, at one moment."""
        epoch, called = self._load.epochs, time.monotonic()
        answer = await self._ask("GET", f"/v1/kv/h{epoch}/?recurse", None)
        if answer is None:
            return False
        items = json.loads(answer.body) if answer.status == 200 else []
        found = {item["Key"]: item for item in items}
        now = time.monotonic()
        for key in shared_keys(epoch):
            item = found.pop(key, None)
            value = None if item is None else base64.b64decode(item["Value"]).decode()
            index = None if item is None else item["ModifyIndex"]
            self._note_read(key, called, now, value, index)
        if found:
            self._load.surprises.append(f"a list of h{epoch}/ holds {sorted(found)}")
        indexes = {item["Key"]: int(item["ModifyIndex"]) for item in items}
        self._load.listings.append(Listing(called, now, epoch, indexes))
        return True

    async def _names(self) -> bool:
        """Which keys there are: says for the others that they are missing."""
        epoch, called = self._load.epochs, time.monotonic()
        answer = await self._ask("GET", f"/kv/h{epoch}/?keys", None)
        if answer is None:
            return False
        names = set(json.loads(answer.body))
        now = time.monotonic()
        for key in shared_keys(epoch):
            if key not in names:
                self._note_read(key, called, now, None, None)
        return True

    async def _stale(self) -> bool:
        """May be old, but is never a value that nobody asked for."""
        answer = await self._ask("GET", f"/v1/kv/{self._key()}?stale", None)
        if answer is None:
            return False
        if answer.status == 200:
            value, _ = _value_of(answer, v1=True)
            if value not in self._load._asked:
                self._load.surprises.append(f"a stale read showed {value!r:.80}")
        return True

    async def _delete_all(self) -> bool:
        """One deletion of everything in the epoch: a deletion of each key, at one index."""
        epoch = self._load.epochs
        pendings = [self._call("delete", key) for key in shared_keys(epoch)]
        answer = await self._ask("DELETE", f"/v1/kv/h{epoch}/?recurse", pendings)
        if answer is None:
            return False
        now = time.monotonic()
        for pending in pendings:
            pending.ok(now, applied=True, index=answer.index)
        self._load.acknowledged.append((pendings[0].called, now))
        return True

    # -- pieces ------------------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        target: str,
        pending: Pending | Sequence[Pending] | None,
        body: bytes = b"",
        ledger_key: str = "",
    ) -> Answer | None:
        """Ask; an answer that is none is noted on ``pending``, and None is returned."""
        calls = [pending] if isinstance(pending, Pending) else list(pending or ())
        node = self._node
        try:
            connection = self._connection(node)
            answer = await connection.request(method, target, body, timeout_s=TIMEOUT_S)
        except NeverSent:
            for call in calls:
                call.failed()
            return None
        except NoAnswer:
            self._lost(calls, ledger_key, body)
            return None
        outcome = _classify(method, target, answer)
        if outcome == "ok":
            return answer
        text = answer.body.decode(errors="replace").strip()
        self._load.refusals[f"{answer.status} {text[:100]}"] += 1
        if outcome == "refused":
            for call in calls:
                call.failed()
        else:
            if outcome == "surprise":
                self._load.surprises.append(
                    f"{method} {target} -> {node.name}: {answer.status} {text[:200]}"
                )
            self._lost(calls, ledger_key, body)
        return None

    def _lost(self, calls: Sequence[Pending], ledger_key: str, body: bytes) -> None:
        """Nobody knows. The client goes on under another name."""
        for call in calls:
            call.unknown()
        if ledger_key:
            self._load.in_doubt[ledger_key] = body.decode()
        self._retired += 1
        self._name = f"c{self._number}.{self._retired}"

    def _connection(self, node: LabNode) -> Connection:
        found = self._connections.get(node.host)
        if found is None:
            make = self._load.cluster.lab.clients.socket
            found = self._connections[node.host] = Connection(make, node.host, HTTP_PORT)
        return found

    def _call(
        self, kind: str, key: str, *, value: str | None = None, cas: int | None = None
    ) -> Pending:
        assert kind in {"set", "delete", "read"}
        now = time.monotonic()
        return self._load.recorder.call(
            self._name,
            kind,  # type: ignore[arg-type]  # asserted above
            key,
            now,
            value=value,
            cas=cas,
        )

    def _note_read(
        self, key: str, called: float, now: float, value: str | None, index: int | None
    ) -> None:
        operation = Operation(self._name, "read", key, called, now, value, index=index)
        self._load.recorder.operations.append(operation)

    def _key(self) -> str:
        return self._rng.choice(shared_keys(self._load.epochs))

    def _value(self) -> str:
        self._sequence += 1
        size = _LARGE_BYTES if self._rng.random() < 0.01 else self._rng.randrange(200)
        value = f"{self._number}-{self._sequence}-" + "x" * size
        self._load._asked.add(value)
        return value

    def _condition(self, key: str) -> int:
        """Mostly what this client saw last; now and then something that cannot hold."""
        seen = self._seen.get(key, 0)
        return max(0, seen - 1) if self._rng.random() < 0.15 else seen


def _value_of(answer: Answer, *, v1: bool) -> tuple[str, int]:
    if v1:
        (item,) = json.loads(answer.body)
        return base64.b64decode(item["Value"] or "").decode(), int(item["ModifyIndex"])
    index = answer.headers.get("x-kvnode-index") or answer.headers["x-consul-index"]
    return answer.body.decode(), int(index)


def _classify(method: str, target: str, answer: Answer) -> str:
    """``ok``, ``refused`` (certainly without effect), ``unknown``, or ``surprise``."""
    status = answer.status
    if status == 200:
        return "ok"
    if method == "GET":
        if status == 404:
            return "ok"
        return "refused" if "retry-after" in answer.headers else _unanswered_read(answer)
    if status == 409 and "cas=" in target and target.startswith("/kv/"):
        return "ok"
    if status in {500, 503, 429} and "retry-after" in answer.headers:
        return "refused"
    if status in {500, 504} and _UNKNOWN in answer.body:
        return "unknown"
    return "surprise"


def _unanswered_read(answer: Answer) -> str:
    """A read has no outcome to be unknown; it just was not answered in time."""
    return "refused" if answer.status in {500, 503, 504} and answer.body else "surprise"


def written(operations: Sequence[Operation]) -> Callable[[str], list[Operation]]:
    """Effective writes of a key in the order of their indexes."""
    per_key: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.kind != "read" and operation.applied and operation.index is not None:
            per_key.setdefault(operation.key, []).append(operation)
    for found in per_key.values():
        found.sort(key=lambda op: op.index or 0)
    return lambda key: per_key.get(key, [])

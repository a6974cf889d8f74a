"""Blocking queries, as HTTP clients make them, on a key and on prefixes, from node to node (RC-64, RC-65).

The room's own code runs (``http.kv``, ``http.blocking``, ``http.lists``) on the process's clock. A watcher
asks again with the index that it was given, here or at another node. The index is never 0; it falls only
for a list whose tombstones were reaped (spec §2.3), and then the client begins anew, as Consul's do; an
answer shows nothing newer than its index, and nothing changes without it. After the faults have ended every
watcher gets to see the last state, and a few last changes must wake everybody whom they concern.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass, field
from functools import partial

from kvnode.errors import KvnodeError
from kvnode.http import kv
from kvnode.http.blocking import Blocking
from kvnode.http.context import HttpSettings
from kvnode.http.gate import Gate
from kvnode.http.lists import Lists
from kvnode.http.messages import Response, header_pairs
from kvnode.ports import Done
from kvnode.replica.replica import Replica
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvSet,
    ReapGraves,
    Result,
    Value,
)
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client, GaveUp
from tests.simulation.checkers import Violation
from tests.simulation.clock import derive
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

SETTINGS = HttpSettings(node_name="sim", list_turn_s=1e9)
"""A list is built in one turn: real time must not decide anything here."""
_PATHS = (
    b"/v1/kv/k/0",
    b"/v1/kv/k/?recurse",
    b"/v1/kv/?recurse",
    b"/v1/kv/l/?recurse",
    b"/v1/kv/w/a",
    b"/v1/kv/w/?recurse",
)
_CHANGES = ("set a", "delete a", "set b", "delete tree")
"""Of what nobody else changes; in this order each changes something."""
WAKE_S = 1.5
"""Within so much true time of a node's having a change, in a cluster without faults, the change's watchers
there know: less than most waits."""
CATCH_UP_S = 5.0
"""Within so much true time of its being committed every node has a change, in a cluster without faults; a
tenth of a second is usual."""

State = dict[str, tuple[str, int]]
"""Key -> value and ModifyIndex."""


@dataclass
class _Watcher:
    """One client that follows one path."""

    path: bytes
    client: Client = field(repr=False)
    index: int = 0
    state: State | None = field(default=None)
    answers: int = 0
    at: SimNode | None = field(default=None, repr=False)
    life: int = 0
    """Which process it waits at."""

    @property
    def process(self) -> tuple[str, int]:
        """The process that it asked: name of the machine and number of its life."""
        return (self.at.name if self.at is not None else "", self.life)

    @property
    def waits(self) -> bool:
        """Whether the process that it asked still lives; a client may learn of its end late."""
        return self.at is not None and self.at.is_up and self.at.life == self.life


class BlockingQueries(Workload):
    """See the module."""

    name = "blocking queries"
    weights = (0.0, 0.0, 0.5)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._backends: dict[tuple[str, int], kv.Backend] = {}
        self._gates: dict[tuple[str, int], Gate] = {}
        self._watchers: list[_Watcher] = []
        self._reaped = False
        """Tombstones were forgotten."""
        self._values = 0
        self._poke = 0
        """Which of the last changes is next."""
        self._poked: int | None = None
        """Index of the last change, until everybody concerned knows of it."""
        self._poked_at = 0.0
        self._arrived: dict[tuple[str, int], float] = {}
        """When each process was first seen to have that change."""
        self._poking = False
        self._poker = Client("poker", self.rng, lambda: None, 0.1)

    def begin(self) -> None:
        for number in range(self.rng.choice((1, 3, 6))):
            watcher = _Watcher(self.rng.choice(_PATHS), None)  # type: ignore[arg-type]
            again = partial(self._watch, watcher)
            rng = derive(self.bench.seed, f"watcher/{number}")
            watcher.client = Client(f"w{number}", rng, again, 0.002)
            self._watchers.append(watcher)
            self.bench.later(0.2, again)

    def turn(self, client: Client) -> None:
        """A plain read of what some watcher watches, or a change of what nobody else changes."""
        node = client.rng.choice(self.bench.up())
        if client.rng.random() < 0.5:
            command = self._change(client.rng.choice(_CHANGES))
            self.bench.write(client, node, command, lambda _result, _error: None)
        else:
            path = client.rng.choice(self._watchers).path
            self._get(client, node, path, lambda _response, _error: None)

    def _change(self, what: str) -> Command:
        self._values += 1
        match what:
            case "set a":
                return KvSet(b"w/a", b"%d" % self._values)
            case "delete a":
                return KvDelete(b"w/a")
            case "set b":
                return KvSet(b"w/b", b"%d" % self._values)
            case _:
                return KvDeleteTree(b"w/")

    def started(self, node: SimNode) -> None:
        assert node.clock is not None
        assert node.replica is not None
        gate = Gate(connections_max=100, requests_max=1000, bytes_max=1 << 20)
        rng = derive(self.bench.seed, f"jitter/{node.name}/{node.life}")
        blocking = Blocking(node.replica, gate, node.clock, rng)
        lists = Lists(SETTINGS, node.clock)
        self._backends[node.name, node.life] = kv.Backend(node.replica, lists, blocking)
        self._gates[node.name, node.life] = gate

    # -- requests -----------------------------------------------------------------------------

    def _watch(self, watcher: _Watcher) -> None:
        up = self.bench.up()
        if not up:
            self.bench.later(0.2, watcher.client.again)
            return
        rng = watcher.client.rng
        mark = b"&" if b"?" in watcher.path else b"?"
        wait = rng.choice((b"200ms", b"1s", b"4s"))
        target = watcher.path + mark + b"index=%d&wait=%b" % (watcher.index, wait)
        node = rng.choice(up)
        watcher.at, watcher.life = node, node.life
        self._get(watcher.client, node, target, partial(self._answered, watcher))

    def _get(self, client: Client, node: SimNode, target: bytes, answered: Done[Response]) -> None:
        life = (node.name, node.life)
        path, _, query = target.partition(b"?")
        operation = kv.parse("GET", path, query, b"", SETTINGS)
        if isinstance(operation, Response):
            raise TypeError(f"{target!r} was refused: {operation}")

        def send(_replica: Replica, done: Done[Response]) -> None:
            gate = self._gates[life]
            gate.enter()

            def respond(response: Response) -> None:
                gate.leave()
                done(response, None)

            kv.start(operation, self._backends[life], respond)

        self.bench.ask(client, node, f"GET {target.decode()}", send, answered, timeout_s=8.0)

    def _answered(
        self, watcher: _Watcher, response: Response | None, error: KvnodeError | None
    ) -> None:
        if self.bench.winding_down:
            # Nobody else does, but watchers go on: what comes last may come of itself.
            self.bench.later(watcher.client.think_s, self._watch, watcher)
        if response is None or response.status == 500:
            assert response is not None or isinstance(error, GaveUp)
            return
        headers = dict(header_pairs(response.head))
        index = int(headers["X-Consul-Index"])
        state = _state(response)
        if watcher.index > index > 0 and watcher.path.endswith(b"recurse") and self._reaped:
            self.bench.note("watcher began anew")
            watcher.index, watcher.state = 0, None
            return
        if index < max(1, watcher.index):
            raise Violation(f"{watcher.client.name}: index {index} after {watcher.index}")
        newest = max((modify for _, modify in state.values()), default=0)
        if newest > index:
            raise Violation(f"{watcher.client.name}: index {index} with a change at {newest}")
        if index == watcher.index and watcher.state not in (None, state) and not self._reaped:
            raise Violation(
                f"{watcher.client.name}: {watcher.path!r} changed from {watcher.state} to {state}, "
                f"but the index stayed at {index}"
            )
        watcher.answers += index > watcher.index
        watcher.index, watcher.state = index, state
        self.bench.note("watcher woken" if watcher.answers else "watcher timed out")

    def committed(self, index: int, command: Command, value: Value) -> None:
        if isinstance(command, ReapGraves) and value:
            self._reaped = True

    # -- the end ------------------------------------------------------------------------------

    def missing(self) -> str | None:
        behind = [w for w in self._watchers if w.state != _wanted(self.bench.oracle, w.path)]
        if self._poked is not None:
            self._note_arrivals(self._poked)
            concerned = [w for w in self._watchers if w.waits and _concerns(self._poke, w)]
            asleep = [w for w in concerned if w.index < self._poked]
            for watcher in asleep:
                arrived = self._arrived.get(watcher.process)
                change = f"{_CHANGES[self._poke]} at {self._poked}"
                if arrived is not None and self.bench.now > arrived + WAKE_S:
                    raise Violation(f"{watcher} slept through {change}")
                if arrived is None and self.bench.now > self._poked_at + CATCH_UP_S:
                    raise Violation(f"{watcher.process} has not got {change}")
            if not asleep:
                self._poked, self._poke = None, self._poke + 1
                self.bench.note("watchers poked")
        elif not behind and not self._poking and self._poke < len(_CHANGES) and self.bench.up():
            self._poking = True
            node = self.rng.choice(self.bench.up())
            change = self._change(_CHANGES[self._poke])
            self.bench.write(self._poker, node, change, self._has_poked)
        if behind:
            return f"{behind[0].client.name} has not seen the last state of {behind[0].path!r}"
        return "the last changes" if self._poke < len(_CHANGES) else None

    def _has_poked(self, result: Result | None, _error: KvnodeError | None) -> None:
        self._poking = False
        if result is not None:
            self._poked, self._poked_at = result.index, self.bench.now
            self._arrived.clear()

    def _note_arrivals(self, index: int) -> None:
        for node in self.bench.up():
            if node.replica is not None and node.replica.store.applied_index >= index:
                self._arrived.setdefault((node.name, node.life), self.bench.now)


def _concerns(poke: int, watcher: _Watcher) -> bool:
    """Whether one of the last changes must wake a watcher."""
    if watcher.path.endswith(b"w/a"):
        return poke < 2
    return watcher.path in {b"/v1/kv/?recurse", b"/v1/kv/w/?recurse"}


def _state(response: Response) -> State:
    if response.status == 404:
        return {}
    return {
        item["Key"]: (b64decode(item["Value"] or "").decode(), item["ModifyIndex"])
        for item in json.loads(response.body)
    }


def _wanted(store: Store, path: bytes) -> State:
    key, _, query = path.removeprefix(b"/v1/kv/").partition(b"?")
    pairs = store.list(key) if query else [store.get(key)]
    return {p.key.decode(): (p.value.decode(), p.modify_index) for p in pairs if p is not None}

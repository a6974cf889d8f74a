"""Blocking queries, as HTTP clients make them, on a key and on prefixes, from node to node (RC-64, RC-65).

The room's own code runs (``http.kv``, ``http.blocking``, ``http.lists``) on the process's clock. A watcher
asks again with the index that it was given, here or at another node. The index is never 0; it falls only
for a list whose tombstones were reaped (spec §2.3), and then the client begins anew, as Consul's do; an
answer shows nothing newer than its index, and nothing changes without it; after the faults have ended
every watcher gets to see the last state.
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
from kvnode.store.commands import Command, ReapGraves, Value
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client, GaveUp
from tests.simulation.checkers import Violation
from tests.simulation.clock import derive
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

SETTINGS = HttpSettings(node_name="sim", list_turn_s=1e9)
"""A list is built in one turn: real time must not decide anything here."""
_PATHS = (b"/v1/kv/k/0", b"/v1/kv/k/?recurse", b"/v1/kv/?recurse", b"/v1/kv/l/?recurse")

State = dict[str, tuple[str, int]]
"""Key -> value and ModifyIndex."""


@dataclass
class _Watcher:
    """One client that follows one path."""

    path: bytes
    client: Client
    index: int = 0
    state: State | None = field(default=None)
    answers: int = 0


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

    def begin(self) -> None:
        for number in range(self.rng.choice((1, 3, 6))):
            watcher = _Watcher(self.rng.choice(_PATHS), None)  # type: ignore[arg-type]
            again = partial(self._watch, watcher)
            rng = derive(self.bench.seed, f"watcher/{number}")
            watcher.client = Client(f"w{number}", rng, again, 0.002)
            self._watchers.append(watcher)
            self.bench.later(0.2, again)

    def turn(self, client: Client) -> None:
        """A plain read of what some watcher watches."""
        watcher = client.rng.choice(self._watchers)
        node = client.rng.choice(self.bench.up())
        self._get(client, node, watcher.path, lambda _response, _error: None)

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
        self._get(watcher.client, rng.choice(up), target, partial(self._answered, watcher))

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
        if index == watcher.index and watcher.state not in (None, state):
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
        for watcher in self._watchers:
            if watcher.state != _wanted(self.bench.oracle, watcher.path):
                return f"{watcher.client.name} has not seen the last state of {watcher.path!r}"
        return None


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

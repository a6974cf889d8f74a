"""Keys and values: set, compare-and-set, delete, delete a tree, read and list.

The clients' history must be linearizable, key by key; the index that linearizable reads show never
falls; at the end nothing acknowledged is missing.
"""

from __future__ import annotations

from kvnode.errors import KvnodeError
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, Result
from kvnode.store.store import Store
from tests.history.linearizability import Verdict, check
from tests.history.operations import Kind, Pending
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode, is_retryable
from tests.simulation.workloads.base import Workload

PREFIX = b"k/"
_KINDS = ("set", "cas", "read", "list", "delete", "tree")
_WEIGHTS = (8, 4, 8, 1, 2, 0.2)

Found = dict[str, tuple[str, int]]
"""Key -> value and ModifyIndex."""


class Keys(Workload):
    """See the module."""

    name = "keys"
    weights = (10.0,)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._values = 0
        self._names = [f"k/{number}" for number in range(bench.swarm.keys)]
        self._reads: list[tuple[float, float, int]] = []
        """Call, return, and the index that the read showed."""

    def turn(self, client: Client) -> None:
        rng = client.rng
        node = rng.choice(self.bench.up())
        key = rng.choice(self._names)
        kind = rng.choices(_KINDS, _WEIGHTS)[0]
        if kind == "read":
            self._read(client, node, key)
        elif kind == "list":
            self._list(client, node)
        else:
            self._write(client, node, kind, key)

    def _write(self, client: Client, node: SimNode, kind: str, key: str) -> None:
        if kind == "tree":
            command: Command = KvDeleteTree(PREFIX)
            call = _Call(self.bench, client, "delete", self._names)
        elif kind == "delete":
            command = KvDelete(key.encode())
            call = _Call(self.bench, client, "delete", [key])
        else:
            self._values += 1
            value = f"v{self._values}"
            cas = self._some_index(client, key) if kind == "cas" else None
            command = KvSet(key.encode(), value.encode(), cas=cas)
            call = _Call(self.bench, client, "set", [key], value, cas)
        self.bench.write(client, node, command, call.wrote)

    def _some_index(self, client: Client, key: str) -> int:
        operations = self.bench.recorder.operations
        known = [op.index for op in operations[-20:] if op.key == key]
        return client.rng.choice([0, *(index for index in known if index)])

    def _read(self, client: Client, node: SimNode, key: str) -> None:
        call = _Call(self.bench, client, "read", [key])

        def look(store: Store) -> Found:
            pair = store.get(key.encode())
            self._reads.append((call.called, self.bench.now, store.kv_index()))
            return {} if pair is None else {key: (pair.value.decode(), pair.modify_index)}

        self.bench.read(client, node, f"read {key}", look, call.read)

    def _list(self, client: Client, node: SimNode) -> None:
        call = _Call(self.bench, client, "read", self._names)

        def look(store: Store) -> Found:
            pairs = store.list(PREFIX)
            return {p.key.decode(): (p.value.decode(), p.modify_index) for p in pairs}

        self.bench.read(client, node, "list", look, call.read)

    # -- the end ------------------------------------------------------------------------------

    def finish(self, store: Store) -> None:
        for pending in list(self.bench.recorder.pending.values()):
            pending.unknown()
        self._check_read_indexes()
        report = check(self.bench.recorder.operations, steps_max=300_000)
        if report.verdict is Verdict.VIOLATION:
            raise Violation(f"the history is not linearizable: {report.explanation}")
        if report.verdict is Verdict.UNKNOWN:
            self.bench.note("history_unknown")
        self._check_final_state(store)

    def _check_read_indexes(self) -> None:
        """The index that a linearizable read shows never falls from one to a later one (RC-64)."""
        highest = 0
        by_return = sorted(self._reads, key=lambda r: r[1])
        position = 0
        for called, _returned, index in sorted(self._reads):
            while position < len(by_return) and by_return[position][1] < called:
                highest = max(highest, by_return[position][2])
                position += 1
            if index < highest:
                raise Violation(f"a read showed index {index} after one had shown {highest}")

    def _check_final_state(self, store: Store) -> None:
        """Whatever a last write acknowledged is there (the history says so, too)."""
        operations = self.bench.recorder.operations
        newest: dict[str, tuple[int, str | None]] = {}
        for op in operations:
            if op.kind != "read" and op.applied and op.index is not None:
                value = op.value if op.kind == "set" else None
                newest[op.key] = max(newest.get(op.key, (0, None)), (op.index, value), key=_first)
        unknown = {op.key for op in operations if op.unknown}
        for key, (index, value) in sorted(newest.items()):
            pair = store.get(key.encode())
            found = pair.value.decode() if pair is not None else None
            if found != value and key not in unknown:
                raise Violation(f"{key} ends as {found}, but index {index} wrote {value}")


def _first(item: tuple[int, str | None]) -> int:
    return item[0]


class _Call:
    """One operation of one client: noted for every key that it touches."""

    def __init__(
        self,
        bench: Bench,
        client: Client,
        kind: Kind,
        keys: list[str],
        value: str | None = None,
        cas: int | None = None,
    ) -> None:
        self._bench = bench
        self.called = bench.now
        self._pending: dict[str, Pending] = {
            key: bench.recorder.call(client.name, kind, key, self.called, value=value, cas=cas)
            for key in keys
        }

    def wrote(self, result: Result | None, error: KvnodeError | None) -> None:
        if result is None:
            self._failed(error)
            return
        for pending in self._pending.values():
            pending.ok(self._bench.now, applied=bool(result.value), index=result.index)

    def read(self, found: Found | None, error: KvnodeError | None) -> None:
        if found is None:
            self._failed(error)
            return
        for key, pending in self._pending.items():
            value, index = found.get(key, (None, None))
            pending.ok(self._bench.now, value=value, index=index)

    def _failed(self, error: KvnodeError | None) -> None:
        assert error is not None
        for pending in self._pending.values():
            if is_retryable(error):
                pending.failed()
            else:
                pending.unknown()

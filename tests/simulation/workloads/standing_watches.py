"""Watches that stand for the whole life of a process, on a key and on a prefix: none sleeps through a
change, and none is told of one before it was applied (RC-65).
"""

from __future__ import annotations

from typing import Any

from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

_WATCHED: tuple[tuple[bytes, bool], ...] = ((b"k/0", False), (b"k/", True))


class StandingWatches(Workload):
    """No operations of its own: it stands beside those of the others."""

    name = "standing watches"
    weights = (1e-9,)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._seen: dict[tuple[str, bytes, bool], list[tuple[bytes, int]]] = {}
        """What each watch of a machine's present life saw when it was set."""
        self._looked_at: dict[str, int] = {}
        """Machine -> index of the last change when its watches were last looked at."""

    def turn(self, client: Client) -> None:
        node = client.rng.choice(self.bench.up())
        self.bench.read(client, node, "index", lambda store: store.kv_index(), _nothing)

    def started(self, node: SimNode) -> None:
        for key, is_prefix in _WATCHED:
            self._watch(node, key, is_prefix=is_prefix)

    def _watch(self, node: SimNode, key: bytes, *, is_prefix: bool) -> None:
        """Read and watch in one go, as a blocking query does; once more after each call."""
        replica = node.replica
        assert replica is not None

        def changed(index: int) -> None:
            if index > replica.store.applied_index:
                raise Violation(f"{node.name}: a watch was told of {index} before it was applied")
            self._watch(node, key, is_prefix=is_prefix)

        self._seen[node.name, key, is_prefix] = _look(replica.store, key, is_prefix=is_prefix)
        replica.watches.watch(key, is_prefix=is_prefix, callback=changed)

    def applied(self, node: SimNode) -> None:
        assert node.replica is not None
        newest = node.replica.store.kv_index()
        if self._looked_at.get(node.name) == newest:
            return
        self._looked_at[node.name] = newest
        for key, is_prefix in _WATCHED:
            seen = self._seen[node.name, key, is_prefix]
            now = _look(node.replica.store, key, is_prefix=is_prefix)
            if now != seen:
                raise Violation(f"{node.name}: a watch of {key!r} slept from {seen} to {now}")


def _look(store: Store, key: bytes, *, is_prefix: bool) -> list[tuple[bytes, int]]:
    """What a watcher would compare: keys and their ModifyIndex."""
    pairs = store.list(key) if is_prefix else [store.get(key)]
    return [(pair.key, pair.modify_index) for pair in pairs if pair is not None]


def _nothing(_value: Any, _error: Any) -> None:
    """Nobody looks at the answer."""

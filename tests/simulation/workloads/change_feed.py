"""Readers of the window of changes, who go on from node to node, and reads of the past.

The truth is the difference that each committed entry makes to the oracle's state. A reader keeps nothing but
its place; whatever node it asks next gives exactly what follows there, or says that the place is compacted,
and that only when it is. A standing feed parks on a node's watches as the HTTP room's feeds do, and takes
``Watches.settled`` for its place when it is woken: it misses nothing either.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from kvnode.errors import Compacted, KvnodeError
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvSet,
    Result,
    TrimHistory,
    Txn,
    TxnOp,
    Value,
    Verb,
)
from kvnode.store.history import Change, Changes, Position
from kvnode.store.records import KVPair
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

WINDOWS = (5, 30, 200, 100_000)
"""Bounds on the changes that are kept, one per seed."""
_PREFIXES = (b"", b"f/", b"f/1", b"k/", b"k/0", b"nothing/")
_KEYS = tuple(b"f/%d" % number for number in range(4))


class _Read(NamedTuple):
    """What a node said."""

    part: Changes | None
    """None: the place is compacted, or ahead of the node."""
    floor: int
    applied: int


class _Past(NamedTuple):
    """What a node said of a key's past."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    found: bool
    pair: KVPair | None
    floor: int


@dataclass
class _Reader:
    """One client's place in the window."""

    prefix: bytes
    position: Position | None = None
    busy: bool = False


class ChangeFeed(Workload):
    """Writes of its own under ``f/``, and readers of everything."""

    name = "change feed"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._readers = [_Reader(prefix) for prefix in _PREFIXES]
        self._state: dict[bytes, KVPair] = {}
        self._changes: list[tuple[int, bytes, KVPair | None, KVPair | None]] = []
        self._order: list[tuple[int, bytes]] = []
        """Index and key of each of them."""

    @classmethod
    def window(cls, seed: int) -> int:
        """How many changes are kept in a seed."""
        return WINDOWS[seed % len(WINDOWS)]

    # -- the truth --------------------------------------------------------------------------------

    def committed(self, index: int, command: Command, value: Value) -> None:
        if isinstance(command, TrimHistory):
            self.bench.note("history trimmed")
            return
        now = {pair.key: pair for pair in self.bench.oracle.list(b"")}
        before, self._state = self._state, now
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key), now.get(key)
            if old != new:
                self._changes.append((index, key, old, new))
                self._order.append((index, key))

    def _between(
        self, since: Position, until: Position, prefix: bytes
    ) -> list[tuple[int, bytes, KVPair | None, KVPair | None]]:
        start, stop = (bisect_right(self._order, _as_key(at)) for at in (since, until))
        return [change for change in self._changes[start:stop] if change[1].startswith(prefix)]

    def _as_of(self, key: bytes, index: int) -> KVPair | None:
        """What a key was: the old value of its next change, or what it is."""
        for change in self._changes[bisect_left(self._order, (index + 1, b"")) :]:
            if change[1] == key:
                return change[2]
        return self._state.get(key)

    def _check(self, who: str, reader: _Reader, since: Position, read: _Read) -> None:
        """Compare what a node told with the truth, and move the reader's place."""
        low = since.index if since.key is None else since.index - 1
        if read.part is None:
            if read.floor <= low <= read.applied:
                raise Violation(f"{who}: {since} is said to be compacted at {read.floor}")
            if low > read.applied:
                raise Violation(f"{who}: {since} is ahead of {read.applied}, and was read before")
            if low < read.floor:
                self.bench.note("feed was compacted")
                reader.position = None
            return
        if not read.floor <= low:
            raise Violation(f"{who}: changes from {since}, below the window at {read.floor}")
        told = [_plain(change) for change in read.part.found]
        truth = self._between(since, read.part.position, reader.prefix)
        if told != truth:
            raise Violation(f"{who}: {reader.prefix!r} from {since}: told {told}, was {truth}")
        if read.part.complete and read.part.position != (read.applied, None):
            raise Violation(f"{who}: complete at {read.part.position}, applied {read.applied}")
        reader.position = read.part.position
        self.bench.note("feed read")

    # -- clients ----------------------------------------------------------------------------------

    def turn(self, client: Client) -> None:
        node = client.rng.choice(self.bench.up())
        dice = client.rng.random()
        free = [reader for reader in self._readers if not reader.busy]
        if dice < 0.4 or not free:
            self.bench.write(client, node, self._draw(client), _ignore)
        elif dice < 0.85:
            self._read_on(client, node, client.rng.choice(free))
        else:
            self._look_back(client, node)

    def _draw(self, client: Client) -> Command:
        rng = client.rng
        key, value = rng.choice(_KEYS), b"%d" % rng.randrange(5)
        kind = rng.randrange(10)
        if kind < 6:
            return KvSet(key, value)
        if kind < 7:
            return KvDelete(key)
        if kind < 8:
            return KvDeleteTree(rng.choice((b"f/", b"f/1")))
        verbs = [
            (rng.choice((Verb.SET, Verb.SET, Verb.DELETE)), key) for key in rng.sample(_KEYS, 3)
        ]
        verbs.append((Verb.SET, key))
        return Txn(tuple(TxnOp(verb, name, value) for verb, name in verbs), 1000)

    def _read_on(self, client: Client, node: SimNode, reader: _Reader) -> None:
        since, rows_max = reader.position, client.rng.choice((1, 3, 1000))
        reader.busy = True

        def look(store: Store) -> _Read:
            if since is None:
                at = Position(store.applied_index, None)
                return _Read(
                    Changes((), at, True, True), store.history_floor(), store.applied_index
                )
            return _changes(store, since, reader.prefix, rows_max)

        def answered(read: _Read | None, error: KvnodeError | None) -> None:
            reader.busy = False
            if read is None:
                return  # the place stays: whoever is asked next tells the same
            if since is None:
                assert read.part is not None, "it begins now"
                reader.position = read.part.position
            else:
                self._check(node.name, reader, since, read)

        self.bench.read(client, node, f"changes of {reader.prefix!r} from {since}", look, answered)

    def _look_back(self, client: Client, node: SimNode) -> None:
        key = client.rng.choice(_KEYS)
        back = client.rng.choice((0, 1, 5, 40))

        def look(store: Store) -> _Past:
            index = max(0, store.applied_index - back)
            try:
                return _Past(index, True, store.as_of(key, index), store.history_floor())
            except Compacted:
                return _Past(index, False, None, store.history_floor())

        def answered(past: _Past | None, error: KvnodeError | None) -> None:
            if past is None:
                return
            if past.found != (past.floor <= past.index):
                raise Violation(f"{key!r} at {past.index}: known {past.found}, from {past.floor}")
            if past.found and past.pair != self._as_of(key, past.index):
                raise Violation(f"{key!r} was not {past.pair} at {past.index}")
            self.bench.note("past read")

        self.bench.read(client, node, f"{key!r} {back} back", look, answered)

    # -- standing feeds ---------------------------------------------------------------------------

    def started(self, node: SimNode) -> None:
        assert node.replica is not None
        for prefix in (b"f/", b"k/"):
            position = Position(node.replica.store.applied_index, None)
            self._park(node, _Reader(prefix, position))

    def _park(self, node: SimNode, reader: _Reader) -> None:
        replica = node.replica
        assert replica is not None
        watches = replica.watches

        def woken(_index: int) -> None:
            assert reader.position is not None, "set before it parks"
            if watches.settled > reader.position.index:
                settled = Position(watches.settled, None)
                if missed := self._between(reader.position, settled, reader.prefix):
                    raise Violation(f"{node.name}: settled at {settled.index}, without {missed}")
                reader.position = settled
            self.bench.in_process(node, self.rng.uniform(0, 0.2), partial(self._tell, node, reader))

        watches.watch(reader.prefix, is_prefix=True, callback=woken)

    def _tell(self, node: SimNode, reader: _Reader) -> None:
        assert node.replica is not None, "this runs in its process"
        store = node.replica.store
        while True:
            since = reader.position
            assert since is not None, "set below"
            read = _changes(store, since, reader.prefix, 2)
            self._check(f"feed at {node.name}", reader, since, read)
            if reader.position is None:
                reader.position = Position(store.applied_index, None)
                break
            if read.part is None or read.part.complete:
                break
        self._park(node, reader)

    def finish(self, store: Store) -> None:
        for reader in self._readers:
            while (since := reader.position) is not None:
                read = _changes(store, since, reader.prefix, 2)
                self._check("at the end", reader, since, read)
                if read.part is None or read.part.complete:
                    break
        floor, applied = store.history_floor(), store.applied_index
        for key in _KEYS:
            for index in range(floor, applied + 1, 1 + (applied - floor) // 50):
                if store.as_of(key, index) != self._as_of(key, index):
                    raise Violation(f"{key!r} at {index}: {store.as_of(key, index)}")


def _changes(store: Store, since: Position, prefix: bytes, rows_max: int) -> _Read:
    try:
        part = store.changes(since, prefix, rows_max=rows_max)
    except Compacted:
        part = None
    return _Read(part, store.history_floor(), store.applied_index)


def _plain(change: Change) -> tuple[int, bytes, KVPair | None, KVPair | None]:
    return change.index, change.key, change.old, change.new


def _as_key(position: Position) -> tuple[int, bytes]:
    index, key = position
    return (index, key) if key is not None else (index + 1, b"")


def _ignore(_result: Result | None, _error: KvnodeError | None) -> None:
    """Whatever became of it is in the log."""

"""Keys that expire, counters with writes sent again, and prefixes that move.

Judged by the order of the log and by true time, with rules written down here a second time:

- a key that expires is deleted only when its whole time has passed by the clock of the leader who proposes
  it, counted from the commit or from when that leader came into office; never after it was written anew;
  and after the faults have ended it is deleted;
- a write with an idempotency key that is sent until somebody answers is done once: each number of the
  counter is told for one key only, and the counter is the number of keys;
- five keys move between two prefixes: whoever looks, on any node, sees all of them on one side.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.errors import KvnodeError
from kvnode.raft.types import NodeId
from kvnode.replica.expiry import Timed
from kvnode.replica.facade import Consistency
from kvnode.replica.office_clock import STEP_MAX_S
from kvnode.store.commands import Command, KvDelete, KvSet, Result, Txn, TxnOp, Value, Verb
from kvnode.store.own_commands import KvAdd, KvCopy, KvExpire, KvPut, Once, ReapOnce
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

COUNTER = b"n/counter"
TIMED_KEYS = 5
SIDES = (b"m/a/", b"m/b/")
NAMES = tuple(b"%d" % number for number in range(5))
OPEN_MAX = 12
"""Writes whose outcome is not known yet, and that are sent again."""


@dataclass
class _Time:
    """The time of one key."""

    index: int
    """At which it began."""
    began: float
    """True time of that commit."""
    ttl_s: float


class BeyondConsul(Workload):
    """See the module."""

    name = "beyond consul"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._numbers = 0
        self._times: dict[bytes, _Time] = {}
        self._offices: dict[tuple[NodeId, int], float] = {}
        self._open: dict[bytes, Once] = {}
        """Counted, as far as its client knows, or not."""
        self._done: dict[bytes, int] = {}
        self._forgotten = 0
        """Keys of writes that the leader's clock took for old."""
        """Idempotency key -> the number that its write gave."""
        self._moving = False
        """The keys that move exist."""

    # -- operations ---------------------------------------------------------------------------

    def turn(self, client: Client) -> None:
        node = client.rng.choice(self.bench.up())
        kind = client.rng.choices(("count", "time", "move", "look"), (5, 4, 3, 3))[0]
        if kind == "count":
            self._count(client, node)
        elif kind == "time":
            self._write_timed(client, node)
        elif kind == "look" and self._moving:
            self._look(client, node)
        else:
            self._move(client, node)

    def _count(self, client: Client, node: SimNode) -> None:
        """Add one; or send again, to any node, what has not been answered."""
        if self._open and (len(self._open) >= OPEN_MAX or client.rng.random() < 0.6):
            once = client.rng.choice(list(self._open.values()))
            self.bench.note("write sent again")
        else:
            self._numbers += 1
            key = b"%d" % self._numbers
            once = Once(key, key.zfill(16), 10**6, 1024, KvAdd(COUNTER, 1))
            self._open[key] = once

        def told(result: Result | None, _error: KvnodeError | None) -> None:
            if result is None:
                return
            self._open.pop(once.key, None)
            if result.value != self._done.get(once.key) and not self._forgotten:
                known = self._done.get(once.key)
                raise Violation(f"write {once.key!r} was told {result.value}, and gave {known}")

        self.bench.write(client, node, once, told, f"count as {once.key!r}")

    def _write_timed(self, client: Client, node: SimNode) -> None:
        rng = client.rng
        key = b"x/%d" % rng.randrange(TIMED_KEYS)
        ttl_ns = int(rng.choice((0.3, 1.0, 2.0, 4.0)) * 1e9)
        value = rng.choice((b"same", b"other"))
        commands: tuple[Command, ...] = (
            KvPut(key, value, ttl_ns=ttl_ns),
            KvSet(key, value),
            KvDelete(key),
        )
        command = rng.choices(commands, (8, 1, 1))[0]
        self.bench.write(client, node, command, _ignore)

    def _move(self, client: Client, node: SimNode) -> None:
        if not self._moving:
            ops = [TxnOp(Verb.CHECK_NOT_EXISTS, side + NAMES[0]) for side in SIDES]
            ops += [TxnOp(Verb.SET, SIDES[0] + name, name) for name in NAMES]
            self.bench.write(client, node, Txn(tuple(ops), 0), _ignore, "put what moves")
            return
        source, target = client.rng.sample(SIDES, 2)
        command = KvCopy(source, target, True, True, False, None, 100, 10_000, 100)
        self.bench.write(client, node, command, _ignore, f"move {source!r} to {target!r}")

    def _look(self, client: Client, node: SimNode) -> None:
        def look(store: Store) -> list[bytes]:
            return list(store.keys(b"m/"))

        def seen(keys: list[bytes] | None, _error: KvnodeError | None) -> None:
            if keys:
                self._check_side(keys, f"a look at {node.name}")

        consistency = client.rng.choice((Consistency.DEFAULT, Consistency.STALE))
        self.bench.read(client, node, f"look {consistency.value}", look, seen, consistency)

    # -- time ---------------------------------------------------------------------------------

    def started(self, node: SimNode) -> None:
        """Look over the shoulder of the node's clocks."""
        assert node.replica is not None
        timers = node.replica.upkeep.expiry.timers
        propose = timers._expire

        def watched(keys: tuple[Timed, ...]) -> None:
            for key, since in keys:
                self._check_time(node, key, since)
            propose(keys)

        timers._expire = watched

    def event(self, node: SimNode, what: str, fields: dict[str, object]) -> None:
        if what == "became_leader":
            assert node.replica is not None
            office = (node.replica.raft.id, node.replica.raft.term)
            self._offices.setdefault(office, self.bench.now)

    def _check_time(self, node: SimNode, key: bytes, since: int) -> None:
        """A leader proposes to delete a key: its time is over by any clock."""
        time = self._times.get(key)
        assert node.replica is not None
        if time is None or time.index != since:
            return  # it was written anew, and the entry will leave it alone
        raft, bench = node.replica.raft, self.bench
        office = self._offices.get((raft.id, raft.term), 0.0)
        began = max(time.began, office)
        most = (bench.now - began) * bench.clock_rate_max
        most += bench.steps_since(began) * STEP_MAX_S
        bench.note("key expired")
        if most < time.ttl_s - 1e-6:
            raise Violation(
                f"{node.name}, leader since {office}, deletes {key!r} of {time} at {bench.now}"
            )

    # -- the log ------------------------------------------------------------------------------

    def committed(self, index: int, command: Command, value: Value) -> None:
        match command:
            case Once(key=key):
                self._counted(index, key, value)
            case ReapOnce():
                assert isinstance(value, int)
                self._forgotten += value
            case KvPut(key=key, ttl_ns=ttl_ns):
                self._times[key] = _Time(index, self.bench.now, ttl_ns / 1e9)
            case KvSet(key=key) | KvDelete(key=key):
                self._times.pop(key, None)
            case KvExpire(keys):
                self._expired(index, keys, value)
            case KvCopy():
                self.bench.note("prefix moved" if value == len(NAMES) else "move refused")
                if value is True or (isinstance(value, int) and value != len(NAMES)):
                    raise Violation(f"{index}: {command} moved {value}")
                self._check_side(list(self.bench.oracle.keys(b"m/")), f"entry {index}")
            case Txn():
                self._moving = self._moving or bool(self.bench.oracle.keys(b"m/"))
            case _:
                pass

    def _counted(self, index: int, key: bytes, value: Value) -> None:
        if self._forgotten:
            return  # by a clock that jumped: who sends again after so long writes again
        expected = self._done.setdefault(key, len(self._done) + 1)
        if value != expected:
            raise Violation(f"{index}: write {key!r} gave {value}, and not {expected}")

    def _expired(self, index: int, keys: tuple[Timed, ...], value: Value) -> None:
        gone = 0
        for key, since in keys:
            time = self._times.get(key)
            if time is not None and time.index == since:
                del self._times[key]
                gone += 1
            elif key in self._times and self.bench.oracle.get(key) is None:
                raise Violation(f"{index}: {key!r} was deleted, though written after {since}")
        if value != gone:
            raise Violation(f"{index}: {value} keys expired, and not {gone}")

    def _check_side(self, keys: list[bytes], where: str) -> None:
        if not any(keys == [side + name for name in NAMES] for side in SIDES):
            raise Violation(f"{where} saw half a move: {keys}")

    # -- the end ------------------------------------------------------------------------------

    def missing(self) -> str | None:
        return f"the end of {next(iter(self._times))!r}" if self._times else None

    def finish(self, store: Store) -> None:
        pair = store.get(COUNTER)
        if self._forgotten:
            self.bench.note("writes forgotten")
        elif (0 if pair is None else int(pair.value)) != len(self._done):
            raise Violation(f"{pair} after {len(self._done)} writes")
        elif store.once_count() != len(self._done):
            raise Violation(f"{store.once_count()} keys of {len(self._done)} writes")
        if store.ttls():
            raise Violation(f"{store.ttls()} should be gone")


def _ignore(_value: object, _error: KvnodeError | None) -> None:
    """The log is the judge."""

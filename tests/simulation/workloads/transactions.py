"""Transactions over a handful of accounts: all or nothing, and every read sees one moment (RC-66).

Money moves from one account to another by transactions that check what they saw; the sum never changes.
Some transactions fail on purpose, after they have already put nonsense into an account. Lists, stale ones
on any node too, and reading transactions must always see the whole sum.
"""

from __future__ import annotations

from kvnode.errors import KvnodeError
from kvnode.replica.facade import Consistency
from kvnode.store.commands import Command, KvSet, Result, Txn, TxnOp, TxnOutcome, Value, Verb
from kvnode.store.records import KVPair
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

ACCOUNTS = tuple(b"a/%d" % number for number in range(4))
EACH = 100
READ_BYTES_MAX = 10_000


class Transactions(Workload):
    """See the module."""

    name = "transactions"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._known: list[KVPair] = []
        """What some client saw last."""
        self._values = 0
        self._begun = False
        """The accounts exist."""

    # -- operations ---------------------------------------------------------------------------

    def turn(self, client: Client) -> None:
        rng = client.rng
        node = rng.choice(self.bench.up())
        if not self._begun:
            self._open(client, node)
            return
        kind = rng.choices(("move", "audit", "read", "fail"), (5, 3, 2, 2))[0]
        if kind == "audit" or not self._known:
            consistency = rng.choice((Consistency.DEFAULT, Consistency.STALE))
            self._audit(client, node, consistency)
        elif kind == "move":
            self._move(client, node)
        elif kind == "read":
            self._read(client, node)
        else:
            self._fail(client, node)

    def _open(self, client: Client, node: SimNode) -> None:
        """All accounts at once, if there are none."""
        ops = [TxnOp(Verb.CHECK_NOT_EXISTS, key) for key in ACCOUNTS]
        ops += [TxnOp(Verb.SET, key, b"%d" % EACH) for key in ACCOUNTS]
        self.bench.write(client, node, Txn(tuple(ops), 0), _ignore, "open accounts")

    def _move(self, client: Client, node: SimNode) -> None:
        source, target = client.rng.sample(self._known, 2)
        amount = client.rng.randint(1, 9)
        ops = (
            TxnOp(Verb.CAS, source.key, _plus(source, -amount), index=source.modify_index),
            TxnOp(Verb.CAS, target.key, _plus(target, amount), index=target.modify_index),
        )

        def moved(result: Result | None, _error: KvnodeError | None) -> None:
            if result is not None and isinstance(result.value, TxnOutcome):
                done = "failed" if result.value.problems else "done"
                self.bench.note(f"transaction {done}")

        text = f"move {amount} from {source.key!r} to {target.key!r}"
        self.bench.write(client, node, Txn(ops, 0), moved, text)

    def _audit(self, client: Client, node: SimNode, consistency: Consistency) -> None:
        def look(store: Store) -> list[KVPair]:
            return store.list(b"a/")

        def seen(pairs: list[KVPair] | None, _error: KvnodeError | None) -> None:
            if pairs:
                self._check(pairs, f"an audit at {node.name}")
                self._known = pairs

        self.bench.read(client, node, f"audit {consistency.value}", look, seen, consistency)

    def _read(self, client: Client, node: SimNode) -> None:
        """A transaction that reads everything and writes something beside it."""
        self._values += 1
        ops = (TxnOp(Verb.GET_TREE, b"a/"), TxnOp(Verb.SET, b"b/seen", b"%d" % self._values))

        def seen(result: Result | None, _error: KvnodeError | None) -> None:
            if result is not None:
                assert isinstance(result.value, TxnOutcome)
                if result.value.problems:
                    raise Violation(f"a read failed: {result.value.problems}")
                self._known = list(result.value.pairs[: len(ACCOUNTS)])
                self._check(self._known, "a reading transaction")

        self.bench.write(client, node, Txn(ops, READ_BYTES_MAX), seen, "read in a transaction")

    def _fail(self, client: Client, node: SimNode) -> None:
        """Its first operations would do harm, its last one cannot hold."""
        keys = client.rng.sample(ACCOUNTS, 2)
        ops = (
            TxnOp(Verb.SET, keys[0], b"1000000"),
            TxnOp(Verb.DELETE, keys[1]),
            TxnOp(Verb.CHECK_INDEX, client.rng.choice(ACCOUNTS), index=1),
        )
        self.bench.write(client, node, Txn(ops, 0), _ignore, "a transaction that must fail")

    # -- invariants ---------------------------------------------------------------------------

    def _check(self, pairs: list[KVPair], where: str) -> None:
        held = {pair.key: int(pair.value) for pair in pairs}
        if tuple(sorted(held)) != ACCOUNTS or sum(held.values()) != EACH * len(ACCOUNTS):
            raise Violation(f"{where} saw {held}")

    def committed(self, index: int, command: Command, value: Value) -> None:
        if isinstance(command, Txn) and any(op.key.startswith(b"a/") for op in command.ops):
            assert isinstance(value, TxnOutcome)
            self._begun = True
            written = {pair.key for pair in value.pairs}
            if value.problems and written:
                raise Violation(f"{index}: a failed transaction returns {written}")
            self._check(self.bench.oracle.list(b"a/"), f"entry {index}")
        elif isinstance(command, KvSet) and command.key.startswith(b"a/"):
            raise AssertionError("only transactions touch accounts")

    def finish(self, store: Store) -> None:
        if self._begun:
            self._check(store.list(b"a/"), "the end")


def _plus(pair: KVPair, amount: int) -> bytes:
    return b"%d" % (int(pair.value) + amount)


def _ignore(_value: object, _error: KvnodeError | None) -> None:
    """The sum is the judge."""

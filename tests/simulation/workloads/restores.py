"""Restores: pieces staged through whatever node, the end put in place, given up, and overtaken.

It replaces everything, also what other workloads count on, so it never takes part beside them: see
``tests/simulation/test_restores.py``.

- A state is whole: every node shows all keys of one restore and nothing of another, at any moment, also when
  it is read stale, in the middle of a rebuild, or right after a crash.
- The index of the keys rises with every restore, and never falls, at any node.
- What is not sound changes nothing, and is answered so; whoever was overtaken is told.
- Each answer is what the log says (``Bench``), and at the end all nodes hold the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvnode.errors import KvnodeError
from kvnode.store.commands import (
    Command,
    KvSet,
    RestoreDrop,
    RestoreFinish,
    Result,
    Value,
)
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload
from tests.store.restores import key_row, pieces, session_row

PREFIX = b"g/"
_TRIES_MAX = 12


@dataclass
class _Job:
    """One restore on its way."""

    commands: list[Command]
    tries: int = 0
    done: int = field(default=0)


class Restores(Workload):
    """See the module."""

    name = "restores"
    weights = (0.0,)

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._numbers = 0
        self._values = 0
        self._jobs: dict[str, _Job] = {}
        """By client."""
        self._newest: dict[tuple[str, int], int] = {}
        """Machine and life -> the index of its keys when it was last looked at."""
        self._unsound: set[str] = set()

    def turn(self, client: Client) -> None:
        rng = client.rng
        node = rng.choice(self.bench.up())
        job = self._jobs.get(client.name)
        if job is None and rng.random() < 0.25:
            job = self._jobs[client.name] = self._new_job(client)
        dice = rng.random()
        if job is not None and dice < 0.8:
            self._go_on(client, node, job)
        elif dice < 0.9:
            self.bench.read(client, node, "list g/", _whole, _ignore)
        else:
            self._values += 1
            key = b"w/%d" % rng.randrange(4)
            self.bench.write(client, node, KvSet(key, b"%d" % self._values), _ignore)

    def _new_job(self, client: Client) -> _Job:
        rng = client.rng
        self._numbers += 1
        number = self._numbers
        restore_id = f"{number:08d}-0000-4000-8000-{self.bench.seed % 10**12:012d}"
        names = [PREFIX + b"%02d" % at for at in range(rng.randrange(2, 30))]
        value = b"%d of %d" % (number, len(names))
        rows = [key_row(name, value, index=rng.choice((1, 50, 10**9))) for name in names]
        if rng.random() < 0.3:
            rows.insert(0, session_row(restore_id, node=rng.choice(self.bench.nodes).name))
        if rng.random() < 0.15:
            rows.append(rows[0])
            self._unsound.add(restore_id)
        commands = pieces(rows, rng.choice((1, 4, 40)), restore_id)
        if rng.random() < 0.1:
            commands[-1] = RestoreDrop(restore_id)
        return _Job(commands)

    def _go_on(self, client: Client, node: SimNode, job: _Job) -> None:
        """Each step may be repeated, whatever became of it."""
        command = job.commands[job.done]

        def answered(result: Result | None, error: KvnodeError | None) -> None:
            if result is None:
                job.tries += 1
            elif result.value:
                job.done += 1
            if (
                job.done == len(job.commands)
                or job.tries >= _TRIES_MAX
                or (result is not None and not result.value)
            ):
                self._jobs.pop(client.name, None)

        text = f"{type(command).__name__} {command[0][:8]} {job.done}"
        self.bench.write(client, node, command, answered, text)

    # -- what must be true ------------------------------------------------------------------------

    def applied(self, node: SimNode) -> None:
        assert node.replica is not None
        store = node.replica.store
        _whole(store)
        life = (node.name, node.life)
        newest = store.kv_index()
        if newest < self._newest.get(life, 0):
            raise Violation(f"{node.name}: the index of the keys fell to {newest}")
        self._newest[life] = newest
        if store.prefix_index(PREFIX) < store.restored_index:
            raise Violation(f"{node.name}: the index of a read is below that of the last restore")

    def committed(self, index: int, command: Command, value: Value) -> None:
        if not isinstance(command, RestoreFinish):
            return
        oracle = self.bench.oracle
        is_newest = oracle.restored_index == index
        self.bench.note({True: "restored", None: "restore unsound"}.get(value, "restore overtaken"))
        if value is None and command.restore_id not in self._unsound:
            raise Violation(f"{index}: a sound restore was refused")
        if value is True and command.restore_id in self._unsound:
            raise Violation(f"{index}: {command} was carried out although it is not sound")
        if is_newest and oracle.staging() is not None:
            raise Violation(f"{index}: a restore left something staged")

    def finish(self, store: Store) -> None:
        _whole(store)


def _whole(store: Store) -> int:
    """All keys of one restore, or none of any."""
    pairs = store.list(PREFIX)
    values = {pair.value for pair in pairs}
    if len(values) > 1 or (pairs and len(pairs) != int(pairs[0].value.split()[-1])):
        raise Violation(f"a mix of states: {len(pairs)} keys of {sorted(values)}")
    if any(pair.modify_index > store.applied_index for pair in pairs):
        raise Violation(f"a key is of the future: {pairs}")
    return len(pairs)


def _ignore(_value: object, _error: KvnodeError | None) -> None:
    """The log is the judge."""

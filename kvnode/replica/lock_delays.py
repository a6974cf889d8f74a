"""How long ago sessions ended, by this node's own clock: for lock-delays (spec §5.5, RC-62).

The store says at which index the lock-delay of a key began and how long it is. Every node notes when it
learned of the ends of sessions, so whoever leads next can go on counting; a node that starts, or is given
a snapshot, counts from then. A delay may so be lengthened, and is never shortened. Nothing here reads
the wall clock, and nothing of it is replicated: what the leader decides is whether it proposes a lock at
all, and the store refuses locks that the leader decided on too early (``KvLock.as_of``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from kvnode.store.commands import (
    Command,
    KvLock,
    Problem,
    Result,
    Trouble,
    Txn,
    TxnOutcome,
    Verb,
)
from kvnode.store.own_commands import KvPut, Mode, Once
from kvnode.store.records import LOCK_DELAY_MAX_NS
from kvnode.store.store import Store

MARKS_MAX: Final = 4096
"""Moments remembered; with more, the oldest are taken for younger than they are."""
_LONGEST_S: Final = LOCK_DELAY_MAX_NS / 1e9


class LockDelays:
    """This node's notes."""

    def __init__(self, store: Store, time: Callable[[], float]) -> None:
        """Count from now for everything that the store holds already. ``time``: monotonic seconds."""
        self._store = store
        self._time = time
        self._indexes: list[int] = []
        self._times: list[float] = []
        """Ends of sessions up to the index beside it were known here at this time."""
        self._over = 0
        """Ends up to this index were known for longer than any lock-delay lasts."""
        self.restart()

    def restart(self) -> None:
        """The store's state came from elsewhere: count from now."""
        self._indexes, self._times = [self._store.applied_index], [self._time()]

    def ended(self, index: int) -> None:
        """A session ended at ``index``, as this node learns now."""
        now = self._time()
        if index <= self._indexes[-1]:
            return
        if self._times[-1] == now:
            self._indexes[-1] = index
            return
        self._indexes.append(index)
        self._times.append(now)
        if len(self._indexes) > MARKS_MAX:
            # What the first mark stood for is timed by the second now: later, so longer.
            del self._indexes[0], self._times[0]

    def over_upto(self) -> int:
        """Return up to which index every lock-delay is over, whatever its length."""
        horizon = self._time() - _LONGEST_S
        count = bisect_left(self._times, horizon)
        if count:
            self._over = max(self._over, self._indexes[count - 1])
            if count == len(self._times):
                count -= 1
            del self._indexes[:count], self._times[:count]
        return self._over

    def is_running(self, key: bytes) -> bool:
        """Whether the key is in a lock-delay."""
        found = self._store.lock_delay(key)
        if found is None:
            return False
        index, delay_ns = found
        if index <= self._over:
            return False
        at = bisect_left(self._indexes, index)
        if at == len(self._times):
            return True  # it ended just now
        return self._time() - self._times[at] < delay_ns / 1e9

    def judge(self, command: KvLock | Txn | KvPut | Once) -> Result | Command:
        """Decide whether to propose a command that may lock keys; only a leader asks.

        Returns:
            The command with what it was judged by; or what to answer without proposing it, because a
            lock-delay runs: of a transaction, that alone is told (spec §6).
        """
        index = self._store.applied_index
        if isinstance(command, Once):
            # It may have been executed already, and then that is the answer: so the log decides.
            return command._replace(command=self._stamp(command.command))
        if isinstance(command, KvPut) and command.mode != Mode.LOCK:
            return command
        if isinstance(command, (KvLock, KvPut)):
            if self.is_running(command.key):
                return Result(False, index)
            return command._replace(as_of=index)
        locks = [(at, op) for at, op in enumerate(command.ops) if op.verb == Verb.LOCK]
        delayed = [at for at, op in locks if self.is_running(op.key)]
        if delayed:
            problems = tuple([Problem(at, int(Trouble.LOCK_DELAY)) for at in delayed])
            return Result(TxnOutcome((), problems), index)
        return command._replace(as_of=index) if locks else command

    def _stamp(self, command: Command) -> Command:
        """Say up to which index lock-delays are over for a command; 0 where one runs that concerns it, so
        that the store refuses the lock.
        """
        keys: list[bytes] = []
        if isinstance(command, (KvLock, KvPut)):
            keys = [command.key]
        elif isinstance(command, Txn):
            keys = [op.key for op in command.ops if op.verb == Verb.LOCK]
        if not keys or not isinstance(command, (KvLock, KvPut, Txn)):
            return command
        running = any(map(self.is_running, keys))
        return command._replace(as_of=0 if running else self._store.applied_index)

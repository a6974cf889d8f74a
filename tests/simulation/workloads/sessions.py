"""Sessions and locks: create, renew, destroy, let expire; acquire and release.

Judged by the order of the log and by true time, with rules written down here a second time:

- a session that nobody destroyed ends only when twice its TTL has passed by the leader's clock since it
  was made or last renewed, whoever leads (RC-61), or when its node was no member at some moment of its
  life: a node that is a member again does not save it;
- a renewal that was answered found the session alive at some moment after it was asked for;
- a lock has one holder at a time by index; ending a session releases or deletes what it holds;
- nobody locks a key before the lock-delay has passed that the end of its holder began, through changes
  of leader, restarts and snapshots (RC-62);
- after the faults have ended, sessions that nobody renews do end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvnode.errors import KvnodeError
from kvnode.ports import Done
from kvnode.raft.types import Membership, NodeId
from kvnode.replica.office_clock import STEP_MAX_S
from kvnode.replica.replica import Replica
from kvnode.replica.session_timers import FACTOR, NODE_CHECK
from kvnode.store.commands import (
    Command,
    KvLock,
    KvUnlock,
    ReapLockDelays,
    Result,
    SessionCreate,
    SessionDestroy,
    Value,
)
from kvnode.store.records import DELETE, RELEASE, Session
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

LOCKS = 3
ALIVE_MAX = 6
"""So many sessions at a time, so that they compete."""


@dataclass
class _Life:
    """One session, from its first commit on."""

    session_id: str
    ttl_s: float
    delay_s: float
    behavior: int
    node: str
    checked: bool
    """Tied to its node's membership."""
    orphaned: bool
    """So tied, and its node was no member once."""
    safe_since: float
    """When its time began anew at the earliest: it was committed, or a renewal was asked for that
    was answered."""
    ended: float | None = None
    doomed: bool = False
    """A client asked to destroy it."""


class Sessions(Workload):
    """See the module."""

    name = "sessions"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._numbers = 0
        self._values = 0
        self._lives: dict[str, _Life] = {}
        self._holders: dict[bytes, str] = {}
        self._delays: dict[bytes, tuple[int, float, float]] = {}
        """Key -> index, true time and seconds of the lock-delay that was begun last, until it was over: the
        key was locked again, or the delay forgotten."""
        self._offices: dict[tuple[NodeId, int], float] = {}
        """When a node was first seen to lead a term."""
        self._keys = [b"l/%d" % number for number in range(LOCKS)]

    # -- operations ---------------------------------------------------------------------------

    def turn(self, client: Client) -> None:
        rng = client.rng
        alive = [life for life in self._lives.values() if life.ended is None]
        if not alive or (len(alive) < ALIVE_MAX and rng.random() < 0.1):
            self._create(client)
            return
        node = rng.choice(self.bench.up())
        # Now and then one that ended long ago: it must stay so.
        life = rng.choice(alive) if rng.random() < 0.95 else rng.choice(list(self._lives.values()))
        key = rng.choice(self._keys)
        self._values += 1
        value = b"h%d" % self._values
        kind = rng.choices(("acquire", "release", "renew", "destroy"), (6, 3, 3, 1))[0]
        match kind:
            case "acquire":
                self.bench.write(client, node, KvLock(key, value, life.session_id), _ignore)
            case "release":
                holder = self._holders.get(key, life.session_id)
                self.bench.write(client, node, KvUnlock(key, value, holder), _ignore)
            case "renew":
                self._renew(client, node, life)
            case _:
                life.doomed = True
                self.bench.write(client, node, SessionDestroy(life.session_id), _ignore)

    def _create(self, client: Client) -> None:
        rng, bench = client.rng, self.bench
        self._numbers += 1
        session_id = f"{self._numbers:08d}-0000-4000-8000-{bench.seed % 10**12:012d}"
        ttl_s = rng.choice((0.0, 1.0, 2.0, 4.0))
        command = SessionCreate(
            session_id,
            "",
            rng.choice(bench.nodes).name,
            int(rng.choice((0.0, 0.3, 1.0, 3.0)) * 1e9),
            rng.choice((RELEASE, DELETE)),
            f"{ttl_s}s" if ttl_s else "",
            int(ttl_s * 1e9),
            rng.choice(((), (NODE_CHECK,))),
            (),
        )
        kept = partial(self._keep, ttl_s, session_id, rng.choice((0, 2, 8)))

        def created(result: Result | None, _error: KvnodeError | None) -> None:
            if result is not None and ttl_s:
                bench.later(ttl_s / 2, kept)

        bench.write(client, rng.choice(bench.up()), command, created)

    def _keep(self, ttl_s: float, session_id: str, times: int) -> None:
        """The owner renews a few times, each well before the time is over."""
        up = self.bench.up()
        if not times or not up or self.bench.winding_down:
            return
        again: Callable[[], None] = partial(self._keep, ttl_s, session_id, times - 1)
        owner = Client(f"keeper of {session_id[:8]}", self.rng, again, ttl_s / 2)
        self._renew(owner, self.rng.choice(up), self._lives[session_id])

    def _renew(self, client: Client, node: SimNode, life: _Life) -> None:
        bench = self.bench
        called = bench.now

        def send(replica: Replica, done: Done[Session]) -> None:
            replica.renew_session(life.session_id, done)

        def answered(session: Session | None, error: KvnodeError | None) -> None:
            if error is not None:
                return
            if session is not None:
                if life.ended is not None and life.ended < called:
                    raise Violation(f"{life} was renewed at {called}")
                life.safe_since = max(life.safe_since, called)
                bench.note("session renewed")
            elif life.ended is None and not self._may_end(life, bench.now):
                raise Violation(f"{life} lives, but a renewal at {bench.now} did not find it")

        bench.ask(client, node, f"renew {life.session_id[:8]}", send, answered)

    # -- time ---------------------------------------------------------------------------------

    def _may_end(self, life: _Life, now: float) -> bool:
        """Whether the session's end may be under way for a good reason."""
        return life.doomed or life.checked or self._is_over(life, life.safe_since, now)

    def _is_over(self, life: _Life, since: float, now: float) -> bool:
        """Whether twice the TTL can have passed by any clock, but for one step between two looks."""
        if not life.ttl_s:
            return False
        bench = self.bench
        most = (now - since) * bench.clock_rate_max + bench.steps_since(since) * STEP_MAX_S
        slack = STEP_MAX_S + 2 * bench.swarm.tick_s
        return most >= max(life.ttl_s, FACTOR * life.ttl_s - slack)

    def event(self, node: SimNode, what: str, fields: dict[str, Any]) -> None:
        assert node.replica is not None or what != "session_expired"
        if what == "became_leader":
            assert node.replica is not None
            office = (node.replica.raft.id, node.replica.raft.term)
            self._offices.setdefault(office, self.bench.now)
        elif what == "session_expired":
            assert node.replica is not None
            life = self._lives.get(fields["session"])
            if life is None or life.ended is not None:
                return
            if life.orphaned:
                self.bench.note("session ended with its node")
                return
            raft = node.replica.raft
            office = self._offices.get((raft.id, raft.term), 0.0)
            self.bench.note("session expired")
            if not self._is_over(life, max(life.safe_since, office), self.bench.now):
                raise Violation(f"{node.name}, leader since {office}, ends {life} too early")

    # -- the log ------------------------------------------------------------------------------

    def committed(self, index: int, command: Command, value: Value) -> None:
        if self.bench.oracle.session_index() == index and not isinstance(command, SessionCreate):
            # Whatever ended it: its own entry, or the end of what it was tied to.
            for life in self._lives.values():
                if life.ended is None and self.bench.oracle.session(life.session_id) is None:
                    self._ended(index, life)
        match command:
            case SessionCreate():
                self._began(command)
            case KvLock():
                self._locked(index, command, value)
            case KvUnlock(key, _, session):
                held = self._holders.get(key) == session
                if value is not held:
                    raise Violation(f"{index}: {command} gave {value}, held: {held}")
                if held:
                    del self._holders[key]
            case ReapLockDelays(upto):
                for key in [key for key, delay in self._delays.items() if delay[0] <= upto]:
                    self._delay_over(index, command, key)
            case _:
                pass

    def members_changed(self, membership: Membership) -> None:
        for life in self._lives.values():
            if life.checked and life.ended is None and membership.by_name(life.node) is None:
                life.orphaned = True

    def _began(self, command: SessionCreate) -> None:
        if _is_own(command.session_id) and command.session_id not in self._lives:
            checked = NODE_CHECK in command.node_checks
            membership = self.bench.invariants.membership
            assert membership is not None, "somebody leads"
            self._lives[command.session_id] = _Life(
                command.session_id,
                command.ttl_ns / 1e9,
                command.lock_delay_ns / 1e9,
                command.behavior,
                command.node,
                checked,
                checked and membership.by_name(command.node) is None,
                self.bench.now,
            )

    def _ended(self, index: int, life: _Life) -> None:
        now = self.bench.now
        life.ended = now
        if not self._may_end(life, now):
            raise Violation(f"{index}: {life} was ended although nobody may")
        for key in [key for key, holder in self._holders.items() if holder == life.session_id]:
            del self._holders[key]
            if life.delay_s:
                self._delays[key] = (index, now, life.delay_s)
            pair = self.bench.oracle.get(key)
            if (pair is None) != (life.behavior == DELETE) or (pair is not None and pair.session):
                raise Violation(f"{index}: the end of {life} left {pair}")

    def _locked(self, index: int, command: KvLock, value: Value) -> None:
        key, session = command.key, command.session
        life = self._lives.get(session)
        holder = self._holders.get(key)
        if life is None or life.ended is not None:
            expected: bool | None = None
        elif holder is not None:
            expected = holder == session
        else:
            expected = self._delays.get(key, (0, 0.0, 0.0))[0] <= command.as_of
        if value is not expected:
            raise Violation(f"{index}: {command} gave {value} and not {expected}, held by {holder}")
        if not value or holder is not None:
            return
        self._holders[key] = session
        self.bench.note("lock taken")
        if key in self._delays:
            self._delay_over(index, command, key)

    def _delay_over(self, index: int, command: Command, key: bytes) -> None:
        """A command that ends a lock-delay: by any clock it may be over."""
        _, ended, delay_s = self._delays.pop(key)
        passed = (self.bench.now - ended) * self.bench.clock_rate_max
        if passed < delay_s and not self.bench.steps_since(ended):
            raise Violation(f"{index}: {command} in a lock-delay of {delay_s} s begun at {ended}")

    # -- the end ------------------------------------------------------------------------------

    def missing(self) -> str | None:
        for life in self._lives.values():
            if life.ttl_s and life.ended is None:
                return f"the end of session {life.session_id}"
        return None

    def finish(self, store: Store) -> None:
        alive = [life.session_id for life in self._lives.values() if life.ended is None]
        found = [found.session_id for found in store.sessions() if _is_own(found.session_id)]
        if sorted(alive) != found:
            raise Violation(f"sessions {found}, and not {alive}")
        for key in self._keys:
            pair = store.get(key)
            if (pair.session if pair is not None else "") != self._holders.get(key, ""):
                raise Violation(f"{pair} should be held by {self._holders.get(key)}")


def _is_own(session_id: str) -> bool:
    """Whether it was made here: other workloads have sessions of their own."""
    return session_id[14:23] == "4000-8000"


def _ignore(_value: object, _error: KvnodeError | None) -> None:
    """The log is the judge."""

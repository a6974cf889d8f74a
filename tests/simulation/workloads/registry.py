"""The service registry: TTL checks, the sessions that are bound to them, and the members' own health.

Judged by the order of the log and by true time, with rules written down here a second time:

- a TTL check is expired only when its TTL has passed by the leader's clock since it was registered or last
  reported, whoever leads (RC-61);
- a session that is bound to a check ends in the very entry in which the check turns critical or goes, and is
  not made while it is (spec §5);
- the indexes of reads do not fall during a node's life, and are never ahead of what it has applied (RC-40);
- after the faults have ended, checks that nobody reports do expire, and exactly the members that are up are
  healthy.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.errors import KvnodeError
from kvnode.replica.check_timers import EXPIRED
from kvnode.replica.office_clock import STEP_MAX_S
from kvnode.store.commands import Command, Result, SessionCreate, SessionDestroy, Value
from kvnode.store.records import RELEASE
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_records import (
    CHECK_INDEX,
    CRITICAL,
    MEMBER_CHECK,
    NODE_INDEX,
    PASSING,
    SERVICE_INDEX,
    WARNING,
    Check,
    CheckDefinition,
    Service,
)
from kvnode.store.store import Store
from tests.simulation.bench import Bench, Client
from tests.simulation.checkers import Violation
from tests.simulation.node import SimNode
from tests.simulation.workloads.base import Workload

SERVICES = 3
"""So many services, on any node."""
_INDEXES = (NODE_INDEX, SERVICE_INDEX, CHECK_INDEX)
_TABLES = len(_INDEXES)


@dataclass
class _Life:
    """One check since it was registered or reported last."""

    ttl_s: float
    safe_since: float
    """When the newest report in the log was asked for: its clock began then, or later."""


class Registry(Workload):
    """See the module."""

    name = "registry"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._numbers = 0
        self._checks: dict[tuple[str, str], _Life] = {}
        self._asked: dict[str, float] = {}
        """By the output of a report: when it was asked for. An output is used once."""
        self._sessions: dict[str, tuple[str, str]] = {}
        """By id: node and check that a session is bound to, while it lives."""
        self._seen: dict[str, tuple[int, ...]] = {}
        """By node: the indexes that its store had."""

    # -- operations ---------------------------------------------------------------------------

    def turn(self, client: Client) -> None:
        rng, bench = client.rng, self.bench
        node = rng.choice(bench.up())
        owner = rng.choice(bench.nodes).name
        service = f"s{rng.randrange(SERVICES)}"
        kind = rng.choices(("register", "report", "drop", "session", "end"), (3, 10, 1, 4, 1))[0]
        command: Command
        match kind:
            case "register":
                command = self._registration(client, owner, service)
            case "report":
                status = rng.choice((PASSING, PASSING, PASSING, WARNING, CRITICAL))
                command = UpdateCheck(owner, f"c-{service}", "ttl", status, self._output())
            case "drop":
                command = Deregister(owner, service)
            case "session":
                command = self._session(owner, f"c-{service}")
            case _:
                command = SessionDestroy(rng.choice([*self._sessions, self._id()]))
        bench.write(client, node, command, _ignore)

    def _registration(self, client: Client, owner: str, service: str) -> Register:
        ttl_s = client.rng.choice((0.5, 1.0, 3.0))
        check = Check(
            owner,
            f"c-{service}",
            "",
            client.rng.choice((PASSING, CRITICAL)),
            output=self._output(),
            service_id=service,
            type="ttl",
            definition=CheckDefinition(ttl_ns=int(ttl_s * 1e9)),
            is_local=True,
        )
        return Register(owner, service=Service(owner, service, service), checks=(check,))

    def _session(self, owner: str, check: str) -> SessionCreate:
        checks = (MEMBER_CHECK, check)
        return SessionCreate(
            self._id(), "", owner, 0, RELEASE, "", 0, checks, (), checked=True
        )  # fmt: skip

    def _id(self) -> str:
        self._numbers += 1
        return f"{self._numbers:08d}-0000-4000-9000-{self.bench.seed % 10**12:012d}"

    def _output(self) -> str:
        self._numbers += 1
        output = f"o{self._numbers}"
        self._asked[output] = self.bench.now
        return output

    # -- the log ------------------------------------------------------------------------------

    def committed(self, index: int, command: Command, value: Value) -> None:
        match command:
            case Register(checks=checks) if value is True:
                for check in checks:
                    self._reported(index, check)
            case UpdateCheck(node, check_id, _, status, output) if value is True:
                if output.startswith(EXPIRED):
                    self._expired(index, node, check_id)
                else:
                    found = self.bench.oracle.registry().check(node, check_id)
                    assert found is not None, "it was just reported"
                    self._reported(index, found._replace(status=status, output=output))
            case SessionCreate(session_id=session_id, node=node, node_checks=checks):
                if value is True and MEMBER_CHECK in checks and len(checks) > 1:
                    self._sessions[session_id] = node, checks[-1]
                    self.bench.note("session bound to a check")
            case _:
                pass
        if isinstance(command, (Register, Deregister, UpdateCheck, SessionDestroy)):
            self._look_at_sessions(index, command)

    def _reported(self, index: int, check: Check) -> None:
        if check.check_id == MEMBER_CHECK:
            if check.status == CRITICAL:
                self.bench.note("member called dead")
            return
        asked = self._asked.get(check.output)
        if asked is None:
            raise Violation(f"{index}: {check} holds an output that nobody sent")
        ttl_s = check.definition.ttl_ns / 1e9
        before = self._checks.get((check.node, check.check_id))
        since = asked if before is None else max(asked, before.safe_since)
        self._checks[check.node, check.check_id] = _Life(ttl_s, since)

    def _expired(self, index: int, node: str, check_id: str) -> None:
        life = self._checks[node, check_id]
        bench = self.bench
        passed = (bench.now - life.safe_since) * bench.clock_rate_max
        passed += bench.steps_since(life.safe_since) * STEP_MAX_S
        bench.note("check expired")
        if passed < life.ttl_s - 2 * bench.swarm.tick_s:
            raise Violation(f"{index}: {check_id} on {node} is ended too early: {life}")

    def _look_at_sessions(self, index: int, command: Command) -> None:
        registry = self.bench.oracle.registry()
        for session_id, (node, check_id) in list(self._sessions.items()):
            alive = self.bench.oracle.session(session_id) is not None
            checks = [registry.check(node, name) for name in (MEMBER_CHECK, check_id)]
            sound = all(check is not None and check.status != CRITICAL for check in checks)
            doomed = isinstance(command, SessionDestroy) and command.session_id == session_id
            if alive and not sound:
                raise Violation(f"{index}: {session_id} goes on after the end of its check")
            if not alive:
                del self._sessions[session_id]
                if sound and not doomed:
                    raise Violation(f"{index}: {session_id} ended although its checks are sound")
                self.bench.note("session ended with its check")

    # -- the nodes ----------------------------------------------------------------------------

    def started(self, node: SimNode) -> None:
        # What its last life had applied without a sync may be lost.
        self._seen.pop(node.name, None)

    def applied(self, node: SimNode) -> None:
        assert node.replica is not None, "it has just applied something"
        store = node.replica.store
        registry = store.registry()
        seen = tuple(registry.index(name) for name in _INDEXES)
        before = self._seen.get(node.name, (0,) * _TABLES)
        if any(new < old for new, old in zip(seen, before, strict=True)):
            raise Violation(f"{node.name}: the registry's indexes fell from {before} to {seen}")
        if max(seen) > store.applied_index:
            raise Violation(f"{node.name}: {seen} is ahead of {store.applied_index}")
        self._seen[node.name] = seen

    # -- the end ------------------------------------------------------------------------------

    def missing(self) -> str | None:
        up = {node.name for node in self.bench.up()}
        for check in self.bench.oracle.registry().checks():
            wanted = PASSING if check.node in up else CRITICAL
            if check.check_id == MEMBER_CHECK and check.status != wanted:
                return f"{check.node} as {wanted}"
            if check.definition.ttl_ns and check.status != CRITICAL:
                return f"the expiry of {check.check_id} on {check.node}"
        return None

    def finish(self, store: Store) -> None:
        found = {session.session_id for session in store.sessions()}
        lost = [session_id for session_id in self._sessions if session_id not in found]
        if lost:
            raise Violation(f"sessions {lost} should be there")


def _ignore(_value: Result | None, _error: KvnodeError | None) -> None:
    """The log is the judge."""

"""The registry in the driver: members as nodes, their health, and the clocks of checks (spec §11).

Every member is a node of the catalog with the service ``consul`` and the check ``serfHealth``. The leader
compares that with the membership several times a second and proposes what is missing, so a registration
that somebody took away comes back.

**When a member is unhealthy.** A member's check turns critical once the leader has not heard it for
``node_failure_s``, and passing again when it has heard it for a moment without a break. The time is the
leader's own, without its pauses, and begins anew with each leader. It is long on purpose: sessions made
through a node belong to it, their clients are mostly elsewhere, and a node that is restarted, or whose pod
moves, must not cost them their locks (spec §11 [k]). What a dead *client* held is freed by the session's TTL.

A member that leaves is deregistered, and ends with it the sessions that kept the default check; sessions
without checks do not depend on a node, and go on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kvnode.addresses import parse_address
from kvnode.errors import KvnodeError
from kvnode.raft.types import Index, Member
from kvnode.replica.check_timers import CheckTimers
from kvnode.replica.office_clock import OfficeClock
from kvnode.replica.status import shown_address
from kvnode.store.commands import Command, Result
from kvnode.store.registry_commands import Deregister, Register
from kvnode.store.registry_reads import Registry
from kvnode.store.registry_records import CRITICAL, MEMBER_CHECK, PASSING, Check, Node, Service

if TYPE_CHECKING:
    from kvnode.raft.types import Term
    from kvnode.replica.replica import Replica

SERVICE: Final = "consul"
"""What clients look for: the service that every server offers."""
RECOVERY_S: Final = 1.0
"""For so long a member must have been heard without a break before it is healthy again."""
SWEEP_ROUNDS: Final = 240
"""Every so many rounds (a minute), and after each change of membership, the whole catalog is searched for
members that have left."""
_ALIVE: Final = "Agent alive and reachable"
_LOST: Final = "Agent not live or unreachable"


class _Contact:
    """How long the leader has heard, or not heard, the members of one name."""

    __slots__ = ("heard_s", "silent_s")

    def __init__(self) -> None:
        self.heard_s = 0.0
        self.silent_s = 0.0

    def add(self, step_s: float, *, heard: bool) -> None:
        self.heard_s = self.heard_s + step_s if heard else 0.0
        self.silent_s = 0.0 if heard else self.silent_s + step_s


class Registrar:
    """Runs on every node; acts only while it leads."""

    def __init__(self, replica: Replica) -> None:
        """Listen to the store."""
        self._replica = replica
        self.timers = CheckTimers(replica.store, self._propose_timed, replica.scheduler.time)
        self._office: Term | None = None
        self._contacts: dict[str, _Contact] = {}
        self._pending: set[str] = set()
        """Names of nodes about which something is proposed and not decided yet."""
        self._clock = OfficeClock()
        """Of what it has heard of the members."""
        self._rounds = 0
        replica.store.on_registry = self._on_registry
        replica.store.on_check = self._on_check

    # -- what happens in the store ------------------------------------------------------------------

    def _on_registry(self, index: int, name: bytes) -> None:
        self._replica.registry_watches.changed(index, name, not name)

    def _on_check(self, _index: int, check: Check | None) -> None:
        self.timers.changed(check)

    # -- in office ----------------------------------------------------------------------------------

    def follow(self) -> None:
        """Who leads may have changed."""
        replica = self._replica
        office = replica.raft.term if replica.is_leader else None
        if office == self._office:
            return
        self._office = office
        self._contacts.clear()
        self._pending.clear()
        if office is None:
            self.timers.stop()
            return
        now = replica.scheduler.time()
        self._clock.resume(now)
        self._rounds = 0
        self.timers.begin(now)
        if not replica.raft.is_transferring:
            self._introduce()

    def _introduce(self) -> None:
        """Register members that nobody has registered, before any request that is waiting: a client of
        a new cluster may make a session at once.
        """
        registry = self._replica.store.registry()
        for name, members in self._members().items():
            if registry.node(name) is None:
                self._propose(name, self._register(name, members, registry, PASSING))

    def tick(self, now: float) -> None:
        """Every tick: the clocks of a leader."""
        self.follow()
        if self._office is not None and self._replica.raft.has_term_commit:
            self.timers.run(now)

    def run(self, now: float) -> None:
        """Several times a second: compare the catalog with the membership."""
        self.follow()
        replica = self._replica
        if self._office is None or not replica.raft.has_term_commit:
            return
        step_s = self._clock.advance(now)
        registry, named = replica.store.registry(), self._members()
        self._contacts = {name: self._contacts.get(name, _Contact()) for name in named}
        reachable = replica.raft.reachable()
        for name, members in named.items():
            contact = self._contacts[name]
            contact.add(step_s, heard=any(member.node_id in reachable for member in members))
            command = self._register(name, members, registry, self._status(name, registry))
            if not _is_registered(command, registry):
                self._propose(name, command)
        if self._rounds % SWEEP_ROUNDS == 0:
            left = [
                node.name
                for node in registry.nodes()
                if node.name not in named and _is_member(node.name, registry)
            ]
            for name in left:
                self._propose(name, Deregister(name, keeps_unbound=True))
            if left:
                return  # until they are gone: something else about them may be under way, or this fail
        self._rounds += 1

    def members_changed(self) -> None:
        """A membership was committed: look at the whole catalog in the next round."""
        self._rounds = 0

    def _members(self) -> dict[str, list[Member]]:
        """Members by name: while one is replaced by a newer incarnation there are two."""
        log = self._replica.raft.log
        # A removal that is not committed may still be rolled back.
        membership = log.membership_at(max(log.commit_index, Index(min(1, log.last_index))))
        named: dict[str, list[Member]] = {}
        for member in sorted(membership.members, key=lambda member: member.name):
            named.setdefault(member.name, []).append(member)
        return named

    def _status(self, name: str, registry: Registry) -> str:
        check = registry.check(name, MEMBER_CHECK)
        contact = self._contacts[name]
        if contact.silent_s >= self._replica.settings.node_failure_s:
            return CRITICAL
        if check is None or contact.heard_s >= RECOVERY_S:
            return PASSING
        return check.status

    def _register(
        self, name: str, members: list[Member], registry: Registry, status: str
    ) -> Register:
        member = self._chosen(members)
        host, port = self._address(member)
        before = registry.node(name)
        node = Node(
            member.node_id,
            name,
            host,
            tuple((kind, host) for kind in ("lan", "lan_ipv4", "wan", "wan_ipv4")),
            before.meta if before is not None and before.meta else _NODE_META,
        )
        voter = member.node_id in self._replica.raft.membership.voters
        service = Service(name, SERVICE, SERVICE, meta=_service_meta(voter=voter), port=port)
        check = Check(
            name,
            MEMBER_CHECK,
            "Serf Health Status",
            status,
            output=_ALIVE if status == PASSING else _LOST,
            is_local=True,
        )
        return Register(name, node, service, (check,), forced=True)

    def _chosen(self, members: list[Member]) -> Member:
        reachable = self._replica.raft.reachable()
        return next((member for member in members if member.node_id in reachable), members[0])

    def _address(self, member: Member) -> tuple[str, int]:
        shown = shown_address(self._replica, member)
        with suppress(ValueError):
            address = parse_address(shown, 0)
            return address.host, address.port
        return shown, 0

    # -- proposing ----------------------------------------------------------------------------------

    def _propose(self, name: str, command: Command) -> None:
        if name in self._pending:
            return
        self._pending.add(name)
        office = self._office

        def done(_took_effect: bool) -> None:
            if self._office == office:
                self._pending.discard(name)

        if isinstance(command, Register) and command.checks[0].status == CRITICAL:
            self._replica.trace("member_lost", {"member": name, "term": self._replica.raft.term})
        self._propose_timed(command, done)

    def _propose_timed(self, command: Command, done: Callable[[bool], None]) -> None:
        def decided(_result: Result | None, error: KvnodeError | None) -> None:
            done(error is None)

        self._replica.intake.propose_first(command, decided)


_NODE_META: Final = (("consul-network-segment", ""),)


def _service_meta(*, voter: bool) -> tuple[tuple[str, str], ...]:
    return (("non_voter", "false" if voter else "true"), ("raft_version", "3"))


def _is_registered(command: Register, registry: Registry) -> bool:
    """Whether the registry says already what the command would."""
    node, service, check = command.record, command.service, command.checks[0]
    assert node is not None
    assert service is not None
    return (
        _same(registry.node(command.node), node)
        and _same(registry.service(command.node, service.service_id), service)
        and _same(registry.check(command.node, check.check_id), check)
    )


def _same(found: Node | Service | Check | None, wanted: Node | Service | Check) -> bool:
    return found is not None and found._replace(create_index=0, modify_index=0) == wanted


def _is_member(name: str, registry: Registry) -> bool:
    """Whether a node was registered as a member; whoever registers one itself has no such check."""
    check = registry.check(name, MEMBER_CHECK)
    return check is not None and check.is_local

"""The leader's judgement of its members: who is healthy, since when, and whom to give up (spec §9).

The parameters are in the replicated store, so that every leader goes by the same; what is observed is the
leader's own, and a new leader begins to observe anew. Of Consul's parameters these mean something here:

- ``LastContactThreshold`` and ``MaxTrailingLogs``: beyond either, a member is unhealthy.
- ``ServerStabilizationTime``: for how long a learner must keep up before it is promoted (``stewardship``).
- ``CleanupDeadServers`` and ``MinQuorum``: members that nothing was heard of for ``dead_server_grace_s`` are
  removed through the log; not where a StatefulSet says who belongs here (``scaling``). Only fewer than half
  of the voters, rounded down, so that three lose nobody before a fourth has come in the dead one's place.

Removal for silence may be wrong (a long partition) and costs a copy of the data, never the data: the minority
that was given up could not serve anyway, and joins again as a new incarnation (RC-47).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError, RemoteProtocolError
from kvnode.ports import Done
from kvnode.raft.quorum import majority
from kvnode.raft.types import Index, Member, NodeId, Role, Term
from kvnode.replica.facade import ClusterHealth, ServerHealth
from kvnode.replica.status import shown_address
from kvnode.store.control import Autopilot

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

NS = 10**9
CONTACT_THRESHOLD_S = 0.2
"""Consul's default; with slower heartbeats two of them."""
TRAILING_LOGS_MAX = 250


class Pilot:
    """Runs on every node; judges only while it leads."""

    def __init__(self, replica: Replica) -> None:
        """Nothing was observed yet."""
        self._replica = replica
        self._since: dict[NodeId, tuple[bool, float]] = {}
        """Whether each member is healthy, and since when: this node's monotonic time."""
        self._silent: dict[NodeId, float] = {}
        self._removing = False

    def parameters(self) -> Autopilot:
        """What is set, or what a cluster begins with; the indexes are 0 then."""
        stored = self._replica.store.autopilot()
        if stored is not None:
            return stored
        settings = self._replica.settings
        threshold_s = max(CONTACT_THRESHOLD_S, 2 * settings.heartbeat_ticks * settings.tick_s)
        return Autopilot(
            cleanup_dead_servers=True,
            last_contact_threshold_ns=round(threshold_s * NS),
            max_trailing_logs=TRAILING_LOGS_MAX,
            min_quorum=0,
            server_stabilization_ns=round(settings.promote_stable_s * NS),
            redundancy_zone_tag="",
            disable_upgrade_migration=False,
            upgrade_version_tag="",
            create_index=0,
            modify_index=0,
        )

    # -- several times a second -----------------------------------------------------------------------

    def run(self, now: float) -> None:
        """One round: look at every member, and give up whom nothing was heard of for too long."""
        raft = self._replica.raft
        if raft.role is not Role.LEADER or not raft.has_term_commit:
            self._since.clear()
            self._silent.clear()
            return
        parameters = self.parameters()
        reachable = raft.reachable()
        since, silent = self._since, self._silent
        self._since, self._silent = {}, {}
        for member in raft.membership.members:
            node = member.node_id
            healthy = self._is_healthy(node, parameters)
            known = since.get(node)
            self._since[node] = known if known and known[0] == healthy else (healthy, now)
            if node not in reachable:
                self._silent[node] = silent.get(node, now)
        if parameters.cleanup_dead_servers and not self._replica.scaling.is_on:
            self._clean_up(parameters, now)

    def _is_healthy(self, node: NodeId, parameters: Autopilot) -> bool:
        raft = self._replica.raft
        if node == raft.id:
            return True
        lag = raft.log.last_index - raft.match_index(node)
        return (
            node in raft.reachable()
            and self._contact_s(node) * NS <= parameters.last_contact_threshold_ns
            and lag <= parameters.max_trailing_logs
        )

    def _contact_s(self, node: NodeId) -> float:
        return self._replica.raft.ticks_since_heard(node) * self._replica.settings.tick_s

    def _clean_up(self, parameters: Autopilot, now: float) -> None:
        replica = self._replica
        raft, grace_s = replica.raft, replica.settings.dead_server_grace_s
        if not grace_s or raft.is_transferring or self._removing:
            return
        dead = [node for node, at in sorted(self._silent.items()) if now - at >= grace_s]
        voters = raft.membership.voters
        silent_voters = len(voters.intersection(self._silent))
        for node in dead:
            if node in voters and (
                silent_voters >= max(1, len(voters) // 2)
                or len(voters) - 1 < max(1, parameters.min_quorum)
            ):
                continue
            self._removing = True
            replica.steward.remove(node, partial(self._gone, node))
            return  # one at a time: the next round sees what became of it

    def _gone(self, node: NodeId, _value: Any, error: KvnodeError | None) -> None:
        self._removing = False
        if error is None:
            self._replica.trace("dead_member_removed", {"member": node})
        else:
            self._replica.steward.note_refusal("dead_member_removed", node, str(error))

    # -- asked by others ------------------------------------------------------------------------------

    def ask(self, done: Done[ClusterHealth]) -> None:
        """The leader's judgement, from any node."""
        replica = self._replica
        if replica.is_leader:
            replica.scheduler.call_soon(done, self.judge(), None)
            return

        def answered(value: Any, error: KvnodeError | None) -> None:
            if error is not None:
                done(None, error)
                return
            try:
                done(decode_health(value), None)
            except RemoteProtocolError as failure:
                done(None, failure)

        replica.admin.ask_leader("health", None, answered)

    def judge(self) -> ClusterHealth:
        """This leader's judgement of everybody, itself included."""
        replica = self._replica
        raft, now = replica.raft, replica.scheduler.time()
        parameters = self.parameters()
        servers = tuple([self._server(m, parameters, now) for m in raft.membership.members])
        well = sum(server.healthy and server.voter for server in servers)
        voters = sum(server.voter for server in servers)
        return ClusterHealth(
            healthy=all(server.healthy for server in servers),
            failure_tolerance=max(0, well - majority(voters)),
            servers=servers,
        )

    def _server(self, member: Member, parameters: Autopilot, now: float) -> ServerHealth:
        replica = self._replica
        raft, node = replica.raft, member.node_id
        own = node == raft.id
        healthy = self._is_healthy(node, parameters)
        since = self._since.get(node)
        match = raft.log.last_index if own else raft.match_index(node)
        term = raft.log.last.term if own else raft.log.term_at(match)
        return ServerHealth(
            node_id=node,
            name=member.name,
            address=shown_address(replica, member),
            alive=node in raft.reachable(),
            leader=own,
            voter=node in raft.membership.voters,
            last_contact_ms=0 if own else round(self._contact_s(node) * 1000),
            last_term=Term(term or 0),
            last_index=Index(match),
            healthy=healthy,
            stable_ms=int((now - since[1]) * 1000) if since and since[0] == healthy else 0,
        )

    def force_leave(self, name: str, done: Done[Any]) -> None:
        """Remove the members of this name or id that nothing is heard of, through the leader.

        Whoever is alive stays, as in Consul, where it would deny that it left. Answers whether there is
        such a member at all.
        """
        replica = self._replica
        if not replica.is_leader:
            replica.admin.ask_leader("force_leave", name, done)
            return
        raft = replica.raft
        found = [m.node_id for m in raft.membership.members if name in (m.name, m.node_id)]
        gone = [node for node in found if node not in raft.reachable()]
        if not gone:
            replica.scheduler.call_soon(done, bool(found), None)
            return
        self._remove_all(gone, done)

    def _remove_all(self, nodes: list[NodeId], done: Done[Any]) -> None:
        node, rest = nodes[0], nodes[1:]

        def removed(_value: Any, error: KvnodeError | None) -> None:
            if error is not None:
                done(None, error)
            elif rest:
                self._remove_all(rest, done)
            else:
                done(True, None)

        self._replica.steward.remove(node, removed)


def encode_health(health: ClusterHealth) -> list[Any]:
    """Plain data for the way to another node."""
    servers = [list(server) for server in health.servers]
    return [health.healthy, health.failure_tolerance, servers]


def decode_health(value: Any) -> ClusterHealth:
    """A judgement that came over the wire.

    Raises:
        RemoteProtocolError: It is none.
    """
    try:
        healthy, tolerance, servers = value
        found = tuple([ServerHealth(*server) for server in servers])
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError("the leader's answer is no judgement of the members") from error
    for server in found:
        if tuple(map(type, server)) != _KINDS:
            raise RemoteProtocolError("the leader's answer is no judgement of the members")
    if type(healthy) is not bool or type(tolerance) is not int:
        raise RemoteProtocolError("the leader's answer is no judgement of the members")
    return ClusterHealth(healthy, tolerance, found)


_KINDS = (str, str, str, bool, bool, bool, int, int, int, bool, int)

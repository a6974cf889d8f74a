"""``/v1/operator``: the Raft group, and how the leader looks after it (spec §9)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kvnode.errors import BadRequest
from kvnode.http.completion import read_store, wait_for
from kvnode.http.decode import Members, load
from kvnode.http.golang import INT64_MAX, format_duration, parse_duration_ns, parse_uint, quote
from kvnode.http.messages import VARY, Request, Response, json_answer, text
from kvnode.http.query import Options, parse_options
from kvnode.replica.facade import Consistency
from kvnode.store.control_commands import AutopilotSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvnode.http.context import HttpContext
    from kvnode.raft.types import NodeId
    from kvnode.replica.facade import ClusterHealth, MemberStatus, ServerHealth, Status
    from kvnode.store.store import Store

READMIT_S_MAX: Final = 3600
"""How long a name that was removed may be kept out."""
_NS_PER_MS: Final = 10**6
_AUTOPILOT_MEMBERS: Final = (
    "CleanupDeadServers", "LastContactThreshold", "MaxTrailingLogs", "MinQuorum",
    "ServerStabilizationTime", "RedundancyZoneTag", "DisableUpgradeMigration", "UpgradeVersionTag",
    "CreateIndex", "ModifyIndex",
)  # fmt: skip
_KNOWN: Final = frozenset(name.lower() for name in _AUTOPILOT_MEMBERS)
_TYPE: Final = "AutopilotConfiguration"


class OperatorRoutes:
    """The handlers; one object so that they share the context."""

    def __init__(self, context: HttpContext) -> None:
        """Remember whom to ask."""
        self._replica = context.replica
        self._settings = context.settings

    def _options(self, request: Request) -> Options | Response:
        options = parse_options(request.query)
        if options.error is not None:
            return options.error
        return options.foreign_datacenter(self._settings.datacenter) or options

    async def _fresh(self, options: Options) -> None:
        """Wait until this node's state may be shown; holds while there is no leader (spec §3)."""
        if options.consistency is not Consistency.STALE:
            await wait_for(partial(self._replica.read, options.consistency))

    # -- raft -------------------------------------------------------------------------------------

    async def configuration(self, request: Request) -> Response:
        """``GET /v1/operator/raft/configuration``: confirmed by the leader unless ``?stale``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        await self._fresh(options)
        status = self._replica.status()
        servers = [
            {
                "ID": member.node_id,
                "Node": member.name,
                "Address": member.address,
                "Leader": member.leader,
                "ProtocolVersion": "3",
                "Voter": member.voter,
                "LastIndex": _last_index(member, status),
            }
            for member in status.members
        ]
        return json_answer({"Servers": servers, "Index": 0}, pretty=options.pretty)

    async def remove_peer(self, request: Request) -> Response:
        """``DELETE /v1/operator/raft/peer?id=``, ``?address=``, or our own ``?name=``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        given = [(what, options.first(what) or "") for what in ("id", "address", "name")]
        given = [pair for pair in given if pair[1]]
        if not given:
            return text(
                400,
                "Must specify either ?id with the server's ID or ?address with IP:port of peer "
                "to remove",
            )
        if len(given) > 1:
            return text(400, "Must specify only one of ?id or ?address")
        member = self._find(*given[0])
        if isinstance(member, Response):
            return member
        try:
            readmit_s = parse_duration_ns(options.first("readmit-after") or "0") / 1e9
        except ValueError as error:
            return text(400, f"Invalid readmit-after: {error}")
        if not 0 <= readmit_s <= READMIT_S_MAX:
            return text(400, f"readmit-after must be between 0s and {READMIT_S_MAX}s")
        remove = self._replica.remove_member
        await wait_for(lambda done: remove(member.node_id, done, readmit_s=readmit_s))
        return Response(200, VARY)

    async def transfer_leader(self, request: Request) -> Response:
        """``POST /v1/operator/raft/transfer-leader?id=``: to that member, or the best one."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        target: NodeId | None = None
        node_id = options.first("id") or ""
        if node_id:
            member = self._find("id", node_id)
            if isinstance(member, Response):
                return member
            target = member.node_id
        try:
            await wait_for(partial(self._replica.transfer_leadership, target))
        except BadRequest as error:  # no other voter: 500 in Consul
            return text(500, str(error))
        return json_answer({"Success": True}, pretty=options.pretty)

    def _find(self, what: str, wanted: str) -> MemberStatus | Response:
        members = self._replica.status().members
        named = {"id": "node_id", "address": "address", "name": "name"}[what]
        found = [member for member in members if getattr(member, named) == wanted]
        if len(found) == 1:
            return found[0]
        if found:  # an old incarnation beside a new one
            ids = ", ".join(member.node_id for member in found)
            return text(500, f'{what} "{wanted}" is not one member, but {ids}: give ?id')
        return text(500, f'{what} "{wanted}" was not found in the Raft configuration')

    # -- autopilot ----------------------------------------------------------------------------------

    async def autopilot(self, request: Request) -> Response:
        """``GET`` and ``PUT /v1/operator/autopilot/configuration`` (``?cas=``)."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        if request.method == "PUT":
            return await self._set_autopilot(request, options)
        await self._fresh(options)
        found = self._replica.autopilot()
        document = {
            "CleanupDeadServers": found.cleanup_dead_servers,
            "LastContactThreshold": format_duration(found.last_contact_threshold_ns),
            "MaxTrailingLogs": found.max_trailing_logs,
            "MinQuorum": found.min_quorum,
            "ServerStabilizationTime": format_duration(found.server_stabilization_ns),
            "RedundancyZoneTag": found.redundancy_zone_tag,
            "DisableUpgradeMigration": found.disable_upgrade_migration,
            "UpgradeVersionTag": found.upgrade_version_tag,
            "CreateIndex": found.create_index,
            "ModifyIndex": found.modify_index,
        }
        return json_answer(document, pretty=options.pretty)

    async def _set_autopilot(self, request: Request, options: Options) -> Response:
        try:
            command = _parse_autopilot(request.body)
        except ValueError as error:
            return text(400, f"Error parsing autopilot config: {error}")
        cas = options.first("cas")
        if cas is not None:
            try:
                command = command._replace(cas=parse_uint(cas))
            except ValueError as error:
                return text(400, f"Error parsing cas value: {error}")
        result = await wait_for(partial(self._replica.write, command))
        return json_answer(bool(result.value), pretty=options.pretty)

    async def health(self, request: Request) -> Response:
        """``GET /v1/operator/autopilot/health``: 429 when not everybody is healthy."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        found = await self._ask_health(options)
        servers = [
            {
                "ID": server.node_id,
                "Name": server.name,
                "Address": server.address,
                "SerfStatus": "alive" if server.alive else "failed",
                "Version": self._settings.consul_version,
                "Leader": server.leader,
                "LastContact": format_duration(server.last_contact_ms * _NS_PER_MS),
                "LastTerm": server.last_term,
                "LastIndex": server.last_index,
                "Healthy": server.healthy,
                "Voter": server.voter,
                "StableSince": _since(server),
            }
            for server in found.servers
        ]
        document = {
            "Healthy": found.healthy,
            "FailureTolerance": found.failure_tolerance,
            "Servers": servers,
        }
        status = 200 if found.healthy else 429
        return json_answer(document, pretty=options.pretty, status=status)

    async def state(self, request: Request) -> Response:
        """``GET /v1/operator/autopilot/state``: the same by id, always with status 200."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        found = await self._ask_health(options)
        replicas = [m.node_id for m in self._replica.status().members if m.read_replica]
        servers: dict[str, Any] = {
            server.node_id: {
                "ID": server.node_id,
                "Name": server.name,
                "Address": server.address,
                "NodeStatus": "alive" if server.alive else "failed",
                "Version": self._settings.consul_version,
                "LastContact": format_duration(server.last_contact_ms * _NS_PER_MS),
                "LastTerm": server.last_term,
                "LastIndex": server.last_index,
                "Healthy": server.healthy,
                "StableSince": _since(server),
                "Status": _role(server),
                "Meta": {},
                "NodeType": _node_type(server, replicas),
            }
            for server in found.servers
        }
        document: dict[str, Any] = {
            "Healthy": found.healthy,
            "FailureTolerance": found.failure_tolerance,
            "OptimisticFailureTolerance": found.failure_tolerance,
            "Servers": servers,
            "Leader": next((s.node_id for s in found.servers if s.leader), ""),
            "Voters": [server.node_id for server in found.servers if server.voter],
        }
        if replicas:  # absent without any, as in Consul
            document["ReadReplicas"] = sorted(replicas)
        return json_answer(document, pretty=options.pretty)

    async def _ask_health(self, options: Options) -> ClusterHealth:
        # There is no stale judgement: it is the leader's. The read waits for one.
        await wait_for(partial(self._replica.read, Consistency.DEFAULT))
        return await wait_for(self._replica.health)

    # -- the rest -----------------------------------------------------------------------------------

    async def usage(self, request: Request) -> Response:
        """``GET /v1/operator/usage``: how much is registered."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        status = self._replica.status()
        counts = await read_store(self._replica, options.consistency, _usage)
        document = {
            "Usage": {self._settings.datacenter: counts},
            "Index": status.applied_index,
            "LastContact": 0,
            "KnownLeader": status.leader_id is not None,
            "ConsistencyLevel": options.effective.decode(),
            "NotModified": False,
            "Backend": 0,
            "ResultsFilteredByACLs": False,
        }
        return json_answer(document, pretty=options.pretty)

    async def keyring(self, request: Request) -> Response:
        """``/v1/operator/keyring``: there is no gossip, and so no key to show or to change."""
        what = "Keyring is empty" if request.method == "GET" else "No keyring to modify"
        name = self._settings.node_name
        return text(500, f"1 error occurred:\n\t* {name}: {what} (encryption not enabled)\n\n")


def _parse_autopilot(body: bytes) -> AutopilotSet:
    """Read the body of a PUT; what is absent becomes zero, as in Consul.

    Raises:
        ValueError: With Go's reason.
    """
    document = load(body)
    members = Members(document, "", _TYPE, _TYPE)
    for name in document or ():
        if name.lower() not in _KNOWN:
            raise ValueError(f"json: unknown field {quote(name)}")
    for name in ("CreateIndex", "ModifyIndex"):
        members.uint(name)
    return AutopilotSet(
        cleanup_dead_servers=members.boolean("CleanupDeadServers"),
        last_contact_threshold_ns=_duration(members, "LastContactThreshold"),
        max_trailing_logs=members.uint("MaxTrailingLogs"),
        min_quorum=members.uint("MinQuorum"),
        server_stabilization_ns=_duration(members, "ServerStabilizationTime"),
        redundancy_zone_tag=members.text("RedundancyZoneTag"),
        disable_upgrade_migration=members.boolean("DisableUpgradeMigration"),
        upgrade_version_tag=members.text("UpgradeVersionTag"),
    )


def _duration(members: Members, name: str) -> int:
    """Return nanoseconds, from Go's text or a number of them."""
    value = members.get(name)
    if value is None:
        return 0
    if isinstance(value, str):
        return parse_duration_ns(value)
    if type(value) is not int or not -INT64_MAX <= value <= INT64_MAX:
        raise ValueError(f"{name} must be a duration or a number of nanoseconds")
    return value


def _since(server: ServerHealth) -> str:
    at = datetime.fromtimestamp(time.time() - server.stable_ms / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _node_type(server: ServerHealth, read_replicas: Sequence[NodeId]) -> str:
    if server.node_id in read_replicas:
        return "read-replica"
    return "voter" if server.voter else "non-voter"


def _role(server: ServerHealth) -> str:
    if server.leader:
        return "leader"
    return "voter" if server.voter else "non-voter"


def _last_index(member: MemberStatus, status: Status) -> int:
    return int(status.last_index if member.node_id == status.node_id else member.match_index)


def _usage(store: Store) -> dict[str, Any]:
    registry = store.registry()
    names = [service.name for service in registry.services()]
    connect = ("connect-native", "connect-proxy", "ingress-gateway", "mesh-gateway",
               "terminating-gateway", "api-gateway")  # fmt: skip
    return {
        "Nodes": len(registry.nodes()),
        "Services": len(set(names)),
        "ServiceInstances": len(names),
        "ConnectServiceInstances": dict.fromkeys(connect, 0),
        "BillableServiceInstances": sum(name != "consul" for name in names),
    }

"""``/v1/status``, ``/v1/agent`` and ``/v1/operator/raft`` (spec §7, §9, §10).

Built from ``Status`` alone, so every node answers them without a leader, as Consul's agents do; only
the configuration asks the leader first.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.errors import BadRequest
from kvnode.http import metrics
from kvnode.http.completion import wait_for
from kvnode.http.golang import parse_duration_ns
from kvnode.http.messages import VARY, Request, Response, json_answer, text
from kvnode.http.query import Options, parse_options
from kvnode.replica.facade import Consistency

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from kvnode.http.context import HttpContext
    from kvnode.raft.types import NodeId
    from kvnode.replica.facade import MemberStatus, Status


READMIT_S_MAX = 3600
"""How long a name that was removed may be kept out."""


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else 0


class AgentRoutes:
    """The handlers; one object so that they share the context."""

    def __init__(self, context: HttpContext, registry: CollectorRegistry) -> None:
        """Remember whom to ask."""
        self._replica = context.replica
        self._settings = context.settings
        self._registry = registry
        self._reload = context.reload
        self._leave = context.leave

    def _options(self, request: Request) -> Options | Response:
        options = parse_options(request.query)
        if options.error is not None:
            return options.error
        return options.foreign_datacenter(self._settings.datacenter) or options

    async def leader(self, request: Request) -> Response:
        """``GET /v1/status/leader``: the leader's peer address, ``""`` without one."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        return json_answer(self._replica.status().leader_address, pretty=options.pretty)

    async def peers(self, request: Request) -> Response:
        """``GET /v1/status/peers``: the members' peer addresses."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        addresses = [member.address for member in self._replica.status().members]
        return json_answer(addresses, pretty=options.pretty)

    async def configuration(self, request: Request) -> Response:
        """``GET /v1/operator/raft/configuration``: confirmed by the leader unless ``?stale``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        if options.consistency is not Consistency.STALE:
            await wait_for(partial(self._replica.read, options.consistency))
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
        """``DELETE /v1/operator/raft/peer?id=`` or ``?address=``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        node_id, address = options.first("id") or "", options.first("address") or ""
        if not node_id and not address:
            return text(
                400,
                "Must specify either ?id with the server's ID or ?address with IP:port of peer "
                "to remove",
            )
        if node_id and address:
            return text(400, "Must specify only one of ?id or ?address")
        member = self._find(node_id, address)
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
            member = self._find(node_id, "")
            if isinstance(member, Response):
                return member
            target = member.node_id
        try:
            await wait_for(partial(self._replica.transfer_leadership, target))
        except BadRequest as error:  # no other voter: 500 in Consul
            return text(500, str(error))
        return json_answer({"Success": True}, pretty=options.pretty)

    def _find(self, node_id: str, address: str) -> MemberStatus | Response:
        for member in self._replica.status().members:
            if (node_id and member.node_id == node_id) or (address and member.address == address):
                return member
        what = f'id "{node_id}"' if node_id else f'address "{address}"'
        return text(500, f"{what} was not found in the Raft configuration")

    async def own(self, request: Request) -> Response:
        """``GET /v1/agent/self``: configuration, membership and numbers as Consul words them."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        status = self._replica.status()
        settings = self._settings
        me = next((m for m in status.members if m.node_id == status.node_id), None)
        document = {
            "Config": {
                "Datacenter": settings.datacenter,
                "PrimaryDatacenter": settings.datacenter,
                "NodeName": status.name,
                "NodeID": status.node_id,
                "Revision": settings.version,
                "Server": True,
                "Version": settings.consul_version,
                "SessionTTLMin": settings.session_ttl_min_ns,
            },
            "DebugConfig": {
                "KvnodeVersion": settings.version,
                "BootstrapExpect": settings.bootstrap_expect,
                "KVMaxValueSize": settings.value_bytes_max,
            },
            "Coord": {
                "Vec": [0] * 8,
                "Error": 1.5,
                "Adjustment": 0,
                "Height": 0.00001,
            },
            "Member": self._member(me) if me else self._absent_member(status),
            "Stats": self._stats(status),
            "Meta": {"consul-network-segment": ""},
        }
        return json_answer(document, pretty=options.pretty)

    async def members(self, request: Request) -> Response:
        """``GET /v1/agent/members``: the Raft members; ``?wan`` names them ``name.dc``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        listed = [self._member(member) for member in self._replica.status().members]
        if "wan" in options.values:
            for member in listed:
                member["Name"] = f"{member['Name']}.{self._settings.datacenter}"
        return json_answer(listed, pretty=options.pretty)

    async def metrics(self, request: Request) -> Response:
        """``GET /v1/agent/metrics``: JSON, or Prometheus' text with ``?format=prometheus``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        if options.first("format") == "prometheus":
            body = metrics.exposition(self._registry)
            return Response(200, VARY + metrics.CONTENT_TYPE, body)
        return json_answer(metrics.consul_document(self._registry), pretty=options.pretty)

    async def reload(self, request: Request) -> Response:
        """``PUT /v1/agent/reload``."""
        if self._reload is None:
            return text(500, "this node has no configuration to reload")
        await self._reload()
        return Response(200, VARY)

    async def leave(self, request: Request) -> Response:
        """``PUT /v1/agent/leave``: answer, then the process leaves."""
        if self._leave is None:
            return text(500, "this node cannot leave on request")
        await self._leave()
        return Response(200, VARY)

    def _member(self, member: MemberStatus) -> dict[str, Any]:
        host, port = _host_port(member.address)
        settings = self._settings
        return {
            "Name": member.name,
            "Addr": host,
            "Port": port,
            "Tags": {
                "role": "consul",
                "dc": settings.datacenter,
                "id": member.node_id,
                "port": str(port),
                "expect": str(settings.bootstrap_expect),
                "vsn": "2",
                "vsn_min": "2",
                "vsn_max": "3",
                "raft_vsn": "3",
                "build": f"{settings.consul_version}:",
                "segment": "",
                "wan_join_port": str(port),
                "acls": "0",
                "ft_fs": "1",
                **({"read_replica": "true"} if member.read_replica else {}),
            },
            "Status": 1 if member.connected else 4,
            "ProtocolMin": 1,
            "ProtocolMax": 5,
            "ProtocolCur": 2,
            "DelegateMin": 2,
            "DelegateMax": 5,
            "DelegateCur": 4,
        }

    def _absent_member(self, status: Status) -> dict[str, Any]:
        """Describe this node while it is no member yet."""
        return {"Name": status.name, "Addr": "", "Port": 0, "Tags": {}, "Status": 0}

    def _stats(self, status: Status) -> dict[str, dict[str, str]]:
        """Return what ``consul info`` prints; every value is text (spec §10)."""
        settings = self._settings
        leading = status.leader_id == status.node_id
        role = "leader" if leading else status.role.value
        contact = "0" if leading else f"{status.last_contact_ms}ms"
        if status.leader_id is None and not status.commit_index:
            contact = "never"
        servers = ", ".join(
            f"{{Suffrage:{'Voter' if m.voter else 'Nonvoter'} ID:{m.node_id} Address:{m.address}}}"
            for m in status.members
        )
        return {
            "agent": {"check_monitors": "0", "check_ttls": "0", "checks": "0", "services": "0"},
            "build": {
                "prerelease": "",
                "revision": settings.version,
                "version": settings.consul_version,
            },
            "consul": {
                "acl": "disabled",
                "bootstrap": "true" if settings.bootstrap_expect == 1 else "false",
                "known_datacenters": "1",
                "leader": "true" if leading else "false",
                "leader_addr": status.leader_address,
                "server": "true",
            },
            "raft": {
                "applied_index": str(status.applied_index),
                "commit_index": str(status.commit_index),
                "fsm_pending": str(max(0, status.commit_index - status.applied_index)),
                "last_contact": contact,
                "last_log_index": str(status.last_index),
                "last_log_term": str(status.last_term),
                "last_snapshot_index": str(status.snapshot_index),
                "last_snapshot_term": str(status.snapshot_term),
                "latest_configuration": f"[{servers}]",
                "num_peers": str(max(0, status.voters - 1)),
                "protocol_version": "3",
                "state": "".join(word.capitalize() for word in role.split("_")),
                "term": str(status.term),
            },
            "runtime": {
                "arch": sys.implementation.name,
                "os": sys.platform,
                "version": "python " + sys.version.split()[0],
            },
            "serf_lan": {"members": str(len(status.members))},
            "serf_wan": {"members": str(len(status.members))},
        }


def _last_index(member: MemberStatus, status: Status) -> int:
    return int(status.last_index if member.node_id == status.node_id else member.match_index)

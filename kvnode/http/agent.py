"""``/v1/status`` and what ``/v1/agent`` says of the node itself and of the members (spec §7, §10).

Built from ``Status`` alone, so every node answers them without a leader, as Consul's agents do.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kvnode.errors import KvnodeError
from kvnode.http import host, metrics
from kvnode.http.agent_lists import MEMBER_SERVICE
from kvnode.http.completion import read_store, wait_for
from kvnode.http.messages import VARY, Request, Response, json_answer, text
from kvnode.http.query import Options, parse_options
from kvnode.raft.types import Index
from kvnode.replica.facade import Consistency, MemberStatus
from kvnode.store.registry_records import MEMBER_CHECK

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from kvnode.http.context import HttpContext
    from kvnode.replica.facade import Status
    from kvnode.store.store import Store


JOIN: Final = b"/v1/agent/join/"
FORCE_LEAVE: Final = b"/v1/agent/force-leave/"
BUILD_DATE: Final = "1970-01-01T00:00:00Z"
"""Builds are repeatable, so they know no date."""


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

    async def own(self, request: Request) -> Response:
        """``GET /v1/agent/self``: configuration, membership and numbers as Consul words them."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        status = self._replica.status()
        settings = self._settings
        me = next((m for m in status.members if m.node_id == status.node_id), None)
        registered = await read_store(
            self._replica, Consistency.STALE, lambda store: _registered(store, status.name)
        )
        document = {
            "Config": {
                "Datacenter": settings.datacenter,
                "PrimaryDatacenter": settings.datacenter,
                "NodeName": status.name,
                "NodeID": status.node_id,
                "Revision": settings.version,
                "BuildDate": BUILD_DATE,
                "Server": True,
                "Version": settings.consul_version,
                "SessionTTLMin": settings.session_ttl_min_ns,
            },
            "DebugConfig": {
                "KvnodeVersion": settings.version,
                "BootstrapExpect": settings.bootstrap_expect,
                "KVMaxValueSize": settings.value_bytes_max,
                "TxnMaxReqLen": settings.body_bytes_max,
            },
            "Coord": {
                "Vec": [0] * 8,
                "Error": 1.5,
                "Adjustment": 0,
                "Height": 0.00001,
            },
            "Member": self._member(me) if me else self._absent_member(status),
            "Stats": self._stats(status, registered),
            "Meta": {"consul-network-segment": ""},
            "xDS": None,
        }
        return json_answer(document, pretty=options.pretty)

    async def members(self, request: Request) -> Response:
        """``GET /v1/agent/members``: the Raft members; ``?wan`` names them ``name.dc``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        if (options.first("segment") or "_all") != "_all":
            return text(500, "Network segments are not supported in this version of Consul")
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

    async def join(self, request: Request) -> Response:
        """``PUT /v1/agent/join/<addr>``: look for a cluster there, or tell a newcomer of this one."""
        address = request.path[len(JOIN) :].decode("utf-8", "replace")
        try:
            await wait_for(partial(self._replica.join, address))
        except KvnodeError as error:
            return text(500, f"1 error occurred:\n\t* Failed to join {address}: {error}\n\n")
        return Response(200, VARY)

    async def force_leave(self, request: Request) -> Response:
        """``PUT /v1/agent/force-leave/<name>``: remove a member that nothing is heard of."""
        name = request.path[len(FORCE_LEAVE) :].decode("utf-8", "replace")
        local = name.removesuffix(f".{self._settings.datacenter}")
        if not await wait_for(partial(self._replica.force_leave, local)):
            return text(500, f"agent: No node found with name '{name}'")
        return Response(200, VARY)

    async def version(self, request: Request) -> Response:
        """``GET /v1/agent/version``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        document = {
            "SHA": self._settings.version,
            "BuildDate": BUILD_DATE,
            "HumanVersion": self._settings.consul_version,
            "FIPS": "",
        }
        return json_answer(document, pretty=options.pretty)

    async def host(self, request: Request) -> Response:
        """``GET /v1/agent/host``."""
        options = self._options(request)
        if isinstance(options, Response):
            return options
        return json_answer(host.collect(), pretty=options.pretty)

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
        me = MemberStatus(
            status.node_id, status.name, "", "", voter=False, leader=False, connected=True,
            match_index=Index(0),
        )  # fmt: skip
        return self._member(me) | {"Status": 0}

    def _stats(self, status: Status, registered: dict[str, int]) -> dict[str, dict[str, str]]:
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
            "agent": {name: str(count) for name, count in registered.items()},
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
                "latest_configuration_index": "0",
                "num_peers": str(max(0, status.voters - 1)),
                "protocol_version": "3",
                "protocol_version_max": "3",
                "protocol_version_min": "0",
                "snapshot_version_max": "1",
                "snapshot_version_min": "0",
                "state": "".join(word.capitalize() for word in role.split("_")),
                "term": str(status.term),
            },
            "runtime": {
                "arch": platform.machine(),
                "cpu_count": str(os.cpu_count() or 1),
                "goroutines": str(threading.active_count()),
                "max_procs": str(os.cpu_count() or 1),
                "os": sys.platform,
                "version": "python " + sys.version.split()[0],
            },
            "serf_lan": _gossip(status),
            "serf_wan": _gossip(status),
        }


def _registered(store: Store, name: str) -> dict[str, int]:
    """Count what is registered with this node, besides what every node has."""
    registry = store.registry()
    checks = [check for check in registry.checks(name) if check.check_id != MEMBER_CHECK]
    services = [
        service for service in registry.services(name) if service.service_id != MEMBER_SERVICE
    ]
    return {
        "check_monitors": sum(bool(c.definition.http or c.definition.tcp) for c in checks),
        "check_ttls": sum(bool(check.definition.ttl_ns) for check in checks),
        "checks": len(checks),
        "services": len(services),
    }


def _gossip(status: Status) -> dict[str, str]:
    """Return what Consul says of its gossip, as far as there is anything like it here."""
    silent = sum(not member.connected for member in status.members)
    zeros = (
        "coordinate_resets", "event_queue", "health_score", "intent_queue", "left", "query_queue",
    )  # fmt: skip
    return dict.fromkeys(zeros, "0") | {
        "encrypted": "false",
        "event_time": str(status.applied_index),
        "failed": str(silent),
        "member_time": str(status.term),
        "members": str(len(status.members)),
        "query_time": "1",
    }

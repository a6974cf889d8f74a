"""Nodes, services and checks as JSON; the order of the members is part of the contract (spec §10, §11)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kvnode.http.golang import format_duration
from kvnode.store.registry_reads import Instance
from kvnode.store.registry_records import Check, CheckDefinition, Node, Service

Json = dict[str, Any]

_PROXY: Final[Json] = {"MeshGateway": {}, "Expose": {}}
"""Consul's service mesh is absent; this is what it says where it is not used."""


def _pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """Return an object with its members sorted, as Go does; null when there is none."""
    return dict(sorted(pairs)) or None


def node_json(node: Node, datacenter: str) -> Json:
    """Encode a node."""
    return {
        "ID": node.node_id,
        "Node": node.name,
        "Address": node.address,
        "Datacenter": datacenter,
        "TaggedAddresses": _pairs(node.tagged_addresses),
        "Meta": _pairs(node.meta),
        "CreateIndex": node.create_index,
        "ModifyIndex": node.modify_index,
    }


def _tagged(service: Service) -> Json:
    return {
        name: {"Address": address, "Port": port}
        for name, address, port in sorted(service.tagged_addresses)
    }


def _weights(service: Service) -> Json:
    return {"Passing": service.weights[0], "Warning": service.weights[1]}


def service_json(service: Service) -> Json:
    """Encode a service as it stands beside its node."""
    document: Json = {
        "ID": service.service_id,
        "Service": service.name,
        "Tags": service.tags,
        "Address": service.address,
    }
    if service.tagged_addresses:
        document["TaggedAddresses"] = _tagged(service)
    return document | {
        "Meta": _pairs(service.meta),
        "Port": service.port,
        "Weights": _weights(service),
        "EnableTagOverride": service.enable_tag_override,
        "Proxy": _PROXY,
        "Connect": {},
        "CreateIndex": service.create_index,
        "ModifyIndex": service.modify_index,
    }


def instance_json(instance: Instance, datacenter: str) -> Json:
    """Encode a service with its node's members beside its own (``catalog/service``)."""
    node, service, _ = instance
    document: Json = {
        "ID": node.node_id,
        "Node": service.node,
        "Address": node.address,
        "Datacenter": datacenter,
        "TaggedAddresses": _pairs(node.tagged_addresses),
        "NodeMeta": _pairs(node.meta),
        "ServiceKind": "",
        "ServiceID": service.service_id,
        "ServiceName": service.name,
        "ServiceTags": service.tags,
        "ServiceAddress": service.address,
    }
    if service.tagged_addresses:
        document["ServiceTaggedAddresses"] = _tagged(service)
    return document | {
        "ServiceWeights": _weights(service),
        "ServiceMeta": dict(sorted(service.meta)),
        "ServicePort": service.port,
        "ServiceEnableTagOverride": service.enable_tag_override,
        "ServiceProxy": _PROXY,
        "ServiceConnect": {},
        "CreateIndex": service.create_index,
        "ModifyIndex": service.modify_index,
    }


def check_json(check: Check) -> Json:
    """Encode a check."""
    return {
        "Node": check.node,
        "CheckID": check.check_id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.service_id,
        "ServiceName": check.service_name,
        "ServiceTags": check.service_tags,
        "Type": check.type,
        "Definition": {} if check.is_local else _definition_json(check.definition),
        "CreateIndex": check.create_index,
        "ModifyIndex": check.modify_index,
    }


def _definition_json(definition: CheckDefinition) -> Json:
    shown: Json = {
        "Interval": format_duration(definition.interval_ns) if definition.interval_ns else "",
        "Timeout": format_duration(definition.timeout_ns) if definition.timeout_ns else "",
        "DeregisterCriticalServiceAfter": (
            format_duration(definition.deregister_ns) if definition.deregister_ns else ""
        ),
        "HTTP": definition.http,
        "TLSSkipVerify": definition.tls_skip_verify,
        "Header": {name: list(values) for name, values in sorted(definition.header)},
        "Method": definition.method,
        "Body": definition.body,
        "TCP": definition.tcp,
        "TTL": definition.ttl_ns,
    }
    return {name: value for name, value in shown.items() if value}


def health_json(instance: Instance, datacenter: str) -> Json:
    """Encode a service with its node and its checks (``health/service``)."""
    return {
        "Node": node_json(instance.node, datacenter),
        "Service": service_json(instance.service),
        "Checks": [check_json(check) for check in instance.checks],
    }


def agent_service_json(service: Service) -> Json:
    """Encode a service as its agent lists it: without indexes."""
    document: Json = {
        "ID": service.service_id,
        "Service": service.name,
        "Tags": service.tags,
        "Meta": dict(sorted(service.meta)),
        "Port": service.port,
        "Address": service.address,
    }
    if service.tagged_addresses:
        document["TaggedAddresses"] = _tagged(service)
    return document | {
        "Weights": _weights(service),
        "EnableTagOverride": service.enable_tag_override,
    }


def agent_check_json(check: Check) -> Json:
    """Encode a check as its agent lists it: with indexes of 0."""
    return check_json(check) | {"Definition": {}, "CreateIndex": 0, "ModifyIndex": 0}

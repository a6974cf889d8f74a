"""Bodies of registrations, read as Consul reads them (spec §10, §11).

Members match without regard to case and underscores: clients send ``EnableTagOverride`` and
``enable_tag_override``. What this cluster does not do (scripts, gRPC, Docker and alias checks, the service
mesh) is refused by name, and never taken and then not done.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

from kvnode.http.decode import Members, kind_of, load
from kvnode.http.golang import INT64_MAX, parse_duration_ns
from kvnode.store.registry_commands import Deregister, Register
from kvnode.store.registry_records import (
    CRITICAL,
    PASSING,
    WARNING,
    Check,
    CheckDefinition,
    Node,
    Pairs,
    Service,
    fold,
)

STATUSES: Final = (PASSING, WARNING, CRITICAL)
OUTPUT_MAX: Final = 4096
"""Bytes of output that a check keeps."""
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch
_FOREIGN_CHECKS: Final = (
    ("GRPC", "gRPC checks"),
    ("DockerContainerID", "Docker checks"),
    ("AliasNode", "alias checks"),
    ("AliasService", "alias checks"),
)
_INTERVAL: Final = "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks"


class Refusal(Exception):
    """The registration is refused: its status and its text."""

    def __init__(self, status: int, message: str) -> None:
        """See the class."""
        super().__init__(message)
        self.status = status


def _members(value: Any, where: str = "") -> Members:
    """Take an object; its members lose their underscores."""
    if isinstance(value, dict):
        value = {name.replace("_", ""): member for name, member in value.items()}
    return Members(value, where, "struct")


def document(body: bytes) -> Members:
    """Read a body.

    Raises:
        Refusal: It is no JSON object.
    """
    try:
        return _members(load(body))
    except ValueError as error:
        raise _undecodable(error) from error


def _undecodable(error: ValueError) -> Refusal:
    return Refusal(400, f"Request decode failed: {error}")


# -- what an agent is told ------------------------------------------------------------------------


def agent_service(body: bytes, node: str, *, replace_checks: bool) -> Register:
    """Read ``PUT /v1/agent/service/register``.

    Raises:
        Refusal: It cannot be registered.
    """
    members = document(body)
    try:
        name = members.text("Name")
        service = _service(members, node, members.text("ID") or name, name)
        raw = [members.get("Check"), *_items(members, "Checks")]
        wanted = [_members(item, ".Checks") for item in raw if item]
        definitions = [_definition(item) for item in wanted]
    except ValueError as error:
        raise _undecodable(error) from error
    if not name:
        raise Refusal(400, "Missing service name")
    if _is_any(service.address):
        raise Refusal(400, "Invalid service address")
    _check_weights(service)
    _refuse_mesh(members)
    service = _with_default_addresses(service)
    checks = []
    for number, (item, definition) in enumerate(zip(wanted, definitions, strict=True), 1):
        suffix = f":{number}" if len(wanted) > 1 else ""
        check = _check(item, definition, node, f"service:{service.service_id}{suffix}")
        if not check.name:
            check = check._replace(name=f"Service '{service.name}' check")
        checks.append(check._replace(service_id=service.service_id))
    return Register(
        node, service=service, checks=tuple(checks), keep_status=True, replace_checks=replace_checks
    )


def agent_check(body: bytes, node: str) -> Register:
    """Read ``PUT /v1/agent/check/register``; errors as ``agent_service``."""
    members = document(body)
    try:
        definition = _definition(members)
        name, status = members.text("Name"), members.text("Status")
        service_id = members.text("ServiceID")
    except ValueError as error:
        raise _undecodable(error) from error
    if not name:
        raise Refusal(400, "Missing check name")
    if status and status not in STATUSES:
        raise Refusal(400, "Bad check status")
    check = _check(members, definition, node, name)._replace(service_id=service_id)
    return Register(node, checks=(check,), keep_status=definition.ttl_ns > 0)


def status_update(body: bytes) -> tuple[str, str]:
    """Read ``PUT /v1/agent/check/update/<id>``: status and output; errors as ``agent_service``."""
    members = document(body)
    try:
        status, output = members.text("Status"), members.text("Output")
    except ValueError as error:
        raise _undecodable(error) from error
    if status not in STATUSES:
        raise Refusal(400, f"Invalid check status: '{status}'")
    return status, shortened(output)


def shortened(output: str) -> str:
    """Cut the output of a check to what is kept."""
    encoded = output.encode("utf-8", "replace")
    if len(encoded) <= OUTPUT_MAX:
        return output
    kept = encoded[:OUTPUT_MAX].decode("utf-8", "ignore")
    return f"{kept} ... (captured {OUTPUT_MAX} of {len(encoded)} bytes)"


def _check(members: Members, definition: CheckDefinition, node: str, default_id: str) -> Check:
    try:
        check_id = members.text("CheckID") or members.text("ID") or default_id
        name, notes = members.text("Name"), members.text("Notes")
        status = members.text("Status") or CRITICAL
    except ValueError as error:
        raise _undecodable(error) from error
    for member, feature in _FOREIGN_CHECKS:
        if members.get(member):
            raise Refusal(400, f"Invalid check: {feature} are not implemented")
    if members.get("ScriptArgs") or members.get("Args") or members.get("Script"):
        raise Refusal(
            500,
            "Scripts are disabled on this agent from remote calls; to enable, configure "
            "'enable_script_checks' to true",
        )
    kind = _kind(definition)
    if status not in STATUSES:
        raise Refusal(400, "Status for checks must 'passing', 'warning', 'critical'")
    return Check(
        node, check_id, name, status, notes, "", type=kind, definition=definition, is_local=True
    )


def _kind(definition: CheckDefinition) -> str:
    looks = bool(definition.http or definition.tcp)
    if definition.interval_ns and definition.ttl_ns:
        raise Refusal(400, "Invalid check: Interval and TTL cannot both be specified")
    if looks and not definition.interval_ns:
        raise Refusal(400, _INTERVAL)
    if not looks and not definition.ttl_ns:
        raise Refusal(400, "Invalid check: TTL must be > 0 for TTL checks")
    if definition.http:
        return "http"
    return "tcp" if definition.tcp else "ttl"


def _definition(members: Members) -> CheckDefinition:
    headers = members.get("Header") or {}
    if not isinstance(headers, dict):
        raise _mismatch(headers, "Header", "map[string][]string")
    return CheckDefinition(
        members.text("HTTP"),
        members.text("Method"),
        tuple(
            [
                (name, Members({"v": values}, ".Header", "").texts("v", "string"))
                for name, values in sorted(headers.items())
            ]
        ),
        members.text("Body"),
        _flag(members, "TLSSkipVerify"),
        members.text("TCP"),
        _duration_ns(members, "Interval"),
        _duration_ns(members, "Timeout"),
        _duration_ns(members, "DeregisterCriticalServiceAfter"),
        _duration_ns(members, "TTL"),
    )


def _check_weights(service: Service) -> None:
    passing, warning = service.weights
    if passing < 1:
        raise Refusal(400, "Invalid Weights: Passing must be greater than 0")
    if warning < 0:
        raise Refusal(400, "Invalid Weights: Warning must be greater or equal than 0")
    if max(passing, warning) > 65535:
        raise Refusal(400, "Invalid Weights: DNS Weight must be between 0 and 65535")


def _refuse_mesh(members: Members) -> None:
    connect = members.get("Connect")
    uses = isinstance(connect, dict) and any(connect.values())
    if members.get("Kind") or members.get("Proxy") or uses:
        raise Refusal(400, "Invalid service: there is no service mesh here (Kind, Proxy, Connect)")


# -- what the catalog is told ---------------------------------------------------------------------


def catalog_registration(body: bytes, datacenter: str) -> Register:
    """Read ``PUT /v1/catalog/register``; errors as ``agent_service``."""
    members = document(body)
    try:
        node = _node(members)
        foreign = members.text("Datacenter") not in ("", datacenter)
        skip = _flag(members, "SkipNodeUpdate")
        service = _catalog_service(members, node.name)
        raw = [*_items(members, "Checks"), members.get("Check")]
        checks = [
            _catalog_check(_members(item, ".Check"), node) for item in raw if item is not None
        ]
    except ValueError as error:
        raise _undecodable(error) from error
    if foreign:
        raise Refusal(500, "No path to datacenter")
    if not node.name:
        raise Refusal(500, "Must provide node")
    if not node.address and not skip:
        raise Refusal(500, "Must provide address if SkipNodeUpdate is not set")
    if node.node_id and len(node.node_id) != 36:
        raise Refusal(500, "Bad node ID: uuid string is wrong length")
    if node.node_id and not _UUID(node.node_id):
        raise Refusal(500, "Bad node ID: uuid is improperly formatted")
    if service is not None:
        _check_catalog_service(members, service)
    for check in checks:
        if check.node != node.name:
            raise Refusal(500, f'check node "{check.node}" does not match node "{node.name}"')
        if not check.check_id:
            raise Refusal(500, "failed inserting check: Must provide a check name or id")
    return Register(node.name, node, service, tuple(checks), skip_node_update=skip)


def _node(members: Members) -> Node:
    return Node(
        members.text("ID"),
        members.text("Node"),
        members.text("Address"),
        _pairs(members, "TaggedAddresses"),
        _pairs(members, "NodeMeta"),
    )


def _catalog_service(members: Members, node: str) -> Service | None:
    wanted = members.get("Service")
    if wanted is None:
        return None
    inner = _members(wanted, ".Service")
    name = inner.text("Service")
    return _service(inner, node, inner.text("ID") or name, name)


def _check_catalog_service(members: Members, service: Service) -> None:
    if service.service_id and not service.name:
        raise Refusal(500, "Must provide service name with ID")
    if _is_any(service.address):
        raise Refusal(500, "Invalid service address")
    if not service.name:
        raise Refusal(500, "Must provide service name")
    _refuse_mesh(_members(members.get("Service")))


def _catalog_check(members: Members, node: Node) -> Check:
    name = members.text("Name")
    definition = _definition(_members(members.get("Definition"), ".Definition"))
    kind = "http" if definition.http else "tcp" if definition.tcp else ""
    return Check(
        members.text("Node") or node.name,
        members.text("CheckID") or name,
        name,
        members.text("Status") or CRITICAL,
        members.text("Notes"),
        members.text("Output"),
        members.text("ServiceID"),
        type=members.text("Type") or kind,
        definition=definition,
    )


def catalog_deregistration(body: bytes, datacenter: str) -> Deregister:
    """Read ``PUT /v1/catalog/deregister``; errors as ``agent_service``."""
    members = document(body)
    try:
        wanted = Deregister(
            members.text("Node"), members.text("ServiceID"), members.text("CheckID")
        )
        foreign = members.text("Datacenter") not in ("", datacenter)
        members.text("Address")
    except ValueError as error:
        raise _undecodable(error) from error
    if foreign:
        raise Refusal(500, "No path to datacenter")
    if not wanted.node:
        raise Refusal(500, "Must provide node")
    return wanted


# -- pieces ---------------------------------------------------------------------------------------


def _service(members: Members, node: str, service_id: str, name: str) -> Service:
    weights = members.get("Weights")
    weighed = _members(weights, ".Weights")
    tagged = members.get("TaggedAddresses") or {}
    if not isinstance(tagged, dict):
        raise _mismatch(tagged, "TaggedAddresses", "map[string]structs.ServiceAddress")
    addresses = [
        (kind, item.text("Address"), _int(item, "Port"))
        for kind, item in [
            (kind, _members(value, ".TaggedAddresses")) for kind, value in sorted(tagged.items())
        ]
    ]
    return Service(
        node,
        service_id,
        name,
        members.texts("Tags", "string"),
        members.text("Address"),
        tuple(addresses),
        _pairs(members, "Meta"),
        _int(members, "Port"),
        (1, 1) if weights is None else (_int(weighed, "Passing"), _int(weighed, "Warning")),
        _flag(members, "EnableTagOverride"),
    )


def _items(members: Members, name: str) -> list[Any]:
    value = members.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _mismatch(value, name, f"[]structs.{name}")
    return value


def _pairs(members: Members, name: str) -> Pairs:
    value = members.get(name)
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise _mismatch(value, name, "map[string]string")
    inner = {key: Members({key: text}, f".{name}", "").text(key) for key, text in value.items()}
    return tuple(sorted(inner.items()))


def _int(members: Members, name: str) -> int:
    value = members.get(name)
    if value is None:
        return 0
    if type(value) is not int or not -INT64_MAX <= value <= INT64_MAX:
        raise _mismatch(value, name, "int")
    return value


def _flag(members: Members, name: str) -> bool:
    value = members.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _mismatch(value, name, "bool")
    return value


def _duration_ns(members: Members, name: str) -> int:
    """Return a duration: Go's text, or a number of nanoseconds; a negative one is none."""
    value = members.get(name)
    if value is None or value == "":
        return 0
    if isinstance(value, str):
        return max(0, parse_duration_ns(value))
    return max(0, _int(members, name))


def _mismatch(value: Any, name: str, kind: str) -> ValueError:
    shown = kind_of(value)
    return ValueError(f"json: cannot unmarshal {shown} into Go struct field .{name} of type {kind}")


def _with_default_addresses(service: Service) -> Service:
    """Tag a service's address by its family, as Consul's agents do."""
    try:
        version = ipaddress.ip_address(service.address).version
    except ValueError:
        return service
    tagged = {item[0]: item for item in service.tagged_addresses}
    for kind in (f"lan_ipv{version}", f"wan_ipv{version}"):
        tagged.setdefault(kind, (kind, service.address, service.port))
    return service._replace(tagged_addresses=tuple(sorted(tagged.values())))


def _is_any(address: str) -> bool:
    """Whether an address stands for all of a machine's: nobody can connect to it."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


def is_members_own(command: Deregister) -> bool:
    """Whether an agent is told to deregister what belongs to the membership: nothing happens then, as
    in Consul, whose agents do not know of it.
    """
    return fold(command.service_id) == b"consul" or fold(command.check_id) == b"serfhealth"

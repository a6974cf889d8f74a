"""What an agent says of the services and checks registered with it (spec §10)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.errors import BadRequest
from kvnode.http.filters import Filter, parse_filter
from kvnode.http.messages import TEXT_TYPE, VARY, Response, dump_json, json_answer, text
from kvnode.http.registry_json import agent_check_json, agent_service_json
from kvnode.store.registry_reads import Registry
from kvnode.store.registry_records import CRITICAL, MEMBER_CHECK, PASSING, WARNING, Service, fold

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings
    from kvnode.http.query import Options

TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
"""What Go's ``strconv.ParseBool`` takes."""
MEMBER_SERVICE: Final = "consul"
_MAINTENANCE: Final = "maintenance"
_STATUS: Final = {PASSING: 200, WARNING: 429, CRITICAL: 503, _MAINTENANCE: 503}
_WORST: Final = (_MAINTENANCE, CRITICAL, WARNING, PASSING)


class Read(NamedTuple):
    """Something to read from this node's part of the registry."""

    document: Callable[[Registry], Response]


class _Asked(NamedTuple):
    """Who is asked, and how to answer."""

    node: str
    datacenter: str
    name: str
    pretty: bool
    as_text: bool
    wanted: Filter | None = None
    """Applied to each item of a list."""

    def kept(self, found: dict[str, Any]) -> Response:
        """Answer with what the filter leaves."""
        wanted = self.wanted
        shown = {name: item for name, item in sorted(found.items()) if not wanted or wanted(item)}
        return json_answer(shown, pretty=self.pretty)


def parse_read(rest: bytes, options: Options, settings: HttpSettings) -> Read | Response:
    """Parse what stands behind ``/v1/agent/`` in a GET."""
    expression = options.first("filter")
    try:
        wanted = parse_filter(expression) if expression else None
    except BadRequest as error:
        return text(400, str(error))
    shown = rest.decode("utf-8", "surrogateescape")
    as_text = options.first("format") == "text"
    for prefix, document in _DOCUMENTS.items():
        if shown == prefix or (prefix.endswith("/") and shown.startswith(prefix)):
            name = shown.removeprefix(prefix)
            asked = _Asked(
                settings.node_name, settings.datacenter, name, options.pretty, as_text, wanted
            )
            return Read(partial(document, asked))
    raise AssertionError("the router knows no other")


def _is_own(service: Service) -> bool:
    return fold(service.service_id) != fold(MEMBER_SERVICE)


def _services(asked: _Asked, registry: Registry) -> Response:
    found = {
        service.service_id: agent_service_json(service) | {"Datacenter": asked.datacenter}
        for service in registry.services(asked.node)
        if _is_own(service)
    }
    return asked.kept(found)


def _checks(asked: _Asked, registry: Registry) -> Response:
    found = {
        check.check_id: agent_check_json(check)
        for check in registry.checks(asked.node)
        if check.check_id != MEMBER_CHECK
    }
    return asked.kept(found)


def _service(asked: _Asked, registry: Registry) -> Response:
    service = registry.service(asked.node, asked.name)
    if service is None or not _is_own(service):
        return text(404, f"unknown service ID: {asked.name}")
    document = agent_service_json(service)
    digest = service_digest(document)
    head = b"X-Consul-ContentHash: %b\r\n" % digest.encode()
    return json_answer(document | {"ContentHash": digest}, pretty=asked.pretty, head=head)


def service_digest(document: Any) -> str:
    """Return 16 hex digits that change whenever the service does; Consul's are others."""
    return f"{zlib.crc32(dump_json(document)):08x}{zlib.adler32(dump_json(document)):08x}"


def _state(asked: _Asked, service: Service, registry: Registry) -> dict[str, Any]:
    """Describe a service with the worst status of its checks and its node's."""
    checks = registry.checks_of(asked.node, service.service_id)
    checks += [c for c in registry.checks_of(asked.node, "") if c.check_id != MEMBER_CHECK]
    found = {_MAINTENANCE if check.type == _MAINTENANCE else check.status for check in checks}
    return {
        "AggregatedStatus": next((status for status in _WORST if status in found), PASSING),
        "Service": agent_service_json(service),
        "Checks": [agent_check_json(check) for check in checks],
    }


def _health_of_id(asked: _Asked, registry: Registry) -> Response:
    if not asked.name:
        return text(500, "Bad request: Missing serviceID")
    service = registry.service(asked.node, asked.name)
    if service is None:
        reason = f"ServiceId {asked.name} not found"
        return _told(asked, {"AggregatedStatus": CRITICAL, "Service": None, "Checks": None}, reason)
    return _told(asked, _state(asked, service, registry), "")


def _health_of_name(asked: _Asked, registry: Registry) -> Response:
    if not asked.name:
        return text(500, "Bad request: Missing service Name")
    found = [
        _state(asked, service, registry)
        for service in registry.services(asked.node)
        if fold(service.name) == fold(asked.name)
    ]
    return _told(asked, found, "" if found else f"ServiceName {asked.name} Not Found")


def _told(asked: _Asked, document: Any, missing: str) -> Response:
    """Answer with the worst status as the code, as load balancers want it."""
    states = document if isinstance(document, list) else [document]
    statuses = {state["AggregatedStatus"] for state in states}
    worst = next((status for status in _WORST if status in statuses), CRITICAL)
    status = 404 if missing else _STATUS[worst]
    reason = (missing or worst).encode("latin-1", "replace").translate(None, b"\r\n")
    head = b"X-Consul-Reason: %b\r\n" % reason
    if asked.as_text:
        return Response(status, VARY + TEXT_TYPE + head, (missing or worst).encode())
    return json_answer(document, pretty=asked.pretty, status=status, head=head)


_DOCUMENTS: Final[dict[str, Callable[[_Asked, Registry], Response]]] = {
    "services": _services,
    "checks": _checks,
    "health/service/id/": _health_of_id,
    "health/service/name/": _health_of_name,
    "service/": _service,
}

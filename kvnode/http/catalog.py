"""Reads of the registry, ``/v1/catalog/…`` and ``/v1/health/…`` (spec §11), as plain functions.

Built as ``kv``. Each kind of read has an index of its own, as in Consul, and blocks on it: a service is
woken by its own instances and by the checks and nodes that they depend on, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.errors import BadRequest, KvnodeError
from kvnode.http import errors
from kvnode.http.agent_lists import FALSE, TRUE
from kvnode.http.blocking import Query
from kvnode.http.completion import given
from kvnode.http.filters import Filter, parse_filter
from kvnode.http.kv import read_head
from kvnode.http.messages import JSON_TYPE, Response, dump_json, json_answer, prettify, text
from kvnode.http.query import Options, parse_options
from kvnode.http.registry_json import (
    check_json,
    health_json,
    instance_json,
    node_json,
    service_json,
)
from kvnode.store.registry_reads import Instance, Registry
from kvnode.store.registry_records import (
    CHECK_INDEX,
    EXTINCTION_INDEX,
    NODE_INDEX,
    PASSING,
    SERVICE_INDEX,
    Check,
    Node,
    fold,
)

if TYPE_CHECKING:
    from kvnode.http.blocking import Parked
    from kvnode.http.context import HttpSettings
    from kvnode.http.kv import Backend
    from kvnode.http.messages import Respond
    from kvnode.replica.facade import ReadView


class Read(NamedTuple):
    """One read."""

    view: View
    name: str
    """Of a node, a service or a state; empty: the read has none."""
    options: Options
    datacenter: str
    passing: bool = False
    tags: tuple[str, ...] = ()
    """Folded; a service must have all of them."""
    node_meta: tuple[tuple[str, str], ...] = ()
    """A node must have all of these."""
    wanted: Filter | None = None
    """Applied to each item of the answer."""

    def takes(self, node: Node | None) -> bool:
        """Whether a node has the metadata that was asked for."""
        return not self.node_meta or (node is not None and set(self.node_meta) <= set(node.meta))


class View(NamedTuple):
    """One kind of read."""

    answer: Callable[[Registry, Read], Any]
    """The JSON document."""
    index_of: Callable[[Registry, Read], int]
    watch: Callable[[Read], bytes]
    """Which index to wait for; empty: any."""
    missing: str = ""
    """The text of the answer when there is no name behind the path; empty: there is never one."""


# -- the kinds ------------------------------------------------------------------------------------


def _nodes(registry: Registry, read: Read) -> Any:
    return [node_json(node, read.datacenter) for node in registry.nodes() if read.takes(node)]


def _services(registry: Registry, read: Read) -> Any:
    found: dict[str, dict[str, None]] = {}
    fitting = {fold(node.name): node for node in registry.nodes() if read.takes(node)}
    for service in registry.services():
        node = fitting.get(fold(service.node))
        if node is None:
            continue
        shown = Instance(node, service, ())
        if read.wanted is None or read.wanted(instance_json(shown, read.datacenter)):
            found.setdefault(service.name, {}).update(dict.fromkeys(service.tags))
    return {name: list(tags) for name, tags in sorted(found.items())}


def _instances(registry: Registry, read: Read, *, checks: bool) -> list[Instance]:
    return [
        instance
        for instance in registry.instances(read.name, checks=checks)
        if read.takes(instance.node)
        and (not read.tags or set(read.tags) <= {tag.lower() for tag in instance.service.tags})
        and (not read.passing or all(check.status == PASSING for check in instance.checks))
    ]


def _service(registry: Registry, read: Read) -> Any:
    found = _instances(registry, read, checks=False)
    return [instance_json(instance, read.datacenter) for instance in found]


def _health_service(registry: Registry, read: Read) -> Any:
    found = _instances(registry, read, checks=True)
    return [health_json(instance, read.datacenter) for instance in found]


def _node(registry: Registry, read: Read) -> Any:
    node = registry.node(read.name)
    if node is None:
        return None
    services = registry.services(node.name)
    return {
        "Node": node_json(node, read.datacenter),
        "Services": {service.service_id: service_json(service) for service in services},
    }


def _node_services(registry: Registry, read: Read) -> Any:
    document = _node(registry, read)
    if document is None:
        return {"Node": None, "Services": None}
    return document | {"Services": list(document["Services"].values()) or None}


def _checks_json(registry: Registry, read: Read, checks: list[Check]) -> Any:
    if read.node_meta:
        checks = [check for check in checks if read.takes(registry.node(check.node))]
    return [check_json(check) for check in checks]


def _health_node(registry: Registry, read: Read) -> Any:
    return [check_json(check) for check in registry.checks(read.name)]


def _health_checks(registry: Registry, read: Read) -> Any:
    return _checks_json(registry, read, registry.checks_of_service(read.name))


def _health_state(registry: Registry, read: Read) -> Any:
    found = [check for check in registry.checks() if read.name in ("any", check.status)]
    return _checks_json(registry, read, found)


def _nothing(_registry: Registry, _read: Read) -> Any:
    """Services of Consul's mesh, of which there are none."""
    return []


def _filtered(read: Read, document: Any) -> Any:
    """Leave out what a filter does not want: of a list its items, of a node its services."""
    wanted = read.wanted
    if wanted is None or document is None or read.view.answer is _services:
        return document
    if isinstance(document, list):
        return [item for item in document if wanted(item)]
    services = document["Services"]
    if isinstance(services, dict):
        kept: Any = {name: item for name, item in services.items() if wanted(item)}
    else:
        kept = [item for item in services or () if wanted(item)] or None
    return document | {"Services": kept}


def _of(*tables: str) -> Callable[[Registry, Read], int]:
    return lambda registry, _read: registry.index(*tables)


def _index_by_meta(*tables: str) -> Callable[[Registry, Read], int]:
    """Return the index of the last table, and of all of them when nodes are selected."""

    def index(registry: Registry, read: Read) -> int:
        return registry.index(*(tables if read.node_meta else tables[-1:]))

    return index


def _service_index(registry: Registry, read: Read) -> int:
    return registry.service_index(read.name)


def _health_index(registry: Registry, read: Read) -> int:
    return registry.service_index(read.name, checks=True)


def _absent_index(registry: Registry, _read: Read) -> int:
    """The index of a read of a service that there is not."""
    return registry.index(EXTINCTION_INDEX) or registry.index(NODE_INDEX, SERVICE_INDEX)


def _node_index(registry: Registry, read: Read) -> int:
    if registry.node(read.name) is None:
        return 0
    return registry.index(NODE_INDEX, SERVICE_INDEX)


def _checks_index(registry: Registry, read: Read) -> int:
    if not read.node_meta:
        return registry.index(CHECK_INDEX)
    return registry.index(f"service.{read.name}") or registry.index(
        NODE_INDEX, SERVICE_INDEX, CHECK_INDEX
    )


def _on(name: str) -> Callable[[Read], bytes]:
    key = fold(name)
    return lambda read: b"" if read.node_meta else key


def _on_service(read: Read) -> bytes:
    return fold(f"service.{read.name}")


def _on_any(_read: Read) -> bytes:
    return b""


_NO_NODE, _NO_SERVICE = "Missing node name", "Missing service name"

VIEWS: Final[dict[bytes, View]] = {
    b"/v1/catalog/nodes": View(_nodes, _of(NODE_INDEX), _on(NODE_INDEX)),
    b"/v1/catalog/services": View(
        _services, _index_by_meta(NODE_INDEX, SERVICE_INDEX), _on(SERVICE_INDEX)
    ),
    b"/v1/catalog/service/": View(_service, _service_index, _on_service, _NO_SERVICE),
    b"/v1/catalog/connect/": View(_nothing, _absent_index, _on_any, _NO_SERVICE),
    b"/v1/catalog/node/": View(_node, _node_index, _on_any, _NO_NODE),
    b"/v1/catalog/node-services/": View(_node_services, _node_index, _on_any, _NO_NODE),
    b"/v1/health/node/": View(_health_node, _of(CHECK_INDEX), _on(CHECK_INDEX), _NO_NODE),
    b"/v1/health/checks/": View(_health_checks, _checks_index, _on(CHECK_INDEX), _NO_SERVICE),
    b"/v1/health/state/": View(
        _health_state, _of(CHECK_INDEX), _on(CHECK_INDEX), "Missing check state"
    ),
    b"/v1/health/service/": View(_health_service, _health_index, _on_service, _NO_SERVICE),
    b"/v1/health/connect/": View(_nothing, _absent_index, _on_any, _NO_SERVICE),
}
"""By path; one with a slash at its end is followed by a name."""

PATHS: Final = tuple(path.decode() for path in VIEWS)
DATACENTERS: Final = b"/v1/catalog/datacenters"


# -- parsing --------------------------------------------------------------------------------------


def parse_decoded(
    _method: str, path: bytes, raw_query: bytes, _body: bytes, settings: HttpSettings
) -> Read | Response:
    """Parse a request whose path ``paths.resolve`` has decoded and the router has matched."""
    options = parse_options(raw_query)
    refusal = options.error or options.enterprise
    if refusal is not None:
        return refusal
    if path == DATACENTERS:
        return json_answer([settings.datacenter], pretty=options.pretty)
    view = VIEWS.get(path)
    name = b""
    if view is None or view.missing:
        head = next(
            prefix for prefix, kind in VIEWS.items() if kind.missing and path.startswith(prefix)
        )
        view, name = VIEWS[head], path[len(head) :]
        if not name:
            return text(400, view.missing)
    refusal = options.foreign_datacenter(settings.datacenter)
    if refusal is not None:
        return refusal
    expression = options.first("filter")
    try:
        wanted = parse_filter(expression) if expression else None
    except BadRequest as error:
        return text(400, str(error))
    passing = options.first("passing") if view.answer is _health_service else None
    if passing and passing not in TRUE | FALSE:
        return text(400, "Invalid value for ?passing")
    return Read(
        view,
        name.decode("utf-8", "surrogateescape"),
        options,
        settings.datacenter,
        passing is not None and passing not in FALSE,
        tuple([tag.lower() for tag in options.values.get("tag", ()) if tag]),
        tuple([_meta_pair(item) for item in options.values.get("node-meta", ()) if item]),
        wanted,
    )


def _meta_pair(item: str) -> tuple[str, str]:
    key, _, value = item.partition(":")
    return key, value


# -- running --------------------------------------------------------------------------------------


def start(read: Read, backend: Backend, respond: Respond) -> Parked | None:
    """Run a read; ``respond`` is called exactly once.

    Returns:
        The handle of a blocking query, as ``kv.start``.
    """
    options, replica = read.options, backend.replica
    if not options.index:
        replica.read(options.consistency, partial(_read_done, read, backend, respond))
        return None
    key = read.view.watch(read)
    at_once = read._replace(options=options._replace(index=0))
    query = Query(
        key,
        not key,
        options.index,
        options.wait_s,
        options.consistency,
        lambda: read.view.index_of(replica.store.registry(), read) > options.index,
        partial(_read_done, at_once, backend, respond),
        watches=backend.replica.registry_watches,
        patient=True,
    )
    return backend.blocking.start(query)


def _read_done(
    read: Read,
    backend: Backend,
    respond: Respond,
    view: ReadView | None,
    error: KvnodeError | None,
) -> None:
    """Answer a read: the store may be read right now, and only now."""
    options = read.options
    try:
        view = given(view, error)
        if options.is_too_stale(view):
            start(read._replace(options=options.fresh()), backend, respond)
            return
        registry = backend.replica.store.registry()
        body = dump_json(_filtered(read, read.view.answer(registry, read)))
        index = read.view.index_of(registry, read)
        head = read_head(index, view, options) + JSON_TYPE
        response = Response(200, head, prettify(body) if options.pretty else body)
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=True, write=False)
    respond(response)

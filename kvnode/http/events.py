"""``/v1/event``: fire an event, list the newest ones, wait for more (spec §12).

In Consul an event spreads by gossip, best effort. Here it is an entry of the log: every node keeps the
newest 256 in one order, so that nobody who watches misses one, and they survive a restart. Its ``LTime`` is
its index.

``X-Consul-Index`` of a list is no index at all, but made from the last event's id as Consul makes it: its
watchers look for the event that they saw last by this very number.
"""

from __future__ import annotations

import uuid
from base64 import b64encode
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import re2

from kvnode.http import errors
from kvnode.http.blocking import Query
from kvnode.http.completion import given
from kvnode.http.kv import read_head
from kvnode.http.messages import JSON_TYPE, Response, dump_json, json_answer, prettify, text
from kvnode.http.query import Options, parse_options
from kvnode.store.control_commands import EventFire

if TYPE_CHECKING:
    from kvnode.errors import KvnodeError
    from kvnode.http.blocking import Parked
    from kvnode.http.context import HttpSettings
    from kvnode.http.kv import Backend
    from kvnode.http.messages import Respond
    from kvnode.replica.facade import ReadView
    from kvnode.store.commands import Result
    from kvnode.store.control import Event
    from kvnode.store.store import Store

FIRE: Final = b"/v1/event/fire/"
LIST: Final = b"/v1/event/list"
_FILTERS: Final = ("node", "service", "tag")
_REGEX = re2.Options()
_REGEX.log_errors = False
_REGEX.max_mem = 1 << 20


class Fire(NamedTuple):
    """``PUT /v1/event/fire/<name>``."""

    command: EventFire
    pretty: bool


class List(NamedTuple):
    """``GET /v1/event/list``."""

    name: str
    """Empty: all."""
    node: str
    """This node's name: an event's own filters are held against it."""
    options: Options


Operation = Fire | List


def parse_decoded(
    method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
) -> Operation | Response:
    """Parse a request whose path ``paths.resolve`` has decoded and the router has matched."""
    options = parse_options(raw_query)
    if options.enterprise is not None:
        return options.enterprise
    if path == LIST:
        if options.error is not None:
            return options.error
        # Consul ignores filters here as well: they are judged by whom an event is for.
        return List(options.first("name") or "", settings.node_name, options)
    name = path[len(FIRE) :].decode("utf-8", "replace")
    if not name:
        return text(400, "Missing name")
    foreign = options.foreign_datacenter(settings.datacenter)
    if foreign is not None:
        return foreign
    node, service, tag = [options.first(name) or "" for name in _FILTERS]
    bad = _bad_filter(node, service, tag)
    if bad is not None:
        return bad
    size = len(body) + sum(
        len(part.encode("utf-8", "replace")) for part in (name, node, service, tag)
    )
    if size > settings.event_bytes_max:
        return text(
            500,
            f"user event exceeds configured limit of {settings.event_bytes_max} bytes before encoding "
            "(event_bytes_max)",
        )
    command = EventFire(str(uuid.uuid4()), name, body, node, service, tag)
    return Fire(command, options.pretty)


def _bad_filter(node: str, service: str, tag: str) -> Response | None:
    """Refuse what is no regular expression; the grammar is RE2's, as Go's is."""
    if tag and not service:
        return text(500, "Cannot provide tag filter without service filter")
    for what, pattern in zip(_FILTERS, (node, service, tag), strict=True):
        try:
            re2.compile(pattern, _REGEX)
        except (re2.error, UnicodeEncodeError) as error:
            reason = error.args[0] if error.args else error
            shown = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            shown = shown.partition(":")[0]
            return text(500, f"Invalid {what} filter: error parsing regexp: {shown}: `{pattern}`")
    return None


def start(operation: Operation, backend: Backend, respond: Respond) -> Parked | None:
    """Run an operation; ``respond`` is called exactly once.

    Returns:
        The handle of a blocking query, as ``kv.start``.
    """
    if isinstance(operation, Fire):
        backend.replica.write(operation.command, partial(_fired, operation, respond))
        return None
    if operation.options.index:
        return backend.blocking.start(_query(operation, backend, respond))
    consistency = operation.options.consistency
    backend.replica.read(consistency, partial(_listed, operation, backend, respond))
    return None


def _fired(
    operation: Fire, respond: Respond, result: Result | None, error: KvnodeError | None
) -> None:
    if result is None:
        assert error is not None
        respond(errors.refuse(error, v1=True, write=True))
        return
    command = operation.command
    respond(json_answer(_document(command[:6], 0), pretty=operation.pretty))


def _query(operation: List, backend: Backend, respond: Respond) -> Query:
    """Describe what a blocking list waits for: that its last event is another one."""
    options = operation.options
    replica = backend.replica
    at_once = operation._replace(options=options._replace(index=0))
    return Query(
        b"",
        True,
        0,  # indexes of events do not rise, so any change is worth a look
        options.wait_s,
        options.consistency,
        lambda: _index(_chosen(operation, replica.store)) != options.index,
        partial(_listed, at_once, backend, respond),
        watches=replica.event_watches,
        patient=True,
    )


def _listed(
    operation: List,
    backend: Backend,
    respond: Respond,
    view: ReadView | None,
    error: KvnodeError | None,
) -> None:
    options = operation.options
    try:
        view = given(view, error)
        if options.is_too_stale(view):
            start(operation._replace(options=options.fresh()), backend, respond)
            return
        events = _chosen(operation, backend.replica.store)
        body = dump_json([_document(event[:6], event.fired_at) for event in events])
        head = read_head(_index(events), view, options) + JSON_TYPE
        response = Response(200, head, prettify(body) if options.pretty else body)
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=True, write=False)
    respond(response)


def _document(parts: tuple[str, str, bytes, str, str, str], fired_at: int) -> dict[str, Any]:
    event_id, name, payload, node, service, tag = parts
    return {
        "ID": event_id,
        "Name": name,
        "Payload": b64encode(payload).decode() if payload else None,
        "NodeFilter": node,
        "ServiceFilter": service,
        "TagFilter": tag,
        "Version": 1,
        "LTime": fired_at,
    }


def _chosen(operation: List, store: Store) -> list[Event]:
    """Keep what is meant for this node, and has the name that is asked for."""
    events = store.events()
    services: list[tuple[str, tuple[str, ...]]] = []
    if any(event.service_filter for event in events):
        services = [(one.name, one.tags) for one in store.registry().services(operation.node)]
    return [
        event
        for event in events
        if (not operation.name or event.name == operation.name)
        and _concerns(event, operation.node, services)
    ]


def _concerns(event: Event, node: str, services: list[tuple[str, tuple[str, ...]]]) -> bool:
    """Whether a node is meant: by its name, and by a service on it that has a tag that fits."""
    if event.node_filter and not _found(event.node_filter, node):
        return False
    if not event.service_filter:
        return True
    return any(
        _found(event.service_filter, name)
        and (not event.tag_filter or any(_found(event.tag_filter, tag) for tag in tags))
        for name, tags in services
    )


def _found(pattern: str, value: str) -> bool:
    # RE2 takes time in proportion to the text, whatever the pattern (RC-67).
    return re2.compile(pattern, _REGEX).search(value) is not None


def _index(events: list[Event]) -> int:
    """Return Consul's number for the last event; 1 when there is none."""
    if not events:
        return 1
    digits = uuid.UUID(events[-1].event_id).hex
    return (int(digits[:16], 16) ^ int(digits[16:], 16)) or 1

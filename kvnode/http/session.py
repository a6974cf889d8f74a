"""The session routes, ``/v1/session/…`` (spec §5), as plain functions.

Built as ``kv``: ``parse_decoded`` turns a request into an operation or into the answer that refuses it,
``start`` runs it and calls back. The id of a session is made here, before anything is in the log, so that
all nodes agree on it (RC-28).
"""

from __future__ import annotations

import math
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.errors import KvnodeError
from kvnode.http import errors, own_writes
from kvnode.http.blocking import Query
from kvnode.http.completion import given
from kvnode.http.decode import Members, load
from kvnode.http.entries import session_json
from kvnode.http.golang import INT64_MAX, format_duration, parse_duration_ns
from kvnode.http.kv import read_head
from kvnode.http.lists import WantedSessions
from kvnode.http.messages import JSON_TYPE, VARY, Response, json_answer, prettify, text
from kvnode.http.query import Options, parse_options
from kvnode.http.session_ids import canonical
from kvnode.store.commands import SessionCreate, SessionDestroy, is_session_id
from kvnode.store.own_commands import Refused, Why
from kvnode.store.records import DELETE, RELEASE

if TYPE_CHECKING:
    from kvnode.http.blocking import Parked
    from kvnode.http.context import HttpSettings
    from kvnode.http.kv import Backend
    from kvnode.http.lists import Listed
    from kvnode.http.messages import Respond
    from kvnode.replica.facade import ReadView
    from kvnode.store.commands import Result
    from kvnode.store.records import Session

PREFIX: Final = b"/v1/session/"
NODE_CHECK: Final = "serfHealth"
"""The one check that every node has; see docs/http.md for what it means here."""
TTL_MAX_NS: Final = 86_400 * 10**9
LOCK_DELAY_NS: Final = 15 * 10**9
"""What a session has that asks for none."""
_INDEX_HEAD: Final = b"X-Kvnode-Index: %d\r\n"
_SMALL_DELAY: Final = 1000
"""Smaller lock-delays are seconds, whatever unit they came in (spec §5.1)."""
_BEHAVIORS: Final = {"": RELEASE, "release": RELEASE, "delete": DELETE}


class Create(NamedTuple):
    """``PUT /v1/session/create``."""

    command: SessionCreate
    pretty: bool


class Destroy(NamedTuple):
    """``PUT /v1/session/destroy/<id>``."""

    command: SessionDestroy


class Renew(NamedTuple):
    """``PUT /v1/session/renew/<id>``."""

    session_id: str
    shown: str
    """The id as the client wrote it."""
    pretty: bool


class Read(NamedTuple):
    """``GET /v1/session/info/<id>``, ``node/<name>`` and ``list``."""

    session_id: str
    """Empty: a list."""
    node: str
    """Empty: of all nodes."""
    options: Options


Operation = Create | Destroy | Renew | Read


def parse_decoded(
    method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
) -> Operation | Response:
    """Parse a request whose path ``paths.resolve`` has decoded and the router has matched."""
    options = parse_options(raw_query)
    # A write has no use for what can be wrong with a read: wait, index, consistency.
    refusal = options.error if method == "GET" else None
    refusal = refusal or options.enterprise
    if refusal is not None:
        return refusal
    action, _, rest = path[len(PREFIX) :].partition(b"/")
    shown = rest.decode("utf-8", "replace")
    parsed: Operation | Response
    match action:
        case b"create":
            parsed = _parse_create(body, options, settings)
        case b"destroy" | b"renew" | b"info":
            parsed = _parse_with_id(action, shown, options)
        case b"node":
            parsed = Read("", shown, options) if shown else text(400, "Missing node name")
        case _:
            assert action == b"list", "the router knows no other"
            parsed = Read("", "", options)
    if isinstance(parsed, Response):
        return parsed
    return options.foreign_datacenter(settings.datacenter) or parsed


def _parse_with_id(action: bytes, shown: str, options: Options) -> Operation | Response:
    if not shown:
        return text(400, "Missing session")
    try:
        session_id = canonical(shown)
    except ValueError as error:
        return text(500, str(error))
    if action == b"destroy":
        return Destroy(SessionDestroy(session_id))
    if action == b"renew":
        return Renew(session_id, shown, options.pretty)
    return Read(session_id, "", options)


# -- create ---------------------------------------------------------------------------------------


def _parse_create(body: bytes, options: Options, settings: HttpSettings) -> Operation | Response:
    try:
        members = Members(load(body) if body else None, "", "structs.Session")
        wanted = _Wanted.read(members, settings.node_name)
    except ValueError as error:
        return text(400, f"Request decode failed: {error}")
    if not wanted.node:
        return text(500, "Must provide Node")
    behavior = _BEHAVIORS.get(wanted.behavior)
    if behavior is None:
        return text(500, f"Invalid Behavior setting '{wanted.behavior}'")
    try:
        ttl_ns = parse_duration_ns(wanted.ttl) if wanted.ttl else 0
    except ValueError as error:
        return text(500, f"Session TTL '{wanted.ttl}' invalid: {error}")
    if ttl_ns and not settings.session_ttl_min_ns <= ttl_ns <= TTL_MAX_NS:
        bounds = f"{format_duration(settings.session_ttl_min_ns)}={format_duration(TTL_MAX_NS)}"
        return text(500, f"Invalid Session TTL '{ttl_ns}', must be between [{bounds}]")
    command = SessionCreate(
        str(uuid.uuid4()),
        wanted.name,
        wanted.node,
        wanted.lock_delay_ns,
        behavior,
        wanted.ttl,
        ttl_ns,
        wanted.node_checks,
        wanted.service_checks,
        checked=True,
    )
    return Create(command, options.pretty)


class _Wanted(NamedTuple):
    """The body of a create."""

    name: str
    node: str
    lock_delay_ns: int
    behavior: str
    ttl: str
    node_checks: tuple[str, ...]
    service_checks: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, members: Members, node: str) -> _Wanted:
        """Take the members apart.

        Raises:
            ValueError: One is of the wrong type.
        """
        checks: tuple[str, ...] = (NODE_CHECK,)
        for name in ("NodeChecks", "Checks"):  # the second is the old name
            if name in members:
                checks = members.texts(name, "types.CheckID")
                break
        services = members.get("ServiceChecks") or []
        if not isinstance(services, list):
            services = [services]  # refused below, with its type
        pairs = [Members(item, ".ServiceChecks", "structs.ServiceCheck") for item in services]
        return cls(
            members.text("Name"),
            members.text("Node", node),
            _lock_delay_ns(members.get("LockDelay")),
            members.text("Behavior"),
            members.text("TTL"),
            checks,
            tuple([(pair.text("ID"), pair.text("Namespace")) for pair in pairs]),
        )


def _lock_delay_ns(value: Any) -> int:
    """Return a lock-delay in nanoseconds; below 1000 they are seconds (spec §5.1).

    Raises:
        ValueError: It is no duration and no number.
    """
    if value is None:
        return LOCK_DELAY_NS
    if isinstance(value, str):
        delay = parse_duration_ns(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        delay = int(value)
    else:
        raise ValueError("LockDelay must be a duration or a number of nanoseconds")
    if delay < _SMALL_DELAY:
        delay *= 10**9
    return max(-INT64_MAX, min(delay, INT64_MAX))


# -- running --------------------------------------------------------------------------------------


def start(operation: Operation, backend: Backend, respond: Respond) -> Parked | None:
    """Run an operation; ``respond`` is called exactly once: at once when there is nothing to run.

    Returns:
        The handle of a blocking query, as ``kv.start``.
    """
    replica = backend.replica
    match operation:
        case Create(command, _):
            replica.write(command, partial(_created, operation, respond))
        case Destroy(command):
            replica.write(command, partial(_destroyed, command, respond))
        case Renew(session_id, _, _):
            replica.renew_session(session_id, partial(_renewed, operation, respond))
        case Read():
            if operation.options.index:
                return backend.blocking.start(_query(operation, backend, respond))
            replica.read(
                operation.options.consistency, partial(_read_done, operation, backend, respond)
            )
    return None


def _created(
    operation: Create, respond: Respond, result: Result | None, error: KvnodeError | None
) -> None:
    if result is None:
        assert error is not None
        respond(errors.refuse(error, v1=True, write=True))
        return
    value = result.value
    if isinstance(value, Refused) and value.why == Why.REGISTRY:
        respond(text(500, value.key.decode()))
        return
    if isinstance(value, Refused):
        respond(own_writes.refuse(value, operation.command, v1=True))
        return
    # A request that was sent before gets the id that was made up then.
    session_id = value if isinstance(value, str) else operation.command.session_id
    head = _INDEX_HEAD % result.index
    respond(json_answer({"ID": session_id}, pretty=operation.pretty, head=head))


def _destroyed(
    command: SessionDestroy, respond: Respond, result: Result | None, error: KvnodeError | None
) -> None:
    if result is None:
        assert error is not None
        respond(errors.refuse(error, v1=True, write=True))
    elif isinstance(result.value, Refused):
        respond(own_writes.refuse(result.value, command, v1=True))
    else:
        respond(json_answer(True, head=_INDEX_HEAD % result.index))


def _renewed(
    operation: Renew, respond: Respond, session: Session | None, error: KvnodeError | None
) -> None:
    if error is not None:
        respond(errors.refuse(error, v1=True, write=False))
    elif session is None:
        respond(text(404, f"Session id '{operation.shown}' not found"))
    else:
        body = b"[%b]" % session_json(session)
        respond(Response(200, VARY + JSON_TYPE, prettify(body) if operation.pretty else body))


def _query(operation: Read, backend: Backend, respond: Respond) -> Query:
    """Describe what a blocking read waits for: the whole table, or one session (spec §2.2)."""
    options, store = operation.options, backend.replica.store
    at_once = operation._replace(options=options._replace(index=0))
    return Query(
        operation.session_id.encode(),
        not operation.session_id,
        options.index,
        options.wait_s,
        options.consistency,
        lambda: store.session_index() > options.index,
        partial(_read_done, at_once, backend, respond),
        watches=backend.replica.session_watches,
    )


def _read_done(
    operation: Read,
    backend: Backend,
    respond: Respond,
    view: ReadView | None,
    error: KvnodeError | None,
) -> None:
    """Answer a read: the store may be read right now, and only now."""
    options = operation.options
    try:
        view = given(view, error)
        if options.is_too_stale(view):
            start(operation._replace(options=options.fresh()), backend, respond)
            return
        store = backend.replica.store
        if not operation.session_id:
            wanted = WantedSessions(operation.node, options.pretty)
            done = partial(_listed, operation, view, respond)
            backend.lists.build(store, wanted, done)
            return
        found = store.session(operation.session_id) if is_session_id(operation.session_id) else None
        body = b"[%b]" % session_json(found) if found is not None else b"[]"
        index = store.session_index()
        response = _answer(prettify(body) if options.pretty else body, index, view, options)
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=True, write=False)
    respond(response)


def _listed(
    operation: Read,
    view: ReadView,
    respond: Respond,
    listed: Listed | None,
    error: Exception | None,
) -> None:
    if listed is None:
        assert error is not None
        respond(errors.refuse(error, v1=True, write=False))
    else:
        respond(_answer(listed.body, listed.index, view, operation.options))


def _answer(body: bytes, index: int, view: ReadView, options: Options) -> Response:
    return Response(200, read_head(index, view, options) + JSON_TYPE, body)

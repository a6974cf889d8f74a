"""Registrations: ``/v1/agent/service/…``, ``/v1/agent/check/…``, ``/v1/agent/maintenance`` and the writes of
``/v1/catalog`` (spec §10, §11), as plain functions.

What Consul's agents keep for themselves and hand to the catalog now and then is one thing here: the
replicated registry, in which every node owns what was registered through it. So an answer means that it is
done, on all nodes and for good, and nothing has to be synchronised later. An agent's own lists are read
from this node's store, without a leader, once that has applied what this node has written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.errors import BadRequest, KvnodeError
from kvnode.http import errors
from kvnode.http import registration_bodies as bodies
from kvnode.http.agent_lists import FALSE, TRUE, Read, parse_read
from kvnode.http.golang import quote
from kvnode.http.messages import VARY, Response, json_answer, text
from kvnode.http.query import Options, parse_options
from kvnode.http.registration_bodies import Refusal
from kvnode.replica.facade import Consistency
from kvnode.store.commands import Command, check_command
from kvnode.store.own_commands import Refused
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_reads import Registry
from kvnode.store.registry_records import CRITICAL, PASSING, WARNING, Check

if TYPE_CHECKING:
    from kvnode.http.blocking import Parked
    from kvnode.http.context import HttpSettings
    from kvnode.http.kv import Backend
    from kvnode.http.messages import Respond
    from kvnode.replica.facade import ReadView
    from kvnode.store.commands import Result

_DONE: Final = Response(200, VARY)
_REASON: Final = (
    "Maintenance mode is enabled for this {}, but no reason was provided. "
    "This is a default message."
)
_REPORTS: Final = {b"pass": PASSING, b"warn": WARNING, b"fail": CRITICAL}


class Write(NamedTuple):
    """A command to propose."""

    command: Command
    answer: Callable[[Result], Response]


class Checked(NamedTuple):
    """A command to propose unless the registry has the answer already."""

    answer: Callable[[Registry], Response | None]
    write: Write


Operation = Write | Read | Checked

PATHS: Final = (
    ("/v1/catalog/register", "PUT"),
    ("/v1/catalog/deregister", "PUT"),
    ("/v1/agent/services", "GET"),
    ("/v1/agent/service/register", "PUT"),
    ("/v1/agent/service/deregister/", "PUT"),
    ("/v1/agent/service/maintenance/", "PUT"),
    ("/v1/agent/service/", "GET"),
    ("/v1/agent/checks", "GET"),
    ("/v1/agent/check/register", "PUT"),
    ("/v1/agent/check/deregister/", "PUT"),
    ("/v1/agent/check/pass/", "PUT"),
    ("/v1/agent/check/warn/", "PUT"),
    ("/v1/agent/check/fail/", "PUT"),
    ("/v1/agent/check/update/", "PUT"),
    ("/v1/agent/maintenance", "PUT"),
    ("/v1/agent/health/service/id/", "GET"),
    ("/v1/agent/health/service/name/", "GET"),
)
"""Paths and methods; one with a slash at its end is followed by an id."""


class Registrations:
    """These routes on one node."""

    def __init__(self) -> None:
        """Nothing was written through this node."""
        self._written = 0
        """Index of the newest write through this node."""

    def parse_decoded(
        self, method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
    ) -> Operation | Response:
        """Parse a request whose path ``paths.resolve`` has decoded and the router has matched."""
        options = parse_options(raw_query)
        refusal = options.enterprise or options.foreign_datacenter(settings.datacenter)
        if refusal is not None:
            return refusal
        head, _, rest = path[len(b"/v1/") :].partition(b"/")
        try:
            if head == b"catalog":
                return _parse_catalog(rest, body, settings)
            if method == "GET":
                return parse_read(rest, options, settings)
            return _parse_agent(rest, body, options, settings)
        except Refusal as refused:
            return text(refused.status, str(refused))

    def start(self, operation: Operation, backend: Backend, respond: Respond) -> Parked | None:
        """Run an operation; ``respond`` is called exactly once."""
        replica = backend.replica
        if isinstance(operation, Write):
            replica.write(operation.command, partial(self._written_through, operation, respond))
        elif replica.store.applied_index >= self._written:
            self._look(operation, backend, respond)
        else:
            done = partial(self._read_done, operation, backend, respond)
            replica.read(Consistency.DEFAULT, done)
        return None

    def _look(self, operation: Read | Checked, backend: Backend, respond: Respond) -> None:
        """This node's store has everything that was written through it."""
        registry = backend.replica.store.registry()
        if isinstance(operation, Read):
            respond(operation.document(registry))
            return
        answer = operation.answer(registry)
        if answer is not None:
            respond(answer)
        else:
            self.start(operation.write, backend, respond)

    def _written_through(
        self,
        operation: Write,
        respond: Respond,
        result: Result | None,
        error: KvnodeError | None,
    ) -> None:
        if result is None:
            assert error is not None
            respond(errors.refuse(error, v1=True, write=True))
            return
        self._written = max(self._written, result.index)
        respond(operation.answer(result))

    def _read_done(
        self,
        operation: Read | Checked,
        backend: Backend,
        respond: Respond,
        _view: ReadView | None,
        error: KvnodeError | None,
    ) -> None:
        if error is not None:
            respond(errors.refuse(error, v1=True, write=False))
            return
        try:
            self._look(operation, backend, respond)
        except KvnodeError as problem:
            respond(errors.refuse(problem, v1=True, write=False))


# -- answers of writes ----------------------------------------------------------------------------


def _refusal(result: Result, status: int = 500) -> Response | None:
    if isinstance(result.value, Refused):
        return text(status, result.value.key.decode())
    return None


def _empty(result: Result) -> Response:
    return _refusal(result) or _DONE


def _true(result: Result) -> Response:
    return _refusal(result) or json_answer(True)


def _known_check(check_id: str, result: Result) -> Response:
    if result.value is True:
        return _DONE
    return _no_ttl(check_id)


def _no_ttl(check_id: str) -> Response:
    return text(500, f"CheckID {quote(check_id)} does not have associated TTL")


# -- parsing --------------------------------------------------------------------------------------


def _parse_catalog(action: bytes, body: bytes, settings: HttpSettings) -> Operation:
    if action == b"register":
        return Write(_named(bodies.catalog_registration(body, settings.datacenter)), _true)
    return Write(_named(bodies.catalog_deregistration(body, settings.datacenter)), _true)


def _parse_agent(
    rest: bytes, body: bytes, options: Options, settings: HttpSettings
) -> Operation | Response:
    node = settings.node_name
    what, _, rest = rest.partition(b"/")
    action, _, raw_id = rest.partition(b"/")
    if what == b"maintenance":
        return _maintenance(node, "", options)
    shown = raw_id.decode("utf-8", "surrogateescape")
    match what, action:
        case b"service", b"register":
            replace = _flag(options.first("replace-existing-checks"))
            return Write(_named(bodies.agent_service(body, node, replace_checks=replace)), _empty)
        case b"service", b"deregister":
            return _deregister("ServiceID", Deregister(node, service_id=shown), shown)
        case b"service", _:
            assert action == b"maintenance", "the router knows no other"
            if not shown:
                return text(400, "Missing service ID")
            return _maintenance(node, shown, options)
        case _, b"register":
            return Write(_named(bodies.agent_check(body, node)), _empty)
        case _, b"deregister":
            return _deregister("CheckID", Deregister(node, check_id=shown), shown)
        case _, b"update":
            status, output = bodies.status_update(body)
        case _:
            status = _REPORTS[action]
            output = bodies.shortened(options.first("note") or "")
    if not shown:
        return _no_ttl("")
    return Write(
        _named(UpdateCheck(node, shown, "ttl", status, output)), partial(_known_check, shown)
    )


def _deregister(what: str, command: Deregister, shown: str) -> Operation | Response:
    if not shown:
        return text(500, f"{what} missing")
    return _DONE if bodies.is_members_own(command) else Write(_named(command), _empty)


def _maintenance(node: str, service_id: str, options: Options) -> Operation | Response:
    """Add or remove the critical check that takes a node or a service out of use."""
    enable = options.first("enable")
    if not enable:
        return text(400, "Missing value for enable")
    if enable not in TRUE | FALSE:
        return text(400, f"Invalid value for enable: {quote(enable)}")
    check_id = f"_service_maintenance:{service_id}" if service_id else "_node_maintenance"
    what = "service" if service_id else "node"
    answer = partial(_maintained, node, service_id, check_id, enable in TRUE)
    if enable in FALSE:
        return Checked(answer, Write(_named(Deregister(node, check_id=check_id)), _empty))
    check = Check(
        node,
        check_id,
        f"{what.capitalize()} Maintenance Mode",
        CRITICAL,
        options.first("reason") or _REASON.format(what),
        service_id=service_id,
        type="maintenance",
        is_local=True,
    )
    return Checked(answer, Write(_named(Register(node, checks=(check,))), _empty))


def _maintained(
    node: str, service_id: str, check_id: str, enable: bool, registry: Registry
) -> Response | None:
    """Answer at once when there is no such service, or nothing to change."""
    if service_id and registry.service(node, service_id) is None:
        return text(404, f"No service registered with ID {quote(service_id)}")
    return _DONE if enable == (registry.check(node, check_id) is not None) else None


def _flag(value: str | None) -> bool:
    return value is not None and (value in TRUE or value == "")


def _named(command: Any) -> Any:
    """Refuse a name that the registry cannot hold.

    Raises:
        Refusal: There is a NUL, or half of a surrogate pair, in it.
    """
    try:
        check_command(command)
    except BadRequest as error:
        raise Refusal(400, "Invalid name or number in the registration") from error
    return command

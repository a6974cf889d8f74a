"""Commands of the registry (spec §10, §11); see ``commands`` for the rules that bind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kvnode.store.fields import INT64_MAX, is_bool, is_text
from kvnode.store.registry_records import Check, CheckDefinition, Node, Service, is_name

CHECKS_AT_ONCE_MAX: Final = 1024
"""Checks in one registration."""


class Register(NamedTuple):
    """Register a node, a service and checks on it, all or nothing.

    Result: True, or ``Refused`` with a text that says why. What is registered already and is
    the same keeps its indexes and wakes nobody. The indexes inside the records are ignored.
    """

    node: str
    """Name of the node that service and checks belong to."""
    record: Node | None = None
    """The node itself. None: it must exist, and stays as it is."""
    service: Service | None = None
    checks: tuple[Check, ...] = ()
    skip_node_update: bool = False
    """A node that exists stays as it is, whatever ``record`` says."""
    keep_status: bool = False
    """A check that exists keeps its status and output, as an agent's do when they are registered again."""
    replace_checks: bool = False
    """Further local checks of the service are removed."""
    forced: bool = False
    """Set by the leader for members: the node's name may pass to another node id."""

    @classmethod
    def of(
        cls, node: str, record: Any, service: Any, checks: Iterable[Any], *rest: Any
    ) -> Register:
        """Build one from plain tuples, as the log holds them."""
        return cls(
            node,
            None if record is None else Node(*record),
            None if service is None else Service(*service),
            tuple([_check_of(*check) for check in checks]),
            *rest,
        )


def _check_of(*fields: Any) -> Check:
    check = Check(*fields)
    return check._replace(definition=CheckDefinition(*check.definition))


class Deregister(NamedTuple):
    """Remove a service with its checks, or a check, or a node with everything on it.

    Result: True, also when there is none. Sessions that are bound to what goes end in this entry.
    """

    node: str
    service_id: str = ""
    check_id: str = ""
    """Only if ``service_id`` is empty."""
    if_critical: str = ""
    """Only if this check of the node is critical. Set by the leader, which saw it be so for long."""
    keeps_unbound: bool = False
    """Of a node: sessions that named no check survive. Set by the leader when a member has left: such
    sessions do not depend on a node (spec §11)."""


class UpdateCheck(NamedTuple):
    """Say what a local check has found. Result: True, or False when there is no such check."""

    node: str
    check_id: str
    type: str
    """It must be of this type: ``ttl``, ``http``, ``tcp``."""
    status: str
    output: str


RegistryCommand = Register | Deregister | UpdateCheck


def is_sound_registration(command: Any) -> bool:
    """Whether every node could apply this, see ``commands.check_command``."""
    match command:
        case Register(node, record, service, checks, skip, keep, replace, forced):
            flags = (skip, keep, replace, forced)
            return (
                _is_full(node)
                and all(map(is_bool, flags))
                and (record is None or _is_node(record))
                and (service is None or _is_service(service))
                and _is_tuple(checks)
                and len(checks) <= CHECKS_AT_ONCE_MAX
                and all(map(_is_check, checks))
            )
        case Deregister(node, service_id, check_id, if_critical, keeps_unbound):
            return (
                _is_full(node)
                and all(map(is_name, (service_id, check_id, if_critical)))
                and is_bool(keeps_unbound)
            )
        case UpdateCheck(node, check_id, kind, status, output):
            return _is_full(node) and _is_full(check_id) and _are_texts((kind, status, output))
        case _:
            return False


def _is_full(value: object) -> bool:
    return bool(value) and is_name(value)


def _are_texts(values: object) -> bool:
    return type(values) is tuple and all(map(is_text, values))


def _are_pairs(values: object) -> bool:
    return type(values) is tuple and all(_has_size(pair, 2) and _are_texts(pair) for pair in values)


def _is_tuple(value: object) -> bool:
    return type(value) is tuple


def _has_size(value: object, size: int) -> bool:
    return type(value) is tuple and len(value) == size


def _is_number(value: object) -> bool:
    return type(value) is int and -INT64_MAX <= value <= INT64_MAX


def _is_node(node: Any) -> bool:
    return (
        type(node) is Node
        and _are_texts((node.node_id, node.address))
        and _is_full(node.name)
        and _are_pairs(node.tagged_addresses)
        and _are_pairs(node.meta)
        and _is_number(node.create_index)
        and _is_number(node.modify_index)
    )


def _is_service(service: Any) -> bool:
    return (
        type(service) is Service
        and all(map(_is_full, (service.node, service.service_id, service.name)))
        and _are_texts(service.tags)
        and is_text(service.address)
        and _is_tuple(service.tagged_addresses)
        and all(
            _has_size(item, 3) and _are_texts(item[:2]) and _is_number(item[2])
            for item in service.tagged_addresses
        )
        and _are_pairs(service.meta)
        and _has_size(service.weights, 2)
        and all(map(_is_number, (service.port, *service.weights)))
        and is_bool(service.enable_tag_override)
        and _is_number(service.create_index)
        and _is_number(service.modify_index)
    )


def _is_check(check: Any) -> bool:
    if type(check) is not Check:
        return False
    texts: Any = (check.name, check.status, check.notes, check.output)
    texts += (check.service_name, check.type)
    return (
        _is_full(check.node)
        and _is_full(check.check_id)
        and is_name(check.service_id)
        and _are_texts(texts)
        and _are_texts(check.service_tags)
        and _is_definition(check.definition)
        and is_bool(check.is_local)
        and _is_number(check.create_index)
        and _is_number(check.modify_index)
    )


def _is_definition(definition: Any) -> bool:
    if type(definition) is not CheckDefinition:
        return False
    http, method, header, body, skip, tcp, *numbers = definition
    return (
        _are_texts((http, method, body, tcp))
        and _is_tuple(header)
        and all(_has_size(item, 2) and is_text(item[0]) and _are_texts(item[1]) for item in header)
        and is_bool(skip)
        and all(type(number) is int and 0 <= number <= INT64_MAX for number in numbers)
    )

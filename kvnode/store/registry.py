"""What registrations do to the data (spec §10, §11). Deterministic: RC-28.

The rules are those of Consul's state store, also for indexes: each kind of read has an index of its own
(``touch``), a registration that changes nothing moves none, a change of a node or of its checks moves
those of its services. Sessions end in the very entry in which a check of theirs turns critical or goes, or
their node goes (spec §5, §5.5).

Time is the leader's: what is here never asks what time it is (RC-61).
"""

from __future__ import annotations

from kvnode.store.commands import Result, SessionDestroy
from kvnode.store.locks import destroy_session
from kvnode.store.own_commands import Refused, Why
from kvnode.store.records import (
    BOUND,
    BY_NAME,
    BY_SERVICE,
    CHECKS,
    INDEXES,
    NODES,
    SERVICES,
    decode_grave,
    encode_grave,
    key_range,
)
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_records import (
    CHECK_INDEX,
    CRITICAL,
    EXTINCTION_INDEX,
    MEMBER_CHECK,
    NODE_INDEX,
    SERVICE_INDEX,
    Check,
    Node,
    Record,
    Service,
    check_key,
    decode_check,
    decode_node,
    decode_service,
    encode_record,
    fold,
    node_key,
    service_key,
)
from kvnode.store.tables import Transaction

_NO_NODE = "Missing node registration"


class _Refusal(Exception):
    """The registration is refused with this text, and nothing of it remains."""


def register(tx: Transaction, index: int, command: Register) -> Result:
    """Register a node, a service, checks."""
    part = tx.fork()
    try:
        _register(part, index, command)
    except _Refusal as refusal:
        return Result(Refused(Why.REGISTRY, key=str(refusal).encode()), index)
    tx.merge(part)
    return Result(True, index)


def _register(tx: Transaction, index: int, command: Register) -> None:
    found = find_node(tx, command.node)
    if command.record is not None and not (found is not None and command.skip_node_update):
        _set_node(tx, index, command.record, found, forced=command.forced)
    elif found is None:
        raise _Refusal(_NO_NODE)
    if command.service is not None:
        _set_service(tx, index, command.service)
    for check in command.checks:
        set_check(tx, index, check, keep_status=command.keep_status)
    if command.service is not None and command.replace_checks:
        kept = {fold(check.check_id) for check in command.checks}
        for check in checks_of(tx, command.node, command.service.service_id):
            if check.is_local and fold(check.check_id) not in kept:
                remove_check(tx, index, check)


def deregister(tx: Transaction, index: int, command: Deregister) -> Result:
    """Remove a service, a check or a node."""
    node, service_id, check_id, if_critical, keeps_unbound = command
    if if_critical:
        check = find_check(tx, node, if_critical)
        if check is None or check.status != CRITICAL or check.service_id != service_id:
            return Result(True, index)
    if service_id:
        service = find_service(tx, node, service_id)
        if service is not None:
            remove_service(tx, index, service)
    elif check_id:
        check = find_check(tx, node, check_id)
        if check is not None:
            remove_check(tx, index, check)
    else:
        found = find_node(tx, node)
        if found is not None:
            remove_node(tx, index, found, keeps_unbound=keeps_unbound)
    return Result(True, index)


def update_check(tx: Transaction, index: int, command: UpdateCheck) -> Result:
    """Note what a local check has found."""
    check = find_check(tx, command.node, command.check_id)
    if check is None or not check.is_local or check.type != command.type:
        return Result(False, index)
    set_check(tx, index, check._replace(status=command.status, output=command.output))
    return Result(True, index)


# -- looking ----------------------------------------------------------------------------------------


def find_node(tx: Transaction, name: str) -> Node | None:
    """Return a node, or None."""
    raw = node_key(name)
    record = tx.get(raw)
    return None if record is None else decode_node(raw, record)


def find_service(tx: Transaction, node: str, service_id: str) -> Service | None:
    """Return a service, or None."""
    raw = service_key(node, service_id)
    record = tx.get(raw)
    return None if record is None else decode_service(raw, record)


def find_check(tx: Transaction, node: str, check_id: str) -> Check | None:
    """Return a check, or None."""
    raw = check_key(node, check_id)
    record = tx.get(raw)
    return None if record is None else decode_check(raw, record)


def services_of(tx: Transaction, node: str) -> list[Service]:
    """Return the services of a node in the order of their ids."""
    rows = sorted(tx.scan(*key_range(SERVICES, fold(node) + b"\0")))
    return [decode_service(raw, record) for raw, record in rows]


def checks_of(tx: Transaction, node: str, service_id: str | None) -> list[Check]:
    """Return the checks of a service; an empty id: of the node itself; None: all on the node."""
    prefix = fold(node) + b"\0"
    if service_id is None:
        rows = sorted(tx.scan(*key_range(CHECKS, prefix)))
        return [decode_check(raw, record) for raw, record in rows]
    start = BY_SERVICE + fold(node, service_id) + b"\0"
    raws = [CHECKS + prefix + row[len(start) :] for row in _names(tx, start)]
    found = [(raw, tx.get(raw)) for raw in raws]
    return [decode_check(raw, record) for raw, record in found if record is not None]


def _names(tx: Transaction, start: bytes) -> list[bytes]:
    """Return the raw keys of a derived table under a prefix, in order."""
    return sorted(raw for raw, _ in tx.scan(*key_range(start[:1], start[1:])))


# -- indexes ----------------------------------------------------------------------------------------


def service_index_name(name: str) -> str:
    """Return the name of the index of reads of one service."""
    return f"service.{name}"


def touch(tx: Transaction, index: int, name: str) -> None:
    """Move the index of a kind of read, and tell who waits for it."""
    raw = INDEXES + fold(name)
    old = tx.get(raw)
    if old is None or decode_grave(raw, old) != index:
        tx.put(raw, encode_grave(raw, index), old)
        tx.touched.append((index, raw[1:]))


def _touch_services_of(tx: Transaction, index: int, node: str) -> None:
    for service in services_of(tx, node):
        touch(tx, index, service_index_name(service.name))


def _gone(tx: Transaction, index: int, name: str) -> None:
    """An instance of a service is gone; perhaps it was the last one."""
    if _names(tx, BY_NAME + fold(name) + b"\0"):
        touch(tx, index, service_index_name(name))
        return
    raw = INDEXES + fold(service_index_name(name))
    old = tx.get(raw)
    if old is not None:
        tx.remove(raw, old)
    tx.touched.append((index, raw[1:]))
    touch(tx, index, EXTINCTION_INDEX)


# -- writing ----------------------------------------------------------------------------------------


def _put(tx: Transaction, raw: bytes, record: Record) -> None:
    tx.put(raw, encode_record(raw, record), tx.get(raw))


def _drop(tx: Transaction, raw: bytes) -> None:
    old = tx.get(raw)
    assert old is not None, "it was just read"
    tx.remove(raw, old)


def _set_node(tx: Transaction, index: int, node: Node, found: Node | None, *, forced: bool) -> None:
    if found is not None and _stands(node, found):
        return
    if node.node_id and (found is None or found.node_id != node.node_id):
        for other in _all_nodes(tx):
            if fold(other.name) == fold(node.name):
                if other.node_id and not forced and _is_healthy(tx, other.name):
                    raise _Refusal(_reserved(node, other))
            elif other.node_id == node.node_id:
                # The node has a new name (Consul: its old one goes, with everything on it).
                found = other
                remove_node(tx, index, other, keeps_unbound=False)
    create = found.create_index if found is not None else index
    _put(tx, node_key(node.name), node._replace(create_index=create, modify_index=index))
    touch(tx, index, NODE_INDEX)
    _touch_services_of(tx, index, node.name)


def _reserved(node: Node, other: Node) -> str:
    return (
        f'failed inserting node: Error while renaming Node ID: "{node.node_id}" ({node.address}): '
        f"Node name {node.name} is reserved by node {other.node_id} with name {other.name} "
        f"({other.address})"
    )


def _all_nodes(tx: Transaction) -> list[Node]:
    return [decode_node(raw, record) for raw, record in sorted(tx.scan(*key_range(NODES, b"")))]


def _is_healthy(tx: Transaction, node: str) -> bool:
    check = find_check(tx, node, MEMBER_CHECK)
    return check is not None and check.status != CRITICAL


def _stands(wanted: Node | Service | Check, found: Node | Service | Check) -> bool:
    """Whether only the indexes would change."""
    return wanted == found._replace(
        create_index=wanted.create_index, modify_index=wanted.modify_index
    )


def _set_service(tx: Transaction, index: int, service: Service) -> None:
    raw = service_key(service.node, service.service_id)
    found = find_service(tx, service.node, service.service_id)
    if found is not None and _stands(service, found):
        return
    create = index if found is None else found.create_index
    _put(tx, raw, service._replace(create_index=create, modify_index=index))
    end = b"\0" + raw[1:]
    tx.overlay[BY_NAME + fold(service.name) + end] = b""
    touch(tx, index, SERVICE_INDEX)
    touch(tx, index, service_index_name(service.name))
    if found is not None and fold(found.name) != fold(service.name):
        tx.overlay[BY_NAME + fold(found.name) + end] = None
        _gone(tx, index, found.name)


def set_check(tx: Transaction, index: int, check: Check, *, keep_status: bool = False) -> None:
    """Write a check; sessions that are bound to it end if it is critical now.

    Raises:
        _Refusal: There is no such node or service.
    """
    node = find_node(tx, check.node)
    if node is None:
        raise _Refusal(f"failed inserting check: {_NO_NODE} on node {_quoted(check.node)}")
    found = find_check(tx, check.node, check.check_id)
    if check.service_id:
        service = find_service(tx, check.node, check.service_id)
        if service is None:
            raise _Refusal(_no_service(check))
        check = check._replace(service_name=service.name, service_tags=service.tags)
    if keep_status and found is not None:
        check = check._replace(status=found.status, output=found.output)
    if check.status == CRITICAL:
        _end_sessions(tx, index, check.node, check.check_id)
    tx.check_changes.append((index, check))
    if found is not None and _stands(check, found):
        return
    create = index if found is None else found.create_index
    raw = check_key(check.node, check.check_id)
    _put(tx, raw, check._replace(create_index=create, modify_index=index))
    if found is not None:
        tx.overlay[_by_service(found)] = None
    tx.overlay[_by_service(check)] = b""
    _check_touched(tx, index, check)


def _no_service(check: Check) -> str:
    if check.is_local:
        return f"ServiceID {_quoted(check.service_id)} does not exist"
    return f"failed inserting check: Missing service registration on node {_quoted(check.node)}"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _by_service(check: Check) -> bytes:
    return BY_SERVICE + fold(check.node, check.service_id, check.check_id)


def _check_touched(tx: Transaction, index: int, check: Check) -> None:
    touch(tx, index, CHECK_INDEX)
    if check.service_id:
        touch(tx, index, service_index_name(check.service_name))
    else:
        _touch_services_of(tx, index, check.node)


def remove_check(tx: Transaction, index: int, check: Check) -> None:
    """Remove a check that is there."""
    _check_touched(tx, index, check)
    if not check.service_id:
        touch(tx, index, SERVICE_INDEX)
    _drop(tx, check_key(check.node, check.check_id))
    tx.overlay[_by_service(check)] = None
    tx.check_changes.append((index, check._replace(status="", is_local=False)))
    _end_sessions(tx, index, check.node, check.check_id)


def remove_service(tx: Transaction, index: int, service: Service) -> None:
    """Remove a service that is there, and its checks."""
    for check in checks_of(tx, service.node, service.service_id):
        remove_check(tx, index, check)
    raw = service_key(service.node, service.service_id)
    _drop(tx, raw)
    tx.overlay[BY_NAME + fold(service.name) + b"\0" + raw[1:]] = None
    touch(tx, index, SERVICE_INDEX)
    touch(tx, index, CHECK_INDEX)
    _gone(tx, index, service.name)


def remove_node(tx: Transaction, index: int, node: Node, *, keeps_unbound: bool) -> None:
    """Remove a node that is there, and everything on it."""
    for service in services_of(tx, node.name):
        remove_service(tx, index, service)
    for check in checks_of(tx, node.name, None):
        remove_check(tx, index, check)
    _drop(tx, node_key(node.name))
    touch(tx, index, NODE_INDEX)
    if not keeps_unbound:
        _end_sessions(tx, index, node.name, "")


def _end_sessions(tx: Transaction, index: int, node: str, check_id: str) -> None:
    """End the sessions that are bound to a check; an empty id: to the node."""
    start = BOUND + fold(node, check_id) + b"\0"
    for raw in _names(tx, start):
        destroy_session(tx, index, SessionDestroy(raw[len(start) :].decode("ascii")))

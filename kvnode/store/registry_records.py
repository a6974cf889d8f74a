"""The registry's rows: nodes, services, checks, and the indexes of reads of them (spec §11).

As in Consul, names are found without regard to (ASCII) case and keep the case that they were given. A raw
key is a table byte and folded names joined by NUL, which no name may hold: so rows stand in the order in
which Consul lists them. A record is its mark, a version, and the fields in a small self-describing form;
new fields go to the end with a default, so that older records can still be read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

from kvnode.errors import CorruptLog
from kvnode.store.fields import is_text
from kvnode.store.packing import pack, unpack
from kvnode.store.records import (
    BOUND,
    CHECKS,
    MARK_BYTES,
    NODES,
    SERVICES,
    Session,
    mark_of,
)

NODE_INDEX: Final = "nodes"
SERVICE_INDEX: Final = "services"
CHECK_INDEX: Final = "checks"
EXTINCTION_INDEX: Final = "service_last_extinction"
"""Index at which a service lost its last instance."""

PASSING: Final = "passing"
WARNING: Final = "warning"
CRITICAL: Final = "critical"
MEMBER_CHECK: Final = "serfHealth"
"""The check that every member has, and that sessions are bound to by default."""

VERSION: Final = 1

DECODED_KEPT: Final = 16_384
"""Decoded records that are remembered, of about a kilobyte each: reading one takes as long as fifty
look-ups."""

Pairs = tuple[tuple[str, str], ...]


class Node(NamedTuple):
    """One node of the catalog."""

    node_id: str
    """A UUID, or empty."""
    name: str
    address: str
    tagged_addresses: Pairs = ()
    meta: Pairs = ()
    create_index: int = 0
    modify_index: int = 0


class Service(NamedTuple):
    """One instance of a service."""

    node: str
    service_id: str
    """Unique on its node."""
    name: str
    tags: tuple[str, ...] = ()
    address: str = ""
    """Empty: the node's."""
    tagged_addresses: tuple[tuple[str, str, int], ...] = ()
    """Name, address, port."""
    meta: Pairs = ()
    port: int = 0
    weights: tuple[int, int] = (1, 1)
    """While passing, while warning."""
    enable_tag_override: bool = False
    create_index: int = 0
    modify_index: int = 0


class CheckDefinition(NamedTuple):
    """What a check looks at, and when. All zero: somebody else says what it found."""

    http: str = ""
    """A URL."""
    method: str = ""
    header: tuple[tuple[str, tuple[str, ...]], ...] = ()
    body: str = ""
    tls_skip_verify: bool = False
    tcp: str = ""
    """``host:port``."""
    interval_ns: int = 0
    timeout_ns: int = 0
    deregister_ns: int = 0
    """A service that has been critical for so long is deregistered; 0: never."""
    ttl_ns: int = 0


class Check(NamedTuple):
    """One health check, of a node or of a service."""

    node: str
    check_id: str
    """Unique on its node."""
    name: str
    status: str = CRITICAL
    """``passing``, ``warning``, ``critical``, or whatever was registered with the catalog."""
    notes: str = ""
    output: str = ""
    service_id: str = ""
    """Empty: a check of the node."""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    type: str = ""
    """``ttl``, ``http``, ``tcp``, ``maintenance`` or nothing."""
    definition: CheckDefinition = CheckDefinition()
    is_local: bool = False
    """Registered with an agent, or made by the leader: this cluster times and performs it, and its
    definition is not shown. Else whoever registered it with the catalog keeps it up to date."""
    create_index: int = 0
    modify_index: int = 0


Record = Node | Service | Check


def fold(*names: str) -> bytes:
    """Return what stands behind the table byte for these names; ASCII letters lose their case."""
    return b"\0".join([name.encode("utf-8", "surrogateescape").lower() for name in names])


def is_name(value: object) -> bool:
    """Whether something can be a name in a raw key: text without NUL that UTF-8 can write."""
    return is_text(value) and "\0" not in value


def node_key(node: str) -> bytes:
    """Raw key of a node."""
    return NODES + fold(node)


def service_key(node: str, service_id: str) -> bytes:
    """Raw key of a service."""
    return SERVICES + fold(node, service_id)


def check_key(node: str, check_id: str) -> bytes:
    """Raw key of a check."""
    return CHECKS + fold(node, check_id)


def bound_keys(session: Session) -> set[bytes]:
    """Raw keys of the rows that bind a session to its node and its checks."""
    end = b"\0" + session.session_id.encode("ascii")
    services = [name for name, _ in session.service_checks]
    checks = ("", *session.node_checks, *services)
    return {BOUND + fold(session.node, check) + end for check in checks}


def encode_record(raw: bytes, record: Record) -> bytes:
    """Build a record.

    Raises:
        TypeError, ValueError: A field is of a type that cannot be stored.
    """
    body = bytes((VERSION,)) + pack(record)
    return mark_of(raw, body) + body


def decode_node(raw: bytes, record: bytes) -> Node:
    """Read a node record.

    Raises:
        CorruptLog: It is none of a known version.
    """
    node: Node = _decode(raw, record, Node)
    return node


def decode_service(raw: bytes, record: bytes) -> Service:
    """Read a service record; errors as ``decode_node``."""
    service: Service = _decode(raw, record, Service)
    return service


def decode_check(raw: bytes, record: bytes) -> Check:
    """Read a check record; errors as ``decode_node``."""
    check: Check = _decode(raw, record, Check)
    return check


def _decode(raw: bytes, record: bytes, kind: Any) -> Any:
    try:
        return _decoded(record, kind)
    except (CorruptLog, TypeError) as error:
        raise CorruptLog(f"the row {raw!r} of the registry is not readable: {error}") from error


@lru_cache(maxsize=DECODED_KEPT)
def _decoded(record: bytes, kind: Any) -> Any:
    """Decode a record, or remember what it was: lists of services are read again and again."""
    if len(record) <= MARK_BYTES or record[MARK_BYTES] != VERSION:
        raise CorruptLog("it has an unknown form")
    found = kind(*unpack(record[MARK_BYTES + 1 :]))
    if kind is Check:
        return found._replace(definition=CheckDefinition(*found.definition))
    return found

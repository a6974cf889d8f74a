"""Reads of the registry, and the indexes that belong to them (spec §2.2, §11).

The index of a read is the one of Consul's state store: of the table, or of the service; of a service that
has no instance, the index at which any service last lost its last one, or that of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple, TypeVar

from kvnode.store.engine import Engine, Write
from kvnode.store.reads import list_sessions
from kvnode.store.records import (
    BOUND,
    BY_NAME,
    BY_SERVICE,
    CHECKS,
    INDEXES,
    NODES,
    SERVICES,
    decode_grave,
    key_range,
)
from kvnode.store.registry_records import (
    CHECK_INDEX,
    EXTINCTION_INDEX,
    NODE_INDEX,
    SERVICE_INDEX,
    Check,
    Node,
    Service,
    bound_keys,
    check_key,
    decode_check,
    decode_node,
    decode_service,
    fold,
    node_key,
    service_key,
)

_PAGE = 200

T = TypeVar("T")


class Instance(NamedTuple):
    """A service with its node and, where they were asked for, the checks that say how it is."""

    node: Node
    service: Service
    checks: tuple[Check, ...]
    """Those of the node first."""


class Registry:
    """The registry at one moment. Cheap; reads what it is asked for, and keeps nothing."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        """Read from ``engine``."""
        self._engine = engine

    # -- one ----------------------------------------------------------------------------------------

    def node(self, name: str) -> Node | None:
        """Return a node, or None."""
        return self._get(node_key(name), decode_node)

    def service(self, node: str, service_id: str) -> Service | None:
        """Return a service of a node, or None."""
        return self._get(service_key(node, service_id), decode_service)

    def check(self, node: str, check_id: str) -> Check | None:
        """Return a check of a node, or None."""
        return self._get(check_key(node, check_id), decode_check)

    def _get(self, raw: bytes, decode: Callable[[bytes, bytes], T]) -> T | None:
        record = self._engine.get(raw)
        return None if record is None else decode(raw, record)

    # -- many ---------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """Return all nodes by name."""
        return list(self._decoded(NODES, b"", decode_node))

    def services(self, node: str | None = None) -> Iterator[Service]:
        """Yield the services of a node, or all, by node and id. To be exhausted."""
        return self._decoded(SERVICES, _under(node), decode_service)

    def checks(self, node: str | None = None) -> Iterator[Check]:
        """Yield the checks of a node, or all, by node and id. To be exhausted."""
        return self._decoded(CHECKS, _under(node), decode_check)

    def _decoded(
        self, table: bytes, prefix: bytes, decode: Callable[[bytes, bytes], T]
    ) -> Iterator[T]:
        with closing(self._engine.scan(*key_range(table, prefix))) as rows:
            for raw, record in rows:
                yield decode(raw, record)

    def checks_of(self, node: str, service_id: str) -> list[Check]:
        """Return the checks of a service by id; an empty service id: of the node itself."""
        prefix = fold(node, service_id) + b"\0"
        ids = self._rest(BY_SERVICE, prefix)
        return [
            decode_check(raw, record)
            for raw in (CHECKS + fold(node) + b"\0" + check_id for check_id in ids)
            if (record := self._engine.get(raw)) is not None
        ]

    def checks_of_service(self, name: str) -> list[Check]:
        """Return the checks of every instance of a service by node and id."""
        found = [
            check
            for _, service in self._instances(name)
            for check in self.checks_of(service.node, service.service_id)
        ]
        return sorted(found, key=lambda check: fold(check.node, check.check_id))

    def instances(self, name: str, *, checks: bool = False) -> list[Instance]:
        """Return the instances of a service by node and id."""
        found: list[Instance] = []
        of_node: tuple[str, tuple[Check, ...]] = ("", ())
        for node, service in self._instances(name):
            both: tuple[Check, ...] = ()
            if checks:
                if of_node[0] != node.name:
                    of_node = (node.name, tuple(self.checks_of(node.name, "")))
                both = of_node[1] + tuple(self.checks_of(service.node, service.service_id))
            found.append(Instance(node, service, both))
        return found

    def _instances(self, name: str) -> Iterator[tuple[Node, Service]]:
        nodes: dict[bytes, Node | None] = {}
        for row in self._rest(BY_NAME, fold(name) + b"\0"):
            raw = SERVICES + row
            service = self._get(raw, decode_service)
            if service is None:
                continue
            key = row.partition(b"\0")[0]
            if key not in nodes:
                nodes[key] = self.node(service.node)
            node = nodes[key]
            if node is not None:
                yield node, service

    def _rest(self, table: bytes, prefix: bytes) -> list[bytes]:
        """Return what stands behind a prefix in a derived table, in order."""
        start, stop = key_range(table, prefix)
        with closing(self._engine.scan(start, stop)) as rows:
            return [raw[len(start) :] for raw, _ in rows]

    # -- indexes ------------------------------------------------------------------------------------

    def index(self, *names: str) -> int:
        """Return the highest of some indexes; 0 when none was ever moved."""
        found = [self._get(INDEXES + fold(name), decode_grave) for name in names]
        return max((index for index in found if index is not None), default=0)

    def service_index(self, name: str, *, checks: bool = False) -> int:
        """Return the index of a read of the instances of a service, with or without their checks."""
        start, stop = key_range(BY_NAME, fold(name) + b"\0")
        with closing(self._engine.scan(start, stop)) as rows:
            exists = next(rows, None) is not None
        found = 0 if exists else self.index(EXTINCTION_INDEX)
        found = found or self.index(f"service.{name}")
        if found:
            return found
        tables = (NODE_INDEX, SERVICE_INDEX, CHECK_INDEX)
        return self.index(*(tables if checks else tables[:2]))


def _under(node: str | None) -> bytes:
    return b"" if node is None else fold(node) + b"\0"


def bind_sessions(engine: Engine) -> None:
    """Write the rows that bind sessions to checks, for data from before there were any."""
    with closing(engine.scan(*key_range(BOUND, b""))) as rows:
        if next(rows, None) is not None:
            return
    after = ""
    while page := list_sessions(engine, after, _PAGE):
        writes: list[Write] = [
            (row, b"") for session in page for row in sorted(bound_keys(session))
        ]
        engine.write(writes)
        after = page[-1].session_id

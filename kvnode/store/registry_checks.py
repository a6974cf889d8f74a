"""The registry's part of a store's check of itself; see ``checks``."""

from __future__ import annotations

from kvnode.store.records import (
    BOUND,
    BY_NAME,
    BY_SERVICE,
    CHECKS,
    INDEXES,
    NODES,
    SERVICES,
    Meta,
    Session,
    decode_grave,
)
from kvnode.store.registry_records import (
    CHECK_INDEX,
    CRITICAL,
    NODE_INDEX,
    SERVICE_INDEX,
    Check,
    bound_keys,
    check_key,
    decode_check,
    decode_node,
    decode_service,
    fold,
    node_key,
    service_key,
)


class RegistryAudit:
    """Gathers what a walk over all rows shows of the registry."""

    def __init__(self, meta: Meta) -> None:
        """Nothing was seen yet."""
        self._meta = meta
        self._problems: list[str] = []
        self._nodes: set[bytes] = set()
        self._services: set[bytes] = set()
        self._checks: dict[bytes, Check] = {}
        self._indexes: dict[bytes, int] = {}
        self._derived: set[bytes] = set()
        self._wanted: set[bytes] = set()
        self._newest: dict[str, int] = {}
        self._bound: list[tuple[Session, set[bytes]]] = []

    def row(self, raw: bytes, record: bytes) -> None:
        """Look at one row of one of the registry's tables."""
        table = raw[:1]
        if table == NODES:
            node = decode_node(raw, record)
            self._place(raw, node_key(node.name))
            self._nodes.add(raw[1:])
            self._age(NODE_INDEX, raw, node.create_index, node.modify_index)
        elif table == SERVICES:
            service = decode_service(raw, record)
            self._place(raw, service_key(service.node, service.service_id))
            self._services.add(raw[1:])
            self._wanted.add(BY_NAME + fold(service.name) + b"\0" + raw[1:])
            self._age(SERVICE_INDEX, raw, service.create_index, service.modify_index)
        elif table == CHECKS:
            check = decode_check(raw, record)
            self._place(raw, check_key(check.node, check.check_id))
            self._checks[raw[1:]] = check
            self._wanted.add(BY_SERVICE + fold(check.node, check.service_id, check.check_id))
            self._age(CHECK_INDEX, raw, check.create_index, check.modify_index)
        elif table == INDEXES:
            self._indexes[raw[1:]] = decode_grave(raw, record)
        else:
            assert table in (BY_NAME, BY_SERVICE, BOUND), "the caller knows our tables"
            self._derived.add(raw)

    def session(self, session: Session) -> None:
        """Note a session."""
        rows = bound_keys(session)
        self._wanted |= rows
        self._bound.append((session, rows))

    def _place(self, raw: bytes, wanted: bytes) -> None:
        if raw != wanted:
            self._problems.append(f"row {raw!r} of the registry should be {wanted!r}")

    def _age(self, table: str, raw: bytes, created: int, modified: int) -> None:
        self._newest[table] = max(self._newest.get(table, 0), modified)
        if not 0 < created <= modified:
            self._problems.append(f"row {raw!r} was created at {created}, changed at {modified}")

    def problems(self) -> list[str]:
        """Return one sentence for each thing that is wrong."""
        found = list(self._problems)
        if self._derived != self._wanted:
            odd = sorted(self._derived ^ self._wanted)
            found.append(f"derived rows of the registry do not agree with it: {odd[:3]!r}")
        found += [
            f"service {raw!r} is on a node that does not exist"
            for raw in sorted(self._services)
            if raw.partition(b"\0")[0] not in self._nodes
        ]
        for raw, check in sorted(self._checks.items()):
            if fold(check.node) not in self._nodes:
                found.append(f"check {raw!r} is on a node that does not exist")
            if check.service_id and fold(check.node, check.service_id) not in self._services:
                found.append(f"check {raw!r} is of a service that does not exist")
        for name, newest in sorted(self._newest.items()):
            index = self._indexes.get(fold(name), 0)
            if not newest <= index <= self._meta.applied_index:
                found.append(f"index {name!r} is {index}, the newest row is of {newest}")
        return found + self._held_by_critical()

    def _held_by_critical(self) -> list[str]:
        return [
            f"session {session.session_id} goes on although check {name!r} is critical"
            for session, _ in self._bound
            for name in (*session.node_checks, *(name for name, _ in session.service_checks))
            if (check := self._checks.get(fold(session.node, name))) is not None
            and check.status == CRITICAL
        ]

"""Nodes, services, checks: what a registration changes, which indexes move, which sessions end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvnode.store.checks import check as audit
from kvnode.store.commands import Command, KvLock, KvSet, SessionCreate
from kvnode.store.memory import MemoryEngine
from kvnode.store.own_commands import Refused, Why
from kvnode.store.records import BOUND, RELEASE
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_records import (
    CRITICAL,
    PASSING,
    Check,
    CheckDefinition,
    Node,
    Service,
)
from kvnode.store.snapshot import load
from kvnode.store.store import Store

ONE = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
TWO = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a78"
NODE = Node("", "n1", "10.0.0.1")
WEB = Service("n1", "web-1", "web", ("a",), port=80)
SERF = Check("n1", "serfHealth", "Serf", PASSING)
TTL = Check(
    "n1",
    "ttl",
    "t",
    PASSING,
    service_id="web-1",
    type="ttl",
    definition=CheckDefinition(ttl_ns=10**10),
    is_local=True,
)
ALL = Register("n1", NODE, WEB, (SERF, TTL))


class Applied:
    """A store, and a way to say what is applied to it; sound after every step."""

    def __init__(self) -> None:
        self.store = Store(MemoryEngine())
        self.touched: list[tuple[int, bytes]] = []
        self.checks: list[Check | None] = []
        self.store.on_registry = lambda index, name: self.touched.append((index, name))
        self.store.on_check = lambda _index, check: self.checks.append(check)

    def __call__(self, command: Command) -> object:
        """Apply one command and return its result."""
        value = self.store.apply_batch([(self.store.applied_index + 1, command)])[0].value
        assert audit(self.store) == []
        return value

    def indexes(self) -> dict[str, int]:
        registry = self.store.registry()
        names = ("nodes", "services", "checks", "service.web")
        return {name: registry.index(name) for name in names}


@pytest.fixture
def applied() -> Iterator[Applied]:
    made = Applied()
    yield made
    made.store.engine.close()


def session(session_id: str, *checks: str, services: tuple[str, ...] = ()) -> SessionCreate:
    of_services = tuple([(name, "") for name in services])
    return SessionCreate(session_id, "", "n1", 0, RELEASE, "", 0, checks, of_services, checked=True)


def test_what_is_registered_can_be_read(applied: Applied) -> None:
    assert applied(ALL) is True
    registry = applied.store.registry()
    assert registry.nodes() == [NODE._replace(create_index=1, modify_index=1)]
    [found] = registry.instances("WEB", checks=True)
    assert found.service == WEB._replace(create_index=1, modify_index=1)
    assert [(check.check_id, check.service_name, check.service_tags) for check in found.checks] == [
        ("serfHealth", "", ()),
        ("ttl", "web", ("a",)),
    ]
    assert applied.indexes() == {"nodes": 1, "services": 1, "checks": 1, "service.web": 1}


def test_a_registration_that_changes_nothing_moves_no_index_and_wakes_nobody(
    applied: Applied,
) -> None:
    applied(ALL)
    before = applied.store.digest
    applied.touched.clear()
    assert applied(ALL) is True
    assert applied.indexes() == {"nodes": 1, "services": 1, "checks": 1, "service.web": 1}
    assert (applied.touched, applied.store.digest) == ([], before)


def test_names_are_found_in_any_case_and_keep_their_own(applied: Applied) -> None:
    applied(ALL)
    registry = applied.store.registry()
    assert registry.node("N1") == registry.node("n1")
    service = registry.service("N1", "WEB-1")
    assert service is not None
    assert service.name == "web"


def test_a_check_of_the_node_moves_the_index_of_its_services(applied: Applied) -> None:
    """A reader of ``health/service`` sees the checks of the node, too."""
    applied(ALL)
    applied(Register("n1", checks=(SERF._replace(output="x"),)))
    assert applied.indexes() == {"nodes": 1, "services": 1, "checks": 2, "service.web": 2}


def test_another_service_moves_only_its_own_index(applied: Applied) -> None:
    applied(ALL)
    applied(Register("n1", service=Service("n1", "db", "db")))
    assert applied.indexes() == {"nodes": 1, "services": 2, "checks": 1, "service.web": 1}
    assert applied.store.registry().service_index("db") == 2


def test_an_extinct_service_has_the_index_of_its_end(applied: Applied) -> None:
    applied(ALL)
    applied(KvSet(b"k", b""))
    applied(Deregister("n1", "web-1"))
    registry = applied.store.registry()
    assert (registry.service_index("web"), registry.instances("web")) == (3, [])
    assert registry.check("n1", "ttl") is None
    assert (3, b"service.web") in applied.touched
    applied(Register("n1", service=WEB))
    assert registry.service_index("web") == 4


def test_a_service_with_a_new_name_leaves_the_old_one(applied: Applied) -> None:
    applied(ALL)
    applied(Register("n1", service=WEB._replace(name="shop")))
    registry = applied.store.registry()
    assert [found.service.service_id for found in registry.instances("shop")] == ["web-1"]
    assert registry.instances("web") == []


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (Register("n2", service=WEB._replace(node="n2")), "Missing node registration"),
        (
            Register("n1", checks=(TTL._replace(service_id="none"),)),
            'ServiceID "none" does not exist',
        ),
        (
            Register("n1", service=WEB._replace(service_id="w2"),
                     checks=(SERF._replace(service_id="none"),)),
            'failed inserting check: Missing service registration on node "n1"',
        ),
    ],
)  # fmt: skip
def test_a_refused_registration_leaves_nothing(
    applied: Applied, command: Register, refusal: str
) -> None:
    applied(ALL)
    before = applied.store.digest
    assert applied(command) == Refused(Why.REGISTRY, key=refusal.encode())
    assert applied.store.digest == before


def test_a_node_id_moves_with_its_name_unless_a_healthy_member_has_it(applied: Applied) -> None:
    applied(Register("n1", NODE._replace(node_id=ONE), checks=(SERF,)))
    refusal = applied(Register("n1", NODE._replace(node_id=TWO)))
    assert isinstance(refusal, Refused)
    assert b"is reserved by node" in refusal.key
    assert applied(Register("n1", NODE._replace(node_id=TWO), forced=True)) is True
    assert applied(Register("n2", Node(TWO, "n2", ""))) is True
    assert [node.name for node in applied.store.registry().nodes()] == ["n2"]


def test_a_status_is_kept_when_asked_for(applied: Applied) -> None:
    applied(ALL)
    applied(UpdateCheck("n1", "ttl", "ttl", "warning", "o"))
    applied(Register("n1", service=WEB, checks=(TTL._replace(name="new"),), keep_status=True))
    check = applied.store.registry().check("n1", "ttl")
    assert check is not None
    assert (check.name, check.status, check.output) == ("new", "warning", "o")


def test_further_checks_of_a_service_go_when_asked_for(applied: Applied) -> None:
    applied(ALL)
    other = TTL._replace(check_id="other")
    applied(Register("n1", service=WEB, checks=(other,), replace_checks=True))
    assert [check.check_id for check in applied.store.registry().checks()] == [
        "other",
        "serfHealth",
    ]


@pytest.mark.parametrize(
    "command",
    [
        UpdateCheck("n1", "none", "ttl", PASSING, ""),
        UpdateCheck("n1", "ttl", "http", PASSING, ""),
        UpdateCheck("n1", "serfHealth", "", PASSING, ""),
    ],
)
def test_only_a_local_check_of_the_type_can_be_reported(
    applied: Applied, command: UpdateCheck
) -> None:
    applied(ALL)
    assert applied(command) is False


def test_a_deregistration_that_came_too_late_does_nothing(applied: Applied) -> None:
    applied(ALL)
    assert applied(Deregister("n1", "web-1", if_critical="ttl")) is True
    assert applied.store.registry().service("n1", "web-1") is not None
    applied(UpdateCheck("n1", "ttl", "ttl", CRITICAL, ""))
    applied(Deregister("n1", "web-1", if_critical="ttl"))
    assert applied.store.registry().service("n1", "web-1") is None


# --- sessions


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (session(ONE)._replace(node="n2"), "Missing node registration"),
        (session(ONE, "serfHealth", "zz"), "Missing check 'zz' registration"),
        (session(ONE, services=("zz",)), "Missing check 'zz' registration"),
        (session(ONE, "bad"), "Check 'bad' is in critical state"),
    ],
)
def test_a_session_needs_its_node_and_sound_checks(
    applied: Applied, command: SessionCreate, refusal: str
) -> None:
    applied(ALL._replace(checks=(SERF, TTL, SERF._replace(check_id="bad", status=CRITICAL))))
    assert applied(command) == Refused(Why.REGISTRY, key=refusal.encode())
    assert applied.store.session(ONE) is None


def test_an_older_entry_is_not_judged_by_the_registry(applied: Applied) -> None:
    assert applied(session(ONE, "serfHealth")._replace(checked=False)) is True


@pytest.mark.parametrize(
    "end",
    [
        Register("n1", checks=(SERF._replace(status=CRITICAL),)),
        Deregister("n1", check_id="serfHealth"),
        Deregister("n1"),
        Deregister("n1", keeps_unbound=True),
    ],
    ids=repr,
)
def test_a_session_ends_with_its_check_in_one_entry(applied: Applied, end: Command) -> None:
    applied(ALL)
    applied(session(ONE, "serfHealth"))
    applied(session(TWO))
    applied(KvLock(b"k", b"v", ONE))
    applied(end)
    pair = applied.store.get(b"k")
    assert pair is not None
    assert (pair.session, pair.modify_index) == ("", 5)
    assert applied.store.session(ONE) is None
    survives = end != Deregister("n1")
    assert (applied.store.session(TWO) is not None) is survives
    assert applied.store.session_index() == 5


def test_a_session_ends_when_the_check_of_its_service_turns_critical(applied: Applied) -> None:
    applied(ALL)
    applied(session(ONE, "serfHealth", services=("TTL",)))
    applied(UpdateCheck("n1", "ttl", "ttl", "warning", ""))
    assert applied.store.session(ONE) is not None
    applied(UpdateCheck("n1", "ttl", "ttl", CRITICAL, ""))
    assert applied.store.session(ONE) is None


def test_each_report_is_told_even_if_it_changes_nothing(applied: Applied) -> None:
    """Whoever counts a TTL needs to know."""
    applied(ALL)
    applied.checks.clear()
    applied(UpdateCheck("n1", "ttl", "ttl", PASSING, ""))
    assert [check and check.check_id for check in applied.checks] == ["ttl"]


def test_a_snapshot_holds_the_registry(applied: Applied) -> None:
    applied(ALL)
    applied(session(ONE, "serfHealth"))
    engine = MemoryEngine()
    dump = applied.store.dump()
    load(engine, dump)
    dump.close()
    loaded = Store(engine)
    assert (loaded.digest, audit(loaded)) == (applied.store.digest, [])
    assert list(engine.scan(b"", None)) == list(applied.store.engine.scan(b"", None))
    applied.store.replace(engine)
    assert applied.touched[-1] == (2, b"")
    assert applied.checks[-1] is None


def test_sessions_from_before_there_was_a_registry_are_bound_when_the_store_is_opened(
    applied: Applied,
) -> None:
    applied(ALL)
    applied(session(ONE, "serfHealth"))
    engine = applied.store.engine
    rows = [raw for raw, _ in engine.scan(BOUND, b"C")]
    engine.write([(raw, None) for raw in rows])
    applied.store = Store(engine)
    assert audit(applied.store) == []
    applied(Deregister("n1"))
    assert applied.store.session(ONE) is None

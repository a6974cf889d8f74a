import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.errors import LocalProtocolError, RemoteProtocolError
from kvnode.ports import Hello
from kvnode.transport import framing
from kvnode.transport.framing import HEADER_BYTES, pack_frame, unpack_hello_frame
from kvnode.transport.handshake import (
    BOOTS_MAX,
    Boots,
    Greeting,
    Lane,
    Refusal,
    check_hello,
    hello_frame,
    judge,
    misdirected,
    parse_hello,
    parse_refused,
    refused_frame,
)

OURS = Hello(1, "c", "a", "kvnode-0", 5, "h0:1", "h0:2", 3)
THEIRS = Hello(1, "c", "b", "kvnode-1", 2, "h1:1", "h1:2", 3)


def over_the_wire(frame):
    return unpack_hello_frame(pack_frame(frame)[HEADER_BYTES:])


def verdict(theirs, *, ours=OURS, lane=Lane.FAST, expected="", removed=False):
    found = judge(ours, theirs, lane=lane, expected=expected, removed=removed)
    return None if found is None else found[0]


def test_an_introduction_comes_back_as_it_went():
    frame = over_the_wire(hello_frame(OURS, Lane.SNAPSHOT, "b"))
    assert parse_hello(frame) == Greeting(OURS, Lane.SNAPSHOT, "b")


def test_fields_of_newer_builds_are_skipped():
    """Rolling upgrades: new fields go to the end."""
    frame = (*hello_frame(OURS, Lane.BULK), "new", 1)
    assert parse_hello(over_the_wire(frame)).hello == OURS


@settings(max_examples=50)
@given(st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.binary(), max_size=14))
def test_arbitrary_introductions_are_read_or_refused(fields):
    for frame in (tuple(fields), (framing.HELLO, "kvnode", *fields)):
        with contextlib.suppress(RemoteProtocolError):
            parse_hello(frame)


@settings(max_examples=50)
@given(st.integers(2, 11), st.none() | st.booleans() | st.integers() | st.text() | st.binary())
def test_one_damaged_field_never_yields_wrong_types(place, value):
    frame = list(hello_frame(OURS, Lane.FAST, "b"))
    frame[place] = value
    try:
        greeting = parse_hello(tuple(frame))
    except RemoteProtocolError:
        return
    assert [type(v) for v in greeting.hello] == [type(v) for v in OURS]


@pytest.mark.parametrize(
    "changes", [{"name": "x" * 513}, {"node_id": ""}, {"node_id": "x" * 65}, {"boot": -1}]
)
def test_an_introduction_that_nobody_would_accept_is_our_own_error(changes):
    with pytest.raises(LocalProtocolError):
        check_hello(OURS._replace(**changes))


def test_refusals_come_back_as_they_went():
    for refusal in Refusal:
        refused = parse_refused(over_the_wire(refused_frame(refusal, "why", OURS)))
        assert refused == (refusal, "why", "c")
    assert parse_refused((framing.REFUSED, "invented later", "why", "c")).refusal is None
    with pytest.raises(RemoteProtocolError):
        parse_refused((framing.REFUSED, 1, "why", "c"))


def test_the_rules_of_who_may_talk():
    """RC-47, RC-49 … RC-55, in one table."""
    assert verdict(THEIRS) is None
    assert verdict(THEIRS, expected="b") is None
    assert verdict(THEIRS, expected="x") is Refusal.IDENTITY
    assert verdict(THEIRS._replace(protocol=0)) is Refusal.PROTOCOL
    assert verdict(THEIRS._replace(protocol=99)) is None, "a newer peer decides for itself"
    assert verdict(THEIRS._replace(cluster_id="d")) is Refusal.CLUSTER
    assert verdict(THEIRS._replace(cluster_id="")) is None
    assert verdict(THEIRS, ours=OURS._replace(cluster_id="")) is None
    assert verdict(THEIRS, removed=True) is Refusal.REMOVED
    assert verdict(THEIRS._replace(cluster_id="d"), removed=True) is Refusal.CLUSTER


def test_meeting_oneself():
    """Asking oneself works; one's own id elsewhere is a cloned data directory (RC-52)."""
    assert verdict(OURS) is Refusal.SELF
    assert verdict(OURS, lane=Lane.ASK) is None
    assert verdict(OURS._replace(boot=4)) is Refusal.OLD_BOOT
    assert verdict(OURS._replace(boot=6)) is Refusal.DUPLICATE
    assert verdict(OURS._replace(address="x:1"), lane=Lane.ASK) is Refusal.DUPLICATE


def test_a_listener_that_is_somebody_else_says_so():
    assert misdirected(OURS, Greeting(THEIRS, Lane.FAST, "a")) is None
    assert misdirected(OURS, Greeting(THEIRS, Lane.FAST, "")) is None
    found = misdirected(OURS, Greeting(THEIRS, Lane.FAST, "x"))
    assert found is not None
    assert found[0] is Refusal.IDENTITY


def test_only_the_newest_process_of_a_node_is_admitted():
    """RC-52, RC-54."""
    boots = Boots()
    assert boots.enter(THEIRS) is None
    assert boots.enter(THEIRS._replace(boot=3, address="new:1")) is None
    assert boots.is_outdated(THEIRS)
    refusal = boots.enter(THEIRS)
    assert refusal is not None
    assert refusal[0] is Refusal.OLD_BOOT


def test_one_process_at_two_addresses_is_a_fault_while_both_are_there():
    """RC-52; once the first is gone it may simply have moved."""
    boots = Boots()
    clone = THEIRS._replace(address="elsewhere:1")
    assert boots.enter(THEIRS) is None
    refusal = boots.enter(clone)
    assert refusal is not None
    assert refusal[0] is Refusal.DUPLICATE
    boots.leave(THEIRS)
    assert boots.enter(clone) is None
    boots.update(clone._replace(address="third:1"))
    assert boots.enter(clone) is not None


def test_the_memory_of_boot_numbers_is_bounded():
    """RC-67: node ids come from whoever connects. Connected ones are forgotten last."""
    boots = Boots()
    assert boots.enter(THEIRS) is None
    for number in range(BOOTS_MAX + 5):
        stranger = THEIRS._replace(node_id=f"s{number}")
        assert boots.enter(stranger) is None
        boots.leave(stranger)
    assert len(boots._seen) == BOOTS_MAX
    assert boots.enter(THEIRS._replace(boot=1)) is not None, "still remembered"
    for number in range(BOOTS_MAX + 5):
        assert boots.enter(THEIRS._replace(node_id=f"t{number}")) is None
    assert len(boots._seen) == BOOTS_MAX

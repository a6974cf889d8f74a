"""Hints about addresses: best first, bounded, and never an identity (RC-53)."""

from __future__ import annotations

from kvnode.ports import Hello
from kvnode.raft.types import Member, Membership, NodeId
from kvnode.replica.addresses import CANDIDATES_MAX, KNOWN_MAX, AddressBook, host_label

MEMBERS = tuple(Member(NodeId(f"id{i}"), f"kv-{i}", f"10.0.0.{i}:8300") for i in range(3))
MEMBERSHIP = Membership(voters=frozenset(m.node_id for m in MEMBERS), members=MEMBERS)


def hello(number: int, address: str) -> Hello:
    return Hello(1, "c", NodeId(f"id{number}"), f"kv-{number}", 1, address, "", 3)


def test_what_discovery_names_after_the_member_comes_first() -> None:
    book = AddressBook()
    book.seeds = ["kv-2.svc:8300", "kv-1.svc:8300", "10.9.9.9:8300"]
    book.learn(hello(1, "10.1.1.1:8300"))
    assert book.candidates(NodeId("id1"), MEMBERSHIP, "own:1") == (
        "kv-1.svc:8300", "10.1.1.1:8300", "10.0.0.1:8300", "10.9.9.9:8300"
    )  # fmt: skip


def test_our_own_address_and_repetitions_are_left_out() -> None:
    book = AddressBook()
    book.seeds = ["10.0.0.1:8300", "own:1"]
    book.learn(hello(1, "10.0.0.1:8300"))
    assert book.candidates(NodeId("id1"), MEMBERSHIP, "own:1") == ("10.0.0.1:8300",)


def test_an_address_where_another_member_was_heard_is_not_tried() -> None:
    book = AddressBook()
    book.seeds = ["10.9.9.2:8300"]
    book.learn(hello(2, "10.9.9.2:8300"))
    assert "10.9.9.2:8300" not in book.candidates(NodeId("id1"), MEMBERSHIP, "own:1")


def test_a_stranger_is_tried_where_it_was_heard() -> None:
    book = AddressBook()
    book.learn(Hello(1, "c", NodeId("x"), "x", 1, "x:1", "", 0))
    assert book.candidates(NodeId("x"), MEMBERSHIP, "own:1") == ("x:1",)
    assert book.candidates(NodeId("y"), MEMBERSHIP, "own:1") == ()


def test_news_are_what_was_not_known() -> None:
    book = AddressBook()
    assert book.learn(hello(1, "a:1"))
    assert not book.learn(hello(1, "a:1"))
    assert book.learn(hello(1, "b:1"))
    assert book.address(MEMBERS[1]) == "b:1"
    assert book.address(MEMBERS[2]) == "10.0.0.2:8300"


def test_the_book_is_bounded() -> None:
    """RC-67."""
    book = AddressBook()
    for number in range(KNOWN_MAX + 10):
        book.learn(hello(number, f"h{number}:1"))
    assert book.heard(NodeId("id0")) is None
    assert book.heard(NodeId(f"id{KNOWN_MAX + 9}")) is not None
    book.seeds = [f"h{number}:1" for number in range(100)]
    assert len(book.candidates(NodeId("id1"), MEMBERSHIP, "own:1")) == CANDIDATES_MAX


def test_labels_of_hosts() -> None:
    assert host_label("kv-1.kv.default.svc:8300") == "kv-1"
    assert host_label("localhost:8300") == "localhost"


def test_what_others_heard_counts_while_it_is_newer() -> None:
    """By the number of the start: an address changes with a restart only."""
    book = AddressBook()
    book.learn(hello(1, "old:1"))
    assert not book.tell(NodeId("id1"), 1, "as-old:1")
    assert book.tell(NodeId("id1"), 3, "new:1")
    assert not book.tell(NodeId("id1"), 2, "older:1")
    assert book.candidates(NodeId("id1"), MEMBERSHIP, "own:1") == (
        "new:1", "old:1", "10.0.0.1:8300"
    )  # fmt: skip
    book.learn(hello(1, "itself:1")._replace(boot=3))
    assert book.candidates(NodeId("id1"), MEMBERSHIP, "own:1")[0] == "itself:1"
    for number in range(KNOWN_MAX + 10):
        book.tell(NodeId(f"x{number}"), 1, "x:1")
    assert len(book._told) <= KNOWN_MAX

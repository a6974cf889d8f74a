"""Identities, positions, memberships."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.raft.types import REMOVED_MAX, Member, Membership
from tests.raft.cluster import lid, member, membership, nid


def test_a_position_is_printed_index_at_term() -> None:
    assert str(lid(42, 7)) == "42@7"


numbers = st.sets(st.integers(1, 9))


@given(numbers, numbers, st.lists(st.integers(10, 20).map(nid), unique=True))
def test_encode_and_decode_are_inverse(voters: set[int], learners: set[int], gone: list) -> None:  # type: ignore[type-arg]
    now = membership(sorted(voters), sorted(learners - voters))._replace(removed=tuple(gone))
    assert Membership.decode(now.encode()) == now


def test_equal_memberships_are_equal_bytes() -> None:
    """Else the log's bytes would depend on the order of a set (RC-28)."""
    assert membership([3, 1, 2]).encode() == membership([2, 3, 1]).encode()


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"{}", b"1", b'{"voters":1}', b'{"voters":[],"learners":[]}']
)
def test_what_is_no_membership_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Membership.decode(data)


def test_a_node_goes_from_learner_to_voter_to_the_list_of_the_removed() -> None:
    """RC-44, RC-47."""
    now = membership([1]).with_learner(member(nid(2)))
    assert (now.voters, now.learners) == ({nid(1)}, {nid(2)})
    now = now.with_voter(nid(2))
    assert (now.voters, now.learners) == ({nid(1), nid(2)}, frozenset())
    now = now.without(nid(1))
    assert (now.voters, now.removed) == ({nid(2)}, (nid(1),))
    assert [m.node_id for m in now.members] == [nid(2)]


def test_the_list_of_the_removed_is_bounded_and_forgets_the_oldest() -> None:
    now = membership([1])
    for number in range(10, 10 + REMOVED_MAX + 5):
        now = now.without(nid(number))
    assert len(now.removed) == REMOVED_MAX
    assert now.removed[0] == nid(15)


def test_removing_twice_lists_once() -> None:
    assert membership([1]).without(nid(2)).without(nid(2)).removed == (nid(2),)


def test_a_name_means_the_voter_while_its_replacement_learns() -> None:
    """Two incarnations of one name: the one that counts answers to it."""
    now = membership([2]).with_learner(Member(nid(1), "name-n2", "n1:1"))
    found = now.by_name("name-n2")
    assert found is not None
    assert found.node_id == nid(2)
    assert now.by_name("nobody") is None


def test_members_have_one_fixed_order() -> None:
    assert membership([3, 1], [2]).nodes() == [nid(1), nid(2), nid(3)]
    assert membership([3, 1], [2]).member(nid(9)) is None

"""Arithmetic of majorities, against the slow and obvious."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.raft.quorum import VoteResult, has_majority, majority, majority_index, vote_result
from kvnode.raft.types import Index, NodeId

NODES = [NodeId(f"n{i}") for i in range(1, 8)]
voter_sets = st.sets(st.sampled_from(NODES), min_size=1).map(frozenset)
indexes = st.dictionaries(st.sampled_from(NODES), st.integers(0, 20).map(Index))
polls = st.dictionaries(st.sampled_from(NODES), st.booleans())


def majorities(voters: frozenset[NodeId]) -> list[frozenset[NodeId]]:
    return [
        frozenset(some)
        for size in range(len(voters) + 1)
        for some in combinations(sorted(voters), size)
        if 2 * size > len(voters)
    ]


@pytest.mark.parametrize(
    ("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)]
)
def test_a_majority_is_more_than_half(count: int, needed: int) -> None:
    """Raftos computed half for even sizes; two halves could then both commit."""
    assert majority(count) == needed


def test_no_voters_have_no_majority() -> None:
    with pytest.raises(AssertionError):
        majority(0)


@given(voter_sets, indexes)
def test_majority_index_is_the_highest_that_some_majority_holds(
    voters: frozenset[NodeId], held: dict[NodeId, Index]
) -> None:
    """Raft §5.3: an entry is stored on a majority. Those who are no voters do not count."""
    expected = max(min(held.get(voter, 0) for voter in some) for some in majorities(voters))
    assert majority_index(voters, held) == expected


@given(voter_sets, polls)
def test_a_poll_is_won_by_a_majority_and_lost_when_none_can_be_reached(
    voters: frozenset[NodeId], votes: dict[NodeId, bool]
) -> None:
    """Raft §5.2, by trying every way in which the open votes may still turn out."""
    can_win = any(all(votes.get(v, True) for v in some) for some in majorities(voters))
    has_won = any(all(votes.get(v, False) for v in some) for some in majorities(voters))
    expected = VoteResult.WON if has_won else VoteResult.PENDING if can_win else VoteResult.LOST
    assert vote_result(voters, votes) is expected


@given(voter_sets, st.sets(st.sampled_from(NODES)).map(frozenset))
def test_has_majority_counts_voters_only(
    voters: frozenset[NodeId], nodes: frozenset[NodeId]
) -> None:
    assert has_majority(voters, nodes) == any(some <= nodes for some in majorities(voters))


@given(voter_sets, st.sampled_from(NODES))
def test_majorities_of_memberships_that_differ_by_one_voter_overlap(
    voters: frozenset[NodeId], changed: NodeId
) -> None:
    """Thesis §4.1, figure 4.3: why one at a time needs no joint consensus."""
    other = voters ^ {changed}
    if other:
        assert all(a & b for a in majorities(voters) for b in majorities(other))


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({}, 0),
        ({"n1": 12}, 0),
        ({"n1": 12, "n2": 5}, 5),
        ({"n1": 12, "n2": 5, "n3": 6}, 6),
        ({"n1": 12, "n2": 12, "n3": 6}, 12),
        ({"n1": 100, "n2": 101, "n3": 103, "n4": 104}, 101),
        ({"n2": 101, "n3": 103, "n4": 104}, 101),
        ({"n3": 103, "n4": 104}, 0),
    ],
)
def test_commit_table(held: dict[str, int], expected: int) -> None:
    """Cases in the manner of etcd raft's quorum tables, of three or four voters."""
    count = 4 if "n4" in held else 3
    given_indexes = {NodeId(node): Index(index) for node, index in held.items()}
    assert majority_index(frozenset(NODES[:count]), given_indexes) == expected

"""Arithmetic of majorities. Pure functions over plain values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from kvnode.raft.types import Index, NodeId


class VoteResult(Enum):
    """Outcome of a poll so far."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """Return the smallest number that is more than half of ``count`` (>= 1): 2 of 3, 3 of 4."""
    assert count >= 1, "an empty voter set has no majority"
    return count // 2 + 1


def majority_index(voters: frozenset[NodeId], match_index: Mapping[NodeId, Index]) -> Index:
    """Return the highest index that a majority of ``voters`` holds durably.

    Args:
        voters: Members that count; learners excluded. Not empty.
        match_index: Highest durable index per member. A missing member counts as 0.

    Returns:
        An index; 0 when no entry is on a majority. It can be lower than an earlier answer after a
        leader change, so the caller keeps the maximum. Whether it may be *committed* is not decided
        here: the entry must also belong to the leader's term (Raft §5.4.2).
    """
    held = sorted((match_index.get(voter, Index(0)) for voter in voters), reverse=True)
    return held[majority(len(voters)) - 1]


def vote_result(voters: frozenset[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """Count a poll: ``votes`` may hold answers of nodes that do not count."""
    needed = majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    if granted >= needed:
        return VoteResult.WON
    open_votes = sum(1 for voter in voters if voter not in votes)
    return VoteResult.PENDING if granted + open_votes >= needed else VoteResult.LOST


def has_majority(voters: frozenset[NodeId], nodes: frozenset[NodeId]) -> bool:
    """Whether ``nodes`` contains a majority of ``voters``."""
    return len(voters & nodes) >= majority(len(voters))

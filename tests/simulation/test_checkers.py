"""What a checker takes for a loss, and what for a write that was under way."""

from __future__ import annotations

import pytest

from kvnode.raft.types import ZERO, Entry, EntryKind, HardState, Index, NodeId, Term
from tests.simulation.checkers import Invariants, Violation

N = NodeId("n")


def entry(index: int, term: int) -> Entry:
    return Entry(Index(index), Term(term), EntryKind.COMMAND, b"%d@%d" % (index, term))


def state(term: int) -> HardState:
    return HardState(Term(term), None)


@pytest.fixture
def invariants() -> Invariants:
    """A disk that holds 1@6, 2@7 and 3@7."""
    made = Invariants()
    made.recovered(N, state(7), ZERO, [])
    made.disk_entries(N, [entry(1, 6), entry(2, 7), entry(3, 7)])
    return made


def test_a_later_leader_may_replace_a_tail_by_older_entries(invariants: Invariants) -> None:
    invariants.disk_hard_state(N, state(9))
    invariants.disk_writing(N, [entry(2, 6), entry(3, 9)])
    invariants.recovered(N, state(9), ZERO, [entry(1, 6), entry(2, 6), entry(3, 9)])


@pytest.mark.parametrize(
    "found",
    [
        [(1, 6), (2, 7)],
        [(1, 6), (2, 6)],
        [(1, 6), (2, 6), (3, 9)],
        [(1, 6), (2, 7), (3, 9)],
        [],
    ],
)
def test_what_nobody_was_writing_is_a_loss(
    invariants: Invariants, found: list[tuple[int, int]]
) -> None:
    with pytest.raises(Violation, match="lost durable entry"):
        invariants.recovered(N, state(9), ZERO, [entry(*place) for place in found])


def test_a_write_that_was_done_explains_nothing_any_more(invariants: Invariants) -> None:
    invariants.disk_writing(N, [entry(4, 7)])
    invariants.disk_entries(N, [entry(4, 7)])
    with pytest.raises(Violation, match="lost durable entry 4@7"):
        invariants.recovered(N, state(7), ZERO, [entry(1, 6), entry(2, 7), entry(3, 7)])

"""The log in memory, against a model that is a list."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvnode.errors import InvariantBroken
from kvnode.raft.log import RaftLog, entry_bytes
from kvnode.raft.types import ZERO, Entry, EntryKind, Index, Term
from tests.raft.cluster import command, lid, log_of, membership, nid


def make(*terms: int) -> RaftLog:
    return RaftLog(ZERO, membership([1, 2, 3]), log_of(*terms))


def change(index: int, term: int, *voters: int) -> Entry:
    return Entry(Index(index), Term(term), EntryKind.MEMBERSHIP, membership(voters).encode())


# -- looking ---------------------------------------------------------------------------------------


def test_a_new_log_begins_after_its_base() -> None:
    log = RaftLog(lid(5, 2), membership([1]), [])
    assert (log.first_index, log.last_index, log.last) == (6, 5, lid(5, 2))
    assert log.term_at(Index(5)) == 2
    assert log.term_at(Index(4)) is None
    assert log.term_at(Index(6)) is None
    assert log.matches(lid(5, 2))
    assert not log.matches(lid(4, 2))


@pytest.mark.parametrize(
    "entries", [[command(2, 1)], [command(1, 1), command(3, 1)], [command(1, 2), command(2, 1)]]
)
def test_a_log_with_a_gap_or_falling_terms_is_not_woken(entries: list[Entry]) -> None:
    """What the disk holds is checked, in every build (RC-71, RC-75)."""
    with pytest.raises(InvariantBroken):
        RaftLog(ZERO, membership([1]), entries)


@pytest.mark.parametrize(
    ("last", "is_so"),
    [
        (lid(3, 2), True),
        (lid(2, 2), False),
        (lid(4, 2), True),
        (lid(1, 3), True),
        (lid(9, 1), False),
        (ZERO, False),
    ],
)
def test_up_to_date_means_later_last_term_then_longer(last, is_so: bool) -> None:  # type: ignore[no-untyped-def]
    """Raft §5.4.1, RC-12: here the log ends in 3@2."""
    assert make(1, 2, 2).is_up_to_date(last) is is_so


@pytest.mark.parametrize(
    ("index", "term", "found"),
    [
        (6, 9, lid(6, 6)),
        (99, 9, lid(6, 6)),
        (6, 5, lid(5, 4)),
        (6, 4, lid(5, 4)),
        (4, 4, lid(4, 4)),
        (6, 3, lid(3, 1)),
        (6, 0, ZERO),
        (0, 4, ZERO),
    ],
)
def test_find_conflict_gives_the_last_position_not_above_a_term(index, term, found) -> None:  # type: ignore[no-untyped-def]
    """RC-26: no later position can match a leader whose entry there has this term."""
    assert make(1, 1, 1, 4, 4, 6).find_conflict(Index(index), Term(term)) == found


def test_a_slice_is_cut_at_its_bytes_but_never_to_nothing() -> None:
    """A single entry larger than the bound must travel too."""
    log = make(1, 1, 1, 1)
    size = entry_bytes(log.slice(Index(1), Index(2), 1)[0])
    assert len(log.slice(Index(1), Index(5), 1)) == 1
    assert len(log.slice(Index(1), Index(5), 2 * size)) == 2
    assert len(log.slice(Index(1), Index(5), 2 * size - 1)) == 1
    assert len(log.slice(Index(2), Index(4), 10**9)) == 2
    assert log.slice(Index(3), Index(3), 10) == ()


# -- appending -------------------------------------------------------------------------------------


def test_only_a_real_conflict_cuts() -> None:
    """RC-23: a short, old or doubled request must not remove newer matching entries."""
    log = make(1, 1, 2, 2)
    assert log.append_after(lid(1, 1), log_of(1, 1)[1:]) == 2
    assert log.append_after(lid(2, 1), ()) == 2
    assert log.last == lid(4, 2)
    assert log.append_after(lid(2, 1), [command(3, 3)]) == 3
    assert log.last == lid(3, 3)


def test_what_does_not_match_changes_nothing() -> None:
    log = make(1, 1)
    assert log.append_after(lid(2, 2), [command(3, 2)]) is None
    assert log.append_after(lid(5, 1), [command(6, 1)]) is None
    assert log.last == lid(2, 1)


def test_committed_entries_are_never_cut() -> None:
    """RC-24: that would be a broken invariant, so the node stops; nothing is changed before."""
    log = make(1, 1, 1)
    log.commit_to(Index(2))
    with pytest.raises(InvariantBroken):
        log.append_after(lid(1, 1), [command(2, 2)])
    assert log.last == lid(3, 1)
    with pytest.raises(InvariantBroken):
        log.check_committed(lid(0, 0), [command(1, 1), command(2, 2)])
    log.check_committed(lid(0, 0), [command(1, 1), command(2, 1), command(3, 2)])
    log.check_committed(lid(1, 1), ())


def test_a_commit_index_beyond_the_log_is_reported_as_lost_entries() -> None:
    """RC-25, etcd #3504."""
    with pytest.raises(InvariantBroken, match="lost entries"):
        make(1).commit_to(Index(2))


def test_the_commit_index_only_rises() -> None:
    log = make(1, 1)
    assert log.commit_to(Index(2))
    assert not log.commit_to(Index(1))
    assert log.commit_index == 2


# -- memberships -------------------------------------------------------------------------------------


def test_a_membership_is_in_effect_when_appended_and_rolled_back_when_cut() -> None:
    """RC-42, thesis §4.1."""
    log = make(1)
    log.append(change(2, 1, 1, 2, 3, 4))
    log.append(change(3, 1, 1, 2, 3, 4, 5))
    assert log.membership == membership([1, 2, 3, 4, 5])
    assert log.membership_index == 3
    log.append_after(lid(2, 1), [command(3, 2)])
    assert log.membership == membership([1, 2, 3, 4])
    log.append_after(lid(1, 1), [command(2, 3)])
    assert log.membership == membership([1, 2, 3])
    assert log.membership_index == 0


def test_the_membership_at_an_index_survives_compaction() -> None:
    """RC-36: a snapshot carries the membership in force at its end."""
    log = RaftLog(ZERO, membership([1]), [command(1, 1), change(2, 1, 1, 2), command(3, 1)])
    log.commit_to(Index(3))
    log.take_committed(10**9)
    assert log.membership_at(Index(1)) == membership([1])
    assert log.membership_at(Index(2)) == membership([1, 2])
    assert log.compact(Index(3)) == lid(3, 1)
    assert log.membership == membership([1, 2])
    assert log.membership_index == 3


def test_a_snapshot_replaces_everything() -> None:
    """RC-37. Nothing counts as stable before the disk has taken the reset (RC-3)."""
    log = make(1, 1, 1)
    log.reset(lid(9, 4), membership([7]))
    assert (log.base, log.last, log.bytes) == (lid(9, 4), lid(9, 4), 0)
    assert log.commit_index == log.applied_index == 9
    assert log.stable_index < 9
    assert log.membership.voters == {nid(7)}
    assert log.hand_out() == ()
    log.stable_to()
    assert log.stable_index == 9


def test_a_snapshot_never_takes_the_log_back() -> None:
    log = make(1, 1)
    log.commit_to(Index(2))
    with pytest.raises(AssertionError):
        log.reset(lid(2, 1), membership([1]))


# -- the disk ------------------------------------------------------------------------------------------


def test_a_completion_counts_only_for_what_is_still_there() -> None:
    """RC-5: the same index with the same term even, written twice; the first completion is void."""
    log = make(1)
    log.append_after(lid(1, 1), [command(2, 2), command(3, 2)])
    log.hand_out()
    log.append_after(lid(1, 1), [command(2, 3)])
    log.hand_out()
    log.append_after(lid(1, 1), [command(2, 4), command(3, 4)])
    log.hand_out()
    log.stable_to()
    assert log.stable_index == 1
    log.stable_to()
    assert log.stable_index == 1
    log.stable_to()
    assert log.stable_index == 3


def test_only_what_is_stable_here_is_applied() -> None:
    """RC-10: the store never leads the log."""
    log = make(1)
    log.append(command(2, 1))
    log.append(command(3, 1))
    log.commit_to(Index(3))
    assert [e.index for e in log.take_committed(10**9)] == [1]
    log.hand_out()
    assert log.take_committed(10**9) == ()
    log.stable_to()
    assert [e.index for e in log.take_committed(1)] == [2]
    assert [e.index for e in log.take_committed(1)] == [3]


class LogModel(RuleBasedStateMachine):
    """``RaftLog`` beside a plain list, over everything that can befall it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = make()
        self.base = 0
        self.terms: list[int] = [0]
        """Terms by index, the whole history; the base's is kept."""
        self.data: dict[int, Entry] = {}
        self.commit = self.applied = 0
        self.disk: list[int] = [0]
        """Terms that the disk holds, and below the writes that are queued for it."""
        self.queue: deque[list[Entry]] = deque()
        self.version = 0

    @property
    def last(self) -> int:
        return len(self.terms) - 1

    def entry(self, index: int, term: int) -> Entry:
        self.version += 1
        return command(index, term, f"v{self.version}")

    @rule(
        at=st.integers(0, 30),
        count=st.integers(0, 4),
        rise=st.integers(0, 2),
        same=st.integers(0, 4),
    )
    def append_after(self, at: int, count: int, rise: int, same: int) -> None:
        """A leader's request: some entries that the log holds, then some new ones."""
        prev = min(max(at, self.commit), self.last)
        known = self.terms[prev + 1 : prev + 1 + same]
        old = [self.data[prev + 1 + i] for i in range(len(known))]
        start = prev + len(old)
        fresh: list[Entry] = []
        if count:
            term = max(self.terms) + 1 if start < self.last else max(1, self.terms[start]) + rise
            fresh = [self.entry(start + 1 + i, term) for i in range(count)]
        matched = self.log.append_after(lid(prev, self.terms[prev]), old + fresh)
        assert matched == prev + len(old) + len(fresh)
        if fresh:
            del self.terms[start + 1 :]
            for entry in fresh:
                self.terms.append(entry.term)
                self.data[entry.index] = entry

    @rule()
    def hand_out(self) -> None:
        self.queue.append(list(self.log.hand_out()))

    @precondition(lambda self: self.queue)
    @rule()
    def write(self) -> None:
        for entry in self.queue.popleft():
            del self.disk[entry.index :]
            self.disk.append(entry.term)
        self.log.stable_to()

    @rule(ahead=st.integers(0, 5))
    def commit_some(self, ahead: int) -> None:
        self.commit = max(self.commit, min(self.last, self.commit + ahead))
        self.log.commit_to(Index(self.commit))

    @rule(bytes_max=st.sampled_from((1, 150, 10**6)))
    def apply(self, bytes_max: int) -> None:
        for entry in self.log.take_committed(bytes_max):
            assert entry == self.data[entry.index]
            assert entry.index == self.applied + 1
            assert self.disk[entry.index] == entry.term
            self.applied = entry.index

    @rule(back=st.integers(0, 3))
    def compact(self, back: int) -> None:
        index = self.applied - back
        assume(index >= self.base)
        assert self.log.compact(Index(index)) == lid(index, self.terms[index])
        self.base = index

    @precondition(lambda self: not self.queue)
    @rule(ahead=st.integers(1, 5))
    def snapshot(self, ahead: int) -> None:
        index, term = self.commit + ahead, max(self.terms) + 1
        self.log.reset(lid(index, term), membership([1]))
        self.terms = [term] * (index + 1)
        self.disk = list(self.terms)
        self.base = self.commit = self.applied = index
        self.log.hand_out()
        self.log.stable_to()

    @invariant()
    def agrees(self) -> None:
        log = self.log
        assert (log.base.index, log.last_index) == (self.base, self.last)
        assert [e.term for e in log._entries] == self.terms[self.base + 1 :]
        assert all(e == self.data[e.index] for e in log._entries)
        assert log.bytes == sum(map(entry_bytes, log._entries))
        assert log.commit_index == self.commit
        assert log.applied_index == self.applied
        for index in range(log.stable_index, self.base, -1):
            assert self.disk[index] == self.terms[index], "claims more than the disk holds"
        assert log.handed_index >= log.stable_index
        if not self.queue and log.handed_index == log.last_index:
            assert log.stable_index == log.last_index, "all is written but not known to be"


LogModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLogModel = LogModel.TestCase

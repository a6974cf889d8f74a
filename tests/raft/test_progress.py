"""What a leader may send to one follower (RC-26, RC-68)."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvnode.raft.progress import Progress, ProgressState
from kvnode.raft.types import Index

BIG = 1 << 30


def replicating(match: int, *sent: int) -> Progress:
    progress = Progress(Index(match + 1), 0)
    progress.acknowledged(Index(match))
    progress.become_replicate()
    for last in sent:
        progress.sent(Index(last), 10, 1, 0)
    return progress


def test_a_new_follower_is_probed_with_one_message() -> None:
    """Its position is not known; a window of guesses would be thrown away."""
    progress = Progress(Index(5), 0)
    assert progress.state is ProgressState.PROBE
    assert not progress.is_paused(BIG, BIG)
    progress.sent(Index(9), 100, 5, 0)
    assert progress.is_paused(BIG, BIG)
    assert progress.next_index == 5, "a probe does not move on by itself"


def test_replicating_is_bounded_in_messages_and_in_bytes() -> None:
    """RC-68: a slow follower costs constant memory."""
    progress = replicating(3, 4, 5)
    assert progress.next_index == 6
    assert progress.is_paused(2, BIG)
    assert progress.is_paused(BIG, 20)
    assert not progress.is_paused(3, 21)


def test_an_acknowledgement_frees_the_window_up_to_its_index() -> None:
    progress = replicating(3, 4, 6, 8)
    assert progress.acknowledged(Index(6))
    assert (progress.match_index, progress.inflight_bytes) == (6, 10)
    assert list(progress.inflight) == [(8, 10)]
    assert not progress.acknowledged(Index(5)), "old news"
    assert progress.match_index == 6


def test_an_empty_message_takes_no_room() -> None:
    progress = replicating(3)
    progress.sent(Index(3), 0, 0, 0)
    assert not progress.inflight
    assert progress.next_index == 4


def test_nothing_is_sent_while_a_snapshot_is_on_its_way() -> None:
    progress = replicating(3, 4)
    progress.become_snapshot(Index(9))
    assert progress.is_paused(BIG, BIG)
    assert not progress.inflight
    progress.become_probe()
    assert progress.next_index == 10, "it holds at least what the snapshot held"


def test_a_refusal_while_replicating_probes_again_from_what_is_known() -> None:
    progress = replicating(3, 4, 6)
    assert not progress.refused(Index(3), Index(1)), "it holds 3: this is an old refusal"
    assert progress.refused(Index(6), Index(5))
    assert progress.state is ProgressState.PROBE
    assert progress.next_index == 4
    assert not progress.inflight
    assert not progress.refused(Index(6), Index(5)), "the same refusal, doubled"


def test_next_never_drops_to_what_is_held() -> None:
    """RC-26."""
    progress = Progress(Index(20), 0)
    progress.acknowledged(Index(10))
    progress.next_index = Index(20)
    assert progress.refused(Index(19), Index(3))
    assert progress.next_index == 11


def test_a_refusal_of_another_question_is_ignored_while_probing() -> None:
    progress = Progress(Index(20), 0)
    assert not progress.refused(Index(12), Index(3))
    assert progress.refused(Index(19), Index(15))
    assert progress.next_index == 15
    assert not progress.refused(Index(19), Index(8))


def test_a_hint_never_raises_next() -> None:
    """A confused hint must not skip entries that the follower lacks."""
    progress = Progress(Index(20), 0)
    progress.refused(Index(19), Index(50))
    assert progress.next_index == 19


def test_a_probe_is_repeated_once_per_interval() -> None:
    progress = Progress(Index(5), 0)
    progress.sent(Index(9), 100, 5, 7)
    progress.retry_probe(8, 2)
    assert progress.probe_sent
    progress.retry_probe(9, 2)
    assert not progress.probe_sent


def test_credit_is_no_answer() -> None:
    """RC-45."""
    progress = Progress(Index(5), 3)
    assert (progress.heard_tick, progress.answered) == (3, False)
    progress.heard(4)
    assert (progress.heard_tick, progress.answered) == (4, True)


class ProgressModel(RuleBasedStateMachine):
    """Whatever is said in whatever order: the bookkeeping stays sound."""

    def __init__(self) -> None:
        super().__init__()
        self.last = 20
        self.progress = Progress(Index(21), 0)
        self.match = 0

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        self.last += count

    @rule(count=st.integers(0, 4), size=st.integers(0, 50))
    def send(self, count: int, size: int) -> None:
        progress = self.progress
        if progress.is_paused(3, 100):
            return
        count = min(count, self.last + 1 - progress.next_index)
        progress.sent(Index(progress.next_index - 1 + count), size if count else 0, count, 0)

    @rule(index=st.integers(0, 40))
    def acknowledge(self, index: int) -> None:
        if index <= self.last:
            assert self.progress.acknowledged(Index(index)) == (index > self.match)
            self.match = max(self.match, index)
            if self.progress.state is ProgressState.PROBE:
                self.progress.become_replicate()

    @rule(prev=st.integers(0, 40), hint=st.integers(0, 40))
    def refuse(self, prev: int, hint: int) -> None:
        before = self.progress.next_index
        if self.progress.refused(Index(prev), Index(hint + 1)):
            assert not self.progress.is_paused(3, 100) or (
                self.progress.state is ProgressState.SNAPSHOT
            )
        assert self.progress.next_index <= before

    @rule(ahead=st.integers(0, 10))
    def snapshot(self, ahead: int) -> None:
        self.progress.become_snapshot(Index(min(self.last, self.match + ahead)))

    @rule()
    def probe(self) -> None:
        self.progress.become_probe()

    @invariant()
    def sound(self) -> None:
        progress = self.progress
        assert progress.match_index == self.match
        assert self.match < progress.next_index <= self.last + 1
        assert progress.inflight_bytes == sum(size for _, size in progress.inflight)
        assert len(progress.inflight) <= 3
        if progress.state is not ProgressState.REPLICATE:
            assert not progress.inflight


ProgressModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestProgressModel = ProgressModel.TestCase

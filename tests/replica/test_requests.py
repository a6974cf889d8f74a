"""The desk: every request is answered exactly once, and the answer says what became of it (RC-58)."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import LeadershipLost, NoLeader, NotLeader, Overloaded, Timeout
from kvnode.raft.types import Index, Term
from kvnode.replica.requests import IN_CORE, SENT, Desk, ReadRequest, WriteRequest
from kvnode.store.commands import KvSet, Result
from tests.replica.harness import Answers

COMMAND = KvSet(b"k", b"v")
DONE = Result(True, 1)


def write(desk: Desk, deadline: float = 7.0, *, hopped: bool = False) -> tuple[Any, Answers]:
    answers = Answers()
    request = WriteRequest(COMMAND, b"data", answers, deadline, hopped=hopped)
    desk.admit(request)
    return request, answers


def read(desk: Desk, deadline: float = 7.0, *, hopped: bool = False) -> tuple[Any, Answers]:
    answers = Answers()
    request = ReadRequest(answers, deadline, hopped=hopped)
    desk.admit(request)
    return request, answers


@pytest.fixture
def desk() -> Desk:
    return Desk(100, 1 << 20)


def propose(desk: Desk, index: int, term: int, request: WriteRequest) -> None:
    desk.take_writes()
    desk.proposed(Index(index), Term(term), request)


def test_a_request_is_answered_once_however_often_it_is_finished(desk: Desk) -> None:
    request, answers = write(desk)
    desk.finish(request, DONE)
    desk.finish(request, None, NoLeader())
    assert answers.value == DONE
    assert (desk.count, desk.bytes) == (0, 0)


def test_a_write_whose_index_a_later_write_takes_is_answered(desk: Desk) -> None:
    """Its entry was cut off under another leader; it may come back from elsewhere, so: unknown."""
    first, lost = write(desk)
    propose(desk, 12, 3, first)
    second, kept = write(desk)
    propose(desk, 12, 5, second)
    assert isinstance(lost.error, LeadershipLost)
    assert lost.effect == "unknown"
    desk.applied(Index(12), Term(5), DONE)
    assert kept.value == DONE
    assert desk.count == 0


def test_a_write_whose_place_was_committed_to_another_entry_certainly_failed(desk: Desk) -> None:
    request, answers = write(desk)
    propose(desk, 12, 3, request)
    desk.applied(Index(12), Term(4), DONE)
    assert isinstance(answers.error, LeadershipLost)
    assert answers.effect == "no"


def test_a_snapshot_over_a_write_leaves_it_unknown(desk: Desk) -> None:
    request, answers = write(desk)
    propose(desk, 12, 3, request)
    later, still = write(desk)
    propose(desk, 13, 3, later)
    desk.skipped_to(Index(12))
    assert answers.effect == "unknown"
    assert still.calls == 0


def test_deadlines_say_what_is_known_by_where_the_request_is(desk: Desk) -> None:
    queued = write(desk)[1]
    waiting = read(desk)[1]
    logged, in_log = write(desk)
    desk.writes.remove(logged)
    desk.proposed(Index(1), Term(1), logged)
    confirmed, parked = read(desk)
    desk.reads.remove(confirmed)
    desk.park(Index(9), confirmed)
    in_core, core = read(desk)
    desk.reads.remove(in_core)
    in_core.stage = IN_CORE
    desk.sweep(7.0)
    assert isinstance(queued.error, NoLeader)
    assert isinstance(waiting.error, NoLeader)
    assert isinstance(in_log.error, Timeout)
    assert in_log.effect == "unknown"
    for answers in (parked, core):
        assert isinstance(answers.error, Timeout)
        assert answers.effect == "no"
    assert desk.count == 0
    assert not desk.has_proposed
    assert desk.release(Index(9)) == []


def test_the_transport_ends_a_write_on_its_way_and_not_the_desk(desk: Desk) -> None:
    """Only the transport knows whether it may have arrived."""
    request, answers = write(desk)
    desk.writes.clear()
    request.stage = SENT
    desk.sweep(100.0)
    assert answers.calls == 0
    desk.put_back([request])
    desk.sweep(100.0)
    assert isinstance(answers.error, NoLeader)


def test_a_sweep_before_the_first_deadline_looks_at_nothing(desk: Desk) -> None:
    """20,000 may wait, and it happens several times a second."""

    class Stubborn(WriteRequest):
        @property
        def deadline(self) -> float:  # type: ignore[override]
            raise AssertionError("looked at")

        @deadline.setter
        def deadline(self, value: float) -> None: ...

    write(desk, 7.0)
    request, _ = write(desk, 7.0)
    request.__class__ = WriteRequest
    desk._open[Stubborn(COMMAND, b"", Answers(), 0.0, hopped=False)] = None
    desk.sweep(6.9)
    with pytest.raises(AssertionError):
        desk.sweep(7.0)


def test_the_earliest_deadline_is_found_anew_after_a_sweep(desk: Desk) -> None:
    answers = [write(desk, deadline)[1] for deadline in (3.0, 1.0, 2.0)]
    for now, answered in ((1.0, [0, 1, 0]), (2.0, [0, 1, 1]), (3.0, [1, 1, 1])):
        desk.sweep(now)
        assert [found.calls for found in answers] == answered


def test_what_is_put_back_waits_before_what_came_later(desk: Desk) -> None:
    first, second = write(desk)[0], write(desk)[0]
    taken = desk.take_writes()
    third = write(desk)[0]
    desk.put_back(taken)
    assert list(desk.writes) == [first, second, third]


def test_an_answered_request_is_not_put_back(desk: Desk) -> None:
    request, answers = write(desk)
    taken = desk.take_writes()
    desk.finish(request, DONE)
    desk.put_back(taken)
    assert not desk.writes
    assert answers.calls == 1


def test_hopped_requests_go_back_and_own_ones_stay_in_order(desk: Desk) -> None:
    """RC-59: one hop only."""
    own = [write(desk)[0], read(desk)[0]]
    hopped = [write(desk, hopped=True)[1], read(desk, hopped=True)[1]]
    own.append(write(desk)[0])
    desk.fail_hopped(lambda: NotLeader("x"))
    assert all(isinstance(answers.error, NotLeader) for answers in hopped)
    assert [*desk.writes, *desk.reads] == [own[0], own[2], own[1]]


def test_looking_for_hopped_requests_costs_nothing_when_there_are_none(desk: Desk) -> None:
    """Without a leader each new request causes a turn; a walk over all that wait would be quadratic."""
    write(desk)
    desk._keep = None  # type: ignore[assignment, method-assign]
    desk.fail_hopped(lambda: NotLeader("x"))


def test_the_end_answers_everything_wherever_it_is(desk: Desk) -> None:
    logged, in_log = write(desk)
    propose(desk, 1, 1, logged)
    sent, on_the_way = write(desk)
    desk.take_writes()
    sent.stage = SENT
    queued = write(desk)[1]
    core = read(desk)[1]
    desk.take_reads(IN_CORE)
    confirmed, parked = read(desk)
    desk.reads.clear()
    desk.park(Index(5), confirmed)
    waiting = read(desk)[1]
    desk.fail_all()
    assert (in_log.effect, on_the_way.effect) == ("unknown", "unknown")
    for answers in (queued, core, parked, waiting):
        assert isinstance(answers.error, NoLeader)
    assert (desk.count, desk.bytes) == (0, 0)
    desk.put_back([sent])
    assert not desk.writes


def test_after_the_end_nothing_comes_in_and_nothing_waits(desk: Desk) -> None:
    """A completion may ask again at once, while everything is being answered."""
    again: list[Exception] = []

    def done(_value: object, _error: object) -> None:
        try:
            write(desk)
        except NoLeader as error:
            again.append(error)

    desk.admit(ReadRequest(done, 7.0, hopped=False))
    desk.admit(ReadRequest(done, 7.0, hopped=False))
    desk.fail_all()
    assert len(again) == 2
    assert desk.count == 0


def test_what_comes_back_after_the_end_is_answered(desk: Desk) -> None:
    request, answers = write(desk)
    taken = desk.take_writes()
    desk._closed = True
    desk.put_back(taken)
    assert isinstance(answers.error, NoLeader)
    assert request not in desk._open


def test_bounds_in_count_and_in_bytes(desk: Desk) -> None:
    """RC-67."""
    small = Desk(2, 1 << 20)
    write(small)
    read(small)
    with pytest.raises(Overloaded):
        read(small)
    narrow = Desk(100, 260)
    write(narrow)
    with pytest.raises(Overloaded):
        write(narrow)


def test_a_completion_that_raises_hurts_nobody_else(desk: Desk) -> None:
    seen: list[BaseException] = []
    desk.callback_failed = seen.append

    def broken(_value: object, _error: object) -> None:
        raise RuntimeError("a bug in a route")

    desk.admit(ReadRequest(broken, 1.0, hopped=False))
    other = read(desk, 1.0)[1]
    desk.sweep(1.0)
    assert len(seen) == 1
    assert other.calls == 1


def test_reads_are_released_in_the_order_of_their_indexes(desk: Desk) -> None:
    for index in (5, 3, 4, 3):
        request = read(desk)[0]
        desk.park(Index(index), request)
    assert len(desk.release(Index(2))) == 0
    assert len(desk.release(Index(4))) == 3
    assert len(desk.release(Index(5))) == 1

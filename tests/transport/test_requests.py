import pytest

from kvnode.errors import LocalProtocolError, NoLeader, PeerUnreachable, Timeout
from kvnode.transport.requests import Answer, Asked


def recording():
    got = []
    return got, lambda value, error: got.append((value, error))


def test_an_answer_finds_its_request_once():
    asked = Asked()
    got, done = recording()
    number = asked.add(10.0, done)
    asked.answer(number, "yes", None)
    asked.answer(number, "again", None)
    asked.answer("nonsense", "x", None)
    assert got == [("yes", None)]
    assert len(asked) == 0


def test_only_what_is_due_expires():
    asked = Asked()
    early, done_early = recording()
    late, done_late = recording()
    asked.add(20.0, done_late)
    asked.add(10.0, done_early)
    assert asked.expire(9.9) == 0
    assert asked.expire(10.0) == 1
    assert isinstance(early[0][1], Timeout)
    assert early[0][1].took_effect == "unknown"
    assert late == []
    assert asked.expire(20.0) == 1
    assert asked.expire(1e9) == 0


def test_a_lost_connection_tells_what_may_have_arrived():
    """RC-58: only what was given to the socket is unknown."""
    asked = Asked()
    got, done = recording()
    asked.add(10.0, done)
    asked.mark_written()
    asked.add(10.0, done)
    asked.break_off("gone")
    assert [error.took_effect for _, error in got] == ["unknown", "no"]
    assert all(isinstance(error, PeerUnreachable) for _, error in got)


def test_a_completion_may_ask_again():
    """Retries happen inside completions."""
    asked = Asked()
    got, done = recording()
    asked.add(1.0, lambda v, e: asked.add(5.0, done))
    asked.add(1.0, lambda v, e: asked.add(5.0, done))
    assert asked.expire(1.0) == 2
    assert len(asked) == 2
    assert asked.expire(5.0) == 2
    assert len(got) == 2


def test_an_answer_is_given_exactly_once():
    sent = []
    answer = Answer(3, lambda *args: sent.append(args))
    answer.fail(error := NoLeader())
    with pytest.raises(LocalProtocolError):
        answer.reply(1)
    assert sent == [(3, None, error)]

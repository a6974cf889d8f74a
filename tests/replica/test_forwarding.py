"""The one hop to the leader: what goes, what comes back, what a lost answer means (RC-33, RC-58)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvnode.errors import (
    BadRequest,
    DiskNearlyFull,
    KvnodeError,
    LeadershipLost,
    NoLeader,
    NotLeader,
    Overloaded,
    PeerUnreachable,
    RemoteProtocolError,
    Timeout,
)
from kvnode.ports import Done
from kvnode.raft.types import Index, NodeId
from kvnode.replica.codec import encode
from kvnode.replica.forwarding import READ_REQUESTS_MAX, WRITE_REQUESTS_MAX, Forwarder
from kvnode.replica.requests import Desk, ReadRequest, WriteRequest
from kvnode.replica.settings import ReplicaSettings
from kvnode.store.commands import KvSet, Result
from tests.replica.harness import Answers, Cluster


class Wire:
    """Requests that wait for the test to answer them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any, float, Done[Any]]] = []

    def request(
        self, to: str, method: str, payload: Any, timeout_s: float, done: Done[Any]
    ) -> None:
        self.asked.append((to, method, payload, timeout_s, done))

    def answer(self, value: Any = None, error: KvnodeError | None = None) -> None:
        self.asked.pop(0)[4](value, error)


class Setup:
    def __init__(self) -> None:
        self.desk = Desk(1000, 1 << 20)
        self.wire = Wire()
        self.progress = 0
        settings = ReplicaSettings(forward_batch_bytes_max=100)
        self.forwarder = Forwarder(settings, self.desk, self.wire, self._on_progress)  # type: ignore[arg-type]

    def _on_progress(self) -> None:
        self.progress += 1

    def write(self, data: bytes = b"x") -> Answers:
        answers = Answers()
        self.desk.admit(WriteRequest(KvSet(b"k", b""), data, answers, 7.0, hopped=False))
        return answers

    def read(self) -> Answers:
        answers = Answers()
        self.desk.admit(ReadRequest(answers, 7.0, hopped=False))
        return answers

    def flush(self, leader: str = "L") -> None:
        self.forwarder.flush(leader)  # type: ignore[arg-type]


@pytest.fixture
def setup() -> Setup:
    return Setup()


OK = ["ok", [True, 5, 5]]
NOT_LEADER = ["not_leader", "not the leader", "no"]


def test_the_writes_of_a_turn_travel_together_within_a_bound_in_bytes(setup: Setup) -> None:
    for size in (60, 30, 30, 200, 1):
        setup.write(bytes(size))
    setup.flush()
    assert [[len(data) for data in asked[2]] for asked in setup.wire.asked] == [
        [60, 30], [30], [200], [1]
    ]  # fmt: skip


def test_each_write_gets_its_own_answer(setup: Setup) -> None:
    answers = [setup.write() for _ in range(4)]
    setup.flush()
    setup.wire.answer(
        [
            OK,
            ["overloaded", "full", "no"],
            ["leadership_lost", "lost", "unknown"],
            ["disk_nearly_full", "1 MiB free", "no"],
        ]
    )
    assert answers[0].value == Result(True, 5, 5)
    kinds = [type(found.error) for found in answers[1:]]
    assert kinds == [Overloaded, LeadershipLost, DiskNearlyFull]
    assert [found.effect for found in answers[1:]] == ["no", "unknown", "no"]


def test_certainly_not_appended_goes_back_in_order_before_what_came_later(setup: Setup) -> None:
    for name in (b"a", b"b", b"c"):
        setup.write(name)
    setup.flush()
    setup.write(b"d")
    setup.wire.answer([NOT_LEADER, OK, NOT_LEADER])
    assert [request.data for request in setup.desk.writes] == [b"a", b"c", b"d"]
    assert setup.progress == 0, "a leader that refuses at once is not asked in a hot loop"


@pytest.mark.parametrize(
    "error",
    [
        NotLeader("x"),
        PeerUnreachable("never written", took_effect="no"),
        Overloaded("too many under way"),
        NoLeader("stopping"),
    ],
)
def test_a_batch_that_was_certainly_not_taken_waits_again(setup: Setup, error: KvnodeError) -> None:
    answers = [setup.write(), setup.write()]
    setup.flush()
    setup.wire.answer(None, error)
    assert [found.calls for found in answers] == [0, 0]
    assert len(setup.desk.writes) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PeerUnreachable("broke", took_effect="unknown"), PeerUnreachable),
        (Timeout("late"), Timeout),
        (RemoteProtocolError("?"), Timeout),
    ],
)
def test_a_batch_without_an_answer_has_an_unknown_outcome(
    setup: Setup, error: KvnodeError, kind: type[KvnodeError]
) -> None:
    """RC-58: it may have been appended."""
    answers = setup.write()
    setup.flush()
    setup.wire.answer(None, error)
    assert isinstance(answers.error, kind)
    assert answers.effect == "unknown"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        [OK, OK],
        ["ok"],
        [[["ok"], "text", "no"]],
        [[5, "text", "no"]],
        [["not_leader", "text"]],
        [["ok", "no result"]],
        [["ok", [True, "five", 5]]],
        [["ok", [b"", 5, 5]]],
    ],
)
def test_an_answer_of_the_wrong_form_is_an_unknown_outcome_and_nothing_worse(
    setup: Setup, answer: Any
) -> None:
    """What a peer sends is never trusted."""
    answers = setup.write()
    setup.flush()
    setup.wire.answer(answer)
    assert answers.effect == "unknown"
    assert setup.desk.count == 0


def test_a_leader_that_does_not_answer_does_not_hold_up_the_next_one(setup: Setup) -> None:
    """A paused leader keeps a whole window for as long as its connection stands."""
    for _ in range(WRITE_REQUESTS_MAX + 1):
        setup.write(bytes(100))
    setup.flush("old")
    assert len(setup.wire.asked) == WRITE_REQUESTS_MAX
    setup.flush("old")
    assert len(setup.wire.asked) == WRITE_REQUESTS_MAX, "the window is full"
    setup.flush("new")
    assert setup.wire.asked[-1][0] == "new"
    for _ in range(WRITE_REQUESTS_MAX):
        setup.wire.answer(None, Timeout("late"))
    setup.write()
    setup.flush("new")
    assert len(setup.wire.asked) == 2


def test_reads_that_an_earlier_leader_still_has_are_asked_again(setup: Setup) -> None:
    """RC-33: retry uses a fresh request. The old one's late answer is ignored."""
    first = setup.read()
    setup.flush("old")
    second = setup.read()
    setup.flush("old")
    setup.forwarder.follow(None)
    assert len(setup.desk.reads) == 2
    setup.flush("new")  # type: ignore[arg-type]
    old, _, new = (asked[4] for asked in setup.wire.asked)
    old(3, None)
    assert setup.desk.release(Index(100)) == []
    new(9, None)
    assert setup.desk.release(Index(8)) == []
    for read in setup.desk.release(Index(9)):
        setup.desk.finish(read, "view")
    assert (first.value, second.value) == ("view", "view")


def test_reads_gather_while_two_questions_are_under_way(setup: Setup) -> None:
    for _ in range(5):
        setup.read()
        setup.flush()
    assert len(setup.wire.asked) == READ_REQUESTS_MAX
    setup.wire.answer(4, None)
    setup.flush()
    assert len(setup.wire.asked) == READ_REQUESTS_MAX
    assert not setup.desk.reads


@pytest.mark.parametrize(
    ("value", "error"), [("x", None), (-1, None), (True, None), (None, NotLeader())]
)
def test_a_read_without_a_read_index_waits_again(
    setup: Setup, value: Any, error: KvnodeError | None
) -> None:
    answers = setup.read()
    setup.flush()
    setup.wire.answer(value, error)
    assert answers.calls == 0
    assert len(setup.desk.reads) == 1


# -- both ends together ---------------------------------------------------------------------------


def ask(cluster: Cluster, sender: int, to: int, method: str, payload: Any) -> Answers:
    answers = Answers()
    machines = cluster.machines
    machines[sender].transport.request(machines[to].record.node_id, method, payload, 30.0, answers)
    return answers


def test_a_write_through_a_follower_is_applied_once_and_answered() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    answers = cluster.machines[1].write(b"k")
    cluster.until(lambda: answers.calls)
    assert answers.value.value is True
    cluster.run(0.5)
    assert all(machine.replica.store.count() == 1 for machine in cluster.machines)


def test_a_forwarded_write_is_not_forwarded_again() -> None:
    """RC-59: it comes back, and whoever forwarded it decides."""
    cluster = Cluster(3).found()
    cluster.led_by(0)
    answers = ask(cluster, 1, 2, "write", [encode(KvSet(b"k", b"v"))])
    cluster.until(lambda: answers.calls)
    assert [part[0] for part in answers.value] == ["not_leader"]
    assert answers.value[0][2] == "no"
    reads = ask(cluster, 1, 2, "read_index", None)
    cluster.until(lambda: reads.calls)
    assert isinstance(reads.error, NotLeader)


def test_one_write_that_cannot_be_taken_is_refused_alone_and_certainly() -> None:
    """They are many clients' writes; nothing of a refused one was appended."""
    cluster = Cluster(3, command_bytes_max=1000).found()
    cluster.led_by(0)
    good = encode(KvSet(b"k", b"v"))
    unknown, bad_type = msgpack.packb((99,)), msgpack.packb((1, "text", b"", 0, None))
    negative = msgpack.packb((1, b"k", b"", -1, None))
    batch = [good, bytes(2000), unknown, bad_type, negative, b"", "text", good]
    answers = ask(cluster, 1, 0, "write", batch)
    cluster.until(lambda: answers.calls)
    assert [part[0] for part in answers.value] == ["ok", *["refused"] * 6, "ok"]
    assert {part[2] for part in answers.value[1:-1]} == {"no"}
    assert cluster.machines[0].fatal is None


def test_a_refused_write_is_the_callers_fault() -> None:
    cluster = Cluster(3, command_bytes_max=1000).found()
    cluster.led_by(0)
    answers = cluster.machines[1].write(b"k", bytes(2000))
    cluster.until(lambda: answers.calls)
    assert isinstance(answers.error, BadRequest)


@pytest.mark.parametrize("payload", [None, [], "text", {}, [b"x"] * 1025])
def test_a_batch_of_the_wrong_form_is_refused(payload: Any) -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    answers = ask(cluster, 1, 0, "write", payload)
    cluster.until(lambda: answers.calls)
    assert answers.error is not None
    assert cluster.machines[0].fatal is None


def test_writes_held_back_by_a_transfer_reach_the_next_leader() -> None:
    cluster = Cluster(3).found()
    cluster.led_by(0)
    n0, n1, n2 = cluster.machines
    n0.replica.transfer_leadership(n1.record.node_id, lambda _value, _error: None)
    answers = [machine.write(machine.name.encode()) for machine in (n0, n1, n2)]
    cluster.until(lambda: all(found.calls for found in answers))
    assert [found.value.value for found in answers] == [True] * 3
    assert cluster.leader() is n1


def test_a_leader_that_falls_silent_costs_an_election_and_not_its_windows() -> None:
    """Its process is stopped, its connections stand: nobody says that anything is wrong."""
    cluster = Cluster(3, forward_batch_bytes_max=100).found()
    n0 = cluster.led_by(0)
    n1 = cluster.machines[1]
    n0.clock.pause()
    lost: list[Answers] = []
    for number in range(WRITE_REQUESTS_MAX + 4):
        lost.append(n1.write(b"%d" % number, bytes(n1.settings.forward_batch_bytes_max)))
        lost.append(n1.read())
        cluster.run(0.001)
    reads = lost[1::2]
    cluster.until(lambda: cluster.leader() not in (None, n0))
    answers = n1.write(b"after")
    began = cluster.world.now
    cluster.until(lambda: answers.calls)
    assert answers.error is None
    assert cluster.world.now - began < 1.0
    cluster.until(lambda: all(found.calls for found in reads), 1.0)
    assert all(found.error is None for found in reads)


def test_reads_that_a_silent_leader_has_are_taken_over_by_whoever_leads_next() -> None:
    """Also when nothing else is asked, and the next leader is the asking node itself."""
    cluster = Cluster(3, read_index_timeout_s=100.0).found()
    n0 = cluster.led_by(0)
    n0.clock.pause()
    n1 = cluster.machines[1]
    answers = n1.read()
    cluster.run(0.01)
    n1.replica.raft.report_unreachable(NodeId("n0"))
    cluster.until(lambda: answers.calls, 6.0)
    assert answers.error is None


def test_held_requests_fail_with_no_leader_after_the_wait() -> None:
    """Consul holds them for 7 s (spec §3)."""
    cluster = Cluster(3).found()
    cluster.run(0.1)
    n0 = cluster.machines[0]
    cluster.isolate(n0)
    began = cluster.world.now
    for found in (n0.write(b"k"), n0.read()):
        cluster.until(lambda answers=found: answers.calls)  # type: ignore[misc]
        assert isinstance(found.error, NoLeader)
        assert 7.0 <= cluster.world.now - began < 7.6

"""Sessions and locks in a cluster on virtual time: leaders come and go, and nobody loses time by it.

RC-61 and RC-62; spec §5.4, §5.5, §17 (13) and (14).
"""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import BadRequest, DiskNearlyFull, NoLeader, NotLeader, Overloaded
from kvnode.replica.codec import decode
from kvnode.replica.sessions import AGAIN, RENEWALS_PER_REQUEST_MAX
from kvnode.store.checks import check
from kvnode.store.commands import (
    KvDelete,
    KvLock,
    KvSet,
    KvUnlock,
    Problem,
    Result,
    SessionCreate,
    SessionDestroy,
    Trouble,
    Txn,
    TxnOp,
    TxnOutcome,
    Verb,
)
from kvnode.store.records import DELETE, RELEASE, Session
from tests.replica.harness import Answers, Cluster, Machine

A = "aaaaaaaa-0c4d-4a44-8e0e-5d6f3f1f0a77"
B = "bbbbbbbb-0c4d-4a44-8e0e-5d6f3f1f0a77"
SECOND = 10**9


def create(
    who: str, ttl_s: float = 10.0, delay_s: float = 15.0, node: str = "n0", **members: Any
) -> SessionCreate:
    ttl_ns = int(ttl_s * SECOND)
    command = SessionCreate(
        who, "", node, int(delay_s * SECOND), RELEASE, f"{ttl_s}s", ttl_ns, ("serfHealth",), ()
    )
    return command._replace(**members)


def done(cluster: Cluster, answers: Answers) -> Any:
    cluster.until(lambda: answers.calls)
    assert answers.error is None, answers.error
    return answers.value


def ask(cluster: Cluster, machine: Machine, command: Any) -> Any:
    return done(cluster, machine.ask(command)).value


def renew(machine: Machine, who: str) -> Answers:
    answers = Answers()
    machine.replica.renew_session(who, answers)
    return answers


@pytest.fixture
def cluster() -> Cluster:
    """Three nodes, led by the first."""
    found = Cluster(3).found()
    found.led_by(0)
    found.run(0.1)
    return found


def hand_over(cluster: Cluster, number: int) -> Machine:
    """Let another machine lead."""
    leader, successor = cluster.leader(), cluster.machines[number]
    assert leader is not None
    leader.replica.transfer_leadership(successor.record.node_id, Answers())
    cluster.until(lambda: successor.replica.is_leader and successor.replica.raft.has_term_commit)
    cluster.run(0.1)
    return successor


def sound(cluster: Cluster) -> None:
    """Everybody who runs holds the same, and it is sound."""
    cluster.run(0.5)
    running = [m for m in cluster.machines if not m.replica.stopped]
    assert len({m.replica.store.digest for m in running}) == 1
    for machine in running:
        assert check(machine.replica.store) == []


# --- the life of a session


@pytest.mark.parametrize("number", [0, 1])
def test_a_session_ends_between_its_ttl_and_a_second_after_twice_that(
    cluster: Cluster, number: int
) -> None:
    machine = cluster.machines[number]
    assert ask(cluster, machine, create(A)) is True
    assert ask(cluster, machine, KvLock(b"k", b"v", A)) is True
    born = cluster.world.now
    cluster.until(lambda: machine.replica.store.session(A) is None)
    assert 10.0 < cluster.world.now - born <= 21.0
    pair = machine.replica.store.get(b"k")
    assert pair is not None
    assert (pair.session, pair.value) == ("", b"v")
    assert cluster.machines[0].events("session_expired")[0]["session"] == A
    sound(cluster)


def test_a_session_asked_for_while_a_cluster_is_founded_lives() -> None:
    """Its entry may be applied together with the first membership, by which its node is judged."""
    cluster = Cluster(3).found()
    machine = cluster.machines[0]
    answers = machine.ask(create(A))
    machine.replica.raft.campaign()
    machine.replica.wake()
    cluster.until(lambda: machine.replica.is_leader)
    for follower in cluster.machines[1:]:
        follower.journal.queue.hold = True
    cluster.run(0.2)  # it leads, and nothing at all is committed yet
    assert not answers.calls
    for follower in cluster.machines[1:]:
        follower.journal.queue.hold = False
        follower.journal.queue.release()
    assert done(cluster, answers).value is True
    cluster.run(5.0)
    assert cluster.machines[0].replica.store.session(A) is not None


@pytest.mark.parametrize("number", [0, 1])
def test_renewals_keep_a_session_from_any_node(cluster: Cluster, number: int) -> None:
    machine = cluster.machines[number]
    ask(cluster, machine, create(A, node="n1", name="ç", service_checks=(("web", "ns"),)))
    last = machine.replica.raft.log.last_index
    for _ in range(5):
        cluster.run(9.0)
        session = done(cluster, renew(machine, A))
        assert session == machine.replica.store.session(A)
        assert isinstance(session, Session)
        assert (session.name, session.service_checks) == ("ç", (("web", "ns"),))
    assert machine.replica.raft.log.last_index == last, "a renewal is no log entry"
    cluster.run(19.0)
    assert machine.replica.store.session(A) is not None
    cluster.run(2.0)
    assert machine.replica.store.session(A) is None


@pytest.mark.parametrize("number", [0, 1])
def test_an_unknown_session_cannot_be_renewed(cluster: Cluster, number: int) -> None:
    machine = cluster.machines[number]
    assert done(cluster, renew(machine, A)) is None
    short = renew(machine, "short")
    cluster.until(lambda: short.calls)
    assert isinstance(short.error, BadRequest)


def test_a_session_made_a_moment_ago_can_be_renewed_through_a_node_that_lags(
    cluster: Cluster,
) -> None:
    """The answer comes from the leader, whole."""
    ask(cluster, cluster.machines[0], create(A))
    late = cluster.machines[2]
    late.journal.queue.hold = True
    ask(cluster, cluster.machines[0], create(B))
    session = done(cluster, renew(late, B))
    assert late.replica.store.session(B) is None
    assert session == cluster.machines[0].replica.store.session(B)


def test_a_new_leader_starts_every_time_in_full(cluster: Cluster) -> None:
    ask(cluster, cluster.machines[0], create(A))
    cluster.run(19.0)
    hand_over(cluster, 1)
    elected = cluster.world.now
    cluster.run(19.0)
    assert cluster.machines[1].replica.store.session(A) is not None
    cluster.until(lambda: cluster.machines[1].replica.store.session(A) is None)
    assert 19.5 <= cluster.world.now - elected <= 21.0
    sound(cluster)


def test_a_restarted_cluster_starts_every_time_in_full(cluster: Cluster) -> None:
    ask(cluster, cluster.machines[0], create(A))
    cluster.run(19.0)
    for machine in cluster.machines:
        machine.kill()
    for machine in cluster.machines:
        machine.start()
    cluster.until(lambda: cluster.leader() is not None)
    cluster.run(19.0)
    leader = cluster.leader()
    assert leader is not None
    assert leader.replica.store.session(A) is not None
    cluster.run(3.0)
    assert leader.replica.store.session(A) is None


def test_what_a_lost_leaders_clock_says_does_not_count(cluster: Cluster) -> None:
    """RC-61: it may go on counting, but its word is in no log."""
    old = cluster.machines[0]
    ask(cluster, old, create(A))
    cluster.run(15.0)
    cluster.isolate(old)
    cluster.until(lambda: cluster.leader() not in (None, old))
    new = cluster.leader()
    assert new is not None
    done(cluster, renew(new, A))
    cluster.run(10.0)
    cluster.network.heal()
    cluster.run(5.0)
    assert new.replica.store.session(A) is not None
    sound(cluster)


def test_an_expiry_is_not_carried_on_to_the_next_leader(cluster: Cluster) -> None:
    """RC-61: the next leader's clock has just begun."""
    old = cluster.machines[0]
    ask(cluster, old, create(A))
    cluster.run(0.1)
    old.replica.sessions._end(A)
    old.replica.raft.transfer_leadership(cluster.machines[1].record.node_id)
    cluster.until(lambda: cluster.machines[1].replica.is_leader)
    cluster.run(5.0)
    assert old.replica.store.session(A) is not None


def test_a_leader_that_cannot_be_confirmed_renews_nothing(cluster: Cluster) -> None:
    """RC-61: others may lead by now."""
    old = cluster.machines[0]
    ask(cluster, old, create(A))
    cluster.isolate(old)
    answers = renew(old, A)
    cluster.run(0.5)
    assert not answers.calls
    cluster.until(lambda: answers.calls)
    assert isinstance(answers.error, NoLeader)
    assert answers.effect == "no"


def test_a_renewal_waits_for_the_next_leader(cluster: Cluster) -> None:
    """Spec §3: up to seven seconds."""
    ask(cluster, cluster.machines[0], create(A, node="n1"))
    cluster.machines[0].kill()
    waiting = [renew(cluster.machines[number], A) for number in (1, 2)]
    for answers in waiting:
        cluster.until(lambda answers=answers: answers.calls)
        assert answers.error is None
        assert isinstance(answers.value, Session)


def test_without_a_leader_a_renewal_says_so_in_the_end(cluster: Cluster) -> None:
    cluster.machines[0].kill()
    cluster.machines[1].kill()
    began = cluster.world.now
    answers = renew(cluster.machines[2], A)
    cluster.until(lambda: answers.calls)
    assert isinstance(answers.error, NoLeader)
    assert str(answers.error) == "No cluster leader"
    assert 6.9 <= cluster.world.now - began <= 8.0


def test_many_renewals_share_rounds_and_frames(cluster: Cluster) -> None:
    ids = [f"{number:08d}{A[8:]}" for number in range(RENEWALS_PER_REQUEST_MAX + 40)]
    leader, follower = cluster.machines[:2]
    for who in ids:
        leader.ask(create(who))
    cluster.run(0.5)
    asked: list[str] = []
    request = follower.transport.request

    def count(to: Any, method: str, *rest: Any) -> None:
        asked.append(method)
        request(to, method, *rest)

    follower.transport.request = count  # type: ignore[method-assign]
    waiting = [renew(follower, who) for who in ids] + [renew(follower, A)]
    cluster.until(lambda: all(answers.calls for answers in waiting))
    assert [answers.value and answers.value.session_id for answers in waiting] == [*ids, None]
    assert asked.count("renew") == 2
    assert follower.replica.sessions.open_renewals == 0


def test_renewals_are_bounded(cluster: Cluster) -> None:
    """RC-67."""
    small = Cluster(1, waiting_requests_max=3).found()
    machine = small.machines[0]
    waiting = [renew(machine, A) for _ in range(4)]
    small.until(lambda: all(answers.calls for answers in waiting))
    assert [type(answers.error) for answers in waiting] == [*[type(None)] * 3, Overloaded]


def test_large_sessions_are_answered_a_few_at_a_time(cluster: Cluster) -> None:
    """What does not fit into one frame is asked for again."""
    leader, follower = cluster.machines[:2]
    ids = [f"{number:08d}{A[8:]}" for number in range(5)]
    for who in ids:
        ask(cluster, leader, create(who, name="x" * 500_000))
    cluster.run(0.5)
    whole = Answers()
    leader.replica.sessions.serve(ids, whole)
    assert [item is AGAIN for item in done(cluster, whole)] == [*[False] * 3, True, True]
    waiting = [renew(follower, who) for who in ids]
    cluster.until(lambda: all(answers.calls for answers in waiting))
    assert [answers.value.session_id for answers in waiting] == ids


def test_a_stopping_node_leaves_no_renewal_open(cluster: Cluster) -> None:
    cluster.machines[0].kill()
    cluster.machines[1].kill()
    machine = cluster.machines[2]
    waiting, stopped = renew(machine, A), Answers()
    machine.replica.stop(lambda: stopped(None, None))
    cluster.until(lambda: stopped.calls)
    cluster.run(0.1)
    assert isinstance(waiting.error, NoLeader)
    late = renew(machine, A)
    cluster.run(0.1)
    assert isinstance(late.error, NoLeader)


@pytest.mark.parametrize(
    "payload", [None, [], "text", ["short"], [A, 5], [A] * (RENEWALS_PER_REQUEST_MAX + 1)]
)
def test_forwarded_renewals_of_the_wrong_form_are_refused(cluster: Cluster, payload: Any) -> None:
    answers = Answers()
    cluster.machines[0].replica.sessions.serve(payload, answers)
    assert answers.error is not None
    hop = Answers()
    cluster.machines[1].replica.sessions.serve([A], hop)
    assert isinstance(hop.error, NotLeader)


@pytest.mark.parametrize(
    "item", [5, "text", [A], [A, *[None] * 10], [A, "", "", 0, 0, "", 0, [], [], "1", 1]]
)
def test_an_answer_that_is_no_session_fails_its_renewal_alone(cluster: Cluster, item: Any) -> None:
    follower = cluster.machines[1]
    good = [A, "", "n", 0, 0, "", 0, ["c"], [["s", ""]], 4, 4]
    answered: list[Any] = []
    follower.transport.request = (  # type: ignore[method-assign]
        lambda _to, _method, _payload, _timeout, done: answered.append(done)
    )
    first, second = renew(follower, A), renew(follower, B)
    cluster.until(lambda: answered)
    answered[0]([item, good], None)
    assert first.error is not None
    assert second.value == Session(A, "", "n", 0, 0, "", 0, ("c",), (("s", ""),), 4, 4)
    third = renew(follower, A)
    cluster.until(lambda: len(answered) == 2)
    answered[1]([AGAIN], None)
    cluster.until(lambda: len(answered) == 3)
    answered[2]({"no": "list"}, None)
    cluster.until(lambda: len(answered) == 4)
    answered[3]([None], None)
    assert (third.calls, third.value, third.error) == (1, None, None)


# --- the node that a session belongs to


def test_a_silent_node_ends_no_session_and_a_removed_one_does(cluster: Cluster) -> None:
    """docs/http.md: only what is certain ends a session before its time."""
    leader = cluster.machines[0]
    ask(cluster, leader, create(A, 0.0, node="n2"))
    ask(cluster, leader, create(B, 0.0, node="n2", node_checks=()))
    cluster.machines[2].kill()
    cluster.run(60.0)
    assert leader.replica.store.session(A) is not None
    removed = Answers()
    leader.replica.remove_member(cluster.machines[2].record.node_id, removed)
    cluster.until(lambda: removed.calls)
    cluster.run(1.0)
    assert leader.replica.store.session(A) is None
    assert leader.replica.store.session(B) is not None
    sound(cluster)


# --- lock-delay


def locked_and_lost(cluster: Cluster, delay_s: float = 15.0, behavior: int = RELEASE) -> float:
    """A held ``k`` and was destroyed, B waits for it; returns when."""
    leader = cluster.leader()
    assert leader is not None
    ask(cluster, leader, create(A, 3600.0, delay_s, behavior=behavior))
    ask(cluster, leader, create(B, 3600.0))
    assert ask(cluster, leader, KvLock(b"k", b"a", A)) is True
    assert ask(cluster, leader, KvLock(b"k", b"b", B)) is False
    assert ask(cluster, leader, SessionDestroy(A)) is True
    return cluster.world.now


@pytest.mark.parametrize("behavior", [RELEASE, DELETE])
@pytest.mark.parametrize("number", [0, 1])
def test_nobody_locks_a_key_during_its_lock_delay(
    cluster: Cluster, number: int, behavior: int
) -> None:
    """Spec §5.5: through any node, and also when the key was deleted with its session."""
    ended = locked_and_lost(cluster, behavior=behavior)
    machine = cluster.machines[number]
    last = machine.replica.raft.log.last_index
    assert ask(cluster, machine, KvLock(b"k", b"b", B)) is False
    outcome = ask(cluster, machine, Txn((TxnOp(Verb.LOCK, b"k", session=B),), 0))
    assert outcome == TxnOutcome((), (Problem(0, Trouble.LOCK_DELAY),))
    assert machine.replica.raft.log.last_index == last, "it is decided before the log"
    cluster.run(ended + 14.9 - cluster.world.now)
    assert ask(cluster, machine, KvLock(b"k", b"b", B)) is False
    cluster.run(0.2)
    assert ask(cluster, machine, KvLock(b"k", b"b", B)) is True
    sound(cluster)


def test_a_plain_write_needs_no_lock_and_a_clean_release_starts_no_delay(cluster: Cluster) -> None:
    locked_and_lost(cluster)
    machine = cluster.machines[1]
    assert ask(cluster, machine, KvSet(b"k", b"x")) is True
    assert ask(cluster, machine, KvDelete(b"k")) is True
    assert ask(cluster, machine, KvLock(b"other", b"", B)) is True
    assert ask(cluster, machine, KvUnlock(b"other", b"", B)) is True
    assert ask(cluster, machine, create(A, 3600.0)) is True
    assert ask(cluster, machine, KvLock(b"other", b"", A)) is True


def test_a_lock_delay_survives_leader_changes(cluster: Cluster) -> None:
    """Spec §5.5, RC-62: and is not begun anew by them, since every node counts."""
    ended = locked_and_lost(cluster)
    cluster.run(5.0)
    hand_over(cluster, 1)
    assert ask(cluster, cluster.machines[1], KvLock(b"k", b"b", B)) is False
    cluster.run(4.0)
    hand_over(cluster, 2)
    cluster.run(ended + 14.8 - cluster.world.now)
    assert ask(cluster, cluster.machines[0], KvLock(b"k", b"b", B)) is False
    cluster.run(0.3)
    assert ask(cluster, cluster.machines[0], KvLock(b"k", b"b", B)) is True


def test_a_lock_delay_is_lengthened_by_a_restart_and_never_shortened(cluster: Cluster) -> None:
    """Spec §16: Consul forgets it."""
    ended = locked_and_lost(cluster)
    cluster.run(10.0)
    for machine in cluster.machines:
        machine.kill()
    for machine in cluster.machines:
        machine.start()
    began = cluster.world.now
    cluster.until(lambda: cluster.leader() is not None)
    leader = cluster.leader()
    assert leader is not None
    cluster.run(ended + 15.1 - cluster.world.now)
    assert ask(cluster, leader, KvLock(b"k", b"b", B)) is False
    cluster.run(began + 15.1 - cluster.world.now)
    assert ask(cluster, leader, KvLock(b"k", b"b", B)) is True


def test_a_lock_delay_survives_a_snapshot() -> None:
    """RC-62: a node that got its state whole leads afterwards."""
    cluster = Cluster(3, log_entries_max=10).found()
    leader, late = cluster.led_by(0), cluster.machines[2]
    cluster.run(0.1)
    cluster.isolate(late)
    ended = locked_and_lost(cluster)
    for number in range(40):
        leader.write(b"%d" % number)
    cluster.until(lambda: leader.replica.raft.log.base.index > 30)
    cluster.network.heal()
    cluster.until(lambda: late.replica.store.digest == leader.replica.store.digest)
    assert "commit" in late.snapshots.log
    cluster.run(0.5)
    hand_over(cluster, 2)
    assert ask(cluster, late, KvLock(b"k", b"b", B)) is False
    cluster.run(ended + 14.9 - cluster.world.now)
    assert ask(cluster, late, KvLock(b"k", b"b", B)) is False
    cluster.run(15.0)
    assert ask(cluster, late, KvLock(b"k", b"b", B)) is True
    sound(cluster)


def test_a_lock_proposed_beside_the_end_of_a_session_is_refused(cluster: Cluster) -> None:
    """The leader judges when it proposes; the end is in its log, and not applied yet."""
    leader = cluster.machines[0]
    ask(cluster, leader, create(A, 3600.0))
    ask(cluster, leader, create(B, 3600.0))
    ask(cluster, leader, KvLock(b"k", b"a", A))
    leader.ask(SessionDestroy(A))
    lock = leader.ask(KvLock(b"k", b"b", B))
    assert done(cluster, lock).value is False
    pair = leader.replica.store.get(b"k")
    assert pair is not None
    assert (pair.session, pair.value) == ("", b"a")


def test_what_a_follower_says_about_lock_delays_does_not_count(cluster: Cluster) -> None:
    """A lock is stamped by the leader that proposes it, whatever stands in what was forwarded."""
    locked_and_lost(cluster)
    follower = cluster.machines[1]
    assert ask(cluster, follower, KvLock(b"k", b"b", B, as_of=2**60)) is False
    cluster.run(16.0)
    assert ask(cluster, follower, KvLock(b"k", b"b", B, as_of=0)) is True
    entry = cluster.machines[0].replica.raft.log.last_index
    applied = decode(cluster.machines[2].entries[-1].data)
    assert isinstance(applied, KvLock)
    assert applied.as_of == entry - 1


def test_lock_delays_are_forgotten_when_they_are_over(cluster: Cluster) -> None:
    locked_and_lost(cluster, 0.5)
    cluster.run(0.5)
    store = cluster.machines[2].replica.store
    assert store.lock_delay(b"k") is not None
    cluster.run(65.0)
    assert store.lock_delay(b"k") is None
    sound(cluster)


# --- transactions


@pytest.mark.parametrize("number", [0, 1])
def test_a_transaction_answers_alike_through_every_node(cluster: Cluster, number: int) -> None:
    machine = cluster.machines[number]
    ask(cluster, machine, KvSet(b"a", b"1"))
    ops = (TxnOp(Verb.SET, b"b", b"2"), TxnOp(Verb.GET_TREE, b""))
    result = done(cluster, machine.ask(Txn(ops, 1000)))
    assert isinstance(result, Result)
    assert isinstance(result.value, TxnOutcome)
    assert [(p.key, p.value) for p in result.value.pairs] == [
        (b"b", b""),
        (b"a", b"1"),
        (b"b", b"2"),
    ]
    failed = ask(cluster, machine, Txn((*ops, TxnOp(Verb.CHECK_NOT_EXISTS, b"a")), 1000))
    assert failed == TxnOutcome((), (Problem(2, Trouble.KEY_EXISTS),))


def test_large_answers_of_forwarded_transactions_do_not_share_a_frame(cluster: Cluster) -> None:
    """Each may fill most of one."""
    follower = cluster.machines[1]
    for number in range(8):
        ask(cluster, follower, KvSet(b"large/%d" % number, bytes(400_000)))
    txn = Txn((TxnOp(Verb.SET, b"x"), TxnOp(Verb.GET_TREE, b"large/")), 4 << 20)
    waiting = [follower.ask(txn) for _ in range(5)]
    for answers in waiting:
        assert len(done(cluster, answers).value.pairs) == 9


def test_a_full_disk_refuses_locks_and_sessions_and_lets_go_of_them(cluster: Cluster) -> None:
    """RC-70."""
    leader = cluster.machines[0]
    ask(cluster, leader, create(A))
    ask(cluster, leader, KvLock(b"k", b"", A))
    leader.replica.write_refusal = "1 MiB is left"
    for command in (
        create(B),
        KvLock(b"k", b"", A),
        Txn((TxnOp(Verb.DELETE, b"k"), TxnOp(Verb.SET, b"k")), 0),
    ):
        answers = leader.ask(command)
        cluster.until(lambda answers=answers: answers.calls)
        assert isinstance(answers.error, DiskNearlyFull)
    assert done(cluster, renew(leader, A)) is not None
    assert ask(cluster, leader, Txn((TxnOp(Verb.DELETE, b"x"),), 0)) == TxnOutcome((), ())
    assert ask(cluster, leader, KvUnlock(b"k", b"", A)) is True
    cluster.run(25.0)
    assert leader.replica.store.session(A) is None

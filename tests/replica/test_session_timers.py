"""The leader's clocks of sessions: never too early, not much too late (spec §5.4, RC-61)."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from kvnode.replica.session_timers import ENDS_AT_ONCE, WALK_AT_ONCE, SessionTimers
from kvnode.store.commands import Command, SessionCreate, SessionDestroy
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import RELEASE
from kvnode.store.store import Store

SECOND = 10**9
TICK_S = 0.05


def name(number: int) -> str:
    return f"{number:08d}-0c4d-4a44-8e0e-5d6f3f1f0a77"


class Leader:
    """A store, a clock in ticks, and the timers; an end is applied at once unless ``refuse`` is set."""

    def __init__(self) -> None:
        self.now = 500.0
        self.store = Store(MemoryEngine())
        self.members = {"n1"}
        self.ends: list[tuple[float, str]] = []
        self.refuse = False
        self.timers = SessionTimers(self.store, self.end, lambda node: node in self.members)
        self.store.on_session = lambda _index, who, session: (
            self.timers.began(session) if session is not None else self.timers.ended(who)
        )
        self.timers.begin(self.now)

    def apply(self, *commands: Command) -> None:
        first = self.store.applied_index + 1
        self.store.apply_batch(list(enumerate(commands, first)))

    def create(self, number: int, ttl_s: float = 10.0, node: str = "n1", *checks: str) -> str:
        ttl_ns = int(ttl_s * SECOND)
        self.apply(SessionCreate(name(number), "", node, 0, RELEASE, "", ttl_ns, checks, ()))
        return name(number)

    def end(self, session_id: str) -> None:
        self.ends.append((round(self.now, 6), session_id))
        if self.refuse:
            self.timers.failed(session_id)
        else:
            self.apply(SessionDestroy(session_id))

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            each()
            self.timers.run(self.now)


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_a_session_ends_at_twice_its_ttl(leader: Leader) -> None:
    """Spec §5.4, §17 (14): in (TTL, 2 TTL + 1 s]."""
    who = leader.create(1)
    leader.run(19.9)
    assert leader.ends == []
    leader.run(0.2)
    assert [ended for _, ended in leader.ends] == [who]
    assert 520.0 <= leader.ends[0][0] <= 520.1
    assert leader.store.session(who) is None


def test_a_renewal_gives_the_whole_time_again(leader: Leader) -> None:
    who = leader.create(1)
    for _ in range(10):
        leader.run(19.0)
        renewed = leader.timers.renew(who)
        assert renewed is not None
        assert renewed.session_id == who
    assert leader.ends == []
    leader.run(19.9)
    assert leader.ends == []
    leader.run(0.2)
    assert len(leader.ends) == 1


def test_a_session_without_ttl_never_ends_by_itself(leader: Leader) -> None:
    who = leader.create(1, 0.0, "n1", "serfHealth")
    leader.run(1000.0)
    assert leader.ends == []
    assert leader.timers.renew(who) is not None


def test_a_session_that_does_not_exist_is_not_renewed(leader: Leader) -> None:
    assert leader.timers.renew(name(9)) is None


def test_a_destroyed_session_is_forgotten(leader: Leader) -> None:
    who = leader.create(1)
    leader.apply(SessionDestroy(who))
    leader.run(30.0)
    assert leader.ends == []


def test_an_end_that_failed_is_proposed_again_until_it_is_applied(leader: Leader) -> None:
    leader.create(1)
    leader.refuse = True
    leader.run(25.0)
    assert 4 <= len(leader.ends) <= 6
    leader.refuse = False
    leader.run(2.0)
    count = len(leader.ends)
    assert leader.store.session(name(1)) is None
    leader.run(30.0)
    assert len(leader.ends) == count


def test_nobody_is_promised_a_session_whose_end_is_under_way() -> None:
    """The end may be committed at any moment; a renewal before it would have been a lie."""
    leader = Leader()
    who = leader.create(1)
    leader.end = lambda session_id: leader.ends.append((leader.now, session_id))  # type: ignore[method-assign]
    leader.timers._end = leader.end
    leader.run(20.1)
    assert leader.store.session(who) is not None
    assert leader.timers.renew(who) is None
    leader.timers.failed(who)
    assert leader.timers.renew(who) is not None, "it goes on, and may be renewed again"


def test_a_new_leader_starts_every_clock_in_full(leader: Leader) -> None:
    for number in range(3):
        leader.create(number)
    leader.run(19.0)
    leader.timers.stop()
    leader.now += 5.0
    leader.timers.begin(leader.now)
    leader.run(19.9)
    assert leader.ends == []
    leader.run(0.3)
    assert len(leader.ends) == 3


def test_a_follower_ends_nothing(leader: Leader) -> None:
    leader.create(1)
    leader.timers.stop()
    leader.run(100.0)
    assert leader.ends == []


def test_a_pause_of_the_leader_is_not_counted(leader: Leader) -> None:
    """Renewals were waiting outside meanwhile."""
    leader.create(1)
    leader.run(10.0)
    leader.now += 60.0
    leader.timers.run(leader.now)
    leader.run(8.5)
    assert leader.ends == []
    leader.run(1.0)
    assert len(leader.ends) == 1


def test_many_sessions_are_taken_on_a_few_at_a_time(leader: Leader) -> None:
    """A new leader must not stand still over them; who is looked at late lives longer."""
    count = 3 * WALK_AT_ONCE + 7
    for number in range(count):
        leader.create(number)
    leader.timers.begin(leader.now)
    leader.timers.run(leader.now)
    assert len(leader.timers._deadlines) == WALK_AT_ONCE
    leader.run(19.9)
    assert leader.ends == []
    ticks: list[int] = []
    leader.run(1.0, lambda: ticks.append(len(leader.ends)))
    assert max(after - before for before, after in pairwise(ticks)) <= (ENDS_AT_ONCE)
    assert len(leader.ends) == count
    assert leader.timers._deadlines == {}


def test_a_session_whose_node_left_ends_unless_it_does_not_depend_on_it(leader: Leader) -> None:
    """docs/http.md: silence ends nothing, removal does."""
    leader.members.add("n2")
    bound = leader.create(1, 0.0, "n2", "serfHealth")
    bound_with_ttl = leader.create(2, 10.0, "n2", "serfHealth")
    free = leader.create(3, 10.0, "n2")
    other = leader.create(4, 10.0, "n1", "serfHealth")
    leader.run(5.0)
    assert leader.ends == []
    leader.members.remove("n2")
    leader.timers.members_changed()
    leader.run(0.2)
    assert sorted(ended for _, ended in leader.ends) == [bound, bound_with_ttl]
    assert leader.timers.renew(free) is not None
    assert leader.timers.renew(other) is not None


def test_a_session_that_was_made_for_a_node_that_is_gone_ends_at_once(leader: Leader) -> None:
    who = leader.create(1, 0.0, "gone", "serfHealth")
    leader.run(0.1)
    assert [ended for _, ended in leader.ends] == [who]


def test_clocks_of_sessions_that_come_and_go_do_not_pile_up(leader: Leader) -> None:
    """RC-67: a day's TTL must not keep a place for a day."""
    for number in range(5000):
        leader.create(number, 86_400.0)
        leader.apply(SessionDestroy(name(number)))
    assert len(leader.timers._heap) <= 1001
    leader.create(9999)
    leader.run(20.1)
    assert len(leader.ends) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_session_ever_ends_before_its_time(seed: int) -> None:
    """Whatever is made, renewed, destroyed, paused and handed over in between."""
    rng = random.Random(seed)
    leader = Leader()
    promised: dict[str, float] = {}
    handed_over = False
    early: list[str] = []
    apply_end = leader.timers._end

    def end(who: str) -> None:
        # A renewal between two ticks counts from the one before.
        if leader.now < promised[who] - 2 * TICK_S:
            early.append(who)
        apply_end(who)

    leader.timers._end = end

    def something() -> None:
        nonlocal handed_over
        what = rng.random()
        known = sorted(promised)
        if what < 0.03:
            ttl = rng.choice((0.5, 1.0, 3.0))
            promised[leader.create(len(promised) + 1, ttl)] = leader.now + 2 * ttl
        elif what < 0.2 and known:
            session = leader.timers.renew(rng.choice(known))
            if session is not None:
                promised[session.session_id] = leader.now + 2 * session.ttl_ns / SECOND
        elif what < 0.21 and known:
            leader.apply(SessionDestroy(rng.choice(known)))
        elif what < 0.22:
            leader.now += rng.uniform(0, 5)
        elif what < 0.23:
            handed_over = True
            leader.timers.begin(leader.now)
        leader.refuse = rng.random() < 0.1

    leader.run(120.0, something)
    leader.refuse = False
    leader.run(30.0)
    assert not leader.store.sessions(), "in the end nobody renews, and all are gone"
    assert early == []
    assert len(leader.ends) > 10
    assert handed_over

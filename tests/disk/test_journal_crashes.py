"""Every place where the machine can stop or the disk can fail, one after the other."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from kvnode.disk.journal import Compact, JournalCore, Operation, Reset, Save, open_journal
from kvnode.errors import DiskFailed
from kvnode.ports import LogBase, Recovered
from kvnode.raft.types import (
    ZERO,
    Entry,
    EntryKind,
    HardState,
    Index,
    LogId,
    Member,
    Membership,
    NodeId,
    Term,
)
from tests.disk.crash_disk import CrashDisk, MachineStopped

EMPTY = Recovered(HardState(Term(0), None), LogBase(ZERO, Membership()), [])
MEMBERSHIP = Membership(
    voters=frozenset({NodeId("a")}), members=(Member(NodeId("a"), "n-0", "h:1"),)
)


def entry(index: int, term: int, size: int, seed: int) -> Entry:
    data = random.Random(f"{index}/{term}/{seed}").randbytes(size)
    if seed % 3 == 0:
        data = bytes(size)  # whole sectors of zeros, as a lost sector has them
    return Entry(Index(index), Term(term), EntryKind.COMMAND, data)


def after(state: Recovered, operation: Operation) -> Recovered:
    """The model: what an operation makes of a state."""
    match operation:
        case Save(hard_state, entries):
            kept = state.entries
            if entries:
                kept = [*kept[: entries[0].index - state.base.last.index - 1], *entries]
            return Recovered(hard_state or state.hard_state, state.base, kept)
        case Compact(base):
            kept = state.entries[base.last.index - state.base.last.index :]
            return Recovered(state.hard_state, base, kept)
        case Reset(base):
            return Recovered(state.hard_state, base, [])


def story(seed: int, length: int) -> list[tuple[list[Operation], list[Recovered]]]:
    """Groups of operations that a node could do, each with the states that may follow it.

    The last state is the one after all of the group; those before it may be left by a crash.
    """
    rng = random.Random(seed)
    state = EMPTY
    groups = []
    for step in range(length):
        allowed = [state]
        group: list[Operation] = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            operation = _operation(rng, state, step)
            if isinstance(operation, Save) and operation.hard_state is not None:
                # The hard state is synced first, the entries of all joined saves afterwards.
                allowed += [s._replace(hard_state=operation.hard_state) for s in allowed]
            state = after(state, operation)
            allowed.append(state)
            group.append(operation)
        groups.append((group, allowed))
    return groups


def _operation(rng: random.Random, state: Recovered, step: int) -> Operation:
    hard, base, entries = state
    last = base.last.index + len(entries)
    dice = rng.random()
    if dice < 0.2 or hard.term == 0:
        hard = HardState(Term(hard.term + 1), rng.choice([None, NodeId("b")]))
        if dice < 0.1 or hard.term == 1:
            return Save(hard, [])
        return Save(hard, [entry(last + 1, hard.term, 700, step)])
    if dice < 0.3 and entries:
        return Compact(LogBase(rng.choice(entries).id, MEMBERSHIP))
    if dice < 0.37:
        return Reset(LogBase(LogId(Index(last + rng.randrange(5)), hard.term), MEMBERSHIP))
    first = last + 1
    if dice < 0.5 and entries:
        # Replaces entries of the current or an earlier term by entries of a new one.
        first = rng.choice(entries).index
        hard = HardState(Term(hard.term + 1), None)
    count = rng.choice([1, 2, 5])
    size = rng.choice([0, 10, 470, 3000, 9000])
    new_hard = hard if hard != state.hard_state else None
    return Save(new_hard, [entry(first + k, hard.term, size, step) for k in range(count)])


class Outcome(NamedTuple):
    allowed: list[Recovered]
    opened: bool
    stopped: bool


def play(disk: CrashDisk, groups: list[tuple[list[Operation], list[Recovered]]]) -> Outcome:
    """Run until the end, or until the disk stops it. Says which states may be found then."""
    allowed = [EMPTY]
    opened = False
    core: JournalCore | None = None
    try:
        core, found = open_journal(disk, "/d/raft", fresh=True)
        opened = True
        assert found == EMPTY
        for group, states in groups:
            allowed = states
            core.run(group)
            allowed = states[-1:]
            core.maintain()
            if len(group) == 1:
                core.rest()
        return Outcome(allowed, opened, stopped=core.failure is not None)
    except MachineStopped:
        return Outcome(allowed, opened, stopped=True)
    except DiskFailed:
        if core is not None:
            with pytest.raises(DiskFailed) as again:
                core.run(groups[0][0])
            assert again.value is core.failure, "every later call fails with the same error"
            core.maintain()
            core.rest()
        return Outcome(allowed, opened, stopped=True)


def reopen(disk: CrashDisk, *, opened: bool) -> tuple[JournalCore, Recovered]:
    return open_journal(disk, "/d/raft", fresh=not opened)


def assert_goes_on(disk: CrashDisk, allowed: list[Recovered], opened: bool) -> None:
    """Open, see a state that is allowed, and find the log usable: also after one more crash."""
    core, found = reopen(disk, opened=opened)
    assert found in allowed
    core.close()
    disk.crash()  # what was read back must be durable already
    core, again = reopen(disk, opened=True)
    assert again == found
    term = Term(found.hard_state.term + 1)
    last = found.base.last.index + len(found.entries)
    save = Save(HardState(term, NodeId("z")), [entry(last + k, term, 900, 1) for k in (1, 2)])
    core.run([save])
    core.close()
    disk.crash()
    _, found = reopen(disk, opened=True)
    assert found == after(again, save)


def operations_of(groups: list[tuple[list[Operation], list[Recovered]]]) -> int:
    disk = CrashDisk(capacity=1 << 20)
    assert not play(disk, groups).stopped
    return disk.operations


@pytest.mark.parametrize("seed", range(3))
def test_after_a_crash_at_any_operation_the_old_or_the_new_state_is_found(seed: int) -> None:
    """RC-1, RC-9, RC-37, RC-71: no gap, nothing acknowledged lost, nothing half."""
    groups = story(seed, 25)
    for at in range(1, operations_of(groups) + 1):
        disk = CrashDisk(seed=at, capacity=1 << 20)
        disk.crash_at = at
        outcome = play(disk, groups)
        assert outcome.stopped
        if at % 3 == 0:
            disk.kill()  # only the process died: unsynced data are still to be seen
        else:
            disk.crash()
        assert_goes_on(disk, outcome.allowed, outcome.opened)


@pytest.mark.parametrize("seed", range(3))
def test_after_a_failed_operation_nothing_is_written_and_a_restart_decides(seed: int) -> None:
    """RC-8: a failed sync is never tried again, and what it left in doubt is not believed."""
    groups = story(100 + seed, 25)
    for at in range(1, operations_of(groups) + 1):
        disk = CrashDisk(seed=at, capacity=1 << 20)
        disk.fail_at = at
        outcome = play(disk, groups)
        assert outcome.stopped
        assert disk.after_failure == 0
        if at % 2:
            disk.kill()
        else:
            disk.crash()
        assert_goes_on(disk, outcome.allowed, outcome.opened)


@pytest.mark.parametrize("seed", range(2))
def test_a_crash_while_opening_loses_nothing(seed: int) -> None:
    """Recovery itself repairs torn tails and copies; it may be cut off anywhere, again and again."""
    groups = story(200 + seed, 12)
    total = operations_of(groups)
    for at in range(3, total, 4):
        disk = CrashDisk(seed=at, capacity=1 << 20)
        disk.crash_at = at
        outcome = play(disk, groups)
        disk.crash()
        for step in range(1, 40):
            disk.crash_at = step
            try:
                core, found = reopen(disk, opened=outcome.opened)
            except MachineStopped:
                disk.crash()
                continue
            assert found in outcome.allowed
            core.close()
            break
        else:
            pytest.fail("opening never ends")
        disk.crash()
        assert_goes_on(disk, outcome.allowed, outcome.opened)

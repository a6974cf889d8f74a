"""Laws of ``kvnode.disk.journal``; crashes have their own file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvnode.disk import journal as journal_module
from kvnode.disk.files import SECTOR, OsFileSystem
from kvnode.disk.journal import (
    Compact,
    JournalCore,
    Operation,
    Reset,
    Save,
    ThreadJournal,
    open_journal,
)
from kvnode.errors import CorruptLog, DirectoryInUse, DiskFailed, InvariantBroken, KvnodeError
from kvnode.ports import Journal, LogBase, Recovered
from kvnode.raft.types import (
    ZERO,
    Entry,
    EntryKind,
    HardState,
    Index,
    LogId,
    Membership,
    NodeId,
    Term,
)
from tests.disk.crash_disk import CrashDisk

TERM_1 = HardState(Term(1), None)


def entry(index: int, term: int = 1, data: bytes = b"v") -> Entry:
    return Entry(Index(index), Term(term), EntryKind.COMMAND, data)


def base(index: int, term: int = 1) -> LogBase:
    return LogBase(LogId(Index(index), Term(term)), Membership())


def fresh(check: Callable[[], None] = lambda: None) -> tuple[CrashDisk, JournalCore]:
    disk = CrashDisk(capacity=1 << 20)
    core, found = open_journal(disk, "/d/raft", fresh=True, check=check)
    assert found == Recovered(HardState(Term(0), None), LogBase(ZERO, Membership()), [])
    core.run([Save(TERM_1, [])])
    return disk, core


def read(disk: CrashDisk) -> Recovered:
    disk.crash()
    core, found = open_journal(disk, "/d/raft", fresh=False)
    core.close()
    return found


def test_consecutive_saves_share_one_sync() -> None:
    """Group commit."""
    disk, core = fresh()
    syncs, before = sum(disk.syncs.values()), core.syncs
    core.run([Save(None, [entry(i)]) for i in range(1, 51)])
    assert sum(disk.syncs.values()) - syncs == core.syncs - before == 1
    assert len(read(disk).entries) == 50


def test_saves_that_wait_together_replace_each_other_as_they_would_on_disk() -> None:
    disk, core = fresh()
    core.run([Save(None, [entry(1), entry(2), entry(3)])])
    core.run(
        [
            Save(None, [entry(4), entry(5)]),
            Save(HardState(Term(2), None), [entry(5, 2), entry(6, 2)]),
            Save(HardState(Term(3), NodeId("a")), [entry(2, 3)]),
            Save(None, [entry(3, 3)]),
        ]
    )
    found = read(disk)
    assert found.hard_state == HardState(Term(3), NodeId("a"))
    assert found.entries == [entry(1), entry(2, 3), entry(3, 3)]


def test_nothing_to_save_is_not_synced() -> None:
    disk, core = fresh()
    operations = disk.operations
    core.run([Save(None, []), Save(None, ())])
    assert disk.operations == operations


def test_operations_keep_their_order_around_compact_and_reset() -> None:
    disk, core = fresh()
    group: list[Operation] = [
        Save(None, [entry(1), entry(2)]),
        Compact(base(1)),
        Save(None, [entry(3)]),
        Save(HardState(Term(2), None), []),
        Reset(base(9, 2)),
        Save(None, [entry(10, 2)]),
    ]
    core.run(group)
    assert read(disk) == Recovered(HardState(Term(2), None), base(9, 2), [entry(10, 2)])


def test_an_entry_of_a_term_that_the_hard_state_has_not_seen_is_refused() -> None:
    """Else a crash could leave a log that is ahead of the node's own term."""
    _, core = fresh()
    with pytest.raises(InvariantBroken, match="later term"):
        core.run([Save(None, [entry(1, 2)])])


def test_a_second_vote_in_one_group_is_refused() -> None:
    """RC-2: also when only the last state of the group would be written."""
    _, core = fresh()
    votes = [Save(HardState(Term(2), NodeId(who)), []) for who in ("a", "b")]
    with pytest.raises(InvariantBroken, match="second vote"):
        core.run(votes)


def test_a_bug_is_an_invariant_broken_and_stops_the_journal() -> None:
    _, core = fresh()
    with pytest.raises(InvariantBroken, match="the journal broke"):
        core.run([Save(None, [None])])  # type: ignore[list-item]
    with pytest.raises(InvariantBroken):
        core.run([Save(None, [entry(1)])])


@pytest.mark.parametrize("job", ["maintain", "rest"])
def test_a_bug_while_nobody_waits_is_told_to_the_next_call(job: str) -> None:
    """It must not end the thread: the next call would wait for ever."""
    bugs: list[Exception] = []

    def check() -> None:
        if bugs:
            raise bugs.pop()

    disk, core = fresh(check)
    core.run([Save(None, [entry(1)])])
    bugs.append(ZeroDivisionError("x"))
    operations = disk.operations
    getattr(core, job)()
    assert not bugs, "it was looked at"
    assert disk.operations == operations
    with pytest.raises(InvariantBroken, match="the journal broke: ZeroDivisionError"):
        core.run([Save(None, [entry(2)])])


def test_nothing_is_written_once_the_directory_was_taken_over() -> None:
    """RC-52: the check runs before each group, and before each compaction."""
    taken = False

    def check() -> None:
        if taken:
            raise DirectoryInUse("process 7 on host x took this data directory over")

    for operation in (Save(None, [entry(2)]), Compact(base(1)), Reset(base(5))):
        taken = False
        disk, core = fresh(check)
        core.run([Save(None, [entry(1)])])
        taken = True
        operations = disk.operations
        with pytest.raises(DirectoryInUse):
            core.run([operation])
        core.maintain()
        assert disk.operations == operations
        with pytest.raises(DirectoryInUse):
            core.run([operation])


def test_a_missing_directory_is_an_error_unless_the_node_is_new() -> None:
    """RC-50."""
    with pytest.raises(CorruptLog, match="/d/raft: missing"):
        open_journal(CrashDisk(), "/d/raft", fresh=False)


@pytest.mark.parametrize("name", ["base", "hard_state"])
def test_a_missing_file_beside_segments_is_an_error_also_for_a_new_node(name: str) -> None:
    disk, core = fresh()
    core.close()
    disk.unlink(f"/d/raft/{name}")
    with pytest.raises(CorruptLog, match=f"/d/raft/{name}: missing"):
        open_journal(disk, "/d/raft", fresh=True)


def test_an_old_copy_of_the_hard_state_is_noticed_by_the_log() -> None:
    """RC-54, as far as one node can see it."""
    disk, core = fresh()
    old = bytes(disk.inode("/d/raft/hard_state").durable)
    core.run([Save(HardState(Term(2), None), [entry(1, 2)])])
    core.close()
    disk.damage("/d/raft/hard_state", old)
    with pytest.raises(CorruptLog, match="an old copy of the file"):
        open_journal(disk, "/d/raft", fresh=False)


def test_maintain_reports_a_disk_without_room_for_the_next_segment() -> None:
    disk, core = fresh()
    disk.capacity = disk.used() + 1000
    core.maintain()
    assert core.spare_missing
    assert core.failure is None
    disk.capacity = 1 << 20
    core.maintain()
    assert not core.spare_missing


# ---------------------------------------------------------------- on a thread


class Blocked(CrashDisk):
    """Every group waits until it may go on."""

    def __init__(self) -> None:
        super().__init__(capacity=1 << 20)
        self.may_go_on = threading.Event()
        self.may_go_on.set()


@pytest.fixture
def disk() -> Blocked:
    return Blocked()


@pytest.fixture
async def journal(disk: Blocked) -> Iterator[ThreadJournal]:
    core, _ = open_journal(disk, "/d/raft", fresh=True, check=lambda: _wait(disk.may_go_on))
    journal = ThreadJournal(core, asyncio.get_running_loop())
    yield journal  # type: ignore[misc]
    disk.may_go_on.set()
    journal.close()


def _wait(event: threading.Event) -> None:
    assert event.wait(10)


class Calls:
    """Records completions and lets a test wait for them."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, KvnodeError | None]] = []
        self._changed = asyncio.Event()

    def done(self, number: int) -> Callable[[KvnodeError | None], None]:
        def call(error: KvnodeError | None) -> None:
            assert threading.current_thread() is threading.main_thread()
            self.seen.append((number, error))
            self._changed.set()

        return call

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.seen) < count:
                self._changed.clear()
                await self._changed.wait()


def segment_of(disk: CrashDisk) -> tuple[str, bytes]:
    path = max(name for name in disk.files() if name.endswith(".seg"))
    return path, bytes(disk.inode(path).durable)


def lost_sectors(disk: CrashDisk) -> Iterator[int]:
    """Lose each sector of the log's frames, in turn: the disk gives zeros for it. Yields where it is."""
    path, good = segment_of(disk)
    everything = {name: bytes(disk.inode(name).durable) for name in disk.files()}
    for at in range(SECTOR, len(good.rstrip(b"\0")), SECTOR):
        disk.damage(path, good[:at] + bytes(SECTOR) + good[at + SECTOR :])
        yield at
        for name, content in everything.items():
            disk.damage(name, content)


def with_three_frames() -> tuple[CrashDisk, JournalCore]:
    disk, core = fresh()
    for number, size in ((1, 900), (2, 30), (3, 1400)):
        core.run([Save(None, [entry(number, data=b"v" * size)])])
    return disk, core


@pytest.mark.parametrize("how", ["rest", "close", "a later term"])
def test_what_is_lost_of_a_log_at_rest_is_damage(how: str) -> None:
    """RC-71: the newest frames, turned to zeros, are no write that a crash cut off."""
    disk, core = with_three_frames()
    if how == "rest":
        core.rest()
    elif how == "close":
        core.close()
    else:
        core.run([Save(HardState(Term(2), NodeId("a")), [])])
    disk.crash()
    places = 0
    for places, _ in enumerate(lost_sectors(disk), start=1):  # noqa: B007
        with pytest.raises(CorruptLog, match=r"\.seg: "):
            open_journal(disk, "/d/raft", fresh=False)
    assert places >= 5
    assert len(read(disk).entries) == 3


def test_without_a_rest_the_newest_frame_is_taken_for_torn() -> None:
    """The limit: what a power cut leaves of a write, and damage to the newest one, look alike."""
    disk, _ = with_three_frames()
    disk.crash()
    kept = []
    for _ in lost_sectors(disk):
        try:
            core, found = open_journal(disk, "/d/raft", fresh=False)
        except CorruptLog:
            continue
        core.close()
        kept.append(len(found.entries))
    assert kept, "else the mark is not needed any more"
    assert set(kept) <= {1, 2}, "frames that share a sector with the newest one"


def test_a_log_with_an_older_end_than_the_hard_state_is_refused() -> None:
    """An old copy of a segment, or a copy of a directory that was taken while it changed."""
    disk, core = fresh()
    core.run([Save(None, [entry(1)])])
    path, old = segment_of(disk)
    core.run([Save(None, [entry(2)])])
    core.close()
    disk.damage(path, old)
    with pytest.raises(CorruptLog, match=r"was synced up to \d+ of 1: synced data are missing"):
        open_journal(disk, "/d/raft", fresh=False)


def test_a_rest_with_nothing_new_writes_nothing() -> None:
    disk, core = with_three_frames()
    assert not core.is_at_rest
    core.rest()
    assert core.is_at_rest
    operations = disk.operations
    core.rest()
    assert disk.operations == operations
    core.run([Save(None, [entry(4)])])
    assert not core.is_at_rest


def test_a_rest_that_fails_is_the_next_call_s_error() -> None:
    """RC-8."""
    disk, core = with_three_frames()
    disk.fail_at = disk.operations + 2
    core.rest()
    assert isinstance(core.failure, DiskFailed)
    with pytest.raises(DiskFailed):
        core.run([Save(None, [entry(4)])])
    assert core.is_at_rest, "nothing more is tried"
    core.close()
    assert disk.after_failure == 0
    assert len(read(disk).entries) == 3


def test_a_directory_that_was_taken_over_is_not_written_to_at_rest() -> None:
    """RC-52."""
    owner = [True]

    def check() -> None:
        if not owner:
            raise DirectoryInUse("another process")

    disk, core = fresh(check)
    core.run([Save(None, [entry(1)])])
    owner.clear()
    operations = disk.operations
    core.close()
    assert disk.operations == operations


async def test_the_thread_rests_when_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "REST_S", 0.01)
    disk = CrashDisk(capacity=1 << 20)
    core, _ = open_journal(disk, "/d/raft", fresh=True)
    journal = ThreadJournal(core, asyncio.get_running_loop())
    calls = Calls()
    journal.save(TERM_1, [entry(1), entry(2, data=b"v" * 3000)], calls.done(0))
    await calls.wait(1)
    path, _ = segment_of(disk)
    async with asyncio.timeout(10):
        while not core.is_at_rest:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.001)
    operations = disk.operations
    await asyncio.sleep(0.05)
    assert disk.operations == operations, "once is enough"
    journal.close()
    disk.crash()
    good = segment_of(disk)[1]
    disk.damage(path, good[: 2 * SECTOR].ljust(len(good), b"\0"))
    with pytest.raises(CorruptLog, match="synced data are missing"):
        open_journal(disk, "/d/raft", fresh=False)


async def test_an_empty_call_after_a_rest_that_failed_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RC-8: a node that writes nothing must hear of it as well."""
    monkeypatch.setattr(journal_module, "REST_S", 0.001)
    disk = CrashDisk(capacity=1 << 20)
    core, _ = open_journal(disk, "/d/raft", fresh=True)
    checks = iter([None])

    def check() -> None:
        """Passes for the save, and fails for the rest."""
        if next(checks, False) is False:
            raise DirectoryInUse("another process")

    monkeypatch.setattr(core, "_check", check)
    monkeypatch.setattr(core, "maintain", lambda: False)
    journal = ThreadJournal(core, asyncio.get_running_loop())
    calls = Calls()
    journal.save(TERM_1, [entry(1)], calls.done(0))
    await calls.wait(1)
    async with asyncio.timeout(10):
        while calls.seen[-1][1] is None:
            journal.save(None, [], calls.done(1))
            await asyncio.sleep(0.001)
    assert calls.seen[0] == (0, None)
    assert isinstance(calls.seen[-1][1], DirectoryInUse)
    journal.close()


async def test_a_call_and_a_close_that_come_while_the_thread_rests_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "REST_S", 0.0)
    disk = CrashDisk(capacity=1 << 20)
    calls = Calls()
    for number in range(1, 100):
        core, found = open_journal(disk, "/d/raft", fresh=number == 1)
        assert len(found.entries) == number - 1
        journal = ThreadJournal(core, asyncio.get_running_loop())
        journal.save(HardState(Term(number), None), [], calls.done(0))
        await calls.wait(2 * number - 1)
        journal.save(None, [entry(number, number)], calls.done(number))
        journal.close()
        await calls.wait(2 * number)
    assert all(error is None for _, error in calls.seen)


async def test_completions_come_in_order_in_a_later_turn(journal: ThreadJournal) -> None:
    _: Journal = journal
    calls = Calls()
    saves: list[Sequence[Entry]] = [[], [entry(1)], [], [entry(2)], []]
    journal.save(TERM_1, [], calls.done(0))
    for number, entries in enumerate(saves, start=1):
        journal.save(None, entries, calls.done(number))
    journal.compact(base(1), calls.done(6))
    journal.reset(base(5), calls.done(7))
    journal.save(None, [], calls.done(8))
    assert calls.seen == []
    assert journal.pending() == 9
    await calls.wait(9)
    assert calls.seen == [(n, None) for n in range(9)]
    assert journal.pending() == 0


async def test_an_empty_save_completes_without_the_thread_but_not_inside_the_call(
    journal: ThreadJournal, disk: Blocked
) -> None:
    calls = Calls()
    operations = disk.operations
    journal.save(None, [], calls.done(1))
    assert calls.seen == []
    await calls.wait(1)
    assert disk.operations == operations


async def test_calls_that_wait_share_a_sync(journal: ThreadJournal, disk: Blocked) -> None:
    calls = Calls()
    journal.save(TERM_1, [], calls.done(0))
    await calls.wait(1)
    disk.may_go_on.clear()
    journal.save(None, [entry(1)], calls.done(1))
    await asyncio.sleep(0.05)  # the thread takes the first call, or all: both are right
    before = journal.syncs
    for number in range(2, 30):
        journal.save(None, [entry(number)], calls.done(number))
    disk.may_go_on.set()
    await calls.wait(30)
    assert journal.syncs - before <= 2


async def test_after_a_failure_every_call_fails_with_the_same_error(
    journal: ThreadJournal, disk: Blocked
) -> None:
    """RC-8."""
    calls = Calls()
    journal.save(TERM_1, [], calls.done(0))
    await calls.wait(1)
    disk.may_go_on.clear()
    disk.fail_at = disk.operations + 2
    journal.save(None, [entry(1)], calls.done(1))
    journal.save(None, [], calls.done(2))
    journal.compact(base(0, 0), calls.done(3))
    disk.may_go_on.set()
    await calls.wait(4)
    journal.save(None, [entry(2)], calls.done(4))
    journal.save(None, [], calls.done(5))
    await calls.wait(6)
    errors = [error for _, error in calls.seen[1:]]
    assert [number for number, _ in calls.seen] == [0, 1, 2, 3, 4, 5]
    assert isinstance(errors[0], DiskFailed)
    assert all(error is errors[0] for error in errors)
    assert disk.after_failure == 0


async def test_more_waiting_calls_than_the_bound_stop_the_journal() -> None:
    disk = Blocked()
    core, _ = open_journal(disk, "/d/raft", fresh=True, check=lambda: _wait(disk.may_go_on))
    journal = ThreadJournal(core, asyncio.get_running_loop(), operations_max=10)
    calls = Calls()
    disk.may_go_on.clear()
    for number in range(30):
        journal.save(HardState(Term(number + 1), None), [], calls.done(number))
    disk.may_go_on.set()
    await calls.wait(30)
    assert isinstance(calls.seen[-1][1], InvariantBroken)
    assert [number for number, _ in calls.seen] == list(range(30))
    journal.close()


async def test_close_finishes_what_waits_and_refuses_what_comes() -> None:
    disk = CrashDisk(capacity=1 << 20)
    core, _ = open_journal(disk, "/d/raft", fresh=True)
    journal = ThreadJournal(core, asyncio.get_running_loop())
    calls = Calls()
    journal.save(TERM_1, [entry(1)], calls.done(1))
    journal.close()
    journal.close()
    journal.save(None, [entry(2)], calls.done(2))
    await calls.wait(2)
    assert calls.seen[0] == (1, None)
    assert isinstance(calls.seen[1][1], DiskFailed)
    assert read(disk).entries == [entry(1)]


async def test_on_the_real_file_system(tmp_path: str) -> None:
    core, _ = open_journal(OsFileSystem(), f"{tmp_path}/raft", fresh=True)
    journal = ThreadJournal(core, asyncio.get_running_loop())
    calls = Calls()
    journal.save(TERM_1, [entry(i, data=b"x" * i) for i in range(1, 200)], calls.done(1))
    await calls.wait(1)
    journal.close()
    core, found = open_journal(OsFileSystem(), f"{tmp_path}/raft", fresh=False)
    core.close()
    assert found.entries == [entry(i, data=b"x" * i) for i in range(1, 200)]


WRITER = """
import sys
from kvnode.disk.data_dir import DataDir
from kvnode.disk.journal import Save
from kvnode.raft.types import Entry, EntryKind, HardState
data = DataDir.open(sys.argv[1], "n-0")
core, found = data.open_journal()
index = found.base.last.index + len(found.entries)
core.run([Save(HardState(found.hard_state.term + 1, "me"), [])])
while True:
    index += 1
    entry = Entry(index, found.hard_state.term + 1, EntryKind.COMMAND, b"%d" % index * 50)
    core.run([Save(None, [entry])])
    sys.stdout.buffer.write(b"%d\\n" % index)
    sys.stdout.buffer.flush()
"""


def test_a_killed_process_loses_nothing_that_it_said(tmp_path: Path) -> None:
    """The real thing: SIGKILL between any two instructions, two lives one after the other."""
    said = 0
    for life in range(1, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(100 * life):
            said = int(process.stdout.readline())
        process.kill()
        rest, _ = process.communicate()
        said = int(([str(said), *rest.decode().split("\n")[:-1]])[-1])
        core, found = open_journal(OsFileSystem(), f"{tmp_path}/raft", fresh=False)
        core.close()
        assert said <= len(found.entries) <= said + 1
        assert all(e.data == b"%d" % e.index * 50 for e in found.entries)
        assert found.hard_state == HardState(Term(life), NodeId("me"))
        said = len(found.entries)


async def test_a_completion_that_breaks_off_stops_the_node(
    journal: ThreadJournal, disk: Blocked
) -> None:
    """The calls behind it in its group are not told either: nothing may go on as if they had been."""
    seen: asyncio.Queue[Exception] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: seen.put_nowait(context["exception"])
    )

    def broken(_error: KvnodeError | None) -> None:
        raise ValueError("a bug")

    journal.save(HardState(Term(1), None), (), broken)
    disk.may_go_on.set()
    async with asyncio.timeout(10):
        found = await seen.get()
    assert isinstance(found, InvariantBroken)
    assert isinstance(found.__cause__, ValueError)

"""Laws of ``kvnode.disk.raft_log`` and ``kvnode.disk.base_file``."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.disk.base_file import BaseRecord, decode_base, encode_base
from kvnode.disk.log_format import ENTRY_BYTES_MAX
from kvnode.disk.raft_log import RaftLog
from kvnode.disk.spare import SEGMENT_BYTES_MIN, STEP_BYTES
from kvnode.errors import CorruptLog, DiskFailed, DiskFull, InvariantBroken
from kvnode.ports import LogBase
from kvnode.raft.types import ZERO, Entry, EntryKind, Index, LogId, Membership, NodeId, Term
from tests.disk.crash_disk import CrashDisk

NOTHING = LogBase(ZERO, Membership())


def entry(index: int, term: int = 1, data: bytes | int = b"v") -> Entry:
    if isinstance(data, int):
        data = random.Random(index * 1000 + term).randbytes(data)
    return Entry(Index(index), Term(term), EntryKind.COMMAND, data)


def base(index: int, term: int = 1) -> LogBase:
    return LogBase(LogId(Index(index), Term(term)), Membership(voters=frozenset({NodeId("n")})))


def fresh(capacity: int = 1 << 20, start: LogBase = NOTHING) -> tuple[CrashDisk, RaftLog]:
    disk = CrashDisk(capacity=capacity)
    RaftLog.create(disk, "/d", start)
    return disk, RaftLog.open(disk, "/d")[0]


def read(disk: CrashDisk) -> tuple[LogBase, list[Entry]]:
    log, entries = RaftLog.open(disk, "/d")
    log.close()
    return log.base, entries


def segments(disk: CrashDisk) -> list[str]:
    return [path for path in disk.files() if path.endswith(".seg")]


def filled(count: int = 30, size: int = 9000) -> tuple[CrashDisk, RaftLog, list[Entry]]:
    """A log over several segments."""
    disk, log = fresh()
    entries = [entry(i, 1, size) for i in range(1, count + 1)]
    for one in entries:
        log.append([one])
    assert len(segments(disk)) > 2
    return disk, log, entries


# ---------------------------------------------------------------- what is read back


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    kinds = st.sampled_from(["append", "append", "append", "cut", "compact", "reset", "open"])
    sizes = st.sampled_from([0, 1, 100, 5000, 30000])
    step = st.tuples(kinds, st.integers(1, 4), sizes, st.integers(0, 10**6))
    return draw(st.lists(step, max_size=25))


@settings(max_examples=60)
@given(changes())
def test_the_log_is_what_a_list_would_be(steps: list[tuple[str, int, int, int]]) -> None:
    disk, log = fresh(capacity=4 << 20)
    start, entries = NOTHING, list[Entry]()
    term = 1
    for kind, count, size, pick in steps:
        last = start.last.index + len(entries)
        if kind in ("append", "cut"):
            first = last + 1
            if kind == "cut" and entries:
                first = entries[pick % len(entries)].index
                term += 1
            new = [entry(first + k, term, size) for k in range(count)]
            log.append(new)
            entries = [*entries[: first - start.last.index - 1], *new]
        elif kind == "compact" and entries:
            at = pick % len(entries)
            start, entries = base(entries[at].index, entries[at].term), entries[at + 1 :]
            log.compact(start)
        elif kind == "reset":
            start, entries = base(last + pick % 9, term), []
            log.reset(start)
        elif kind == "open":
            log.close()
            disk.crash()
            log, found = RaftLog.open(disk, "/d")
            assert found == entries
        assert log.last_index == start.last.index + len(entries)
    log.close()
    disk.crash()
    assert read(disk) == (start, entries)


def test_an_append_is_one_write_and_one_sync() -> None:
    """Group commit stands or falls with it."""
    disk, log = fresh()
    operations, syncs = disk.operations, sum(disk.syncs.values())
    log.append([entry(i) for i in range(1, 101)])
    assert disk.operations - operations == 2
    assert sum(disk.syncs.values()) - syncs == log.syncs == 1


def test_a_new_segment_is_synced_and_named_before_the_old_one_is_sealed() -> None:
    disk, log, entries = filled()
    disk.crash()
    assert read(disk) == (NOTHING, entries)
    log.close()


def test_a_prepared_segment_makes_a_roll_cheap() -> None:
    disk, log = fresh()
    log.append([entry(1, 1, SEGMENT_BYTES_MIN // 2)])
    assert not log.prepare()
    assert not log.wants_spare
    before = disk.syncs["spare.tmp"]
    log.append([entry(2, 1, SEGMENT_BYTES_MIN // 2)])
    assert disk.syncs["spare.tmp"] - before == 1, "only its header; the zeros are there already"
    assert len(segments(disk)) == 2


def test_a_segment_is_prepared_in_pieces_and_may_be_taken_half_done() -> None:
    """A piece is short, so that a save that comes meanwhile waits for one piece and not for all."""
    disk, log = fresh(capacity=128 << 20)
    assert len(disk.inode(segments(disk)[0]).now) == 8 << 20
    for piece in range(1, 4):
        assert log.prepare()
        assert len(disk.inode("/d/spare.tmp").now) == piece * STEP_BYTES
    log.append([entry(1, 1, 5 << 20)])
    log.append([entry(2, 1, 5 << 20)])
    assert len(segments(disk)) == 2
    assert not disk.exists("/d/spare.tmp")
    pieces = 1
    while log.prepare():
        pieces += 1
    assert 5 < pieces < 9
    assert [e.index for e in read(disk)[1]] == [1, 2]


def test_an_entry_larger_than_a_segment_gets_a_segment_of_its_size() -> None:
    disk, log = fresh(capacity=8 << 20)
    entries = [entry(1), entry(2, 1, 2 << 20), entry(3)]
    log.append(entries)
    assert read(disk) == (NOTHING, entries)


def test_many_bytes_are_cut_into_frames_each_synced_before_the_next() -> None:
    """Only the last frame may be torn."""
    disk, log = fresh(capacity=64 << 20)
    entries = [entry(i, 1, 3 << 20) for i in range(1, 5)]
    log.append(entries)
    assert read(disk) == (NOTHING, entries)


def test_compaction_removes_whole_segments_and_keeps_the_rest() -> None:
    disk, log, entries = filled()
    count = len(segments(disk))
    log.compact(base(20))
    assert len(segments(disk)) < count
    assert read(disk) == (base(20), entries[20:])
    log.compact(base(30))
    assert len(segments(disk)) == 1
    assert read(disk) == (base(30), [])


def test_a_segment_whose_cut_off_entries_are_above_the_base_is_kept() -> None:
    disk, log, _ = filled()
    new = [entry(5, 2, 9000)]
    log.append(new)
    log.compact(base(5, 2))
    assert read(disk) == (base(5, 2), [])
    log.append([entry(6, 2)])
    assert read(disk) == (base(5, 2), [entry(6, 2)])


def test_reset_voids_every_older_segment_also_when_removing_them_did_not_last() -> None:
    """RC-37: the base is the one step."""
    disk, log, _ = filled()
    old = {path: bytes(disk.inode(path).durable) for path in segments(disk)}
    log.reset(base(40, 3))
    log.append([entry(41, 3)])
    for path, data in old.items():
        disk.create(path)
        disk.damage(path, data)
    assert read(disk) == (base(40, 3), [entry(41, 3)])
    assert not set(old) & set(disk.files())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "bad",
    [
        [entry(12)],
        [entry(5)],
        [entry(11), entry(13)],
        [Entry(Index(11), Term(1), EntryKind.COMMAND, bytes(ENTRY_BYTES_MAX + 1))],
    ],
)
def test_entries_that_do_not_fit_are_refused_before_anything_is_written(bad: list[Entry]) -> None:
    disk, log = fresh(start=base(5))
    log.append([entry(i) for i in range(6, 11)])
    operations = disk.operations
    with pytest.raises(InvariantBroken):
        log.append(bad)
    assert disk.operations == operations


def test_the_base_cannot_pass_the_log() -> None:
    _, log = fresh()
    log.append([entry(1)])
    with pytest.raises(InvariantBroken):
        log.compact(base(2))


@pytest.mark.parametrize("victim", [0, 1, -1])
def test_a_missing_segment_is_noticed_be_it_the_first_one_or_the_last(victim: int) -> None:
    disk, _, _ = filled()
    disk.unlink(segments(disk)[victim])
    with pytest.raises(CorruptLog, match="missing"):
        read(disk)


def test_all_segments_missing_is_not_an_empty_log() -> None:
    """RC-50."""
    disk, log, _ = filled()
    log.compact(base(30))
    disk.unlink(segments(disk)[0])
    with pytest.raises(CorruptLog, match="missing"):
        read(disk)


def test_a_missing_or_damaged_base_is_an_error() -> None:
    disk, log = fresh()
    log.append([entry(1)])
    good = bytes(disk.inode("/d/base").durable)
    for bad in (b"", good[:20], good[:-1], good + b"x", bytes(len(good))):
        disk.damage("/d/base", bad)
        with pytest.raises(CorruptLog, match="/d/base: "):
            read(disk)
    disk.unlink("/d/base")
    with pytest.raises(CorruptLog, match="/d/base: missing"):
        read(disk)


def test_every_bit_of_the_base_counts() -> None:
    record = BaseRecord(base(7, 3), 12)
    good = encode_base(record)
    assert decode_base(good, "f") == record
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptLog):
            decode_base(bytes(bad), "f")


@pytest.mark.parametrize("size", [0, 100, 512, 4096, SEGMENT_BYTES_MIN - 1])
def test_a_segment_shorter_than_its_header_says_is_corrupt(size: int) -> None:
    """RC-73: also an empty one."""
    disk, _, _ = filled()
    for path in segments(disk):
        good = bytes(disk.inode(path).durable)
        disk.damage(path, good[:size])
        with pytest.raises(CorruptLog, match=path):
            read(disk)
        disk.damage(path, good)


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_random_damage_never_changes_or_loses_an_entry(rng: random.Random) -> None:
    """RC-71: what is read back is exactly what was synced, or it is refused."""
    disk, log, entries = filled(20)
    log.compact(base(8))
    log.close()
    good = {path: bytes(disk.inode(path).durable) for path in disk.files()}
    for _ in range(8):
        path = rng.choice(sorted(good))
        data = bytearray(good[path])
        kind = rng.choice(["flip", "flip", "noise", "truncate"])
        used = len(data.rstrip(b"\0"))
        if kind == "flip":
            for _ in range(rng.choice([1, 1, 2, 8])):
                data[rng.randrange(used)] ^= 1 << rng.randrange(8)
        elif kind == "noise":
            at = rng.randrange(used)
            data[at : at + 64] = rng.randbytes(len(data[at : at + 64]))
        else:
            del data[rng.randrange(used) :]
        disk.damage(path, bytes(data))
        try:
            found = read(disk)
        except CorruptLog:
            pass
        else:
            assert found == (base(8), entries[8:])
        for name in set(disk.files()) - set(good):
            disk.unlink(name)
        for name, content in good.items():
            if not disk.exists(name):
                disk.create(name)
            disk.damage(name, content)


def test_a_zeroed_middle_frame_is_missing_data_not_the_end() -> None:
    disk, log = fresh()
    for i in range(1, 5):
        log.append([entry(i, 1, 2000)])
    path = segments(disk)[0]
    data = bytearray(disk.inode(path).durable)
    data[2600:4200] = bytes(1600)
    disk.damage(path, bytes(data))
    with pytest.raises(CorruptLog, match=r"\.seg: "):
        read(disk)


def test_an_unsealed_segment_with_a_used_successor_is_corrupt() -> None:
    """The seal was synced before the successor was used, so somebody lost it."""
    disk, _, _ = filled()
    path = segments(disk)[0]
    data = bytearray(disk.inode(path).durable)
    end = len(data.rstrip(b"\0"))
    data[end - 64 : end] = bytes(64)
    disk.damage(path, bytes(data))
    with pytest.raises(CorruptLog, match="not sealed"):
        read(disk)


# ---------------------------------------------------------------- small and full disks


@pytest.mark.parametrize("kib", [400, 700, 1024, 16 * 1024])
def test_a_log_starts_and_works_on_a_small_volume(kib: int) -> None:
    disk, log = fresh(capacity=kib << 10)
    assert disk.used() <= max(SEGMENT_BYTES_MIN, (kib << 10) // 16) + 4096
    for i in range(1, 400):
        log.append([entry(i, 1, 1000)])
        if i % 20 == 0:
            log.prepare()
            log.compact(base(i - 5))
    assert read(disk)[1][-1] == entry(399, 1, 1000)
    assert disk.used() < max(400 << 10, (kib << 10) // 4)


def test_too_small_a_volume_is_named_with_what_is_needed() -> None:
    disk = CrashDisk(capacity=200 << 10)
    with pytest.raises(DiskFull, match="200 KiB free; a new log needs at least 256 KiB"):
        RaftLog.create(disk, "/d", NOTHING)


def test_a_full_disk_keeps_what_was_acknowledged() -> None:
    """RC-70: the append that finds no space fails; every earlier one is there."""
    disk, log = fresh(capacity=300 << 10)
    acknowledged = []
    with contextlib.suppress(DiskFailed):
        for i in range(1, 1000):
            log.append([entry(i, 1, 1000)])
            acknowledged.append(entry(i, 1, 1000))
    assert 100 < len(acknowledged) < 900
    disk.crash()
    base_found, found = read(disk)
    assert base_found == NOTHING
    assert found == acknowledged


def test_compaction_works_on_a_full_disk_at_the_cost_of_the_spare() -> None:
    """RC-70: compaction is what frees space."""
    disk, log, entries = filled()
    log.prepare()
    disk.capacity = disk.used()
    log.compact(base(20))
    assert read(disk) == (base(20), entries[20:])


def test_no_spare_is_made_on_a_nearly_full_disk() -> None:
    disk, log = fresh()
    disk.capacity = disk.used() + SEGMENT_BYTES_MIN
    with pytest.raises(DiskFull):
        log.prepare()
    log.append([entry(1)])
    assert read(disk)[1] == [entry(1)]

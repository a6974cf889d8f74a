"""Laws of ``kvnode.disk.hard_state``."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.disk.files import SECTOR
from kvnode.disk.hard_state import VOTE_BYTES_MAX, HardStateFile
from kvnode.disk.log_format import NOWHERE, LogEnd
from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.raft.types import HardState, NodeId, Term
from tests.disk.crash_disk import CrashDisk, MachineStopped

PATH = "/d/hard_state"


def state(term: int, vote: str | None = None) -> HardState:
    return HardState(Term(term), None if vote is None else NodeId(vote))


def fresh() -> CrashDisk:
    disk = CrashDisk()
    HardStateFile.create(disk, "/d")
    disk.sync_dir("/d")
    return disk


def read(disk: CrashDisk) -> HardState:
    file = HardStateFile.open(disk, "/d")
    file.close()
    return file.state


def test_begins_at_term_zero_without_a_vote() -> None:
    assert read(fresh()) == state(0)


@given(st.lists(st.tuples(st.integers(1, 2**60), st.none() | st.text(min_size=1, max_size=60))))
def test_the_last_saved_state_is_read_back(saves: list[tuple[int, str | None]]) -> None:
    disk = fresh()
    file = HardStateFile.open(disk, "/d")
    for term, vote in sorted(dict(saves).items()):
        file.save(state(term, vote), NOWHERE)
    disk.crash()
    assert read(disk) == file.state


def test_a_term_never_falls_and_a_vote_is_never_changed() -> None:
    """RC-2, RC-75: asked for it, the file refuses and writes nothing."""
    disk = fresh()
    file = HardStateFile.open(disk, "/d")
    file.save(state(5, "a"), NOWHERE)
    operations = disk.operations
    for bad in (state(4), state(4, "a"), state(5, "b"), state(5)):
        with pytest.raises(InvariantBroken):
            file.save(bad, NOWHERE)
    assert disk.operations == operations
    file.save(state(6), NOWHERE)
    file.save(state(6, "b"), NOWHERE)
    assert read(disk) == state(6, "b")


@given(st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)), min_size=1))
def test_the_end_of_the_log_is_read_back_and_never_moves_back(
    ends: list[tuple[int, int]],
) -> None:
    disk = fresh()
    file = HardStateFile.open(disk, "/d")
    for end in ends:
        if LogEnd(*end) < file.log_end:
            with pytest.raises(InvariantBroken, match="would move back"):
                file.save(file.state, LogEnd(*end))
        else:
            file.save(file.state, LogEnd(*end))
    disk.crash()
    again = HardStateFile.open(disk, "/d")
    assert (again.state, again.log_end) == (state(0), max(ends))


def test_a_file_of_a_build_that_noted_no_end_is_read() -> None:
    """Its sectors end in zeros, which are nowhere; and the longest vote leaves that place alone."""
    disk = fresh()
    file = HardStateFile.open(disk, "/d")
    file.save(state(3, "v" * VOTE_BYTES_MAX), NOWHERE)
    assert not any(disk.inode(PATH).durable[SECTOR - 16 : SECTOR])
    file.save(state(4, "v" * VOTE_BYTES_MAX), LogEnd(2**64 - 1, 2**64 - 1))
    again = HardStateFile.open(disk, "/d")
    assert again.state == state(4, "v" * VOTE_BYTES_MAX)
    assert again.log_end == (2**64 - 1, 2**64 - 1)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_disk_that_garbles_the_sector_it_was_writing_leaves_the_other_copy(at: int) -> None:
    """RC-72: no write may touch both copies, and one is synced before the other is begun."""
    disk = fresh()
    file = HardStateFile.open(disk, "/d")
    file.save(state(5, "a"), NOWHERE)
    disk.operations = 0
    disk.crash_at = at + 1
    with contextlib.suppress(MachineStopped):
        file.save(state(6, "b"), NOWHERE)
    inode = disk.inode(PATH)
    garbled = bytearray(inode.durable)
    for sector in inode.dirty:
        garbled[sector * 512 : sector * 512 + 512] = random.Random(at).randbytes(512)
    disk.kill()
    disk.damage(PATH, bytes(garbled))
    assert read(disk) in (state(5, "a"), state(6, "b"))
    assert at < 4 or read(disk) == state(6, "b")


@given(st.sets(st.integers(0, 8192 * 8 - 1), min_size=1, max_size=3))
def test_one_damaged_copy_is_repaired_from_the_other(bits: set[int]) -> None:
    disk = fresh()
    HardStateFile.open(disk, "/d").save(state(7, "a"), NOWHERE)
    good = bytes(disk.inode(PATH).durable)
    damaged = bytearray(good)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    disk.damage(PATH, bytes(damaged))
    touched = {start for start in (0, 4096) for bit in bits if start <= bit // 8 < start + 512}
    if len(touched) < 2:
        assert read(disk) == state(7, "a")
        now = bytes(disk.inode(PATH).durable)
        assert now[:512] == good[:512] == now[4096 : 4096 + 512]
    else:
        with pytest.raises(CorruptLog, match=r"/d/hard_state: both copies"):
            read(disk)


@pytest.mark.parametrize("content", [b"", b"x", bytes(512), bytes(8192)])
def test_an_empty_or_short_file_is_amnesia_not_a_fresh_start(content: bytes) -> None:
    """RC-50, RC-72, RC-73."""
    disk = fresh()
    disk.damage(PATH, content)
    with pytest.raises(CorruptLog, match="no longer knows its votes"):
        read(disk)


def test_a_missing_file_is_an_error() -> None:
    disk = fresh()
    disk.unlink(PATH)
    with pytest.raises(CorruptLog, match="/d/hard_state: missing"):
        read(disk)

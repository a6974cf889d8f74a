"""Laws of ``kvnode.disk.spare``."""

from __future__ import annotations

import pytest

from kvnode.disk.spare import SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, STEP_BYTES, Spare
from kvnode.errors import DiskFull
from tests.disk.crash_disk import CrashDisk


def test_the_size_follows_the_free_space_within_bounds() -> None:
    for capacity, size in (
        (300 << 10, SEGMENT_BYTES_MIN),
        (16 << 20, 1 << 20),
        (1 << 30, SEGMENT_BYTES_MAX),
    ):
        disk = CrashDisk(capacity=capacity)
        spare = Spare(disk, "/d")
        while spare.step():
            pass
        assert spare.ready
        assert len(disk.inode(spare.path).now) == size
        assert not spare.step()


def test_each_piece_is_short_and_synced() -> None:
    disk = CrashDisk(capacity=1 << 30)
    spare = Spare(disk, "/d")
    for piece in range(1, 4):
        assert spare.step()
        assert len(disk.inode(spare.path).durable) == piece * STEP_BYTES


@pytest.mark.parametrize("pieces", [0, 3, 16])
def test_it_is_finished_when_it_is_needed(pieces: int) -> None:
    disk = CrashDisk(capacity=1 << 30)
    spare = Spare(disk, "/d")
    for _ in range(pieces):
        spare.step()
    assert spare.take(100) == SEGMENT_BYTES_MAX
    inode = disk.inode(spare.path)
    assert inode.durable == inode.now == bytes(SEGMENT_BYTES_MAX)
    assert not spare.ready
    assert not spare.drop(), "it belongs to the caller now"


def test_one_that_is_too_small_is_replaced() -> None:
    disk = CrashDisk(capacity=1 << 30)
    spare = Spare(disk, "/d")
    spare.step()
    assert spare.take(SEGMENT_BYTES_MAX + 1) == SEGMENT_BYTES_MAX + 4096


def test_on_a_nearly_full_disk_it_is_only_as_large_as_it_must_be() -> None:
    """RC-70: the log goes on as long as it can."""
    disk = CrashDisk(capacity=20_000)
    assert Spare(disk, "/d").take(9000) == 12_288


def test_without_space_it_fails_and_gives_back_what_it_took() -> None:
    disk = CrashDisk(capacity=20_000)
    with pytest.raises(DiskFull):
        Spare(disk, "/d").take(30_000)
    with pytest.raises(DiskFull, match="too little for a spare"):
        Spare(disk, "/d").step()
    assert disk.files() == []
    disk.capacity = 1 << 30
    spare = Spare(disk, "/d")
    spare.step()
    disk.capacity = 2 << 20
    spare.step()
    with pytest.raises(DiskFull):
        spare.step()
    assert disk.files() == []
    assert not spare.ready


def test_left_overs_are_removed() -> None:
    disk = CrashDisk(capacity=1 << 30)
    Spare(disk, "/d").step()
    assert disk.files()
    Spare(disk, "/d")
    assert not disk.files()

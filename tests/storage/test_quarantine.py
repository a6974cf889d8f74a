"""Laws of ``kvnode.disk.quarantine``: damage is remembered, and set aside once, whole, and never deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.disk.data_dir import DataDir
from kvnode.disk.identity import DATA_NAMES, open_identity
from kvnode.disk.quarantine import (
    MARK_NAME,
    TARGET_NAME,
    check_mark,
    known_cluster,
    mark,
    set_damaged_aside,
)
from kvnode.errors import CorruptLog, DirectoryInUse, DiskFailed
from tests.disk.crash_disk import CrashDisk, MachineStopped


def filled() -> CrashDisk:
    """A data directory with something in every place."""
    disk = CrashDisk(seed=7)
    open_identity(disk, "/d", "n-0", lambda: "id-1")
    for name in DATA_NAMES:
        disk.mkdir(f"/d/{name}")
        file = disk.create(f"/d/{name}/data")
        file.pwrite(name.encode(), 0)
        file.sync()
        disk.sync_dir(f"/d/{name}")
    disk.sync_dir("/d")
    disk.operations = 0
    return disk


def test_the_first_damage_is_remembered_and_keeps_the_node_from_starting() -> None:
    """RC-71: RocksDB opens on a table whose middle nobody has read; the next start must still know."""
    disk = filled()
    check_mark(disk, "/d")
    mark(disk, "/d", "the table 12.sst")
    mark(disk, "/d", "and what followed from it")
    disk.crash()
    with pytest.raises(CorruptLog, match=r"/d/DAMAGED.*12\.sst"):
        check_mark(disk, "/d")


def test_setting_aside_may_be_cut_off_anywhere_and_loses_nothing() -> None:
    """It is finished at the next try; until then the directory is no beginning (RC-50)."""
    for step in range(1, 60):
        disk = filled()
        disk.crash_at = step
        try:
            set_damaged_aside(disk, "/d", "why")
            finished = True
        except MachineStopped:
            finished = False
        disk.crash()
        if not disk.exists(f"/d/{TARGET_NAME}/{MARK_NAME}"):
            with_mark = disk.exists(f"/d/{MARK_NAME}")
            moved = not all(disk.exists(f"/d/{name}") for name in (*DATA_NAMES, "identity.json"))
            assert with_mark or not moved, f"step {step}: half moved, and nobody would know"
            set_damaged_aside(disk, "/d", "why")
        for name in DATA_NAMES:
            assert disk.inode(f"/d/{TARGET_NAME}/{name}/data").now == name.encode()
        assert disk.exists(f"/d/{TARGET_NAME}/identity.json")
        assert disk.exists(f"/d/{TARGET_NAME}/{MARK_NAME}")
        fresh = open_identity(disk, "/d", "n-0", lambda: "id-2")
        assert fresh.identity.record.node_id == "id-2"
        if finished:
            break
    assert step > 10, "every step was tried"


def test_damage_that_comes_back_is_not_set_aside_again() -> None:
    """A failing disk would fill its volume with copies, and hide behind them."""
    disk = filled()
    set_damaged_aside(disk, "/d", "once")
    open_identity(disk, "/d", "n-0", lambda: "id-2")
    with pytest.raises(DiskFailed, match="damaged twice"):
        set_damaged_aside(disk, "/d", "twice")
    assert disk.exists("/d/identity.json")


def test_the_cluster_is_known_as_far_as_the_identity_can_be_read() -> None:
    disk = filled()
    assert known_cluster(disk, "/d") == ""
    disk.damage("/d/identity.json", b"{")
    assert known_cluster(disk, "/d") == ""
    disk.unlink("/d/identity.json")
    assert known_cluster(disk, "/d") == ""


def test_a_directory_with_data_set_aside_founds_no_cluster(tmp_path: Path) -> None:
    """All nodes damaged at once must wait for each other, not begin anew with nothing."""
    first = DataDir.open(str(tmp_path), "n-0")
    assert first.may_found
    first.open_journal()[0].close()
    first.close()
    DataDir.set_damaged_aside(str(tmp_path), CorruptLog("why"))
    second = DataDir.open(str(tmp_path), "n-0")
    assert second.record.node_id != first.record.node_id
    assert not second.may_found
    second.close()


def test_a_marked_directory_is_refused_and_the_lock_is_free_again(tmp_path: Path) -> None:
    first = DataDir.open(str(tmp_path), "n-0")
    first.mark_damaged(CorruptLog("a table"))
    with pytest.raises(DirectoryInUse):
        DataDir.set_damaged_aside(str(tmp_path), CorruptLog("while it is in use"))
    first.close()
    for _ in range(2):
        with pytest.raises(CorruptLog, match="a table"):
            DataDir.open(str(tmp_path), "n-0")
    DataDir.set_damaged_aside(str(tmp_path), CorruptLog("a table"))
    DataDir.open(str(tmp_path), "n-0").close()

"""The contract of ``kvnode.disk.files`` over the real file system and over the one for crashes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kvnode.disk.files import FileSystem, OsFile, OsFileSystem
from kvnode.disk.whole_file import read_whole, write_whole
from kvnode.errors import CorruptLog, DiskFailed, DiskFull
from tests.disk.crash_disk import CrashDisk


@pytest.fixture(params=["os", "crash"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "os":
        return OsFileSystem(), str(tmp_path)
    return CrashDisk(), "/d"


def test_a_file_holds_what_was_written(where: tuple[FileSystem, str]) -> None:
    fs, d = where
    file = fs.create(f"{d}/a")
    file.pwrite(b"world", 6)
    file.pwrite(b"hello", 0)
    assert file.path == f"{d}/a"
    assert file.pread(5, 0) == b"hello"
    assert file.pread(100, 5) == b"\0world"
    assert file.pread(10, 100) == b""
    assert file.size() == 11
    file.preallocate(5000)
    assert file.size() == 5000
    file.preallocate(10)
    assert file.size() == 5000
    assert file.pread(5000, 11) == bytes(4989)
    file.truncate(3)
    file.sync()
    file.close()
    file.close()
    file = fs.open(f"{d}/a")
    assert file.pread(10, 0) == b"hel"
    file.close()


def test_names_come_and_go(where: tuple[FileSystem, str]) -> None:
    fs, d = where
    fs.mkdir(f"{d}/sub")
    fs.mkdir(f"{d}/sub")
    fs.create(f"{d}/sub/b").close()
    fs.create(f"{d}/sub/a").close()
    assert fs.listdir(f"{d}/sub") == ["a", "b"]
    fs.rename(f"{d}/sub/a", f"{d}/sub/b")
    assert fs.listdir(f"{d}/sub") == ["b"]
    fs.rename(f"{d}/sub", f"{d}/other")
    assert fs.exists(f"{d}/other/b")
    assert not fs.exists(f"{d}/sub")
    fs.unlink(f"{d}/other/b")
    fs.unlink(f"{d}/other/b")
    assert fs.listdir(f"{d}/other") == []
    fs.sync_dir(d)
    assert fs.free_bytes(d) > 0


def test_errors_name_the_file(where: tuple[FileSystem, str]) -> None:
    fs, d = where
    fs.create(f"{d}/a").close()
    fs.mkdir(f"{d}/x")
    fs.mkdir(f"{d}/y")
    fs.create(f"{d}/y/file").close()
    for action in (
        lambda: fs.create(f"{d}/a"),
        lambda: fs.open(f"{d}/none"),
        lambda: fs.listdir(f"{d}/none"),
        lambda: fs.sync_dir(f"{d}/none"),
        lambda: fs.mkdir(f"{d}/none/sub"),
        lambda: fs.rename(f"{d}/none", f"{d}/b"),
        lambda: fs.rename(f"{d}/x", f"{d}/y"),
    ):
        with pytest.raises(DiskFailed, match=d):
            action()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_its_own_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC-70."""
    file = OsFileSystem().create(f"{tmp_path}/a")

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(DiskFull, match=f"cannot write {tmp_path}/a: {os.strerror(number)}"):
        file.pwrite(b"x", 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_disk_full() -> None:
    file = OsFile("/dev/full", os.open("/dev/full", os.O_RDWR))
    with pytest.raises(DiskFull):
        file.pwrite(b"x", 0)
    file.close()


def test_a_failed_sync_is_disk_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("kvnode.disk.files._sync_data", fail)
    file = OsFileSystem().create(f"{tmp_path}/a")
    with pytest.raises(DiskFailed, match=f"cannot sync {tmp_path}/a: Input/output error"):
        file.sync()
    file.close()


def test_short_writes_and_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:3]), at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 2), at))
    file = OsFileSystem().create(f"{tmp_path}/a")
    file.pwrite(b"0123456789", 0)
    assert file.pread(10, 0) == b"0123456789"
    assert file.pread(100, 4) == b"456789"
    file.close()


def test_an_unreadable_parent_is_an_error_and_not_an_absence(tmp_path: Path) -> None:
    """RC-50."""
    (tmp_path / "file").touch()
    with pytest.raises(DiskFailed):
        OsFileSystem().exists(f"{tmp_path}/file/below")


# ---------------------------------------------------------------- whole files


def test_a_whole_file_is_the_old_or_the_new_one_after_a_crash_anywhere() -> None:
    """RC-9."""
    for at in range(1, 8):
        for seed in range(20):
            disk = CrashDisk(seed=seed)
            write_whole(disk, "/d", "f", b"old" * 1000)
            disk.operations = 0
            disk.crash_at = at
            acknowledged = False
            try:
                write_whole(disk, "/d", "f", b"new!" * 700)
                acknowledged = True
            except BaseException as error:  # noqa: BLE001
                assert type(error).__name__ == "MachineStopped"  # noqa: PT017
            disk.crash()
            found = read_whole(disk, "/d/f", 10_000)
            assert found == b"new!" * 700 or (found == b"old" * 1000 and not acknowledged)


def test_a_full_disk_leaves_the_old_file_and_no_rubbish() -> None:
    disk = CrashDisk()
    write_whole(disk, "/d", "f", b"old")
    disk.capacity = disk.used()
    with pytest.raises(DiskFull):
        write_whole(disk, "/d", "f", b"new and longer")
    assert disk.files() == ["/d/f"]
    assert read_whole(disk, "/d/f", 100) == b"old"


def test_a_file_above_its_bound_is_corrupt() -> None:
    disk = CrashDisk()
    write_whole(disk, "/d", "f", bytes(101))
    with pytest.raises(CorruptLog, match="/d/f: longer than 100 bytes"):
        read_whole(disk, "/d/f", 100)

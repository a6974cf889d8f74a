"""Laws of ``kvnode.disk.data_dir`` and ``kvnode.disk.lock``, with real processes where they matter."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.disk.data_dir import DataDir, _file_system_type, _warnings
from kvnode.disk.journal import Save
from kvnode.disk.lock import DirectoryLock
from kvnode.disk.worker import ThreadWorker
from kvnode.errors import CorruptLog, DirectoryInUse, DiskFailed, ForeignDirectory, KvnodeError
from kvnode.raft.types import Entry, EntryKind, HardState, Index, NodeId, Term
from tests.disk.crash_disk import CrashDisk

HOLDER = """
import sys
from kvnode.disk.data_dir import DataDir
data = DataDir.open(sys.argv[1], "n-0")
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_kept_out_and_told_who_is_in(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    """RC-52."""
    identity = (tmp_path / "data" / "identity.json").read_bytes()
    who = f"process {holder.pid} on host {socket.gethostname()}"
    with pytest.raises(DirectoryInUse, match=f"data is in use by {who}"):
        DataDir.open(str(tmp_path / "data"), "n-0")
    assert (tmp_path / "data" / "identity.json").read_bytes() == identity


def test_a_killed_process_leaves_no_lock_behind(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    data = DataDir.open(str(tmp_path / "data"), "n-0")
    assert data.record.boot == 2
    data.check_epoch()
    data.close()


def test_where_locks_lie_the_newcomer_wins_and_the_old_process_stops_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC-52: the epoch is the second guard."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    old = DataDir.open(str(tmp_path), "n-0")
    core, _ = old.open_journal()
    core.run([Save(HardState(Term(1), None), [])])
    new = DataDir.open(str(tmp_path), "n-0")
    assert new.record == old.record._replace(boot=2, runs=new.record.runs)
    assert new.record.runs[1:] == old.record.runs
    before = {path: path.read_bytes() for path in (tmp_path / "raft").iterdir()}
    with pytest.raises(DirectoryInUse, match=f"process {os.getpid()} on host .* took this data"):
        core.run([Save(HardState(Term(2), NodeId("x")), [])])
    assert before == {path: path.read_bytes() for path in (tmp_path / "raft").iterdir()}
    new.check_epoch()
    core.close()
    old.close()
    new.close()


def test_two_newcomers_at_the_same_moment_do_not_both_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may raise the epoch to the same number: the rest of the line tells them apart."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr("kvnode.disk.lock._epoch", lambda _: 4)
    first, second = DirectoryLock.take(str(tmp_path)), DirectoryLock.take(str(tmp_path))
    with pytest.raises(DirectoryInUse):
        first.check()
    second.check()
    first.release()
    second.release()


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    data = DataDir.open(str(tmp_path), "n-0")
    assert any("has no locks" in warning for warning in data.warnings)
    data.close()


def test_rubbish_in_the_lock_file_does_not_keep_the_node_from_starting(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_bytes(b"\xff\x00 rubbish")
    data = DataDir.open(str(tmp_path), "n-0")
    data.check_epoch()
    data.close()
    data.close()


def test_the_log_survives_the_process_and_its_loss_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b")
    data = DataDir.open(path, "n-0")
    core, found = data.open_journal()
    assert found.entries == []
    entry = Entry(Index(1), Term(1), EntryKind.COMMAND, b"v")
    core.run([Save(HardState(Term(1), None), [entry])])
    core.close()
    data.close()
    data = DataDir.open(path, "n-0")
    core, found = data.open_journal()
    assert found.entries == [entry]
    core.close()
    data.close()
    os.rename(data.raft_path, data.raft_path + ".lost")
    data = DataDir.open(path, "n-0")
    with pytest.raises(CorruptLog, match="missing, but this node had a log"):
        data.open_journal()
    data.close()


async def test_the_identity_store_keeps_what_the_start_wrote(tmp_path: Path) -> None:
    import asyncio

    data = DataDir.open(str(tmp_path), "n-0")
    core, _ = data.open_journal()
    worker = ThreadWorker(asyncio.get_running_loop())
    store = data.identity_store(worker)
    saved: asyncio.Queue[KvnodeError | None] = asyncio.Queue()
    store.save("cluster", "", saved.put_nowait)
    async with asyncio.timeout(10):
        assert await saved.get() is None
    worker.close()
    core.close()
    data.close()
    data = DataDir.open(str(tmp_path), "n-0")
    assert (data.record.cluster_id, data.record.boot) == ("cluster", 2)
    core, _ = data.open_journal()
    core.close()
    data.close()


def test_a_failed_open_leaves_the_lock_free(tmp_path: Path) -> None:
    DataDir.open(str(tmp_path), "n-0").close()
    with pytest.raises(ForeignDirectory):
        DataDir.open(str(tmp_path), "n-1")
    DataDir.open(str(tmp_path), "n-0").close()


def test_a_full_disk_does_not_keep_a_node_from_starting(tmp_path: Path) -> None:
    """RC-70: a start writes a little; the reserve makes the room, and the operator is told."""
    disk = CrashDisk(capacity=1 << 20)
    disk.mkdir("/tmp")
    path = str(tmp_path)
    for depth in range(1, len(tmp_path.parts)):
        disk.mkdir("/".join(["", *tmp_path.parts[1 : depth + 1]]))
    data = DataDir.open(path, "n-0", fs=disk)
    core, _ = data.open_journal()
    core.run([Save(HardState(Term(1), None), [])])
    core.close()
    data.close()
    disk.capacity = sum(len(disk.inode(file).now) for file in disk.files(path)) + 10
    data = DataDir.open(path, "n-0", fs=disk)
    assert any("the reserve of 64 KiB was given up" in warning for warning in data.warnings)
    core, found = data.open_journal()
    assert found.hard_state.term == 1
    assert not disk.exists(f"{path}/RESERVE")
    core.close()
    data.close()
    disk.capacity = 1 << 20
    data = DataDir.open(path, "n-0", fs=disk)
    core, _ = data.open_journal()
    assert disk.exists(f"{path}/RESERVE")
    core.close()
    data.close()


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DiskFailed, match="data is a file, not a directory"):
        DataDir.open(str(tmp_path / "data"), "n-0")
    with pytest.raises(DiskFailed, match="cannot make the data directory"):
        DataDir.open(str(tmp_path / "data" / "below"), "n-0")


def test_a_directory_of_another_user_tells_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DiskFailed, match=r"mode 0\d+.*may not write there.*fsGroup"):
        DataDir.open(str(tmp_path), "n-0")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("nfs4", "network file system"), ("fuse.glusterfs", "network"), ("tmpfs", "gone when")],
)
def test_file_systems_with_weak_promises_are_warned_of(
    kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC-10."""
    monkeypatch.setattr("kvnode.disk.data_dir._file_system_type", lambda _: kind)
    assert any(text in warning for warning in _warnings(str(tmp_path), locked=True))


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="needs Linux")
def test_the_type_of_a_file_system_is_found(tmp_path: Path) -> None:
    assert _file_system_type("/proc/self") == "proc"
    assert _file_system_type(str(tmp_path)) != ""

"""Laws of ``kvnode.disk.identity``."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import pytest

from kvnode.disk.identity import (
    OpenedIdentity,
    _checksum,
    new_run,
    open_identity,
    write_identity,
)
from kvnode.disk.identity_store import IdentityFile
from kvnode.disk.journal import open_journal
from kvnode.disk.quarantine import check_mark
from kvnode.disk.whole_file import write_whole
from kvnode.errors import CorruptLog, DirectoryInUse, DiskFailed, ForeignDirectory, KvnodeError
from kvnode.ports import Done, IdentityRecord, IdentityStore, PeerBoot
from kvnode.raft.types import NodeId
from tests.disk.crash_disk import CrashDisk, MachineStopped

T = TypeVar("T")
PATH = "/d/identity.json"


def opened(
    disk: CrashDisk,
    name: str = "n-0",
    ids: Callable[[], str] | None = None,
    runs: Callable[[], int] | None = None,
) -> OpenedIdentity:
    numbers = count(1)
    return open_identity(disk, "/d", name, ids or (lambda: f"id-{next(numbers)}"), runs or new_run)


class InlineWorker:
    """Runs jobs when told."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], T], done: Done[T]) -> None:
        def run() -> None:
            try:
                value = job()
            except KvnodeError as error:
                done(None, error)
            else:
                done(value, None)

        self.jobs.append(run)

    def run(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


def store(disk: CrashDisk) -> tuple[IdentityFile, InlineWorker]:
    worker = InlineWorker()
    return IdentityFile(disk, "/d", opened(disk).identity, worker), worker


def test_an_empty_directory_gets_an_incarnation_once() -> None:
    """RC-49."""
    disk = CrashDisk()
    first = opened(disk, runs=lambda: 7)
    assert first == opened(CrashDisk(), runs=lambda: 7)
    assert first.identity.record._replace(runs=()) == IdentityRecord(
        NodeId("id-1"), "n-0", "", "", 1
    )
    assert (first.fresh, first.set_aside) == (True, "")
    disk.crash()
    again = opened(disk, ids=lambda: pytest.fail("the id is made once"))
    record = again.identity.record
    assert record == first.identity.record._replace(boot=2, runs=(record.runs[0], 7))


def test_the_boot_number_rises_durably_at_each_start() -> None:
    """RC-52."""
    disk = CrashDisk()
    for boot in range(1, 6):
        assert opened(disk).identity.record.boot == boot
        disk.crash()


def test_another_name_is_refused() -> None:
    disk = CrashDisk()
    opened(disk, "n-0")
    with pytest.raises(ForeignDirectory, match=r"/d belongs to the node named 'n-0'.*'n-1'"):
        opened(disk, "n-1")


def test_a_damaged_identity_is_an_error_and_stays_as_it_is() -> None:
    """RC-50: unreadable is not empty."""
    disk = CrashDisk()
    opened(disk)
    good = bytes(disk.inode(PATH).durable)
    bad = [b"", b"{}", b"[]", b"null", good[:-20], good.replace(b"id-1", b"id-2"), bytes(50)]
    bad += [good.replace(b'"boot": 1', b'"boot": 0'), b"\xff" + good, good.replace(b"crc", b"xxx")]
    for content in bad:
        disk.damage(PATH, content)
        with pytest.raises(CorruptLog, match=f"{PATH}: damaged"):
            opened(disk)
        assert bytes(disk.inode(PATH).now) == content


@pytest.mark.parametrize("name", ["raft", "state", "snapshots"])
def test_data_without_an_identity_are_not_an_empty_directory(name: str) -> None:
    """RC-50."""
    disk = CrashDisk()
    disk.mkdir(f"/d/{name}")
    with pytest.raises(CorruptLog, match=f"identity.json: missing, but there is {name}"):
        opened(disk)


def test_strangers_files_do_not_matter() -> None:
    disk = CrashDisk()
    disk.mkdir("/d/lost+found")
    disk.create("/d/LOCK").close()
    assert opened(disk).fresh


def test_an_unknown_format_is_not_read() -> None:
    disk = CrashDisk()
    found = opened(disk).identity
    value = json.loads(bytes(disk.inode(PATH).now))
    value["identity"]["format"] = 9
    from kvnode.disk import identity as module

    value["crc32"] = module._checksum(value["identity"])
    disk.damage(PATH, json.dumps(value).encode())
    with pytest.raises(ForeignDirectory, match="data format 9; this version of kvnode reads 1"):
        opened(disk)
    write_identity(disk, "/d", found)
    assert opened(disk).identity.record.boot == 2


def test_the_log_once_made_must_stay() -> None:
    disk = CrashDisk()
    found = opened(disk)
    open_journal(disk, "/d/raft", fresh=found.fresh)
    write_identity(disk, "/d", found.identity._replace(log_made=True))
    disk.rename("/d/raft", "/d/elsewhere")
    again = opened(disk)
    assert not again.fresh
    with pytest.raises(CorruptLog, match="missing, but this node had a log there"):
        open_journal(disk, "/d/raft", fresh=again.fresh)


# ---------------------------------------------------------------- the store


def test_saves_show_once_done_and_build_on_each_other() -> None:
    disk = CrashDisk()
    identity, worker = store(disk)
    _: IdentityStore = identity
    seen: list[Any] = []
    identity.save("", "pledge", seen.append)
    identity.save("cluster", "", seen.append)
    assert identity.record.cluster_id == identity.record.pledge == ""
    worker.run()
    assert seen == [None, None]
    assert identity.record._replace(runs=()) == IdentityRecord(
        NodeId("id-1"), "n-0", "cluster", "", 1
    )
    disk.crash()
    again = opened(disk, runs=lambda: 7).identity.record
    assert again == identity.record._replace(boot=2, runs=(7, *identity.record.runs))


def test_a_cluster_never_changes() -> None:
    identity, worker = store(CrashDisk())
    identity.save("c", "", lambda _: None)
    with pytest.raises(AssertionError, match="never changes its cluster"):
        identity.save("d", "", lambda _: None)
    worker.run()


def test_a_failed_save_is_told_and_not_shown() -> None:
    disk = CrashDisk()
    identity, worker = store(disk)
    seen: list[Any] = []
    identity.save("c", "", seen.append)
    disk.fail_at = disk.operations + 2
    worker.run()
    assert isinstance(seen[0], DiskFailed)
    assert identity.record.cluster_id == ""


# ---------------------------------------------------------------- set aside


def removed() -> CrashDisk:
    """A node that was removed from its cluster, with data everywhere."""
    disk = CrashDisk()
    found = opened(disk)
    open_journal(disk, "/d/raft", fresh=True)
    write_identity(disk, "/d", found.identity._replace(log_made=True))
    for name in ("state", "snapshots"):
        disk.mkdir(f"/d/{name}")
        disk.create(f"/d/{name}/precious").close()
        disk.sync_dir(f"/d/{name}")
    disk.sync_dir("/d")
    identity, worker = store(disk)
    identity.set_aside(lambda error: None)
    worker.run()
    disk.operations = 0
    return disk


def test_a_removed_incarnation_is_moved_aside_and_a_new_one_begins() -> None:
    """RC-51: nothing is deleted."""
    disk = removed()
    before = disk.files()
    found = opened(disk, ids=lambda: "new")
    assert found.set_aside == "/d/set-aside-id-1"
    assert found.fresh
    assert found.identity.record._replace(runs=()) == IdentityRecord(
        NodeId("new"), "n-0", "", "", 1
    )
    assert not found.identity.set_aside
    moved = {path.replace("/d/", "/d/set-aside-id-1/") for path in before}
    assert set(disk.files()) == moved | {PATH}
    assert opened(disk).set_aside == ""
    _, recovered = open_journal(disk, "/d/raft", fresh=True)
    assert recovered.entries == []


def test_moving_aside_may_be_cut_off_anywhere() -> None:
    """Either the old incarnation is still to be moved, or the new one is alone; never a mixture."""
    for at in range(1, 40):
        disk = removed()
        disk.rng.seed(at)
        before = set(disk.files())
        disk.crash_at = at
        try:
            opened(disk, ids=lambda: "new")
        except MachineStopped:
            disk.crash()
            found = opened(disk, ids=lambda: "new")
            assert found.identity.record.node_id == "new"
            assert found.fresh
            moved = {path.replace("/d/", "/d/set-aside-id-1/") for path in before}
            assert set(disk.files()) == moved | {PATH}
        else:
            return
    pytest.fail("opening never ends")


def test_peers_and_runs_are_kept() -> None:
    disk = CrashDisk()
    identity, worker = store(disk)
    peers = (PeerBoot(NodeId("a"), 3, 77), PeerBoot(NodeId("b"), 1, 5))
    done: list[object] = []
    identity.remember(peers, done.append)
    worker.run()
    assert done == [None]
    assert identity.record.peers == peers
    first = identity.record.runs
    again = opened(disk).identity.record
    assert again.peers == peers
    assert again.runs[1:] == first
    assert len(set(again.runs)) == 2


def test_a_fenced_directory_is_not_opened_again() -> None:
    disk = CrashDisk()
    identity, worker = store(disk)
    done: list[object] = []
    identity.fence("an old copy", done.append)
    worker.run()
    assert done == [None]
    with pytest.raises(CorruptLog, match="an old copy"):
        check_mark(disk, "/d")


def test_who_lost_the_directory_does_not_fence_it() -> None:
    disk = CrashDisk()
    identity, worker = store(disk)
    opened(disk)  # another process
    done: list[object] = []
    identity.fence("an old copy", done.append)
    worker.run()
    assert isinstance(done[0], DirectoryInUse)
    check_mark(disk, "/d")


@pytest.mark.parametrize(("name", "value"), [("peers", 7), ("peers", [[1, 2, 3]]), ("runs", ["x"])])
def test_malformed_lineage_is_damage(name: str, value: object) -> None:
    disk = CrashDisk()
    store(disk)
    content = json.loads(disk.open("/d/identity.json").pread(1 << 20, 0))["identity"]
    content[name] = value
    body = {"identity": content, "crc32": _checksum(content)}
    write_whole(disk, "/d", "identity.json", json.dumps(body).encode())
    with pytest.raises(CorruptLog):
        opened(disk)

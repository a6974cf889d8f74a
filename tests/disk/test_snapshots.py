"""Laws of ``kvnode.disk.snapshots``."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.disk.files import OsFileSystem
from kvnode.disk.snapshots import FileSnapshotStore
from kvnode.errors import CorruptLog, DiskFull, InvariantBroken
from kvnode.ports import SnapshotStore
from kvnode.raft.types import Index, LogId, Member, Membership, NodeId, SnapshotMeta, Term
from tests.disk.crash_disk import CrashDisk, MachineStopped

PATH = "/d/snapshots/received.snapshot"


def meta(index: int = 9) -> SnapshotMeta:
    node = NodeId("a")
    membership = Membership(frozenset({node}), frozenset(), (Member(node, "n-0", "h:1"),))
    return SnapshotMeta(LogId(Index(index), Term(2)), membership)


def fresh() -> tuple[CrashDisk, FileSnapshotStore]:
    disk = CrashDisk()
    return disk, FileSnapshotStore(disk, "/d/snapshots")


def receive(store: FileSnapshotStore, chunks: list[bytes], index: int = 9) -> None:
    writer = store.begin(meta(index))
    for chunk in chunks:
        writer.write(chunk)
    writer.commit()


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8))
def test_a_committed_snapshot_is_read_back_after_a_crash(chunks: list[bytes]) -> None:
    disk, store = fresh()
    _: SnapshotStore = store
    receive(store, chunks)
    disk.crash()
    store = FileSnapshotStore(disk, "/d/snapshots")
    found = store.complete()
    assert found is not None
    assert found[0] == meta()
    assert list(store.read(found[1])) == chunks


def test_there_is_none_at_first_and_none_after_discard() -> None:
    disk, store = fresh()
    assert store.complete() is None
    receive(store, [b"x"])
    store.discard()
    store.discard()
    disk.crash()
    assert FileSnapshotStore(disk, "/d/snapshots").complete() is None


def test_the_newest_committed_one_counts_and_an_unfinished_one_does_not() -> None:
    disk, store = fresh()
    receive(store, [b"old"], 1)
    first = store.begin(meta(2))
    first.write(b"half")
    second = store.begin(meta(3))  # replaces the unfinished one
    with pytest.raises(InvariantBroken):
        first.write(b"more")
    second.write(b"half")
    found = store.complete()
    assert found is not None
    assert found[0] == meta(1)
    second.abort()
    second.abort()
    assert disk.files() == [PATH]
    receive(store, [b"new"], 4)
    second.abort()
    found = store.complete()
    assert found is not None
    assert (found[0], list(store.read(found[1]))) == (meta(4), [b"new"])


def test_a_crash_anywhere_leaves_the_old_the_new_or_none() -> None:
    """RC-9, RC-37."""
    for at in range(1, 20):
        for seed in range(4):
            disk, store = fresh()
            disk.rng = random.Random(seed)
            receive(store, [b"old" * 500], 1)
            disk.operations = 0
            disk.crash_at = at
            done = False
            with contextlib.suppress(MachineStopped):
                receive(store, [b"new" * 400, b"end" * 300], 2)
                done = True
            disk.crash()
            store = FileSnapshotStore(disk, "/d/snapshots")
            found = store.complete()
            assert found is not None
            content = b"".join(store.read(found[1]))
            new = (meta(2), b"new" * 400 + b"end" * 300)
            assert (found[0], content) in ([new] if done else [(meta(1), b"old" * 500), new])


def test_what_complete_returns_is_durable() -> None:
    """Also when the process before died between the rename and the sync of the directory."""
    for seed in range(20):
        disk, store = fresh()
        disk.rng = random.Random(seed)
        disk.operations = 0
        disk.crash_at = 8  # the sync of the directory
        with contextlib.suppress(MachineStopped):
            receive(store, [b"x"])
        disk.kill()
        found = FileSnapshotStore(disk, "/d/snapshots").complete()
        assert found is not None
        disk.crash()
        assert FileSnapshotStore(disk, "/d/snapshots").complete() == found


@given(st.randoms(use_true_random=False))
def test_any_damage_is_found(rng: random.Random) -> None:
    """RC-36, RC-71, RC-73: also a chunk that is missing whole, twice there, or in another place."""
    disk, store = fresh()
    receive(store, [rng.randbytes(100), rng.randbytes(100), b"x" * 100])
    good = bytes(disk.inode(PATH).durable)
    start = len(good) - 56 - 3 * 108
    parts = [good[start + i * 108 : start + i * 108 + 108] for i in range(3)]
    kind = rng.choice(["flip", "cut", "more", "swap", "drop", "double"])
    if kind == "flip":
        bad = bytearray(good)
        bit = rng.randrange(len(bad) * 8)
        bad[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        bad = bytearray(good[: rng.randrange(len(good))])
    elif kind == "more":
        bad = bytearray(good + b"\0")
    else:
        order = {"swap": [1, 0, 2], "drop": [0, 2], "double": [0, 0, 1, 2]}[kind]
        bad = bytearray(good[:start] + b"".join(parts[i] for i in order) + good[start + 324 :])
    disk.damage(PATH, bytes(bad))
    with pytest.raises(CorruptLog, match=PATH):
        store.complete()
    with pytest.raises(CorruptLog, match=PATH):
        list(store.read(PATH))


def test_a_full_disk_harms_only_the_snapshot() -> None:
    disk, store = fresh()
    receive(store, [b"old"], 1)
    writer = store.begin(meta(2))
    disk.capacity = disk.used() + 50
    with pytest.raises(DiskFull):
        writer.write(bytes(100))
    writer.abort()
    found = store.complete()
    assert found is not None
    assert found[0] == meta(1)


def test_on_the_real_file_system(tmp_path: Path) -> None:
    store = FileSnapshotStore(OsFileSystem(), f"{tmp_path}/snapshots")
    chunks = [bytes([i]) * 70_000 for i in range(20)]
    receive(store, chunks)
    found = FileSnapshotStore(OsFileSystem(), f"{tmp_path}/snapshots").complete()
    assert found is not None
    assert list(store.read(found[1])) == chunks

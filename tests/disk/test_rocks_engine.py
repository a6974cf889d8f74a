"""RocksDB at its edges: generations, damage, locks, crashes. The engine contract itself is covered by
``tests/store/test_engine.py``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.disk import rocks_engine
from kvnode.disk.rocks_engine import RocksEngineFactory, RocksSettings
from kvnode.errors import (
    CorruptLog,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    InvariantBroken,
    MustStop,
)
from kvnode.store.checks import check
from kvnode.store.commands import KvSet
from kvnode.store.snapshot import load
from kvnode.store.store import Store

SMALL = RocksSettings(write_buffer_bytes=64 * 1024, block_cache_bytes=256 * 1024)


def factory(path: Path) -> RocksEngineFactory:
    return RocksEngineFactory(path / "state", SMALL)


def filled(path: Path, keys: int = 2000) -> None:
    """Leave a closed store with exactly one table on disk: with small buffers there could be others
    that are obsolete and not removed yet, whose damage harms nobody.
    """
    engine = RocksEngineFactory(path / "state").open_current()
    store = Store(engine)
    for i in range(1, keys + 1):
        store.apply_batch([(i, KvSet(b"%06d" % i, os.urandom(100)))])
    engine.flush()
    engine.close()


# --- generations


def test_an_empty_directory_gets_its_first_generation(tmp_path: Path) -> None:
    engine = factory(tmp_path).open_current()
    assert Store(engine).applied_index == 0
    engine.close()
    assert (tmp_path / "state" / "CURRENT").read_text() == "1\n"
    assert (tmp_path / "state" / "1").is_dir()


def test_what_was_written_is_there_after_closing(tmp_path: Path) -> None:
    filled(tmp_path)
    engine = factory(tmp_path).open_current()
    store = Store(engine)
    assert (store.applied_index, store.count()) == (2000, 2000)
    assert check(store) == []
    engine.close()


def test_an_unfinished_next_generation_is_removed_at_open(tmp_path: Path) -> None:
    """RC-37: a crash in the middle of an install leaves the old state."""
    filled(tmp_path, 10)
    first = factory(tmp_path)
    current = first.open_current()
    unfinished = first.create_next()
    unfinished.write([(b"ka", b"x")])
    unfinished.close()
    current.close()
    (tmp_path / "state" / "2").mkdir(exist_ok=True)
    (tmp_path / "state" / "CURRENT.new").write_text("2")
    engine = factory(tmp_path).open_current()
    assert Store(engine).applied_index == 10
    assert sorted(os.listdir(tmp_path / "state")) == ["1", "CURRENT"]
    engine.close()


def test_a_failed_try_is_removed_before_the_next_one(tmp_path: Path) -> None:
    generations = factory(tmp_path)
    current = generations.open_current()
    for _ in range(2):
        unfinished = generations.create_next()
        unfinished.write([(b"ka", b"x")])
        unfinished.close()
        (tmp_path / "state" / "2").mkdir(exist_ok=True)
    fresh = generations.create_next()
    assert list(fresh.scan(b"", None)) == []
    fresh.close()
    current.close()


def test_a_switch_is_durable_and_the_old_generation_goes_when_it_is_closed(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    generations = factory(tmp_path)
    old = generations.open_current()
    store = Store(old)
    fresh = generations.create_next()
    dump = store.dump()
    load(fresh, dump)
    dump.close()
    fresh.flush()
    generations.switch_to_next()
    assert (tmp_path / "state" / "CURRENT").read_text() == "2\n"
    assert (tmp_path / "state" / "1").is_dir(), "still open"
    store.replace(fresh).close()
    assert sorted(os.listdir(tmp_path / "state")) == ["2", "CURRENT"]
    store.apply_batch([(11, KvSet(b"x", b""))])
    fresh.close()
    engine = factory(tmp_path).open_current()
    assert Store(engine).applied_index == 11
    engine.close()


def test_a_crash_between_switch_and_close_leaves_only_the_new_generation(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    shutil.copytree(tmp_path / "state" / "1", tmp_path / "state" / "2")
    (tmp_path / "state" / "CURRENT").write_text("2\n")
    engine = factory(tmp_path).open_current()
    assert Store(engine).applied_index == 10
    assert sorted(os.listdir(tmp_path / "state")) == ["2", "CURRENT"]
    engine.close()


def test_the_pointer_is_synced_before_and_after_its_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC-9: write, sync, rename, sync the directory."""
    generations = factory(tmp_path)
    current = generations.open_current()
    fresh = generations.create_next()
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def traced_fsync(descriptor: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def traced_rename(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "rename", traced_rename)
    generations.switch_to_next()
    assert steps == ["sync CURRENT.new", "rename CURRENT.new CURRENT", "sync state"]
    fresh.close()
    current.close()


# --- damage: an unreadable directory is never an empty one (RC-50)


def refuse_to_open(path: Path) -> str:
    with pytest.raises(CorruptLog) as caught:
        factory(path).open_current()
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "1", "x\n", "-1\n", "0\n", "1\n1\n", "²\n"])
def test_an_unreadable_pointer_is_refused(tmp_path: Path, text: str) -> None:
    filled(tmp_path, 10)
    (tmp_path / "state" / "CURRENT").write_text(text)
    assert "CURRENT" in refuse_to_open(tmp_path)


def test_a_missing_pointer_beside_data_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    (tmp_path / "state" / "CURRENT").unlink()
    assert "CURRENT" in refuse_to_open(tmp_path)
    assert (tmp_path / "state" / "1").is_dir()


def test_a_crash_before_the_very_first_pointer_is_no_damage(tmp_path: Path) -> None:
    engine = factory(tmp_path).open_current()
    engine.close()
    (tmp_path / "state" / "CURRENT").unlink()
    engine = factory(tmp_path).open_current()
    assert Store(engine).applied_index == 0
    engine.close()


def test_a_missing_generation_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    shutil.rmtree(tmp_path / "state" / "1")
    refuse_to_open(tmp_path)
    assert not (tmp_path / "state" / "1").exists(), "not made anew"


def test_an_emptied_generation_is_refused(tmp_path: Path) -> None:
    """RocksDB itself would make a new one there, were it allowed to."""
    filled(tmp_path, 10)
    shutil.rmtree(tmp_path / "state" / "1")
    (tmp_path / "state" / "1").mkdir()
    refuse_to_open(tmp_path)


@pytest.mark.parametrize("pattern", ["*.sst", "MANIFEST-*", "CURRENT"])
def test_a_missing_file_is_refused(tmp_path: Path, pattern: str) -> None:
    """RC-73."""
    filled(tmp_path)
    [file] = (tmp_path / "state" / "1").glob(pattern)
    file.unlink()
    with pytest.raises(MustStop):
        factory(tmp_path).open_current()


def test_a_flipped_bit_in_a_table_is_never_served_and_never_ends_a_list(tmp_path: Path) -> None:
    """RC-71. An iterator of RocksDB only stops at an unreadable block: that is not the end."""
    filled(tmp_path)
    [table] = (tmp_path / "state" / "1").glob("*.sst")
    size = table.stat().st_size
    with table.open("r+b") as file:
        file.seek(size // 3)
        byte = file.read(1)[0]
        file.seek(size // 3)
        file.write(bytes([byte ^ 4]))
    try:
        engine = factory(tmp_path).open_current()
    except CorruptLog:
        return
    store = Store(engine)
    with pytest.raises(CorruptLog):
        store.list(b"")
    with pytest.raises(CorruptLog):
        store.list(b"", reverse=True)
    with pytest.raises(CorruptLog):
        store.prefix_index(b"0")
    dump = store.dump()
    with pytest.raises(CorruptLog):
        list(dump)
    dump.close()
    assert check(store)
    lost = 0
    for i in range(1, 2001):
        try:
            assert store.get(b"%06d" % i) is not None, "an unreadable key is not a missing one"
        except CorruptLog:
            lost += 1
    assert 0 < lost < 2000
    engine.close()
    try:
        factory(tmp_path).open_current().close()
    except DirectoryInUse:
        pytest.fail("a failed flush at the end must not keep the directory locked")
    except CorruptLog:
        pass


def test_an_engine_that_is_refused_holds_nothing(tmp_path: Path) -> None:
    """The milestones themselves are damaged: RocksDB opens, and the look at them is refused.

    The exception is still alive, as while a node sets its data aside and begins again in the same place.
    """
    filled(tmp_path, 1)
    [table] = (tmp_path / "state" / "1").glob("*.sst")
    data = bytearray(table.read_bytes())
    data[20] ^= 1  # so small a table has one block of data
    table.write_bytes(data)
    with pytest.raises(CorruptLog, match="could not be opened") as caught:
        factory(tmp_path).open_current()
    (tmp_path / "state").rename(tmp_path / "aside")
    engine = factory(tmp_path).open_current()
    assert Store(engine).applied_index == 0
    engine.close()
    assert caught.value.__traceback__ is not None


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a directory")
    with pytest.raises(DiskFailed):
        factory(tmp_path).open_current()


# --- locks


def test_one_engine_per_directory_also_within_a_process(tmp_path: Path) -> None:
    engine = factory(tmp_path).open_current()
    with pytest.raises(DirectoryInUse):
        factory(tmp_path).open_current()
    engine.close()
    factory(tmp_path).open_current().close()


def test_closing_releases_the_directory_although_a_snapshot_and_a_scan_were_open(
    tmp_path: Path,
) -> None:
    """A live RocksDB iterator keeps the lock; ours end with the engine or with their reader."""
    engine = factory(tmp_path).open_current()
    engine.write([(b"ka", b"1"), (b"kb", b"2")])
    snapshot = engine.snapshot()
    rows = engine.scan(b"", None)
    assert next(rows) == (b"ka", b"1")
    rows.close()
    engine.close()
    with pytest.raises(InvariantBroken):
        snapshot.scan(b"", None)
    factory(tmp_path).open_current().close()


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    engine = factory(tmp_path).open_current()
    code = (
        "import sys, pathlib\n"
        "from kvnode.disk.rocks_engine import RocksEngineFactory\n"
        "from kvnode.errors import DirectoryInUse\n"
        "try: RocksEngineFactory(pathlib.Path(sys.argv[1])).open_current()\n"
        "except DirectoryInUse: sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state")], timeout=30, check=False
    )
    assert done.returncode == 7
    engine.close()


# --- crashes and syncs

WRITER = """
import pathlib, sys
from kvnode.disk.rocks_engine import RocksEngineFactory, RocksSettings
from kvnode.store.commands import KvSet
from kvnode.store.store import Store
store = Store(RocksEngineFactory(pathlib.Path(sys.argv[1]), RocksSettings(65536, 262144)).open_current())
index = store.applied_index
while True:
    store.apply_batch([(index + i, KvSet(b"%d/%d" % (i, index), bytes(200))) for i in range(1, 6)])
    index += 5
    sys.stdout.write("%d\\n" % index)
    sys.stdout.flush()
"""


def test_a_killed_process_loses_no_batch_and_tears_none(tmp_path: Path) -> None:
    """RC-6, RC-10: what was written before SIGKILL is there, in whole batches, again and again."""
    applied = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "state")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        said = applied
        for line in child.stdout:
            said = int(line)
            if said > applied + 2000:
                os.kill(child.pid, signal.SIGKILL)
                break
        rest = child.stdout.read().split(b"\n")
        said = max([said, *(int(line) for line in rest[:-1] if line)])
        child.stdout.close()
        child.wait(timeout=30)
        engine = factory(tmp_path).open_current()
        store = Store(engine)
        assert store.applied_index >= said
        assert store.applied_index % 5 == 0, "a batch was torn"
        assert store.count() == store.applied_index
        assert check(store) == []
        applied = store.applied_index
        engine.close()


@pytest.mark.parametrize("cut", [1, 7, 100, 1000, 5000])
def test_a_torn_write_ahead_log_gives_a_prefix_of_the_batches(tmp_path: Path, cut: int) -> None:
    """RC-10: what a crash of the machine may leave; the Raft log replays the rest."""
    engine = RocksEngineFactory(tmp_path / "state").open_current()
    store = Store(engine)
    for index in range(1, 101, 2):
        store.apply_batch(
            [(index, KvSet(b"a%d" % index, bytes(200))), (index + 1, KvSet(b"b", b"%d" % index))]
        )
    shutil.copytree(tmp_path / "state", tmp_path / "crashed" / "state")
    engine.close()
    log = max((tmp_path / "crashed" / "state" / "1").glob("*.log"), key=lambda p: p.stat().st_size)
    os.truncate(log, log.stat().st_size - cut)
    engine = factory(tmp_path / "crashed").open_current()
    store = Store(engine)
    assert 0 < store.applied_index < 100
    assert store.applied_index % 2 == 0
    assert check(store) == []
    engine.close()


def test_a_damaged_record_in_the_write_ahead_log_ends_the_replay_there(tmp_path: Path) -> None:
    """Later batches are intact, but applying them would leave a gap before them."""
    engine = RocksEngineFactory(tmp_path / "state").open_current()
    store = Store(engine)
    for index in range(1, 101):
        store.apply_batch([(index, KvSet(b"%d" % index, bytes(200)))])
    shutil.copytree(tmp_path / "state", tmp_path / "crashed" / "state")
    engine.close()
    log = max((tmp_path / "crashed" / "state" / "1").glob("*.log"), key=lambda p: p.stat().st_size)
    with log.open("r+b") as file:
        file.seek(log.stat().st_size // 2)
        file.write(b"\xff\x00\xff")
    engine = factory(tmp_path / "crashed").open_current()
    store = Store(engine)
    assert 40 <= store.applied_index <= 60
    assert check(store) == []
    engine.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_flush_syncs_the_log_file_of_the_engine(tmp_path: Path) -> None:
    """RC-10: seen at the system calls, not believed."""
    code = (
        "import pathlib, sys, os\n"
        "from kvnode.disk.rocks_engine import RocksEngineFactory\n"
        "engine = RocksEngineFactory(pathlib.Path(sys.argv[1])).open_current()\n"
        "engine.write([(b'ka', b'1')])\n"
        "os.access('/before-flush', 0)\n"
        "engine.flush()\n"
        "os.access('/after-flush', 0)\n"
    )
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "-y",
        "-e",
        "trace=fsync,fdatasync,access,faccessat,faccessat2",
        "-o",
        str(trace),
    ]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, str(tmp_path / "state")],
        timeout=50,
        check=False,
        capture_output=True,
    )
    text = trace.read_text() if trace.exists() else ""
    if done.returncode or "/before-flush" not in text:
        pytest.skip("strace may not trace here")
    flush = text[text.index("/before-flush") : text.index("/after-flush")]
    synced = [line for line in flush.splitlines() if "sync(" in line and "= 0" in line]
    assert any(".log>" in line for line in synced), flush


def test_flush_does_not_hold_the_interpreter(tmp_path: Path) -> None:
    """RC-11: it runs in a worker thread beside the event loop. A busy machine may stop this thread for
    as long, so one clean try out of ten is enough; a held interpreter would fail all.
    """
    engine = RocksEngineFactory(tmp_path / "state").open_current()
    shares = []
    for attempt in range(10):
        engine.write([(b"k%06d" % i, os.urandom(1000)) for i in range(attempt, 5000)])
        worker = threading.Thread(target=engine.flush)
        worst = 0.0
        last = started = time.perf_counter()
        worker.start()
        while worker.is_alive():
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        worker.join()
        if last == started:
            continue  # this thread did not get a core meanwhile
        shares.append(worst / (last - started))
        if shares[-1] < 0.5:
            break
    assert min(shares) < 0.5, shares
    engine.close()


def test_every_error_of_the_library_is_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``errors``: foreign exceptions end at this module."""
    engine = factory(tmp_path).open_current()
    engine.write([(b"ka", b"1")])

    class Broken:
        def __getattr__(self, name: str) -> object:
            def fail(*_: object, **__: object) -> object:
                raise Exception("IO error: No space left on device")  # noqa: TRY002

            return fail

    sound = engine._db
    engine._db = Broken()
    for call in (
        lambda: engine.get(b"ka"),
        lambda: list(engine.scan(b"", None)),
        lambda: engine.write([(b"kb", b"1")]),
        engine.flush,
        engine.snapshot,
    ):
        with pytest.raises(DiskFull, match="No space left"):
            call()
    engine._db = sound
    for text, expected in (
        ("Corruption: block checksum mismatch", CorruptLog),
        ("IO error: lock hold by current process", DirectoryInUse),
        ("IO error: While lock file: /x/LOCK: Resource temporarily unavailable", DirectoryInUse),
        ("IO error: No such file", DiskFailed),
        ("something new", DiskFailed),
    ):
        assert type(rocks_engine._translate(Exception(text), "x")) is expected
    engine.close()
    for call in (lambda: engine.get(b"ka"), lambda: engine.write([]), engine.flush):
        with pytest.raises(InvariantBroken):
            call()


# --- size


def stats(path: Path, pattern: str) -> Iterator[os.stat_result]:
    """Of the files that are there: the engine's own threads delete some while we look."""
    for file in path.rglob(pattern):
        with contextlib.suppress(FileNotFoundError):
            yield file.stat()


def test_a_small_engine_starts_on_a_tiny_volume(tmp_path: Path) -> None:
    """Preallocations are scaled with the write buffer: a few hundred KB on disk, not 20 MB."""
    engine = factory(tmp_path).open_current()
    store = Store(engine)
    for i in range(1, 201):
        store.apply_batch([(i, KvSet(b"%d" % i, b"x" * 100))])
    engine.flush()
    used = sum(stat.st_blocks * 512 for stat in stats(tmp_path / "state", "*"))
    assert used < 700_000, used
    engine.close()


def table_bytes(path: Path) -> int:
    return sum(stat.st_size for stat in stats(path, "*.sst"))


def test_space_of_deleted_rows_comes_back_when_it_is_asked_for(tmp_path: Path) -> None:
    """RC-70: a volume that was nearly full must recover by itself once somebody deletes."""
    factory = RocksEngineFactory(tmp_path, RocksSettings(write_buffer_bytes=1 << 20))
    engine = factory.open_current()
    keys = [b"k%04d" % number for number in range(200)]
    for key in keys:
        engine.write([(key, os.urandom(50_000))])
    engine.reclaim(100 << 20)
    full = table_bytes(tmp_path)
    assert full > 9_000_000
    engine.write([(key, None) for key in keys[20:]])
    engine.reclaim(1 << 20)
    assert table_bytes(tmp_path) >= full, "what is left does not fit beside it"
    engine.reclaim(5 << 20)
    assert table_bytes(tmp_path) < 2_000_000
    assert engine.get(keys[0]) is not None
    assert engine.get(keys[-1]) is None
    engine.close()
    engine.reclaim(5 << 20)  # a restore has put another one in its place

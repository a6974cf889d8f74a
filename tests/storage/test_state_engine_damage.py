"""Every file of the state engine, flipped and cut: what comes back is whole, older but whole, or refused.

RocksDB alone does not keep this promise: a manifest that lost its end is taken for an older state, the newest
write-ahead log is replayed on top, and the result has a hole. ``_Miles`` in ``rocks_engine`` is what
finds that; these tests fail without it.
"""

from __future__ import annotations

import faulthandler
import random
import shutil
import sys
from collections import Counter, deque
from contextlib import closing
from pathlib import Path

import pytest

from kvnode.disk import rocks_engine
from kvnode.disk.rocks_engine import RocksEngine, RocksEngineFactory, RocksSettings
from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.store.checks import check
from kvnode.store.commands import KvSet
from kvnode.store.store import Store

SMALL = RocksSettings(write_buffer_bytes=64 * 1024)
BATCHES = 3000
KEYS = 700


def write(engine: RocksEngine, first: int, count: int, seed: int = 1) -> None:
    store = Store(engine)
    rng = random.Random(seed)
    for index in range(first, first + count):
        store.apply_batch([(index, KvSet(b"k%d" % (index % KEYS), rng.randbytes(150)))])


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a killed process leaves: several flushes in the manifest, and a write-ahead log behind."""
    root = tmp_path_factory.mktemp("engine")
    engine = RocksEngineFactory(root / "state", SMALL).open_current()
    write(engine, 1, BATCHES)
    engine.flush()
    # The files as they are now are what the system's cache holds if the process ends at this line.
    copy_still(root / "state", root / "crashed")
    engine.close()
    return root / "crashed"


def copy_still(source: Path, target: Path) -> None:
    """Copy a live engine's files at a moment when its background work leaves them alone."""

    def facts() -> list[tuple[str, int, int]]:
        found = [path for path in source.rglob("*") if path.is_file()]
        return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found)

    for _ in range(100):
        shutil.rmtree(target, ignore_errors=True)
        try:
            before = facts()
            shutil.copytree(source, target)
            if facts() == before:
                return
        except (OSError, shutil.Error):
            continue
    raise AssertionError("the engine's files never stood still")


def damaged(rng: random.Random, source: Path, target: Path, name: str) -> str:
    """Copy, and flip or cut one file. Returns what was done."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    path = target / "1" / name
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    if rng.random() < 0.5:
        del data[at:]
        what = f"{name} cut to {at}"
    else:
        bit = rng.randrange(8)
        data[at] ^= 1 << bit
        what = f"{name}: bit {bit} of byte {at}"
    path.write_bytes(data)
    return what


def judge(directory: Path, what: str) -> str:
    """Open, read everything; the verdict in a word. Fails on a wrong answer."""
    opened = False
    engine: RocksEngine | None = None
    # Who reads for ever in C holds the interpreter: no other time limit would end that.
    faulthandler.dump_traceback_later(100, exit=True, file=sys.__stderr__)
    try:
        engine = RocksEngineFactory(directory, SMALL).open_current()
        opened = True
        store = Store(engine)
        store.list(b"")
        with closing(engine.scan(b"", None)) as rows:
            deque(rows, maxlen=0)  # damage in what no list reads is met here
        problems = check(store)
        verdict = "whole" if store.applied_index == BATCHES else "older and whole"
    except CorruptLog as error:
        problems = [] if str(directory) in str(error) else [f"{error} names no file"]
        verdict = "refused when read" if opened else "refused at open"
    finally:
        if engine is not None:
            engine.close()
        faulthandler.cancel_dump_traceback_later()
    assert problems == [], f"{what}: {problems}"
    return verdict


def attack(crashed: Path, scratch: Path, seed: int, names: list[str], cases: int) -> Counter[str]:
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(cases):
        what = damaged(rng, crashed, scratch, rng.choice(names))
        found[judge(scratch, what)] += 1
    return found


def test_a_manifest_that_lost_its_end_is_refused_or_harmless(crashed: Path, tmp_path: Path) -> None:
    """Without milestones one in three cuts gives a store with all indexes and holes in its data."""
    [manifest] = (crashed / "1").glob("MANIFEST-*")
    size = manifest.stat().st_size
    for at in range(0, size, max(1, size // 40)):
        scratch = tmp_path / "cut"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(crashed, scratch)
        with (scratch / "1" / manifest.name).open("r+b") as file:
            file.truncate(at)
        judge(scratch, f"{manifest.name} cut to {at}")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_damaged_file_of_the_engine_gives_a_wrong_value(
    crashed: Path, tmp_path: Path, seed: int
) -> None:
    names = [path.name for path in (crashed / "1").iterdir() if path.stat().st_size]
    found = attack(crashed, tmp_path / "scratch", seed, names, 300)
    print(dict(found))
    assert sum(found.values()) == 300
    assert found["refused at open"] > 30


def test_the_milestones_see_a_hole(tmp_path: Path) -> None:
    """The check itself, without RocksDB's help: one milestone is gone."""
    engine = RocksEngineFactory(tmp_path / "state", SMALL).open_current()
    write(engine, 1, 1000)
    batch = rocks_engine.WriteBatch(raw_mode=True)
    newest = rocks_engine._Miles.read(engine._db, engine.path)
    assert newest > 4
    del batch[rocks_engine._MILE + rocks_engine._NUMBER.pack(newest - 2)]
    engine._db.write(batch)
    engine.close()
    with pytest.raises(CorruptLog, match=f"milestone {newest - 2} of {newest}"):
        RocksEngineFactory(tmp_path / "state", SMALL).open_current()


def test_old_milestones_go_and_none_is_ever_seen_from_outside(tmp_path: Path) -> None:
    """They are bounded in number, and no row of the store."""
    engine = RocksEngineFactory(tmp_path / "state", SMALL).open_current()
    for turn in range(80):
        engine.write([(b"k%d" % turn, b"x" * 17_000)])
    rows = [(b"k%d" % turn, b"x" * 17_000) for turn in range(80)]
    assert list(engine.scan(b"", None)) == sorted(rows)
    assert list(engine.scan(b"", None, reverse=True)) == sorted(rows, reverse=True)
    snapshot = engine.snapshot()
    assert list(snapshot.scan(b"", None)) == sorted(rows)
    snapshot.close()
    keys = [key for key in engine._db.keys() if key.startswith(rocks_engine._MILE)]  # noqa: SIM118
    assert len(keys) == rocks_engine._MILES_KEPT
    engine.close()
    engine = RocksEngineFactory(tmp_path / "state", SMALL).open_current()
    assert list(engine.scan(b"", None)) == sorted(rows)
    engine.close()


def test_every_start_begins_a_mile(tmp_path: Path) -> None:
    """Opening flushes what was replayed, so what follows may lie behind a hole."""
    for turn in range(1, 4):
        engine = RocksEngineFactory(tmp_path / "state", SMALL).open_current()
        engine.write([(b"k", b"%d" % turn)])
        assert rocks_engine._Miles.read(engine._db, engine.path) == turn
        engine.close()


def opened_where_keys_are_damaged(
    crashed: Path, folder: Path, heard: list[CorruptLog]
) -> RocksEngine:
    """Flip a bit in every table, at the first place that opening does not notice and reading the keys does:
    which rows share a block depends on when the engine flushed.
    """
    for place in range(100, 1 << 20, 200):
        state = folder / f"state-{place}"
        shutil.copytree(crashed, state)
        for table in (state / "1").glob("*.sst"):
            data = bytearray(table.read_bytes())
            if place < len(data):
                data[place] ^= 1
                table.write_bytes(data)
        try:
            engine = RocksEngineFactory(state, SMALL, on_corrupt=heard.append).open_current()
        except CorruptLog:
            continue
        try:
            Store(engine).list(b"")
        except CorruptLog:
            heard.clear()
            return engine
        engine.close()
        shutil.rmtree(state)
    raise AssertionError("no key was damaged")


def test_whoever_meets_damage_the_node_hears_of_it(crashed: Path, tmp_path: Path) -> None:
    """A read in a request or in a snapshot's thread must end the node as surely as an apply (RC-71)."""
    heard: list[CorruptLog] = []
    engine = opened_where_keys_are_damaged(crashed, tmp_path, heard)
    store = Store(engine)
    with pytest.raises(CorruptLog):
        store.list(b"")
    assert len(heard) == 1
    dump = store.dump()
    with pytest.raises(CorruptLog):
        list(dump)
    dump.close()
    assert len(heard) == 2
    engine.close()
    with pytest.raises(InvariantBroken):
        engine.get(b"k")
    assert len(heard) == 2, "a bug is no damage"

"""Every file of a real node's directory, flipped and cut at random offsets, and then the recovery of a node.

A node with small bounds is filled through HTTP and killed, so that its directory holds a compacted log, a
store behind it, several tables and a write-ahead log. Law: the recovered node holds every acknowledged
write, or it refuses and says where the damage is.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from kvnode.disk.data_dir import DataDir
from kvnode.disk.files import OsFileSystem
from kvnode.disk.hard_state import log_end_noted
from kvnode.disk.journal import JournalCore, Operation, Reset, Save
from kvnode.disk.rocks_engine import RocksEngineFactory, RocksSettings
from kvnode.disk.snapshots import FileSnapshotStore
from kvnode.errors import CorruptLog, ForeignDirectory, KvnodeError
from kvnode.ports import LogBase
from kvnode.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    LogId,
    Member,
    Membership,
    NodeId,
    SnapshotMeta,
    Term,
)
from kvnode.replica.codec import decode
from kvnode.replica.recovery import recover
from kvnode.store.checks import check
from tests.chaos.processes import cluster
from tests.simulation.soak import source_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CASES = 400
KEYS = 900
SETTINGS = RocksSettings(write_buffer_bytes=64 * 1024)
FLAGS = ["--log-entries-max", "400", "--write-buffer-bytes", "65536"]


def value_of(number: int) -> bytes:
    return random.Random(number).randbytes(250)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a node that was killed after ``KEYS`` acknowledged writes."""
    root = tmp_path_factory.mktemp("node")

    async def fill() -> Path:
        async with cluster(root, 1, flags=FLAGS) as made:
            node = await made.leader()
            for turn in range(0, KEYS, 30):
                await asyncio.gather(*(put(made, node, n) for n in range(turn, turn + 30)))
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.5)  # a round of compaction, which comes once a second
            for number in range(KEYS, KEYS + 60):
                await put(made, node, number)
            async with asyncio.timeout(30):
                while not is_at_rest(node.data / "raft"):  # noqa: ASYNC110  # files tell nobody
                    await asyncio.sleep(0.1)
            node.kill()
            return node.data

    async def put(made, node, number: int) -> None:
        url = f"{node.url}/v1/kv/k{number}"
        async with made.session.put(url, data=value_of(number)) as answer:
            assert await answer.text() == "true"

    path = asyncio.run(fill())
    assert len(list((path / "raft").glob("*.seg"))) >= 1
    assert list((path / "state" / "1").glob("*.sst")), "the store was flushed into tables"
    return path


def is_at_rest(raft: Path) -> bool:
    """Whether the hard state says that the log is synced to the end of its last frame."""
    last = max(raft.glob("*.seg"))
    noted = log_end_noted((raft / "hard_state").read_bytes())
    return noted == (int(last.name.partition("-")[0]), len(last.read_bytes().rstrip(b"\0")))


class DirectJournal:
    """``kvnode.ports.Journal`` without a thread."""

    def __init__(self, core: JournalCore) -> None:
        self.core = core

    def save(
        self, hard_state: HardState | None, entries: Sequence[Entry], done: Callable[..., None]
    ) -> None:
        self._run(Save(hard_state, entries), done)

    def reset(self, base: LogBase, done: Callable[..., None]) -> None:
        self._run(Reset(base), done)

    def compact(self, base: LogBase, done: Callable[..., None]) -> None:
        raise AssertionError("a recovery compacts nothing")

    def pending(self) -> int:
        return 0

    def _run(self, operation: Operation, done: Callable[..., None]) -> None:
        self.core.run([operation])
        done(None)


def recovered_pairs(directory: Path) -> dict[bytes, bytes]:
    """What a node started on this directory would serve; raises when it would not start."""
    data_dir = DataDir.open(str(directory), "kvnode-0")
    core = engines = None
    try:
        core, found = data_dir.open_journal()
        engines = RocksEngineFactory(Path(data_dir.state_path), SETTINGS)
        snapshots = FileSnapshotStore(OsFileSystem(), data_dir.snapshots_path)
        recovery = recover(found, DirectJournal(core), engines, snapshots)
        store = recovery.store
        try:
            later = [e for e in recovery.entries if e.index > store.applied_index]
            # A cluster of one: what is durable is committed.
            store.apply_batch(
                [(e.index, decode(e.data) if e.kind == EntryKind.COMMAND else None) for e in later]
            )
            pairs = {pair.key: pair.value for pair in store.list(b"")}
            with closing(store.engine.scan(b"", None)) as rows:
                deque(rows, maxlen=0)  # damage in what no list reads is met here
            assert check(store) == []
            return pairs
        finally:
            store.engine.close()
    finally:
        if core is not None:
            core.close()
        data_dir.close()


EXPECTED = {b"k%d" % number: value_of(number) for number in range(KEYS + 60)}


def says_where(error: KvnodeError, directory: Path) -> None:
    """A file, or that the store and the log do not belong together."""
    text = str(error)
    assert str(directory) in text or "the store has applied" in text, text


def attack(source: Path, scratch: Path, damage: Callable[[Path], str]) -> tuple[str, str]:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    what = damage(scratch)
    try:
        pairs = recovered_pairs(scratch)
    except (CorruptLog, ForeignDirectory) as error:
        says_where(error, scratch)
        return what, "refused"
    except KvnodeError as error:
        raise AssertionError(f"{what}: not a refusal that heals: {error!r}") from error
    wrong = [key for key, value in EXPECTED.items() if pairs.get(key) != value]
    assert not wrong, f"{what}: {len(wrong)} acknowledged writes are lost or wrong, {wrong[:3]}"
    assert len(pairs) == len(EXPECTED), f"{what}: keys that nobody wrote"
    return what, "whole"


def flip_or_cut(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    # Most of a segment is zeros that wait: half of the damage goes where something was written.
    used = len(data.rstrip(b"\0")) if rng.random() < 0.5 else len(data)
    at = rng.randrange(max(1, used))
    dice = rng.random()
    if dice < 0.3:
        del data[at:]
        what = f"cut to {at}"
    elif dice < 0.5:
        size = rng.choice((512, 4096, len(data)))
        at -= at % min(size, 4096)
        data[at : at + size] = bytes(len(data[at : at + size]))
        what = f"{size} bytes at {at} read as zeros"
    else:
        bit = rng.randrange(8)
        data[at] ^= 1 << bit
        what = f"bit {bit} of byte {at}"
    path.write_bytes(data)
    return f"{path.parent.name}/{path.name} of {len(data)}: {what}"


def test_undamaged_it_is_all_there(original: Path, tmp_path: Path) -> None:
    """Else the rest proves nothing."""
    assert attack(original, tmp_path / "scratch", lambda _: "nothing")[1] == "whole"


@pytest.mark.parametrize("seed", [1, None])
def test_no_damage_to_any_file_loses_an_acknowledged_write(
    original: Path, tmp_path: Path, seed: int | None
) -> None:
    seed = seed or source_base()
    print(f"seed {seed}")
    rng = random.Random(seed)
    names = sorted(p.relative_to(original) for p in original.rglob("*") if p.is_file())
    names = [name for name in names if (original / name).stat().st_size]
    # Every kind of file as often as every other, however many tables there are.
    kinds: dict[str, list[Path]] = {}
    for name in names:
        kinds.setdefault(name.suffix if name.suffix in (".sst", ".log") else name.name, []).append(
            name
        )
    outcomes: Counter[tuple[str, str]] = Counter()
    for _ in range(CASES // 2):
        kind = rng.choice(sorted(kinds))
        name = rng.choice(kinds[kind])
        _, verdict = attack(
            original, tmp_path / "scratch", lambda d, name=name: flip_or_cut(rng, d / name)
        )
        outcomes[kind, verdict] += 1
    for (kind, verdict), count in sorted(outcomes.items()):
        print(f"{kind:40} {verdict:8} {count}")
    assert sum(n for (_, verdict), n in outcomes.items() if verdict == "refused") > CASES // 10


@pytest.mark.parametrize(
    "name", ["identity.json", "raft/base", "raft/hard_state", "raft", "state", "state/CURRENT",
             "state/1", "state/1/CURRENT", "state/1/MANIFEST-*", "raft/*.seg"],
)  # fmt: skip
def test_what_is_missing_is_missed(original: Path, tmp_path: Path, name: str) -> None:
    """RC-50, RC-73: an absent file is never an empty beginning."""

    def remove(directory: Path) -> str:
        for path in directory.glob(name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return f"{name} is gone"

    assert attack(original, tmp_path / "scratch", remove)[1] == "refused"


def test_a_damaged_snapshot_file_is_refused(original: Path, tmp_path: Path) -> None:
    """A received snapshot that was not loaded yet is the only copy of what it replaces (RC-37)."""
    rng = random.Random(5)

    def damage(directory: Path) -> str:
        store = FileSnapshotStore(OsFileSystem(), str(directory / "snapshots"))
        member = Member(NodeId("a"), "n", "h:1")
        meta = SnapshotMeta(
            LogId(Index(10**6), Term(9)), Membership(frozenset({NodeId("a")}), members=(member,))
        )
        writer = store.begin(meta)
        writer.write(rng.randbytes(5000))
        writer.commit()
        return flip_or_cut(rng, directory / "snapshots" / "received.snapshot")

    for _ in range(20):
        assert attack(original, tmp_path / "scratch", damage)[1] == "refused"

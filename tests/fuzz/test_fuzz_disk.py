"""Everything that a disk hands back: log, base, hard state, identity, snapshot files.

Law: what was written, or ``CorruptLog``; for files of another format or name ``ForeignDirectory``. Never
another exception, never an entry that nobody wrote, never a second vote.
"""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import pairwise
from struct import pack_into
from zlib import crc32

import pytest

from kvnode.disk.base_file import BaseRecord, decode_base, encode_base
from kvnode.disk.files import SECTOR
from kvnode.disk.hard_state import HARD_STATE_NAME, HardStateFile
from kvnode.disk.identity import IDENTITY_NAME, open_identity
from kvnode.disk.log_format import LogEnd, encode_frame, encode_seal
from kvnode.disk.raft_log import RaftLog
from kvnode.disk.snapshots import FileSnapshotStore
from kvnode.errors import CorruptLog, ForeignDirectory
from kvnode.ports import LogBase
from kvnode.raft.types import (
    ZERO,
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
from tests.fuzz.machinery import CASES, INTERESTING, QUICK_CASES, fuzz, mutate, seeds, value
from tests.fuzz.memory_files import MemoryFiles

MEMBERSHIP = Membership(
    voters=frozenset({NodeId("a"), NodeId("b")}),
    learners=frozenset({NodeId("c")}),
    members=tuple(Member(NodeId(n), f"n-{n}", f"{n}:8300") for n in "abc"),
    removed=(NodeId("old"),),
)


def names(error: Exception, path: str) -> None:
    """Whoever reads the log must know which file to look at."""
    assert path in str(error), error


def entry(index: int, term: int, size: int) -> Entry:
    data = random.Random(f"{index}/{term}").randbytes(size) if index % 5 else bytes(size)
    return Entry(Index(index), Term(term), EntryKind.COMMAND, data)


# -- the log --------------------------------------------------------------------------------------


@cache
def log_image() -> tuple[dict[str, bytes], tuple[tuple[Entry, ...], ...]]:
    """A log over several segments, with a compacted beginning and a tail that was replaced; and what it
    held after each of its frames.
    """
    files = MemoryFiles()
    RaftLog.create(files, "/d", LogBase(ZERO, Membership()))
    log, _ = RaftLog.open(files, "/d")
    written = [entry(i, 1 + i // 20, 200 + 900 * (i % 3)) for i in range(1, 61)]
    history = []
    for start in range(0, 60, 4):
        log.append(written[start : start + 4])
        history.append(tuple(written[30 : start + 4]))
    replaced = [entry(i, 7, 50) for i in range(55, 63)]
    log.append(replaced)
    log.compact(LogBase(written[29].id, MEMBERSHIP))
    log.close()
    history.append((*written[30:54], *replaced))
    return files.image(), tuple(history)


def log_case(rng: random.Random) -> None:
    image, history = log_image()
    files = MemoryFiles(image)
    path = rng.choice(sorted(image))
    others = [data[:4096] for data in image.values()]
    files.files[path] = bytearray(mutate(rng, image[path], others))
    if rng.random() < 0.1:
        del files.files[rng.choice(sorted(image))]
    try:
        log, entries = RaftLog.open(files, "/d")
    except CorruptLog as error:
        names(error, "/d")
        return
    # Frames that a disk turned into zeros, up to the end of the log, look like writes never finished.
    # Nothing less is taken for that: see ``tests/disk/test_log_format.py`` for flips and cuts.
    assert tuple(entries) in history, "entries that never were there together"
    log.append([entry(log.last_index + 1, 9, 30)])
    log.close()
    assert RaftLog.open(files, "/d")[1][:-1] == entries


def forged_log_case(rng: random.Random) -> None:
    """Frames whose checksums are right and whose content is nonsense: by a bug, or a newer version."""
    image, _ = log_image()
    files = MemoryFiles(image)
    path = rng.choice([p for p in sorted(image) if p.endswith(".seg")])
    data = files.files[path]
    seed = int.from_bytes(data[SECTOR - 4 : SECTOR], "little")
    first = rng.choice((31, 55, 63, rng.choice(INTERESTING)))
    if rng.random() < 0.3:
        frame = bytearray(encode_seal(seed, SECTOR, first % 2**64))
    else:
        frame = bytearray(encode_frame(seed, SECTOR, [entry(31, 2, 40), entry(32, 2, 9)]))
    body = bytearray(mutate(rng, bytes(frame[32:]))) if rng.random() < 0.6 else frame[32:]
    pack_into("<HBBIIQII", frame, 4, 0x4B76, rng.choice((1, 1, 2, 3)), rng.choice((0, 0, 1, 2)),
              rng.choice((len(body), max(0, len(body) - 24), rng.choice(INTERESTING) % 2**32)),
              rng.choice((0, 1, 2, rng.choice(INTERESTING) % 2**32)),
              first % 2**64, crc32(body), 0)  # fmt: skip
    pack_into("<I", frame, 0, crc32(frame[4:32], seed ^ SECTOR))
    data[SECTOR : SECTOR + 32 + len(body)] = frame[:32] + body
    try:
        _, entries = RaftLog.open(files, "/d")
    except CorruptLog:
        return
    base = 30
    assert [e.index for e in entries] == list(range(base + 1, base + 1 + len(entries)))
    assert all(a.term <= b.term for a, b in pairwise(entries))


# -- the small files --------------------------------------------------------------------------------


def base_case(rng: random.Random) -> None:
    record = BaseRecord(LogBase(LogId(Index(5), Term(2)), MEMBERSHIP), 3)
    data = bytearray(mutate(rng, encode_base(record)))
    forged = rng.random() < 0.4 and len(data) >= 44
    if forged:
        if rng.random() < 0.5:
            data[44:] = json.dumps(value(rng, 4)).encode()
        elif rng.random() < 0.05:
            data[44:] = b"[" * 100_000
        pack_into("<I", data, 40, len(data) - 44)
        data[12:16] = bytes(4)
        pack_into("<I", data, 12, crc32(data))
    try:
        found = decode_base(bytes(data), "/d/base")
    except CorruptLog as error:
        names(error, "/d/base")
        return
    assert forged or found == record


def hard_state_case(rng: random.Random) -> None:
    files = MemoryFiles()
    HardStateFile.create(files, "/d")
    hard_state = HardStateFile.open(files, "/d")
    states = [HardState(Term(0), None)]
    for term in range(1, rng.randrange(2, 5)):
        states.append(HardState(Term(term), NodeId("a" * rng.choice((1, 36, 255)))))
        hard_state.save(states[-1], LogEnd(term, rng.choice((0, 512, 2**64 - 1))))
    path = f"/d/{HARD_STATE_NAME}"
    files.files[path] = bytearray(mutate(rng, bytes(files.files[path])))
    try:
        found = HardStateFile.open(files, "/d")
    except CorruptLog as error:
        names(error, path)
        return
    assert found.state == states[-1], "both copies were equal: an older state is nowhere"
    assert found.log_end == hard_state.log_end


def identity_case(rng: random.Random) -> None:
    files = MemoryFiles()
    first = open_identity(files, "/d", "n-0", lambda: "id-1").identity
    path = f"/d/{IDENTITY_NAME}"
    data = bytes(files.files[path])
    dice = rng.random()
    forged = dice < 0.4
    if forged:
        document = json.loads(data)
        content = document["identity"]
        for _ in range(rng.choice((1, 1, 3))):
            if rng.random() < 0.3:
                content.pop(rng.choice(sorted(content)), None)
            else:
                content[rng.choice([*sorted(content), "new"])] = value(rng)
            if not content:
                break
        if rng.random() < 0.1:
            content = value(rng)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        data = json.dumps({"identity": content, "crc32": crc32(canonical.encode())}).encode()
    elif dice < 0.42:
        data = rng.choice((b"[", b'{"a":', b'[{"identity":')) * rng.choice((50, 5_000, 100_000))
    else:
        data = mutate(rng, data)
    files.files[path] = bytearray(data)
    try:
        found = open_identity(files, "/d", "n-0", lambda: "id-2").identity
    except (CorruptLog, ForeignDirectory) as error:
        names(error, "/d")
        return
    if not forged:  # each opening is a run of its own, in front of the earlier ones
        assert found.record.runs[1:] == first.record.runs
        began = first.record._replace(boot=first.record.boot + 1, runs=found.record.runs)
        assert found.record == began
    assert isinstance(found.record.boot, int)
    assert isinstance(found.record.node_id, str)


# -- received snapshots -------------------------------------------------------------------------------

META = SnapshotMeta(LogId(Index(9), Term(3)), MEMBERSHIP)
CHUNKS = [b"first" * 40, b"\0" * 300, b"last"]


@cache
def snapshot_image() -> bytes:
    files = MemoryFiles()
    writer = FileSnapshotStore(files, "/s").begin(META)
    for chunk in CHUNKS:
        writer.write(chunk)
    writer.commit()
    return bytes(files.files["/s/received.snapshot"])


def snapshot_case(rng: random.Random) -> None:
    data = bytearray(mutate(rng, snapshot_image(), [snapshot_image()]))
    forged = rng.random() < 0.3
    if forged:
        if rng.random() < 0.05:
            meta = b"[" * 100_000
        else:
            content = {
                "format": 1,
                "index": 9,
                "term": 3,
                "membership": MEMBERSHIP.encode().decode(),
            }
            content[rng.choice(sorted(content))] = value(rng)
            meta = json.dumps(content if rng.random() < 0.9 else value(rng)).encode()
        rest = snapshot_image()[16 + int.from_bytes(snapshot_image()[8:12], "little") :]
        head = len(meta).to_bytes(4, "little") + crc32(meta).to_bytes(4, "little")
        data = bytearray(b"kvnodsnp" + head + meta + rest)
    files = MemoryFiles({"/s/received.snapshot": bytes(data)})
    store = FileSnapshotStore(files, "/s")
    try:
        found = store.complete()
        chunks = list(store.read("/s/received.snapshot"))
    except CorruptLog as error:
        names(error, "/s/received.snapshot")
        return
    assert found is not None
    meta_found = found[0]
    assert forged or meta_found == META
    assert type(meta_found.last.index) is int
    assert type(meta_found.last.term) is int
    assert chunks == CHUNKS


TARGETS = [log_case, forged_log_case, base_case, hard_state_case, identity_case, snapshot_case]


@pytest.mark.parametrize("case", TARGETS)
def test_what_a_disk_hands_back(case) -> None:
    fuzz(case, seeds()[0], QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TARGETS)
def test_what_a_disk_hands_back_for_long(case) -> None:
    for seed in seeds():
        fuzz(case, seed, CASES // 2)

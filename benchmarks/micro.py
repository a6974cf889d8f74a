"""What one step of a write costs inside a node, without network and without peers.

    python benchmarks/micro.py [--data-dir DIR]

Each line is the median of a few repetitions, microseconds per operation. The parts: the Raft log's
append with its sync, per batch size; the store's apply on both engines, per batch size; a command's and a
message's way to bytes and back. A fast machine with a slow disk and the reverse look very different
here, which is the point: it says which of the two a cluster's throughput is made of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # run as a file: the package is found from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workload import key_name, make_tag, value_for
from kvnode.disk.files import OsFileSystem
from kvnode.disk.raft_log import RaftLog
from kvnode.disk.rocks_engine import RocksEngineFactory
from kvnode.ports import LogBase
from kvnode.raft.messages import AppendEntries
from kvnode.raft.types import Entry, EntryKind, Index, LogId, Membership, NodeId, Term
from kvnode.replica import codec
from kvnode.store.commands import KvSet
from kvnode.store.engine import Engine
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store
from kvnode.transport.codec import decode_message, encode_message
from kvnode.transport.framing import pack_frame, unpack_frame

REPETITIONS = 5
BATCHES = (1, 32, 256)
"""Entries per group commit: a lone client, a busy node, a flooded one."""

Line = tuple[str, float]
"""What was measured, microseconds per operation."""


def commands(count: int) -> list[KvSet]:
    """Return writes of 100-byte values, each under its own key."""
    tag = make_tag(1, "A")
    names = [key_name(number) for number in range(count)]
    return [KvSet(name.encode(), value_for(name, tag)) for name in names]


def entries(count: int, first: int = 1) -> list[Entry]:
    """Return consecutive entries of term 1 that hold `commands`."""
    return [
        Entry(Index(first + number), Term(1), EntryKind.COMMAND, codec.encode(command))
        for number, command in enumerate(commands(count))
    ]


def timed(operations: int, action: Callable[[], object]) -> float:
    """Run ``action``, which does ``operations`` operations; return microseconds per operation."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) / operations * 1e6


def measure_log(directory: Path) -> Iterator[Line]:
    """The Raft log: append and sync, in batches."""
    base = LogBase(LogId(Index(0), Term(0)), Membership())
    RaftLog.create(OsFileSystem(), str(directory), base)
    log, _ = RaftLog.open(OsFileSystem(), str(directory))
    with closing(log):
        for size in BATCHES:
            took = []
            for _ in range(REPETITIONS * 10):
                batch = entries(size, first=log.last_index + 1)
                took.append(timed(size, lambda batch=batch: log.append(batch)))  # type: ignore[misc]
            yield f"raft log: append and sync, {size} entries a batch", median(took)


def measure_store(name: str, engine: Engine) -> Iterator[Line]:
    """The store: apply new keys in batches, then read them back."""
    store = Store(engine)
    todo = commands(256 * 10)
    index = 1
    for size in BATCHES:
        took = []
        for _ in range(REPETITIONS):
            numbered = list(enumerate(todo, index))
            index += len(todo)
            cut = [numbered[at : at + size] for at in range(0, len(numbered), size)]
            took.append(timed(len(todo), lambda cut=cut: [store.apply_batch(b) for b in cut]))  # type: ignore[misc]
        yield f"store on {name}: apply, {size} commands a batch", median(took)
    reads = [timed(len(todo), lambda: [store.get(c.key) for c in todo]) for _ in range(REPETITIONS)]
    yield f"store on {name}: get", median(reads)


def measure_codecs() -> Iterator[Line]:
    """Commands and messages: to bytes and back."""
    todo = commands(2000)
    data = [codec.encode(command) for command in todo]
    yield "command: encode", _repeated(len(todo), lambda: [codec.encode(c) for c in todo])
    yield "command: decode", _repeated(len(todo), lambda: [codec.decode(d) for d in data])
    before = LogId(Index(1), Term(1))
    for size in BATCHES:
        message = AppendEntries(
            NodeId("a"), NodeId("b"), Term(1), before, tuple(entries(size, 2)), Index(1)
        )
        frame = pack_frame(encode_message(message))
        body = frame[4:]
        assert decode_message(unpack_frame(body)) == message
        rounds = range(max(1, 2000 // size))
        there = _repeated(
            len(rounds) * size,
            lambda message=message, rounds=rounds: [  # type: ignore[misc]
                pack_frame(encode_message(message)) for _ in rounds
            ],
        )
        back = _repeated(
            len(rounds) * size,
            lambda body=body, rounds=rounds: [decode_message(unpack_frame(body)) for _ in rounds],  # type: ignore[misc]
        )
        yield f"AppendEntries of {size}: encode, per entry", there
        yield f"AppendEntries of {size}: decode, per entry", back


def _repeated(operations: int, action: Callable[[], object]) -> float:
    return median(timed(operations, action) for _ in range(REPETITIONS))


def main() -> int:
    """Measure and print; about five seconds."""
    parser = argparse.ArgumentParser(prog="benchmarks/micro.py")
    default = Path(__file__).resolve().parents[1] / ".cache/bench"
    parser.add_argument("--data-dir", type=Path, default=default, help="on the disk to measure")
    data_dir: Path = parser.parse_args().data_dir
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="micro-", dir=data_dir) as directory:
        log_directory = Path(directory) / "log"
        log_directory.mkdir()
        rocks = RocksEngineFactory(Path(directory) / "store").open_current()
        with closing(rocks), closing(MemoryEngine()) as memory:
            for lines in (
                measure_log(log_directory),
                measure_store("RocksDB", rocks),
                measure_store("memory", memory),
                measure_codecs(),
            ):
                for what, microseconds in lines:
                    print(f"{what:52} {microseconds:9.2f} us", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

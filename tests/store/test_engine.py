"""The engine contract, over memory and RocksDB alike (``kvnode.store.engine``)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvnode.errors import MustStop
from kvnode.store.engine import Engine
from kvnode.store.memory import MemoryEngine

ROWS = [(b"a", b"1"), (b"a\x00", b"2"), (b"a\xff", b"3"), (b"b", b""), (b"\xff\xff", b"5")]


def test_a_missing_key_is_none(engine: Engine) -> None:
    assert engine.get(b"nothing") is None


def test_an_empty_value_is_not_a_missing_key(engine: Engine) -> None:
    engine.write([(b"a", b"")])
    assert engine.get(b"a") == b""
    assert list(engine.scan(b"", None)) == [(b"a", b"")]


def test_writes_of_one_batch_apply_in_order(engine: Engine) -> None:
    engine.write(
        [(b"a", b"1"), (b"a", None), (b"b", None), (b"b", b"2"), (b"c", b"3"), (b"c", b"4")]
    )
    assert list(engine.scan(b"", None)) == [(b"b", b"2"), (b"c", b"4")]


def test_deleting_a_missing_key_changes_nothing(engine: Engine) -> None:
    engine.write([(b"a", None)])
    assert list(engine.scan(b"", None)) == []


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (b"", None, ROWS),
        (b"a", b"b", ROWS[:3]),
        (b"a\x00", b"a\xff", ROWS[1:2]),
        (b"b", None, ROWS[3:]),
        (b"c", b"d", []),
        (b"b", b"b", []),
        (b"b", b"a", []),
        (b"", b"a", []),
        (b"\xff\xff\xff", None, []),
    ],
)
def test_a_scan_is_half_open_and_in_byte_order_both_ways(
    engine: Engine, start: bytes, stop: bytes | None, expected: list[tuple[bytes, bytes]]
) -> None:
    engine.write(list(reversed(ROWS)))
    assert list(engine.scan(start, stop)) == expected
    assert list(engine.scan(start, stop, reverse=True)) == expected[::-1]
    snapshot = engine.snapshot()
    assert list(snapshot.scan(start, stop)) == expected
    snapshot.close()


def test_a_scan_can_be_closed_before_its_end_and_the_engine_written_again(engine: Engine) -> None:
    engine.write(ROWS)
    with closing(engine.scan(b"", None)) as rows:
        assert next(rows) == ROWS[0]
    engine.write([(b"a", None)])
    assert engine.get(b"a") is None


def test_a_snapshot_shows_its_moment_whatever_is_written_later(engine: Engine) -> None:
    engine.write(ROWS)
    snapshot = engine.snapshot()
    engine.write([(b"a", b"changed"), (b"b", None), (b"new", b"1")])
    assert list(snapshot.scan(b"", None)) == ROWS
    assert list(snapshot.scan(b"", None)) == ROWS, "it can be read twice"
    snapshot.close()
    snapshot.close()


def test_a_snapshot_is_read_in_another_thread_while_the_engine_is_written(engine: Engine) -> None:
    """``engine.EngineSnapshot``: that is what it is for; RocksDB objects could be bound to a thread."""
    rows = [(b"%05d" % i, b"old") for i in range(2000)]
    engine.write(rows)
    snapshot = engine.snapshot()
    seen: list[tuple[bytes, bytes]] = []
    reader = threading.Thread(target=lambda: seen.extend(snapshot.scan(b"", None)))
    reader.start()
    for i in range(0, 2000, 50):
        engine.write([(b"%05d" % j, b"new") for j in range(i, i + 50)])
    reader.join()
    assert seen == rows
    snapshot.close()


def test_flush_in_another_thread_beside_writes_loses_nothing(engine: Engine) -> None:
    stop = threading.Event()
    failures: list[MustStop] = []

    def flush() -> None:
        try:
            while not stop.is_set():
                engine.flush()
        except MustStop as error:
            failures.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    for i in range(300):
        engine.write([(b"%05d" % i, bytes(100))])
    stop.set()
    thread.join()
    assert not failures
    assert sum(1 for _ in engine.scan(b"", None)) == 300


def test_close_is_idempotent_and_a_closed_engine_is_not_written(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(MustStop):
        engine.write([(b"a", b"1")])


def test_close_releases_open_snapshots(engine: Engine) -> None:
    engine.write(ROWS)
    snapshot = engine.snapshot()
    engine.close()
    snapshot.close()


keys = st.binary(min_size=1, max_size=4)
batches = st.lists(
    st.lists(st.tuples(keys, st.one_of(st.none(), st.binary(max_size=6))), max_size=6), max_size=8
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batches=batches, start=st.binary(max_size=3), stop=st.one_of(st.none(), keys))
def test_any_batches_give_the_same_rows_as_the_memory_engine(
    new_engine: Callable[[], Engine],
    batches: list[list[tuple[bytes, bytes | None]]],
    start: bytes,
    stop: bytes | None,
) -> None:
    """Two engines, one contract."""
    engine, model = new_engine(), dict[bytes, bytes]()
    memory = MemoryEngine()
    for batch in batches:
        engine.write(batch)
        memory.write(batch)
        for key, value in batch:
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    expected = sorted((k, v) for k, v in model.items() if k >= start and (stop is None or k < stop))
    for one in (engine, memory):
        assert list(one.scan(start, stop)) == expected
        assert list(one.scan(start, stop, reverse=True)) == expected[::-1]
    engine.close()

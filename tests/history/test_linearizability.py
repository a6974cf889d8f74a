"""The judge is judged: histories known to be good pass, histories known to be bad do not."""

from __future__ import annotations

import math
import random
import time

import pytest

from tests.history.linearizability import Verdict, check
from tests.history.operations import Operation, Recorder


def wrote(
    called: float, returned: float, value: str, index: int | None, client: str = "a", **more: object
) -> Operation:
    fields: dict[str, object] = {"applied": True, **more}
    return Operation(client, "set", "k", called, returned, value, index=index, **fields)  # type: ignore[arg-type]


def unknown(called: float, value: str, cas: int | None = None) -> Operation:
    return Operation("u", "set", "k", called, math.inf, value, cas)


def deleted(called: float, returned: float, index: int | None) -> Operation:
    return Operation("d", "delete", "k", called, returned, applied=True, index=index)


def read(called: float, returned: float, value: str | None, index: int | None) -> Operation:
    return Operation("r", "read", "k", called, returned, value, index=index)


GOOD = {
    "empty": [],
    "reads see the write": [wrote(0, 1, "x", 5), read(2, 3, "x", 5)],
    "a read beside a write may see either": [
        wrote(0, 10, "x", 5),
        read(1, 2, None, None),
        read(3, 4, "x", 5),
    ],
    "concurrent writes in the order of their indexes": [
        wrote(0, 10, "x", 6),
        wrote(0, 10, "y", 5, "b"),
        read(11, 12, "x", 6),
    ],
    "an unknown write that took effect late": [
        unknown(0, "x"),
        read(100, 101, None, None),
        read(200, 201, "x", 9),
    ],
    "an unknown write that never took effect": [unknown(0, "x"), read(100, 101, None, None)],
    "a refused cas explained by an unknown write that nobody read": [
        wrote(0, 1, "x", 3),
        unknown(2, "y"),
        Operation("c", "set", "k", 3, 4, "z", cas=3, applied=False, index=7),
    ],
    "a cas on a missing key": [
        Operation("c", "set", "k", 0, 1, "z", cas=0, applied=True, index=7),
        read(2, 3, "z", 7),
    ],
    "delete and write again": [
        wrote(0, 1, "x", 3),
        deleted(2, 3, 4),
        read(4, 5, None, None),
        wrote(6, 7, "y", 9),
        read(8, 9, "y", 9),
    ],
    "a delete of a missing key": [deleted(0, 1, 4), read(2, 3, None, None)],
    "writes whose answers named no index": [
        wrote(0, 1, "x", None),
        wrote(2, 3, "y", None),
        read(4, 5, "y", 8),
    ],
}

BAD = {
    "stale read": [wrote(0, 1, "x", 5), wrote(2, 3, "y", 6), read(4, 5, "x", 5)],
    "lost update": [wrote(0, 1, "x", 5), read(2, 3, None, None)],
    "reads go back": [wrote(0, 10, "x", 5), read(1, 2, "x", 5), read(3, 4, None, None)],
    "a value from nowhere": [read(0, 1, "ghost", 5)],
    "two writes, one index": [wrote(0, 1, "x", 5), wrote(2, 3, "y", 5)],
    "one value, two indexes": [
        wrote(0, 1, "x", 5),
        read(2, 3, "x", 5),
        read(4, 5, "x", 6),
    ],
    "the index of the value is not the write's": [wrote(0, 1, "x", 5), read(2, 3, "x", 6)],
    "an index that falls": [wrote(0, 1, "x", 5), wrote(2, 3, "y", 4)],
    "two cas on one index both succeed": [
        wrote(0, 1, "x", 5),
        Operation("c", "set", "k", 2, 9, "y", cas=5, applied=True, index=6),
        Operation("e", "set", "k", 2, 9, "z", cas=5, applied=True, index=7),
    ],
    "a cas refused without a reason": [
        wrote(0, 1, "x", 5),
        Operation("c", "set", "k", 2, 3, "y", cas=5, applied=False, index=6),
    ],
    "a deleted value comes back": [
        wrote(0, 1, "x", 5),
        deleted(2, 3, 6),
        read(4, 5, "x", 5),
    ],
    "an unknown write seen, then gone without a reason": [
        wrote(0, 1, "w", 3),
        unknown(2, "x"),
        read(3, 4, "x", 5),
        read(5, 6, "w", 3),
    ],
    "an unknown write takes effect before it was called": [
        read(0, 1, "x", 5),
        unknown(2, "x"),
    ],
    "an unknown write takes effect twice": [
        unknown(0, "x"),
        read(1, 2, "x", 5),
        wrote(3, 4, "y", 6),
        read(5, 6, "x", 7),
    ],
    "a cas takes effect whose condition never held": [
        wrote(0, 1, "x", 5),
        unknown(2, "y", cas=4),
        read(3, 4, "y", 6),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    report = check(GOOD[name])
    assert report.verdict is Verdict.LINEARIZABLE, report.explanation


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_refused(name: str) -> None:
    assert check(BAD[name]).verdict is Verdict.VIOLATION


def generate(seed: int, count: int, keys: int, clients: int) -> list[Operation]:
    """A history of a correct store: effects happen between call and return, or late if unknown."""
    rng = random.Random(seed)
    state: dict[str, tuple[str, int]] = {}
    effects: list[tuple[float, int, Operation]] = []
    free_at = [0.0] * clients
    for number in range(count):
        client = rng.randrange(clients)
        called = free_at[client] + rng.expovariate(1.0)
        lasts = rng.expovariate(0.5)
        effect, returned = called + lasts * rng.random(), called + lasts
        free_at[client] = returned
        kind = rng.choice(["set", "set", "read", "read", "read", "delete"])
        if kind != "read" and rng.random() < 0.05:
            returned, effect = math.inf, called + rng.expovariate(0.02)
        key = f"k{rng.randrange(keys)}"
        value = f"v{number}" if kind == "set" else None
        op = Operation(f"c{client}", kind, key, called, returned, value)  # type: ignore[arg-type]
        effects.append((effect, number, op))
    history: list[Operation] = []
    index = 0
    shown: set[int] = set()  # clients compare with indexes that somebody was told
    for _effect, number, op in sorted(effects, key=lambda e: e[:2]):
        current = state.get(op.key)
        if op.kind == "read":
            value, modified = current or (None, None)
            history.append(op._replace(value=value, index=modified))
            if modified is not None:
                shown.add(modified)
            continue
        index += 1 + rng.randrange(3)
        cas = None
        if rng.random() < 0.3:
            cas = rng.choice([0, *sorted(shown)[-3:]])
            if current is not None and current[1] in shown:
                cas = rng.choice([cas, current[1]])
        holds = cas is None or cas == (current[1] if current else 0)
        if op.kind == "delete":
            holds = cas is None or current is None or cas == current[1]
        if op.unknown and rng.random() < 0.5:
            history.append(op._replace(cas=cas))
            continue
        if holds and op.kind == "delete":
            state.pop(op.key, None)
        elif holds:
            assert op.value is not None
            state[op.key] = (op.value, index)
        if op.unknown:
            history.append(op._replace(cas=cas))
        else:
            named = index if number % 3 else None
            if named is not None:
                shown.add(named)
            history.append(op._replace(cas=cas, applied=holds, index=named))
    return history


@pytest.mark.parametrize("seed", range(30))
def test_histories_of_a_correct_store_pass(seed: int) -> None:
    report = check(generate(seed, 300, keys=3, clients=5))
    assert report.verdict is Verdict.LINEARIZABLE, report.explanation


def test_twenty_thousand_operations_take_seconds() -> None:
    """The chaos tests record that many; a judge that needs minutes would be switched off."""
    history = generate(1, 20_000, keys=20, clients=20)
    began = time.process_time()
    report = check(history)
    assert report.verdict is Verdict.LINEARIZABLE, report.explanation
    assert time.process_time() - began < 10


def _break(history: list[Operation], rng: random.Random) -> list[Operation] | None:
    """Let one read return the value before the one it returned, long after that was overwritten."""
    reads = [
        (number, op)
        for number, op in enumerate(history)
        if op.kind == "read" and op.value is not None
    ]
    rng.shuffle(reads)
    for number, op in reads:
        for older in history:
            if (
                older.kind == "read"
                and older.key == op.key
                and older.value not in {op.value, None}
                and any(
                    w.kind == "set"
                    and w.applied
                    and w.key == op.key
                    and w.called > older.returned
                    and w.returned < op.called
                    for w in history
                )
            ):
                broken = list(history)
                broken[number] = op._replace(value=older.value, index=older.index)
                return broken
    return None


@pytest.mark.parametrize("seed", range(30))
def test_a_single_stale_read_in_a_long_history_is_found(seed: int) -> None:
    broken = _break(generate(seed, 300, keys=3, clients=5), random.Random(seed))
    assert broken is not None
    assert check(broken).verdict is Verdict.VIOLATION


def test_a_search_that_is_cut_off_is_no_pass() -> None:
    """RC section 11: the time-out of the checker is "unknown"."""
    report = check(generate(1, 300, keys=1, clients=5), steps_max=10)
    assert report.verdict is Verdict.UNKNOWN


def test_the_recorder_keeps_what_may_matter() -> None:
    recorder = Recorder()
    recorder.call("a", "set", "k", 0, value="x").ok(1, applied=True, index=3)
    recorder.call("a", "set", "k", 2, value="y").failed()
    recorder.call("a", "set", "k", 3, value="z").unknown()
    recorder.call("a", "read", "k", 4).unknown()
    recorder.call("a", "read", "k", 5).ok(6, value="x", index=3)
    kinds = [(op.kind, op.value, op.unknown) for op in recorder.operations]
    assert kinds == [("set", "x", False), ("set", "z", True), ("read", "x", False)]
    assert not recorder.pending

"""Is a history linearizable? Wing & Gong's search with Lowe's memory, key by key.

The model of one key is Consul's: a value **and** its ModifyIndex, so that a reused index, a change
that nobody wrote, and an index that falls are found as well as stale reads and lost updates:

* a write's index is its position in the log: known ones take effect in the order of their indexes,
  each above everything that took effect before;
* an identical write changes nothing, not even the ModifyIndex;
* ``cas`` compares with the ModifyIndex, 0 means "missing".

An unknown write may take effect at any moment after its call, or never. Because values are unique, a
read that shows its value also shows its index; one whose value nobody saw has an index that equals no
index anybody saw, and all such writes are interchangeable, so only the oldest unused one is tried.

Verdicts: ``LINEARIZABLE``, ``VIOLATION`` (with an explanation), and ``UNKNOWN`` when the search was
cut off: that is not a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tests.history.operations import Operation, per_key

STEPS_MAX = 2_000_000
"""Search steps per key before the verdict is ``UNKNOWN``; about ten seconds."""

_UNSEEN = "\0unseen"
"""The value of every write that nobody ever read."""


class Verdict(Enum):
    """Outcome of a check."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNKNOWN = "unknown"


class Report(NamedTuple):
    """A verdict and why."""

    verdict: Verdict
    explanation: str = ""
    steps: int = 0


class _State(NamedTuple):
    """One key at one moment."""

    value: str | None
    modify_index: int | None
    """None while the value's index is known to nobody, and while the key is missing."""
    floor: int
    """Highest known log index that took effect on this key."""


_EMPTY = _State(None, None, 0)


def check(operations: Iterable[Operation], steps_max: int = STEPS_MAX) -> Report:
    """Check a whole history.

    Args:
        operations: Any order. Values of ``set`` are unique over the history.
        steps_max: Bound on search steps, per key.
    """
    history = list(operations)
    report = _order_of_indexes(history)
    if report is not None:
        return report
    steps = 0
    cut_off = ""
    for key, ops in sorted(per_key(history).items()):
        report = _Search(key, ops, steps_max).run()
        steps += report.steps
        if report.verdict is Verdict.VIOLATION:
            return report._replace(steps=steps)
        if report.verdict is Verdict.UNKNOWN:
            cut_off = report.explanation
    if cut_off:
        return Report(Verdict.UNKNOWN, cut_off, steps)
    return Report(Verdict.LINEARIZABLE, "", steps)


def _order_of_indexes(operations: Sequence[Operation]) -> Report | None:
    """Over all keys: what returned before another was called has the lower log index."""
    writes = [op for op in operations if op.kind != "read" and op.index is not None]
    by_return = sorted(writes, key=lambda op: op.returned)
    highest: Operation | None = None
    position = 0
    for op in sorted(writes, key=lambda op: op.called):
        while position < len(by_return) and by_return[position].returned < op.called:
            candidate = by_return[position]
            if highest is None or (candidate.index or 0) > (highest.index or 0):
                highest = candidate
            position += 1
        if highest is not None and (op.index or 0) <= (highest.index or 0):
            return Report(
                Verdict.VIOLATION,
                f"index {op.index} was given after index {highest.index} had returned:\n"
                f"  {highest}\n  {op}",
            )
    return None


@dataclass(slots=True)
class _Node:
    """A position of the search and what is still to be tried from it."""

    low: int
    """Every completed operation before this one is done."""
    mask: int
    """Bit i: completed operation ``low + i`` is done."""
    used: int
    """Bit i: unknown operation i took effect."""
    state: _State
    moves: Iterator[tuple[int, bool, _State]]
    """(operation, is it an unknown one, state afterwards)"""


class _Search:
    """Depth-first over (what is done, state); each pair is entered once."""

    def __init__(self, key: str, operations: Sequence[Operation], steps_max: int) -> None:
        self._key = key
        self._steps_max = steps_max
        self._done_ops = sorted((op for op in operations if not op.unknown), key=_by_call)
        self._open_ops = sorted((op for op in operations if op.unknown), key=_by_call)
        self._seen: dict[str | None, int] = {
            op.value: op.index
            for op in self._done_ops
            if op.kind == "read" and op.value is not None and op.index is not None
        }

    def run(self) -> Report:
        written = {op.value for op in (*self._done_ops, *self._open_ops) if op.kind == "set"}
        for op in self._done_ops:
            if op.kind == "read" and op.value is not None:
                if op.value not in written:
                    return self._violation("a value that nobody wrote was read", [op], 0)
                if op.index is not None and self._seen[op.value] != op.index:
                    return self._violation("one value was read with two indexes", [op], 0)
        return self._search()

    def _search(self) -> Report:
        total = len(self._done_ops)
        known: set[tuple[int, int, int, _State]] = set()
        stack = [self._enter(0, 0, 0, _EMPTY)]
        steps = 0
        deepest: tuple[int, _Node] = (-1, stack[0])
        while stack:
            node = stack[-1]
            if node.low == total:
                return Report(Verdict.LINEARIZABLE, "", steps)
            depth = node.low + node.mask.bit_count()
            if depth > deepest[0]:
                deepest = (depth, node)
            move = next(node.moves, None)
            if move is None:
                stack.pop()
                continue
            steps += 1
            if steps > self._steps_max:
                why = f"key {self._key}: gave up after {steps} steps, {depth} of {total} placed"
                return Report(Verdict.UNKNOWN, why, steps)
            number, is_open, state = move
            low, mask, used = node.low, node.mask, node.used
            if is_open:
                used |= 1 << number
            else:
                mask |= 1 << (number - low)
                while mask & 1:
                    mask >>= 1
                    low += 1
            place = (low, mask, used, state)
            if place not in known:
                known.add(place)
                stack.append(self._enter(low, mask, used, state))
        node = deepest[1]
        stuck = [self._done_ops[i] for i in self._candidates(node.low, node.mask)[0]]
        return self._violation(f"no order explains these; state {node.state}", stuck, steps)

    def _violation(self, why: str, operations: Sequence[Operation], steps: int) -> Report:
        lines = [f"key {self._key}: {why}"]
        lines += [f"  {op}" for op in operations[:12]]
        return Report(Verdict.VIOLATION, "\n".join(lines), steps)

    def _enter(self, low: int, mask: int, used: int, state: _State) -> _Node:
        return _Node(low, mask, used, state, self._moves(low, mask, used, state))

    def _candidates(self, low: int, mask: int) -> tuple[list[int], float]:
        """Completed operations that may come next, and the moment by which one of them must."""
        found: list[int] = []
        first_return = math.inf
        for number in range(low, len(self._done_ops)):
            op = self._done_ops[number]
            if op.called > first_return:
                break
            if not mask >> (number - low) & 1:
                found.append(number)
                first_return = min(first_return, op.returned)
        return [i for i in found if self._done_ops[i].called <= first_return], first_return

    def _moves(
        self, low: int, mask: int, used: int, state: _State
    ) -> Iterator[tuple[int, bool, _State]]:
        candidates, deadline = self._candidates(low, mask)
        next_index = min(
            (
                op.index
                for op in (self._done_ops[i] for i in candidates)
                if op.kind != "read" and op.index is not None
            ),
            default=math.inf,
        )
        # Reads first: they never change what a later operation may do.
        for number in candidates:
            op = self._done_ops[number]
            if op.kind == "read" and op.value == state.value and self._fits(op, state):
                yield number, False, state
                return  # a read that fits now may always be placed now
        for number in candidates:
            op = self._done_ops[number]
            if op.kind == "read" or (op.index is not None and op.index > next_index):
                continue
            after = self._apply(op, self._index_of(op), op.applied, state)
            if after is not None:
                yield number, False, after
        tried: set[tuple[str, str | None, int | None]] = set()
        for number, op in enumerate(self._open_ops):
            if op.called > deadline:
                break
            if used >> number & 1:
                continue
            index = self._seen.get(op.value) if op.kind == "set" else None
            value = op.value if op.kind == "set" and op.value in self._seen else _UNSEEN
            if (alike := (op.kind, value, op.cas)) in tried:
                continue
            tried.add(alike)
            if index is not None and index > next_index:
                continue
            after = self._apply(op._replace(value=value), index, True, state)
            if after is not None and after != state:
                yield number, True, after

    def _index_of(self, op: Operation) -> int | None:
        if op.index is None and op.kind == "set" and op.applied:
            return self._seen.get(op.value)
        return op.index

    @staticmethod
    def _fits(op: Operation, state: _State) -> bool:
        return op.value is None or op.index is None or op.index == state.modify_index

    @staticmethod
    def _apply(
        op: Operation, index: int | None, applied: bool | None, state: _State
    ) -> _State | None:
        """The state after a write that answered ``applied`` at ``index``; None: it cannot have."""
        if index is not None and index <= state.floor:
            return None
        floor = state.floor if index is None else index
        if op.cas is None:
            holds = True
        elif op.cas == 0:
            holds = state.value is None and op.kind == "set"
        else:
            holds = state.value is not None and state.modify_index == op.cas
        if op.kind == "delete" and state.value is None:
            holds = True  # deleting a missing key succeeds, whatever the condition
        if applied is not None and applied != holds:
            return None
        if not holds:
            return state._replace(floor=floor)
        if op.kind == "delete":
            return _State(None, None, floor)
        if op.value == state.value and op.value != _UNSEEN:
            return state._replace(floor=floor)
        return _State(op.value, index, floor)


def _by_call(op: Operation) -> tuple[float, float, str]:
    return op.called, op.returned, op.client

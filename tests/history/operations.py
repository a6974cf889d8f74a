"""What a client saw: one record per operation, and a recorder that fills them in.

The vocabulary is shared by the simulator and by the tests on real processes. Three outcomes (RC-58):
*ok* (answered), *failed* (certainly did not take effect; the record is dropped), *unknown* (may take
effect at any later moment, so the operation stays open for ever). A read without an answer says
nothing and is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["set", "delete", "read"]


class Operation(NamedTuple):
    """One operation on one key. Times are in any unit, on one clock for the whole history."""

    client: str
    kind: Kind
    key: str
    called: float
    returned: float
    """``math.inf``: the outcome is unknown."""
    value: str | None = None
    """Written, or read (None: the key was missing). Written values are unique in a history."""
    cas: int | None = None
    """``set`` and ``delete``: the condition (None: none; 0: only if missing; N: ModifyIndex == N)."""
    applied: bool | None = None
    """``set`` and ``delete`` with a known outcome: what the store answered."""
    index: int | None = None  # type: ignore[assignment]  # a field, not tuple.index
    """Known outcome of a write: the log index it was applied at, when the answer gave one. Read:
    the ModifyIndex that came with the value, None when the key was missing."""

    @property
    def unknown(self) -> bool:
        """True for a write that may take effect at any later moment."""
        return self.returned == math.inf


@dataclass
class Pending:
    """A call under way; finish it with exactly one of the three outcomes."""

    recorder: Recorder
    number: int
    client: str
    kind: Kind
    key: str
    called: float
    value: str | None
    cas: int | None
    done: bool = False

    def ok(
        self,
        now: float,
        *,
        value: str | None = None,
        applied: bool | None = None,
        index: int | None = None,
    ) -> None:
        """The answer came. Reads give ``value`` and ``index``, writes ``applied`` and ``index``."""
        self._finish(
            Operation(
                self.client,
                self.kind,
                self.key,
                self.called,
                now,
                value if self.kind == "read" else self.value,
                self.cas,
                applied,
                index,
            )
        )

    def failed(self) -> None:
        """It certainly took no effect: nothing to record."""
        self._finish(None)

    def unknown(self) -> None:
        """Nobody knows. A write stays open for ever, a read is dropped."""
        if self.kind == "read":
            self._finish(None)
        else:
            self._finish(
                Operation(
                    self.client,
                    self.kind,
                    self.key,
                    self.called,
                    math.inf,
                    self.value,
                    self.cas,
                )
            )

    def _finish(self, operation: Operation | None) -> None:
        assert not self.done, "an operation has one outcome"
        self.done = True
        del self.recorder.pending[self.number]
        if operation is not None:
            self.recorder.operations.append(operation)


@dataclass
class Recorder:
    """Collects a history. Calls still open at the end must be finished as ``unknown``."""

    operations: list[Operation] = field(default_factory=list)
    pending: dict[int, Pending] = field(default_factory=dict)
    """Calls without an outcome yet, by number."""
    calls: int = 0

    def call(
        self,
        client: str,
        kind: Kind,
        key: str,
        now: float,
        *,
        value: str | None = None,
        cas: int | None = None,
    ) -> Pending:
        """Note the call; the caller notes the return on what this gives back."""
        self.calls += 1
        pending = Pending(self, self.calls, client, kind, key, now, value, cas)
        self.pending[self.calls] = pending
        return pending


def per_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Split a history by key (linearizability is local: Horn & Kroening)."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return keys

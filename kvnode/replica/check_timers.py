"""The leader's clocks of local checks: TTL, and how long a service has been critical (spec §10).

As for sessions (``session_timers``): what is decided here is only when to propose, a new leader starts
every clock in full, and time in which this process stood still is not counted (RC-61). A TTL starts anew
with each report that is applied. Nothing expires while a report is in the log and not applied yet, and an
expiry is appended at once, so that it never stands behind a report that came in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvnode.replica.deadlines import Deadlines
from kvnode.replica.office_clock import OfficeClock
from kvnode.store.commands import Command
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_records import CRITICAL, Check, fold
from kvnode.store.store import Store

RETRY_S: Final = 1.0
NEWS_S: Final = 0.1
"""Pause before a check is looked at again of which there is news in the log."""
ENDS_AT_ONCE: Final = 200
DEREGISTER_MIN_S: Final = 60.0
"""A service is not deregistered sooner than this, whatever was asked for, as in Consul."""
EXPIRED: Final = "TTL expired"
OUTPUT_MAX: Final = 4096
"""Characters of output that a check keeps."""

REPORTS: Final = frozenset({UpdateCheck, Register})
"""Commands that may restart the clock of a check."""

Propose = Callable[[Command, Callable[[bool], None]], None]
"""Proposes a command on this very node; the call-back says whether it took effect."""


class CheckTimers:
    """Runs while this node leads, and is empty otherwise."""

    def __init__(self, store: Store, propose: Propose, time: Callable[[], float]) -> None:
        """Not in office yet. ``time``: monotonic seconds."""
        self._store = store
        self._propose = propose
        self._time = time
        self._ttl = Deadlines()
        self._critical = Deadlines()
        self._news: dict[bytes, int] = {}
        """Index of the newest entry that this leader has appended about a check; nothing expires before
        that is applied."""
        self._in_office = False
        self._clock = OfficeClock()

    def begin(self, now: float) -> None:
        """This node leads from now on: every check gets its time in full."""
        self.stop()
        self._in_office = True
        self._clock.resume(now)
        self._learn()

    def stop(self) -> None:
        """This node does not lead."""
        self._in_office = False
        self._ttl.clear()
        self._critical.clear()
        self._news.clear()

    def _learn(self) -> None:
        for check in self._store.registry().checks():
            if check.is_local and (check.definition.ttl_ns or check.definition.deregister_ns):
                self._reported(check, written=False)

    def changed(self, check: Check | None) -> None:
        """The store has written or removed a check; None: any, it was replaced."""
        if not self._in_office:
            return
        # Up to now: else the time since the last look would be taken from what a report has just won.
        self._clock.advance(self._time())
        if check is None:
            self._ttl.clear()
            self._critical.clear()
            self._learn()
        else:
            self._reported(check, written=True)

    def _reported(self, check: Check, *, written: bool) -> None:
        key = fold(check.node, check.check_id)
        definition = check.definition
        if not check.is_local or not definition.ttl_ns or _is_expired(check):
            self._ttl.drop(key)
            self._news.pop(key, None)
        elif written or key not in self._ttl:
            self._ttl.set(key, self._clock.now + definition.ttl_ns / 1e9)
        if check.is_local and definition.deregister_ns and check.status == CRITICAL:
            if key not in self._critical:
                self._critical.set(key, self._clock.now + _patience_s(check))
        else:
            self._critical.drop(key)

    def appended(self, command: Command, index: int) -> None:
        """This leader has appended a command: what it says of a check is news until it is applied."""
        if isinstance(command, UpdateCheck):
            self._note(command.node, command.check_id, index)
        elif isinstance(command, Register):
            for check in command.checks:
                self._note(check.node, check.check_id, index)

    def _note(self, node: str, check_id: str, index: int) -> None:
        key = fold(node, check_id)
        if key in self._ttl:
            self._news[key] = index

    def run(self, now: float) -> None:
        """Go on to ``now``, and propose what is due; called often while in office."""
        self._clock.advance(now)
        for key in self._ttl.take_due(self._clock.now, ENDS_AT_ONCE):
            if self._news.get(key, 0) > self._store.applied_index:
                # Its time begins anew when that is applied, if it is a report or a registration indeed.
                self._ttl.set(key, self._clock.now + NEWS_S)
                continue
            self._news.pop(key, None)
            check = self._find(key)
            if check is not None:
                output = _expired_output(check.output)
                self._end(self._ttl, key, _update(check, CRITICAL, output))
        for key in self._critical.take_due(self._clock.now, ENDS_AT_ONCE):
            check = self._find(key)
            if check is not None and check.service_id:
                command = Deregister(check.node, check.service_id, if_critical=check.check_id)
                self._end(self._critical, key, command)

    def _find(self, key: bytes) -> Check | None:
        node, _, check_id = key.decode("utf-8", "surrogateescape").partition("\0")
        return self._store.registry().check(node, check_id)

    def _end(self, deadlines: Deadlines, key: bytes, command: Command) -> None:
        def done(took_effect: bool) -> None:
            if not took_effect and self._in_office and self._find(key) is not None:
                deadlines.set(key, self._clock.now + RETRY_S)

        self._propose(command, done)


def _update(check: Check, status: str, output: str) -> UpdateCheck:
    return UpdateCheck(check.node, check.check_id, check.type, status, output)


def _is_expired(check: Check) -> bool:
    return check.status == CRITICAL and check.output.startswith(EXPIRED)


def _expired_output(before: str) -> str:
    if not before:
        return EXPIRED
    return f"{EXPIRED} (last output before timeout follows): {before}"[:OUTPUT_MAX]


def _patience_s(check: Check) -> float:
    return max(DEREGISTER_MIN_S, check.definition.deregister_ns / 1e9)

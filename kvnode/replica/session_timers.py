"""The leader's clocks of sessions (spec §5.4, RC-61): a heap, no task and no timer per session.

A session ends when twice its TTL has passed without a renewal: never before its TTL, since one factor is
the client's and the other is for whatever goes wrong on the way. Ending is a log entry, and what is
decided here is only when to propose it. A new leader starts every clock in full.

The time counted is the leader's monotonic time *without its own pauses*: while this process stood still,
renewals were waiting outside, and nobody may lose a session for that.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

from kvnode.replica.office_clock import OfficeClock
from kvnode.store.records import Session
from kvnode.store.store import Store

NODE_CHECK: Final = "serfHealth"
"""The check of a session that ties it to its node's membership."""
FACTOR: Final = 2
RETRY_S: Final = 1.0
"""Pause before the end of a session is proposed again."""
WALK_AT_ONCE: Final = 200
ENDS_AT_ONCE: Final = 200
"""Sessions looked at, and ended, in one run: a look comes with every tick."""
_SPARE: Final = 1000
"""Stale places that the heap may hold before it is made anew."""


class SessionTimers:
    """Runs while this node leads, and is empty otherwise."""

    def __init__(
        self,
        store: Store,
        end: Callable[[str], None],
        is_member: Callable[[str], bool],
    ) -> None:
        """Not in office yet.

        Args:
            store: Where the sessions are.
            end: Proposes the end of a session; ``failed`` is called when that came to nothing.
            is_member: Whether there is a member of this name.
        """
        self._store = store
        self._end = end
        self._is_member = is_member
        self._deadlines: dict[str, float] = {}
        """By this object's own clock; infinity: its end has been proposed."""
        self._heap: list[tuple[float, str]] = []
        """Deadlines as they once were: when one comes up, the table says whether it still holds."""
        self._walked: str | None = None
        """Up to which id the store's sessions were looked at; None: all were."""
        self._clock = OfficeClock()

    def begin(self, now: float) -> None:
        """This node leads from now on: every session gets its time in full."""
        self.stop()
        self._clock.resume(now)
        self._walked = ""

    def stop(self) -> None:
        """This node does not lead."""
        self._deadlines.clear()
        self._heap.clear()
        self._walked = None

    def members_changed(self) -> None:
        """Look at all sessions again: a node that one belongs to may be gone."""
        self._walked = ""

    def began(self, session: Session) -> None:
        """The store has a session that may not be known here yet."""
        due = self._due(session)
        if due is not None and session.session_id not in self._deadlines:
            self._set(session.session_id, due)

    def _due(self, session: Session) -> float | None:
        """Return when a session that is alive now has to end; None: it does not have to."""
        if self._is_orphan(session):
            return self._clock.now
        return self._clock.now + FACTOR * session.ttl_ns / 1e9 if session.ttl_ns else None

    def _is_orphan(self, session: Session) -> bool:
        return NODE_CHECK in session.node_checks and not self._is_member(session.node)

    def ended(self, session_id: str) -> None:
        """The store has it no more."""
        self._deadlines.pop(session_id, None)
        if len(self._heap) > 2 * len(self._deadlines) + _SPARE:
            self._heap = [
                (deadline, waiting)
                for waiting, deadline in self._deadlines.items()
                if deadline < math.inf
            ]
            heapq.heapify(self._heap)

    def failed(self, session_id: str) -> None:
        """The end that was proposed did not come about: propose it again."""
        if self._deadlines.get(session_id) == math.inf:
            self._set(session_id, self._clock.now + RETRY_S)

    def renew(self, session_id: str) -> Session | None:
        """Restart a session's clock. None: there is none, or its end is under way.

        Only after this node was confirmed as the leader.
        """
        session = self._store.session(session_id)
        deadline = self._deadlines.get(session_id)
        if session is None or deadline == math.inf:
            return None
        due = self._due(session)
        if due is None:
            return session
        if deadline is None or due < deadline:
            self._set(session_id, due)
        else:
            self._deadlines[session_id] = due
        return session

    def _set(self, session_id: str, deadline: float) -> None:
        self._deadlines[session_id] = deadline
        heapq.heappush(self._heap, (deadline, session_id))

    def advance(self, now: float) -> None:
        """Go on to ``now``; call it before ``began`` and ``renew``, too."""
        self._clock.advance(now)

    def run(self, now: float) -> None:
        """Go on to ``now``, and propose the ends that are due; called with every tick in office."""
        self.advance(now)
        if self._walked is not None:
            self._walk(self._walked)
        for _ in range(ENDS_AT_ONCE):
            if not self._heap or self._heap[0][0] > self._clock.now:
                return
            deadline, session_id = heapq.heappop(self._heap)
            known = self._deadlines.get(session_id)
            if known is None or known == math.inf:
                continue
            if known > deadline:
                heapq.heappush(self._heap, (known, session_id))
                continue
            self._deadlines[session_id] = math.inf
            self._end(session_id)

    def _walk(self, after: str) -> None:
        page = self._store.sessions(after=after, limit=WALK_AT_ONCE)
        for session in page:
            if session.session_id not in self._deadlines or self._is_orphan(session):
                self.renew(session.session_id)
        self._walked = page[-1].session_id if len(page) == WALK_AT_ONCE else None

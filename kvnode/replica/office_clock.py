"""A leader's own clock, by which it lets sessions, checks and keys end (RC-61)."""

from __future__ import annotations

from typing import Final

STEP_MAX_S: Final = 1.0
"""So much of one step between two looks is counted; what is longer was a pause of this process."""


class OfficeClock:
    """Seconds that were counted while this node led. It never shows when something happened, only how long
    something has lasted; time in which the process stood still is hardly in it.

    Attributes:
        now: What was counted so far, up to the last ``advance``.
    """

    __slots__ = ("_looked_at", "now")

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self.now = 0.0
        self._looked_at = 0.0

    def resume(self, time: float) -> None:
        """Count from ``time`` (monotonic seconds) on, and nothing before it."""
        self._looked_at = time

    def advance(self, time: float) -> float:
        """Go on to ``time``; return the seconds that count.

        Before a deadline is set, too: a time that began at the last look, which was long ago if this
        process stood still or did not count yet, would end too early.
        """
        step_s = min(max(0.0, time - self._looked_at), STEP_MAX_S)
        self._looked_at = time
        self.now += step_s
        return step_s

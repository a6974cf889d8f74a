"""Many deadlines, one heap: no task and no timer for each."""

from __future__ import annotations

import heapq
from typing import Final

_SPARE: Final = 1000
"""Stale places that the heap may hold before it is made anew."""


class Deadlines:
    """When each of some keys is due, by a clock that the owner advances."""

    def __init__(self) -> None:
        """Nothing is due."""
        self._at: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __contains__(self, key: bytes) -> bool:
        """Whether a key has a deadline."""
        return key in self._at

    def set(self, key: bytes, at: float) -> None:
        """Give a key a deadline, in the place of an older one."""
        before = self._at.get(key)
        self._at[key] = at
        if before is None or at < before:
            heapq.heappush(self._heap, (at, key))
        # Else the heap's older place comes up first, and finds the new one here.
        if len(self._heap) > 2 * len(self._at) + _SPARE:
            self._heap = [(when, name) for name, when in self._at.items()]
            heapq.heapify(self._heap)

    def drop(self, key: bytes) -> None:
        """Forget a key's deadline. Idempotent."""
        self._at.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._at.clear()
        self._heap.clear()

    def take_due(self, now: float, at_most: int) -> list[bytes]:
        """Take out the keys whose deadlines have come, the earliest first."""
        due: list[bytes] = []
        while self._heap and self._heap[0][0] <= now and len(due) < at_most:
            at, key = heapq.heappop(self._heap)
            known = self._at.get(key)
            if known is None:
                continue
            if known > at:
                heapq.heappush(self._heap, (known, key))
                continue
            del self._at[key]
            due.append(key)
        return due

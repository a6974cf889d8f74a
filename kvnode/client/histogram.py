"""Times counted in classes of 2 % width: percentiles in bounded memory."""

from __future__ import annotations

from math import ceil, log
from typing import Final

_GROWTH: Final = 1.02
_LOG: Final = log(_GROWTH)
_LEAST_S: Final = 1e-6
_CLASSES: Final = 1200
"""Up to some five hours."""


class Histogram:
    """Seconds; percentiles are right to 2 %, least, greatest, mean and count exactly."""

    __slots__ = ("_classes", "count", "greatest", "least", "total")

    def __init__(self) -> None:
        """Begin empty."""
        self._classes = [0] * _CLASSES
        self.count = 0
        self.total = 0.0
        self.least = 0.0
        self.greatest = 0.0

    def add(self, seconds: float) -> None:
        """Count one; what is not above zero counts as the least there is."""
        place = ceil(log(seconds / _LEAST_S) / _LOG) if seconds > _LEAST_S else 0
        self._classes[min(place, _CLASSES - 1)] += 1
        self.least = min(self.least, seconds) if self.count else seconds
        self.greatest = max(self.greatest, seconds)
        self.count += 1
        self.total += seconds

    def percentile(self, share: float) -> float:
        """Return a time that ``share`` (0 … 1) of all do not exceed; 0 when there are none."""
        wanted = ceil(share * self.count)
        seen = 0
        for place, count in enumerate(self._classes):
            seen += count
            if count and seen >= wanted:
                return min(_LEAST_S * _GROWTH**place, self.greatest)
        return self.greatest

    def document(self) -> dict[str, float]:
        """Return the usual figures in milliseconds."""
        figures = {
            "min": self.least,
            "mean": self.total / self.count if self.count else 0.0,
            "p50": self.percentile(0.5),
            "p90": self.percentile(0.9),
            "p99": self.percentile(0.99),
            "p99.9": self.percentile(0.999),
            "max": self.greatest,
        }
        return {name: round(seconds * 1000, 3) for name, seconds in figures.items()}

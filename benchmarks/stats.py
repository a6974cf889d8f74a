"""Medians, spreads and ratios. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple


class Cell(NamedTuple):
    """What was measured, but not on which system."""

    workload: str
    target: str
    connections: int


class Spread(NamedTuple):
    """The median of the rounds, with the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Summarize one figure per round; there must be one at least."""
        assert figures
        return cls(median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement: one cell, one system, one round."""

    cell: Cell
    system: str
    round: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Processor microseconds of all three nodes per request."""
    foreign_cpu: float
    """Mean number of processors that others (neither systems, nor wrk) kept busy meanwhile."""
    void: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One cell of one system over all rounds; the spreads are None when every round is void."""

    cell: Cell
    system: str
    rounds: int
    """That count."""
    voids: tuple[str, ...]
    per_s: Spread | None
    p50_ms: Spread | None
    p99_ms: Spread | None
    cpu_us: Spread | None
    foreign_cpu: Spread | None
    ratios: Mapping[str, Spread]
    """kvnode's throughput over this system's, by the peer's name; filled on kvnode's row only."""


def ratio_spread(samples: Iterable[Sample], cell: Cell, system: str, peer: str) -> Spread | None:
    """Return ``system``'s throughput over ``peer``'s, taken within each round, then summarized.

    Rounds in which either is missing or void are left out; None when that leaves none. The median
    of ratios, not the ratio of medians: what slowed both down in one round cancels out in it.
    """
    by_round: dict[int, dict[str, float]] = {}
    for sample in samples:
        if sample.cell == cell and sample.void is None and sample.per_s > 0:
            by_round.setdefault(sample.round, {})[sample.system] = sample.per_s
    ratios = [of[system] / of[peer] for of in by_round.values() if system in of and peer in of]
    return Spread.of(ratios) if ratios else None


def summarize(samples: Sequence[Sample], subject: str = "kvnode") -> list[Summary]:
    """Return one summary per cell and system, in the order of their first sample."""
    pairs = list(dict.fromkeys((sample.cell, sample.system) for sample in samples))
    systems = list(dict.fromkeys(system for _, system in pairs))
    return [_summary(samples, cell, system, systems, subject) for cell, system in pairs]


def _summary(
    samples: Sequence[Sample], cell: Cell, system: str, systems: Sequence[str], subject: str
) -> Summary:
    mine = [sample for sample in samples if (sample.cell, sample.system) == (cell, system)]
    good = [sample for sample in mine if sample.void is None]

    def spread(field: str) -> Spread | None:
        return Spread.of([getattr(sample, field) for sample in good]) if good else None

    ratios = {
        peer: found
        for peer in systems
        if system == subject and peer != subject
        if (found := ratio_spread(samples, cell, subject, peer)) is not None
    }
    return Summary(
        cell=cell,
        system=system,
        rounds=len(good),
        voids=tuple(sample.void for sample in mine if sample.void is not None),
        per_s=spread("per_s"),
        p50_ms=spread("p50_ms"),
        p99_ms=spread("p99_ms"),
        cpu_us=spread("cpu_us"),
        foreign_cpu=spread("foreign_cpu"),
        ratios=ratios,
    )

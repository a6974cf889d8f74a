"""Medians and ratios are taken over good rounds only, and ratios within a round."""

import pytest

from benchmarks.stats import Cell, Sample, Spread, ratio_spread, summarize

CELL = Cell("put", "leader", 32)


def sample(system: str, number: int, per_s: float, void: str | None = None) -> Sample:
    return Sample(
        cell=CELL,
        system=system,
        round=number,
        per_s=per_s,
        p50_ms=1000 / per_s,
        p99_ms=5000 / per_s,
        cpu_us=per_s,
        foreign_cpu=0.0,
        void=void,
    )


def test_spread_holds_median_and_extremes():
    assert Spread.of([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)


def test_ratio_is_taken_within_rounds_before_it_is_summarized():
    """A slow round of the machine halves both; the ratio of medians would show it, this must not."""
    samples = [
        sample("kvnode", 0, 100),
        sample("etcd", 0, 200),
        sample("kvnode", 1, 50),
        sample("etcd", 1, 100),
        sample("kvnode", 2, 90),
        sample("etcd", 2, 100),
    ]
    assert ratio_spread(samples, CELL, "kvnode", "etcd") == (0.5, 0.5, 0.9)


def test_a_round_with_a_void_half_has_no_ratio():
    samples = [
        sample("kvnode", 0, 100),
        sample("etcd", 0, 50, void="errors: status 3"),
        sample("kvnode", 1, 100),
        sample("etcd", 1, 400),
    ]
    assert ratio_spread(samples, CELL, "kvnode", "etcd") == (0.25, 0.25, 0.25)


def test_no_common_round_gives_no_ratio():
    assert ratio_spread([sample("kvnode", 0, 1)], CELL, "kvnode", "etcd") is None


def test_void_rounds_enter_no_figure_but_are_told():
    [summary] = summarize([sample("etcd", 0, 100), sample("etcd", 1, 9000, void="no")])
    assert summary.per_s == (100, 100, 100)
    assert (summary.rounds, summary.voids) == (1, ("no",))


def test_a_cell_of_void_rounds_has_no_figures():
    [summary] = summarize([sample("etcd", 0, 100, void="no")])
    assert (summary.per_s, summary.p99_ms, summary.rounds) == (None, None, 0)


def test_ratios_stand_on_the_subjects_row_only():
    samples = [sample("kvnode", 0, 30), sample("etcd", 0, 60), sample("consul", 0, 15)]
    kvnode, etcd, consul = summarize(samples)
    assert {peer: found.median for peer, found in kvnode.ratios.items()} == {
        "etcd": pytest.approx(0.5),
        "consul": pytest.approx(2.0),
    }
    assert not etcd.ratios
    assert not consul.ratios

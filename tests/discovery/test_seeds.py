from hypothesis import given
from hypothesis import strategies as st

from kvnode.discovery.seeds import SEEDS_MAX, Seed, natural_key, seed_for, tidy


def test_ordinals_sort_as_numbers():
    """kvnode-2 comes before kvnode-10: the lowest ordinal bootstraps."""
    names = ["kvnode-10", "kvnode-2", "kvnode-0", "kvnode-1"]
    assert sorted(names, key=natural_key) == ["kvnode-0", "kvnode-1", "kvnode-2", "kvnode-10"]


@given(st.lists(st.text(max_size=12)))
def test_any_texts_can_be_sorted(texts):
    """Host names come from the network."""
    once = sorted(texts, key=natural_key)
    assert sorted(once, key=natural_key) == once


def test_the_name_is_the_first_label_and_ips_have_none():
    assert seed_for("kvnode-0.kvnode.ns.svc.cluster.local.", 8300) == Seed(
        "kvnode-0", "kvnode-0.kvnode.ns.svc.cluster.local:8300"
    )
    assert seed_for("10.1.2.3", 1) == Seed("", "10.1.2.3:1")
    assert seed_for("fd00::1", 1) == Seed("", "[fd00::1]:1")


@given(st.permutations([seed_for(f"kvnode-{n}.k", 8300) for n in range(12)] * 2))
def test_any_order_of_answers_gives_one_list(seeds):
    """Name servers shuffle; repetitions are dropped."""
    assert [s.name for s in tidy(seeds)] == [f"kvnode-{n}" for n in range(12)]


def test_the_number_of_seeds_is_bounded():
    """An answer is somebody else's data (RC-67)."""
    assert len(tidy(seed_for(f"n{n}", 1) for n in range(2 * SEEDS_MAX))) == SEEDS_MAX

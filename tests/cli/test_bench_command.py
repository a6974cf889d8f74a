"""``kvnode bench`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest

from kvnode.cli.bench import parse_mix
from kvnode.client.plan import Operation
from kvnode.errors import BadRequest


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvnode", "bench", *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_short_load_gives_figures_and_leaves_nothing_behind(cluster_of_one: str) -> None:
    """JSON on stdout, live figures on stderr, exit code 0."""
    done = bench(
        "-d", "1.2", "-c", "4", "--keys", "20", "--mix", "put,get=3,stale,list,delete",
        "--verify", "-o", "json", "--http-addr", cluster_of_one,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["verified"] == {"keys": 20, "lost": []}
    assert document["nodes"].keys() == {"solo"}
    for figures in document["operations"].values():
        assert figures["answered"] > 0
        assert figures["refused"] == figures["failed"] == figures["unknown"] == 0
        assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert "/s" in done.stderr
    with urllib.request.urlopen(f"{cluster_of_one}/v1/kv/?keys", timeout=5) as answer:
        assert not [key for key in json.load(answer) if key.startswith("kvnode-bench/")]


def test_a_table_is_printed_for_people(cluster_of_one: str) -> None:
    """And --quiet leaves the live figures out."""
    done = bench("-d", "0.3", "-c", "2", "--keys", "2", "-q", "--http-addr", cluster_of_one)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["operation", "answered"]
    assert "answers in" in done.stderr


@pytest.mark.parametrize(
    "wrong", [["--mix", "put=x"], ["--mix", "fly"], ["--mix", ""], ["--value-bytes", "1"]]
)
def test_a_wrong_wish_is_exit_code_two(wrong: list[str]) -> None:
    """Nothing was asked of anybody."""
    done = bench(*wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("kvnode: ")


def test_a_mix_is_names_with_weights() -> None:
    """A name alone weighs one."""
    assert parse_mix("put=20, get") == {Operation.PUT: 20, Operation.GET: 1}
    with pytest.raises(BadRequest, match="stale"):
        parse_mix("put=,get")

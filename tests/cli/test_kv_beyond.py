"""``kvnode kv`` beyond Consul's: times to live, counters, copies, pages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kvnode.cli.commands import app

Run = Callable[..., Result]


@pytest.fixture
def run(cluster_of_one: str) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), env={"KVNODE_HTTP_ADDR": cluster_of_one})

    return run


def test_a_counter(run: Run) -> None:
    assert run("kv", "put", "beyond/n", "--add", "5").stdout == "5\n"
    assert run("kv", "put", "beyond/n", "--add=-7").stdout == "-2\n"
    told = run("kv", "put", "beyond/n", "--add", "1", "-o", "json")
    assert json.loads(told.stdout) == {"success": True, "value": -1}
    assert run("kv", "put", "beyond/n", "--add", "1", "--cas", "0").exit_code == 1
    assert run("kv", "put", "beyond/n", "value", "--add", "1").exit_code == 2
    run("kv", "put", "beyond/word", "five")
    refused = run("kv", "put", "beyond/word", "--add", "1")
    assert refused.exit_code != 0
    assert "not a decimal number" in refused.stderr


def test_a_time_to_live(run: Run) -> None:
    assert run("kv", "put", "beyond/ttl", "x", "--ttl", "2").exit_code == 0
    assert run("kv", "get", "beyond/ttl").stdout == "x"
    assert json.loads(run("kv", "get", "-o", "json", "beyond/ttl").stdout)["ttl"] == "2s"
    deadline = time.monotonic() + 10
    while run("kv", "get", "beyond/ttl").exit_code == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "key_ttl_min_s" in run("kv", "put", "beyond/ttl", "x", "--ttl", "0.1").stderr


def test_copies_and_moves(run: Run) -> None:
    for name in ("1", "2"):
        run("kv", "put", f"beyond/a/{name}", name)
    assert run("kv", "cp", "--recurse", "beyond/a/", "beyond/b/").stderr == "copied 2 keys\n"
    refused = run("kv", "mv", "--recurse", "beyond/a/", "beyond/b/")
    assert refused.exit_code != 0
    assert "exists" in refused.stderr
    moved = run("kv", "mv", "--recurse", "--overwrite", "beyond/a/", "beyond/b/", "-o", "json")
    assert json.loads(moved.stdout) == {"success": True, "keys": 2}
    assert run("kv", "mv", "beyond/b/1", "beyond/c").exit_code == 0
    assert run("kv", "list", "beyond/b/").stdout == "beyond/b/2\n"
    assert run("kv", "get", "beyond/c").stdout == "1"


def test_pages_and_counts(run: Run) -> None:
    for name in ("1", "2", "a/x", "a/y"):
        run("kv", "put", f"pages/{name}", name)
    assert run("kv", "list", "pages/", "--count").stdout == "4\n"
    assert run("kv", "list", "pages/", "--count", "--separator", "/").stdout == "3\n"
    page = run("kv", "list", "pages/", "--limit", "2")
    assert (page.stdout, page.stderr) == (
        "pages/1\npages/2\n",
        "there is more: --after pages/2\n",
    )
    rest = run("kv", "list", "pages/", "--after", "pages/2", "-o", "json")
    assert [pair["key"] for pair in json.loads(rest.stdout)] == ["pages/a/x", "pages/a/y"]
    back = run("kv", "list", "pages/", "--reverse", "--limit", "1", "--separator", "/")
    assert back.stdout == "pages/a/\n"

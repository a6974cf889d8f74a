"""``kvnode kv history|rollback|changes`` and ``get --as-of`` against a running node."""

from __future__ import annotations

import json
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


def test_what_a_key_was_can_be_read_and_brought_back(run: Run) -> None:
    for value in ("one", "two"):
        run("kv", "put", "--flags", "7", "past", value)
    run("kv", "delete", "past")
    found = json.loads(run("kv", "history", "past", "-o", "json").stdout)
    assert [item["by"] for item in found] == ["delete", "put", "put"]
    deleted, two, one = (item["index"] for item in found)
    assert run("kv", "get", "--as-of", str(one), "past").stdout == "one"
    assert run("kv", "get", "--as-of", str(deleted), "past").exit_code == 1

    assert run("kv", "rollback", "past", str(two)).exit_code == 0
    detailed = json.loads(run("kv", "get", "past", "-o", "json").stdout)
    assert (detailed["value"], detailed["flags"]) == ("two", 7)
    rolled = run("kv", "rollback", "past", str(deleted))
    assert "past is as it was" in rolled.stderr
    assert run("kv", "get", "past").exit_code == 1

    lines = run("kv", "history", "past").stdout.splitlines()
    assert lines[0].split() == ["index", "by", "flags", "session", "value"]
    assert lines[1].split()[1:] == ["delete", "-", "-", "(deleted)"]
    assert lines[2].split()[1:] == ["put", "7", "-", "two"]
    cut = run("kv", "history", "-n", "2", "past")
    assert "there are older ones" in cut.stderr


def test_nothing_is_known_of_a_key_is_exit_code_1(run: Run) -> None:
    missing = run("kv", "history", "never")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "nothing is known of never" in missing.stderr


def test_an_index_outside_of_the_window_is_exit_code_2(run: Run) -> None:
    ahead = run("kv", "get", "--as-of", "99999999", "past")
    assert ahead.exit_code == 2
    assert "lies in the future" in ahead.stderr


def test_changes_are_printed_as_they_happened(run: Run) -> None:
    run("kv", "put", "feed/a", "1")
    start = json.loads(run("kv", "get", "feed/a", "-o", "json").stdout)["modify_index"]
    run("kv", "put", "feed/a", "2")
    run("kv", "put", "elsewhere", "x")
    run("kv", "delete", "--recurse", "feed/")
    since = str(start - 1)
    text = run("kv", "changes", "feed/", "--since", since, "-n", "3").stdout
    assert text.splitlines() == [
        f"{start} + feed/a (put) = 1",
        f"{start + 1} ~ feed/a (put) = 2",
        f"{start + 3} - feed/a (delete-tree)",
    ]
    document = run("kv", "changes", "feed/", "--since", since, "-n", "2", "-o", "json").stdout
    second = json.loads(document.splitlines()[1])
    assert (second["id"], second["new"]["value"], second["old"]["value"]) == (
        str(start + 1), "2", "1",
    )  # fmt: skip


def test_the_state_can_come_first(run: Run) -> None:
    for number in range(3):
        run("kv", "put", f"state/{number}", "\n")
    text = run("kv", "changes", "state/", "--initial", "-n", "3").stdout
    assert [line.split(maxsplit=1)[1] for line in text.splitlines()] == [
        f"+ state/{number} (initial) = \\n" for number in range(3)
    ]


def test_a_compacted_point_is_exit_code_2(run: Run) -> None:
    ahead = run("kv", "changes", "--since", "99999999")
    assert ahead.exit_code == 2

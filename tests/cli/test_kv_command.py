"""``kvnode kv``, ``members`` and ``operator`` against a running node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kvnode.cli.commands import app

Run = Callable[..., Result]


@pytest.fixture
def run(cluster_of_one: str) -> Run:
    """Run a command against the shared node, with the address as Consul's tools give it."""
    address = cluster_of_one.removeprefix("http://")

    def run(*words: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(
            app,
            list(words),
            input=stdin,
            env={"CONSUL_HTTP_ADDR": address, "KVNODE_HTTP_ADDR": None},
        )

    return run


def test_a_value_comes_back_byte_for_byte(run: Run, tmp_path: Path) -> None:
    """Pipes carry any bytes, so nothing is added to them."""
    data = bytes(range(256)) + b"\n\n"
    file = tmp_path / "value"
    file.write_bytes(data)
    assert run("kv", "put", "bytes/file", f"@{file}").exit_code == 0
    assert run("kv", "put", "bytes/stdin", "-", stdin=data).exit_code == 0
    assert run("kv", "get", "bytes/file").stdout_bytes == data
    assert run("kv", "get", "--raw", "bytes/stdin").stdout_bytes == data


def test_data_goes_to_stdout_and_talk_to_stderr(run: Run) -> None:
    stored = run("kv", "put", "talk", "x")
    assert (stored.stdout, stored.stderr) == ("", "stored talk\n")


def test_a_missing_key_is_exit_code_1(run: Run) -> None:
    missing = run("kv", "get", "nowhere")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "no such key: nowhere" in missing.stderr


def test_cas_that_does_not_fit_is_exit_code_1(run: Run) -> None:
    assert run("kv", "put", "--cas", "0", "cas", "a").exit_code == 0
    assert run("kv", "put", "--cas", "0", "cas", "b").exit_code == 1
    assert run("kv", "delete", "--cas", "1", "cas").exit_code == 1
    index = json.loads(run("kv", "get", "-o", "json", "cas").stdout)["modify_index"]
    assert run("kv", "put", "--cas", str(index), "cas", "b").exit_code == 0
    assert run("kv", "get", "cas").stdout == "b"


def test_json_says_everything_also_of_bytes_that_are_no_text(run: Run) -> None:
    run("kv", "put", "json/a", "text", "--flags", "42")
    run("kv", "put", "json/b", "-", stdin=b"\xff")
    first, second = json.loads(run("kv", "list", "json/", "--output", "json").stdout)
    assert (first["key"], first["value"], first["flags"]) == ("json/a", "text", 42)
    assert (second["value"], second["value_base64"], second["session"]) == (None, "/w==", None)


def test_keys_are_listed_and_cut(run: Run) -> None:
    for key in ("list/a", "list/b/1", "list/b/2"):
        run("kv", "put", key, "")
    assert run("kv", "list", "list/").stdout.split() == ["list/a", "list/b/1", "list/b/2"]
    assert run("kv", "list", "list/", "--separator", "/").stdout.split() == ["list/a", "list/b/"]
    assert run("kv", "list", "none/").stdout == ""
    assert "modify_index" in run("kv", "list", "list/", "--detailed").stdout
    assert run("kv", "delete", "--recurse", "list/").exit_code == 0
    assert run("kv", "list", "list/").stdout == ""


def test_detailed_shows_the_indexes(run: Run) -> None:
    run("kv", "put", "detailed", "v")
    shown = dict(
        line.split(None, 1)
        for line in run("kv", "get", "--detailed", "detailed").stdout.splitlines()
    )
    assert shown["value"] == "v"
    assert shown["create_index"] == shown["modify_index"]


@pytest.mark.parametrize(
    "words",
    [
        ("kv", "put", "", "x"),
        ("kv", "get", "/slash"),
        ("kv", "put", "k", "@/no/such/file"),
        ("kv", "delete", "--recurse", "--cas", "1", "k"),
        ("operator", "raft", "remove-peer"),
        ("operator", "raft", "remove-peer", "--name", "a", "--id", "b"),
        ("kv", "get", "k", "--http-addr", "ftp://x"),
    ],
)
def test_wrong_requests_are_exit_code_2(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("kvnode: ")


def test_a_value_above_the_limit_is_refused_with_the_servers_words(run: Run) -> None:
    result = run("kv", "put", "big", "-", stdin=bytes(512 * 1024 + 1))
    assert result.exit_code == 2
    assert "too large" in result.stderr


def test_nobody_there_is_exit_code_1_at_once() -> None:
    result = CliRunner().invoke(app, ["kv", "get", "k", "--http-addr", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "Connection refused" in result.stderr


def test_members_and_peers_show_the_one_node(run: Run) -> None:
    (member,) = json.loads(run("members", "-o", "json").stdout)
    assert (member["name"], member["status"], member["leader"]) == ("solo", "alive", True)
    (peer,) = json.loads(run("operator", "raft", "list-peers", "-o", "json").stdout)
    assert (peer["name"], peer["leader"], peer["voter"]) == ("solo", True, True)
    assert "solo" in run("members").stdout
    assert "leader" in run("operator", "raft", "list-peers").stdout


def test_the_last_voter_cannot_be_removed(run: Run) -> None:
    result = run("operator", "raft", "remove-peer", "--name", "solo")
    assert result.exit_code == 1
    assert run("kv", "put", "still", "there").exit_code == 0


def test_an_unknown_member_is_named_with_those_there_are(run: Run) -> None:
    result = run("operator", "raft", "remove-peer", "--name", "kvnode-9")
    assert result.exit_code == 1
    assert "kvnode-9" in result.stderr
    assert "solo" in result.stderr

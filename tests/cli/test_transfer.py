"""``kvnode kv export`` and ``import``; ``kvnode operator autopilot``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kvnode.cli.commands import app
from kvnode.cli.main import two_dashes
from kvnode.cli.transfer import parse
from kvnode.cli.watch import variables
from kvnode.client import KVPair

Run = Callable[..., Result]


@pytest.fixture
def run(cluster_of_one: str) -> Run:
    def run(*words: str, stdin: bytes = b"") -> Result:
        env = {"CONSUL_HTTP_ADDR": cluster_of_one, "KVNODE_HTTP_ADDR": None}
        return CliRunner().invoke(app, list(words), input=stdin, env=env)

    return run


def test_what_is_exported_can_be_imported(run: Run, tmp_path: Path) -> None:
    """Bytes, flags and odd names included, in the format of ``consul kv export``."""
    values = {f"exp/{n:03}": bytes([n, 255 - n]) for n in range(40)} | {"exp/ç: x": b""}
    for number, (key, value) in enumerate(values.items()):
        file = tmp_path / "value"
        file.write_bytes(value)
        assert run("kv", "put", "--flags", str(number), key, f"@{file}").exit_code == 0
    exported = run("kv", "export", "exp/").stdout_bytes
    rows = json.loads(exported)
    assert list(rows[0]) == ["key", "flags", "value"]
    assert [row["key"] for row in rows] == sorted(values, key=str.encode)
    run("kv", "delete", "--recurse", "exp/")
    done = run("kv", "import", stdin=exported)
    assert (done.exit_code, done.stderr) == (0, "imported 41 keys\n")
    assert run("kv", "export", "exp/").stdout_bytes == exported
    file = tmp_path / "export.json"
    file.write_bytes(exported)
    assert run("kv", "import", "--prefix", "copy/", f"@{file}").exit_code == 0
    assert len(json.loads(run("kv", "export", "copy/exp/").stdout)) == 41


def test_nothing_exported_is_an_empty_array(run: Run) -> None:
    assert json.loads(run("kv", "export", "nothing/").stdout) == []
    assert run("kv", "import", "[]").exit_code == 0


@pytest.mark.parametrize(
    "document",
    [
        "", "{", "{}", "7", "[7]", '[{"flags":0}]', '[{"key":""}]', '[{"key":1}]', '[{"key":"a","flags":-1}]',
        '[{"key":"a","flags":"1"}]', '[{"key":"a","value":7}]', '[{"key":"a","value":"§"}]',
        '[{"key":"ok","value":"eA=="},{"key":"a","value":"eA"}]',
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused_before_anything_is_stored(run: Run, document: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(document.encode())
    done = run("kv", "import", stdin=document.encode())
    assert done.exit_code == 2
    assert "this is no export" in done.stderr
    assert run("kv", "get", "ok").exit_code == 1


def test_consuls_null_and_missing_members() -> None:
    assert parse(b'[{"key":"a","flags":7,"value":null},{"key":"b"}]') == [
        ("a", b"", 7),
        ("b", b"", 0),
    ]


def test_an_import_that_is_refused_midway_says_where(run: Run) -> None:
    rows = [{"key": "mid/a", "value": ""}, {"key": "/slash", "value": ""}]
    done = run("kv", "import", stdin=json.dumps(rows).encode())
    assert done.exit_code == 2
    assert "/slash was not" in done.stderr


def test_autopilot(run: Run) -> None:
    before = json.loads(run("operator", "autopilot", "get-config", "-o", "json").stdout)
    changed = run("operator", "autopilot", "set-config", "--no-cleanup-dead-servers",
                  "--last-contact-threshold", "2s")  # fmt: skip
    assert changed.exit_code == 0
    after = json.loads(run("operator", "autopilot", "get-config", "-o", "json").stdout)
    assert after["LastContactThreshold"] == "2s"
    assert after["CleanupDeadServers"] is False
    assert after["MaxTrailingLogs"] == before["MaxTrailingLogs"]
    assert run("operator", "autopilot", "set-config").exit_code == 2
    bad = run("operator", "autopilot", "set-config", "--last-contact-threshold", "soon")
    assert bad.exit_code == 2
    assert "invalid duration" in bad.stderr
    healthy = run("operator", "autopilot", "health")
    assert healthy.exit_code == 0
    assert "healthy" in healthy.stdout


# -- variables of kvnode exec, and words of commands that run others


def pair(key: str, value: bytes = b"") -> KVPair:
    return KVPair(
        key=key, value=value, flags=0, create_index=1, modify_index=1, lock_index=0, session=None
    )


def test_names_of_variables() -> None:
    pairs = [pair("p/a/b", b"1"), pair("p/1st", b"2"), pair("p/ü", b"3"), pair("p/folder/")]
    assert variables("p/", pairs, upper=True) == {b"A_B": b"1", b"_1ST": b"2", b"_": b"3"}
    with pytest.raises(ValueError, match="both be A_B"):
        variables("", [pair("a/b"), pair("a-b")], upper=True)
    with pytest.raises(ValueError, match="zero byte"):
        variables("", [pair("a", b"\0")], upper=True)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["lock", "-http-addr=a", "n", "ls", "-la"], ["lock", "--http-addr=a", "n", "ls", "-la"]),
        (["exec", "p", "make", "-jobs"], ["exec", "p", "make", "-jobs"]),
        (["kv", "watch", "-stale", "k", "x", "-yy"], ["kv", "watch", "--stale", "k", "x", "-yy"]),
        (["lock", "-n=2", "n", "x", "-n=2"], ["lock", "-n2", "n", "x", "-n=2"]),
        (["kv", "get", "k", "-stale"], ["kv", "get", "k", "--stale"]),
    ],
)
def test_the_command_that_is_run_keeps_its_options(words: list[str], meant: list[str]) -> None:
    assert two_dashes(words) == meant

"""``kvnode snapshot`` against a running node: files, exit codes, and what a script reads."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kvnode.cli.commands import app
from tests.archive.archives import CONSUL, archive, key, state

Run = Callable[..., Result]


@pytest.fixture
def run(cluster_of_one: str) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), env={"KVNODE_HTTP_ADDR": cluster_of_one})

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "backup.snap"


def test_saved_changed_restored(run: Run, file: Path) -> None:
    run("kv", "put", "snapshot/a", "before")
    saved = run("snapshot", "save", str(file))
    assert saved.exit_code == 0, saved.stderr
    assert "Saved and verified snapshot to index " in saved.stderr
    assert saved.stdout == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "it may hold secrets"
    assert [path.name for path in file.parent.iterdir()] == ["backup.snap"]
    run("kv", "put", "snapshot/a", "after")
    run("kv", "put", "snapshot/b", "after")
    restored = run("snapshot", "restore", str(file))
    assert restored.exit_code == 0, restored.stderr
    assert "Restored snapshot: " in restored.stderr
    assert run("kv", "get", "snapshot/a").stdout == "before"
    assert run("kv", "get", "snapshot/b").exit_code == 1


def test_what_is_inspected_is_for_people_and_for_scripts(run: Run, file: Path) -> None:
    file.write_bytes(archive())
    shown = run("snapshot", "inspect", str(file))
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["ID", "2-18-1795270942826"]
    assert [line.split()[0] for line in lines[:5]] == ["ID", "Size", "Index", "Term", "Version"]
    assert next(line.split()[:2] for line in lines if line.startswith("KVS")) == ["KVS", "4"]
    document = json.loads(run("snapshot", "inspect", "--output", "json", str(file)).stdout)
    assert (document["index"], document["term"], document["keys"]) == (18, 2, 4)
    assert document["size"] == len(state())
    kinds = {row["type"]: row for row in document["records"]}
    assert kinds["KVS"]["count"] == 4
    assert (kinds["KVS"]["restored"], kinds["Autopilot"]["restored"]) == (True, False)
    header = len(state([]))
    assert sum(row["bytes"] for row in document["records"]) == len(state()) - header
    assert sum(row["count"] for row in document["records"]) == len(CONSUL)


def test_json_of_save_and_restore(run: Run, file: Path) -> None:
    saved = json.loads(run("snapshot", "save", "-o", "json", str(file)).stdout)
    assert saved["keys"] >= 0
    file.write_bytes(archive())
    restored = json.loads(run("snapshot", "restore", "-o", "json", str(file)).stdout)
    assert (restored["keys"], restored["sessions"]) == (4, 1)
    assert restored["index"] > saved["index"]


def test_what_is_skipped_is_said(run: Run, file: Path) -> None:
    file.write_bytes(archive())
    restored = run("snapshot", "restore", str(file))
    assert "skipped 1 records of the kind Autopilot" in restored.stderr


@pytest.mark.parametrize("command", ["inspect", "restore"])
def test_a_bad_archive_is_exit_code_1_and_is_not_sent(run: Run, file: Path, command: str) -> None:
    run("kv", "put", "snapshot/kept", "x")
    for data, reason in (
        (b"hello, world", "gzip: invalid header"),
        (archive()[:-30], "unexpected EOF"),
        (archive(state([key(b"a"), key(b"a")])), "twice"),
    ):
        file.write_bytes(data)
        refused = run("snapshot", command, str(file))
        assert refused.exit_code == 1
        assert reason in refused.stderr
        assert refused.stdout == ""
    assert run("kv", "get", "snapshot/kept").stdout == "x"


def test_files_that_cannot_be_used_are_named(run: Run, file: Path) -> None:
    for words in (("inspect", str(file)), ("restore", str(file))):
        refused = run("snapshot", *words)
        assert refused.exit_code == 1
        assert f"cannot read {file}" in refused.stderr
    refused = run("snapshot", "save", str(file.parent / "missing" / "x.snap"))
    assert refused.exit_code == 1
    assert "cannot write" in refused.stderr


def test_a_save_that_fails_leaves_the_old_file_alone(run: Run, file: Path) -> None:
    file.write_bytes(b"the old one")
    failed = run("snapshot", "save", "--http-addr", "http://127.0.0.1:9", str(file))
    assert failed.exit_code == 1
    assert "cannot connect" in failed.stderr
    assert file.read_bytes() == b"the old one"
    assert [path.name for path in file.parent.iterdir()] == ["backup.snap"]


def test_a_save_may_go_to_standard_output(run: Run, file: Path) -> None:
    saved = run("snapshot", "save", "-")
    assert saved.exit_code == 0
    file.write_bytes(saved.stdout_bytes)
    assert run("snapshot", "inspect", str(file)).exit_code == 0

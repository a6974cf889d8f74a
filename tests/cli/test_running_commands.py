"""``kvnode lock``, ``exec`` and ``kv watch``: commands that run others, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(cluster_of_one: str, tmp_path: Path) -> Start:
    """Start ``kvnode`` against the shared node; its output goes to ``out``."""
    environ = {
        k: v for k, v in os.environ.items() if not k.startswith(("KVNODE_", "CONSUL_"))
    } | {"KVNODE_HTTP_ADDR": cluster_of_one}  # fmt: skip

    def run(*words: str, out: str = "out") -> subprocess.Popen[bytes]:
        with (tmp_path / out).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "kvnode", *words],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environ, cwd=tmp_path,
            )  # fmt: skip

    return run


def ask(base: str, method: str, path: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(base + path, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def until(condition: Callable[[], Any], what: str = "it happens") -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"not in time: {what}")


def holder(base: str, name: str) -> str:
    found = ask(base, "GET", f"/v1/kv/{name}/.lock")
    return str(found[0].get("Session", "")) if isinstance(found, list) else ""


# -- lock


def test_the_exit_code_is_the_commands_and_nothing_is_left(
    start: Start, cluster_of_one: str, tmp_path: Path
) -> None:
    assert start("lock", "run/code", "echo inside; exit 7").wait(30) == 7
    assert "inside" in (tmp_path / "out").read_text()
    assert start("lock", "run/code", "sh", "-c", "kill -9 $$").wait(30) == 128 + 9
    assert start("lock", "run/code", "no-such-program", "-x").wait(30) == 127
    assert ask(cluster_of_one, "GET", "/v1/kv/run/code?keys") == 404
    sessions = ask(cluster_of_one, "GET", "/v1/session/list")
    assert [s for s in sessions if "run/code" in s["Name"]] == []


def test_only_one_is_inside_at_a_time(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "order"
    script = f"echo in >> {log}; sleep 0.4; echo out >> {log}"
    both = [start("lock", "run/one", script) for _ in range(2)]
    assert [process.wait(40) for process in both] == [0, 0]
    assert log.read_text().split() == ["in", "out"] * 2


def test_as_many_as_the_limit_are_inside(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "order"
    script = f"echo in >> {log}; sleep 1.5; echo out >> {log}"
    three = [start("lock", "-n", "2", "run/two", script) for _ in range(3)]
    assert [process.wait(40) for process in three] == [0, 0, 0]
    inside = most = 0
    for word in log.read_text().split():
        inside += 1 if word == "in" else -1
        most = max(most, inside)
    assert (most, inside) == (2, 0)


def test_a_lost_lock_ends_the_command_and_what_it_started(
    start: Start, cluster_of_one: str, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    process = start("lock", "run/lost", f"sleep 8 && touch {done}; touch {done}")
    session = until(lambda: holder(cluster_of_one, "run/lost"), "the lock is held")
    ask(cluster_of_one, "PUT", f"/v1/session/destroy/{session}")
    assert process.wait(20) == 1
    assert "the lock is lost" in (tmp_path / "out").read_text()
    assert not done.exists()


def test_a_signal_is_the_commands(start: Start, cluster_of_one: str, tmp_path: Path) -> None:
    trapped = tmp_path / "trapped"
    process = start(
        "lock",
        "run/signal",
        f"trap 'echo caught; exit 5' USR1; touch {trapped}; while :; do sleep 0.1; done",
    )
    until(lambda: holder(cluster_of_one, "run/signal"), "the lock is held")
    until(trapped.exists, "the shell has set its trap")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 5
    assert "caught" in (tmp_path / "out").read_text()
    assert holder(cluster_of_one, "run/signal") == ""


def test_waiting_ends_with_its_time_or_a_signal(
    start: Start, cluster_of_one: str, tmp_path: Path
) -> None:
    first = start("lock", "run/wait", "sleep 60")
    until(lambda: holder(cluster_of_one, "run/wait"), "the lock is held")
    assert start("lock", "--acquire-timeout", "0.5", "run/wait", "true").wait(20) == 1
    waiting = start("lock", "-v", "run/wait", "true", out="waiting")
    until(lambda: "waiting for the lock" in (tmp_path / "waiting").read_text())
    waiting.terminate()
    assert waiting.wait(20) == 1
    first.terminate()
    assert first.wait(20) == 128 + signal.SIGTERM


def test_a_key_that_is_something_else_is_refused(
    start: Start, cluster_of_one: str, tmp_path: Path
) -> None:
    ask(cluster_of_one, "PUT", "/v1/kv/run/other/.lock", b"data")
    assert start("lock", "run/other", "true").wait(20) == 2
    assert "not used as a lock" in (tmp_path / "out").read_text()
    assert ask(cluster_of_one, "GET", "/v1/kv/run/other/.lock")[0]["Value"] == "ZGF0YQ=="


# -- exec


def test_keys_become_variables(start: Start, cluster_of_one: str, tmp_path: Path) -> None:
    ask(cluster_of_one, "PUT", "/v1/kv/run/env/db/host", b"localhost")
    ask(cluster_of_one, "PUT", "/v1/kv/run/env/db-port", b"5432")
    script = 'echo "$DB_HOST:$DB_PORT:$HOME" ; exit 4'
    assert start("exec", "run/env/", "--", "sh", "-c", script).wait(20) == 4
    assert f"localhost:5432:{os.environ['HOME']}" in (tmp_path / "out").read_text()
    assert (
        start("exec", "--pristine", "--as-is", "run/env/", "/usr/bin/env", out="env").wait(20) == 0
    )
    assert sorted((tmp_path / "env").read_text().split()) == ["db_host=localhost", "db_port=5432"]


# -- kv watch


def test_a_key_is_printed_now_and_at_each_change(
    start: Start, cluster_of_one: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ask(cluster_of_one, "PUT", "/v1/kv/run/watched", b"one")
    process = start("kv", "watch", "run/watched")
    try:
        until(lambda: out.read_text() == "one\n")
        ask(cluster_of_one, "PUT", "/v1/kv/run/unrelated", b"x")
        ask(cluster_of_one, "PUT", "/v1/kv/run/watched", b"two")
        until(lambda: out.read_text() == "one\ntwo\n")
        ask(cluster_of_one, "DELETE", "/v1/kv/run/watched")
        until(lambda: out.read_text() == "one\ntwo\nthe key is gone\n")
    finally:
        process.kill()
        process.wait()


def test_a_command_gets_the_state(start: Start, cluster_of_one: str, tmp_path: Path) -> None:
    ask(cluster_of_one, "PUT", "/v1/kv/run/handled", b"one")
    assert start("kv", "watch", "--once", "run/handled", "--", "sh", "-c",
                 "cat; echo $KVNODE_INDEX").wait(20) == 0  # fmt: skip
    document, index = (tmp_path / "out").read_text().splitlines()
    assert json.loads(document)["value"] == "one"
    assert json.loads(document)["modify_index"] == int(index)

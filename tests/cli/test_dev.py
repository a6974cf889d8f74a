"""``kvnode dev``: a whole cluster on this machine, from its first start to its end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvnode.cli.supervisor import AlreadyRunning, Plan, agent_argv, holding, names_in, running
from kvnode.config import load
from tests.ports import free_ports

pytestmark = pytest.mark.timeout(240)
"""Starts, elections and stops of three processes, on a machine that may be busy."""

Result = subprocess.CompletedProcess[str]


def kvnode(*words: str, timeout: float = 90) -> Result:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KVNODE_", "CONSUL_"))}
    return subprocess.run(
        [sys.executable, "-m", "kvnode", *words],
        capture_output=True, text=True, timeout=timeout, check=False, env=environ,
    )  # fmt: skip


def eventually(good: Callable[[Result], bool], *words: str) -> None:
    """Ask for a while: one node knows a leader before another listens, and a leader may lose its office."""
    deadline = time.monotonic() + 20
    while not good(done := kvnode(*words)):
        assert time.monotonic() < deadline, done
        time.sleep(0.1)


def succeeded(done: Result) -> bool:
    return done.returncode == 0


def said_kept(done: Result) -> bool:
    return done.stdout == "kept"


def plan(data_dir: Path, nodes: int = 3) -> Plan:
    return Plan(nodes=nodes, data_dir=data_dir, http_port=8500, peer_port=8300)


def test_the_nodes_flags_are_settings_that_fit_together(tmp_path: Path) -> None:
    for ordinal in range(3):
        config = load(agent_argv(plan(tmp_path), ordinal), {}).config
        assert config.node_name == f"kvnode-{ordinal}"
        assert (config.http_port, config.peer_port) == (8500 + ordinal, 8300 + ordinal)
        assert (config.bootstrap_expect, len(config.retry_join)) == (3, 3)
        assert (config.bind, config.client) == ("127.0.0.1", "127.0.0.1"), "nobody else gets in"


def test_a_directory_remembers_its_nodes(tmp_path: Path) -> None:
    for name in ("kvnode-10", "kvnode-2", "kvnode-0", "kvnode-x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "kvnode-1").write_text("a file")
    assert names_in(tmp_path) == ["kvnode-0", "kvnode-2", "kvnode-10"]
    assert names_in(tmp_path / "missing") == []


def test_one_supervisor_per_directory(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    with holding(plan(tmp_path)):
        state = running(tmp_path)
        assert state is not None
        assert state.pid == os.getpid()
        assert state.urls[2] == "http://127.0.0.1:8502"
        with pytest.raises(AlreadyRunning), holding(plan(tmp_path)):
            pass
    assert running(tmp_path) is None


def test_what_a_killed_supervisor_left_behind_names_no_process(tmp_path: Path) -> None:
    """Its process id may be somebody else's by now: stop must not touch it."""
    (tmp_path / "dev.json").write_text(json.dumps({"pid": os.getpid(), "names": [], "urls": []}))
    (tmp_path / "dev.lock").touch()
    assert running(tmp_path) is None
    with (tmp_path / "dev.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert running(tmp_path) is not None, "the lock is what tells"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Flags of one ``dev`` cluster; stopped at the end."""
    where = (f"--data-dir={tmp_path / 'data'}",)
    base = free_ports(6)[0]
    yield (*where, f"--http-port={base}", f"--peer-port={base + 3}")
    kvnode("dev", "stop", *where)


@pytest.mark.chaos
def test_a_cluster_is_stopped_and_found_again(cluster: tuple[str, ...], tmp_path: Path) -> None:
    data_dir, http = cluster[0], cluster[1].partition("=")[2]
    address = ("--http-addr", f"127.0.0.1:{http}")
    third = ("--http-addr", f"127.0.0.1:{int(http) + 2}")

    first = kvnode("dev", "--detach", *cluster)
    assert first.returncode == 0, first.stderr
    assert f"curl http://127.0.0.1:{int(http) + 2}/kv/greeting" in first.stderr
    eventually(succeeded, "kv", "put", "k", "kept", *address)
    eventually(said_kept, "kv", "get", "k", *third)
    again = kvnode("dev", "--detach", *cluster)
    assert again.returncode == 0
    assert "already running" in again.stderr

    def one_leads(done: Result) -> bool:
        return sorted(row["role"] for row in json.loads(done.stdout)) == [
            "leader",
            "voter",
            "voter",
        ]

    eventually(one_leads, "dev", "status", data_dir, "-o", "json")

    assert kvnode("dev", "stop", data_dir).returncode == 0
    assert kvnode("dev", "status", data_dir).returncode == 1
    assert kvnode("kv", "get", "k", *address).returncode == 1
    assert kvnode("dev", "--detach", *cluster).returncode == 0
    eventually(said_kept, "kv", "get", "k", *third)


@pytest.mark.chaos
def test_a_node_that_dies_is_reported_and_the_others_go_on(
    cluster: tuple[str, ...], tmp_path: Path
) -> None:
    """Not started again: whoever plays with failures wants to see them."""
    assert kvnode("dev", "--detach", *cluster).returncode == 0
    http = cluster[1].partition("=")[2]
    log = tmp_path / "data" / "dev.log"
    victim = node_pid(tmp_path / "data" / "kvnode-2")
    os.kill(victim, signal.SIGKILL)
    clock = threading.Event()
    for _ in range(1000):
        if "kvnode-2 ended by itself: signal SIGKILL" in log.read_text():
            break
        clock.wait(0.02)
    else:
        raise AssertionError(log.read_text())
    eventually(succeeded, "kv", "put", "k", "v", "--http-addr", f"127.0.0.1:{http}")


def node_pid(data_dir: Path) -> int:
    """Find the process by its flags: one of those that this test started."""
    flag = f"--data-dir={data_dir}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if flag in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no process with {flag!r}")


@pytest.mark.chaos
def test_nodes_do_not_outlive_a_killed_supervisor(cluster: tuple[str, ...], tmp_path: Path) -> None:
    """The kernel tells them (Linux), so that no port stays taken by something forgotten."""
    assert kvnode("dev", "--detach", *cluster).returncode == 0
    state = running(tmp_path / "data")
    assert state is not None
    node = node_pid(tmp_path / "data" / "kvnode-0")
    os.kill(state.pid, signal.SIGKILL)
    clock = threading.Event()
    for _ in range(1500):
        if not Path(f"/proc/{node}").exists():
            return
        clock.wait(0.02)
    raise AssertionError("the node lives on")


@pytest.mark.chaos
def test_a_cluster_that_cannot_start_says_where_to_look(
    cluster: tuple[str, ...], tmp_path: Path
) -> None:
    port = int(cluster[1].partition("=")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = kvnode("dev", "--detach", "--nodes=1", *cluster)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr

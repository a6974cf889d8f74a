"""One node as a process: how it starts, what it refuses, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvnode import agent_signals
from tests.tls.conftest import Files

pytestmark = pytest.mark.chaos

Start = Callable[..., Any]
PORTS = ("--http-port=0", "--peer-port=0", "--bind=127.0.0.1")


def put(url: str, key: str, value: bytes) -> None:
    request = urllib.request.Request(f"{url}/v1/kv/{key}", data=value, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.read() == b"true"


def get(url: str, key: str) -> bytes:
    with urllib.request.urlopen(f"{url}/kv/{key}", timeout=10) as answer:
        data: bytes = answer.read()
        return data


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_data_are_there_again_however_the_node_ended(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    """An acknowledged write is on the disk; an orderly stop exits with 0."""
    flags = (f"--data-dir={tmp_path / 'd'}", "--bootstrap", "--node-name=n1", *PORTS)
    node = start(*flags)
    put(node.ready(), "k", b"kept")
    assert node.end(number) == (-9 if number is signal.SIGKILL else 0)
    again = start(*flags)
    assert get(again.ready(), "k") == b"kept"
    assert again.event("node_started")["boot"] == 2


LEADERLESS = ("--data-dir=d", "--node-name=n1", "--bootstrap-expect=3", "--retry-join=127.0.0.1:1")
"""A node that waits for two others for ever: a write is held for ``--leader-wait-s``."""


def hold_a_write(node: Any) -> socket.socket:
    """Send a write that cannot be answered yet; return its connection."""
    address = node.url.removeprefix("http://")
    host, _, port = address.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(b"PUT /v1/kv/k HTTP/1.1\r\nHost: n\r\nContent-Length: 4\r\n\r\nhalf")
    node.busy(address)
    return connection


def test_a_second_signal_ends_the_node_at_once(start: Start) -> None:
    """The first one waits for requests in progress; who asks twice does not want to wait."""
    node = start(*LEADERLESS, *PORTS, "--leader-wait-s=60")
    with hold_a_write(node):
        node.process.send_signal(signal.SIGTERM)
        node.event("node_stopping")
        assert node.end(signal.SIGTERM) == 1
    assert node.event("stopped_at_once")["signal"] == "SIGTERM"


def test_a_signal_that_comes_before_the_node_can_take_it_waits(start: Start) -> None:
    """Held before exec, as by a node that starts over: it stops in good order instead of half-way."""
    with agent_signals.held():
        node = start("-dev", *PORTS)
        node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(20) == 0
    node.event("node_started")
    node.event("node_stopped")


def test_a_request_in_progress_is_answered_before_the_end(start: Start) -> None:
    """It was taken, so it gets an answer and not a broken connection: nothing was stored."""
    node = start(*LEADERLESS, *PORTS, "--leader-wait-s=60")
    with hold_a_write(node) as connection:
        node.process.send_signal(signal.SIGTERM)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"No cluster leader" in answer
    assert node.process.wait(20) == 0


def test_the_metrics_show_disk_and_peers(start: Start) -> None:
    node = start("-dev", *PORTS)
    url = node.ready()
    put(url, "k", b"v")
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["kvnode_log_syncs_total"]) >= 1
    assert float(values["kvnode_volume_free_bytes"]) > 0
    assert values["kvnode_peers_refused_total"] == "0.0"


def test_assertions_may_not_be_removed(start: Start, tmp_path: Path) -> None:
    """RC-75: they are the last line of defence of the data."""
    node = start("-dev", *PORTS, python=("-O",))
    assert node.process.wait(20) == 2
    assert "python -O" in node.log.read_text()


@pytest.mark.parametrize("flag", ["--http-port", "--peer-port"])
def test_a_taken_port_is_exit_code_1_and_named(flag: str, start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = start("-dev", *PORTS, f"{flag}={port}")
        assert node.process.wait(20) == 1
        error = node.event("node_cannot_start")["error"]
    assert error == f"{flag}: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_one_process_per_directory(start: Start, tmp_path: Path) -> None:
    """RC-52; and the first one is not disturbed."""
    flags = (f"--data-dir={tmp_path / 'd'}", "--bootstrap", "--node-name=n1", *PORTS)
    first = start(*flags)
    url = first.ready()
    second = start(*flags)
    assert second.process.wait(20) == 1
    assert "advice" in second.event("node_cannot_start")
    put(url, "k", b"v")


def test_another_nodes_directory_is_refused(start: Start, tmp_path: Path) -> None:
    flags = (f"--data-dir={tmp_path / 'd'}", "--bootstrap", *PORTS)
    first = start(*flags, "--node-name=n1")
    first.ready()
    assert first.end() == 0
    second = start(*flags, "--node-name=n2")
    assert second.process.wait(20) == 1


def test_what_is_no_address_is_exit_code_2(start: Start) -> None:
    node = start("-dev", *PORTS, "--retry-join=a b")
    assert node.process.wait(20) == 2
    assert "retry-join" in node.event("settings_refused")["error"]


def test_sighup_reads_the_log_level_again(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"log_level": "warn"}')
    node = start("-dev", *PORTS, f"--config-file={file}", f"--pid-file={tmp_path / 'pid'}")
    # Silent until then: only warnings are logged. The pid file says that signals are taken.
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text().strip() == str(node.process.pid))
    wait_for_signal_handler(node.process.pid)
    assert node.lines() == []
    file.write_text('{"log_level": "info"}')
    node.process.send_signal(signal.SIGHUP)
    assert node.event("settings_reloaded")["log_level"] == "info"
    file.write_text('{"log_level": "loud"}')
    node.process.send_signal(signal.SIGHUP)
    assert "loud" in node.event("reload_refused")["error"]
    assert node.end() == 0
    assert not (tmp_path / "pid").exists()


def wait_until(condition: Callable[[], bool]) -> None:
    clock = threading.Event()
    for _ in range(1000):
        if condition():
            return
        clock.wait(0.02)
    raise AssertionError("it did not happen in time")


def wait_for_signal_handler(pid: int) -> None:
    """Wait until SIGHUP is caught; before that it would end the process."""

    def is_caught() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) & 1 << (signal.SIGHUP - 1))

    wait_until(is_caught)


def test_a_consul_suites_configuration_starts_a_node(start: Start, tmp_path: Path) -> None:
    """Spec §15: a JSON file with Consul's members, among them many that mean nothing here."""
    document = {
        "node_name": "suite", "node_id": "adf4238a-882b-9ddc-4a9d-5b6758e4159e",
        "data_dir": str(tmp_path / "d"), "server": True, "bootstrap": True,
        "bind_addr": "127.0.0.1", "addresses": {"http": "127.0.0.1"},
        "ports": {"http": 0, "https": -1, "dns": -1, "grpc": -1, "serf_lan": 1, "server": 0},
        "performance": {"raft_multiplier": 1}, "acl": {"enabled": True}, "unheard_of": {"x": 1},
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    node = start("-config-file", str(file))
    url = node.ready()
    assert node.event("node_started")["node"] == "suite"
    assert get_json(f"{url}/v1/agent/self")["Config"]["NodeName"] == "suite"
    ignored = [line["detail"] for line in node.lines() if line["event"] == "member_ignored"]
    assert [line.split()[0] for line in ignored] == ["acl.enabled", "unheard_of.x"]


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def test_a_consul_manifests_flags_start_a_node(start: Start, tmp_path: Path) -> None:
    """Kubernetes guide §7.1, with one node: folders where files are expected, and files missing."""
    (tmp_path / "log").mkdir()
    (tmp_path / "config").mkdir()
    node = start(
        "-server", "-bootstrap-expect=1", "-ui", f"-config-file={tmp_path / 'config'}",
        f"-data-dir={tmp_path / 'data'}", f"-log-file={tmp_path / 'log'}", "-bind=0.0.0.0",
        "-client=0.0.0.0", "-advertise=127.0.0.1", "-retry-join=localhost:1", "-domain=cluster.local",
        "-disable-host-node-id", "-http-port=0", "-server-port=0",
    )  # fmt: skip
    node.event("node_started")
    assert node.event("config_folder_read")
    copy = tmp_path / "log" / "kvnode.log"
    wait_until(lambda: "node_started" in copy.read_text())  # stderr has each line first


def test_a_certificate_that_no_peer_would_accept_is_exit_code_2(
    start: Start, tmp_path: Path
) -> None:
    """Nothing was opened, so nothing is left behind."""
    files = Files(tmp_path / "tls")
    files.issue(server=False)
    data = tmp_path / "never"
    node = start(
        f"--data-dir={data}", f"--tls-cert-file={files.cert}", f"--tls-key-file={files.key}",
        f"--tls-ca-file={files.ca}",
    )  # fmt: skip
    assert node.process.wait(20) == 2
    assert "for servers and for clients" in node.event("settings_refused")["error"]
    assert not data.exists()

"""Probes are answered while a node opens its data."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kvnode import agent_waiting_room
from kvnode.agent_waiting_room import WaitingRoom
from tests.chaos.machines import lacks_strace, tool
from tests.chaos.processes import Node
from tests.k8s.api_server import certificates
from tests.ports import free_ports


def ask(url: str, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_each_probe_gets_its_answer_and_the_port_is_free_afterwards() -> None:
    (port,) = free_ports(1)
    room = WaitingRoom("n0", "127.0.0.1", port, None)
    room.open()
    try:
        room.note("loading a snapshot, 35 MiB so far")
        url = f"http://127.0.0.1:{port}"
        assert ask(f"{url}/health/live")[0] == 200
        for path, word in (("startup", "started"), ("ready", "ready")):
            status, body = ask(f"{url}/health/{path}")
            assert status == 503
            assert body.startswith(f"not {word}: started\nFAIL started: loading a snapshot, 35 MiB")
        # What keeps Consul's clients from dropping their locks, and what tells ours that it may ask again.
        assert ask(f"{url}/v1/kv/a") == (500, "No cluster leader")
        status, body = ask(f"{url}/kv/a")
        assert status == 503
        assert "nothing was stored" in body
    finally:
        room.close()
    with socket.create_server(("127.0.0.1", port)):
        room.close()


def test_who_sends_a_value_gets_the_whole_answer() -> None:
    """Not a broken connection, after which nobody knows whether it was stored."""
    (port,) = free_ports(1)
    room = WaitingRoom("n0", "127.0.0.1", port, None)
    room.open()
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/kv/a", data=b"v" * 400_000, method="PUT"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        with refused.value as answer:
            assert answer.read() == b"No cluster leader"
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["X-Kvnode-Node"] == "n0"
    finally:
        room.close()


def test_who_says_nothing_sensible_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_waiting_room, "_TIMEOUT_S", 0.1)
    (port,) = free_ports(1)
    room = WaitingRoom("n0", "127.0.0.1", port, None)
    room.open()
    try:
        silent = socket.create_connection(("127.0.0.1", port))
        for rubbish in (b"x", b"\r\n\r\n", b"\x00" * 50_000, b"GET\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(rubbish)
        assert ask(f"http://127.0.0.1:{port}/health/live")[0] == 200
        silent.close()
    finally:
        room.close()


def test_a_port_that_is_taken_or_not_wanted_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 0, -1):
            room = WaitingRoom("n0", "127.0.0.1", port, None)
            room.open()
            room.close()


@pytest.mark.skipif(tool("openssl") is None, reason="openssl is not installed")
def test_where_the_node_speaks_https_the_room_does_too(tmp_path: Path) -> None:
    ca, crt, key = certificates(tmp_path, ["127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(crt, key)
    (port,) = free_ports(1)
    room = WaitingRoom("n0", "127.0.0.1", port, lambda: server)
    room.open()
    try:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client = ssl.create_default_context(cafile=str(ca))
        assert ask(f"https://127.0.0.1:{port}/health/live", client)[0] == 200
    finally:
        room.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks_strace()), reason=lacks_strace() or "strace")
def test_a_node_whose_start_takes_long_says_what_it_does(tmp_path: Path) -> None:
    """Each sync takes a third of a second; the probes are answered from the first one on."""
    http, peer = free_ports(2)
    node = Node("kvnode-0", tmp_path, http, peer, ["--bootstrap"])
    node.wrapper = [
        str(tool("strace")), "-D", "-f", "-o", "/dev/null", "-e", "trace=fsync",
        "-e", "inject=fsync:delay_exit=300000",
    ]  # fmt: skip
    node.start()
    seen: list[tuple[int, str]] = []
    deadline = time.monotonic() + 40
    try:
        while not seen or seen[-1][0] != 200:
            assert time.monotonic() < deadline, seen
            try:
                seen.append(ask(f"{node.url}/health/startup"))
            except OSError:
                time.sleep(0.02)
        waiting = [body for status, body in seen if status == 503]
        assert any("FAIL started: opening" in body for body in waiting), waiting[:3]
    finally:
        node.kill()

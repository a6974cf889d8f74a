"""Where other people's programs are, and three nodes for them to talk to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.chaos.processes import Node
from tests.ports import free_ports

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cache" / "tools"


def find_consul() -> str:
    """Return the ``consul`` executable; skip the test where there is none."""
    found = os.environ.get("CONSUL_BIN") or shutil.which("consul")
    cached = ROOT / ".cache" / "consul" / "root" / "usr" / "bin" / "consul"
    if found is None and cached.exists():
        found = str(cached)
    if found is None:
        pytest.skip("there is no consul here: set CONSUL_BIN, or run benchmarks/get_consul.sh")
    return found


class Trio:
    """Three nodes, asked synchronously."""

    def __init__(self, directory: Path, count: int = 3, flags: tuple[str, ...] = ()) -> None:
        ports = free_ports(2 * count)
        joins = [f"--retry-join=127.0.0.1:{port}" for port in ports[count:]]
        self.nodes = [
            Node(
                f"kvnode-{number}",
                directory / f"kvnode-{number}",
                ports[number],
                ports[count + number],
                ["--bootstrap-expect", str(count), *joins, *flags],
            )
            for number in range(count)
        ]

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.wait()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Wait until every running node is ready."""
        for node in self.nodes:
            if node.is_running:
                wait_for(lambda node=node: self._is_ready(node), f"{node.name} is ready", timeout_s)  # type: ignore[misc]

    def _is_ready(self, node: Node) -> bool:
        try:
            return self.ask(node, "GET", "/health/ready")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        for node in self.nodes:
            if node.is_running:
                node.kill()

    def ask(
        self, node: Node, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """One request: status and body."""
        request = urllib.request.Request(node.url + path, data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def json(self, node: Node, path: str) -> Any:
        status, body = self.ask(node, "GET", path)
        assert status == 200, body
        return json.loads(body)

    @property
    def leader(self) -> Node:
        """Who leads now."""
        running = next(node for node in self.nodes if node.is_running)

        def found() -> Node | None:
            servers = self.json(running, "/v1/operator/raft/configuration")["Servers"]
            names = [server["Node"] for server in servers if server["Leader"]]
            return next((node for node in self.nodes if node.name in names), None)

        leader = wait_for(found, "there is a leader")
        assert leader is not None
        return leader

    @property
    def followers(self) -> list[Node]:
        leader = self.leader
        return [node for node in self.nodes if node is not leader and node.is_running]


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Poll until there is something; return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


class Program:
    """A command-line client that is pointed at one node."""

    def __init__(self, executable: list[str], node: Node, directory: Path) -> None:
        self._executable = executable
        self._directory = directory
        self._environment = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("CONSUL_", "KVNODE_"))
        } | {"CONSUL_HTTP_ADDR": node.url, "KVNODE_HTTP_ADDR": node.url}  # fmt: skip
        self.node = node

    def __call__(
        self, *words: str, stdin: bytes = b"", code: int | None = 0, timeout_s: float = 60.0
    ) -> str:
        """Run to the end; return what it printed. ``code`` None: any exit code will do."""
        done = subprocess.run(
            [*self._executable, *words], input=stdin, capture_output=True, timeout=timeout_s,
            env=self._environment, cwd=self._directory, check=False,
        )  # fmt: skip
        text = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{text}"
        return text

    def start(self, *words: str, output: Path) -> subprocess.Popen[bytes]:
        """Run in the background; ``output`` gets everything that it prints."""
        with output.open("wb") as file:
            return subprocess.Popen(
                [*self._executable, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=self._environment, cwd=self._directory,
            )  # fmt: skip

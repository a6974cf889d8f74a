"""npm's ``consul``, unmodified, against three nodes; the calls are in ``node_consul.cjs``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.programs import TOOLS, Trio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MODULES = TOOLS / "node_consul-2.0.1"
SCRIPT = Path(__file__).with_name("node_consul.cjs")
CALLS = SCRIPT.read_text().count("\ntest(")


@pytest.mark.parametrize("place", ["leader", "follower"])
def test_its_calls_do_what_they_say(trio: Trio, place: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node.js here (package nodejs)")
    if not MODULES.is_dir():
        pytest.skip("npm's consul is not here: run scripts/fetch_clients.py")
    asked = trio.leader if place == "leader" else trio.followers[0]
    trio.ask(asked, "DELETE", "/v1/kv/npm/?recurse")
    done = subprocess.run(
        [node, str(SCRIPT), asked.host, str(asked.http_port)],
        env={**os.environ, "NODE_PATH": str(MODULES)}, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok   ") == CALLS >= 13

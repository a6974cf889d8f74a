"""py-consul's own tests, unmodified, against a node for each of them (see ``py_consul_plugin``).

They come from its source package, which ``scripts/fetch_clients.py`` unpacks. What is left out is left out by
name, each with its reason; ``docs/consul-clients.md`` repeats them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.programs import ROOT, TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SOURCE = (TOOLS / "py_consul-1.8.0").resolve()

MESH = "service mesh and configuration entries: there is no mesh here"
GOSSIP = "network coordinates come from gossip: there is none here"
RULES = "access rules: every token is accepted and ignored"
SCRIPTS = "checks that run a script: a node runs nothing for others"

LEFT_OUT = {
    "tests/api/test_acl.py": RULES,
    "tests/api/test_acl_templated_policy.py": RULES,
    "tests/api/test_config.py": MESH,
    "tests/api/test_connect.py": MESH,
    "tests/api/test_discovery_chain.py": MESH,
    "tests/api/test_query.py": "prepared queries",
    "tests/api/test_coordinates.py": GOSSIP,
    "tests/test_base.py": "asks no server",
    "tests/test_callback.py": "asks no server",
    "tests/test_utils.py": "asks no server",
}
"""Whole files."""
NOT_HERE = {
    "test_agent_token_set": RULES,
    "test_agent_service_connect": MESH,
    "test_agent_service_register_kind_proxy_locality": MESH,
    "test_catalog_gateway_services": MESH,
    "test_health_ingress": MESH,
    "test_health_connect": MESH,
    "test_health_service_peer": MESH,
    "test_agent_checks": SCRIPTS,
    "test_service_multi_check": "looks at an HTTP server at port 8500 of its container",
    "test_agent_register_check_no_service_id": "wants 404 as of Consul 1.11; it is 500, as in 1.8.7",
}
"""Single tests."""
PASSED_MIN = 60
"""Fewer would mean that they were not found."""


ON_THREE = (
    "tests/api/test_kv.py", "tests/api/test_session.py", "tests/api/test_txn.py",
    "tests/api/test_status.py", "tests/api/test_event.py", "tests/test_aio.py",
)  # fmt: skip
"""What does not ask for a server that is alone."""
THREE_PASSED_MIN = 28


def test_its_own_tests_pass(tmp_path: Path) -> None:
    """On one node, as they are meant to be run."""
    ignored = [f"--ignore={file}" for file in LEFT_OUT]
    check(tmp_path, ["-n", "2", "tests", *ignored], PASSED_MIN, nodes=1)


def test_they_pass_on_three_nodes(tmp_path: Path) -> None:
    """They talk to a follower."""
    check(tmp_path, [*ON_THREE], THREE_PASSED_MIN, nodes=3)


def check(directory: Path, chosen: list[str], at_least: int, *, nodes: int) -> None:
    if importlib.util.find_spec("consul") is None:
        pytest.skip("needs the package py-consul")
    if not SOURCE.is_dir():
        pytest.skip("py-consul's tests are not here: run scripts/fetch_clients.py")
    command = [
        sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(SOURCE),
        "--confcutdir", str(SOURCE / "tests"), "-p", "py_consul_plugin", "-p", "no:cacheprovider",
        "-o", "asyncio_mode=auto", "--timeout", "60", "-rf", "--tb=short",
    ]  # fmt: skip
    left_out = ["-k", " and ".join(f"not {name}" for name in NOT_HERE)]
    said = run([*command, "--basetemp", str(directory / "first"), *chosen, *left_out], nodes)
    # Some give the server 20 ms for two requests: on a busy machine they deserve a second try.
    again = re.findall(r"^FAILED (\S+)", said, re.MULTILINE)
    if again:
        second = run([*command, "--basetemp", str(directory / "second"), *again], nodes)
        assert " passed" in second, said[-9000:] + second[-9000:]
        assert not re.search(r"\d+ (failed|error)", second), second[-9000:]
    found = re.search(r"(\d+) passed", said)
    assert found is not None, said[-9000:]
    assert int(found[1]) + len(again) >= at_least, said[-9000:]
    assert not re.search(r"\d+ error", said), said[-9000:]
    print(f"{found[1]} passed on {nodes} nodes, {len(again)} at the second try")


def run(command: list[str], nodes: int) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "clients")])
    environment = {**os.environ, "PYTHONPATH": path, "KVNODE_TEST_NODES": str(nodes)}
    done = subprocess.run(
        command, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return done.stdout + done.stderr

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
SCRIPTS = "checks that a node runs itself (HTTP, TCP, script): only TTL checks are kept here"
FILTERS = "?filter expressions of catalog and health"

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
}
"""Single tests."""


def test_its_own_tests_pass(tmp_path: Path) -> None:
    if importlib.util.find_spec("consul") is None:
        pytest.skip("needs the package py-consul")
    if not SOURCE.is_dir():
        pytest.skip("py-consul's tests are not here: run scripts/fetch_clients.py")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "clients")])
    command = [
        sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(SOURCE),
        "--confcutdir", str(SOURCE / "tests"), "-p", "py_consul_plugin", "-p", "no:cacheprovider",
        "-o", "asyncio_mode=auto", "--timeout", "60", "--basetemp", str(tmp_path / "nodes"),
        "-n", "2", "-rs", "tests",
        *(f"--ignore={file}" for file in LEFT_OUT),
        "-k", " and ".join(f"not {name}" for name in NOT_HERE),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=SOURCE, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=380, check=False,
    )  # fmt: skip
    found = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
    assert found is not None
    print(done.stdout.splitlines()[-1])
    assert int(found[1]) >= PASSED_MIN


PASSED_MIN = 80
"""Fewer would mean that they were not found."""

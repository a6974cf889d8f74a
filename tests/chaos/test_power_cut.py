"""Power cuts: what was not synced is gone, on one node or on all at once (RC-1, RC-6, RC-9)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.chaos.lab import LabNode, lab_cluster
from tests.chaos.machines import lacks_machines, lacks_volumes
from tests.chaos.processes import Writers, check_kept
from tests.chaos.verdict import check_logs, digests_equal, healthy

WHY = lacks_machines() or lacks_volumes()
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(WHY), reason=WHY or "-"),
]
ROUNDS = 4


def cut_power(nodes: list[LabNode]) -> None:
    """Volumes first: nothing that happens in a process afterwards reaches a disk."""
    for node in nodes:
        assert node.volume is not None
        node.volume.cut_power()
    for node in nodes:
        node.kill()
    for node in nodes:
        assert node.volume is not None
        node.volume.unmount()
        node.volume.mount()


async def test_a_power_cut_of_all_nodes_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The engine's writes are not synced, the log's are: the log brings everything back."""
    rng = random.Random(9)
    total = 0
    # Frequent snapshots and compactions, so that some cut falls into one.
    async with lab_cluster(tmp_path, volume_mib=64, flags=["--log-entries-max=100"]) as made:
        for turn in range(ROUNDS):
            await healthy(made)
            async with Writers(made, 6, f"turn{turn}") as writers:
                await writers.first_after(0.0, 20.0)
                await asyncio.sleep(rng.uniform(0.2, 2.0))
                await asyncio.to_thread(cut_power, made.lab_nodes)
            for node in made.lab_nodes:
                node.start()
            await healthy(made)
            for node in made.lab_nodes:
                check_kept(writers, await made.dump(node, f"turn{turn}/"))
            total += len(writers.acknowledged)
        await digests_equal(made)
        check_logs(made)
    print(json.dumps({"rounds": ROUNDS, "acknowledged": total, "lost": 0}))


async def test_a_power_cut_of_the_leader_is_no_more_than_its_end(tmp_path: Path) -> None:
    async with lab_cluster(tmp_path, volume_mib=64) as made:
        await healthy(made)
        leader = await made.lab_leader()
        async with Writers(made, 4, "w") as writers:
            await writers.first_after(0.0, 20.0)
            await asyncio.to_thread(cut_power, [leader])
            await made.lab_leader()
            leader.start()
            await healthy(made)
        for node in made.lab_nodes:
            check_kept(writers, await made.dump(node, "w/"))
        await digests_equal(made)
        check_logs(made)

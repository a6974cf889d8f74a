"""Volumes without space: writes are refused with a reason, the rest goes on, it ends by itself (RC-70)."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.lab import LabCluster, LabNode, lab_cluster
from tests.chaos.machines import lacks_machines, lacks_volumes
from tests.chaos.processes import Writers, check_kept, in_one_of_three
from tests.chaos.verdict import check_logs, digests_equal, healthy

WHY = lacks_machines() or lacks_volumes()
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(WHY), reason=WHY or "-"),
]
MIB = 64
WRITES_AGAIN_S = 5.0
REASON = "the volume is nearly full"


async def write(made: LabCluster, node: LabNode, key: str, size: int = 100) -> tuple[int, str]:
    """Status and text of a write by the plain route."""
    async with made.session.put(f"{node.url}/kv/{key}", data=b"x" * size) as answer:
        return answer.status, await answer.text()


async def until_written(made: LabCluster, node: LabNode, key: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        status, text = await write(made, node, key)
        if status == 200:
            return
        assert time.monotonic() < deadline, (status, text)
        await asyncio.sleep(0.1)


def pids(made: LabCluster) -> list[int]:
    return [node.process.pid for node in made.lab_nodes if node.process is not None]


async def test_nearly_full_volumes_refuse_writes_and_serve_all_else(tmp_path: Path) -> None:
    """A clear reason, 503, certainly not stored; reads and deletes go on; recovery unaided."""
    async with lab_cluster(tmp_path, volume_mib=MIB) as made:
        await healthy(made)
        await in_one_of_three(partial(fill_and_relieve, made))
        await digests_equal(made)
        check_logs(made)


async def fill_and_relieve(made: LabCluster) -> list[str]:
    """Fill all volumes nearly, give the space back, and say what went on less well than it should."""
    trouble = []
    before, term = pids(made), await made.highest_term()
    leader = await made.lab_leader()
    starts = {node.name: node.log_end for node in made.lab_nodes}
    for number in range(20):
        await until_written(made, leader, f"k{number}", WRITES_AGAIN_S)
    for node in made.lab_nodes:
        assert node.volume is not None
        await asyncio.to_thread(node.volume.fill, MIB << 16)  # a sixteenth

    async def noticed() -> bool:
        return all(n.events("volume_nearly_full", since=starts[n.name]) for n in made.lab_nodes)

    await made.until(noticed, "all see that their volumes are nearly full")
    for number, node in enumerate(made.lab_nodes):
        status, text = await write(made, node, "refused")
        assert (status, REASON in text) == (503, True), (status, text)
        assert "nothing was stored" in text
        assert await made.get(node, "k3") == "x" * 100
        assert await made.get(node, "refused") is None
        async with made.session.delete(f"{node.url}/kv/k{number}") as answer:
            if answer.status != 200:
                trouble.append(f"{node.name} does not delete: {await answer.text()}")
        if await made.get(node, f"k{number}") is not None:
            trouble.append(f"{node.name} still has k{number}")
        if not await made.is_ready(node):
            trouble.append(f"{node.name} is not ready")
    for node in made.lab_nodes:
        assert node.volume is not None
        node.volume.relieve()
    for node in made.lab_nodes:
        await until_written(made, node, f"again/{node.name}", WRITES_AGAIN_S)
    assert pids(made) == before, "nobody restarted"
    if (after := await made.highest_term()) != term:
        trouble.append(f"a full disk is no reason for an election: term {after} and not {term}")
    return trouble


async def test_a_volume_filled_by_the_clients_themselves_never_breaks_a_node(
    tmp_path: Path,
) -> None:
    """The refusal comes before the disk is full, however fast the writes; deletes make room again."""
    async with lab_cluster(tmp_path, volume_mib=MIB) as made:
        await healthy(made)
        before = pids(made)
        leader = await made.lab_leader()
        rng = random.Random(3)
        stored: set[str] = set()
        refused = asyncio.Event()

        async def writer(name: str) -> None:
            number = 0
            while not refused.is_set() and number < 400:
                key = f"fill/{name}/{number}"
                number += 1
                body = rng.randbytes(100_000)  # does not compress
                async with made.session.put(f"{leader.url}/kv/{key}", data=body) as answer:
                    text = await answer.text()
                    if answer.status == 200:
                        stored.add(key)
                    else:
                        assert REASON in text, (answer.status, text)
                        refused.set()

        await asyncio.gather(*(writer(f"w{n}") for n in range(4)))
        assert refused.is_set(), f"{len(stored)} writes of 100 kB fit into {MIB} MiB"
        assert pids(made) == before
        assert all(node.is_running for node in made.lab_nodes)
        for node in made.lab_nodes:
            async with made.session.get(f"{node.url}/kv/fill/?keys") as answer:
                assert set(await answer.json()) == stored
        async with made.session.delete(f"{leader.url}/v1/kv/fill/?recurse") as answer:
            assert answer.status == 200, await answer.text()
        await until_written(made, leader, "after", 60.0)
        assert pids(made) == before, "nobody restarted"
        await digests_equal(made)
        check_logs(made)


async def test_a_follower_with_no_space_at_all_costs_nothing_but_itself(tmp_path: Path) -> None:
    """It may end, with a clear line, and comes back once there is room; nothing acknowledged is lost."""
    async with lab_cluster(tmp_path, volume_mib=MIB) as made:
        await healthy(made)
        leader = await made.lab_leader()
        victim = made.followers(leader)[0]
        assert victim.volume is not None
        async with Writers(made, 3, "w") as writers:
            await writers.first_after(0.0, 10.0)
            await asyncio.to_thread(victim.volume.fill, 0)
            await asyncio.sleep(3.0)
            for number in range(300):
                if not victim.is_running:
                    break
                await write(made, leader, f"big/{number % 10}", 100_000)
            await writers.first_after(time.monotonic(), 10.0)
        if not victim.is_running:
            assert victim.process is not None
            assert victim.process.returncode == 1
            last = victim.events("node_must_stop")[-1]
            assert last["reason"] == "DiskFull", last
            assert "make room" in last["advice"]
        victim.volume.relieve()
        if not victim.is_running:
            victim.start()
        await healthy(made)
        for node in made.lab_nodes:
            check_kept(writers, await made.dump(node, "w/"))
        await digests_equal(made)
        check_logs(made)

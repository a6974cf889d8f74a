"""Syncs that fail, and processes that end in the middle of one (RC-1, RC-8, RC-9)."""

from __future__ import annotations

import asyncio
import random
import re
import time
from pathlib import Path

import pytest

from tests.chaos.lab import LabCluster, LabNode, lab_cluster
from tests.chaos.machines import lacks_machines, lacks_strace
from tests.chaos.processes import Writers, check_kept
from tests.chaos.verdict import check_logs, digests_equal, healthy

WHY = lacks_machines() or lacks_strace()
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(WHY), reason=WHY or "-"),
]
KILL_AT = "inject=fdatasync,fsync:signal=KILL:when={}"
ROUNDS = 2


async def ended(node: LabNode, timeout_s: float = 20.0) -> int:
    """Wait until a process ends by itself; its exit code."""
    assert node.process is not None
    deadline = time.monotonic() + timeout_s
    while (code := node.process.poll()) is None:
        assert time.monotonic() < deadline, f"{node.name} goes on"
        await asyncio.sleep(0.02)
    return code


async def check_everything(made: LabCluster, writers: Writers, prefix: str) -> None:
    await healthy(made)
    for node in made.lab_nodes:
        check_kept(writers, await made.dump(node, prefix))
    await digests_equal(made)
    check_logs(made)


async def test_a_failed_sync_ends_the_process_and_is_never_tried_again(tmp_path: Path) -> None:
    """RC-8: exit code 1, one clear line, no second sync of the file; nothing acknowledged is lost."""
    async with lab_cluster(tmp_path) as made:
        for role in ("follower", "leader"):
            await healthy(made)
            leader = await made.lab_leader()
            victim = leader if role == "leader" else made.followers(leader)[0]
            async with Writers(made, 4, role) as writers:
                await writers.first_after(0.0, 10.0)
                inject = "inject=fdatasync:error=EIO:when=3"
                with victim.traced("-e", "trace=fdatasync,fsync", "-e", inject):
                    assert await ended(victim) == 1, made.tails()
                # The others go on without it.
                await writers.first_after(time.monotonic(), 10.0)
            last = victim.events("node_must_stop")[-1]
            assert last["reason"] == "DiskFailed"
            assert re.search(r"cannot sync \S+: Input/output error", last["error"]), last
            assert "check the volume" in last["advice"]
            assert victim.events()[-1]["event"] == "node_must_stop", "it said more after the end"
            trace = (victim.directory / "strace").read_text()
            # Each thread counts its own syncs, so the first error is the one that counts.
            path, after = re.split(r"\(\d+<([^>]*)>\)\s*= -1 EIO", trace, maxsplit=1)[1:]
            assert f"<{path}>) = 0" not in re.sub(r"\s+=", " =", after), "it was tried again"
            victim.start()
            await check_everything(made, writers, f"{role}/")


@pytest.mark.parametrize("number", [1, 6, 13, 20])
async def test_a_node_killed_at_a_sync_of_its_first_start_comes_up_at_the_second(
    tmp_path: Path, number: int
) -> None:
    """RC-9, RC-50: identity, journal, founding and first entries, each cut short at some sync."""
    async with lab_cluster(tmp_path, start=False) as made:
        victim, *others = made.lab_nodes  # the first by name, who founds the cluster
        victim.start("-e", "trace=fdatasync,fsync", "-e", KILL_AT.format(number))
        for node in others:
            node.start()
        async with Writers(made, 2, "w") as writers:
            assert await ended(victim, 40.0) == -9, made.tails()
        victim.start()
        await healthy(made)
        async with Writers(made, 2, "v") as more:
            await more.first_after(0.0, 20.0)
        for node in made.lab_nodes:
            check_kept(writers, await made.dump(node, "w/"))
            check_kept(more, await made.dump(node, "v/"))
        check_logs(made)


async def test_killing_everybody_at_some_sync_loses_nothing(tmp_path: Path) -> None:
    """RC-1: each node ends at a sync of its own, in the middle of writes."""
    rng = random.Random(5)
    async with lab_cluster(tmp_path, flags=["--log-entries-max=100"]) as made:
        for turn in range(ROUNDS):
            await healthy(made)
            for node in made.lab_nodes:
                node.kill()
            numbers = [rng.randrange(2, 60) for _ in made.lab_nodes]
            for node, number in zip(made.lab_nodes, numbers, strict=True):
                node.start("-e", "trace=fdatasync,fsync", "-e", KILL_AT.format(number))
            async with Writers(made, 4, f"turn{turn}") as writers:
                # Once a majority is gone, the last one may not sync any more.
                deadline = time.monotonic() + 25
                while sum(node.is_running for node in made.lab_nodes) > 1:
                    assert time.monotonic() < deadline, (numbers, made.tails())
                    await asyncio.sleep(0.02)
            for node in made.lab_nodes:
                node.kill()
                node.start()
            await check_everything(made, writers, f"turn{turn}/")

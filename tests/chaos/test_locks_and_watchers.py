"""Fifty clients with locks and forty watchers while the leader is killed again and again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.lockers import (
    Asker,
    Locker,
    Notes,
    Watcher,
    check_holds,
    pairs,
    write_under,
)
from tests.chaos.processes import Cluster, cluster
from tests.chaos.verdict import digests_equal

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("KVNODE_CHAOS_SECONDS", "180"))
LOCKERS = 50
PREFIXES = 20
LOG_ENTRIES = 300
"""Kept by the log: whoever is away for some seconds needs a snapshot."""


async def test_locks_and_watchers_keep_their_promises_through_kills(tmp_path: Path) -> None:
    """RC-61 to RC-65: never two holders by index, no session ended early, lock-delay kept; watchers never
    miss the final state, and no index falls, over kills, compaction and installed snapshots.
    """
    flags = ["--session-ttl-min-s", "1", "--log-entries-max", str(LOG_ENTRIES)]
    async with cluster(tmp_path, flags=flags) as made:
        await made.leader()
        await made.ready()
        stop = asyncio.Event()
        notes, counts = Notes(), Counter[str]()
        prefixes = [f"watched/{number:02}/" for number in range(PREFIXES)]
        watchers = [Watcher(made, n, prefix) for n, prefix in enumerate(prefixes * 2)]
        keys = [f"locks/{number}" for number in range(8)]
        lockers = [Locker(made, number, keys, notes, stop) for number in range(LOCKERS)]
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(watcher.run()) for watcher in watchers]
            for locker in lockers:
                group.create_task(locker.run())
            for number, prefix in enumerate(prefixes):
                group.create_task(write_under(made, number, prefix, stop, counts))
            kills = await kill_leaders(made, SECONDS)
            await made.ready()
            stop.set()
            await final_states_are_seen(made, watchers)
            for task in watching:
                task.cancel()
        check_holds(notes)
        fell = [watcher.fell for watcher in watchers if watcher.fell]
        assert not fell, fell
        installed = sum(len(node.events("snapshot_loaded")) for node in made.nodes)
        figures = {
            "seconds": SECONDS, "kills": kills, "sessions": notes.sessions, "holds": len(notes.holds),
            "refused": notes.refused, "writes": dict(counts), "snapshots_loaded": installed,
            "wakes": sum(watcher.wakes for watcher in watchers),
        }  # fmt: skip
        print(json.dumps(figures))
        # With less the run proves nothing.
        assert kills >= SECONDS / 15, figures
        assert len(notes.holds) >= SECONDS / 4, figures
        assert installed >= 1, figures
        await digests_equal(made)


async def kill_leaders(made: Cluster, seconds: float) -> int:
    """SIGKILL the leader every few seconds; it comes back a while later. Returns how often."""
    rng = random.Random(31)
    end = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < end:
        leader = await made.leader()
        await made.ready()
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        leader.kill()
        kills += 1
        await asyncio.sleep(rng.uniform(0.2, 4.0))
        leader.start()
    return kills


async def final_states_are_seen(made: Cluster, watchers: list[Watcher]) -> None:
    """Once nobody writes, each watcher comes to what is there, by being woken and not by a time-out."""
    ask = Asker(made, random.Random(32))
    await asyncio.sleep(8.0)  # writes of unknown outcome come to their end: 7 s are held at most
    final = pairs(await ask.until_answered("GET", "/v1/kv/watched/?recurse"))

    async def all_seen() -> bool:
        return all(watcher.state == under(final, watcher.prefix) for watcher in watchers)

    await made.until(all_seen, "every watcher saw the final state", 15.0)
    assert pairs(await ask.until_answered("GET", "/v1/kv/watched/?recurse")) == final
    ask.close()


def under(final: dict[str, tuple[str, int]], prefix: str) -> dict[str, tuple[str, int]]:
    return {key: pair for key, pair in final.items() if key.startswith(prefix)}

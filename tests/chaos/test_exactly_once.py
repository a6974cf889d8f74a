"""SIGKILL of leaders under counters that are sent again, and under keys that expire.

A counter shows at once whether a write was done twice or not at all: every number from 1 on must have been
told exactly once. A key that expires shows whether a new leader counts time that is not its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from kvnode.client import KvnodeClient
from kvnode.errors import NotNow
from tests.chaos.processes import Cluster, cluster
from tests.chaos.verdict import digests_equal

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

KILLS = 6
WRITERS = 8
TTL_S = 4.0


async def kill_leaders(made: Cluster, count: int, rng: random.Random) -> None:
    for _ in range(count):
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        leader = await made.leader()
        leader.kill()
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        leader.start()
    await made.ready()


class Counting(KvnodeClient):
    """Notes how often a write was sent in doubt, so that a run without doubts does not pass for a proof."""

    doubts = 0

    async def _knows_keys(self, deadline: float) -> bool:
        Counting.doubts += 1
        return await super()._knows_keys(deadline)


async def test_a_counter_counts_exactly_through_kills_of_the_leader(tmp_path: Path) -> None:
    """RC-58: sent again whatever became of it, and done once."""
    rng = random.Random(30)
    Counting.doubts = 0
    told: list[int] = []
    async with cluster(tmp_path) as made:
        await made.ready()
        await made.leader()
        over = asyncio.Event()

        async def count(number: int) -> None:
            urls = [node.url for node in made.nodes]
            urls = urls[number % 3 :] + urls[: number % 3]
            async with Counting(urls, timeout_s=60) as client:
                while not over.is_set():
                    found = await client.add("n")
                    assert found is not None
                    told.append(found)

        writers = [asyncio.create_task(count(number)) for number in range(WRITERS)]
        await kill_leaders(made, KILLS, rng)
        over.set()
        await asyncio.gather(*writers)
        async with KvnodeClient((await made.leader()).url) as client:
            total = await client.add("n", 0)
        for node in made.nodes:
            node.kill()
        for node in made.nodes:
            node.start()
        leader = await made.leader()
        async with KvnodeClient(leader.url) as client:
            again = await client.add("n", 0)
    print(json.dumps({"kills": KILLS, "added": len(told), "sent_in_doubt": Counting.doubts}))
    assert sorted(told) == list(range(1, total + 1))
    assert again == total == len(told)
    assert Counting.doubts, "no kill left anybody in doubt: this run proves nothing"


async def test_no_key_expires_early_through_kills_of_the_leader(tmp_path: Path) -> None:
    """Each leader counts the whole time, so it is lengthened and never shortened; and then it ends."""
    rng = random.Random(31)
    written: dict[str, float] = {}
    early: list[tuple[str, float]] = []
    gone = 0
    async with cluster(tmp_path) as made:
        await made.ready()
        await made.leader()
        urls = [node.url for node in made.nodes]
        over = asyncio.Event()
        async with KvnodeClient(urls, timeout_s=60) as client:

            async def write() -> None:
                number = 0
                while not over.is_set():
                    key = f"ttl/{number % 1000}"
                    began = time.monotonic()
                    # Out of the book while nobody knows which of the two it is.
                    written.pop(key, None)
                    await client.put(key, f"{number}", ttl_s=TTL_S)
                    written[key] = began
                    number += 1
                    await asyncio.sleep(0.01)

            async def look() -> None:
                nonlocal gone
                while not over.is_set():
                    known = dict(written)
                    try:
                        there = set(await client.keys("ttl/"))
                    except NotNow:
                        continue
                    now = time.monotonic()
                    for key, began in known.items():
                        if key in there or written.get(key) != began:
                            continue
                        del written[key]
                        gone += 1
                        if now - began < TTL_S:
                            early.append((key, now - began))
                    await asyncio.sleep(0.05)

            jobs = [asyncio.create_task(job()) for job in (write, look)]
            await kill_leaders(made, KILLS, rng)
            left = dict(written)

            async def all_seen() -> bool:
                # Those that the last leader found, too: it is the last one that may have cut their time.
                return gone > 50 and all(written.get(key) != at for key, at in left.items())

            await made.until(all_seen, "what there was is seen gone", 2 * TTL_S + 10)
            over.set()
            await asyncio.gather(*jobs)
            deadline = time.monotonic() + 2 * TTL_S + 10
            while await client.keys("ttl/"):
                assert time.monotonic() < deadline, "keys that should be gone are there"
                await asyncio.sleep(0.2)
        await digests_equal(made)
    print(json.dumps({"kills": KILLS, "seen_gone": gone, "early": len(early)}))
    assert early == []

"""SIGKILL in the middle of a restore: everywhere the old state or the new one, whole (decision 0009)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import aiohttp
import pytest

from tests.archive.archives import archive, key, state
from tests.chaos.processes import Cluster, Node, cluster
from tests.chaos.verdict import digests_equal

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ROUNDS = 10
KEYS = 4000
VALUE_BYTES = 1500


def generation(number: int) -> bytes:
    value = b"%08d" % number + bytes(VALUE_BYTES)
    return archive(state([key(b"g/%05d" % at, value) for at in range(KEYS + number)]))


async def restore(node: Node, data: bytes) -> bool | None:
    """True: it was done; False: certainly not; None: nobody can say."""
    limit = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=limit) as session:
        # aiohttp by itself sends a PUT a second time when the connection breaks, although the first may
        # have been executed: what the second one is answered says nothing of it.
        session._retry_connection = False
        try:
            async with session.put(f"{node.url}/v1/snapshot", data=data) as answer:
                text = await answer.text()
                if answer.status == 200:
                    return True
                assert answer.status == 500, (answer.status, text)
                return False if "No cluster leader" in text else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None


async def found(made: Cluster, node: Node) -> int:
    """Which generation a node holds; fails unless it is one, whole."""
    async with made.session.get(f"{node.url}/v1/kv/g/?keys&stale") as answer:
        names = await answer.json() if answer.status == 200 else []
    values = await made.dump(node, "g/")
    generations = {value[:8] for value in values.values()}
    assert len(generations) <= 1, f"a mix: {generations}"
    if not generations:
        return 0
    number = int(generations.pop())
    assert len(values) == KEYS + number
    assert len(names) in {KEYS + number} | {KEYS + other for other in range(ROUNDS + 1)}
    return number


async def test_a_restore_survives_any_kill_whole(tmp_path: Path) -> None:
    rng = random.Random(9)
    done = undone = 0
    async with cluster(tmp_path) as made:
        await made.ready()
        assert await restore(made.nodes[0], generation(0))
        before = 0
        for number in range(1, ROUNDS + 1):
            leader = await made.leader()
            asked = rng.choice(made.nodes)
            victims = rng.choice(([leader], [asked], [leader], made.nodes))
            task = asyncio.create_task(restore(asked, generation(number)))
            await asyncio.sleep(rng.uniform(0.02, 0.7))
            for victim in victims:
                victim.kill()
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            for victim in victims:
                victim.start()
            answer = await task
            await made.ready()
            states = {await found(made, node) for node in made.nodes}
            assert len(states) == 1, states
            after = states.pop()
            assert after in {before, number}
            if answer is not None:
                assert after == (number if answer else before)
            done += after == number
            undone += after == before
            before = after
        assert await restore(made.nodes[1], generation(0))
        await digests_equal(made)
    print(json.dumps({"rounds": ROUNDS, "new": done, "old": undone}))
    assert done

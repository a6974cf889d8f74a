"""Cut-off nodes: what they refuse, what they still serve, and that they disturb nobody (RC-15 to RC-18)."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.lab import HTTP_PORT, LabCluster, LabNode, lab_cluster
from tests.chaos.machines import lacks_machines
from tests.chaos.plain_http import Answer, Connection, NoAnswer
from tests.chaos.processes import Writers, check_kept, in_one_of_three
from tests.chaos.verdict import check_logs, digests_equal, healthy

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(lacks_machines()), reason=lacks_machines() or "-"),
]


async def ask(
    made: LabCluster,
    node: LabNode,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    wait: float = 15,
) -> Answer | None:
    """One request on a connection of its own; None when no answer came in time."""
    connection = Connection(made.lab.clients.socket, node.host, HTTP_PORT)
    try:
        return await connection.request(method, target, body, timeout_s=wait)
    except NoAnswer:
        return None
    finally:
        connection.close()


async def term(made: LabCluster, node: LabNode) -> int:
    facts = await made.status(node)
    assert facts is not None
    return int(facts["term"])


async def test_a_cut_off_leader_answers_no_linearizable_read_and_acknowledges_no_write(
    tmp_path: Path,
) -> None:
    """RC-17, RC-58: refused or unknown, never a success; ``?stale`` is served, and says what it is."""
    flags = ["--leader-wait-s=3", "--request-timeout-s=6"]
    async with lab_cluster(tmp_path, flags=flags) as made:
        await healthy(made)
        old = await made.lab_leader()
        others = made.followers(old)
        await made.write(old, "k", "before")
        made.network.cut([old.machine], made.machines(others))
        # At once, while it still believes that it leads.
        requests = [
            ask(made, old, "GET", "/v1/kv/k"),
            ask(made, old, "GET", "/v1/kv/k?consistent"),
            ask(made, old, "GET", "/kv/k"),
            ask(made, old, "GET", "/v1/kv/?recurse"),
            ask(made, old, "PUT", "/v1/kv/k", b"v1-route"),
            ask(made, old, "PUT", "/kv/k", b"own-route"),
            ask(made, old, "DELETE", "/kv/k"),
        ]
        early = asyncio.gather(*requests)
        stale = await ask(made, old, "GET", "/v1/kv/k?stale&raw")
        assert stale is not None
        assert (stale.status, stale.body) == (200, b"before")
        new = await made.lab_leader()
        while new is old:
            new = await made.lab_leader()
        await made.write(new, "k", "after")
        for answer in await early:
            assert answer is None or answer.status in {500, 503, 504}, answer
            if answer is not None and answer.status != 504:
                refused = "retry-after" in answer.headers or b"unknown" in answer.body
                assert refused or b"timed out" in answer.body, answer
        # And later, when it knows.
        late = await asyncio.gather(
            ask(made, old, "GET", "/v1/kv/k"),
            ask(made, old, "GET", "/kv/k"),
            ask(made, old, "PUT", "/v1/kv/k", b"late"),
            ask(made, old, "PUT", "/kv/k", b"late"),
        )
        for answer, status in zip(late, (500, 503, 500, 503), strict=True):
            assert answer is not None
            assert (answer.status, answer.body.strip()) == (status, b"No cluster leader")
            assert "retry-after" in answer.headers
        stale = await ask(made, old, "GET", "/v1/kv/k?stale&raw")
        assert stale is not None
        assert (stale.status, stale.body) == (200, b"before")
        assert stale.headers["x-consul-knownleader"] == "false"
        assert int(stale.headers["x-consul-lastcontact"]) > 1000
        made.network.heal()
        await healthy(made)
        assert [await made.get(node, "k") for node in made.nodes] == ["after"] * 3
        stale = await ask(made, old, "GET", "/v1/kv/k?stale&raw")
        assert stale is not None
        assert stale.headers["x-consul-knownleader"] == "true"
        await digests_equal(made)
        check_logs(made)


async def test_a_follower_that_comes_back_raises_no_term(tmp_path: Path) -> None:
    """RC-15 (pre-vote): while away it asks for votes that nobody hears, and its term stays."""
    async with lab_cluster(tmp_path) as made:
        await healthy(made)
        async with Writers(made, 2, "w") as writers:
            await in_one_of_three(partial(go_away_and_come_back, made))
        for node in made.lab_nodes:
            check_kept(writers, await made.dump(node, "w/"))
        check_logs(made)


async def go_away_and_come_back(made: LabCluster) -> list[str]:
    """Cut a follower off, let it come back, and say what its return disturbed."""
    away = made.followers(await made.lab_leader())[0]
    made.network.cut([away.machine], made.machines(made.followers(away)))
    before, cut_at = await term(made, away), away.log_end

    async def asks() -> bool:
        return bool(away.events("became_pre_candidate", since=cut_at))

    await made.until(asks, "it asks for votes", 20.0)
    await asyncio.sleep(4.0)  # several election time-outs: it asks again and again
    assert not away.events("became_candidate", since=cut_at)
    assert await term(made, away) == before
    leader, latest = await made.lab_leader(), await made.highest_term()
    made.network.heal()
    await healthy(made)
    await asyncio.sleep(2.5)  # whatever it may disturb, it would by now
    trouble = []
    terms = [await term(made, node) for node in made.lab_nodes]
    if terms != [latest] * 3:
        trouble.append(f"the terms are {terms}, and not {latest}")
    if await made.lab_leader() is not leader:
        trouble.append(f"{leader.name} does not lead any more")
    return trouble


@pytest.mark.parametrize("heard", [True, False])
async def test_a_leader_that_is_only_half_cut_off_is_replaced(tmp_path: Path, heard: bool) -> None:
    """RC-17: one that hears nobody steps down, though all hear it; one that is not heard is left."""
    async with lab_cluster(tmp_path) as made:
        await healthy(made)
        leader = await made.lab_leader()
        others = made.followers(leader)
        async with Writers(made, 3, "w") as writers:
            await writers.first_after(0.0, 10.0)
            sides = (made.machines(others), [leader.machine])
            made.network.cut(*(sides if heard else sides[::-1]), both=False)
            deadline = time.monotonic() + 20
            while (now := await made.lab_leader()) is leader:
                assert time.monotonic() < deadline, made.tails()
                await asyncio.sleep(0.1)
            await made.write(now, "after", "1")
            await writers.first_after(time.monotonic(), 10.0)
        made.network.heal()
        await healthy(made)
        check_kept(writers, await made.dump(leader, "w/"))
        await digests_equal(made)
        check_logs(made)


async def test_a_bridge_between_two_sides_keeps_the_cluster_quiet(tmp_path: Path) -> None:
    """RC-18: leader and one follower do not see each other, the third sees both: no endless elections."""
    async with lab_cluster(tmp_path) as made:
        await healthy(made)
        leader = await made.lab_leader()
        far, middle = made.followers(leader)
        before = await term(made, leader)
        made.network.cut([leader.machine], [far.machine])
        async with Writers(made, 3, "w") as writers:
            await writers.first_after(time.monotonic(), 10.0)
            await asyncio.sleep(8.0)
            gaps = [b - a for a, b in zip(writers.times, writers.times[1:], strict=False)]
        after = await term(made, middle)
        assert after - before <= 1, f"{after - before} elections"
        assert max(gaps) < 5.0, max(gaps)
        made.network.heal()
        await healthy(made)
        check_kept(writers, await made.dump(far, "w/"))
        await digests_equal(made)
        check_logs(made)

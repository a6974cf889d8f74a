"""The clock of the day may say what it likes: nothing here is decided by it."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.chaos.lab import LabCluster, lab_cluster
from tests.chaos.machines import lacks_faketime, lacks_machines
from tests.chaos.processes import Writers, check_kept, in_one_of_three
from tests.chaos.verdict import check_logs, digests_equal, healthy

WHY = lacks_machines() or lacks_faketime()
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(WHY), reason=WHY or "-"),
]
YEAR_S = 365.25 * 86400
SEEN_AFTER_S = 2.5
"""libfaketime looks at what it shall say every second or two."""


async def test_clocks_that_jump_by_years_cause_no_election_and_no_pause(tmp_path: Path) -> None:
    """Time-outs, leases and deadlines run on the monotonic clock (RC-61)."""
    async with lab_cluster(tmp_path, fake_clock=True) as made:
        await healthy(made)
        async with Writers(made, 3, "w") as writers:
            await writers.first_after(0.0, 10.0)
            for old, new in pairwise((0.0, 5 * YEAR_S, -10 * YEAR_S, 3600.0)):
                await in_one_of_three(partial(jump, made, writers, old, new))
        leader = await made.lab_leader()
        await made.write(leader, "last", "1")
        check_kept(writers, await made.dump(leader, "w/"))
        await digests_equal(made)
        check_logs(made)
        # The instrument: the process did see another year.
        leader.set_clock(5 * YEAR_S)
        await asyncio.sleep(SEEN_AFTER_S)
        await asyncio.to_thread(leader.stop)
        years = [int(event["timestamp"][:4]) for event in leader.events()]
        assert years[-1] >= years[0] + 5, years


async def jump(made: LabCluster, writers: Writers, old: float, new: float) -> list[str]:
    """Let the clocks jump, and say what came of it. The leader's goes one way, the others' the other."""
    leader = await made.lab_leader()
    before = await made.status(leader)
    assert before is not None
    began = time.monotonic()
    for node in made.lab_nodes:
        node.set_clock(new if node is leader else -new / 2)
    await asyncio.sleep(SEEN_AFTER_S)
    gap = writers.longest_gap(began)
    after = await made.status(leader)
    assert after is not None
    trouble = []
    if (after["state"], after["term"]) != (before["state"], before["term"]):
        trouble.append(
            f"{before['state']} of term {before['term']} is {after['state']} of {after['term']}"
        )
    if gap >= 1.0:
        trouble.append(f"nothing was written for {gap:.1f} s")
    if trouble:  # back to where it can be repeated from, by whoever leads now
        leader = await made.lab_leader()
        for node in made.lab_nodes:
            node.set_clock(old if node is leader else -old / 2)
        await asyncio.sleep(SEEN_AFTER_S)
    return trouble

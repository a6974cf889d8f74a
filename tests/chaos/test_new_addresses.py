"""Nodes that move: an address is a hint, never an identity (RC-53, RC-56)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.lab import LabNode, lab_cluster
from tests.chaos.machines import lacks_machines
from tests.chaos.processes import Writers, check_kept
from tests.chaos.verdict import check_logs, digests_equal, healthy

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(lacks_machines()), reason=lacks_machines() or "-"),
]


async def test_two_nodes_that_move_out_of_each_others_sight_meet_again(tmp_path: Path) -> None:
    """Each knows only where the other was; the third, which saw both, tells them."""
    async with lab_cluster(tmp_path) as made:
        await healthy(made)
        one, two, third = made.lab_nodes

        def move(node: LabNode, number: int) -> None:
            node.machine.readdress(number)
            made.network.announce()
            node.start()

        async with Writers(made, 2, "w") as writers:
            await writers.first_after(0.0, 10.0)
        one.kill()
        two.kill()
        move(two, 102)
        await made.ready()
        two_alone = await made.lab_leader()
        assert two_alone in (two, third)
        made.network.cut([one.machine], [two.machine])
        move(one, 101)

        async def knows_both() -> bool:
            addresses = {member["Address"] for member in await made.members(third)}
            return addresses >= {"10.77.0.101:8300", "10.77.0.102:8300"}

        await made.until(knows_both, "the third was greeted from both new addresses")
        made.network.heal()
        await healthy(made)

        async def met() -> bool:
            # Each shows where it heard the other one itself; the way there, only the third could tell.
            at_one, at_two = [
                {member["Node"]: member["Address"] for member in await made.members(node)}
                for node in (one, two)
            ]
            shown = at_one.get(two.name), at_two.get(one.name)
            return shown == ("10.77.0.102:8300", "10.77.0.101:8300")

        await made.until(met, "the two speak with each other")
        # Only if they talk to each other can the two do without the third.
        third.kill()
        await made.write(one, "met", "1", timeout_s=30)
        assert await made.get(two, "met") == "1"
        third.start()
        await healthy(made)
        check_kept(writers, await made.dump(one, "w/"))
        await digests_equal(made)
        check_logs(made)

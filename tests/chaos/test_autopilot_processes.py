"""The autopilot on real processes: its parameters survive everybody's end, and the dead are given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.processes import Cluster, Node, cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

GRACE_S = 3
CONFIGURATION = "/v1/operator/autopilot/configuration"


async def get(made: Cluster, node: Node, path: str) -> tuple[int, Any]:
    async with made.session.get(node.url + path) as answer:
        return answer.status, await answer.json(content_type=None)


async def names(made: Cluster, node: Node) -> list[str]:
    return sorted(member["Node"] for member in await made.members(node))


async def test_the_dead_are_given_up_and_come_back_as_new_members(tmp_path: Path) -> None:
    flags = [f"--dead-server-grace-s={GRACE_S}"]
    async with cluster(tmp_path, 4, flags=flags) as made:
        await made.ready()
        lost, *rest = made.nodes[::-1]
        asked = rest[0]

        async def is_well() -> bool:
            # Whoever was not heard for 200 ms is not: a busy machine is well again later.
            return (await get(made, asked, "/v1/operator/autopilot/health"))[0] == 200

        await made.until(is_well, "all are well")
        await made.write(asked, "kept", "1")
        ids = {member["Node"]: member["ID"] for member in await made.members(asked)}

        lost.kill()

        async def is_ill() -> bool:
            status, health = await get(made, asked, "/v1/operator/autopilot/health")
            return status == 429 and [s["Name"] for s in health["Servers"] if not s["Healthy"]] == [
                lost.name
            ]

        async def is_gone() -> bool:
            return lost.name not in await names(made, asked)

        await made.until(is_ill, "it is noticed")
        await made.until(is_gone, "it is given up", 30)
        await made.until(is_well, "those who are left are well")

        # Of three, nobody else is given up.
        rest[-1].kill()
        await made.until(lambda: _failed(made, asked, rest[-1].name), "it is noticed as well")
        assert len(await names(made, asked)) == 3
        rest[-1].start()

        lost.start()

        async def is_back() -> bool:
            members = {m["Node"]: m for m in await made.members(asked)}
            found = members.get(lost.name)
            return found is not None and found["Voter"] and found["ID"] != ids[lost.name]

        await made.until(is_back, "it is back as a new member")
        await made.ready()
        assert await made.get(lost, "kept", "&stale") == "1"


async def _failed(made: Cluster, asked: Node, name: str) -> bool:
    _, state = await get(made, asked, "/v1/operator/autopilot/state")
    servers = {server["Name"]: server for server in state["Servers"].values()}
    return servers[name]["NodeStatus"] == "failed"


async def test_parameters_and_events_survive_the_end_of_all_processes(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await made.ready()
        node = made.nodes[0]
        body = '{"CleanupDeadServers":false,"LastContactThreshold":"1s","MaxTrailingLogs":9}'
        async with made.session.put(node.url + CONFIGURATION, data=body) as answer:
            assert await answer.text() == "true"
        async with made.session.put(f"{node.url}/v1/event/fire/deploy", data="v2") as answer:
            fired = (await answer.json())["ID"]
        before = (await get(made, node, CONFIGURATION))[1]
        for one in made.nodes:
            one.kill()
        for one in made.nodes:
            one.start()
        await made.ready()
        for one in made.nodes:
            assert (await get(made, one, CONFIGURATION))[1] == before
            events = (await get(made, one, "/v1/event/list"))[1]
            assert [event["ID"] for event in events] == [fired]

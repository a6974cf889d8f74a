"""Membership follows the StatefulSet: real nodes, DNS and namespaces, and the API server's answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.chaos.lab import LabNode
from tests.chaos.processes import Writers, check_kept
from tests.k8s.statefulset import (
    NAME,
    StatefulSet,
    events,
    eventually,
    lacks_statefulsets,
    statefulset,
)

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(lacks_statefulsets()), reason=lacks_statefulsets() or "machines"),
]


def node_id(made: StatefulSet, ordinal: int) -> str:
    record = json.loads((made._known[f"{NAME}-{ordinal}"].data / "identity.json").read_text())
    return str(record["identity"]["node_id"])


async def test_five_become_one_in_one_step_and_five_again(tmp_path: Path) -> None:
    """All four get SIGTERM at once, under load; then their old volumes come back."""
    async with statefulset(tmp_path, 5, replicas=5) as made:
        await made.become(0, 1, 2, 3, 4)
        old = [node_id(made, n) for n in range(5)]
        async with Writers(made.cluster, 4, "w") as writers:
            await writers.first_after(0.0, 10.0)
            assert await made.scale(1) == [0, 0, 0, 0]
            await made.become(0)
            await asyncio.sleep(0.5)
        leader = await made.cluster.leader(5.0)
        assert leader.name == f"{NAME}-0"
        check_kept(writers, await made.cluster.dump(leader, "w/"))
        await made.scale(5)
        await made.become(0, 1, 2, 3, 4)
        await made.ready()
        assert node_id(made, 0) == old[0]
        assert not set(old[1:]) & {node_id(made, n) for n in range(1, 5)}
        assert list(made[3].data.parent.rglob("*aside*")), "nothing is deleted"
        check_kept(writers, await made.cluster.dump(made[4], "w/"))


async def test_three_five_three_five_and_one_and_three(tmp_path: Path) -> None:
    async with statefulset(tmp_path, 5, replicas=3) as made:
        await made.cluster.write(made[0], "a", "1")
        await made.scale(5)
        await made.become(0, 1, 2, 3, 4)
        assert await made.scale(3) == [0, 0]
        await made.become(0, 1, 2)
        await made.cluster.write(made[0], "a", "2")
        await made.scale(5)
        await made.become(0, 1, 2, 3, 4)
        await made.ready()
        assert await made.cluster.get(made[4], "a") == "2"
        # Step by step down to one, and back to three.
        for replicas in (4, 2, 1):
            assert set(await made.scale(replicas)) == {0}
            await made.become(*range(replicas))
        await made.cluster.write(made[0], "a", "3")
        await made.scale(3)
        await made.become(0, 1, 2)
        assert await made.cluster.get(made[2], "a") == "3"


async def test_scaled_to_zero_and_back_everybody_is_still_a_member(tmp_path: Path) -> None:
    async with statefulset(tmp_path, 3, replicas=3) as made:
        await made.cluster.write(made[0], "a", "1")
        before = [node_id(made, n) for n in range(3)]
        assert await made.scale(0) == [0, 0, 0]
        await made.scale(3)
        await made.become(0, 1, 2)
        await made.ready()
        assert [node_id(made, n) for n in range(3)] == before
        assert await made.cluster.get(made[1], "a") == "1"


async def until_the_leader_says(made: StatefulSet, words: str) -> LabNode:
    """In a note: it is ready. Whoever leads by then, who counts its grace anew and asks by itself."""
    leader = await made.cluster.lab_leader()

    async def it_does() -> bool:
        nonlocal leader
        leader = await made.cluster.lab_leader()
        said = (await made.says(leader))[1]
        return said.startswith("ready\n") and words in said

    await made.cluster.until(it_does, words)
    return leader


async def test_those_that_died_before_they_could_ask_are_removed_by_the_leader(
    tmp_path: Path,
) -> None:
    """And not while the API server is down, or forbids it: the log and readiness say what to do."""
    async with statefulset(tmp_path, 5, replicas=5) as made:
        await made.become(0, 1, 2, 3, 4)
        account = made.api.rights["token-of-kvnode"]
        made.api.rights["token-of-kvnode"] = set()
        made.api.statefulset(NAME, 3)
        made.kill(f"{NAME}-3", f"{NAME}-4")
        leader = await until_the_leader_says(made, "Role with `get` on statefulsets")
        assert "kvnode" in events(leader, "scale_unknown")[0]["reason"]
        await made.api.stop()
        await until_the_leader_says(made, "cannot be reached")
        assert len(await made.members()) == 5
        made.api.rights["token-of-kvnode"] = account
        await made.start_api()
        await made.become(0, 1, 2)
        said = (await made.says(await made.cluster.lab_leader()))[1]
        assert "get" not in said


async def test_an_api_server_that_is_down_holds_up_no_restart_and_removes_nobody(
    tmp_path: Path,
) -> None:
    async with statefulset(tmp_path, 3, replicas=3) as made:
        await made.api.stop()
        made.api.statefulset(NAME, 1)
        began = asyncio.get_running_loop().time()
        assert await made.stop(f"{NAME}-2") == [0]
        assert asyncio.get_running_loop().time() - began < 15.0
        assert len(await made.members()) == 3
        made.start(2)
        await made.ready()


async def test_members_are_removed_ahead_of_time_by_hand(tmp_path: Path) -> None:
    """As a hook does before an upgrade; the kubelet starts the removed pod again, and it stays out."""
    no_api = ["--kubernetes-statefulset="]
    async with statefulset(tmp_path, 3, replicas=3, flags=no_api) as made:
        # Asked first is one of those that go, as behind a Service.
        either = ",".join(f"{made[n].machine.address}:8500" for n in (1, 0))
        code, said = await made.run(
            made[1], "operator", "scale", "--to", "1", "--timeout", "40", "--http-addr", either
        )
        assert code == 0, said
        assert "2 members removed" in said
        await made.become(0)
        for ordinal in (1, 2):
            node = made[ordinal]
            await eventually(lambda node=node: not node.is_running, "it ends")  # type: ignore[misc]
            node.start()
        for ordinal in (1, 2):
            await made.until_says(made[ordinal], "let in again in")
        assert await made.members() == {f"{NAME}-0": True}
        assert await made.scale(1) == [0, 0]
        await made.cluster.write(made[0], "a", "1")


async def test_read_replicas_come_and_go_and_never_count(tmp_path: Path) -> None:
    async with statefulset(tmp_path, 4, replicas=1) as made:
        made.api.rights["token-of-kvnode"] |= {("get", "statefulsets", f"{NAME}-read")}
        made.api.statefulset(f"{NAME}-read", 2)
        names = [f"{NAME}-read-0", f"{NAME}-read-1"]
        made.start_names(names, flags=["--read-replica"])
        await made.become(0, kvnode_read_0=False, kvnode_read_1=False)
        await made.ready()
        reader = made.pods[names[1]]
        await made.cluster.write(reader, "a", "1")
        assert await made.cluster.get(reader, "a") == "1"
        roles = {f"{NAME}-0": "leader", names[0]: "read-replica", names[1]: "read-replica"}

        async def all_are_seen() -> bool:
            return roles == {row["name"]: row["role"] for row in await made.cluster.pods(made[0])}

        await made.cluster.until(all_are_seen, "every pod in the overview, with its role")
        # An autoscaler takes one; the voter restarts; the other serves what it has meanwhile.
        made.api.statefulset(f"{NAME}-read", 1)
        assert await made.stop(names[1]) == [0]
        await made.become(0, kvnode_read_0=False)
        made.kill(f"{NAME}-0")
        assert await made.cluster.get(made.pods[names[0]], "a", "&stale") == "1"
        made.start(0)
        await made.become(0, kvnode_read_0=False)


async def test_the_label_of_the_leaders_pod_follows_the_leader(tmp_path: Path) -> None:
    """For a Service that selects it; beside it ``/health/leader``."""
    flags = ["--kubernetes-leader-label"]
    async with statefulset(tmp_path, 3, flags=flags) as made:
        made.api.rights["token-of-kvnode"] |= {("patch", "pods", "")}
        made.api.statefulset(NAME, 3)
        for ordinal in range(3):
            made.api.pod(f"{NAME}-{ordinal}")
        made.start(0, 1, 2, expect=3)
        await made.ready()

        def labelled() -> list[str]:
            labels = {n: made.api.labels(f"{NAME}-{n}").get("kvnode/leader") for n in range(3)}
            return [f"{NAME}-{n}" for n, value in labels.items() if value == "true"]

        async def the_leader_is_told_by_label_and_route() -> bool:
            leader = await made.cluster.lab_leader()
            said = {n.name: (await made.says(n, "/health/leader"))[0] for n in made.pods.values()}
            expected = {name: 200 if name == leader.name else 503 for name in said}
            return labelled() == [leader.name] and said == expected

        await made.cluster.until(the_leader_is_told_by_label_and_route, "the leader")
        (first,) = labelled()
        assert await made.stop(first) == [0]
        await made.cluster.until(the_leader_is_told_by_label_and_route, "its successor")
        assert labelled() != [first]
        assert made.api.labels(first)["kvnode/leader"] == "false"

"""Lost volumes and old volumes: a name is not an identity (RC-47, RC-49, RC-51)."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.lab import LabCluster, lab_cluster
from tests.chaos.machines import lacks_machines
from tests.chaos.netswitch import Link
from tests.chaos.processes import Cluster, Node, Writers, check_kept, cluster, in_one_of_three

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def node_id(node: Node) -> str:
    record = json.loads((node.data / "identity.json").read_text())
    return str(record["identity"]["node_id"])


async def voters(made: Cluster, node: Node) -> dict[str, str]:
    """Node id of each voter, by name."""
    return {m["Node"]: m["ID"] for m in await made.members(node) if m["Voter"]}


async def remove(made: Cluster, asked: Node, member: str) -> None:
    """Remove a member. Refused for now is no failure: a voter that would be left may be late."""
    deadline, asked_before = time.monotonic() + 20.0, False
    while True:
        async with made.session.delete(
            f"{asked.url}/v1/operator/raft/peer", params={"id": member}
        ) as answer:
            text = await answer.text()
        # One whose outcome nobody could tell may have been done.
        if answer.status == 200 or (asked_before and "was not found" in text):
            return
        assert time.monotonic() < deadline, (answer.status, text)
        asked_before = True
        await asyncio.sleep(0.1)


async def found_without_the_last_one_hearing_of_it(made: LabCluster) -> dict[str, str]:
    """Found a cluster on empty volumes and end the third node at once; what that one knew, on its disk.

    It has promised itself, and the word of the founding is under way to it for 400 ms.
    """
    founder, other, victim = made.lab_nodes
    for node in made.lab_nodes:
        node.kill()
        if node.data.exists():
            node.wipe()
    made.network.set({(n.machine, victim.machine): Link(delay_ms=400) for n in (founder, other)})
    for node in made.lab_nodes:
        node.start()

    async def founded() -> bool:
        return bool(founder.events("cluster_founded", since=founder.life_at))

    await made.until(founded, "the cluster is founded")
    victim.kill()
    made.network.heal()
    return dict(json.loads((victim.data / "identity.json").read_text())["identity"])


async def test_a_wiped_voter_is_replaced_through_a_learner(tmp_path: Path) -> None:
    """RC-49: it never votes under its old identity, and the cluster ends with three voters."""
    async with cluster(tmp_path) as made:
        leader = await made.leader()
        await made.ready()
        async with Writers(made, 4, "before") as writers:
            await writers.first_after(0.0, 10.0)
            await asyncio.sleep(0.3)
        victim = next(node for node in made.nodes if node is not leader)
        old_id = node_id(victim)
        victim.kill()
        known = await made.highest_term()
        victim.wipe()
        victim.log.rename(victim.log.with_suffix(".old"))
        victim.start()

        async def replaced() -> bool:
            members = await made.members(leader)
            voting = {member["ID"] for member in members if member["Voter"]}
            return len(members) == len(voting) == 3 and old_id not in voting

        await made.until(replaced, "the new incarnation votes in the old one's place")
        await made.ready()
        new_id = node_id(victim)
        assert new_id != old_id
        # Said by whoever led at that moment; a leader that is deposed too early leaves it to the next one.
        changes = [
            (event["term"], event["index"], event["event"])
            for event in made.events("learner_added", "learner_promoted")
            if event["member"] == new_id
        ]
        order = [what for *_, what in sorted(changes)]
        assert (order[0], order[-1]) == ("learner_added", "learner_promoted"), changes
        assert len(order) == 2 or len({term for term, *_ in changes}) > 1, changes
        granted = [event for event in victim.events("granted_vote") if event["term"] <= known]
        assert not granted, "it took part in a term that its old incarnation knew"
        check_kept(writers, await made.dump(victim, "before/"))
        # Now it counts: with the third node gone, the leader and it are a quorum.
        third = next(n for n in made.nodes if n not in (leader, victim))
        third.kill()
        await made.write(leader, "after", "1")
        assert await made.get(victim, "after") == "1"


async def test_an_old_volume_of_a_removed_member_comes_back_as_a_new_incarnation(
    tmp_path: Path,
) -> None:
    """RC-51: it is told that it was removed, sets its data aside, joins afresh, raises no term."""
    async with cluster(tmp_path) as made:
        await in_one_of_three(partial(come_back_after_a_removal, made))


async def come_back_after_a_removal(made: Cluster) -> list[str]:
    """Remove a node that is down, start it again, and say how its return disturbed the cluster."""
    leader = await made.leader()
    await made.ready()
    victim = next(node for node in made.nodes if node is not leader)
    old_id = node_id(victim)
    victim.kill()
    await remove(made, leader, old_id)
    assert len(await made.members(leader)) == 2
    await made.write(leader, "meanwhile", old_id)
    before, start_at = await made.highest_term(), victim.log_end
    victim.start()

    async def back() -> bool:
        return len(await voters(made, leader)) == 3

    await made.until(back, "the node is a voter again")
    # Whatever the others went through: nobody would vote for it, and without votes no term is raised.
    assert not victim.events("became_candidate", since=start_at)
    await made.ready()
    assert node_id(victim) != old_id
    assert (victim.data / f"set-aside-{old_id}").is_dir(), sorted(victim.data.iterdir())
    assert await made.get(victim, "meanwhile") == old_id
    after = await made.highest_term()
    return [] if after == before else [f"term {after} and not {before}"]


@pytest.mark.skipif(bool(lacks_machines()), reason=lacks_machines() or "machines")
async def test_a_founding_node_that_is_removed_before_it_heard_of_the_founding_joins_anew(
    tmp_path: Path,
) -> None:
    """Its promise to the cluster that does not want it any more must not keep it out for ever."""
    async with lab_cluster(tmp_path, start=False) as made:
        victim = made.lab_nodes[2]
        for _ in range(3):  # a machine that stalls for so long is no reason to fail
            record = await found_without_the_last_one_hearing_of_it(made)
            if not record["cluster_id"]:
                break
        assert record["pledge"]
        assert not record["cluster_id"]
        old_id = record["node_id"]
        leader = await made.lab_leader()
        await made.ready()
        await remove(made, leader, old_id)
        victim.start()

        async def back() -> bool:
            return len(await voters(made, leader)) == 3

        await made.until(back, "it is a voter")
        assert node_id(victim) != old_id
        await made.write(leader, "a", "1")
        assert await made.get(victim, "a") == "1"


async def test_an_old_copy_of_a_volume_is_noticed_although_everybody_restarted(
    tmp_path: Path,
) -> None:
    """RC-54: the others have stored what they heard of; the node says why it stops, and stays down."""
    async with cluster(tmp_path) as made:
        leader = await made.leader()
        await made.ready()
        victim = next(node for node in made.nodes if node is not leader)
        victim.kill()
        shutil.copytree(victim.data, tmp_path / "copy")
        victim.start()
        await made.ready()
        await made.write(leader, "newer", "1")
        for node in made.nodes:
            node.kill()
        shutil.rmtree(victim.data)
        shutil.copytree(tmp_path / "copy", victim.data)
        for node in made.nodes:
            node.start()

        async def gone() -> bool:
            return not victim.is_running

        await made.until(gone, "the node on the old copy ended")
        assert any(e.get("reason") == "VolumeRolledBack" for e in victim.events("node_must_stop"))
        assert (victim.data / "DAMAGED").exists()
        others = [node for node in made.nodes if node is not victim]
        await made.ready()
        assert await made.get(others[0], "newer") == "1"
        victim.start()
        await made.until(gone, "it does not start on the old copy again")


async def test_a_live_member_that_is_removed_stops_with_a_clear_status(tmp_path: Path) -> None:
    """RC-47: told, stored, out; it does not sneak back in by itself."""
    async with cluster(tmp_path) as made:
        leader = await made.leader()
        await made.ready()
        victim = next(node for node in made.nodes if node is not leader)
        await remove(made, leader, node_id(victim))

        async def gone() -> bool:
            return not victim.is_running

        await made.until(gone, "the removed node ended")
        assert victim.process is not None
        assert victim.process.returncode != 0
        assert len(await made.members(leader)) == 2
        await made.write(leader, "two", "2")


async def test_a_node_that_is_told_to_leave_is_removed_and_ends_well(tmp_path: Path) -> None:
    """``PUT /v1/agent/leave``, of the leader; started again it joins as a new member."""
    async with cluster(tmp_path) as made:
        leader = await made.leader()
        await made.ready()
        old_id = node_id(leader)
        async with made.session.put(f"{leader.url}/v1/agent/leave") as answer:
            assert answer.status == 200

        async def gone() -> bool:
            return not leader.is_running

        await made.until(gone, "it ended")
        assert leader.process is not None
        assert leader.process.returncode == 0, leader.log.read_text()[-2000:]
        assert leader.events("left_cluster")
        survivor = await made.leader()
        assert len(await voters(made, survivor)) == 2
        leader.start()

        async def back() -> bool:
            found = await voters(made, survivor)
            return len(found) == 3 and old_id not in found.values()

        await made.until(back, "it joined anew")


async def test_a_stopping_leader_hands_over_before_it_leaves(tmp_path: Path) -> None:
    """RC-57: SIGTERM of the leader is no outage, and no change of membership."""
    async with cluster(tmp_path) as made:
        await made.ready()
        async with Writers(made, 4, "w") as writers:
            await writers.first_after(0.0, 10.0)
            await in_one_of_three(partial(stop_the_leader, made, writers))
        check_kept(writers, await made.dump(await made.leader(), "w/"))


async def stop_the_leader(made: Cluster, writers: Writers) -> list[str]:
    """And say what was not as smooth as it should be. Afterwards everybody is there again."""
    leader = await made.leader()
    began, elections_before = time.monotonic(), len(made.events("became_pre_candidate"))
    assert await asyncio.to_thread(leader.stop) == 0, made.tails()
    survivor = await made.leader()
    assert survivor is not leader
    assert len(await voters(made, survivor)) == 3
    await writers.first_after(time.monotonic() + 0.5, 10.0)
    trouble = []
    if len(made.events("became_pre_candidate")) > elections_before:
        trouble.append("a time-out ended its lead, not a hand-over")
    gap = writers.longest_gap(began)
    if gap >= 1.0:
        trouble.append(f"nothing was written for {gap:.1f} s")
    leader.start()
    await made.ready()
    return trouble

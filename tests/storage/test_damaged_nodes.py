"""Real nodes whose disks lied: refused by default, healed from the peers on request (decision 0008)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import aiohttp
import pytest

from tests.chaos.processes import Cluster, Node, Writers, check_kept, cluster
from tests.chaos.verdict import digests_equal
from tests.simulation.soak import source_base

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

SMALL = [
    "--log-entries-max",
    "200",
    "--write-buffer-bytes",
    "65536",
    "--discovery-interval-s",
    "0.2",
]
HEAL = [*SMALL, "--heal-corruption"]


def node_id(node: Node) -> str:
    return str(json.loads((node.data / "identity.json").read_text())["identity"]["node_id"])


def flip(path: Path, at: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def damage_log(node: Node) -> None:
    """One bit in the middle of what the newest segment holds."""
    segment = max((node.data / "raft").glob("*.seg"))
    used = len(segment.read_bytes().rstrip(b"\0"))
    flip(segment, 512 + (used - 512) // 2)


def lose_log_end(node: Node) -> None:
    """The disk gives zeros for the newer half of what the newest segment holds."""
    segment = max((node.data / "raft").glob("*.seg"))
    data = segment.read_bytes()
    used = len(data.rstrip(b"\0"))
    assert used > 4 * 512
    segment.write_bytes(data[: used // 1024 * 512].ljust(len(data), b"\0"))


def damage_votes(node: Node) -> None:
    (node.data / "raft" / "hard_state").write_bytes(b"\0" * 8192)


def damage_identity(node: Node) -> None:
    flip(node.data / "identity.json", 40)


def damage_manifest(node: Node) -> None:
    [manifest] = (node.data / "state" / "1").glob("MANIFEST-*")
    flip(manifest, manifest.stat().st_size // 2)


def damage_record_type(node: Node) -> None:
    """The bit with which RocksDB alone would read the manifest for ever."""
    [manifest] = (node.data / "state" / "1").glob("MANIFEST-*")
    size = int.from_bytes(manifest.read_bytes()[4:6], "little")
    flip(manifest, 7 + size + 6, 2)


def damage_base(node: Node) -> None:
    (node.data / "raft" / "base").write_bytes(b"")


def damage_tables(node: Node) -> None:
    """Every table, in a block of data: nothing that opening would look at."""
    tables = list((node.data / "state" / "1").glob("*.sst"))
    assert tables
    for table in tables:
        flip(table, 100)


async def written(made: Cluster, seconds: float = 1.5, prefix: str = "w") -> Writers:
    async with Writers(made, 6, prefix) as writers:
        await writers.first_after(0.0, 10.0)
        await asyncio.sleep(seconds)
    return writers


async def whole_again(made: Cluster, node: Node, old_id: str) -> None:
    """``node`` votes as a new incarnation, the old one is gone."""

    async def replaced() -> bool:
        try:
            members = await made.members(await made.leader())
        except AssertionError:
            return False
        voters = {member["ID"] for member in members if member["Voter"]}
        return len(members) == len(voters) == 3 and old_id not in voters

    await made.until(replaced, f"{node.name} votes as a new incarnation")
    await made.ready()


async def settled(made: Cluster) -> None:
    """The voters are the three nodes as they are now: whoever else is damaged next, a quorum is left."""

    async def current() -> bool:
        members = await made.members(await made.leader())
        now = {node_id(node) for node in made.nodes}
        return {m["ID"] for m in members} == {m["ID"] for m in members if m["Voter"]} == now

    await made.until(current, "the members are the nodes that run")


async def test_a_damaged_node_refuses_to_start_and_says_what_to_do(tmp_path: Path) -> None:
    """The default: a fence. The others go on, and nothing in the directory is touched."""
    async with cluster(tmp_path, flags=SMALL) as made:
        leader = await made.leader()
        await made.ready()
        await written(made, 0.5)
        victim = next(node for node in made.nodes if node is not leader)
        victim.kill()
        damage_log(victim)
        before = {p: p.read_bytes() for p in victim.data.rglob("*") if p.is_file()}
        victim.start()
        assert victim.process is not None
        assert await asyncio.to_thread(victim.process.wait, 30) == 1
        [event] = victim.events("node_cannot_start")
        assert ".seg" in event["error"], event
        assert "--heal-corruption" in event["advice"], event
        after = {p: p.read_bytes() for p in victim.data.rglob("*") if p.is_file()}
        changed = {p.name for p in before if before[p] != after.get(p)} - {
            "LOCK",
            "identity.json",
            "spare.tmp",
        }
        assert not changed, changed
        await made.write(leader, "on", "1")


@pytest.mark.parametrize(
    "damage",
    [
        damage_log,
        lose_log_end,
        damage_votes,
        damage_identity,
        damage_manifest,
        damage_record_type,
        damage_base,
    ],
)
async def test_a_damaged_node_is_healed_from_its_peers(tmp_path: Path, damage) -> None:
    """Its data are set aside, it comes back through a learner, and everything acknowledged is there."""
    async with cluster(tmp_path, flags=HEAL) as made:
        leader = await made.leader()
        await made.ready()
        writers = await written(made)
        victim = next(node for node in made.nodes if node is not leader)
        old_id = node_id(victim)
        if damage is lose_log_end:
            assert await asyncio.to_thread(victim.stop) == 0  # which leaves its log at rest
        else:
            victim.kill()
        damage(victim)
        victim.start()
        await whole_again(made, victim, old_id)
        why = (victim.data / "set-aside-damaged" / "DAMAGED").read_text()
        assert damage is not lose_log_end or "synced data are missing" in why, why
        assert (victim.data / "set-aside-damaged" / "raft").is_dir()
        check_kept(writers, await made.dump(victim, "w/"))
        await digests_equal(made, nobody_else=True)


async def test_damage_met_by_a_reader_stops_the_node_and_is_not_forgotten(tmp_path: Path) -> None:
    """RC-71. A table's middle is not read at the start: the first request that meets it must end the node.

    Without history, whose rows would be in the damaged block instead of keys.
    """
    async with cluster(tmp_path, flags=[*HEAL, "--history-entries-max", "0"]) as made:
        leader = await made.leader()
        await made.ready()
        writers = await written(made, 2.5)
        victim = next(node for node in made.nodes if node is not leader)
        old_id = node_id(victim)
        assert await asyncio.to_thread(victim.stop) == 0
        damage_tables(victim)
        victim.start()

        async def met() -> bool:
            """Read everything there, again and again: values, refusals, never a wrong value."""
            if not victim.is_running or not await made.is_ready(victim):
                return bool(victim.events("damaged_data_set_aside"))
            for key, value in list(writers.acknowledged.items())[:400]:
                try:
                    async with made.session.get(f"{victim.url}/v1/kv/{key}?raw&stale") as answer:
                        body = await answer.text()
                        assert answer.status == 500 or body == value, (key, answer.status, body)
                except (aiohttp.ClientError, OSError):
                    break
            return bool(victim.events("damaged_data_set_aside"))

        await made.until(met, "the damage was met and the data set aside")
        await whole_again(made, victim, old_id)
        check_kept(writers, await made.dump(victim, "w/"))


async def test_when_too_many_are_damaged_nothing_is_set_aside(tmp_path: Path) -> None:
    """Two of three at once: their copies may be the only ones. All wait for an operator, data untouched."""
    async with cluster(tmp_path, flags=HEAL) as made:
        leader = await made.leader()
        await made.ready()
        await written(made, 0.5)
        victims = [node for node in made.nodes if node is not leader]
        for victim in victims:
            victim.kill()
            damage_log(victim)
        # At once, while the old leader still believes in itself.
        for victim in victims:
            victim.start()
        for victim in victims:
            assert victim.process is not None
            assert await asyncio.to_thread(victim.process.wait, 90) == 1
            assert victim.events("healing_refused"), made.tails()
            assert not (victim.data / "set-aside-damaged").exists()
            assert (victim.data / "raft" / "base").exists()


async def test_when_all_are_damaged_no_new_cluster_is_founded(tmp_path: Path) -> None:
    """RC-50: not even with every node's data set aside. An empty cluster would hide that all is lost."""
    async with cluster(tmp_path, flags=HEAL) as made:
        await made.leader()
        await made.ready()
        await written(made, 0.3)
        for node in made.nodes:
            node.kill()
            (node.data / "set-aside-damaged").mkdir()
            for name in ("raft", "state", "snapshots", "identity.json"):
                if (node.data / name).exists():
                    (node.data / name).rename(node.data / "set-aside-damaged" / name)
        for node in made.nodes:
            node.start()

        async def waiting() -> bool:
            return all(len(node.events("founding_ruled_out")) == 1 for node in made.nodes)

        await made.until(waiting, "all of them say that they found nothing")
        await asyncio.sleep(4.0)  # several rounds of looking for each other
        for node in made.nodes:
            facts = await made.status(node)
            assert facts is None or facts["state"].lower() != "leader"
        founded = [e for node in made.nodes for e in node.events("cluster_founded")]
        assert len(founded) == 1, "only the first one, from before"


PLACES = (
    "raft/*.seg", "raft/base", "raft/hard_state", "identity.json", "state/CURRENT",
    "state/1/MANIFEST-*", "state/1/*.log", "state/1/*.sst", "state/1/CURRENT",
)  # fmt: skip


async def test_random_damage_never_gives_a_wrong_value(tmp_path: Path) -> None:
    """Flips and cuts at random places of a killed node: it starts with all of it, or it is healed.

    ``test_recovery_attack`` tries hundreds; this is the whole way, over the peers.
    """
    seed = source_base()
    rng = random.Random(seed)
    outcomes = []
    async with cluster(tmp_path, flags=[*HEAL, "--history-entries-max", "0"]) as made:
        await made.leader()
        await made.ready()
        writers = await written(made)
        for turn, place in enumerate(rng.sample(PLACES, 5)):
            leader = await made.leader()
            victim = rng.choice([node for node in made.nodes if node is not leader])
            aside = victim.data / "set-aside-damaged"
            if aside.exists():
                aside.rename(victim.directory / f"kept-{turn}")
            victim.kill()
            found = [p for p in victim.data.glob(place) if p.stat().st_size]
            if not found:
                place, found = "identity.json", [victim.data / "identity.json"]
            what = hurt(rng, rng.choice(found))
            victim.start()
            await made.ready()
            await settled(made)
            check_kept(writers, await read_whole(made, victim))
            outcomes.append((f"{place} {what}", "healed" if aside.exists() else "whole"))
        await digests_equal(made, nobody_else=True)
    print(json.dumps({"seed": seed, "outcomes": outcomes}))


async def read_whole(made: Cluster, node: Node) -> dict[str, bytes]:
    """Return the keys of a node that was damaged, when everything it holds can be read.

    What the start did not look at ends the node when it is read: now, and not while another one is healed.
    """

    async def set_aside() -> bool:
        return (node.data / "set-aside-damaged").exists()

    try:
        async with made.session.get(f"{node.url}/v1/health/state/any?stale") as answer:
            assert answer.status == 200, await answer.text()
        return await made.dump(node, "w/")
    except (aiohttp.ClientError, AssertionError) as met:
        await made.until(set_aside, f"healed after {met!r}")
    await made.ready()
    await settled(made)
    return await made.dump(node, "w/")


def hurt(rng: random.Random, path: Path) -> str:
    """Flip or cut where there is something."""
    used = len(path.read_bytes().rstrip(b"\0"))
    at = rng.randrange(max(1, used))
    if rng.random() < 0.6:
        flip(path, at, rng.randrange(8))
        return f"bit at {at} of {used}"
    with path.open("r+b") as file:
        file.truncate(at)
    return f"cut to {at} of {used}"

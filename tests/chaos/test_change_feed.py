"""Change feeds through kills, reconnects, compaction and snapshots: every change, once, in order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from kvnode.client import Change, KvnodeClient
from kvnode.errors import Compacted
from tests.chaos.processes import Cluster, cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ROUNDS = 5


class Reader:
    """Follows everything under a prefix; now and then it hangs up and goes on elsewhere by itself."""

    def __init__(
        self,
        made: Cluster,
        prefix: str,
        rng: random.Random,
        *,
        hangs_up: bool,
        since: int | None = 0,
    ) -> None:
        self._made = made
        self._rng = rng
        self._hangs_up = hangs_up
        self.prefix = prefix
        self.told: list[Change] = []
        self.position: str | int | None = since
        self.hung_up = 0
        self.reconnects = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            urls = [node.url for node in self._made.nodes]
            self._rng.shuffle(urls)
            async with (
                KvnodeClient(urls, connect_timeout_s=1.0) as client,
                client.changes(self.prefix, since=self.position) as feed,
            ):
                with suppress(TimeoutError):
                    async with asyncio.timeout(
                        self._rng.uniform(0.05, 0.7) if self._hangs_up else None
                    ):
                        async for change in feed:
                            self.told.append(change)
                            self.position = change.event_id
                self.hung_up += 1
                self.reconnects += feed.reconnects

    def check_chain(self) -> dict[str, bytes]:
        """No gap, nothing twice, in order: each old value is what the one before left."""
        state: dict[str, tuple[bytes, int]] = {}
        last = (0, "")
        for change in self.told:
            at = (change.index, change.key)
            assert at > last, (self.prefix, last, change)
            last = at
            old = None if change.old is None else (change.old.value, change.old.modify_index)
            assert state.get(change.key) == old, (self.prefix, state.get(change.key), change)
            if change.new is None:
                del state[change.key]
            else:
                assert change.new.modify_index == change.index
                state[change.key] = (change.new.value, change.new.modify_index)
        return {key: value for key, (value, _) in state.items()}


class Writers:
    """Sets, deletes, deleted trees and transactions, of few keys, so that each changes often."""

    def __init__(self, made: Cluster, seed: int) -> None:
        self._made = made
        self._seed = seed
        self.acknowledged: list[tuple[int, str, str]] = []
        """Index, key and value of each set that was answered."""
        self.stopped = False

    async def run(self, number: int) -> None:
        rng = random.Random(self._seed + number)
        sequence = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=4)) as session:
            while not self.stopped:
                sequence += 1
                node = rng.choice(self._made.nodes)
                with suppress(aiohttp.ClientError, TimeoutError):
                    await self._write(session, node.url, rng, f"{number}-{sequence}")
                await asyncio.sleep(0.002)

    async def _write(
        self, session: aiohttp.ClientSession, url: str, rng: random.Random, value: str
    ) -> None:
        key = f"{rng.choice('ab')}/{rng.randrange(4)}"
        kind = rng.random()
        if kind < 0.75:
            async with session.put(f"{url}/v1/kv/{key}", data=value) as answer:
                if answer.status == 200:
                    self.acknowledged.append((int(answer.headers["X-Kvnode-Index"]), key, value))
        elif kind < 0.85:
            await session.delete(f"{url}/v1/kv/{key}")
        elif kind < 0.9:
            await session.delete(f"{url}/v1/kv/{key[:2]}?recurse")
        else:
            ops = [
                {"KV": {"Verb": "set", "Key": f"{room}/{rng.randrange(4)}", "Value": "dHhu"}}
                for room in "aabb"
            ]
            await session.put(f"{url}/v1/txn", data=json.dumps(ops))


async def storm(made: Cluster, rng: random.Random) -> None:
    """Kill the leader; kill a follower for so long that it needs a snapshot; let them come back."""
    for number in range(ROUNDS):
        leader = await made.leader()
        await made.ready()
        victim = leader
        if number % 2:
            victim = rng.choice([node for node in made.nodes if node is not leader])
        victim.kill()
        await asyncio.sleep(rng.uniform(3.0, 4.0) if number % 2 else rng.uniform(0.3, 1.0))
        victim.start()
        await asyncio.sleep(rng.uniform(0.5, 1.5))
    await made.leader()
    await made.ready()


async def caught_up(readers: Sequence[Reader], made: Cluster) -> None:
    """Wait until every reader has told a last change, which is written now."""
    leader = await made.leader()
    for key in ("a/0", "b/0"):
        await made.until(lambda key=key: made.put(leader, key, "the end"), "a last write")

    async def done() -> bool:
        return all(
            reader.told and reader.told[-1].new is not None
            and reader.told[-1].new.value == b"the end" and reader.told[-1].key in ("a/0", "b/0")
            and (reader.prefix == "a/" or reader.told[-1].key == "b/0")
            for reader in readers
        )  # fmt: skip

    await made.until(done, "every reader is at the end", 30.0)


async def test_readers_see_every_change_once_and_in_order(tmp_path: Path) -> None:
    """RC-65, and what the change feed promises."""
    rng = random.Random(61)
    flags = ["--log-entries-max", "100"]
    async with cluster(tmp_path, flags=flags) as made, asyncio.TaskGroup() as group:
        await made.leader()
        readers = [
            Reader(made, prefix, random.Random(number), hangs_up=number % 2 == 1)
            for number, prefix in enumerate(("", "", "a/", "a/", "b/", "b/"))
        ]
        following = [group.create_task(reader.run()) for reader in readers]
        writers = Writers(made, 7)
        writing = [group.create_task(writers.run(number)) for number in range(4)]
        await storm(made, rng)
        writers.stopped = True
        await asyncio.gather(*writing)
        await caught_up(readers, made)
        for task in following:
            task.cancel()

        kept = await made.dump(await made.leader())
        for reader in readers:
            state = reader.check_chain()
            assert state == {k: v for k, v in kept.items() if k.startswith(reader.prefix)}
        everything = [(change.event_id, change.key) for change in readers[0].told]
        for reader in readers[1:]:
            part = [(index, key) for index, key in everything if key.startswith(reader.prefix)]
            assert [change.key for change in reader.told] == [key for _, key in part]
        sets = {(change.index, change.key): change.new for change in readers[0].told}
        for index, key, value in writers.acknowledged:
            new = sets[index, key]
            assert new is not None
            assert new.value == value.encode(), "an acknowledged write is told, as it was written"
        assert any(node.events("snapshot_loaded") for node in made.nodes)
        assert any(node.events("log_compacted") for node in made.nodes)
    changes = sum(len(reader.told) for reader in readers)
    hung_up = sum(reader.hung_up + reader.reconnects for reader in readers)
    assert changes > 2000
    print(json.dumps({"changes": changes, "reconnects": hung_up, "kills": ROUNDS}))


async def test_a_reader_that_is_away_for_too_long_is_told_so_and_can_begin_anew(
    tmp_path: Path,
) -> None:
    """The window has moved on; what it missed is not passed over in silence."""
    flags = ["--history-entries-max", "200", "--log-entries-max", "100"]
    async with cluster(tmp_path, flags=flags) as made, asyncio.TaskGroup() as group:
        leader = await made.leader()
        writers = Writers(made, 8)
        writing = [group.create_task(writers.run(number)) for number in range(4)]
        async with KvnodeClient(leader.url) as client, client.changes(since=0) as feed:
            away = (await anext(feed)).event_id
        await asyncio.sleep(2.0)
        leader.kill()
        await asyncio.sleep(2.0)
        leader.start()
        await made.ready()
        urls = [node.url for node in made.nodes]
        async with KvnodeClient(urls) as client:
            with pytest.raises(Compacted) as caught:
                await anext(client.changes(since=away))
            assert caught.value.oldest > int(away.partition(".")[0])
            state: dict[str, bytes] = {}
            async with client.changes(initial=True) as feed:
                async for change in feed:
                    if change.new is None:
                        del state[change.key]
                    else:
                        state[change.key] = change.new.value
                    if feed.ready and not writers.stopped:
                        writers.stopped = True
                        await asyncio.gather(*writing)
                        await made.until(lambda: made.put(leader, "a/0", "the end"), "a last write")
                    if state.get("a/0") == b"the end":
                        break
        assert state == await made.dump(leader)

"""spec §2.4: blocking queries, from both ends of every rule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.conformance.conftest import Target
from tests.conformance.wire import Answer, Kv, Wire

LONG = "wait=30s"
"""Far beyond any answer that is due: a test that needed it has failed already."""
SHORT = "wait=300ms"


class Parked:
    """A blocking query on a connection of its own."""

    def __init__(self, wire: Wire, target: str) -> None:
        self._task = asyncio.create_task(wire("GET", target))

    async def still_waits(self, kv: Kv) -> bool:
        """Whether it is parked after everything before it has certainly been handled."""
        for _ in range(3):
            await kv.get("settle")
        return not self._task.done()

    async def answer(self) -> Answer:
        return await asyncio.wait_for(self._task, 10)


@pytest.fixture
async def other(node: Target) -> AsyncIterator[Wire]:
    client = Wire(node.host, node.port)
    yield client
    await client.close()


async def test_a_key_wakes_when_it_changes(kv: Kv, other: Wire) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    parked = Parked(other, kv.path("a", f"index={index}&{LONG}"))
    await kv.put("b", "unrelated")
    assert await parked.still_waits(kv)
    await kv.put("a", "2")
    answer = await parked.answer()
    assert answer.status == 200
    assert answer.json[0]["Value"] == "Mg=="
    assert answer.index == answer.json[0]["ModifyIndex"] > index


async def test_a_query_that_is_behind_is_answered_at_once(kv: Kv) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    answer = await asyncio.wait_for(kv.get("a", f"index={index - 1}&{LONG}"), 10)
    assert answer.index == index


async def test_index_zero_never_waits(kv: Kv) -> None:
    await kv.put("a", "1")
    assert (await asyncio.wait_for(kv.get("a", f"index=0&{LONG}"), 10)).status == 200


async def test_an_identical_write_wakes_nobody(kv: Kv, other: Wire) -> None:
    """Spec §2.1."""
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    parked = Parked(other, kv.path("a", f"index={index}&{LONG}"))
    await kv.put("a", "1")
    assert await parked.still_waits(kv)
    await kv.put("a", "2")
    await parked.answer()


async def test_a_time_out_answers_the_current_state(kv: Kv) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    began = time.monotonic()
    answer = await kv.get("a", f"index={index}&{SHORT}")
    assert time.monotonic() - began >= 0.3
    assert answer.status == 200
    assert answer.index == index


async def test_an_index_ahead_of_the_key_waits_for_the_time_out(kv: Kv, other: Wire) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    began = time.monotonic()
    parked = Parked(other, kv.path("a", f"index={index + 10_000}&wait=1s"))
    await kv.put("a", "2")
    answer = await parked.answer()
    assert time.monotonic() - began >= 1.0, "the write did not wake it"
    assert answer.index < index + 10_000


async def test_a_deleted_key_wakes_with_404_and_the_deletes_index(kv: Kv, other: Wire) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    parked = Parked(other, kv.path("a", f"index={index}&{LONG}"))
    assert await parked.still_waits(kv)
    await kv.delete("a")
    answer = await parked.answer()
    assert answer.status == 404
    assert answer.index > index


async def test_a_missing_key_wakes_when_it_is_made_and_not_before(kv: Kv, other: Wire) -> None:
    missing = await kv.get("a")
    assert missing.status == 404
    parked = Parked(other, kv.path("a", f"index={missing.index}&{LONG}"))
    assert await parked.still_waits(kv)
    await kv.put("b", "unrelated")
    assert await parked.still_waits(kv)
    await kv.put("a", "1")
    assert (await parked.answer()).status == 200


@pytest.mark.parametrize("shape", ["recurse", "keys"])
async def test_a_prefix_wakes_on_any_change_under_it(kv: Kv, other: Wire, shape: str) -> None:
    await kv.put("p/a", "1")
    index = (await kv.get("p/", shape)).index
    parked = Parked(other, kv.path("p/", f"{shape}&index={index}&{LONG}"))
    await kv.put("q", "unrelated")
    assert await parked.still_waits(kv)
    await kv.put("p/b", "2")
    answer = await parked.answer()
    assert answer.status == 200
    assert len(answer.json) == 2
    assert answer.index > index


async def test_an_empty_prefix_result_wakes_only_for_its_prefix(kv: Kv, other: Wire) -> None:
    """[k] spec §2.4: Consul wakes here on every write."""
    empty = await kv.get("p/", "recurse")
    assert empty.status == 404
    parked = Parked(other, kv.path("p/", f"recurse&index={empty.index}&{LONG}"))
    assert await parked.still_waits(kv)
    await kv.put("q", "unrelated")
    assert await parked.still_waits(kv)
    await kv.put("p/a", "1")
    assert (await parked.answer()).status == 200


async def test_deleting_the_tree_wakes_the_key_and_the_prefix(
    kv: Kv, other: Wire, node: Target
) -> None:
    await kv.put("p/a", "1")
    index = (await kv.get("p/", "recurse")).index
    third = Wire(node.host, node.port)
    prefix = Parked(other, kv.path("p/", f"recurse&index={index}&{LONG}"))
    key = Parked(third, kv.path("p/a", f"index={index}&{LONG}"))
    assert await prefix.still_waits(kv)
    await kv.delete("p/", "recurse")
    for answer in (await prefix.answer(), await key.answer()):
        assert answer.status == 404
        assert answer.index > index
    await third.close()


@pytest.mark.parametrize("mode", ["stale", "consistent"])
async def test_every_mode_can_wait(kv: Kv, other: Wire, mode: str) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    parked = Parked(other, kv.path("a", f"{mode}&index={index}&{LONG}"))
    assert await parked.still_waits(kv)
    await kv.put("a", "2")
    answer = await parked.answer()
    assert answer.headers["x-consul-effective-consistency"] == mode
    assert answer.json[0]["Value"] == "Mg=="


async def test_raw_reads_can_wait(kv: Kv, other: Wire) -> None:
    await kv.put("a", "1")
    index = (await kv.get("a")).index
    parked = Parked(other, kv.path("a", f"raw&index={index}&{LONG}"))
    await kv.put("a", "2")
    assert (await parked.answer()).body == b"2"

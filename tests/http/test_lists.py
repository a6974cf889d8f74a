"""Long lists: one moment's state, without holding up anybody else."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import pytest

from kvnode.errors import InvariantBroken
from kvnode.http import HttpSettings
from kvnode.http.lists import Listed, Lists, Wanted
from kvnode.store.commands import KvDeleteTree, KvSet
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store
from tests.http.conftest import Start

KEYS = 5000


def filled(count: int = KEYS) -> Store:
    store = Store(MemoryEngine())
    store.apply_batch([(i + 1, KvSet(b"p/%05d" % i, b"x" * 20)) for i in range(count)])
    return store


def make(**settings: float) -> Lists:
    return Lists(HttpSettings(node_name="n", **settings))  # type: ignore[arg-type]


async def build(lists: Lists, store: Store, wanted: Wanted) -> Listed:
    future: asyncio.Future[Listed] = asyncio.get_running_loop().create_future()

    def done(listed: Listed | None, error: Exception | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            assert listed is not None
            future.set_result(listed)

    lists.build(store, wanted, done)
    return await future


ALL = Wanted(b"p/", entries=True, separator=b"", pretty=False)


async def test_a_short_list_is_answered_at_once() -> None:
    answers: list[Listed | None] = []
    make().build(filled(3), ALL, lambda listed, _: answers.append(listed))
    assert answers[0] is not None
    assert (answers[0].count, answers[0].index) == (3, 3)


async def test_a_long_list_lets_others_run() -> None:
    """RC-69: no turn of the loop is held for much longer than asked."""
    store = filled()
    longest = turns = 0.0
    task = asyncio.create_task(build(make(list_turn_s=0.001), store, ALL))
    while not task.done():
        before = perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, perf_counter() - before)
        turns += 1
    listed = await task
    assert len(json.loads(listed.body)) == KEYS
    assert turns > 5


async def test_a_long_list_is_of_one_moment() -> None:
    store = filled()
    task = asyncio.create_task(build(make(list_turn_s=0.0), store, ALL))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.apply_batch([(KEYS + 1, KvDeleteTree(b"p/")), (KEYS + 2, KvSet(b"p/zzz", b""))])
    listed = await task
    assert (listed.count, listed.index) == (KEYS, KEYS)


async def test_long_lists_wait_for_each_other() -> None:
    """RC-67."""
    store = filled()
    lists = make(list_turn_s=0.0, long_lists_max=2)
    tasks = [asyncio.create_task(build(lists, store, ALL)) for _ in range(7)]
    await asyncio.sleep(0)
    assert lists._active <= 2
    for listed in await asyncio.gather(*tasks):
        assert listed.count == KEYS
    assert lists._active == 0
    assert (await build(lists, store, ALL)).count == KEYS


async def test_a_list_that_fails_gives_its_place_back() -> None:
    store = filled()
    lists = make(list_turn_s=0.0, long_lists_max=1)
    real, opened = store.view, []

    class Broken:
        def __init__(self) -> None:
            self.view = real()

        def __call__(self) -> object:
            return self

        def walk(self, *args: object) -> object:
            yield from range(100)
            raise InvariantBroken("a closed snapshot was read")

        def close(self) -> None:
            opened.append("closed")

    for _ in range(3):
        broken = type("S", (), {"view": Broken()})()
        with pytest.raises(Exception, match="replaced while it was being listed"):
            await build(lists, broken, ALL)
    assert opened == ["closed"] * 3
    assert (await build(lists, store, ALL)).count == KEYS


@pytest.mark.parametrize("pretty", [False, True])
@pytest.mark.parametrize("entries", [False, True])
async def test_the_layout_does_not_depend_on_the_length(pretty: bool, entries: bool) -> None:
    wanted = Wanted(b"p/", entries=entries, separator=b"", pretty=pretty)
    listed = await build(make(list_turn_s=0.0), filled(), wanted)
    items = json.loads(listed.body)
    assert len(items) == KEYS
    indent = 4 if pretty else None
    separators = (",", ": ") if pretty else (",", ":")
    again = json.dumps(items, indent=indent, separators=separators)
    assert listed.body.decode() == again + ("\n" if pretty else "")


async def test_a_list_above_the_bound_is_400_and_says_so(start: Start) -> None:
    """RC-67: a list of everything must not take the node's memory."""
    node = await start(list_bytes_max=1000)
    for i in range(30):
        await node.wire("PUT", f"/v1/kv/p/{i}", b"x" * 20)
    answer = await node.wire("GET", "/v1/kv/p/?recurse")
    assert answer.status == 400
    assert answer.text == (
        "The list is larger than 1000 bytes; ask for a longer prefix, or for pages with ?limit. "
        "The setting is list_bytes_max."
    )
    assert (await node.wire("GET", "/v1/kv/p/?keys")).status == 200

"""The generator of load: every outcome is counted as what it is, and a lost write is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from kvnode.client.histogram import Histogram
from kvnode.client.load import Load, report
from kvnode.client.plan import Operation, Plan
from kvnode.errors import BadRequest, PeerUnreachable

Mind = Callable[[web.Request, dict[str, bytes]], web.Response | None]
"""Answers a request instead of the store, or says None."""


class Shop:
    """A store in a dictionary that does what a test wants of it."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.mind: Mind = lambda request, data: None
        self.pause: asyncio.Event | None = None
        self.requests = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.pause is not None:
            await self.pause.wait()
        body = await request.read()
        special = self.mind(request, self.data)
        if special is not None:
            return special
        key = request.path.removeprefix("/v1/kv/")
        if request.method == "PUT":
            self.data[key] = body
        elif request.method == "DELETE" and "recurse" in request.query:
            self.data = {k: v for k, v in self.data.items() if not k.startswith(key)}
        elif request.method == "DELETE":
            self.data.pop(key, None)
        elif "keys" in request.query:
            found = [k for k in self.data if k.startswith(key)]
            return web.json_response(found, status=200 if found else 404)
        else:
            value = self.data.get(key)
            return web.Response(body=value) if value is not None else web.Response(status=404)
        return web.Response(text="true", headers={"X-Kvnode-Node": "shop"})


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[Shop, URL]]:
    kept = Shop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", kept.handle)
    async with TestServer(app) as server:
        yield kept, server.make_url("/")


def plan(url: URL, mix: str, **more: float) -> Plan:
    operations = {Operation(name): 1 for name in mix.split()}
    settings = {"connections": 4, "keys": 12, "duration_s": 0.3, "timeout_s": 5.0} | more
    return Plan(addresses=[url], mix=operations, **settings)  # type: ignore[arg-type]


async def test_every_kind_of_request_is_asked_answered_and_cleaned_up() -> None:
    """With all operations at once, nothing is lost, and nothing is left behind."""
    async with shop() as (kept, url):
        kept.data["other"] = b"not ours"
        load = Load(plan(url, "put get stale delete list"))
        await load.fill()
        assert len(kept.data) == 13
        await load.run()
        assert all(tally.answered for tally in load.tallies.values())
        assert await load.verify() == []
        await load.clean()
        assert kept.data == {"other": b"not ours"}
        document = report(load)
        assert document["requests"] == load.answered
        assert document["nodes"].keys() == {"shop"}
        assert document["operations"]["get"]["latency_ms"]["p50"] > 0
        assert not document["failures"]


async def test_an_acknowledged_write_that_is_gone_is_found() -> None:
    """The reason for --verify."""
    async with shop() as (kept, url):
        load = Load(plan(url, "put"))
        await load.fill()
        await load.run()
        keys = sorted(kept.data)
        older = f"{load.run_id}-1-"
        del kept.data[keys[0]]
        kept.data[keys[1]] = older.encode()
        kept.data[keys[2]] = b"of somebody else"
        lost = await load.verify()
        assert [item.key for item in lost] == keys[:3]
        assert [item.found for item in lost] == [
            "nothing", "write 1", "a value that this load did not write",
        ]  # fmt: skip


async def test_a_deleted_key_that_is_there_again_is_found() -> None:
    """A delete is a write, too."""
    async with shop() as (kept, url):
        load = Load(plan(url, "delete"))
        await load.fill()
        before = dict(kept.data)
        await load.run()
        gone = next(key for key in before if key not in kept.data)
        kept.data[gone] = before[gone]
        assert [item.key for item in await load.verify()] == [gone]


async def test_unknown_and_refused_are_told_apart() -> None:
    """A refused write that is there is an error of the server; one of unknown outcome may be there."""
    async with shop() as (kept, url):
        load = Load(plan(url, "put", connections=1, keys=1))
        await load.fill()
        filled = dict(kept.data)
        kept.mind = lambda request, data: web.Response(
            status=500, text="No cluster leader", headers={"Retry-After": "1"}
        )
        await load.run()
        tally = load.tallies[Operation.PUT]
        assert (tally.refused > 0, tally.unknown, tally.answered) == (True, 0, 0)
        assert kept.requests < 30  # who is told to come back later does not come at once
        kept.mind = lambda request, data: None
        assert await load.verify() == []

        kept.mind = lambda request, data: web.Response(status=500, text="leadership lost")
        again = Load(plan(url, "put", connections=1, keys=1))
        again.states = load.states
        again.run_id = load.run_id
        again._numbers = load._numbers
        await again.run()
        assert again.tallies[Operation.PUT].unknown > 0
        kept.mind = lambda request, data: None
        assert await again.verify() == []
        kept.data = {key: f"{load.run_id}-{load._numbers + 1}-".encode() for key in filled}
        assert await again.verify() == []


async def test_with_a_rate_a_stall_is_charged_to_all_that_had_to_wait() -> None:
    """Coordinated omission: one connection that waits for one answer must not hide the others."""
    async with shop() as (kept, url):
        for _ in range(3):  # a machine that stalls for so long is no reason to fail
            load = Load(plan(url, "get", connections=1, rate=100.0, duration_s=4.0, timeout_s=30.0))
            await load.fill()
            before, kept.pause = kept.requests, asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                while kept.requests == before:  # noqa: ASYNC110  # a counter, not an event
                    await asyncio.sleep(0.005)
                await asyncio.sleep(2.0)
                kept.pause.set()
            kept.pause = None
            times = load.tallies[Operation.GET].times
            # The first 200 of 400 were due during the pause, and 150 of them more than 0.5 s before its end.
            assert times.percentile(0.8) > 0.5
            assert times.count <= 401
            if times.count >= 250:
                return
    raise AssertionError("those that had to wait were not asked")


async def test_an_answer_that_never_comes_is_given_up_and_counted() -> None:
    """Every wait has an end."""
    async with shop() as (kept, url):
        load = Load(plan(url, "put", timeout_s=0.3))
        await load.fill()
        kept.pause = asyncio.Event()
        await load.run()
        assert load.tallies[Operation.PUT].unknown >= 4
        assert load.connections_lost >= 4
        kept.pause.set()
        assert await load.verify() == []


async def test_without_anybody_to_ask_it_says_so(unused_tcp_port: int) -> None:
    """Not a result of zero a second."""
    nobody = plan(URL(f"http://127.0.0.1:{unused_tcp_port}"), "put")
    load = Load(nobody)
    load.fill_s = 0.2
    with pytest.raises(PeerUnreachable, match="0 of 12 keys"):
        await load.fill()


@pytest.mark.parametrize(
    "wrong",
    [{"connections": 0}, {"keys": 3}, {"value_bytes": 3}, {"duration_s": 0}, {"rate": -1}],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(wrong: dict[str, float]) -> None:
    """Before anything is asked."""
    with pytest.raises(BadRequest):
        plan(URL("http://localhost:1"), "put", **wrong)


def test_percentiles_are_right_to_two_percent() -> None:
    """Whatever the spread."""
    histogram = Histogram()
    assert histogram.percentile(0.99) == 0.0
    values = [0.0001 * 1.01**power for power in range(1000)]
    for value in values:
        histogram.add(value)
    for share in (0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = values[max(0, round(share * 1000) - 1)]
        assert histogram.percentile(share) == pytest.approx(exact, rel=0.03)
    assert histogram.greatest == values[-1]
    histogram.add(0.0)
    assert histogram.least == 0.0

"""Parked queries cost little, and stop when their client is gone (spec §2.4, RC-65, RC-67)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvnode.http import HttpContext, HttpServer, HttpSettings
from kvnode.replica.facade import Consistency
from kvnode.replica.watches import Watches
from kvnode.store.commands import KvSet
from tests.conformance.wire import Wire, read_answer
from tests.http.fake_replica import FakeReplica


@pytest.fixture
def fake() -> FakeReplica:
    return FakeReplica()


@pytest.fixture(params=[True, False], ids=["fast", "aiohttp"])
async def server(request: pytest.FixtureRequest, fake: FakeReplica) -> AsyncIterator[HttpServer]:
    made = HttpServer(
        HttpContext(replica=fake, settings=HttpSettings(node_name="n", fast_path=request.param))
    )
    await made.start("127.0.0.1", 0)
    yield made
    await made.close()


async def put(fake: FakeReplica, key: bytes, value: bytes) -> int:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    fake.write(KvSet(key, value), lambda result, _error: future.set_result(result.index))
    return await future


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # counters of the server, not events
            await asyncio.sleep(0.005)


async def park(server: HttpServer, index: int, count: int = 1) -> list[tuple]:
    streams = []
    before = server.gate.parked
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /v1/kv/a?index=%d&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n" % index)
        streams.append((reader, writer))
    await until(lambda: server.gate.parked == before + count)
    return streams


async def close(streams) -> None:
    for _, writer in streams:
        writer.close()


async def test_a_hundred_watchers_share_one_read_when_they_wake(server, fake):
    index = await put(fake, b"a", b"1")
    streams = await park(server, index, 100)
    assert server.gate.requests == 0, "a parked query takes no place among the requests"
    fake.reads.clear()
    await put(fake, b"a", b"2")
    for reader, _ in streams:
        assert (await read_answer(reader)).json[0]["Value"] == "Mg=="
    assert fake.reads == [Consistency.DEFAULT]
    assert server.gate.parked == fake.watches.count == 0
    await until(lambda: server.gate.requests == 0)
    await close(streams)


@pytest.mark.parametrize("how", ["close", "half-close"])
async def test_a_client_that_hangs_up_leaves_nothing_behind(server, fake, how):
    index = await put(fake, b"a", b"1")
    streams = await park(server, index, 3)
    for _, writer in streams:
        if how == "close":
            writer.close()
        else:
            writer.write_eof()
    await until(lambda: server.gate.parked == 0)
    assert fake.watches.count == 0
    await until(lambda: server.gate.requests == 0)
    await close(streams)


async def test_closing_the_server_answers_everybody(server, fake):
    index = await put(fake, b"a", b"1")
    ((reader, writer),) = await park(server, index)
    closing = asyncio.create_task(server.close())
    assert (await read_answer(reader)).index == index
    await closing
    writer.close()


async def test_too_many_watchers_are_refused_with_a_reason(server, fake):
    """RC-67; 500 and Retry-After, so that Consul's clients try again."""
    fake.watches = Watches(1, 0)
    fake.store.on_change = fake.watches.changed
    index = await put(fake, b"a", b"1")
    streams = await park(server, index)
    wire = Wire("127.0.0.1", server.port)
    answer = await wire("GET", f"/v1/kv/a?index={index}&wait=60s")
    assert answer.status == 500
    assert "retry-after" in answer.headers
    assert server.gate.requests == 0
    await wire.close()
    await close(streams)


async def test_a_failing_read_after_the_wake_is_an_error(server, fake):
    from kvnode.errors import NoLeader

    index = await put(fake, b"a", b"1")
    ((reader, writer),) = await park(server, index)
    fake.read_error = NoLeader("No cluster leader")
    await put(fake, b"a", b"2")
    answer = await read_answer(reader)
    assert (answer.status, answer.text) == (500, "No cluster leader")
    writer.close()

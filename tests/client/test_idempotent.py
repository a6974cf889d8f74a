"""Writes that are sent again until somebody knows what became of them: to a kvnode, and to nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kvnode.client import KvnodeClient, Page
from kvnode.errors import BadRequest, NotNow
from kvnode.http import HttpContext, HttpServer, HttpSettings
from tests.http.fake_replica import FakeReplica

Answer = Callable[[web.Request], web.StreamResponse]
KVNODE = {"X-Kvnode-Node": "n1"}
UNKNOWN = "leadership lost while committing log: the outcome of this write is unknown"


class Server:
    """Notes what writes it gets, and fails them as told: by hanging up, or by an answer."""

    def __init__(self, *failures: str, headers: dict[str, str]) -> None:
        self.failures = list(failures)
        self.headers = headers
        self.writes: list[tuple[str, str | None]] = []
        self.probes = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.path == "/v1/status/leader":
            self.probes += 1
            return web.Response(text='"10.0.0.1:8300"', headers=self.headers)
        self.writes.append((request.method, request.headers.get("Idempotency-Key")))
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "hang up":
            assert request.transport is not None
            request.transport.abort()
        if failure:
            return web.Response(status=500, text=failure, headers=self.headers)
        return web.Response(text="true", headers=self.headers)


@asynccontextmanager
async def serving(server: Server, timeout_s: float = 5.0) -> AsyncIterator[KvnodeClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with (
        TestServer(app) as made,
        KvnodeClient(str(made.make_url("/")), timeout_s=timeout_s) as client,
    ):
        yield client


@pytest.mark.parametrize("failure", ["hang up", UNKNOWN])
async def test_a_kvnode_is_asked_again_with_the_same_key(failure: str) -> None:
    server = Server(failure, failure, headers=KVNODE)
    async with serving(server) as kv:
        assert await kv.put("a", "1", cas=7) is True
        assert await kv.delete("a") is True
    keys = [key for _, key in server.writes]
    assert keys[0]
    assert len(keys[0]) == 32
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert server.probes <= 1


@pytest.mark.parametrize("failure", ["hang up", UNKNOWN])
async def test_who_is_no_kvnode_is_not_asked_again(failure: str) -> None:
    """Consul ignores the header, and would do it twice."""
    server = Server(failure, headers={})
    async with serving(server) as kv:
        with pytest.raises(NotNow) as caught:
            await kv.put("a", "1")
    assert caught.value.took_effect == "unknown"
    assert len(server.writes) == 1
    assert server.probes <= 1


async def test_what_may_have_happened_stays_unknown_whatever_the_last_try_says() -> None:
    server = Server("hang up", *["No cluster leader"] * 50, headers=KVNODE)
    async with serving(server, timeout_s=1.5) as kv:
        with pytest.raises(NotNow) as caught:
            await kv.put("a", "1")
    assert caught.value.took_effect == "unknown"
    assert len(server.writes) > 1


async def test_other_routes_are_never_asked_twice_in_doubt() -> None:
    server = Server("hang up", headers=KVNODE)
    async with serving(server) as kv:
        assert await kv.leader()
        with pytest.raises(NotNow):
            await kv.transfer_leadership()
    assert server.writes == [("POST", None)]


async def test_the_option_turns_it_off() -> None:
    server = Server("hang up", headers=KVNODE)
    async with serving(server) as kv:
        kv._idempotent = False
        with pytest.raises(NotNow):
            await kv.put("a", "1")
    assert server.writes == [("PUT", None)]


# --- against the real routes


@pytest.fixture
async def kv() -> AsyncIterator[KvnodeClient]:
    server = HttpServer(HttpContext(replica=FakeReplica(), settings=HttpSettings(node_name="n1")))
    await server.start("127.0.0.1", 0)
    async with KvnodeClient(f"127.0.0.1:{server.port}", timeout_s=5) as client:
        yield client
    await server.close()


async def test_counters(kv: KvnodeClient) -> None:
    assert await kv.add("n") == 1
    assert await kv.add("n", -5) == -4
    assert await kv.add("n", cas=1) is None
    await kv.put("word", "five")
    with pytest.raises(BadRequest, match="not a decimal number"):
        await kv.add("word")


async def test_a_key_with_a_time_to_live(kv: KvnodeClient) -> None:
    await kv.put("a", "1", ttl_s=2)  # of one stall a second counts: then it is still there
    answer = await kv.read("a")
    assert answer.value is not None
    assert (await kv.read("a", index=answer.index, wait_s=10)).value is None


async def test_copies_and_moves(kv: KvnodeClient) -> None:
    for key in ("a/1", "a/2", "b"):
        await kv.put(key, key)
    assert await kv.copy("a/", "c/", recurse=True) == 2
    assert await kv.move("b", "d") == 1
    assert await kv.keys() == ("a/1", "a/2", "c/1", "c/2", "d")
    with pytest.raises(BadRequest, match="exists"):
        await kv.copy("a/", "c/", recurse=True)
    assert await kv.copy("a/", "c/", recurse=True, overwrite=True) == 2


async def test_pages_and_counts(kv: KvnodeClient) -> None:
    names = ["a", "b/1", "b/2", "c d", "é&"]
    for key in names:
        await kv.put(key, key)
    assert await kv.count() == 5
    assert await kv.count("", separator="/") == 4
    found: list[str] = []
    page: Page[str] | None = None
    while page is None or page.next_after is not None:
        page = await kv.key_page(limit=2, after=page.next_after if page else None)
        found += page.items
    assert found == names
    last = await kv.page(limit=1, reverse=True)
    assert ([pair.key for pair in last.items], last.next_after) == (["é&"], "é&")


async def test_many_retries_count_once(kv: KvnodeClient) -> None:
    """The answer is thrown away at random, and the request sent again."""
    once = kv._once
    calls = 0

    async def lossy(*args: object) -> object:
        nonlocal calls
        calls += 1
        reply = await once(*args)  # type: ignore[arg-type]
        if calls % 3 == 1:
            raise NotNow("the answer was lost", took_effect="unknown")
        return reply

    kv._once = lossy  # type: ignore[method-assign,assignment]
    await asyncio.gather(*[kv.add("n") for _ in range(40)])
    assert await kv.add("n", 0) == 40
    assert calls > 41

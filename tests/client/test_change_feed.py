"""Following a feed over nodes that hang up, break, fall silent and lose their leader."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from kvnode.client import ChangeFeed, KvnodeClient
from kvnode.client.events import Event, EventParser
from kvnode.errors import BadRequest, Compacted, RemoteProtocolError

Script = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


class Node:
    """A server whose n-th answer follows the n-th script; the last one counts for ever."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = scripts
        self.asked: list[tuple[str, str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path_qs, request.headers.get("Last-Event-ID", "")))
        script = self.scripts[min(len(self.asked), len(self.scripts)) - 1]
        reply = web.StreamResponse()
        await script(request, reply)
        return reply


@asynccontextmanager
async def serving(*nodes: Node, **settings: float) -> AsyncIterator[KvnodeClient]:
    servers = []
    for node in nodes:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", node.handle)
        servers.append(TestServer(app))
        await servers[-1].start_server()
    async with KvnodeClient([str(s.make_url("/")) for s in servers], **settings) as client:
        yield client
    for server in servers:
        await server.close()


def change(event_id: str, key: str = "a") -> bytes:
    entry = {"LockIndex": 0, "Key": key, "Flags": 7, "Value": "aGk=", "CreateIndex": 1,
             "ModifyIndex": 2}  # fmt: skip
    data = {
        "Index": int(event_id.partition(".")[0]),
        "By": "put",
        "Key": key,
        "New": entry,
        "Old": None,
    }
    return f"id: {event_id}\nevent: set\ndata: {json.dumps(data)}\n\n".encode()


def telling(*parts: bytes, then: str = "end") -> Script:
    async def script(request: web.Request, reply: web.StreamResponse) -> None:
        await reply.prepare(request)
        for part in parts:
            await reply.write(part)
        if then == "break":
            assert request.transport is not None
            request.transport.abort()
        elif then == "silence":
            await asyncio.sleep(30)

    return script


def refusing(status: int, text: str) -> Script:
    async def script(_request: web.Request, _reply: web.StreamResponse) -> None:
        raise _refusal(status, text)

    return script


def _refusal(status: int, text: str) -> web.HTTPException:
    class Refusal(web.HTTPException):
        status_code = status

    return Refusal(text=text)


async def take(feed: ChangeFeed, count: int) -> list[str]:
    found = []
    async with asyncio.timeout(10):
        async for item in feed:
            found.append(item.event_id)
            if len(found) == count:
                break
    return found


async def test_changes_come_as_values() -> None:
    node = Node(telling(b"event: start\nid: 4\ndata: {}\n\n", change("5"), then="silence"))
    async with serving(node) as client, client.changes("a/ç") as feed:
        item = await anext(feed)
    assert (item.key, item.index, item.event_id, item.by, item.old) == ("a", 5, "5", "put", None)
    assert item.new is not None
    assert (item.new.value, item.new.flags) == (b"hi", 7)
    assert node.asked == [("/v1/watch/a/%C3%A7", "")]


@pytest.mark.parametrize("then", ["end", "break"])
async def test_it_goes_on_at_the_next_node_from_the_last_id(then: str) -> None:
    one = Node(telling(change("5"), change("6.1"), then=then))
    two = Node(telling(change("6"), change("7"), then="silence"))
    async with serving(one, two) as client, client.changes(since=4) as feed:
        assert await take(feed, 4) == ["5", "6.1", "6", "7"]
        assert (feed.position, feed.reconnects) == ("7", 1)
    assert [one.asked[0][1], two.asked[0][1]] == ["4", "6.1"]


async def test_half_an_event_is_no_event() -> None:
    whole = change("6")
    node = Node(telling(change("5"), whole[: len(whole) // 2]), telling(whole, then="silence"))
    async with serving(node) as client, client.changes(since=4) as feed:
        assert await take(feed, 2) == ["5", "6"]
    assert [last for _, last in node.asked] == ["4", "5"]


async def test_a_heartbeat_moves_the_position_on() -> None:
    node = Node(telling(b": up to date\nid: 90\n\n"), telling(change("91"), then="silence"))
    async with serving(node) as client, client.changes(since=4) as feed:
        assert await take(feed, 1) == ["91"]
    assert [last for _, last in node.asked] == ["4", "90"]


async def test_a_silent_node_is_left() -> None:
    one, two = (
        Node(telling(change("5"), then="silence")),
        Node(telling(change("6"), then="silence")),
    )
    async with serving(one, two) as client:
        feed = client.changes(since=4)
        feed._timeout = feed._timeout.__class__(sock_read=0.2)
        async with feed:
            assert await take(feed, 2) == ["5", "6"]


async def test_a_node_that_has_lost_its_leader_is_left() -> None:
    """It may be cut off alone, and would tell nothing for as long as that lasts."""
    lost = b": no leader: there may be more\nid: 5\n\n"
    one = Node(telling(change("5"), lost, lost, then="silence"))
    two = Node(telling(change("6"), then="silence"))
    async with serving(one, two) as client, client.changes(since=4) as feed:
        assert await take(feed, 2) == ["5", "6"]


async def test_refusals_that_pass_are_tried_again() -> None:
    node = Node(
        refusing(500, "No cluster leader"),
        refusing(500, "server overloaded, try again: too many"),
        telling(change("5"), then="silence"),
    )
    async with serving(node) as client, client.changes(since=4) as feed:
        assert await take(feed, 1) == ["5"]


async def test_a_node_that_is_down_is_passed_over(unused_tcp_port: int) -> None:
    node = Node(telling(change("5"), then="silence"))
    async with serving(node) as client:
        client._bases.insert(0, client._bases[0].with_port(unused_tcp_port))
        async with client.changes(since=4) as feed:
            assert await take(feed, 1) == ["5"]


async def test_a_compacted_point_ends_it() -> None:
    text = "index 4 is compacted: the history begins at 90"
    async with serving(Node(refusing(410, text))) as client, client.changes(since=4) as feed:
        with pytest.raises(Compacted) as caught:
            await anext(feed)
    assert (caught.value.index, caught.value.oldest) == (4, 90)
    assert str(caught.value) == text


async def test_a_reader_that_was_overtaken_is_told_so() -> None:
    document = {"Error": "…", "Index": 5, "Oldest": 70, "Newest": 99}
    last = f"event: compacted\ndata: {json.dumps(document)}\n\n".encode()
    async with (
        serving(Node(telling(change("5"), last))) as client,
        client.changes(since=4) as feed,
    ):
        assert await take(feed, 1) == ["5"]
        with pytest.raises(Compacted, match="the history begins at 70"):
            await anext(feed)


async def test_the_future_is_an_error_too() -> None:
    text = "index 99 lies in the future: this cluster is at 7"
    async with serving(Node(refusing(410, text))) as client, client.changes(since=99) as feed:
        with pytest.raises(Compacted, match="lies in the future"):
            await anext(feed)


async def test_a_mistake_is_not_tried_again() -> None:
    node = Node(refusing(400, "Invalid index"))
    async with serving(node) as client, client.changes() as feed:
        with pytest.raises(BadRequest, match="Invalid index"):
            await anext(feed)
    assert len(node.asked) == 1
    async with serving(node) as client:
        with pytest.raises(BadRequest):
            client.changes("/a")


async def test_what_is_no_feed_is_refused() -> None:
    for nonsense in (b"event: set\ndata: {}\n\n", b"event: set\ndata: x\n\n", b"\xff\n\n"):
        async with serving(Node(telling(nonsense))) as client, client.changes() as feed:
            with pytest.raises(RemoteProtocolError):
                await anext(feed)


async def test_the_initial_state_comes_first() -> None:
    entry = (b'event: entry\ndata: {"LockIndex":0,"Key":"a","Flags":0,"Value":null,'
             b'"CreateIndex":1,"ModifyIndex":2}\n\n')  # fmt: skip
    ready = b"event: ready\nid: 9\ndata: {}\n\n"
    node = Node(telling(entry, ready, change("10"), then="silence"))
    async with serving(node) as client, client.changes(initial=True) as feed:
        first = await anext(feed)
        assert (first.by, first.key, first.event_id, feed.ready) == ("initial", "a", "", False)
        assert (await anext(feed)).event_id == "10"
        assert feed.ready
    assert node.asked[0][0] == "/v1/watch/?initial="


async def test_history_and_the_past() -> None:
    entry = {"LockIndex": 0, "Key": "a", "Flags": 0, "Value": "aGk=", "CreateIndex": 1,
             "ModifyIndex": 2}  # fmt: skip
    document = [
        {"Index": 3, "By": "delete", "Entry": None},
        {"Index": 2, "By": None, "Entry": entry},
    ]
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        if "as_of" in request.query:
            return web.json_response([entry])
        headers = {"X-Kvnode-More": "true", "X-Kvnode-Oldest-Index": "2"}
        return web.json_response(document, headers=headers)

    node = Node()
    node.handle = handler  # type: ignore[method-assign]
    async with serving(node) as client:
        found = await client.history("a", limit=2)
        pair = await client.get_as_of("a", 2)
    assert [(r.index, r.by, r.pair and r.pair.value) for r in found.revisions] == [
        (3, "delete", None),
        (2, "", b"hi"),
    ]
    assert (found.complete, found.oldest_index) == (False, 2)
    assert pair is not None
    assert asked == ["/v1/kv/a?history=&limit=2", "/v1/kv/a?as_of=2"]


@given(cuts=st.lists(st.integers(0, 200), max_size=20))
def test_events_do_not_depend_on_where_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b": beat\nid: 3\n\n" + change("5") + b"data: a\ndata: b\nretry: 3\n\n"
    parser = EventParser()
    found: list[Event] = []
    at = 0
    for cut in (*sorted(cuts), len(stream)):
        found += parser.feed(stream[at:cut])
        at = max(at, cut)
    assert found[0] == Event("", "3", "", "beat")
    assert (found[1].name, found[1].id) == ("set", "5")
    assert found[2] == Event("", "", "a\nb", "")
    assert len(found) == 3

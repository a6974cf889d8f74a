"""Answers in chunks and bodies in files: bounded, ended properly, cut when they cannot be."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from kvnode.http.messages import Request, Response, text
from kvnode.http.router import Route, Router
from kvnode.http.streams import Stream
from tests.conformance.wire import read_answer
from tests.http.conftest import Node, Start


class Source:
    """A stream that a test drives and looks at."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.made = 0
        self.ended = ""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        self.ended = "closed"
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                self.made += 1
                yield event
            self.ended = "finished"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise

    def stream(self, *, endless: bool) -> Stream:
        return Stream(200, b"Content-Type: text/event-stream\r\n", self.chunks(), endless)


def serve(node: Node, *routes: Route) -> None:
    """Put further routes into a running server."""
    node.server._app._router = Router((*node.server.router.routes, *routes))


def stream_route(source: Source, *, endless: bool) -> Route:
    async def handler(_request: Request) -> Stream:
        return source.stream(endless=endless)

    return Route("/flow", ("GET",), handler)


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)


GET = b"GET /flow HTTP/1.1\r\nHost: x\r\n\r\n"


async def ask(node: Node) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await node.connect()
    writer.write(GET)
    return reader, writer


async def test_a_finite_stream_arrives_whole_and_the_connection_is_kept(node: Node) -> None:
    source = Source()
    serve(node, stream_route(source, endless=False))
    reader, writer = await ask(node)
    for event in (b"a" * 70_000, b"", b"b", None):
        source.events.put_nowait(event)
    answer = await read_answer(reader)
    assert answer.body == b"a" * 70_000 + b"b"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["x-kvnode-node"] == "kvnode-0"
    assert source.ended == "finished"
    writer.write(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await read_answer(reader)).status == 200
    assert node.server.recorder.counts["/flow", "GET", 200] == 1


async def test_the_head_of_a_stream_comes_before_its_first_chunk(node: Node) -> None:
    source = Source()
    serve(node, stream_route(source, endless=True))
    reader, _ = await ask(node)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200 ")
    source.events.put_nowait(b"data: 1\n\n")
    assert await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 5)


async def test_a_client_that_hangs_up_ends_the_stream(node: Node) -> None:
    source = Source()
    serve(node, stream_route(source, endless=True))
    _, writer = await ask(node)
    gate = node.server.gate
    await until(lambda: gate.streams == 1)
    assert gate.requests == 0, "it takes no place among the requests"
    writer.close()
    await until(lambda: source.ended == "cancelled")
    await until(lambda: gate.streams == 0)
    assert gate.requests == 0


async def test_a_stream_that_fails_is_cut_and_not_ended(node: Node) -> None:
    """The client must not take a half for the whole."""
    source = Source()
    serve(node, stream_route(source, endless=False))
    reader, _ = await ask(node)
    source.events.put_nowait(b"half")
    source.events.put_nowait(RuntimeError("broken"))
    received = await asyncio.wait_for(_read_all(reader), 5)
    assert b"half" in received
    assert not received.endswith(b"0\r\n\r\n")
    await until(lambda: node.server.gate.requests == 0)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while chunk := await reader.read(65_536):
            received += chunk
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize("endless", [True, False])
async def test_a_client_that_does_not_read_holds_one_chunk_and_is_cut(
    start: Start, endless: bool
) -> None:
    node = await start(write_timeout_s=0.4)
    source = Source()
    serve(node, stream_route(source, endless=endless))
    for _ in range(200):
        source.events.put_nowait(b"x" * 100_000)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", node.server.port))
    client.sendall(GET)
    gate = node.server.gate
    await until(lambda: gate.answer_bytes > 0)
    await until(lambda: source.ended == "closed" and gate.connections == 0)
    assert source.made < 60, "it went on without being read"
    assert (gate.answer_bytes, gate.requests, gate.streams) == (0, 0, 0)
    client.close()


async def test_endless_streams_are_bounded(start: Start) -> None:
    node = await start(streams_max=1)
    source, second = Source(), Source()
    serve(node, stream_route(source, endless=True))
    await ask(node)
    await until(lambda: node.server.gate.streams == 1)
    serve(node, stream_route(second, endless=True))
    refused = await node.wire("GET", "/flow")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert second.made == 0


async def test_closing_ends_an_endless_stream_properly_and_at_once(start: Start) -> None:
    node = await start(close_grace_s=30.0)
    source = Source()
    serve(node, stream_route(source, endless=True))
    reader, _ = await ask(node)
    source.events.put_nowait(b"data: 1\n\n")
    await until(lambda: source.made == 1)
    began = asyncio.get_running_loop().time()
    closing = asyncio.create_task(node.server.close())
    answer = await asyncio.wait_for(read_answer(reader), 5)
    assert answer.body == b"data: 1\n\n"
    await closing
    assert asyncio.get_running_loop().time() - began < 15.0, "it waited for the grace to pass"
    assert source.ended == "cancelled"


async def test_head_of_a_stream_sends_no_body(node: Node) -> None:
    source = Source()
    serve(node, stream_route(source, endless=True))
    answer = await node.wire("HEAD", "/flow")
    assert (answer.status, answer.body, source.made) == (200, b"", 0)


async def test_an_http_1_0_client_gets_the_stream_and_a_closed_connection(node: Node) -> None:
    source = Source()
    serve(node, stream_route(source, endless=False))
    reader, writer = await node.connect()
    writer.write(b"GET /flow HTTP/1.0\r\n\r\n")
    source.events.put_nowait(b"whole")
    source.events.put_nowait(None)
    received = await asyncio.wait_for(_read_all(reader), 5)
    assert received.endswith(b"\r\n\r\nwhole")


class Sink:
    """A route that takes an upload."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.hold: asyncio.Event | None = None

    async def handler(self, request: Request) -> Response:
        assert request.upload is not None
        assert request.body == b""
        if self.hold is not None:
            await self.hold.wait()
        self.bodies.append(request.upload.file.read())
        assert len(self.bodies[-1]) == request.upload.size
        return text(200, "stored")

    def route(self) -> Route:
        return Route("/v1/sink", ("PUT",), self.handler, upload=("PUT",))


CHUNKED = {"Transfer-Encoding": "chunked", "Content-Length": ""}


async def put_chunked(node: Node, chunks: list[bytes], *, end: bool = True) -> Any:
    reader, writer = await node.connect()
    writer.write(b"PUT /v1/sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for chunk in chunks:
        writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    if end:
        writer.write(b"0\r\n\r\n")
    return await asyncio.wait_for(read_answer(reader), 10)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_an_upload_arrives_whole(start: Start, size: int, tmp_path: Any) -> None:
    node = await start(spool_dir=str(tmp_path / "spool"))
    sink = Sink()
    serve(node, sink.route())
    body = os.urandom(size)
    assert (await node.wire("PUT", "/v1/sink", body)).text == "stored"
    pieces = [body[at : at + 50_000] for at in range(0, size, 50_000)]
    assert (await put_chunked(node, pieces)).text == "stored"
    assert sink.bodies == [body, body]
    assert node.server.gate.body_bytes == 0
    assert list((tmp_path / "spool").iterdir()) == [], "the files have no names"


async def test_an_upload_above_the_limit_is_refused_announced_or_not(start: Start) -> None:
    node = await start(upload_bytes_max=2_000_000)
    sink = Sink()
    serve(node, sink.route())
    announced = await node.wire("PUT", "/v1/sink", b"x" * 2_000_001)
    assert announced.status == 413
    assert "upload_bytes_max" in announced.text
    assert (await put_chunked(node, [b"x" * 500_000] * 5, end=False)).status == 413
    assert sink.bodies == []
    assert node.server.gate.body_bytes == 0


async def test_uploads_are_few_at_a_time(start: Start) -> None:
    node = await start(uploads_max=1)
    sink = Sink()
    sink.hold = asyncio.Event()
    serve(node, sink.route())
    first = asyncio.create_task(put_chunked(node, [b"1"]))
    await until(lambda: node.server.gate.requests == 1)
    await asyncio.sleep(0.05)
    refused = await node.wire("PUT", "/v1/sink", b"2")
    assert (refused.status, refused.headers["retry-after"]) == (500, "1")
    sink.hold.set()
    assert (await first).status == 200
    assert sink.bodies == [b"1"]


async def test_an_upload_may_be_slow_but_must_not_stop(start: Start) -> None:
    node = await start(receive_timeout_s=0.3)
    sink = Sink()
    serve(node, sink.route())
    reader, writer = await node.connect()
    writer.write(b"PUT /v1/sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(6):
        writer.write(b"1\r\nx\r\n")
        await asyncio.sleep(0.1)  # longer in all than one time-out
    assert (await asyncio.wait_for(read_answer(reader), 5)).status == 408
    assert sink.bodies == []


async def test_an_upload_leaves_the_last_space_alone(start: Start, tmp_path: Any) -> None:
    """RC-70: the log needs it."""
    node = await start(spool_dir=str(tmp_path), spool_reserve_bytes=1 << 60)
    sink = Sink()
    serve(node, sink.route())
    refused = await node.wire("PUT", "/v1/sink", b"x")
    assert refused.status == 500
    assert "no room" in refused.text
    assert sink.bodies == []


async def test_a_client_that_hangs_up_during_an_upload_leaves_nothing(start: Start) -> None:
    node = await start(uploads_max=1)
    sink = Sink()
    serve(node, sink.route())
    _, writer = await node.connect()
    writer.write(b"PUT /v1/sink HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nxx")
    await until(lambda: node.server.gate.body_bytes == 2)
    writer.close()
    await until(lambda: node.server.gate.body_bytes == 0 and node.server.gate.requests == 0)
    assert (await node.wire("PUT", "/v1/sink", b"next")).text == "stored"
    assert sink.bodies == [b"next"]

"""The lean shell, byte by byte over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.conformance.wire import Answer, read_answer
from tests.http.conftest import Node, Start

HOST = b"Host: x\r\n"


def request(method: str, path: str, body: bytes | None = None, extra: bytes = b"") -> bytes:
    length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
    line = f"{method} {path} HTTP/1.1\r\n".encode()
    return line + HOST + length + extra + b"\r\n" + (body or b"")


async def talk(node: Node, data: bytes, answers: int = 1) -> list[Answer]:
    reader, writer = await node.connect()
    writer.write(data)
    read = [await read_answer(reader) for _ in range(answers)]
    writer.close()
    return read


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0)


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""


async def test_kv_requests_take_the_lean_path_and_others_do_not(node: Node) -> None:
    await talk(node, request("PUT", "/v1/kv/a", b"1") + request("GET", "/kv/a"), 2)
    assert node.server.recorder.fast == 2
    await talk(node, request("GET", "/v1/status/leader"))
    assert node.server.recorder.fast == 2


async def test_the_lean_path_can_be_turned_off(start: Start) -> None:
    node = await start(fast_path=False)
    assert (await talk(node, request("PUT", "/v1/kv/a", b"1")))[0].body == b"true"
    assert node.server.recorder.fast == 0


@pytest.mark.parametrize(
    "message",
    [
        request("PUT", "/v1/kv/a?flags=3", b"hello\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
        request("POST", "/kv/a", b"x" * 40),
        request("DELETE", "/v1/kv/a"),
        request("GET", "/v1/kv/a?raw"),
        request("PUT", "/v1/kv/a", b""),
    ],
)
async def test_a_request_may_arrive_split_at_every_byte(node: Node, message: bytes) -> None:
    await talk(node, request("PUT", "/v1/kv/a", b"old"))
    whole = (await talk(node, message))[0]
    fast = node.server.recorder.fast
    for at in range(1, len(message)):
        reader, writer = await node.connect()
        writer.write(message[:at])
        await asyncio.sleep(0)
        writer.write(message[at:])
        answer = await read_answer(reader)
        assert (answer.status, len(answer.body) > 0) == (whole.status, len(whole.body) > 0)
        writer.close()
    assert node.server.recorder.fast == fast + len(message) - 1


async def test_a_request_may_arrive_byte_by_byte(node: Node) -> None:
    reader, writer = await node.connect()
    message = request("PUT", "/v1/kv/a", b"hello") + request("GET", "/v1/kv/a?raw")
    for i in range(len(message)):
        writer.write(message[i : i + 1])
        await writer.drain()
        await asyncio.sleep(0)
    assert (await read_answer(reader)).body == b"true"
    assert (await read_answer(reader)).body == b"hello"
    writer.close()


async def test_pipelined_requests_are_answered_in_order(node: Node) -> None:
    data = b""
    for i in range(50):
        data += request("PUT", f"/v1/kv/k{i}", b"%d" % i) + request("GET", f"/v1/kv/k{i}?raw")
    answers = await talk(node, data, 100)
    assert [answer.body for answer in answers[::2]] == [b"true"] * 50
    assert [answer.body for answer in answers[1::2]] == [b"%d" % i for i in range(50)]


async def test_a_write_holds_up_what_was_pipelined_behind_it(node: Node) -> None:
    """RFC 9112 §9.3.2: only safe methods may run side by side."""
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1") + request("GET", "/v1/kv/a?raw"))
    await until(lambda: node.replica.commands)
    await asyncio.sleep(0.01)
    assert node.replica.reads == []
    node.replica.release()
    assert (await read_answer(reader)).body == b"true"
    assert (await read_answer(reader)).body == b"1"
    writer.close()


async def test_reads_run_side_by_side_and_leave_in_order(node: Node) -> None:
    await talk(node, request("PUT", "/v1/kv/a", b"1") + request("PUT", "/v1/kv/b", b"2"), 2)
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("GET", "/v1/kv/a?raw") + request("GET", "/v1/kv/b?raw"))
    await until(lambda: len(node.replica.held or ()) == 2)
    first, second = node.replica.held
    second()
    await asyncio.sleep(0.01)
    first()
    node.replica.held = None
    assert (await read_answer(reader)).body == b"1"
    assert (await read_answer(reader)).body == b"2"
    writer.close()


async def test_pipelining_is_bounded(start: Start) -> None:
    """RC-67: the rest waits in the buffer and then in the socket."""
    node = await start(pipeline_max=4)
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("GET", "/v1/kv/a") * 100)
    await until(lambda: len(node.replica.reads) == 4)
    await asyncio.sleep(0.05)
    assert len(node.replica.reads) == 4
    node.replica.release()
    for _ in range(100):
        assert (await read_answer(reader)).status == 404
    writer.close()


async def test_waiting_requests_stop_the_reading(start: Start) -> None:
    """RC-67: a client cannot pile up bytes behind a request in progress."""
    node = await start()
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1"))
    body = b"x" * 500_000
    writer.write(request("PUT", "/v1/kv/b", body) * 20)
    await asyncio.sleep(0.1)
    assert node.server.gate.body_bytes < 1_500_000
    node.replica.release()
    for _ in range(21):
        assert (await read_answer(reader)).body == b"true"
    writer.close()


async def test_an_odd_request_takes_the_connection_to_the_full_shell(node: Node) -> None:
    """Also in the middle of a pipeline, with every byte behind it."""
    data = (
        request("PUT", "/v1/kv/a", b"1")
        + request("GET", "/v1/status/leader")
        + request("GET", "/v1/kv/a?raw")
        + request("PUT", "/v1/kv/a", b"22")
        + request("GET", "/kv/a")
    )
    answers = await talk(node, data, 5)
    assert [a.body for a in answers] == [b"true", b'"10.0.0.1:8300"', b"1", b"true", b"22"]
    assert node.server.recorder.fast == 1


@pytest.mark.parametrize("at", [1, 4, 5, 12, 30])
async def test_an_odd_request_may_arrive_split(node: Node, at: int) -> None:
    reader, writer = await node.connect()
    message = request("GET", "/v1/status/leader")
    writer.write(message[:at])
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.write(message[at:])
    assert (await read_answer(reader)).status == 200
    writer.close()


async def test_an_odd_request_waits_for_the_answers_before_it(node: Node) -> None:
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1") + request("GET", "/v1/status/leader"))
    await until(lambda: node.replica.commands)
    node.replica.release()
    assert (await read_answer(reader)).body == b"true"
    assert (await read_answer(reader)).body == b'"10.0.0.1:8300"'
    writer.close()


async def test_chunked_bodies_are_stored_whole(node: Node) -> None:
    head = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    data = head + b"5\r\nhello\r\n1;x=y\r\n \r\n5\r\nworld\r\n0\r\n\r\n" + request("GET", "/kv/a")
    answers = await talk(node, data, 2)
    assert [a.body for a in answers] == [b"true", b"hello world"]


async def test_expect_100_continue_is_answered(node: Node) -> None:
    reader, writer = await node.connect()
    writer.write(
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ok")
    assert (await read_answer(reader)).body == b"true"
    writer.close()


async def test_connection_close_is_honoured(node: Node) -> None:
    reader, writer = await node.connect()
    writer.write(request("GET", "/v1/kv/a", extra=b"Connection: close\r\n"))
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    assert await until_closed(reader) == b""
    writer.close()


async def test_a_client_may_close_its_side_after_asking(node: Node) -> None:
    """``printf … | nc`` does."""
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1") + request("GET", "/v1/kv/a?raw"))
    writer.write_eof()
    await asyncio.sleep(0.02)
    node.replica.release()
    assert (await read_answer(reader)).body == b"true"
    assert (await read_answer(reader)).body == b"1"
    assert await until_closed(reader) == b""
    writer.close()


async def test_a_client_that_hangs_up_does_not_undo_its_write(node: Node) -> None:
    """Style §7: it cancels its waiting, not its proposal."""
    node.replica.held = []
    _, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1"))
    await until(lambda: node.replica.commands)
    writer.transport.abort()
    await asyncio.sleep(0.02)
    node.replica.release()
    assert node.replica.store.count() == 1
    assert (node.server.gate.requests, node.server.gate.body_bytes) == (0, 0)
    await until(lambda: not node.server.gate.connections)


# --- heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        b"PUT /v1/kv/a HTTP/9.9\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
        b"PUT /v1/kv/a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_a_malformed_request_stores_nothing(node: Node, data: bytes) -> None:
    reader, writer = await node.connect()
    writer.write(data)
    writer.write_eof()
    raw = await until_closed(reader)
    assert raw == b"" or raw.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    writer.close()
    assert node.replica.commands == []


async def test_a_length_and_chunks_together_are_refused(node: Node) -> None:
    """RFC 9112 §6.1: the classic of request smuggling; here the chunks count or it is refused."""
    data = (
        b"PUT /v1/kv/a HTTP/1.1\r\n"
        + HOST
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /v1/kv/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    )
    reader, writer = await node.connect()
    writer.write(data)
    assert (await read_answer(reader)).status == 400
    writer.close()
    assert node.replica.commands == []


async def test_a_body_longer_than_announced_is_not_part_of_the_value(node: Node) -> None:
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"12")[:-1] + b"2" + b"EXTRA\r\n\r\n")
    assert (await read_answer(reader)).body == b"true"
    assert (await read_answer(reader)).status == 400
    writer.close()
    assert node.replica.store.get(b"a").value == b"12"  # type: ignore[union-attr]


async def test_a_body_shorter_than_announced_stores_nothing(node: Node) -> None:
    for extra in (b"", b"Expect: x\r\n"):
        _, writer = await node.connect()
        writer.write(request("PUT", "/v1/kv/a", b"123456", extra)[:-1])
        await until(lambda: node.server.gate.body_bytes > 0)
        writer.close()
        await writer.wait_closed()
        await until(lambda: node.server.gate.body_bytes == 0)
        assert node.replica.commands == []


# --- bounds ---------------------------------------------------------------------------------


async def test_a_long_url_is_414_and_a_long_head_431(start: Start) -> None:
    node = await start(url_bytes_max=1000, header_bytes_max=2000)
    url = request("GET", "/v1/kv/" + "a" * 1000)
    head = request("GET", "/v1/kv/a", extra=b"X: " + b"y" * 2000 + b"\r\n")
    for data, status in ((url, 414), (head, 431), (url[:1001], 414), (head[:2001], 431)):
        reader, writer = await node.connect()
        writer.write(data)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_slow_head_is_cut(start: Start) -> None:
    """Slowloris: the time counts from the first byte, later bytes do not extend it."""
    node = await start(receive_timeout_s=0.3)
    reader, writer = await node.connect()
    message = request("GET", "/v1/kv/abcdefgh")

    async def drip() -> None:
        for i in range(len(message)):
            writer.write(message[i : i + 1])
            await asyncio.sleep(0.1)

    task = asyncio.create_task(drip())
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    task.cancel()
    writer.close()


@pytest.mark.parametrize("fast_path", [True, False])
async def test_a_slow_body_is_cut_and_nothing_stored(start: Start, fast_path: bool) -> None:
    node = await start(receive_timeout_s=0.2, fast_path=fast_path)
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"123")[:-1])
    assert (await read_answer(reader)).status == 408
    writer.close()
    assert node.replica.commands == []


async def test_an_idle_connection_is_closed(start: Start) -> None:
    node = await start(idle_timeout_s=0.1)
    reader, writer = await node.connect()
    assert await until_closed(reader) == b""
    writer.close()


async def test_a_request_in_progress_is_not_idle(start: Start) -> None:
    node = await start(idle_timeout_s=0.1)
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("GET", "/v1/kv/a"))
    await asyncio.sleep(0.8)
    node.replica.release()
    assert (await read_answer(reader)).status == 404
    writer.close()


async def test_a_client_that_takes_nothing_is_cut(start: Start) -> None:
    node = await start(write_timeout_s=0.2)
    value = b"x" * 500_000
    await talk(node, request("PUT", "/v1/kv/a", value))
    reader, writer = await node.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(request("GET", "/v1/kv/a?raw") * 100)
    await until(lambda: not node.server.gate.connections)
    assert len(node.replica.reads) < 100, "reading more while nobody takes the answers"
    writer.close()
    del reader


async def test_connections_above_the_bound_hear_so(start: Start) -> None:
    """RC-67; design §6: 500 under /v1, 429 elsewhere; those below the bound go on."""
    node = await start(connections_max=2)
    kept = [await node.connect() for _ in range(2)]
    for path, status in (("/v1/kv/a", 500), ("/kv/a", 429), ("/pods", 429)):
        reader, writer = await node.connect()
        writer.write(request("GET", path))
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["retry-after"]) == (status, "1")
        assert "2 connections are open" in answer.text
        assert await until_closed(reader) == b""
        writer.close()
        await asyncio.sleep(0.01)
    for reader, writer in kept:
        writer.write(request("GET", "/v1/kv/a"))
        assert (await read_answer(reader)).status == 404
        writer.close()
    await until(lambda: node.server.gate.connections == 0)


@pytest.mark.parametrize("fast_path", [True, False])
async def test_requests_above_the_bound_hear_so(start: Start, fast_path: bool) -> None:
    node = await start(requests_max=1, fast_path=fast_path)
    node.replica.held = []
    _, first = await node.connect()
    first.write(request("PUT", "/v1/kv/a", b"1"))
    await until(lambda: node.replica.commands)
    for path, status in (("/v1/kv/b", 500), ("/kv/b", 429)):
        answer = (await talk(node, request("PUT", path, b"2")))[0]
        assert answer.status == status
        assert "nothing was stored" in answer.text
    node.replica.release()
    assert len(node.replica.commands) == 1
    first.close()


async def test_bytes_above_the_bound_are_refused(start: Start) -> None:
    """RC-67: count and bytes."""
    node = await start(pending_bytes_max=100_000)
    node.replica.held = []
    _, first = await node.connect()
    first.write(request("PUT", "/v1/kv/a", b"x" * 100_000))
    await until(lambda: node.replica.commands)
    answer = (await talk(node, request("PUT", "/v1/kv/b", b"2")))[0]
    assert (answer.status, answer.headers["connection"]) == (500, "close")
    node.replica.release()
    await until(lambda: node.server.gate.body_bytes == 0)
    assert (await talk(node, request("PUT", "/v1/kv/b", b"2")))[0].status == 200
    first.close()


# --- closing --------------------------------------------------------------------------------


@pytest.mark.parametrize("fast_path", [True, False])
async def test_close_finishes_what_is_in_progress(start: Start, fast_path: bool) -> None:
    """RC-57."""
    node = await start(fast_path=fast_path)
    idle_reader, idle_writer = await node.connect()
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1"))
    await until(lambda: node.replica.commands)
    closing = asyncio.create_task(node.server.close())
    assert await until_closed(idle_reader) == b""
    assert not closing.done()
    node.replica.release()
    answer = await read_answer(reader)
    assert (answer.body, answer.headers["connection"]) == (b"true", "close")
    await closing
    for each in (writer, idle_writer):
        each.close()


async def test_close_does_not_wait_for_ever(start: Start) -> None:
    node = await start()
    node.replica.held = []
    reader, writer = await node.connect()
    writer.write(request("PUT", "/v1/kv/a", b"1"))
    await until(lambda: node.replica.commands)
    await asyncio.wait_for(node.server.close(), 5)
    assert await until_closed(reader) == b""
    writer.close()

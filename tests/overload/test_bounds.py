"""The HTTP port under clients that mean ill: bounded answers, bounded heads, and probes that get through."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from kvnode.http.gate import REFUSED_MAX, Gate
from tests.http.conftest import Node, Start, start

__all__ = ["start"]  # the fixture

VALUE = b"x" * 400_000


def silent(node: Node, requests: bytes) -> socket.socket:
    """A connection that asks and never reads."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", node.server.port))
    made.sendall(requests)
    made.setblocking(False)
    return made


def get(path: str, extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode()


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)


async def store_value(node: Node) -> None:
    assert (await node.wire("PUT", "/v1/kv/big", body=VALUE)).body == b"true"


@pytest.mark.parametrize("fast_path", [True, False])
async def test_answers_that_nobody_takes_are_bounded_and_make_room(
    start: Start, fast_path: bool
) -> None:
    """RC-67. Before there was a bound, a hundred clients that did not read cost half a gigabyte."""
    bound = 4_000_000
    node = await start(fast_path=fast_path, pending_bytes_max=bound)
    await store_value(node)
    gate = node.server.gate
    clients = [silent(node, get("/v1/kv/big?raw") * 16) for _ in range(40)]
    most = 0

    def watched() -> bool:
        nonlocal most
        most = max(most, gate.answer_bytes)
        return gate.rejected > 0 and 2 * gate.answer_bytes <= bound

    await until(watched)
    assert most <= bound + 2 * len(VALUE), most
    # Whoever reads is answered, in the end: the slowest were cut for it.
    answer = await node.wire("GET", "/v1/kv/big?raw")
    assert answer.status == 200
    assert answer.body == VALUE
    for client in clients:
        client.close()
    await until(lambda: gate.answer_bytes == 0)


@pytest.mark.parametrize("fast_path", [True, False])
async def test_a_read_whose_answer_has_no_room_is_told_to_come_back(
    start: Start, fast_path: bool
) -> None:
    """500 with Retry-After under /v1, 429 on our own routes: never a broken answer (design §6)."""
    node = await start(fast_path=fast_path, pending_bytes_max=600_000)
    await store_value(node)
    node.server.gate.answer_bytes = 300_000
    refused = await node.wire("GET", "/v1/kv/big?raw")
    assert (refused.status, refused.headers["retry-after"]) == (500, "1")
    refused = await node.wire("GET", "/kv/big")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert (await node.wire("PUT", "/v1/kv/small", body=b"1")).body == b"true"
    assert (await node.wire("GET", "/v1/kv/small?raw")).body == b"1"
    node.server.gate.answer_bytes = 0
    assert (await node.wire("GET", "/v1/kv/big?raw")).body == VALUE


@pytest.mark.parametrize("patient", [False, True])
async def test_a_head_that_drips_is_cut_in_the_full_shell_too(
    start: Start, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    """Aiohttp waits for ever, and ten thousand such clients are all the connections there are.

    What still drips meanwhile resets nothing, or the client might never see the answer.
    """
    monkeypatch.setattr("kvnode.http.app.LINGER_S", 60.0 if patient else 0.1)
    node = await start(receive_timeout_s=0.3)
    reader, writer = await node.connect()
    writer.write(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n")

    async def drip() -> None:
        while True:
            writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.05)

    task = asyncio.create_task(drip())
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    if patient:
        for _ in range(5):
            await asyncio.sleep(0.05)
            assert not writer.is_closing()
        writer.close()
    task.cancel()
    await until(lambda: node.server.gate.connections == 0)


async def test_a_kept_connection_may_idle_but_its_next_head_may_not_drip(start: Start) -> None:
    """The time of a head counts from its first byte, not from the answer before it."""
    node = await start(receive_timeout_s=0.4)
    reader, writer = await node.connect()
    for _ in range(2):
        writer.write(get("/v1/status/leader"))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        await asyncio.sleep(0.6)
    writer.write(b"GET /v1/sta")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408 ")


async def test_a_head_of_many_lines_is_refused_in_the_full_shell_too(start: Start) -> None:
    """Each line may be long and there may be many: both together must not be megabytes."""
    node = await start(header_bytes_max=4000, url_bytes_max=1000)
    reader, writer = await node.connect()
    writer.write(b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n")
    writer.write((b"X-A: " + b"v" * 900 + b"\r\n") * 8)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), answer


@pytest.mark.parametrize(("bound", "refused"), [(3, 3), (1000, 1000), (20_000, REFUSED_MAX)])
def test_those_that_are_refused_have_little_room(bound: int, refused: int) -> None:
    gate = Gate(connections_max=bound, requests_max=1, bytes_max=1)
    gate.connections = bound
    assert gate.connection_refusal() is None
    gate.connections = bound + refused
    assert gate.connection_refusal() is not None
    assert not gate.is_crowded
    gate.connections += 1
    assert gate.is_crowded


async def test_connections_beyond_those_that_are_refused_are_cut(start: Start) -> None:
    node = await start(connections_max=2)
    crowd = [await node.connect() for _ in range(4)]
    await until(lambda: node.server.gate.connections == 4)
    reader, writer = await node.connect()
    with suppress(ConnectionError):
        # Sooner than one that is to be told, and says nothing, is given up.
        assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    for _, kept in crowd:
        kept.close()


async def test_probes_get_through_when_all_connections_are_taken(start: Start) -> None:
    """A pod that is killed because it is busy makes the others busier."""
    node = await start(connections_max=3)
    taken = [await node.connect() for _ in range(3)]
    await until(lambda: node.server.gate.connections >= 3)
    refused = await node.wire("GET", "/v1/kv/a")
    assert refused.status == 500
    for path in ("/health/live", "/health/ready", "/metrics"):
        reader, writer = await node.connect()
        writer.write(get(path) + get("/v1/status/leader"))
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.count(b"HTTP/1.1 ") == 1, "one probe is let in, not a client behind it"
    for _, writer in taken:
        writer.close()


async def test_probes_get_through_when_too_many_requests_are_in_progress(start: Start) -> None:
    node = await start(requests_max=2)
    node.replica.held = []
    held = []
    for _ in range(2):
        _, writer = await node.connect()
        writer.write(get("/v1/kv/a"))
        held.append(writer)
    await until(lambda: node.server.gate.requests >= 2)
    assert (await node.wire("GET", "/v1/kv/a")).status == 500
    assert (await node.wire("GET", "/health/live")).status == 200
    assert (await node.wire("GET", "/metrics")).status == 200
    node.replica.release()

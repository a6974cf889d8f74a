"""The loader sends each request once and trusts no answer without its proof."""

import asyncio
from contextlib import suppress

import pytest

from benchmarks.loader import _load
from benchmarks.processes import HarnessError

REQUESTS = [b"PUT /%d HTTP/1.1\r\n\r\n" % number for number in range(100)]


async def loaded(answer: bytes, timeout_s: float = 5.0) -> tuple[int, list[bytes]]:
    """Return what the loader counted and what the server saw."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    seen.append(await reader.readuntil(b"\r\n\r\n"))
                    writer.write(answer)
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await _load(port, REQUESTS, "true", 8, timeout_s), seen


async def test_every_request_is_sent_exactly_once():
    count, seen = await loaded(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
    assert count == len(REQUESTS)
    assert sorted(seen) == sorted(REQUESTS)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse",
        b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\ntrue",
        b"HTTP/1.1 200 OK\r\n\r\ntrue",
    ],
    ids=["no proof", "bad status", "no length"],
)
async def test_an_answer_that_proves_nothing_ends_the_load(answer):
    with pytest.raises(HarnessError):
        await loaded(answer)


async def test_a_server_that_does_not_answer_is_given_up_in_time():
    with pytest.raises(TimeoutError):
        await loaded(b"", timeout_s=0.1)

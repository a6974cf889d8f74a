"""An HTTP client that does exactly what it is told, and knows what it has sent.

Ordinary client libraries send a request a second time when a kept connection breaks under it. In a
history of operations that would be a lie, so here: one request is written once, and an error says
whether a byte of it may have left.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def index(self) -> int:
        """What ``X-Kvnode-Index`` says."""
        return int(self.headers["x-kvnode-index"])


class NeverSent(Exception):
    """No byte of the request left: it certainly has no effect."""


class NoAnswer(Exception):
    """The request was sent, wholly or partly, and no whole answer came back."""


class Connection:
    """One kept connection to one address; opened when needed, dropped at the first trouble."""

    def __init__(self, make_socket: Callable[[], socket.socket], host: str, port: int) -> None:
        self._make_socket = make_socket
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, target: str, body: bytes = b"", *, timeout_s: float
    ) -> Answer:
        """Send one request, once, and wait for its answer.

        Raises:
            NeverSent: No connection within the time.
            NoAnswer: It broke or took too long after that.
        """
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                if self._streams is None or self._streams[0].at_eof():
                    self.close()
                    self._streams = await self._connect()
                reader, writer = self._streams
                head = f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\n"
                if body or method in {"PUT", "POST"}:
                    head += f"Content-Length: {len(body)}\r\n"
                sent = True
                writer.write(head.encode() + b"\r\n" + body)
                await writer.drain()
                answer = await _read_answer(reader)
        except (OSError, TimeoutError, EOFError, ValueError) as error:
            self.close()
            raise (NoAnswer if sent else NeverSent)(repr(error)) from error
        except asyncio.CancelledError:
            self.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        made = self._make_socket()
        try:
            await asyncio.get_running_loop().sock_connect(made, (self._host, self._port))
            return await asyncio.open_connection(sock=made, limit=16 << 20)
        except BaseException:
            made.close()
            raise

    def close(self) -> None:
        """Drop the connection. Idempotent."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head[:-4].split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    status = int(status_line.split(" ")[1])
    body = b""
    if status != 204:
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(status, headers, body)

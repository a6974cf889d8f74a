"""Answers that are not one piece: a route hands over an asynchronous generator, its chunks are sent.

A chunk is asked for only when the client has taken those before it, so a stream holds one chunk and what
the sockets hold, however long it is. The generator is closed when the stream ends, however it ends:
it can keep what it needs in ``try … finally``.

- The client hangs up: the generator gets ``CancelledError`` where it waits.
- The client does not read for ``write_timeout_s``, or the generator raises: the connection is cut, so
  that nobody takes half an answer for a whole one.
- The server closes: an *endless* stream ends there, properly, as if it had come to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from aiohttp import web

    from kvnode.http.context import HttpSettings
    from kvnode.http.gate import Gate

_LOG = structlog.get_logger("kvnode.http")

EVENT_STREAM_HEAD = (
    b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
)
"""Of server-sent events; the last line asks nginx not to hold them back."""


class Stream(NamedTuple):
    """An answer in chunks. What can be refused is refused before: its status is sent at once."""

    status: int
    head: bytes
    """As ``Response.head``."""
    chunks: AsyncGenerator[bytes, None]
    """Each at most 256 KiB, so that a client that does not read costs no more than that."""
    endless: bool = False
    """It ends when the client hangs up or the server closes. It takes no place among the requests in
    progress, but one of ``streams_max`` others."""


class Streams:
    """Sends streams, and ends the endless ones when the server closes."""

    def __init__(self, settings: HttpSettings, gate: Gate) -> None:
        """Remember the bounds."""
        self._settings = settings
        self._gate = gate
        self._closing = False
        self._endless: set[asyncio.Timeout] = set()

    def close(self) -> None:
        """End the endless streams; each of them still sends its end."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for scope in self._endless:
            scope.reschedule(now)

    async def send(
        self,
        request: web.BaseRequest,
        reply: web.StreamResponse,
        stream: Stream,
        cut: Callable[[], None],
    ) -> None:
        """Send head, chunks and end; raises nothing but ``CancelledError``.

        Args:
            request: What is answered.
            reply: Not prepared yet.
            stream: Closed afterwards, in any case.
            cut: Ends the connection at once.
        """
        try:
            await reply.prepare(request)
            request.writer.send_headers()  # at once: the first chunk of an endless one may be far off
            if request.method != "HEAD":
                await self._send_chunks(request, reply, stream, cut)
            async with asyncio.timeout(self._settings.write_timeout_s):
                await reply.write_eof()
        except ConnectionError:
            pass  # the client hung up between two chunks
        except TimeoutError:
            cut()
        except Exception as error:  # noqa: BLE001  # the status is out: all that is left is to cut
            _LOG.error("http_stream_failed", path=request.path, exc_info=error)
            cut()
        finally:
            await stream.chunks.aclose()

    async def _send_chunks(
        self,
        request: web.BaseRequest,
        reply: web.StreamResponse,
        stream: Stream,
        cut: Callable[[], None],
    ) -> None:
        if not stream.endless:
            await self._copy(request, reply, stream, cut)
            return
        scope = asyncio.timeout(0 if self._closing else None)
        self._gate.flow()
        try:
            async with scope:
                self._endless.add(scope)
                await self._copy(request, reply, stream, cut)
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._endless.discard(scope)
            self._gate.unflow()

    async def _copy(
        self,
        request: web.BaseRequest,
        reply: web.StreamResponse,
        stream: Stream,
        cut: Callable[[], None],
    ) -> None:
        gate = self._gate
        time = asyncio.get_running_loop().time
        async for chunk in stream.chunks:
            if not chunk:
                continue
            size = len(chunk)
            gate.answer_bytes += size
            gate.is_slow(reply, time(), cut)
            try:
                async with asyncio.timeout(self._settings.write_timeout_s):
                    await reply.write(chunk)
                    await request.writer.drain()
            finally:
                gate.is_quick(reply)
                gate.answer_bytes -= size

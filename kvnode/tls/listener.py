"""A listening socket that speaks TLS with the newest certificate, and knows what a plain connection is.

``loop.create_server(ssl=…)`` would keep the context of the start, and it drops whoever fails the handshake
without a word to anybody. Here each accepted socket waits for its first byte, which tells TLS from plain
text, and is then given to the loop with the context of that moment.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HANDSHAKE_BYTE = 0x16
"""The first byte of a TLS connection: a record of the handshake (RFC 8446 §5.1)."""
_ACCEPTS_PER_TURN = 16
_PAUSE_S = 0.5
"""How long nothing is accepted when the process has no file descriptor left."""
_LINGER_S = 1.0
"""For how long a refused client may take to read why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Somebody who did not get through the handshake."""

    host: str
    """IP address."""
    plain: bool
    """The first byte was no TLS."""
    reason: str


class TlsListener:
    """Listens on one port. Owned by one loop; ``start``, then ``close``."""

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        make_protocol: Callable[[], asyncio.Protocol],
        refused: Callable[[Refusal], None],
        *,
        plain_answer: Callable[[], bytes],
        allow_plain: Callable[[], bool] = lambda: False,
        handshake_timeout_s: float = 5.0,
        shutdown_timeout_s: float = 2.0,
        waiting_max: int = 256,
    ) -> None:
        """Make a listener that does not listen yet.

        Args:
            context: Gives the context for the next connection.
            make_protocol: Makes its protocol; called before the handshake, which may fail.
            refused: Told of everybody who was not let in, except those who went away by themselves.
            plain_answer: What a plain client is told before the connection ends.
            allow_plain: Whether plain connections are served too.
            handshake_timeout_s: From the accept to the first byte, and from there to the handshake's end.
            shutdown_timeout_s: How long a closing connection waits for the other end's good-bye.
            waiting_max: Connections in their handshake; the oldest gives way.
        """
        self._context = context
        self._make_protocol = make_protocol
        self._refused = refused
        self._plain_answer = plain_answer
        self._allow_plain = allow_plain
        self._handshake_timeout_s = handshake_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._waiting_max = waiting_max
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        """Those that gave way, until they have ended."""
        self._under_way = 0
        """Sockets that these hold."""
        self._timers: set[asyncio.TimerHandle] = set()
        self.port = 0
        """The port, once started."""

    async def start(self, host: str, port: int, backlog: int = 100) -> None:
        """Listen on every address of ``host``; port 0 takes a free one.

        Raises:
            OSError: An address cannot be bound.
        """
        rows = await self._loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, kind, proto, _, address in dict.fromkeys(rows):
                listening = socket.socket(family, kind, proto)
                self._sockets.append(listening)
                listening.setblocking(False)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind((address[0], self.port or port, *address[2:]))
                listening.listen(backlog)
                self.port = listening.getsockname()[1]
        except OSError:
            self.close()
            raise
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Stop listening and end the handshakes under way. Idempotent."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()
        for task in self._waiting:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until no handshake is under way."""
        if self._under_way:
            await asyncio.wait([*self._waiting, *self._leaving])

    @property
    def waiting(self) -> int:
        """Connections in their handshake."""
        return len(self._waiting)

    # -- one connection -----------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._under_way >= self._waiting_max + _ACCEPTS_PER_TURN:
                return  # those that gave way hold their sockets until the next turn
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._pause(listening)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(
                self._admit(accepted, str(address[0])), name="tls handshake"
            )
            self._waiting[task] = None
            self._under_way += 1
            task.add_done_callback(self._ended)
            if len(self._waiting) > self._waiting_max:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                self._leaving.add(oldest)
                oldest.cancel()

    def _pause(self, listening: socket.socket) -> None:
        self._loop.remove_reader(listening)

        def go_on() -> None:
            self._timers.discard(timer)
            self._loop.add_reader(listening, self._accept, listening)

        timer = self._loop.call_later(_PAUSE_S, go_on)
        self._timers.add(timer)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way -= 1
        self._waiting.pop(task, None)
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "a TLS handshake failed unexpectedly", "exception": error, "task": task}
            )

    async def _admit(self, accepted: socket.socket, host: str) -> None:
        given = False
        try:
            async with asyncio.timeout(self._handshake_timeout_s):
                first = await self._first_byte(accepted)
            if not first:
                return  # a probe that only wanted to know whether somebody listens
            plain = first[0] != HANDSHAKE_BYTE
            if plain and not self._allow_plain():
                self._refused(Refusal(host=host, plain=True, reason="no TLS"))
                await self._tell(accepted)
                return
            given = True
            await self._hand_over(accepted, plain=plain)
        except (ConnectionResetError, BrokenPipeError):
            pass  # a peer that dialled and no longer needs to: nobody was refused
        except TimeoutError:
            self._refused(Refusal(host=host, plain=False, reason="no handshake in time"))
        except ssl.SSLError as error:
            self._refused(Refusal(host=host, plain=False, reason=_why(error)))
        except OSError as error:
            reason = str(error) or type(error).__name__
            self._refused(Refusal(host=host, plain=False, reason=reason))
        finally:
            if not given:
                accepted.close()

    async def _hand_over(self, accepted: socket.socket, *, plain: bool) -> None:
        options: dict[str, Any] = {}
        if not plain:
            options = {
                "ssl": self._context(),
                "ssl_handshake_timeout": self._handshake_timeout_s,
                "ssl_shutdown_timeout": self._shutdown_timeout_s,
            }
        await self._loop.connect_accepted_socket(self._make_protocol, accepted, **options)

    async def _first_byte(self, accepted: socket.socket) -> bytes:
        """Wait for a byte and leave it where it is; nothing at the end of the stream."""
        while True:
            try:
                return accepted.recv(1, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                await self._readable(accepted)

    async def _readable(self, accepted: socket.socket) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()

        def readable() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(accepted, readable)
        try:
            await ready
        finally:
            self._loop.remove_reader(accepted)

    async def _tell(self, accepted: socket.socket) -> None:
        """Answer in plain text, and wait for the client to read it: closing with unread bytes is a reset."""
        with suppress(OSError, TimeoutError):
            accepted.recv(65536)
            accepted.send(self._plain_answer())
            accepted.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_LINGER_S):
                await self._readable(accepted)


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was refused: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()

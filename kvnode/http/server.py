"""The listening side: builds both shells, owns the connections, closes in good order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvnode.http.app import App
from kvnode.http.blocking import Blocking
from kvnode.http.fast import Hub
from kvnode.http.gate import Gate
from kvnode.http.kv import Backend
from kvnode.http.lists import Lists
from kvnode.http.metrics import Recorder, build_registry
from kvnode.http.table import build_router
from kvnode.tls import TlsListener

if TYPE_CHECKING:
    from kvnode.http.context import HttpContext

_BACKLOG = 1024
_HANDSHAKE_S = 10.0
"""For a client to begin its handshake, and to end it."""
_PLAIN_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)
"""What Go's server says, and so Consul's."""


class HttpServer:
    """One node's HTTP port. ``start``, then ``close``; not to be used again afterwards."""

    def __init__(self, context: HttpContext) -> None:
        """Build the parts; must be called with the loop running."""
        settings = context.settings
        self._settings = settings
        self.recorder = Recorder()
        self.gate = Gate(
            connections_max=settings.connections_max,
            requests_max=settings.requests_max,
            bytes_max=settings.pending_bytes_max,
            streams_max=settings.streams_max,
        )
        self._blocking = Blocking(context.replica, self.gate)
        backend = Backend(context.replica, Lists(settings), self._blocking)
        self.registry = build_registry(context, self.recorder, self.gate)
        self.router = build_router(context, backend, self.registry)
        self._app = App(context, self.router, self.recorder, self.gate)
        self._web_server = self._app.build_server()
        self._hub = Hub(settings, backend, self.recorder, self.gate, self._web_server)
        self._server: asyncio.Server | TlsListener | None = None
        self._tls, self._tls_refused = context.tls, context.tls_refused

    @property
    def port(self) -> int:
        """The port that is bound; useful after asking for port 0."""
        server = self._server
        assert server is not None, "not started"
        if isinstance(server, TlsListener):
            return server.port
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one.

        Raises:
            OSError: The address cannot be bound.
        """
        if self._tls is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                self._hub.make_connection, host, port, backlog=_BACKLOG
            )
        else:
            listener = TlsListener(
                self._tls,
                self._hub.make_connection,
                self._tls_refused,
                plain_answer=lambda: _PLAIN_ANSWER,
                handshake_timeout_s=_HANDSHAKE_S,
                waiting_max=self._settings.handshakes_max,
            )
            await listener.start(host, port, _BACKLOG)
            self._server = listener
        self._hub.start()

    async def close(self) -> None:
        """Stop listening, finish requests in progress for ``close_grace_s``, then cut the rest."""
        if self._server is None:
            return
        self._app.begin_close()
        self._server.close()
        self._hub.begin_close()
        self._blocking.close()
        self._web_server.pre_shutdown()
        await self.gate.wait_idle(self._settings.close_grace_s)
        self._hub.close()
        if isinstance(self._server, TlsListener):
            await self._server.wait_closed()
        await self._web_server.shutdown(timeout=0.1)
        self._server = None

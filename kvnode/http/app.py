"""The complete shell: every route over aiohttp's low-level server.

The low-level server, not ``web.Application``: aiohttp's router would decode and normalise the path
before we see it, and Consul's rules about paths are exact (spec §1.1). Here the request line arrives as
the client wrote it, and ``router`` decides everything.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from multidict import CIMultiDict

from kvnode.http import errors, kv
from kvnode.http.gate import LARGE_ANSWER_BYTES, LINGER_S
from kvnode.http.messages import TEXT_TYPE, Request, Response, header_pairs
from kvnode.http.router import Match, Router
from kvnode.http.streams import Stream, Streams
from kvnode.http.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kvnode.http.context import HttpContext, HttpSettings
    from kvnode.http.gate import Gate
    from kvnode.http.metrics import Recorder
    from kvnode.http.router import Route
    from kvnode.http.uploads import Upload

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_LOG = structlog.get_logger("kvnode.http")

SERVER = "kvnode"
"""The ``Server`` header of both shells."""
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"})
WRITES = frozenset({"PUT", "POST", "DELETE"})
_BAD_TARGET = Response(400, TEXT_TYPE, b"400 Bad Request: invalid request target")
_SLOW = Response(408, TEXT_TYPE, b"the request's body did not arrive in time; nothing was stored")
_SPARED = (b"/health/", b"/metrics")
"""Whoever asks whether an overloaded node lives must not be told to come back later."""
_OPEN = b"/health/"
"""Probes of a kubelet show no certificate."""
_NO_CERTIFICATE = Response(
    403,
    TEXT_TYPE,
    b"a client certificate is required, of the CA in this node's --tls-ca-file; nothing was stored\n",
)
_SLOW_HEAD = Response(408, TEXT_TYPE, b"the request did not arrive in time\n")
_LONG_URL = Response(414, TEXT_TYPE, b"the request line is too long; the setting is url_bytes_max")
_LONG_HEAD = Response(431, TEXT_TYPE, b"the request's head is too long\n")
_BROKEN = Response(400, TEXT_TYPE, b"the request's body is malformed; nothing was stored")


class App:
    """The request handler of the aiohttp shell."""

    def __init__(
        self, context: HttpContext, router: Router, recorder: Recorder, gate: Gate
    ) -> None:
        """Remember the parts."""
        self._settings = context.settings
        self._router = router
        self._recorder = recorder
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._streams = Streams(context.settings, gate)
        self._uploads = Uploads(context.settings, gate)
        self.closing = False
        """Set while the server closes: every answer then ends its connection."""

    def begin_close(self) -> None:
        """End what would not end by itself."""
        self.closing = True
        self._streams.close()

    def build_server(self) -> _Server:
        """Make the protocol factory; ``server()`` is one connection's protocol."""
        settings = self._settings
        return _Server(
            self,
            self._gate,
            access_log=None,
            keepalive_timeout=settings.idle_timeout_s,
            max_line_size=settings.url_bytes_max,
            max_field_size=settings.header_bytes_max,
            auto_decompress=False,  # the bytes sent are the value
        )

    @property
    def settings(self) -> HttpSettings:
        """The bounds and times of a connection."""
        return self._settings

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises."""
        started = self._loop.time()
        gate = self._gate
        taken = 0
        close = self.closing
        method = request.method
        label = "overload"
        response: Response | Stream
        raw_path, _, raw_query = _target(request).partition(b"?")
        v1 = not raw_path.startswith(b"/kv/") and raw_path.startswith(b"/v1")
        refusal = gate.refusal() if not raw_path.startswith(_SPARED) else None
        strange = self._settings.clients_verified and not raw_path.startswith(_OPEN)
        strange = strange and not request.get_extra_info("peercert")
        handler = request.protocol
        close |= isinstance(handler, _Handler) and handler.once
        gate.enter()
        try:
            if refusal is not None:
                close = True
                response = errors.refuse(refusal, v1=v1, write=method in WRITES)
            elif strange:
                label, response, close = "no_certificate", _NO_CERTIFICATE, True
            elif request.version < (1, 0) or not raw_path.startswith(b"/"):
                label, response, close = "bad_request", _BAD_TARGET, True
            else:
                found = self._router.find(method, raw_path, raw_query)
                if isinstance(found, Match):
                    label = found.route.path
                    if method in found.route.upload:
                        response, close = await self._take_upload(request, found, raw_query, close)
                    else:
                        body = await self._read_body(request, found, raw_query)
                        if isinstance(body, Response):
                            response, close = body, True
                        else:
                            taken = len(body)
                            gate.body_bytes += taken
                            response = await self._run(request, found, raw_query, body)
                else:
                    label, response = found
            if isinstance(response, Stream):
                response = await self._open(response, v1=v1)
            if isinstance(response, Stream):
                return await self._stream(request, response, label, started, close)
        finally:
            gate.leave()
            gate.body_bytes -= taken
        response = self._keep(response, v1=v1)
        counted = method if method in _METHODS else "OTHER"  # a label must stay bounded
        self._recorder.observe(label, counted, response.status, self._loop.time() - started)
        return self._reply(response, close=close or self.closing)

    async def _open(self, stream: Stream, *, v1: bool) -> Response | Stream:
        """Let an endless stream begin, unless there are too many."""
        refusal = self._gate.stream_refusal() if stream.endless else None
        if refusal is None:
            return stream
        await stream.chunks.aclose()
        return errors.refuse(refusal, v1=v1, write=False)

    async def _stream(
        self, request: web.BaseRequest, stream: Stream, label: str, started: float, close: bool
    ) -> web.StreamResponse:
        """Send an answer in chunks. A finite one is counted when it has ended."""
        reply = web.StreamResponse(status=stream.status, headers=self._headers(stream.head))
        if close or self.closing:
            reply.force_close()
        observe = self._recorder.observe
        if stream.endless:
            observe(label, request.method, stream.status, self._loop.time() - started)
        handler = request.protocol
        assert isinstance(handler, _Handler), "made by this server"
        try:
            await self._streams.send(request, reply, stream, handler.cut)
        finally:
            if not stream.endless:
                observe(label, request.method, stream.status, self._loop.time() - started)
        return reply

    async def _take_upload(
        self, request: web.BaseRequest, found: Match, raw_query: bytes, close: bool
    ) -> tuple[Response | Stream, bool]:
        """Receive a body into a file and run the handler; also tell whether to close afterwards."""
        length = request.content_length
        limit = self._settings.upload_bytes_max
        if length is not None and length > limit:
            return errors.too_large(length, limit, "upload_bytes_max", v1=found.route.v1), True
        await self._continue(request)
        async with self._uploads.receive(request, v1=found.route.v1) as upload:
            if isinstance(upload, Response):
                return upload, True
            return await self._run(request, found, raw_query, b"", upload), close

    async def _continue(self, request: web.BaseRequest) -> None:
        """Tell a client that asked first to go on and send the body."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request._payload_writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request._payload_writer.output_size = 0  # as aiohttp's own handler does

    def _keep(self, response: Response, *, v1: bool) -> Response:
        """Count a large answer, or refuse to keep it; ``_Handler`` gives it back when it was sent."""
        size = len(response.body)
        if size > LARGE_ANSWER_BYTES:
            refusal = self._gate.answer_refusal(size)
            if refusal is not None:
                return errors.refuse(refusal, v1=v1, write=False)
        return response

    async def _run(
        self,
        request: web.BaseRequest,
        found: Match,
        raw_query: bytes,
        body: bytes,
        upload: Upload | None = None,
    ) -> Response | Stream:
        route = found.route
        try:
            return await route.handler(
                Request(request.method, found.path, raw_query, request.headers, body, upload)
            )
        except Exception as error:  # noqa: BLE001  # turned into an answer, and logged when unknown
            return errors.refuse(error, v1=route.v1, write=request.method in WRITES)

    async def _read_body(
        self, request: web.BaseRequest, found: Match, raw_query: bytes
    ) -> bytes | Response:
        """Read a whole body, counting its bytes whether or not it said its length (spec §16)."""
        if not request.can_read_body:
            return b""
        route = found.route
        settings = self._settings
        limit = settings.value_bytes_max if route.large_body else settings.body_bytes_max
        length = request.content_length
        if length is not None and length > limit:
            return self._oversize(request, found, raw_query, length, limit)
        await self._continue(request)
        chunks: list[bytes] = []
        total = 0
        gate = self._gate
        try:
            async with asyncio.timeout(settings.receive_timeout_s):
                while chunk := await request.content.readany():
                    total += len(chunk)
                    gate.body_bytes += len(chunk)
                    if total > limit:
                        return self._oversize(request, found, raw_query, None, limit)
                    chunks.append(chunk)
        except TimeoutError:
            return _SLOW
        except web.RequestPayloadError:
            return _BROKEN
        finally:
            gate.body_bytes -= total
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _oversize(
        self,
        request: web.BaseRequest,
        found: Match,
        raw_query: bytes,
        length: int | None,
        limit: int,
    ) -> Response:
        """Refuse a body; a mistake in the parameters is reported first, as in Consul."""
        route: Route = found.route
        if route.large_body:
            parsed = kv.parse_decoded(request.method, found.path, raw_query, b"", self._settings)
            if isinstance(parsed, Response) and parsed.status >= 400:
                return parsed
        setting = "kv_max_value_size" if route.large_body else "txn_max_req_len"
        return errors.too_large(length, limit, setting, v1=route.v1)

    def answer_bad_request(self, reason: str) -> web.Response:
        """Refuse a request that is not HTTP, and end the connection."""
        first_line = reason.strip().partition("\n")[0]
        response = Response(400, TEXT_TYPE, f"400 Bad Request: {first_line}".encode())
        if first_line.startswith(f"Got more than {self._settings.url_bytes_max} bytes"):
            response = _LONG_URL
        elif first_line.startswith(f"Got more than {self._settings.header_bytes_max} bytes"):
            response = _LONG_HEAD
        self._recorder.observe("bad_request", "OTHER", response.status, 0.0)
        reply = self._reply(response, close=True)
        reply.headers["Connection"] = "close"  # aiohttp takes such a request for HTTP/1.0
        return reply

    def _reply(self, response: Response, *, close: bool) -> web.Response:
        headers = self._headers(response.head)
        reply = web.Response(status=response.status, headers=headers, body=response.body)
        if close:
            reply.force_close()
        return reply

    def _headers(self, head: bytes) -> CIMultiDict[str]:
        headers = CIMultiDict(header_pairs(head))
        headers["X-Kvnode-Node"] = self._settings.node_name
        headers["Server"] = SERVER
        return headers


class _Handler(web.RequestHandler):
    """One connection of the full shell."""

    __slots__ = (
        "_given_up", "_head_bytes", "_head_timer", "answer_bad_request", "gate", "limits", "once",
    )  # fmt: skip

    answer_bad_request: Callable[[str], web.Response]
    gate: Gate
    limits: HttpSettings

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.once = False
        """Let in above the bound, for one request."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._given_up: asyncio.TimerHandle | None = None
        """Ends a connection whose last bytes are thrown away."""

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head may neither take for ever nor grow without a bound.

        aiohttp bounds each line and their number, but neither the whole nor the time.
        """
        if self._given_up is not None:
            return
        super().data_received(data)
        waits = not self._messages and (self._waiter is not None or self._request_count == 0)
        if not waits or self.transport is None:
            self._head_is_complete()
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.url_bytes_max + self.limits.header_bytes_max:
            self._give_up(_LONG_HEAD)
        elif self._head_timer is None:
            self._head_timer = asyncio.get_running_loop().call_later(
                self.limits.receive_timeout_s, self._give_up, _SLOW_HEAD
            )

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._head_is_complete()
        if self._given_up is not None:
            self._given_up.cancel()
        self.gate.is_quick(self)
        super().connection_lost(exc)

    def _head_is_complete(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self, response: Response) -> None:
        """End a connection whose request never came; what is still sent of it is thrown away for a while."""
        self._head_is_complete()
        transport = self.transport
        if transport is not None:
            node = self.limits.node_name.encode("latin-1", "replace")
            status = HTTPStatus(response.status)
            transport.write(
                b"HTTP/1.1 %d %b\r\n%bX-Kvnode-Node: %b\r\nServer: kvnode\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b"
                % (status, status.phrase.encode(), response.head, node,
                   len(response.body), response.body)
            )  # fmt: skip
            if transport.can_write_eof():
                transport.write_eof()
            self._given_up = asyncio.get_running_loop().call_later(LINGER_S, self.force_close)

    def cut(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; whoever does not take a large one in time is cut."""
        size = len(resp.body) if isinstance(resp, web.Response) and resp.body else 0  # type: ignore[arg-type]
        if size <= LARGE_ANSWER_BYTES:
            return await super().finish_response(request, resp, start_time)
        loop = asyncio.get_running_loop()
        self.gate.is_slow(self, loop.time(), self.cut)
        try:
            async with asyncio.timeout(self.limits.write_timeout_s):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.cut()
            return resp, True
        finally:
            self.gate.is_quick(self)
            self.gate.answer_bytes -= size

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed as HTTP at all.

        aiohttp would log a traceback for each; here whoever scans the port only moves a counter.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was already begun")
        return self.answer_bad_request(message or "malformed request")


class _Server(web.Server):
    """Gives connections back to the gate; ``fast.Connection`` counted them when they were made."""

    def __init__(self, app: App, gate: Gate, **settings: Any) -> None:
        # A client that hangs up ends its waiting.
        super().__init__(app.handle, handler_cancellation=True, **settings)
        self._app = app
        self._gate = gate
        self._settings = settings

    def __call__(self) -> _Handler:
        handler = _Handler(self, loop=self._loop, **self._settings)
        handler.answer_bad_request = self._app.answer_bad_request
        handler.gate = self._gate
        handler.limits = self._app.settings
        return handler

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self._gate.connections -= 1


def _target(request: web.BaseRequest) -> bytes:
    """Return path and query as received; an absolute target loses scheme and authority."""
    raw = request.raw_path.encode("utf-8", "surrogateescape")
    if raw[:7].lower() == b"http://":
        _, slash, rest = raw[7:].partition(b"/")
        return slash + rest or b"/"
    return raw

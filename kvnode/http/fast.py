"""The lean shell: the KV routes straight from the socket, everything else handed to aiohttp.

Every connection starts here. Requests that are plain in every respect (GET, PUT, POST or DELETE below
one of the two KV prefixes, HTTP/1.1, a known length) are answered here by ``kv``'s call-backs, without
a task or a future. At the first request that is anything else, the connection is given to aiohttp with
all bytes not yet used, and stays there.

Only what cannot be misread is taken here (see ``heads``), so there is never a second opinion about where
a message ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

from kvnode.http import errors, idempotency, kv
from kvnode.http.exchange import Exchange
from kvnode.http.gate import LARGE_ANSWER_BYTES, LINGER_S
from kvnode.http.heads import Facts, read_block
from kvnode.http.messages import TEXT_TYPE, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvnode.errors import Overloaded
    from kvnode.http.context import HttpSettings
    from kvnode.http.gate import Gate
    from kvnode.http.metrics import Recorder

_METHODS = {b"GET": "GET", b"PUT": "PUT", b"POST": "POST", b"DELETE": "DELETE"}
_STARTS = tuple(
    method + b" " + prefix for method in _METHODS for prefix in (kv.V1_PREFIX, kv.OWN_PREFIX)
)
_START_BYTES = max(map(len, _STARTS))
_PREFIXES = (kv.V1_PREFIX, kv.OWN_PREFIX)
_BUFFER_PAUSE_BYTES = 64 * 1024
"""More than this, waiting behind requests in progress, stops the reading."""
_WRITE_HIGH_BYTES = 64 * 1024
_SWEEP_S = 0.5
_REFUSED_TIMEOUT_S = 5.0
"""For how long a connection above the bound may take to hear that."""
_NEVER = float("inf")
_SPARED = (b"GET /health/", b"GET /metrics ")
"""Who asks whether an overloaded node lives must not be told to come back later."""

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_SLOW = Response(408, TEXT_TYPE, b"the request did not arrive in time; nothing was stored")
_LONG_URL = Response(414, TEXT_TYPE, b"the request line is too long; the setting is url_bytes_max")
_LONG_HEAD = Response(431, TEXT_TYPE, b"the request's head is too long")


class FullShell(Protocol):
    """What a connection is handed to: an ``asyncio.Protocol`` that can be told to finish."""

    once: bool
    """Answer one request, then close."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        ...

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        ...

    def close(self) -> None:
        """Close after the requests received so far."""
        ...


class Hub:
    """What the connections of one server share: parts, bounds, the date header, the sweep."""

    def __init__(
        self,
        settings: HttpSettings,
        backend: kv.Backend,
        recorder: Recorder,
        gate: Gate,
        hand_over_to: Callable[[], FullShell],
    ) -> None:
        """Remember the parts. ``hand_over_to`` makes the full shell's protocol, which from then on
        counts the connection as its own.
        """
        self.settings = settings
        self.backend = backend
        self.recorder = recorder
        self.gate = gate
        self.hand_over_to = hand_over_to
        self.connections: set[Connection] = set()
        self.closing = False
        self._loop = asyncio.get_running_loop()
        self.time = self._loop.time
        self._node = settings.node_name.encode("latin-1", "replace")
        self._common = b""
        """Header lines that every answer carries; the date in them is refreshed by the sweep."""
        self._sweeper: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to sweep."""
        self._sweep()

    def _sweep(self) -> None:
        """Refresh the date; close who is idle or too slow. One timer for all connections."""
        self._common = b"X-Kvnode-Node: %b\r\nServer: kvnode\r\nDate: %b\r\n" % (
            self._node,
            formatdate(usegmt=True).encode(),
        )
        now = self.time()
        for connection in [c for c in self.connections if c.deadline <= now]:
            connection.expire()
        self.gate.relieve(now)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def encode(self, response: Response, *, last: bool) -> bytes:
        """Put an answer into bytes; ``last`` tells the client that the connection closes."""
        status, head, body = response
        return b"%b%b%b%bContent-Length: %d\r\n\r\n%b" % (
            _STATUS_LINES[status],
            head,
            self._common,
            b"Connection: close\r\n" if last else b"",
            len(body),
            body,
        )

    def make_connection(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return Connection(self)

    def begin_close(self) -> None:
        """Close idle connections; the others close after their answers."""
        self.closing = True
        for connection in list(self.connections):
            connection.finish()

    def close(self) -> None:
        """Cut what is left and stop the sweep."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client's connection, until it ends or is handed over.

    Reads may run side by side; a write waits for everything before it and holds up everything after
    it, so that a client that pipelines sees its own writes in order (RFC 9112 §9.3.2). Answers leave
    in the order of the requests.
    """

    __slots__ = (
        "_blocked",
        "_buffer",
        "_consuming",
        "_eof",
        "_held",
        "_last",
        "_leaving",
        "_lost",
        "_need",
        "_odd",
        "_owed",
        "_pending",
        "_reading_paused",
        "_receiving",
        "_refusal",
        "_strange",
        "_transport",
        "_write_in_progress",
        "_writing_paused",
        "deadline",
        "hub",
    )

    def __init__(self, hub: Hub) -> None:
        """Start without a transport."""
        self.hub = hub
        self.deadline = _NEVER
        """Loop time at which ``expire`` is called."""
        self._buffer = bytearray()
        """Bytes received and not used yet; begins with the head of a request."""
        self._need = 0
        """The buffer is not worth looking at before it holds so many bytes."""
        self._held = 0
        """How much of the gate's ``body_bytes`` the buffer stands for."""
        self._owed = 0
        """How much of the gate's ``answer_bytes`` the transport's buffer stands for."""
        self._pending: deque[Exchange] = deque()
        """Requests in progress, in the order of their answers."""
        self._blocked = False
        """The next request waits for those in progress, or for the client to take its answers."""
        self._consuming = False
        self._eof = False
        """The client sends nothing more; complete requests in the buffer are still answered."""
        self._odd = False
        """The next request is for the full shell."""
        self._last = False
        """No further request is taken: the connection closes when all answers are written."""
        self._leaving = False
        """Closing: only the transport's own buffer is still to be written."""
        self._lost = False
        self._receiving = False
        """The deadline counts from the first byte of a request."""
        self._reading_paused = False
        self._writing_paused = False
        self._write_in_progress = False
        self._refusal: Overloaded | None = None
        self._strange = False
        """No client certificate was shown where one is needed; the full shell knows what is left."""
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)

    # --- what the transport calls ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection; one above the bound will be told so at its first request."""
        self._transport = cast("asyncio.Transport", transport)
        hub = self.hub
        gate = hub.gate
        gate.connections += 1
        hub.connections.add(self)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._strange = hub.settings.clients_verified and not self._transport.get_extra_info(
            "peercert"
        )
        self._refusal = gate.connection_refusal()
        if self._refusal is None:
            self.deadline = hub.time() + hub.settings.idle_timeout_s
        elif gate.is_crowded:
            self.abort()
        else:
            self.deadline = hub.time() + _REFUSED_TIMEOUT_S

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection. Proposals in progress go on; their answers fall on the floor."""
        self._lost = True
        for exchange in self._pending:
            if exchange.response is not None:
                self._give_back(exchange.response)
            exchange.give_up()
        self._pending.clear()
        self.hub.connections.discard(self)
        self.hub.gate.connections -= 1
        self.hub.gate.is_quick(self)
        self._hold(0)
        self._owe(0)

    def data_received(self, data: bytes) -> None:
        """Take bytes; answer the requests that they complete."""
        if self._last:
            return
        buffer = self._buffer
        if not buffer:
            self._consume(data)
            return
        buffer += data
        if self._blocked or len(buffer) < self._need:
            self._hold(len(buffer))
            if self._blocked and len(buffer) > _BUFFER_PAUSE_BYTES:
                self._pause_reading()
        else:
            self._consume(buffer)

    def eof_received(self) -> bool:
        """Answer what was asked completely before the client closed its side."""
        self._eof = True
        if self._pending and all(exchange.parked is not None for exchange in self._pending):
            # Nobody closes its side and then waits for minutes: it hung up.
            return False
        return bool(self._pending) and not self._leaving

    def pause_writing(self) -> None:
        """The client does not take its answers: start nothing more for it."""
        self._writing_paused = True
        now = self.hub.time()
        self.deadline = now + self.hub.settings.write_timeout_s
        self.hub.gate.is_slow(self, now, self.abort)
        self._owe(self._transport.get_write_buffer_size())
        self._pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._writing_paused = False
        self.hub.gate.is_quick(self)
        self._owe(0)
        if not self._leaving:
            self._settle(self.hub.time())

    # --- requests --------------------------------------------------------------------------

    def _consume(self, data: bytes | bytearray) -> None:
        """Start every request that is complete and may start; keep the rest."""
        self._consuming = True
        self._blocked = self._odd = False
        self._need = used = 0
        size = len(data)
        while used < size:
            step = self._take(data, used, size)
            if not step:
                break
            used += step
        self._consuming = False
        if self._last or used == size:
            self._buffer.clear()
        elif data is self._buffer:
            del self._buffer[:used]
        else:
            self._buffer = bytearray(data[used:] if used else data)
        if self._held or self._buffer:
            self._hold(len(self._buffer))
        if not self._pending and not self._lost:
            self._settle(self.hub.time(), consumed=True)

    def _take(self, data: bytes | bytearray, at: int, size: int) -> int:
        """Start the request that begins at ``at`` and return its length; 0: not, or not yet."""
        pending = self._pending
        settings = self.hub.settings
        if self._last:
            return 0
        if self._writing_paused or len(pending) >= settings.pipeline_max:
            self._blocked = True
            return 0
        if self._refusal is not None:
            return self._refuse_connection(data, at)
        if self._strange or not settings.fast_path:
            return self._leave_to_full_shell()
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return self._take_part(data, at, size)
        line_end = data.find(b"\r\n", at)
        if line_end - at > settings.url_bytes_max:
            return self._refuse(_LONG_URL)
        if end - at > settings.header_bytes_max:
            return self._refuse(_LONG_HEAD)
        parts = bytes(data[at:line_end]).split(b" ")
        facts = read_block(bytes(data[line_end + 2 : end + 2]))
        if facts is None or len(parts) != 3 or parts[2] != b"HTTP/1.1":
            return self._leave_to_full_shell()
        raw_method, target, _ = parts
        method = _METHODS.get(raw_method)
        length = facts.length
        if (
            method is None
            or not target.startswith(_PREFIXES)
            or length > settings.value_bytes_max  # refusing it takes reading on for a while
        ):
            return self._leave_to_full_shell()
        if pending and (method != "GET" or self._write_in_progress):
            self._blocked = True
            return 0
        body_at = end + 4
        if length:
            if body_at + length > size:
                self._need = body_at - at + length
                return self._admit_part(data, at)
            body = bytes(data[body_at : body_at + length])
        else:
            body = b""
        self._begin(method, target, body, facts)
        return body_at + length - at

    def _take_part(self, data: bytes | bytearray, at: int, size: int) -> int:
        """Decide whether the beginning of a head is worth waiting for."""
        start = bytes(data[at : at + _START_BYTES])
        if not any(start.startswith(known) or known.startswith(start) for known in _STARTS):
            return self._leave_to_full_shell()
        settings = self.hub.settings
        if size - at > settings.url_bytes_max and data.find(b"\r\n", at) < 0:
            return self._refuse(_LONG_URL)
        if size - at > settings.header_bytes_max:
            return self._refuse(_LONG_HEAD)
        return self._admit_part(data, at)

    def _admit_part(self, data: bytes | bytearray, at: int) -> int:
        """Wait for the rest of a request, unless too much is being held already (RC-67)."""
        gate = self.hub.gate
        if gate.body_bytes >= gate.bytes_max:
            refusal = gate.refusal()
            if refusal is not None and not self._pending:
                v1 = b" /kv/" not in data[at : at + _START_BYTES]
                return self._refuse(errors.refuse(refusal, v1=v1, write=True))
        return 0

    def _leave_to_full_shell(self) -> int:
        self._odd = True
        self._blocked = bool(self._pending)
        return 0

    def _begin(self, method: str, target: bytes, body: bytes, facts: Facts) -> None:
        """Start a complete request."""
        hub = self.hub
        gate = hub.gate
        refusal = gate.refusal()
        gate.enter()
        v1 = target.startswith(kv.V1_PREFIX)
        size = len(body)
        gate.body_bytes += size
        exchange = Exchange(self, method, "/v1/kv/" if v1 else "/kv/", size, hub.time())
        self._pending.append(exchange)
        self._write_in_progress = method != "GET"
        self._receiving = False
        self.deadline = _NEVER
        if facts.close or hub.closing or refusal is not None:
            self._last = True
        if refusal is not None:
            exchange.respond(errors.refuse(refusal, v1=v1, write=self._write_in_progress))
            return
        path, _, query = target.partition(b"?")
        try:
            operation = kv.parse(method, path, query, body, hub.settings)
            if isinstance(operation, Response):
                exchange.respond(operation)
            elif facts.once and self._write_in_progress:
                stamp = idempotency.read(facts.once, method, path, query, body, hub.settings)
                if isinstance(stamp, Response):
                    exchange.respond(stamp)
                else:
                    stamped = idempotency.stamping(hub.backend, stamp)
                    exchange.parked = kv.start(operation, stamped, exchange.respond)
            else:
                exchange.parked = kv.start(operation, hub.backend, exchange.respond)
        except Exception as error:  # a bug must cost one request, not the connection
            if exchange.response is not None:
                raise  # the answer itself could not be sent
            exchange.respond(errors.refuse(error, v1=v1, write=method != "GET"))

    def flush(self, now: float) -> None:
        """Write every answer whose turn it is."""
        pending = self._pending
        if self._lost or not pending or pending[0].response is None:
            return
        chunks = []
        while pending and (response := pending[0].response) is not None:
            pending.popleft()
            self._give_back(response)
            chunks.append(self.hub.encode(response, last=self._last and not pending))
        self._transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if self._writing_paused:
            self._owe(self._transport.get_write_buffer_size())
        if not self._consuming:
            self._settle(now)

    def _settle(self, now: float, *, consumed: bool = False) -> None:
        """Decide what the connection waits for now.

        Args:
            now: The loop's time.
            consumed: The buffer was looked at just now: what it holds cannot start yet.
        """
        if self._writing_paused or self._leaving:
            return
        if self._buffer and self._blocked and not consumed:
            self._consume(self._buffer)
            return
        if self._pending:
            return
        if self._odd:
            self._hand_over()
            return
        if self._last or self._eof:
            self._leave(now)
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if not self._buffer:
            self._receiving = False
            if self._refusal is None:
                self.deadline = now + self.hub.settings.idle_timeout_s
        elif not self._receiving:
            self._receiving = True
            self.deadline = now + self.hub.settings.receive_timeout_s

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._leaving:
            self._reading_paused = True
            self._transport.pause_reading()

    def _hold(self, size: int) -> None:
        """Account for what the buffer holds."""
        self.hub.gate.body_bytes += size - self._held
        self._held = size

    def _owe(self, size: int) -> None:
        """Account for what the client has not taken of its answers."""
        self.hub.gate.answer_bytes += size - self._owed
        self._owed = size

    def _give_back(self, response: Response) -> None:
        """A large answer leaves for the transport, or for nowhere."""
        size = len(response.body)
        if size > LARGE_ANSWER_BYTES:
            self.hub.gate.answer_bytes -= size

    # --- endings ---------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Give the connection, with every byte not used yet, to the full shell for good."""
        hub = self.hub
        data = bytes(self._buffer)
        self._buffer = bytearray()
        self._hold(0)
        hub.connections.discard(self)
        self.deadline = _NEVER
        self._last = self._leaving = self._lost = True
        transport = self._transport
        if self._reading_paused:
            transport.resume_reading()
        protocol = hub.hand_over_to()
        protocol.once = self._refusal is not None
        transport.set_protocol(cast("asyncio.Protocol", protocol))
        protocol.connection_made(transport)
        protocol.data_received(data)
        if self._eof:
            protocol.close()  # once it has answered; it was not told that the client is done

    def _refuse(self, response: Response) -> int:
        """Answer a request that is not taken at all, and end the connection."""
        if self._pending:
            self._blocked = True  # answers leave in order: look again when it is this one's turn
            return 0
        self._last = True
        self._leaving = True
        transport = self._transport
        transport.write(self.hub.encode(response, last=True))
        self.deadline = self.hub.time() + LINGER_S
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
        return 0

    def _refuse_connection(self, data: bytes | bytearray, at: int) -> int:
        """Tell a connection above the bound, in the style of the route that it asked for."""
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return 0
        assert self._refusal is not None, "called for refused connections only"
        line = bytes(data[at:line_end])
        if line.startswith(_SPARED):
            return self._leave_to_full_shell()  # which answers this one request, and closes
        v1 = b" /v1/" in line
        write = not line.startswith((b"GET ", b"HEAD ", b"OPTIONS "))
        return self._refuse(errors.refuse(self._refusal, v1=v1, write=write))

    def _leave(self, now: float) -> None:
        """Close once the transport has written everything; not later than the write timeout."""
        self._leaving = True
        self.deadline = now + self.hub.settings.write_timeout_s
        self._transport.close()

    def expire(self) -> None:
        """The deadline passed."""
        if self._leaving or self._writing_paused:
            self.abort()
        elif self._receiving:
            self._refuse(_SLOW)
        else:
            self._leave(self.hub.time())

    @property
    def is_lost(self) -> bool:
        """Whether answers fall on the floor."""
        return self._lost

    def finish(self) -> None:
        """Take no further request; close after the answers in progress."""
        self._last = True
        if not self._pending and not self._leaving:
            self._leave(self.hub.time())

    def abort(self) -> None:
        """Cut the connection now."""
        self._leaving = True
        self._transport.abort()

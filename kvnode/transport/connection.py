"""One TCP connection: frames, the introduction, pings, and a bounded way out.

An ``asyncio.Protocol``, because the hot path must not pay for a task or a queue per message. It knows
who is at the other end and on which lane; what the frames *mean* is the hub's business (``Hub``).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol, cast

from kvnode.errors import (
    KvnodeError,
    LocalProtocolError,
    Overloaded,
    PeerUnreachable,
    RemoteProtocolError,
)
from kvnode.ports import Hello
from kvnode.raft.types import NodeId
from kvnode.transport import framing
from kvnode.transport.codec import decode_error, encode_error
from kvnode.transport.framing import FrameDecoder, pack_frame, unpack_frame, unpack_hello_frame
from kvnode.transport.handshake import (
    Greeting,
    Lane,
    Refusal,
    Refused,
    hello_frame,
    parse_hello,
    parse_refused,
    refused_frame,
)
from kvnode.transport.metrics import PeerCounters
from kvnode.transport.peer_tls import SPEAKS_TLS
from kvnode.transport.requests import Answer, Asked
from kvnode.transport.secret import NO_PROOF, NO_SECRET_HERE, WRONG_SECRET, Proof, Secrets
from kvnode.transport.settings import TransportSettings

USER_TIMEOUT_MS = 8000
"""Unacknowledged data older than this break the connection in the kernel, as a second line of defence
behind the pings."""


class Hub(Protocol):
    """What a connection needs from the transport that owns it. Every call may close the connection."""

    hello: Hello
    settings: TransportSettings
    loop: asyncio.AbstractEventLoop
    secrets: Secrets
    """What a new connection has to prove."""

    def opened(self, connection: Connection) -> None:
        """The TCP connection exists; nothing is known about the other end."""
        ...

    def greet(self, connection: Connection, greeting: Greeting) -> tuple[Refusal, str] | None:
        """Judge an introduction; None admits it. Also called when it changes later."""
        ...

    def greeted(self, connection: Connection) -> None:
        """Both ends accepted each other; ``connection.peer`` is set."""
        ...

    def refused(self, connection: Connection, refused: Refused, *, proven: bool) -> None:
        """The other end refused us; the connection closes.

        ``proven``: it proved the peer secret before, or no proof was asked for.
        """
        ...

    def unproven(self, connection: Connection, text: str) -> None:
        """The other end did not prove the peer secret; it is refused."""
        ...

    def raft_frame(self, connection: Connection, frame: tuple[Any, ...]) -> None:
        """Raft messages arrived, undecoded.

        Raises:
            RemoteProtocolError: They are malformed.
        """
        ...

    def requested(self, connection: Connection, method: str, payload: Any, answer: Answer) -> None:
        """A request arrived."""
        ...

    def snapshot_offered(self, connection: Connection, frame: tuple[Any, ...]) -> SnapshotEnd:
        """A peer opens a snapshot stream; returns what takes its frames."""
        ...

    def violated(self, connection: Connection, error: RemoteProtocolError) -> None:
        """The other end broke the protocol; the connection closes."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is gone. Called exactly once after ``opened``."""
        ...


class SnapshotEnd(Protocol):
    """One end of a snapshot stream, see ``snapshot_stream``."""

    def on_frame(self, frame: tuple[Any, ...]) -> None:
        """A snapshot frame arrived.

        Raises:
            RemoteProtocolError: It does not belong here.
        """
        ...

    def on_lost(self) -> None:
        """The connection is gone. Called exactly once."""
        ...


class Connection(asyncio.Protocol):
    """One end of a connection. The dialler knows its lane, the listener learns it."""

    def __init__(self, hub: Hub, lane: Lane | None = None, expected: str = "") -> None:
        """Make an end.

        Args:
            hub: The owner.
            lane: What a dialled connection is for; None on the listener's side.
            expected: Node id that a dialler looks for; empty: anyone.
        """
        self.hub = hub
        self.dialed = lane is not None
        self.lane = lane
        self.expected = expected
        self.peer: Hello | None = None
        self.counters: PeerCounters | None = None
        self.host = "?"
        """The other end's IP, for log lines only."""
        self.deadline = float("inf")
        """When a connection without introduction, or one that is closing, is aborted."""
        self.outcome: asyncio.Future[Hello | KvnodeError] = hub.loop.create_future()
        """For diallers: the peer's introduction, or why there will be none."""
        self.closed: asyncio.Future[str] = hub.loop.create_future()
        """Resolved with the reason once the connection is gone."""
        self._ended = False
        self.asked = Asked()
        self.serving = 0
        self.snapshot: SnapshotEnd | None = None
        self.dropping = False
        """The write buffer is full and the driver was told; reset when something goes out again."""
        self.reason = _LOST
        self._is_tls = False
        self._told: Hello | None = None
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder(framing.STRANGER_BYTES_MAX)
        self._proof: Proof | None = None
        self._proven = False
        """The other end knows the peer secret."""
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._heard = True
        self._silent = 0
        self._ping_sent_at: float | None = None
        self._buffer_seen = 0

    # --- life -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce ourselves if we dialled; else wait to be addressed."""
        # Always a TCP transport here; uvloop's does not inherit from asyncio.Transport.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        peer_name = transport.get_extra_info("peername")
        self.host = str(peer_name[0]) if peer_name else "?"
        _tune(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=self.hub.settings.bulk_bytes_max)
        self.hub.opened(self)
        if self.lane is None or not self.is_open:
            return
        if self.hub.secrets.proving is None:
            self._introduce()
        else:
            self._write(self._begin_proof().challenge())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits. Called once, by the transport or by ``abort``."""
        if self._ended:
            return
        self._ended = True
        self._transport = None
        reason = self.reason if exc is None else f"{self.reason}: {exc}"
        self._queue.clear()
        self._queued_bytes = 0
        if not self.outcome.done():
            if self._is_tls and exc is None and self.reason == _LOST:
                reason = _LOST_TLS  # what TLS 1.3 makes of a certificate that the other end refuses
            self.outcome.set_result(PeerUnreachable(reason, took_effect="no"))
        if not self.closed.done():
            self.closed.set_result(reason)
        self.hub.lost(self)
        self.asked.break_off(reason)
        if self.snapshot is not None:
            self.snapshot.on_lost()

    @property
    def is_open(self) -> bool:
        """Whether anything may be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """The certificate that the other end showed; None or empty: none, or no TLS."""
        return None if self._transport is None else self._transport.get_extra_info("peercert")

    @property
    def is_greeted(self) -> bool:
        """Whether both ends know and accept each other."""
        return self.peer is not None and self.is_open

    def close(self, reason: str) -> None:
        """Close after what was written has left. Idempotent."""
        if self._transport is not None and not self._transport.is_closing():
            self._flush()
            self.reason = reason
            # A peer that does not read cannot keep us from closing.
            self.deadline = self.hub.loop.time() + self.hub.settings.greet_timeout_s
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; what was not sent is lost. Idempotent."""
        if self._transport is not None:
            self.reason = reason
            # uvloop forgets connection_lost for a transport whose create_connection was cancelled, and
            # then it neither says that it is closing nor can be written to: it is not asked any more.
            transport, self._transport = self._transport, None
            transport.abort()
            self.hub.loop.call_soon(self.connection_lost, None)

    # --- in ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Cut frames and act on each."""
        self._heard = True
        if self.counters is not None:
            self.counters.bytes_in += len(data)
        try:
            for body in self._decoder.feed(data):
                if self.peer is not None:
                    self._on_frame(unpack_frame(body))
                else:
                    self._on_introduction(unpack_hello_frame(body))
                if not self.is_open:
                    return
        except RemoteProtocolError as error:
            foreign = self.peer is None and data[:2] == _TLS_RECORD
            violation = RemoteProtocolError(SPEAKS_TLS) if foreign else error
            self.hub.violated(self, violation)
            self.abort(f"protocol violated: {violation}")

    def eof_received(self) -> bool:
        """The other end closed: so do we."""
        return False

    def pause_writing(self) -> None:
        """The peer does not read its answers: do not read its requests either (RC-67)."""
        if not self.dialed and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if not self.dialed and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _on_introduction(self, frame: tuple[Any, ...]) -> None:
        """A frame of somebody who has not introduced itself: see ``secret`` for the order of things."""
        kind = frame[0]
        if kind == framing.CHALLENGE:
            self._on_challenge(frame)
        elif kind == framing.PROOF:
            self._on_proof(frame)
        elif self.dialed and kind == framing.REFUSED:
            self._on_refused(frame, proven=self._proof is None)
        elif self.dialed and self._proof is not None:
            self._refuse_unproven("the peer introduced itself without a proof of the peer secret")
        elif not self.dialed and not self.hub.secrets.none_accepted:
            self._refuse_unproven(NO_PROOF)
        else:
            self._on_greeting(frame)

    def _on_challenge(self, frame: tuple[Any, ...]) -> None:
        if self.dialed:
            if self._proof is None:
                raise RemoteProtocolError("a challenge for the peer secret that nobody asked for")
            self._proof.on_challenge(frame)
            self._introduce()
        elif self._proof is not None:
            raise RemoteProtocolError("a second challenge")
        elif not self.hub.secrets.accepted:
            self._refuse_unproven(NO_SECRET_HERE)
        else:
            proof = self._begin_proof()
            proof.on_challenge(frame)
            self._write(proof.challenge())

    def _on_proof(self, frame: tuple[Any, ...]) -> None:
        if self._proof is None:
            raise RemoteProtocolError("a proof that nobody asked for")
        body = self._proof.check(frame)
        if body is None:
            self._refuse_unproven(WRONG_SECRET)
            return
        self._proven = True
        inner = unpack_hello_frame(body)
        if self.dialed and inner[0] == framing.REFUSED:
            self._on_refused(inner, proven=True)
        else:
            self._on_greeting(inner)

    def _begin_proof(self) -> Proof:
        channel = b""
        if self._is_tls and self._transport is not None:
            tls = self._transport.get_extra_info("ssl_object")
            # The client's Finished message: a code over the whole handshake, under a key of this very
            # connection, in TLS 1.3 as well. Sessions are not resumed, so it is no older one's.
            channel = tls.get_channel_binding("tls-unique") or b""
        self._proof = Proof(self.hub.secrets, dialed=self.dialed, channel=channel)
        return self._proof

    def _refuse_unproven(self, text: str) -> None:
        self.hub.unproven(self, text)
        self.refuse(Refusal.SECRET, text)

    def _on_greeting(self, frame: tuple[Any, ...]) -> None:
        greeting = parse_hello(frame)
        if not self.dialed:
            self.lane = greeting.lane
        elif greeting.lane is not self.lane:
            raise RemoteProtocolError("the answer is for another lane")
        refusal = self.hub.greet(self, greeting)
        if refusal is not None:
            self.refuse(*refusal)
            return
        if not self.dialed or self._told != self.hub.hello:
            self._introduce()  # for a dialler: again, what it said while it dialled is outdated
        self.peer = greeting.hello
        self._decoder.frame_bytes_max = self.hub.settings.frame_bytes_max
        if not self.outcome.done():
            self.outcome.set_result(greeting.hello)
        self.hub.greeted(self)

    def _on_refused(self, frame: tuple[Any, ...], *, proven: bool) -> None:
        refused = parse_refused(frame)
        if not self.outcome.done():
            self.outcome.set_result(PeerUnreachable(f"refused: {refused.text}", took_effect="no"))
        self.hub.refused(self, refused, proven=proven)
        self.abort(f"refused: {refused.text}")

    def _on_frame(self, frame: tuple[Any, ...]) -> None:
        if self.counters is not None:
            self.counters.frames_in += 1
        kind = frame[0]
        if kind == framing.RAFT and not self.dialed and self.lane in _RAFT_LANES:
            self.hub.raft_frame(self, frame)
        elif kind == framing.ANSWER and self.dialed:
            _, request_id, payload = _exactly(frame, 3)
            framing.check_plain(payload)
            self.asked.answer(request_id, payload, None)
        elif kind == framing.FAILURE and self.dialed:
            _, request_id, *error = _exactly(frame, 6)
            self.asked.answer(request_id, None, decode_error(tuple(error)))
        elif kind == framing.REQUEST and not self.dialed and self.lane in _REQUEST_LANES:
            self._on_request(frame)
        elif kind == framing.PING:
            self._write(_PONG)
        elif kind == framing.PONG:
            self._on_pong()
        elif kind == framing.HELLO:
            self._on_new_hello(frame)
        elif kind == framing.REFUSED:
            self._on_refused(frame, proven=True)
        elif self.lane is Lane.SNAPSHOT:
            self._on_snapshot_frame(frame)
        else:
            raise RemoteProtocolError(f"frame of kind {kind!r:.20} on lane {self.lane!r}")

    def _on_request(self, frame: tuple[Any, ...]) -> None:
        _, request_id, method, payload = _exactly(frame, 4)
        if type(request_id) is not int or type(method) is not str or len(method) > 64:
            raise RemoteProtocolError("malformed request")
        framing.check_plain(payload)
        self.serving += 1
        answer = Answer(request_id, self._answer)
        if self.serving > self.hub.settings.requests_max:
            # Not the peer's fault: it may have given up on requests that the driver still holds.
            answer.fail(Overloaded("too many requests of one peer are under way"))
        else:
            self.hub.requested(self, method, payload, answer)

    def _on_pong(self) -> None:
        if self._ping_sent_at is not None and self.counters is not None and self.lane is Lane.FAST:
            self.counters.rtt_s = monotonic() - self._ping_sent_at
        self._ping_sent_at = None

    def _on_new_hello(self, frame: tuple[Any, ...]) -> None:
        greeting = parse_hello(frame)
        assert self.peer is not None, "only greeted connections get here"
        if greeting.hello.node_id != self.peer.node_id or greeting.hello.boot != self.peer.boot:
            raise RemoteProtocolError("the peer changed its identity")
        refusal = self.hub.greet(self, greeting)
        if refusal is not None:
            self.refuse(*refusal)
            return
        self.peer = greeting.hello
        self.hub.greeted(self)

    def _on_snapshot_frame(self, frame: tuple[Any, ...]) -> None:
        if self.snapshot is None:
            if self.dialed or frame[0] != framing.SNAPSHOT_BEGIN:
                raise RemoteProtocolError("no snapshot stream is open")
            self.snapshot = self.hub.snapshot_offered(self, frame)
        else:
            self.snapshot.on_frame(frame)

    # --- out --------------------------------------------------------------------------------------

    def write_buffer_size(self) -> int:
        """Bytes that have not left this process yet."""
        if self._transport is None:
            return 0
        return self._transport.get_write_buffer_size() + self._queued_bytes

    def send(self, frame: bytes) -> None:
        """Write a packed frame now, after whatever is queued. Nothing when closed."""
        if self._queue:
            self._queue.append(frame)
            self._flush()
        else:
            self._write(frame)

    def send_soon(self, frame: bytes) -> None:
        """Write a packed frame at the end of this loop turn, together with others."""
        if not self._queue:
            self.hub.loop.call_soon(self._flush)
        self._queue.append(frame)
        self._queued_bytes += len(frame)

    def refuse(self, refusal: Refusal, text: str) -> None:
        """Say why, and close."""
        frame = pack_frame(refused_frame(refusal, text, self.hub.hello))
        self._write(frame if self.dialed else self._vouched(frame))
        self.close(f"refused: {text}")

    def reintroduce(self) -> None:
        """Our own introduction changed: send it again."""
        self._flush()
        self._introduce()

    def request(self, method: str, payload: Any, deadline: float, done: Any) -> None:
        """Ask the other end. ``done`` is called exactly once unless this raises.

        Raises:
            LocalProtocolError: The payload cannot be sent; nothing was.
        """
        request_id = self.asked.add(deadline, done)
        try:
            frame = pack_frame(
                (framing.REQUEST, request_id, method, payload), self.hub.settings.frame_bytes_max
            )
        except LocalProtocolError:
            self.asked.withdraw(request_id)
            raise
        self.send_soon(frame)

    def _introduce(self) -> None:
        assert self.lane is not None, "known from dialling, or from the other end's introduction"
        self._told = self.hub.hello
        frame = pack_frame(hello_frame(self._told, self.lane, self.expected))
        self._write(self._vouched(frame))

    def _vouched(self, frame: bytes) -> bytes:
        """Wrap an introduction's frame into our proof, when the other end waits for one."""
        proof = self._proof
        if proof is None or self.peer is not None:
            return frame
        waits = proof.is_challenged and not self._proven if self.dialed else self._proven
        return proof.prove(frame) if waits else frame

    def _answer(self, request_id: int, value: Any, error: KvnodeError | None) -> None:
        self.serving -= 1
        if not self.is_open:
            return
        if self.write_buffer_size() > 2 * self.hub.settings.bulk_bytes_max:
            self.abort("the peer does not read its answers")
            return
        if error is None:
            try:
                self.send_soon(
                    pack_frame(
                        (framing.ANSWER, request_id, value), self.hub.settings.frame_bytes_max
                    )
                )
            except LocalProtocolError as broken:
                # The asker must not wait for its deadline because of what we cannot say.
                error = PeerUnreachable(f"the answer {broken}", took_effect="unknown")
        if error is not None:
            self.send_soon(pack_frame((framing.FAILURE, request_id, *encode_error(error))))

    def _flush(self) -> None:
        if not self._queue or not self.is_open:
            return  # not marked as written: connection_lost says that nothing of it left
        data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
        count = len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self.asked.mark_written()
        self._write(data, count)

    def _write(self, data: bytes, frames: int = 1) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self.counters is not None:
            self.counters.frames_out += frames
            self.counters.bytes_out += len(data)
        self._transport.write(data)

    # --- liveness ---------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Called once per ping interval: ping if we dialled, and give a silent peer up."""
        settings = self.hub.settings
        size = self.write_buffer_size()
        if self._heard or size < self._buffer_seen:
            self._silent = 0
        else:
            self._silent += 1
        self._heard = False
        self._buffer_seen = size
        patient = self.lane in {Lane.BULK, Lane.SNAPSHOT}
        limit = settings.bulk_silent_pings_max if patient else settings.silent_pings_max
        if self._silent > limit:
            self.abort(f"silent for {self._silent} ping intervals")
        elif self.dialed and self._ping_sent_at is None:
            self._ping_sent_at = monotonic()  # uvloop's clock stands still within a turn
            self._write(_PING)

    @property
    def node_id(self) -> NodeId | None:
        """Who is at the other end, once known."""
        return None if self.peer is None else self.peer.node_id


_LOST = "connection lost"
_LOST_TLS = (
    "it ended the connection right after the TLS handshake: its log says why it refused our "
    "certificate"
)
_TLS_RECORD = b"\x16\x03"
_PING = pack_frame((framing.PING,))
_PONG = pack_frame((framing.PONG,))
_RAFT_LANES = frozenset({Lane.FAST, Lane.BULK})
_REQUEST_LANES = frozenset({Lane.BULK, Lane.ASK})


def _exactly(frame: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    if len(frame) != length:
        raise RemoteProtocolError(f"frame of kind {frame[0]} with {len(frame)} fields")
    return frame


def _tune(sock: socket.socket | None) -> None:
    """No delay for small frames; let the kernel notice a dead peer as well (Linux)."""
    if sock is None:
        return
    options = [(socket.IPPROTO_TCP, "TCP_NODELAY", 1), (socket.SOL_SOCKET, "SO_KEEPALIVE", 1)]
    options += [
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError:
                return  # the socket is closing already; connection_lost will say so

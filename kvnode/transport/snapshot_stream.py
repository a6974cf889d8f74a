"""A snapshot on its way: chunk by chunk, on a connection of its own, with back-pressure (RC-41).

    sender                              receiver
    BEGIN term, meta            →       handler.on_snapshot_begin
                                ←       ACCEPTED yes | no, reason
    CHUNK number, crc, bytes    →       handler.on_snapshot_chunk … done
                                ←       ACK number          (at most ``snapshot_window`` unacknowledged)
    END chunks, bytes           →       handler.on_snapshot_end … done
                                ←       DONE yes | no, reason   ("yes": all of it is durable)

Each chunk carries its CRC-32 and the end their number and length (RC-36), so that a chunk lost or
doubled by a bug is found here and not in the store. Whatever breaks ends the stream at both ends: it
is started anew from the first chunk, never resumed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from zlib import crc32

from kvnode.errors import KvnodeError, PeerUnreachable, RemoteProtocolError
from kvnode.ports import Done, Hello, TransportHandler
from kvnode.raft.types import SnapshotMeta
from kvnode.transport import framing
from kvnode.transport.codec import INT_LIMIT, decode_meta, encode_meta
from kvnode.transport.connection import Connection
from kvnode.transport.framing import pack_frame

CHUNK_SLACK_BYTES = 1024
"""Room for what is around a chunk in its frame."""


class Outgoing:
    """The sending end. ``run`` is the whole of it; the rest is called by the connection."""

    def __init__(self, connection: Connection) -> None:
        """Take over a greeted connection of the snapshot lane."""
        self._connection = connection
        self._settings = connection.hub.settings
        self._changed = asyncio.Event()
        self._lost = not connection.is_open  # it may have broken since it was dialled
        self._accepted: tuple[bool, str] | None = None
        self._finished: tuple[bool, str] | None = None
        self._end_sent = False
        self._sent = 0
        self._acknowledged = 0
        self._bytes = 0
        connection.snapshot = self

    async def run(
        self, term: int, meta: SnapshotMeta, next_chunk: Callable[[Done[bytes]], None]
    ) -> None:
        """Stream everything; returns once the peer says that all of it is durable.

        Raises:
            PeerUnreachable: Refused, stalled, broken off, or the peer could not store it.
            KvnodeError: What ``next_chunk`` reported.
        """
        self._send((framing.SNAPSHOT_BEGIN, term, *encode_meta(meta)))
        stall_s = self._settings.snapshot_stall_s
        await self._until(lambda: self._accepted is not None, stall_s)
        self._check(self._accepted)
        started = asyncio.get_running_loop().time()
        while chunk := await self._next(next_chunk):
            if len(chunk) > self._settings.frame_bytes_max - CHUNK_SLACK_BYTES:
                raise KvnodeError(f"a snapshot chunk of {len(chunk)} bytes does not fit a frame")
            await self._until(self._has_room, stall_s)
            self._check(self._finished)
            self._sent += 1
            self._bytes += len(chunk)
            self._send((framing.SNAPSHOT_CHUNK, self._sent, crc32(chunk), chunk))
            await self._keep_to_rate(started)
        self._end_sent = True
        self._send((framing.SNAPSHOT_END, self._sent, self._bytes))
        await self._until(lambda: self._finished is not None, self._settings.snapshot_commit_s)
        self._check(self._finished)

    def on_frame(self, frame: tuple[Any, ...]) -> None:
        """An answer of the receiver."""
        match frame:
            case (framing.SNAPSHOT_ACCEPTED, bool(ok), str(text)) if self._accepted is None:
                self._accepted = (ok, text[:200])
            case (framing.SNAPSHOT_ACK, int(number)) if number == self._acknowledged + 1:
                if number > self._sent:
                    raise RemoteProtocolError(
                        "a snapshot chunk was acknowledged before it was sent"
                    )
                self._acknowledged = number
            case (framing.SNAPSHOT_DONE, bool(ok), str(text)) if self._finished is None:
                if ok and not self._end_sent:
                    raise RemoteProtocolError("a snapshot was stored before its end was sent")
                self._finished = (ok, text[:200])
            case _:
                raise RemoteProtocolError("not an answer to a snapshot stream")
        self._changed.set()

    def on_lost(self) -> None:
        """The connection is gone."""
        self._lost = True
        self._changed.set()

    def _send(self, frame: tuple[Any, ...]) -> None:
        self._connection.send(pack_frame(frame, self._settings.frame_bytes_max))

    async def _next(self, next_chunk: Callable[[Done[bytes]], None]) -> bytes:
        """Ask the driver for a chunk; gives up when the peer or the connection does."""
        given: list[bytes | KvnodeError] = []

        def done(chunk: bytes | None, error: KvnodeError | None) -> None:
            given.append(error if error is not None else chunk or b"")
            self._changed.set()

        next_chunk(done)
        await self._until(lambda: bool(given), self._settings.snapshot_stall_s)
        self._check(self._finished)
        chunk = given[0]
        if isinstance(chunk, KvnodeError):
            raise chunk
        return chunk

    async def _until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready`` or until the peer ended the stream; each event starts the time again."""
        while not (ready() or self._finished is not None):
            if self._lost:
                raise PeerUnreachable(f"snapshot broken off: {self._connection.reason}")
            self._changed.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError as error:
                raise PeerUnreachable(f"the snapshot stood still for {timeout_s} s") from error

    async def _keep_to_rate(self, started: float) -> None:
        rate = self._settings.snapshot_bytes_per_s
        if rate is not None:
            ahead_s = started + self._bytes / rate - asyncio.get_running_loop().time()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)

    def _has_room(self) -> bool:
        return self._sent - self._acknowledged < self._settings.snapshot_window

    def _check(self, verdict: tuple[bool, str] | None) -> None:
        if verdict is not None and not verdict[0]:
            raise PeerUnreachable(f"the peer refused the snapshot: {verdict[1]}")


class Incoming:
    """The receiving end: hands one chunk at a time to the handler and acknowledges it when done."""

    def __init__(
        self,
        connection: Connection,
        sender: Hello,
        handler: TransportHandler,
        finished: Callable[[Incoming, bool], None],
    ) -> None:
        """``finished`` is called exactly once: the stream is over, whether well or not."""
        self.connection = connection
        self.sender = sender
        self.term = 0
        self._handler = handler
        self._finished = finished
        self._window = connection.hub.settings.snapshot_window
        self._waiting: deque[bytes] = deque()
        self._busy = False
        self._begun = False
        self._over = False
        self._end_seen = False
        self._end_given = False
        self._received = 0
        self._bytes = 0
        self._written = 0

    def begin(self, frame: tuple[Any, ...], refusal: str) -> None:
        """Handle the opening frame; ``refusal`` is the transport's own reason against it, or empty.

        Raises:
            RemoteProtocolError: Malformed.
        """
        _, term, *raw_meta = frame
        if type(term) is not int or not 0 <= term < INT_LIMIT:
            raise RemoteProtocolError("malformed term")
        meta = decode_meta(tuple(raw_meta))
        self.term = term
        if not refusal and not self._handler.on_snapshot_begin(self.sender, term, meta):
            refusal = "not wanted now"
        if refusal:
            self._over = True
            self._send((framing.SNAPSHOT_ACCEPTED, False, refusal))
            self.connection.close(f"snapshot refused: {refusal}")
            self._finished(self, False)
        else:
            self._begun = True
            self._send((framing.SNAPSHOT_ACCEPTED, True, ""))

    def on_frame(self, frame: tuple[Any, ...]) -> None:
        """A chunk, or the end."""
        if self._over or self._end_seen:
            raise RemoteProtocolError("the snapshot stream is over")
        match frame:
            case (framing.SNAPSHOT_CHUNK, int(number), int(crc), bytes(chunk)):
                self._on_chunk(number, crc, chunk)
            case (framing.SNAPSHOT_END, int(count), int(length)):
                if count != self._received or length != self._bytes:
                    raise RemoteProtocolError("the snapshot stream is not complete")
                self._end_seen = True
                self._go_on()
            case _:
                raise RemoteProtocolError("not part of a snapshot stream")

    def on_lost(self) -> None:
        """The connection is gone: what was received is worth nothing."""
        if not self._over:
            self._fail("")

    def _on_chunk(self, number: int, crc: int, chunk: bytes) -> None:
        if number != self._received + 1 or number - self._written > self._window:
            raise RemoteProtocolError(f"snapshot chunk {number} is out of order")
        if not chunk or crc32(chunk) != crc:
            raise RemoteProtocolError(f"snapshot chunk {number} was damaged on its way")
        self._received = number
        self._bytes += len(chunk)
        self._waiting.append(chunk)
        self._go_on()

    def _go_on(self) -> None:
        """Give the next piece to the handler, unless it still has one."""
        if self._busy or self._over:
            return
        if self._waiting:
            self._busy = True
            self._handler.on_snapshot_chunk(self.sender, self._waiting.popleft(), self._chunk_done)
        elif self._end_seen:
            self._busy = self._end_given = True
            self._handler.on_snapshot_end(self.sender, True, self._end_done)

    def _chunk_done(self, error: KvnodeError | None) -> None:
        self._busy = False
        if self._over:
            return
        if error is not None:
            self._fail(f"a chunk was not stored: {error}")
            return
        self._written += 1
        self._send((framing.SNAPSHOT_ACK, self._written))
        self._go_on()

    def _end_done(self, error: KvnodeError | None) -> None:
        if self._over:
            return
        self._over = True
        self._send(
            (framing.SNAPSHOT_DONE, error is None, "" if error is None else str(error)[:200])
        )
        self.connection.close("snapshot stream finished")
        self._finished(self, error is None)

    def _fail(self, text: str) -> None:
        """Forget the stream; the peer is told ``text`` when the connection still stands."""
        self._over = True
        self._waiting.clear()
        self._send((framing.SNAPSHOT_DONE, False, text[:200]))
        self.connection.close(text)
        if self._begun and not self._end_given:
            self._handler.on_snapshot_end(self.sender, False, _ignore)
        self._finished(self, False)

    def _send(self, frame: tuple[Any, ...]) -> None:
        self.connection.send(pack_frame(frame))


def _ignore(_: KvnodeError | None) -> None:
    """The end of a broken stream has nobody left to tell."""

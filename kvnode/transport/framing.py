"""Frames: a 4-byte big-endian length, then a msgpack array whose first element says what it is.

Pure: bytes in, values out. Everything that a peer controls is bounded here, before memory is spent on
it: the bytes of a frame, the elements of an array, the depth of nesting. A violation is a
``RemoteProtocolError`` and costs the peer its connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgpack

from kvnode.errors import LocalProtocolError, RemoteProtocolError

HEADER_BYTES: Final = 4
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024 + 64 * 1024
"""The largest batch of entries (8 MiB) and what is around it."""
HELLO_BYTES_MAX: Final = 4096
STRANGER_BYTES_MAX: Final = HELLO_BYTES_MAX + 128
"""All that a stranger can make us keep: an introduction inside its proof of the peer secret."""
ARRAY_LEN_MAX: Final = 8192
"""Elements of one array. The decoder reserves 8 bytes per *announced* element at up to 1,024 levels,
so this also bounds what a lying header can cost for a moment: 64 MiB."""
MAP_LEN_MAX: Final = 8192
HELLO_ARRAY_LEN_MAX: Final = 32
DEPTH_MAX: Final = 16
"""Nesting of a request's payload. Raft messages have a fixed shape, which the codec checks."""

# The kinds of frames. Numbers are on the wire: never reuse one.
HELLO: Final = 0
REFUSED: Final = 1
RAFT: Final = 2
REQUEST: Final = 3
ANSWER: Final = 4
FAILURE: Final = 5
PING: Final = 6
PONG: Final = 7
SNAPSHOT_BEGIN: Final = 8
SNAPSHOT_ACCEPTED: Final = 9
SNAPSHOT_CHUNK: Final = 10
SNAPSHOT_ACK: Final = 11
SNAPSHOT_END: Final = 12
SNAPSHOT_DONE: Final = 13
CHALLENGE: Final = 14
PROOF: Final = 15

_packer = msgpack.Packer(autoreset=False)


class FrameDecoder:
    """Cuts a stream into frame bodies, however the network split it.

    Keeps at most one unfinished frame. ``frame_bytes_max`` may be changed between frames: it is small
    until the peer has introduced itself.
    """

    __slots__ = ("_kept", "_need", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        """``frame_bytes_max`` bounds the body; the header is not counted."""
        self.frame_bytes_max = frame_bytes_max
        self._kept = bytearray()
        self._need = HEADER_BYTES

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Yield the body of every frame that ``data`` completes, in order.

        The views stay valid for as long as the caller keeps them. The iterator must be run to its
        end, or the decoder be thrown away.

        Raises:
            RemoteProtocolError: A frame is empty or announces more than ``frame_bytes_max``; raised
                after the good frames before it were yielded.
        """
        if self._kept:
            self._kept += data
            if len(self._kept) < self._need:
                return
            data = bytes(self._kept)
            self._kept.clear()
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= HEADER_BYTES:
            length = int.from_bytes(view[start : start + HEADER_BYTES], "big")
            if not 0 < length <= self.frame_bytes_max:
                raise RemoteProtocolError(
                    f"frame of {length} bytes, allowed {self.frame_bytes_max}"
                )
            stop = start + HEADER_BYTES + length
            if stop > end:
                self._need = HEADER_BYTES + length
                break
            yield view[start + HEADER_BYTES : stop]
            start = stop
        else:
            self._need = HEADER_BYTES
        if start < end:
            self._kept += view[start:]

    def pending_bytes(self) -> int:
        """Bytes kept of an unfinished frame; never more than one frame and its header."""
        return len(self._kept)


def pack_frame(frame: tuple[Any, ...], frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """Return the frame as bytes, header included.

    Raises:
        LocalProtocolError: Not plain data, or larger than the other side would accept. Our bug,
            or a bound above us that is too generous; nothing was sent.
    """
    try:
        _packer.pack(frame)
        # Copied once, from the packer's own buffer: a large frame costs a sixth of ``pack`` and ``+``.
        with _packer.getbuffer() as body:
            if len(body) > frame_bytes_max:
                raise LocalProtocolError(f"frame of {len(body)} bytes, allowed {frame_bytes_max}")
            return b"".join((len(body).to_bytes(HEADER_BYTES, "big"), body))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot be sent: {error}") from error
    finally:
        _packer.reset()


def unpack_frame(body: bytes | memoryview) -> tuple[Any, ...]:
    """Return the frame's elements: plain data, arrays as tuples, the first one an int.

    Raises:
        RemoteProtocolError: No msgpack, too deep, too many elements, or not such an array.
    """
    try:
        frame = msgpack.unpackb(
            body,
            use_list=False,
            max_array_len=ARRAY_LEN_MAX,
            max_map_len=MAP_LEN_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise RemoteProtocolError(f"no frame: {error}") from error
    if type(frame) is not tuple or not frame or type(frame[0]) is not int:
        raise RemoteProtocolError("a frame is an array that starts with its kind")
    return frame


def unpack_hello_frame(body: bytes | memoryview) -> tuple[Any, ...]:
    """``unpack_frame`` with the bounds for strangers: few elements, no maps."""
    try:
        frame = msgpack.unpackb(
            body,
            use_list=False,
            max_array_len=HELLO_ARRAY_LEN_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise RemoteProtocolError(f"no hello: {error}") from error
    if type(frame) is not tuple or not frame or type(frame[0]) is not int:
        raise RemoteProtocolError("a frame is an array that starts with its kind")
    return frame


def check_plain(value: Any, depth_max: int = DEPTH_MAX) -> None:
    """Check that decoded data nests at most ``depth_max`` deep and holds no extension types.

    Raises:
        RemoteProtocolError: It does not.
    """
    level = [value]
    for _ in range(depth_max + 1):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is tuple:
                below.extend(item)
            elif kind is dict:
                below.extend(item.values())
            elif kind not in _SCALARS:
                raise RemoteProtocolError(f"not plain data: {kind.__name__}")
        if not below:
            return
        level = below
    raise RemoteProtocolError(f"nested more than {depth_max} deep")


_SCALARS: Final = frozenset({int, float, bool, str, bytes, type(None)})

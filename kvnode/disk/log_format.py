"""Bytes of a log segment: pure functions, no files.

A segment is one sector of header, then frames, then zeros up to the size that the header states.

    segment  ::= header(512) frame* zeros
    frame    ::= frame header (32) payload padding        -- a multiple of 32 bytes
    payload  ::= (entry header (16) data)*                -- indexes count up from ``first_index``

A frame is the unit of a sync: it is written with one ``pwrite`` and synced before the next frame is
written. So at most the last frame of the log can be incomplete after a crash, and then nobody was
ever told that it is durable. Three rules let ``scan`` tell such a torn frame from damage (RC-71):

- Frames start at multiples of 32, so that a frame header lies in one 512-byte sector, which a disk
  writes whole or not at all.
- A segment is full of zeros before its first frame and is never used again, so a sector that a crash
  lost reads as zeros.
- A frame has no near-zero sector of its own: it starts with a magic number, ends in at least 8 bytes
  of ones, and a payload with a long run of zeros is stored under a mask. So a sector's part of a
  frame that reads as zeros was lost, and a flipped bit cannot make one.

Checksums are ``crc32``. The one of a frame header starts from the segment's own checksum and the
frame's offset: a frame that was written to another place, by us or by the disk, is not valid there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import NamedTuple
from zlib import crc32

from kvnode.disk.files import SECTOR
from kvnode.errors import CorruptLog
from kvnode.raft.types import Entry, EntryKind, Index, Term

FORMAT = 1
"""Version of everything in this module."""

ALIGN = 32
FRAME_HEADER_BYTES = 32
ENTRY_HEADER_BYTES = 16
SEAL_BYTES = FRAME_HEADER_BYTES + ALIGN
"""Room kept at the end of a segment for the frame that closes it."""
ENTRY_BYTES_MAX = 64 << 20
"""Bound on one entry's data. Requests are bounded far below; a longer one on disk is damage."""

_SEGMENT = Struct("<8sIIQQQ")  # magic, format, 0, sequence, first index, size in bytes
_SEGMENT_MAGIC = b"kvnodlog"
_CRC = Struct("<I")
_FRAME = Struct("<HBBIIQII")  # magic, type, flags, payload bytes, count, first index, body crc, 0
_FRAME_MAGIC = 0x4B76
_FRAME_MAGIC_BYTES = _FRAME_MAGIC.to_bytes(2, "little")
_ENTRY = Struct("<QIB3x")  # term, data bytes, kind
_PADDING = b"\xff" * (ALIGN + 8)
_PADDING_MIN = 8
_MASKED = 1
_ZERO_RUN = bytes(128)
_KINDS = {int(kind): kind for kind in EntryKind}

assert _SEGMENT.size < SECTOR - _CRC.size
assert _CRC.size + _FRAME.size == FRAME_HEADER_BYTES == ALIGN
assert _ENTRY.size == ENTRY_HEADER_BYTES


class FrameType(IntEnum):
    """What a frame holds. The numbers are on disk: never reuse one."""

    ENTRIES = 1
    SEAL = 2
    """No further frame in this segment: the log goes on in the next one, which exists."""


class SegmentHeader(NamedTuple):
    """The first sector of a segment."""

    sequence: int
    """Counts segments of one log from 1, without gaps, never reused."""
    first_index: Index
    """The index that was expected first when the segment was made; for people, not for replay."""
    size: int
    """Length of the file in bytes, header included."""

    def encode(self) -> bytes:
        """One sector, checksum in its last four bytes."""
        body = _SEGMENT.pack(
            _SEGMENT_MAGIC, FORMAT, 0, self.sequence, self.first_index, self.size
        ).ljust(SECTOR - _CRC.size, b"\0")
        return body + _CRC.pack(crc32(body))

    @property
    def seed(self) -> int:
        """Where the checksums of this segment's frames start: the header's own checksum.

        Not the ``crc32`` of the whole sector: over bytes that end in their checksum that is the same
        number for all headers.
        """
        return int(_CRC.unpack(self.encode()[-_CRC.size :])[0])

    @staticmethod
    def decode(sector: bytes, path: str) -> SegmentHeader:
        """Inverse of ``encode``.

        Raises:
            CorruptLog: These bytes are no segment header, or one of a format not known here.
        """
        if len(sector) < SECTOR:
            raise CorruptLog(f"{path}: the file ends inside its header, at {len(sector)} bytes")
        body = sector[: SECTOR - _CRC.size]
        (checksum,) = _CRC.unpack(sector[SECTOR - _CRC.size : SECTOR])
        magic, version, zero, sequence, first_index, size = _SEGMENT.unpack_from(body)
        if magic != _SEGMENT_MAGIC or crc32(body) != checksum or zero:
            raise CorruptLog(f"{path}: the segment header at offset 0 is damaged")
        if version != FORMAT:
            raise CorruptLog(f"{path}: log format {version}; this version reads {FORMAT}")
        return SegmentHeader(sequence, Index(first_index), size)


class LogEnd(NamedTuple):
    """A place in the log, behind a frame. Later places compare greater; the end never moves back."""

    sequence: int
    """The segment's; 0 is before the first."""
    offset: int
    """In bytes."""


NOWHERE = LogEnd(0, 0)
"""Before everything."""


class Scan(NamedTuple):
    """What a segment holds."""

    frames: list[list[Entry]]
    """Entries frame by frame; within a frame the indexes are contiguous."""
    last: int
    """Offset of the last whole frame, the seal included; equal to ``end`` when there is none."""
    end: int
    """Offset after the last whole frame."""
    sealed: bool
    torn: bool
    """An incomplete frame begins at ``end``; it may be cut if the segment is the last one."""


def frame_bytes(data_bytes: int, count: int) -> int:
    """Length of a frame with ``count`` entries that hold ``data_bytes`` bytes of data in all."""
    payload = data_bytes + count * ENTRY_HEADER_BYTES
    return FRAME_HEADER_BYTES + payload + _padding_bytes(payload)


def encode_frame(seed: int, offset: int, entries: Sequence[Entry]) -> bytes:
    """Build a frame of contiguous, at least one, entries for ``offset`` of a segment."""
    pack = _ENTRY.pack
    parts: list[bytes] = []
    for entry in entries:
        data = entry.data
        parts.append(pack(entry.term, len(data), entry.kind))
        parts.append(data)
    payload = b"".join(parts)
    flags = 0
    if _ZERO_RUN in payload:
        payload = _mask(payload)
        flags = _MASKED
    return _frame(seed, offset, FrameType.ENTRIES, flags, payload, len(entries), entries[0].index)


def encode_seal(seed: int, offset: int, next_index: int) -> bytes:
    """Build the frame that closes a segment."""
    return _frame(seed, offset, FrameType.SEAL, 0, b"", 0, next_index)


def scan(data: bytes, header: SegmentHeader, path: str) -> Scan:
    """Read all frames of a segment, checking each.

    Args:
        data: The whole file, as long as its header says.
        header: Its decoded header.
        path: For messages.

    Raises:
        CorruptLog: Anything that a crash while writing the last frame cannot explain.
    """
    seed = header.seed
    frames: list[list[Entry]] = []
    at = last = SECTOR
    while at + FRAME_HEADER_BYTES <= len(data):
        fields = _read_header(data, at, seed)
        if fields is None:
            return _end_of_frames(data, last, at, seed, frames, path)
        frame_type, flags, length, count, first_index, checksum = fields
        stop = at + FRAME_HEADER_BYTES + length + _padding_bytes(length)
        if stop > len(data):
            raise CorruptLog(f"{path}: the frame at offset {at} reaches beyond the file's end")
        body = data[at + FRAME_HEADER_BYTES : stop]
        if crc32(body) != checksum:
            if _has_lost_sector(data, at, stop) and _is_zero(data, stop):
                return Scan(frames, last, at, sealed=False, torn=True)
            raise CorruptLog(f"{path}: the frame at offset {at} has a bad checksum")
        if frame_type == FrameType.SEAL:
            return Scan(frames, at, stop, sealed=True, torn=False)
        if frame_type != FrameType.ENTRIES or flags & ~_MASKED:
            raise CorruptLog(f"{path}: the frame at offset {at} has the unknown type {frame_type}")
        payload = body[:length]
        if flags & _MASKED:
            payload = _mask(payload)
        frames.append(_decode_entries(payload, first_index, count, f"{path}: offset {at}"))
        last, at = at, stop
    return Scan(frames, last, at, sealed=False, torn=False)


def _end_of_frames(
    data: bytes, last: int, at: int, seed: int, frames: list[list[Entry]], path: str
) -> Scan:
    """Judge the bytes at ``at``, where no valid frame header is."""
    if _is_zero(data, at):
        return Scan(frames, last, at, sealed=False, torn=False)
    # A crash loses whole sectors, and a frame header lies in one of them: so a header that was not
    # written leaves zeros up to the end of its sector. Anything else was written and then damaged.
    sector_end = at - at % SECTOR + SECTOR
    if not _is_zero(data, at, sector_end):
        raise CorruptLog(f"{path}: the frame header at offset {at} is damaged")
    later = _find_header(data, sector_end, seed)
    if later is not None:
        raise CorruptLog(
            f"{path}: no frame at offset {at}, but a later one at offset {later}: "
            f"synced data are missing"
        )
    return Scan(frames, last, at, sealed=False, torn=True)


def _frame(
    seed: int, offset: int, frame_type: int, flags: int, payload: bytes, count: int, first: int
) -> bytes:
    assert offset % ALIGN == 0, "a frame header must lie in one sector"
    body = payload + _PADDING[: _padding_bytes(len(payload))]
    head = _FRAME.pack(_FRAME_MAGIC, frame_type, flags, len(payload), count, first, crc32(body), 0)
    return b"".join((_CRC.pack(crc32(head, seed ^ offset)), head, body))


def _read_header(data: bytes, at: int, seed: int) -> tuple[int, int, int, int, int, int] | None:
    """Return type, flags, payload bytes, count, first index, body checksum; None: no valid header."""
    head = data[at + _CRC.size : at + FRAME_HEADER_BYTES]
    magic, frame_type, flags, length, count, first_index, checksum, _ = _FRAME.unpack(head)
    if magic != _FRAME_MAGIC or _CRC.unpack_from(data, at)[0] != crc32(head, seed ^ at):
        return None
    return frame_type, flags, length, count, first_index, checksum


def _find_header(data: bytes, start: int, seed: int) -> int | None:
    """Offset of the first valid frame header at or after ``start``, which is aligned."""
    at = data.find(_FRAME_MAGIC_BYTES, start)
    while at >= 0:
        begin = at - _CRC.size
        if (
            begin >= start
            and begin % ALIGN == 0
            and begin + FRAME_HEADER_BYTES <= len(data)
            and _read_header(data, begin, seed) is not None
        ):
            return begin
        at = data.find(_FRAME_MAGIC_BYTES, at + 1)
    return None


def _decode_entries(payload: bytes, first_index: int, count: int, where: str) -> list[Entry]:
    """Split a checked payload. What does not fit was written wrongly, or by a newer version."""
    entries: list[Entry] = []
    unpack = _ENTRY.unpack_from
    at = 0
    try:
        for index in range(first_index, first_index + count):
            term, length, kind = unpack(payload, at)
            at += ENTRY_HEADER_BYTES + length
            data = payload[at - length : at]
            entries.append(Entry(Index(index), Term(term), _KINDS[kind], data))
    except KeyError as error:
        raise CorruptLog(f"{where}: entry of the unknown kind {error}") from error
    except StructError as error:
        raise CorruptLog(f"{where}: entries do not fit into their frame: {error}") from error
    if at != len(payload) or not entries:
        raise CorruptLog(f"{where}: {count} entries fill {at} of {len(payload)} bytes")
    return entries


def _padding_bytes(payload: int) -> int:
    """At least 8, so that a frame's last sector is never near zero; up to the alignment."""
    return _PADDING_MIN + (-payload - _PADDING_MIN) % ALIGN


def _mask(payload: bytes) -> bytes:
    """Make long runs of zeros disappear, or appear again: its own inverse. Rarely needed."""
    size = len(payload)
    stream = hashlib.shake_128(b"kvnode log mask").digest(size)
    mixed = int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")
    return mixed.to_bytes(size, "little")


def _has_lost_sector(data: bytes, start: int, stop: int) -> bool:
    """Is some sector's part of ``[start, stop)`` all zeros?"""
    at = start
    while at < stop:
        end = min(at - at % SECTOR + SECTOR, stop)
        if _is_zero(data, at, end):
            return True
        at = end
    return False


def _is_zero(data: bytes, start: int, stop: int | None = None) -> bool:
    part = data[start:stop]
    return part == bytes(len(part))  # one memcmp; ``any`` would walk in Python

"""RocksDB's manifest and write-ahead logs, looked at before it reads them.

One flipped bit makes RocksDB 9.8 read for ever: a record whose type says that its file is a recycled one,
where the records before it said nothing of the kind, is found bad, is not passed over, and is read again
(facebook/rocksdb#13333). Meanwhile nothing else runs in the process. We recycle no files, so such a record is
damage, and can be told before (RC-71).

Format: https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Final

from kvnode.errors import CorruptLog

_BLOCK_BYTES: Final = 32 * 1024
_HEADER: Final = Struct("<IHB")  # masked checksum, bytes of payload, type
_TYPE_MAX: Final = 4
"""Nothing, whole, first, middle, last. The others are for recycled or compressed files: we have none."""
_MASK_DELTA: Final = 0xA282EAD8


def check_records(directory: Path) -> None:
    """Raise ``CorruptLog`` when a file of an engine that is closed would keep RocksDB reading for ever.

    All else that is wrong with them is RocksDB's to find. Raises ``OSError`` as reading does.
    """
    for path in (*directory.glob("MANIFEST-*"), *directory.glob("*.log")):
        with path.open("rb") as file:
            offset = 0
            while block := file.read(_BLOCK_BYTES):
                at = _strange_record(block)
                if at is not None:
                    raise CorruptLog(f"{path}: the record at {offset + at} is of no type in use")
                offset += len(block)


def _strange_record(block: bytes) -> int | None:
    """Where in a block a record begins that RocksDB would get to, of a type that we have none of."""
    at = 0
    while at + _HEADER.size <= len(block):
        _, size, kind = _HEADER.unpack_from(block, at)
        if kind > _TYPE_MAX:
            return at if _is_whole(block, at) else None
        if not size and not kind:
            return None  # the rest is empty
        at += _HEADER.size + size
    return None


def _is_whole(block: bytes, end: int) -> bool:
    """Whether the records before ``end`` are valid. Behind a bad one RocksDB leaves the block: a write that a
    power cut has torn may make anything look like a record there.
    """
    at = 0
    while at < end:
        checksum, size, _ = _HEADER.unpack_from(block, at)
        content = block[at + _HEADER.size - 1 : at + _HEADER.size + size]  # with the type
        if _masked(_crc32c(content)) != checksum:
            return False
        at += _HEADER.size + size
    return True


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _crc32c_table()


def _crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4; plain, for at most one block of a damaged file."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF

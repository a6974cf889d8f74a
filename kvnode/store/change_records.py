"""How the window of changes looks as bytes: two rows for each change, see ``history``.

The row by index is small, so that who looks for the changes of a few keys, or trims, reads no values. The row
by key holds the old record, so that a key's past is read in one go.
"""

from __future__ import annotations

from struct import Struct
from typing import Final
from zlib import crc32

from kvnode.errors import CorruptLog
from kvnode.store.records import CHANGES, REVISIONS

REVISION_VERSION: Final = 1
REVISION_HEAD: Final = Struct("<BBI")
"""Version, cause, checksum; then the key's former record, empty when there was none. That record has a
mark of its own, so the checksum is only over the raw key, the cause, and the record's length."""
CHANGE_OVERHEAD: Final = 8
"""Bytes of a change besides twice its raw key and the row of its revision: two lengths."""
INDEX_MAX: Final = (1 << 64) - 1

_SIZE: Final = Struct("<I")
_WIDTH: Final = Struct(">I")
_ORDER: Final = Struct(">Q")


def change_key(index: int, key: bytes) -> bytes:
    """Return the raw key of ``CHANGES`` for a key that changed at ``index``."""
    return CHANGES + _ORDER.pack(index) + key


def change_stop(upto: int) -> bytes:
    """Return the first raw key of ``CHANGES`` above every change up to ``upto``."""
    return CHANGES + _ORDER.pack(upto + 1)


def decode_change_key(raw: bytes) -> tuple[int, bytes]:
    """Return index and key, the inverse of ``change_key``.

    Raises:
        CorruptLog: The raw key is too short.
    """
    if len(raw) < 9:
        raise CorruptLog(f"the change {raw!r} is too short")
    index: int = _ORDER.unpack_from(raw, 1)[0]
    return index, raw[9:]


def decode_change(raw: bytes, record: bytes) -> int:
    """Return how long the row of a change's revision is.

    Raises:
        CorruptLog: It is no such row.
    """
    if len(record) != _SIZE.size:
        raise CorruptLog(f"the change {raw!r} has an unknown form")
    size: int = _SIZE.unpack(record)[0]
    return size


def change_bytes(raw: bytes, size: int) -> int:
    """How much a change counts towards the bound on history; ``size`` is of its revision."""
    return 2 * len(raw) + size + CHANGE_OVERHEAD


def revision_key(key: bytes, index: int) -> bytes:
    """Return the raw key of ``REVISIONS`` for a key that changed at ``index``.

    The key's length stands before it, so that no other key's rows lie between its own.
    """
    return b"%b%b%b%b" % (REVISIONS, _WIDTH.pack(len(key)), key, _ORDER.pack(index))


def decode_revision_key(raw: bytes) -> tuple[bytes, int]:
    """Return key and index, the inverse of ``revision_key``.

    Raises:
        CorruptLog: The raw key is not as long as it says.
    """
    if len(raw) < 13 or len(raw) != 13 + _WIDTH.unpack_from(raw, 1)[0]:
        raise CorruptLog(f"the revision {raw!r} is not as long as it says")
    index: int = _ORDER.unpack_from(raw, len(raw) - 8)[0]
    return raw[5:-8], index


def encode_revision(raw: bytes, cause: int, old: bytes) -> bytes:
    """Build a row of ``REVISIONS``, the inverse of ``decode_revision``."""
    return REVISION_HEAD.pack(REVISION_VERSION, cause, revision_sum(raw, cause, len(old))) + old


def decode_revision(raw: bytes, record: bytes) -> tuple[int, bytes]:
    """Return what caused a change, and the key's record before it; empty: there was none.

    Raises:
        CorruptLog: It is no revision of a known version.
    """
    if len(record) < REVISION_HEAD.size or record[0] != REVISION_VERSION:
        raise CorruptLog(f"the revision {raw!r} has an unknown form")
    _, cause, checksum = REVISION_HEAD.unpack_from(record)
    if checksum != revision_sum(raw, cause, len(record) - REVISION_HEAD.size):
        raise CorruptLog(f"the revision {raw!r} does not match its checksum")
    return cause, record[REVISION_HEAD.size :]


def revision_sum(raw: bytes, cause: int, size: int) -> int:
    """Return the checksum of a revision with an old record of ``size`` bytes."""
    return crc32(raw, (size << 8 | cause) & 0xFFFFFFFF)

"""The ``base`` file: where the log starts.

It names the first entry's predecessor with the membership in force there, and the first segment that
counts. Replacing this one file is what makes ``compact`` and ``reset`` atomic (RC-37): every segment
below ``first_sequence`` is void from that moment, whether it could be removed yet or not.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvnode.disk.files import FileSystem
from kvnode.disk.whole_file import read_whole, write_whole
from kvnode.errors import CorruptLog
from kvnode.ports import LogBase
from kvnode.raft.types import Index, LogId, Membership, Term

BASE_NAME = "base"
BASE_BYTES_MAX = 16 << 20

_HEADER = Struct("<8sIIQQQI")  # magic, format, crc, first sequence, index, term, membership bytes
_MAGIC = b"kvnodbas"
_FORMAT = 1


class BaseRecord(NamedTuple):
    """Content of the base file."""

    base: LogBase
    first_sequence: int
    """The first segment that counts; it exists, and those below are void."""


def encode_base(record: BaseRecord) -> bytes:
    """The file's bytes; the checksum covers everything except itself."""
    membership = record.base.membership.encode()
    last = record.base.last
    fields = (record.first_sequence, last.index, last.term, len(membership))
    blank = _HEADER.pack(_MAGIC, _FORMAT, 0, *fields) + membership
    return _HEADER.pack(_MAGIC, _FORMAT, crc32(blank), *fields) + membership


def decode_base(data: bytes, path: str) -> BaseRecord:
    """Inverse of ``encode_base``.

    Raises:
        CorruptLog: Damaged in any way.
    """
    if len(data) < _HEADER.size:
        raise CorruptLog(f"{path}: the file ends inside its header, at {len(data)} bytes")
    magic, version, checksum, sequence, index, term, size = _HEADER.unpack_from(data)
    membership = data[_HEADER.size :]
    blank = _HEADER.pack(magic, version, 0, sequence, index, term, size) + membership
    if magic != _MAGIC or crc32(blank) != checksum or len(membership) != size:
        raise CorruptLog(f"{path}: damaged, its checksum does not fit")
    if version != _FORMAT:
        raise CorruptLog(f"{path}: format {version}; this version reads {_FORMAT}")
    try:
        base = LogBase(LogId(Index(index), Term(term)), Membership.decode(membership))
    except ValueError as error:
        raise CorruptLog(f"{path}: {error}") from error
    return BaseRecord(base, sequence)


def write_base(fs: FileSystem, directory: str, record: BaseRecord) -> None:
    """Replace the base file, durably and atomically."""
    write_whole(fs, directory, BASE_NAME, encode_base(record))


def read_base(fs: FileSystem, directory: str) -> BaseRecord:
    """Return the base.

    Raises:
        CorruptLog: Missing, or damaged. A log directory never lacks it (RC-50).
    """
    path = f"{directory}/{BASE_NAME}"
    if not fs.exists(path):
        raise CorruptLog(f"{path}: missing, but {directory} holds a log")
    return decode_base(read_whole(fs, path, BASE_BYTES_MAX), path)

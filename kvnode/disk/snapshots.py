"""Received snapshots on disk.

A snapshot arrives chunk by chunk under a temporary name and gets its own only when it is whole and
synced (RC-9); at most one finished and one unfinished snapshot exist. Every chunk has a checksum, and
a running hash goes over the whole (RC-36).

    file     ::= magic(8) header chunk* trailer
    header   ::= bytes(4) crc(4) JSON of the meta
    chunk    ::= bytes(4) crc(4) data              -- bytes > 0
    trailer  ::= 0(4) crc(4) chunks(8) data bytes(8) sha256(32)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from struct import Struct
from zlib import crc32

from kvnode.disk.files import File, FileSystem
from kvnode.disk.whole_file import TEMPORARY
from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.raft.types import Index, LogId, Membership, SnapshotMeta, Term

CHUNK_BYTES_MAX = 64 << 20
"""Bound on a chunk; a longer one on disk is damage."""

_MAGIC = b"kvnodsnp"
_PART = Struct("<II")
_TRAILER = Struct("<QQ32s")
_NAME = "received.snapshot"
_FORMAT = 1


class FileSnapshotStore:
    """``kvnode.ports.SnapshotStore`` in one directory. Used by one thread at a time."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        """Use a directory, made when missing; an unfinished snapshot in it is removed."""
        if not fs.exists(directory):
            fs.mkdir(directory)
            fs.sync_dir(directory.rpartition("/")[0])
        self._fs = fs
        self._directory = directory
        self._path = f"{directory}/{_NAME}"
        self._writer: FileSnapshotWriter | None = None
        fs.unlink(self._path + TEMPORARY)

    def begin(self, meta: SnapshotMeta) -> FileSnapshotWriter:
        """See ``kvnode.ports.SnapshotStore``."""
        if self._writer is not None:
            self._writer.abort()
        self._writer = FileSnapshotWriter(self._fs, self._directory, self._path, meta)
        return self._writer

    def complete(self) -> tuple[SnapshotMeta, str] | None:
        """See ``kvnode.ports.SnapshotStore``. Reads and checks all of it.

        Raises:
            CorruptLog: A finished snapshot is damaged.
        """
        if not self._fs.exists(self._path):
            return None
        self._fs.sync_dir(self._directory)  # a process that died before it did so left the name
        with _Reader(self._fs, self._path) as reader:
            for _ in reader.chunks():
                pass
            return reader.meta, self._path

    def read(self, handle: str) -> Iterator[bytes]:
        """See ``kvnode.ports.SnapshotStore``. The end is checked as well as each chunk."""
        with _Reader(self._fs, handle) as reader:
            yield from reader.chunks()

    def discard(self) -> None:
        """See ``kvnode.ports.SnapshotStore``. Nothing when there is none."""
        if self._fs.exists(self._path):
            self._fs.unlink(self._path)
            self._fs.sync_dir(self._directory)


class FileSnapshotWriter:
    """``kvnode.ports.SnapshotWriter``: one snapshot being received."""

    def __init__(self, fs: FileSystem, directory: str, path: str, meta: SnapshotMeta) -> None:
        """Start the temporary file."""
        self._fs = fs
        self._directory = directory
        self._path = path
        self._temporary = path + TEMPORARY
        fs.unlink(self._temporary)
        self._file: File | None = fs.create(self._temporary)
        self._offset = 0
        self._chunks = 0
        self._data_bytes = 0
        self._hash = hashlib.sha256()
        self._put(_MAGIC)
        self._part(_encode_meta(meta))

    def write(self, chunk: bytes) -> None:
        """See ``kvnode.ports.SnapshotWriter``. An empty chunk is nothing.

        Raises:
            DiskFull: No space; the caller aborts, and nothing else is harmed.
        """
        if len(chunk) > CHUNK_BYTES_MAX:
            raise InvariantBroken(f"a snapshot chunk of {len(chunk)} bytes")
        if chunk:
            self._part(chunk)
            self._chunks += 1
            self._data_bytes += len(chunk)
            self._hash.update(chunk)

    def commit(self) -> None:
        """See ``kvnode.ports.SnapshotWriter``."""
        body = _TRAILER.pack(self._chunks, self._data_bytes, self._hash.digest())
        file = self._put(_PART.pack(0, crc32(body)) + body)
        file.sync()
        file.close()
        self._file = None
        self._fs.rename(self._temporary, self._path)
        self._fs.sync_dir(self._directory)

    def abort(self) -> None:
        """See ``kvnode.ports.SnapshotWriter``."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._fs.unlink(self._temporary)

    def _part(self, data: bytes) -> None:
        self._put(_PART.pack(len(data), crc32(data)) + data)

    def _put(self, data: bytes) -> File:
        if self._file is None:
            raise InvariantBroken("the snapshot is finished or was given up")
        self._file.pwrite(data, self._offset)
        self._offset += len(data)
        return self._file


class _Reader:
    """Reads a snapshot file, checking every byte of it."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self._path = path
        self._file = fs.open(path)
        self._offset = 0
        try:
            self.meta = self._read_meta()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks, then check the trailer."""
        count = total = 0
        running = hashlib.sha256()
        while True:
            at = self._offset
            size, checksum = _PART.unpack(self._take(_PART.size))
            if size == 0:
                break
            data = self._checked(size, checksum, at)
            count += 1
            total += size
            running.update(data)
            yield data
        body = self._checked(_TRAILER.size, checksum, at)
        if _TRAILER.unpack(body) != (count, total, running.digest()):
            raise CorruptLog(f"{self._path}: the whole does not have the hash that its end states")
        if self._file.size() != self._offset:
            raise CorruptLog(f"{self._path}: there is more after the end, at {self._offset}")

    def _read_meta(self) -> SnapshotMeta:
        if self._take(len(_MAGIC)) != _MAGIC:
            raise CorruptLog(f"{self._path}: no snapshot: its first bytes are wrong")
        at = self._offset
        size, checksum = _PART.unpack(self._take(_PART.size))
        data = self._checked(size, checksum, at)
        try:
            return _decode_meta(data)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptLog(
                f"{self._path}: not a snapshot of format {_FORMAT}: {error}"
            ) from error

    def _checked(self, size: int, checksum: int, at: int) -> bytes:
        if size > CHUNK_BYTES_MAX:
            raise CorruptLog(f"{self._path}: the chunk at offset {at} has an impossible length")
        data = self._take(size)
        if crc32(data) != checksum:
            raise CorruptLog(f"{self._path}: the chunk at offset {at} has a bad checksum (RC-71)")
        return data

    def _take(self, size: int) -> bytes:
        data = self._file.pread(size, self._offset)
        if len(data) < size:
            raise CorruptLog(
                f"{self._path}: ends at {self._offset + len(data)}, inside a chunk (RC-73)"
            )
        self._offset += size
        return data


def _encode_meta(meta: SnapshotMeta) -> bytes:
    value = {
        "format": _FORMAT,
        "index": meta.last.index,
        "term": meta.last.term,
        "membership": meta.membership.encode().decode(),
    }
    return json.dumps(value).encode()


def _decode_meta(data: bytes) -> SnapshotMeta:
    value = json.loads(data)
    if value["format"] != _FORMAT:
        raise ValueError(f"format {value['format']}")
    index, term, membership = value["index"], value["term"], value["membership"]
    if type(index) is not int or type(term) is not int or not isinstance(membership, str):
        raise TypeError("a field has the wrong type")
    last = LogId(Index(index), Term(term))
    return SnapshotMeta(last, Membership.decode(membership.encode()))

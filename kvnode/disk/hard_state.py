"""Term, vote and the log's synced end, in two checksummed copies of one file (RC-2, RC-71, RC-72).

Each copy has a page of its own, so that no write touches both. A change writes and syncs copy A, then
copy B: a crash tears at most one of them, and the other is the old or the new state. At start the
newest valid copy counts and both are written again; when neither is valid the node has lost its
memory, and that is an error, never a fresh start (RC-49, RC-50).

With them goes how far the log was synced when they were written. The log by itself cannot tell a
synced frame that was lost from one that was never finished; up to there, this file can.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvnode.disk.files import SECTOR, File, FileSystem
from kvnode.disk.log_format import NOWHERE, LogEnd
from kvnode.errors import CorruptLog, InvariantBroken
from kvnode.raft.types import HardState, NodeId, Term

HARD_STATE_NAME = "hard_state"
VOTE_BYTES_MAX = 255

_COPY_OFFSETS = (0, 4096)
_FILE_BYTES = 8192
_COPY = Struct("<8sIIQQ?B")  # magic, format, crc, number, term, voted, vote bytes; then the vote
_END = Struct("<QQ")  # sequence, offset; in the sector's last bytes, zeros from a build without it
_END_OFFSET = SECTOR - _END.size
_MAGIC = b"kvnodhrd"
_FORMAT = 1

assert _COPY.size + VOTE_BYTES_MAX <= _END_OFFSET


class _Copy(NamedTuple):
    number: int
    """Counts changes: the higher one is newer."""
    state: HardState
    log_end: LogEnd


class HardStateFile:
    """Keeps the hard state durable. After any error it must not be used again (RC-8)."""

    def __init__(self, file: File, copy: _Copy) -> None:
        """Only for ``open``."""
        self._file = file
        self._number = copy.number
        self.state = copy.state
        """What is durable."""
        self.log_end = copy.log_end
        """How far the log is known to be synced. It may be synced further."""
        self.syncs = 0
        """Number of syncs, for tests and metrics."""

    @staticmethod
    def create(fs: FileSystem, directory: str) -> None:
        """Make the file with term 0 and no vote. The caller syncs the directory."""
        file = fs.create(f"{directory}/{HARD_STATE_NAME}")
        try:
            file.preallocate(_FILE_BYTES)
            for offset in _COPY_OFFSETS:
                file.pwrite(_encode(_Copy(0, HardState(Term(0), None), NOWHERE)), offset)
            file.sync()
        finally:
            file.close()

    @staticmethod
    def open(fs: FileSystem, directory: str) -> HardStateFile:
        """Read the state back and repair a damaged or older copy.

        Raises:
            CorruptLog: The file is missing, or no copy is valid: the node does not know its votes.
        """
        path = f"{directory}/{HARD_STATE_NAME}"
        if not fs.exists(path):
            raise CorruptLog(
                f"{path}: missing, but {directory} holds a log: votes may be forgotten"
            )
        file = fs.open(path)
        newest = _newest(file.pread(_FILE_BYTES, 0))
        if newest is None:
            file.close()
            raise CorruptLog(
                f"{path}: both copies, at offsets {_COPY_OFFSETS[0]} and {_COPY_OFFSETS[1]}, are "
                f"damaged: this node no longer knows its votes and must be replaced (RC-72)"
            )
        hard_state = HardStateFile(file, newest)
        # Both are written again, also when they look right: they may have been read from the system's
        # cache, and the process before us may have died before its sync. A goes first, as always: if
        # A is in doubt then B is durable; if B is, then A is, and equal bytes cannot tear.
        hard_state._write(newest)
        return hard_state

    def save(self, state: HardState, log_end: LogEnd) -> None:
        """Make a state durable in both copies, with the end of what is synced of the log.

        Raises:
            InvariantBroken: See ``check_step``, or the end would move back; nothing was written.
        """
        check_step(self.state, state)
        if log_end < self.log_end:
            raise InvariantBroken(f"the log's end would move back from {self.log_end} to {log_end}")
        if (state, log_end) != (self.state, self.log_end):
            self._write(_Copy(self._number + 1, state, log_end))

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _write(self, copy: _Copy) -> None:
        data = _encode(copy)
        for offset in _COPY_OFFSETS:
            self._file.pwrite(data, offset)
            self._file.sync()
            self.syncs += 1
        self._number, self.state, self.log_end = copy


def check_step(old: HardState, new: HardState) -> None:
    """Refuse what would break Raft's promise of one vote per term (RC-75).

    Raises:
        InvariantBroken: The term would fall, or a vote given in it be changed or taken back.
    """
    if new.term < old.term:
        raise InvariantBroken(f"the term would fall from {old.term} to {new.term}")
    if new.term == old.term and old.vote is not None and new.vote != old.vote:
        raise InvariantBroken(f"a second vote in term {old.term}: {new.vote} after {old.vote}")


def log_end_noted(data: bytes) -> LogEnd:
    """How far the log was synced when a file with this content was written."""
    newest = _newest(data)
    return NOWHERE if newest is None else newest.log_end


def _newest(data: bytes) -> _Copy | None:
    """The valid copy with the higher number; None: both are damaged."""
    found = [_decode(data[offset : offset + SECTOR]) for offset in _COPY_OFFSETS]
    copies = (copy for copy in found if copy is not None)
    return max(copies, key=lambda copy: copy.number, default=None)


def _encode(copy: _Copy) -> bytes:
    """One sector; the checksum covers all of it except itself."""
    state = copy.state
    vote = (state.vote or "").encode()
    if len(vote) > VOTE_BYTES_MAX:
        raise InvariantBroken(f"a node id of {len(vote)} bytes; at most {VOTE_BYTES_MAX}")
    fields = (copy.number, state.term, state.vote is not None, len(vote))
    blank = (_COPY.pack(_MAGIC, _FORMAT, 0, *fields) + vote).ljust(_END_OFFSET, b"\0")
    blank += _END.pack(*copy.log_end)
    return _COPY.pack(_MAGIC, _FORMAT, crc32(blank), *fields) + blank[_COPY.size :]


def _decode(sector: bytes) -> _Copy | None:
    """Inverse of ``_encode``; None: damaged."""
    if len(sector) < SECTOR:
        return None
    magic, version, checksum, number, term, voted, size = _COPY.unpack_from(sector)
    blank = _COPY.pack(magic, version, 0, number, term, voted, size) + sector[_COPY.size :]
    if magic != _MAGIC or version != _FORMAT or crc32(blank) != checksum:
        return None
    vote = NodeId(sector[_COPY.size : _COPY.size + size].decode()) if voted else None
    log_end = LogEnd._make(_END.unpack_from(sector, _END_OFFSET))
    return _Copy(number, HardState(Term(term), vote), log_end)

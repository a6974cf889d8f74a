"""The write-ahead log: segments of checksummed frames, and the base file.

Plain synchronous code, owned by one thread. See ``DESIGN.md`` beside this file for what each crash
point leaves, and ``log_format`` for the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvnode.disk.base_file import BaseRecord, read_base, write_base
from kvnode.disk.files import SECTOR, File, FileSystem
from kvnode.disk.log_format import (
    ENTRY_BYTES_MAX,
    NOWHERE,
    SEAL_BYTES,
    LogEnd,
    Scan,
    SegmentHeader,
    encode_frame,
    encode_seal,
    frame_bytes,
    scan,
)
from kvnode.disk.spare import Spare
from kvnode.disk.whole_file import TEMPORARY
from kvnode.errors import CorruptLog, DiskFull, InvariantBroken
from kvnode.ports import LogBase
from kvnode.raft.types import Entry, Index

FREE_BYTES_MIN = 256 << 10
"""Free space below which no new log is made: too small to be of any use."""
FRAME_BYTES_TARGET = 4 << 20
"""Entries are cut into frames of about this size; a longer entry has a frame of its own."""

_SUFFIX = ".seg"


@dataclass(slots=True)
class _Segment:
    """A live segment file."""

    sequence: int
    path: str
    size: int
    seed: int
    max_index: Index
    """Highest index of any frame in it, cut off later or not; it may go once the base is there."""


class RaftLog:
    """An append-only log of entries on disk.

    Nothing is ever overwritten in place: an entry whose index is not above the last one cuts the log
    there when it is read back. After any error the object must not be used again (RC-8).
    """

    def __init__(
        self, fs: FileSystem, directory: str, record: BaseRecord, live: list[_Segment]
    ) -> None:
        """Only for ``create`` and ``open``."""
        self._fs = fs
        self._directory = directory
        self._record = record
        self._live = live
        self._file: File = fs.open(live[-1].path)
        self._offset = SECTOR
        self._spare = Spare(fs, directory)
        self.last_index: Index = record.base.last.index
        """Index of the newest entry; the base's when there is none."""
        self.syncs = 0
        """Number of data syncs, for tests and metrics."""

    # ------------------------------------------------------------------ opening

    @staticmethod
    def create(fs: FileSystem, directory: str, base: LogBase) -> None:
        """Make a new log in an existing, empty directory.

        Raises:
            DiskFull: The volume is too small; the text says how much is needed.
        """
        free = fs.free_bytes(directory)
        if free < FREE_BYTES_MIN:
            raise DiskFull(
                f"{directory}: {free // 1024} KiB free; a new log needs at least "
                f"{FREE_BYTES_MIN // 1024} KiB. Use a larger volume or free some space"
            )
        _make_segment(fs, directory, Spare(fs, directory), 1, base.last.index + 1, 0)
        write_base(fs, directory, BaseRecord(base, 1))

    @staticmethod
    def open(
        fs: FileSystem, directory: str, synced: LogEnd = NOWHERE
    ) -> tuple[RaftLog, list[Entry]]:
        """Read a log back; its entries are contiguous, from ``base.last.index + 1``.

        A torn last frame, which nobody was ever told about, is cut and its place is zeroed. What is
        returned is durable.

        Args:
            fs: Where it is.
            directory: Its path.
            synced: It is known to have been synced up to here; less is damage.

        Raises:
            CorruptLog: Anything else that is not what was written: file and offset are in the text.
        """
        record = read_base(fs, directory)
        found = _find_segments(fs, directory)
        live = [s for s in found if s[0] >= record.first_sequence]
        _check_sequences(live, record.first_sequence, directory)
        segments: list[_Segment] = []
        scans: list[Scan] = []
        replay = _Replay(record.base, directory)
        scanned: Scan | None = None
        unused: list[str] = [path for number, path in found if number < record.first_sequence]
        for position, (sequence, path) in enumerate(live):
            if scanned is not None and not scanned.sealed:
                # Only a crash between making a segment and sealing the one before leaves this.
                _check_unused(fs, path, sequence, segments[-1].path, position == len(live) - 1)
                unused.append(path)
                break
            segment, scanned = _read_segment(fs, path, sequence)
            for frame in scanned.frames:
                segment.max_index = max(segment.max_index, frame[-1].index)
                replay.add(frame, path)
            segments.append(segment)
            scans.append(scanned)
        assert scanned is not None, "checked: the first segment exists"
        if scanned.sealed:
            raise CorruptLog(
                f"{directory}: the segment after {segments[-1].path} is missing; it was sealed at "
                f"offset {scanned.end}"
            )
        end = LogEnd(segments[-1].sequence, scanned.end)
        if end < synced:
            raise CorruptLog(
                f"{segments[-1].path}: the log ends at offset {end.offset} of segment {end.sequence}, "
                f"but was synced up to {synced.offset} of {synced.sequence}: synced data are missing"
            )
        entries = replay.finish()
        log = RaftLog(fs, directory, record, segments)
        log._offset = scanned.end
        if entries:
            log.last_index = entries[-1].index
        for segment, found_there in zip(segments[-2:], scans[-2:], strict=True):
            _settle(fs, segment, found_there)
        if scanned.torn:
            log._clear_tail()
        write_base(fs, directory, record)
        log._remove(unused)
        return log, entries

    @property
    def base(self) -> LogBase:
        """Where the log starts."""
        return self._record.base

    @property
    def end(self) -> LogEnd:
        """Up to here it is synced. After an error: up to here it was."""
        return LogEnd(self._live[-1].sequence, self._offset)

    def close(self) -> None:
        """Release the file. Does not sync: everything was."""
        self._spare.close()
        self._file.close()

    # ------------------------------------------------------------------ writing

    def append(self, entries: Sequence[Entry]) -> None:
        """Write contiguous entries and sync them: one write and one sync up to about 4 MiB.

        The first one may lie at or below ``last_index``: it and its successors replace what is there.

        Raises:
            DiskFailed: Nothing or everything of it may be durable.
            InvariantBroken: The entries do not fit to the log; nothing was written.
        """
        first, last = entries[0].index, entries[-1].index
        if last - first != len(entries) - 1:
            raise InvariantBroken(f"entries {first} to {last} are not contiguous")
        if not self.base.last.index < first <= self.last_index + 1:
            raise InvariantBroken(
                f"entry {first} does not fit to a log of {self.base.last.index} < i <= "
                f"{self.last_index}"
            )
        for frame, size in _frames(entries):
            self._write_frame(frame, size)

    def compact(self, base: LogBase) -> None:
        """Forget entries up to ``base.last``, which must be in the log."""
        if not self.base.last.index <= base.last.index <= self.last_index:
            raise InvariantBroken(
                f"cannot compact to {base.last}: the log holds {self.base.last.index} < i <= "
                f"{self.last_index}"
            )
        keep = 0
        while keep < len(self._live) - 1 and self._live[keep].max_index <= base.last.index:
            keep += 1
        self._set_base(BaseRecord(base, self._live[keep].sequence))
        dropped, self._live = self._live[:keep], self._live[keep:]
        self._remove([segment.path for segment in dropped])

    def reset(self, base: LogBase) -> None:
        """Drop every entry and start after ``base.last``: one atomic step (RC-37).

        The new segment is made first, and counts for nothing until the base names it.
        """
        segment = self._make_next(base.last.index + 1, 0)
        self._set_base(BaseRecord(base, segment.sequence))
        dropped, self._live = self._live, [segment]
        self.last_index = base.last.index
        self._use(segment)
        self._remove([old.path for old in dropped])

    def prepare(self) -> bool:
        """Make a piece of the next segment ahead of need. Returns whether there is more to do.

        For moments when nobody waits: see ``spare``.

        Raises:
            DiskFull: No space for a spare. The log itself is not harmed.
        """
        return self._spare.step()

    @property
    def wants_spare(self) -> bool:
        """There is no file ready for the next segment."""
        return not self._spare.ready

    # ------------------------------------------------------------------ inside

    def _write_frame(self, entries: Sequence[Entry], size: int) -> None:
        if self._offset + size + SEAL_BYTES > self._live[-1].size:
            self._roll(entries[0].index, size)
        segment = self._live[-1]
        data = encode_frame(segment.seed, self._offset, entries)
        assert len(data) == size, "the size of a frame is known before it is built"
        self._file.pwrite(data, self._offset)
        self._sync()
        self._offset += size
        self.last_index = entries[-1].index
        segment.max_index = max(segment.max_index, self.last_index)

    def _roll(self, first_index: Index, need: int) -> None:
        """Go on in a new segment: make it, and only then seal the old one.

        So a sealed segment always has a successor, and a log that lost its newest segment is
        recognised; an unsealed one has at most an unused successor, left by a crash in between.
        """
        segment = self._make_next(first_index, need)
        old = self._live[-1]
        self._file.pwrite(encode_seal(old.seed, self._offset, first_index), self._offset)
        self._sync()
        self._live.append(segment)
        self._use(segment)

    def _make_next(self, first_index: int, need: int) -> _Segment:
        sequence = self._live[-1].sequence + 1
        return _make_segment(self._fs, self._directory, self._spare, sequence, first_index, need)

    def _use(self, segment: _Segment) -> None:
        self._file.close()
        self._file = self._fs.open(segment.path)
        self._offset = SECTOR

    def _set_base(self, record: BaseRecord) -> None:
        try:
            write_base(self._fs, self._directory, record)
        except DiskFull:
            # Compaction is what frees space, so it must work without any: the spare gives way.
            # This is no second try of a failed sync (RC-8): the new copy was removed, unread.
            if not self._spare.drop():
                raise
            write_base(self._fs, self._directory, record)
        self._record = record

    def _clear_tail(self) -> None:
        """Zero what a torn frame left, so that a later torn frame can be told again."""
        size = self._live[-1].size
        rest = self._file.pread(size - self._offset, self._offset).rstrip(b"\0")
        self._file.pwrite(bytes(len(rest)), self._offset)
        self._sync()

    def _sync(self) -> None:
        self._file.sync()
        self.syncs += 1

    def _remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._fs.unlink(path)
        if paths:
            self._fs.sync_dir(self._directory)


class _Replay:
    """Joins frames to a list of entries, checking that they fit together."""

    def __init__(self, base: LogBase, directory: str) -> None:
        self._base = base.last
        self._directory = directory
        self._entries: list[Entry] = []
        self._next: int | None = None

    def add(self, frame: list[Entry], path: str) -> None:
        """Append a frame, which may cut off what is there."""
        first = frame[0].index
        limit = self._base.index + 1 if self._next is None else self._next
        if not 0 < first <= limit:
            raise CorruptLog(f"{path}: entry {first} follows {limit - 1}: entries are missing")
        start = self._base.index + 1
        del self._entries[max(0, first - start) :]
        self._entries.extend(frame if first >= start else frame[start - first :])
        self._next = frame[-1].index + 1

    def finish(self) -> list[Entry]:
        """Return the entries after the base."""
        if self._next is not None and self._next <= self._base.index:
            raise CorruptLog(
                f"{self._directory}: the log ends at {self._next - 1}, before its base {self._base}"
            )
        term = self._base.term
        for entry in self._entries:
            if entry.term < term:
                raise CorruptLog(f"{self._directory}: entry {entry.id} follows one of term {term}")
            term = entry.term
        return self._entries


def _frames(entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], int]]:
    """Cut entries into frames, each with its size in bytes."""
    start = 0
    total = 0
    for position, entry in enumerate(entries):
        size = len(entry.data)
        if size > ENTRY_BYTES_MAX:
            raise InvariantBroken(f"entry {entry.id} has {size} bytes; the log's bound was passed")
        if position > start and total + size > FRAME_BYTES_TARGET:
            yield entries[start:position], frame_bytes(total, position - start)
            start, total = position, 0
        total += size
    whole = entries if start == 0 else entries[start:]
    yield whole, frame_bytes(total, len(entries) - start)


def _segment_name(sequence: int, first_index: int) -> str:
    return f"{sequence:012d}-{first_index:020d}{_SUFFIX}"


def _find_segments(fs: FileSystem, directory: str) -> list[tuple[int, str]]:
    """Sequence and path of each segment file, in order; removes unfinished files."""
    found: list[tuple[int, str]] = []
    for name in fs.listdir(directory):
        if name.endswith(TEMPORARY):
            fs.unlink(f"{directory}/{name}")
        elif name.endswith(_SUFFIX):
            number = name.partition("-")[0]
            if not number.isdecimal():
                raise CorruptLog(f"{directory}/{name}: no name of a segment")
            found.append((int(number), f"{directory}/{name}"))
    return sorted(found)


def _check_sequences(live: list[tuple[int, str]], first: int, directory: str) -> None:
    for expected, (sequence, _) in enumerate(live, start=first):
        if sequence != expected:
            raise CorruptLog(f"{directory}: segment {expected} is missing (or {sequence} twice)")
    if not live:
        raise CorruptLog(f"{directory}: segment {first}, where the log starts, is missing")


def _read_segment(fs: FileSystem, path: str, sequence: int) -> tuple[_Segment, Scan]:
    file = fs.open(path)
    try:
        size = file.size()
        header = SegmentHeader.decode(file.pread(SECTOR, 0), path)
        if size != header.size:
            raise CorruptLog(
                f"{path}: {size} bytes long, but its header says {header.size} (RC-73)"
            )
        if header.sequence != sequence:
            raise CorruptLog(f"{path}: holds segment {header.sequence}, not {sequence}")
        data = file.pread(size, 0)
    finally:
        file.close()
    if len(data) != size:
        raise CorruptLog(f"{path}: only {len(data)} of {size} bytes could be read")
    segment = _Segment(sequence, path, size, header.seed, Index(0))
    return segment, scan(data, header, path)


def _settle(fs: FileSystem, segment: _Segment, found: Scan) -> None:
    """Make a segment's last frame durable by writing it again.

    The process before us may have died, or failed, between the write and the sync: then the frame was
    read from the system's cache and may not be on the disk. A sync alone does not do, because after a
    failed one the kernel takes the pages for clean (RC-8). Only the last frame can be in doubt.
    """
    file = fs.open(segment.path)
    try:
        if found.end > found.last:
            file.pwrite(file.pread(found.end - found.last, found.last), found.last)
        file.sync()
    finally:
        file.close()


def _check_unused(fs: FileSystem, path: str, sequence: int, before: str, last: bool) -> None:
    """The segment after an unsealed one must be the last one and hold nothing."""
    _, scanned = _read_segment(fs, path, sequence)
    if not last or scanned.frames or scanned.sealed or scanned.torn:
        raise CorruptLog(f"{before}: not sealed, but {path} goes on: synced frames are missing")


def _make_segment(
    fs: FileSystem, directory: str, spare: Spare, sequence: int, first_index: int, need: int
) -> _Segment:
    """Make a segment file, whole and durable before it gets its name (RC-9)."""
    size = spare.take(SECTOR + need + SEAL_BYTES)
    header = SegmentHeader(sequence, Index(first_index), size)
    path = f"{directory}/{_segment_name(sequence, first_index)}"
    file = fs.open(spare.path)
    try:
        file.pwrite(header.encode(), 0)
        file.sync()
    finally:
        file.close()
    fs.rename(spare.path, path)
    fs.sync_dir(directory)
    return _Segment(sequence, path, size, header.seed, Index(0))

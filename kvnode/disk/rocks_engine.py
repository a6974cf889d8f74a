"""The state engine on disk: RocksDB through ``rocksdict`` in raw mode.

Writes go to RocksDB's own write-ahead log without a sync: a crash of the process loses nothing, a crash
of the machine a suffix of the batches, which the Raft log replays (RC-10). RocksDB's checksums are on
and checked on every block read. Every ``rocksdict`` exception is translated here and nowhere else.

A live iterator keeps RocksDB, and with it the directory's lock, open even after ``close``; so iterators
live inside generators that end with the call that needed them, and ``close`` releases the snapshots
that are still open.

What ``rocksdict`` 0.3.29 does not do, found by the contract test and worked around here: iterators of its
``Snapshot`` see later writes, so our snapshot is an iterator, which does keep its moment;
``set_iterate_lower_bound`` sets the upper bound; ``Rdict.items`` takes an unreadable block for the end
of the data. Measurements: ``kvnode/store/DESIGN.md``.

What RocksDB does not notice: a manifest that lost its end. It takes that for an older state, opens the
tables that this one names, and replays the newest write-ahead log on top, whatever was flushed in
between. The result has the newest applied index and a hole in its middle. So each engine leaves
*milestones* among its rows, see ``_Miles``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
)

from kvnode.disk.rocks_records import check_records
from kvnode.errors import (
    CorruptLog,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    InvariantBroken,
    MustStop,
)
from kvnode.store.engine import Rows, Write

WRITE_BUFFER_BYTES: Final = 16 * 1024 * 1024
BLOCK_CACHE_BYTES: Final = 32 * 1024 * 1024
RECLAIM_BYTES_MAX: Final = 128 * 1024 * 1024
"""Tables beyond this are left to ordinary compaction."""
RECLAIM_SPARE_BYTES: Final = 1024 * 1024
WRITE_BUFFER_BYTES_MIN: Final = 64 * 1024
"""RocksDB raises anything lower to this."""

_OWN: Final = b"\xff" * 8
"""Keys that begin like this are the engine's own. The store has no such table."""
_MILE: Final = _OWN + b"m"
_NEWEST_MILE: Final = _OWN + b"n"
_NUMBER: Final = Struct(">Q")
_MILES_KEPT: Final = 64
"""Far more than the write buffers and their log can hold."""
_MILES_PER_BUFFER: Final = 4
_WRITE_OVERHEAD: Final = 64
"""Bytes counted per write besides key and value; more than the buffer needs, so that miles are short."""

_CURRENT: Final = "CURRENT"
_CURRENT_NEW: Final = "CURRENT.new"


class RocksSettings(NamedTuple):
    """How much memory and disk an engine may use."""

    write_buffer_bytes: int = WRITE_BUFFER_BYTES
    """Size of one write buffer; up to three are in memory, and the write-ahead log preallocates a
    little more than one on disk. At least 64 KiB; an eighth of a tiny volume is a good choice."""
    block_cache_bytes: int = BLOCK_CACHE_BYTES
    """Uncompressed blocks kept for reads."""


def _options(settings: RocksSettings, *, create: bool) -> Options:
    buffer = max(settings.write_buffer_bytes, WRITE_BUFFER_BYTES_MIN)
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_error_if_exists(create)
    options.set_paranoid_checks(True)
    options.set_write_buffer_size(buffer)
    options.set_max_write_buffer_number(3)
    options.set_max_total_wal_size(2 * buffer)
    # The first corrupt record ends the replay: what follows it would have a gap before it. That the
    # state is then older than the Raft log's base is for the replica to see (RC-10).
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_target_file_size_base(max(buffer, 256 * 1024))
    options.set_max_bytes_for_level_base(4 * max(buffer, 256 * 1024))
    # A stalled write would stall the event loop, holding the interpreter: stall late.
    options.set_level_zero_file_num_compaction_trigger(4)
    options.set_level_zero_slowdown_writes_trigger(64)
    options.set_level_zero_stop_writes_trigger(128)
    options.set_max_background_jobs(2)
    options.set_bytes_per_sync(1024 * 1024)
    options.set_compression_type(DBCompressionType.lz4())
    # RocksDB's own log files and preallocations would fill a tiny volume.
    options.set_manifest_preallocation_size(min(buffer // 4, 4 * 1024 * 1024))
    options.set_max_log_file_size(min(max(buffer // 4, 32 * 1024), 1024 * 1024))
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(settings.block_cache_bytes))
    # Most gets of a growing store are for keys that are not there yet.
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options


def _translate(error: Exception, what: str) -> MustStop:
    """Say in our words what RocksDB said. Its errors are told apart by how their text starts."""
    text = str(error)
    if "lock hold by" in text or "While lock file" in text:
        return DirectoryInUse(f"{what}: {text}")
    if "No space left on device" in text or "quota exceeded" in text:
        return DiskFull(f"{what}: {text}")
    if text.startswith(("Corruption", "Invalid argument", "NotFound", "Not implemented")):
        return CorruptLog(f"{what}: {text}")
    if "No such file or directory" in text:  # one of the engine's own: it was there (RC-73)
        return CorruptLog(f"{what}: {text}")
    if isinstance(error, (DbClosedError, RuntimeError, TypeError, KeyError)):
        return InvariantBroken(f"{what}: {text}")
    return DiskFailed(f"{what}: {text}")


def _refused(error: Exception, path: Path) -> MustStop:
    return _translate(error, f"the state engine in {path} could not be opened")


OnCorrupt = Callable[[CorruptLog], None]


def _nobody(_error: CorruptLog) -> None:
    """Whoever gets the exception looks after it."""


def _rows(
    iterator: Any,
    start: bytes,
    stop: bytes,
    failed: Callable[[Exception, str], MustStop],
    *,
    reverse: bool,
) -> Rows:
    """Walk a positioned iterator to the end of the range; drop it however the walk ends."""
    try:
        valid, key, value = iterator.valid, iterator.key, iterator.value
        step = iterator.prev if reverse else iterator.next
        while valid():
            raw: bytes = key()
            if (raw < start) if reverse else (raw >= stop):
                return
            yield raw, value()
            step()
        # An unreadable block only ends the walk: without this look it would pass for the end of
        # the data (RC-71). That is also why ``Rdict.items``, which does not look, is not used.
        iterator.status()
    except Exception as error:
        raise failed(error, "the state engine could not be scanned") from error


def _seek(iterator: Any, start: bytes) -> None:
    if start:
        iterator.seek(start)
    else:
        iterator.seek_to_first()


def _empty() -> Rows:
    yield from ()


class RocksSnapshot:
    """A consistent view of one moment; may be read in another thread.

    It is one RocksDB iterator, so one scan at a time: opening another moves the first one.
    """

    __slots__ = ("_failed", "_forget", "_iterator")

    def __init__(
        self,
        iterator: Any,
        forget: Callable[[RocksSnapshot], None],
        failed: Callable[[Exception, str], MustStop],
    ) -> None:
        """Wrap an iterator; ``forget`` is called once, when the snapshot is closed; ``failed``
        translates an error.
        """
        self._iterator = iterator
        self._forget = forget
        self._failed = failed

    def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> Rows:
        """Yield ``[start, stop)``, see ``EngineSnapshot``."""
        iterator = self._iterator
        if iterator is None:
            raise InvariantBroken("a closed snapshot was read")
        if stop is None:
            stop = _OWN
        try:
            if not reverse:
                _seek(iterator, start)
            else:
                iterator.seek_for_prev(stop)
                if iterator.valid() and iterator.key() == stop:
                    iterator.prev()
        except Exception as error:
            raise self._failed(error, "the state engine could not be scanned") from error
        return _rows(iterator, start, stop, self._failed, reverse=reverse)

    def close(self) -> None:
        """Release the view."""
        if self._iterator is not None:
            self._iterator = None
            self._forget(self)


class _Miles:
    """Numbered rows among the others, by which a hole in the engine's past is seen at the next open.

    What RocksDB loses without noticing is always whole write buffers: flushed into tables, their
    write-ahead log removed, and then the manifest forgets the tables. So every buffer gets at least
    one milestone of its own, and every batch says which milestone is the newest: when the batches
    after a hole are there, the milestones in it are missing. Old ones are deleted.
    """

    __slots__ = ("_length", "_newest", "_rest")

    def __init__(self, buffer_bytes: int, newest: int) -> None:
        """``newest`` is the last milestone of an engine that was opened; 0 in a new one."""
        self._length = buffer_bytes // _MILES_PER_BUFFER
        self._newest = newest
        self._rest = 0
        """Bytes until the next one. 0 at first: opening flushes, so what follows is a new buffer."""

    @staticmethod
    def read(database: Any, path: Path) -> int:
        """Check the milestones of an engine and return the newest.

        Raises:
            CorruptLog: There is a hole.
        """
        record = database.get(_NEWEST_MILE)
        newest: int = _NUMBER.unpack(record)[0] if record is not None else 0
        for number in range(max(1, newest - _MILES_KEPT + 1), newest + 1):
            if database.get(_MILE + _NUMBER.pack(number)) is None:
                raise CorruptLog(
                    f"the state engine in {path} has a hole: milestone {number} of {newest} is "
                    f"missing, and the batches around it. Its MANIFEST or a table lost synced data"
                )
        return newest

    def mark(self, writes: Any, size: int) -> None:
        """Add to a batch of ``size`` bytes what makes a hole before it visible."""
        if self._rest <= 0:
            self._newest += 1
            writes[_MILE + _NUMBER.pack(self._newest)] = b""
            if self._newest > _MILES_KEPT:
                del writes[_MILE + _NUMBER.pack(self._newest - _MILES_KEPT)]
            self._rest = self._length
        self._rest -= size
        writes[_NEWEST_MILE] = _NUMBER.pack(self._newest)


class RocksEngine:
    """An ordered map in a directory, see ``Engine``."""

    __slots__ = ("_closed", "_db", "_miles", "_on_close", "_on_corrupt", "_snapshots", "path")

    def __init__(
        self,
        path: Path,
        settings: RocksSettings,
        *,
        create: bool,
        on_close: Callable[[], None] | None = None,
        on_corrupt: OnCorrupt = _nobody,
    ) -> None:
        """Open a directory, or make it: with ``create`` it must not hold an engine yet, without it
        must. ``on_close`` is called once, after the engine was closed. ``on_corrupt`` hears of each
        damage that an open engine meets, in whatever thread, before the exception is raised.

        Raises:
            CorruptLog: Nothing readable is there, or some of what was written is missing.
            DirectoryInUse: Another engine has it open.
            DiskFailed: The operating system refused; ``DiskFull`` when there is no space.
        """
        self.path = path
        self._on_close = on_close
        self._on_corrupt = on_corrupt
        self._closed = False
        self._snapshots: set[RocksSnapshot] = set()
        try:
            if not create:
                check_records(path)
            self._db: Any = Rdict(str(path), _options(settings, create=create))
        except CorruptLog:
            raise
        except Exception as error:
            raise _refused(error, path) from error
        try:
            newest = _Miles.read(self._db, path)
        except Exception as error:
            self.close()  # whoever sets the damaged files aside begins again in the same place
            if isinstance(error, CorruptLog):
                raise
            raise _refused(error, path) from error
        self._miles = _Miles(max(settings.write_buffer_bytes, WRITE_BUFFER_BYTES_MIN), newest)

    def _failed(self, error: Exception, what: str) -> MustStop:
        """Translate an error; damage is told to whoever must stop the node, whoever ran into it."""
        stop = _translate(error, f"{what} (in {self.path})")
        if isinstance(stop, CorruptLog):
            self._on_corrupt(stop)
        return stop

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._failed(error, "the state engine could not be read") from error
        return value

    def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> Rows:
        """Yield ``[start, stop)``, see ``Engine``."""
        if stop is None:
            stop = _OWN
        if start >= stop:
            return _empty()
        try:
            options = ReadOptions()
            # Else the step behind the last row would walk over deleted rows to the next live one.
            options.set_iterate_upper_bound(stop)
            iterator = self._db.iter(options)
            if reverse:
                iterator.seek_to_last()
            else:
                _seek(iterator, start)
        except Exception as error:
            raise self._failed(error, "the state engine could not be scanned") from error
        return _rows(iterator, start, stop, self._failed, reverse=reverse)

    def write(self, batch: Sequence[Write]) -> None:
        """Apply a batch; not synced."""
        try:
            writes = WriteBatch(raw_mode=True)
            size = 0
            for key, value in batch:
                if value is None:
                    del writes[key]
                else:
                    writes[key] = value
                    size += len(value)
                size += len(key) + _WRITE_OVERHEAD
            self._miles.mark(writes, size)
            self._db.write(writes)
        except Exception as error:
            raise self._failed(error, "the state engine could not be written") from error

    def flush(self) -> None:
        """Sync RocksDB's write-ahead log, and with it everything written so far.

        This is one ``fdatasync`` of each log file not synced yet, and an ``fsync`` of the directory
        for new ones (seen with strace); the interpreter is free meanwhile. Flushing the write buffers
        into tables instead would be as durable and a hundred times as slow.
        """
        try:
            self._db.flush_wal(True)
            failed = self._db.property_int_value("rocksdb.background-errors")
        except Exception as error:
            raise self._failed(error, "the state engine could not be synced") from error
        if failed:
            raise DiskFailed(f"the state engine counts {failed} failed background writes")

    def reclaim(self, free: int) -> None:
        """Give the space of deleted rows back, from any thread, where that cannot fill the volume.

        The tables are rewritten beside the old ones, so all that is alive must fit into ``free`` bytes with
        room to spare. What is alive is counted by looking at it, which bounds this to small volumes; on a
        large one the part that a reserve is for is small, and compaction comes to it by itself.

        Raises:
            MustStop: The disk failed, or damage was met.
        """
        try:
            if (
                self._db.property_int_value("rocksdb.total-sst-files-size") or 0
            ) > RECLAIM_BYTES_MAX:
                return
            with closing(self.scan(b"", None)) as rows:
                alive = sum(len(key) + len(row) for key, row in rows)
            if alive + alive // 4 + RECLAIM_SPARE_BYTES > free:
                return
            self._db.flush()
            self._db.compact_range(None, None)
        except DbClosedError:
            return  # a restore has just put another engine in this one's place
        except MustStop:
            raise
        except Exception as error:
            raise self._failed(error, "the state engine could not be compacted") from error

    def snapshot(self) -> RocksSnapshot:
        """Open a consistent view of this moment."""
        try:
            snapshot = RocksSnapshot(self._db.iter(), self._snapshots.discard, self._failed)
        except Exception as error:
            raise self._failed(error, "the state engine could not be read") from error
        self._snapshots.add(snapshot)
        return snapshot

    def close(self) -> None:
        """Close the engine and its snapshots, and release the directory.

        ``rocksdict`` flushes the write buffers into tables on the way and waits for background work, so
        this may take a while. Nobody may rely on that flush, so its failure is no failure of ours:
        what is damaged is found by whoever reads it.
        """
        if self._closed:
            return
        self._closed = True
        for snapshot in list(self._snapshots):
            snapshot.close()
        database, self._db = self._db, _CLOSED
        with suppress(Exception):
            database.close()
        # When its flush failed it is still open: dropping the last reference closes it.
        del database
        if self._on_close is not None:
            self._on_close()


class _Closed:
    """Stands where the database was."""

    def __getattr__(self, name: str) -> Any:
        raise DbClosedError("the engine is closed")


_CLOSED: Final = _Closed()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RocksEngineFactory:
    """Generations of engines in one directory, see ``EngineFactory``.

    ``directory/CURRENT`` names the current generation, and ``directory/<n>/`` holds it. ``CURRENT`` is
    replaced whole: written beside, synced, renamed, the directory synced (RC-9). A generation that
    it does not name is a left-over and is removed. Every method may be slow.
    """

    def __init__(
        self,
        directory: Path,
        settings: RocksSettings | None = None,
        on_corrupt: OnCorrupt = _nobody,
    ) -> None:
        """Use ``directory``, which is made when it is missing; its parent must exist. For
        ``on_corrupt`` see ``RocksEngine``.
        """
        self._directory = directory
        self._on_corrupt = on_corrupt
        self._settings = settings or RocksSettings()
        self._current = 0
        self._next = 0

    def open_current(self) -> RocksEngine:
        """Open the current generation, or make the first one in an empty directory.

        Raises:
            CorruptLog: ``CURRENT`` or the generation that it names is unreadable or missing, or there
                is data that no ``CURRENT`` names. Never taken for an empty directory (RC-50).
            DirectoryInUse: Another engine has it open.
            DiskFailed: The operating system refused.
        """
        try:
            if self._directory.exists():
                self._current = self._read_current()
            if not self._current:
                return self._create_first()
            if not self._path(self._current).is_dir():
                raise CorruptLog(f"{self._directory} misses its current state, {self._current}")
            engine = self._open(self._current, create=False)
            self._remove_left_overs()
        except OSError as error:
            raise DiskFailed(
                f"the state in {self._directory} could not be opened: {error}"
            ) from error
        return engine

    def create_next(self) -> RocksEngine:
        """Create an empty engine beside the current one, removing what an earlier try left."""
        assert self._current, "open_current comes first"
        try:
            self._remove_left_overs()
            self._next = self._current + 1
            return self._open(self._next, create=True)
        except OSError as error:
            raise DiskFailed(f"no new state could be made in {self._directory}: {error}") from error

    def switch_to_next(self) -> None:
        """Make the one from ``create_next`` current, durably. It must have been flushed."""
        assert self._next, "create_next comes first"
        try:
            self._write_current(self._next)
        except OSError as error:
            raise DiskFailed(f"{self._directory} could not switch its state: {error}") from error
        self._current, self._next = self._next, 0

    def _path(self, generation: int) -> Path:
        return self._directory / str(generation)

    def _open(self, generation: int, *, create: bool) -> RocksEngine:
        def closed() -> None:
            if generation != self._current:
                shutil.rmtree(self._path(generation), ignore_errors=True)

        return RocksEngine(
            self._path(generation),
            self._settings,
            create=create,
            on_close=closed,
            on_corrupt=self._on_corrupt,
        )

    def _create_first(self) -> RocksEngine:
        if not self._directory.exists():
            self._directory.mkdir()
            _sync(self._directory.parent)
        engine = self._open(1, create=True)
        self._write_current(1)
        self._current = 1
        return engine

    def _read_current(self) -> int:
        """Return the current generation, or 0 when the directory holds no state yet."""
        try:
            text = (self._directory / _CURRENT).read_text("ascii")
        except FileNotFoundError:
            self._clear_unfinished()
            return 0
        except ValueError as error:
            raise CorruptLog(f"{self._directory / _CURRENT} is unreadable") from error
        if not text.endswith("\n") or not text[:-1].isdecimal() or int(text) < 1:
            raise CorruptLog(f"{self._directory / _CURRENT} is unreadable: {text[:40]!r}")
        return int(text)

    def _clear_unfinished(self) -> None:
        """Remove what a crash during the very first start left: an engine without any data."""
        for path in self._generations():
            if any(
                file.suffix == ".sst" or (file.suffix == ".log" and file.stat().st_size)
                for file in path.iterdir()
            ):
                raise CorruptLog(f"{path} holds data, but {_CURRENT} beside it is missing")
        for path in self._generations():
            shutil.rmtree(path)

    def _write_current(self, generation: int) -> None:
        beside = self._directory / _CURRENT_NEW
        with beside.open("w", encoding="ascii") as file:
            file.write(f"{generation}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.rename(self._directory / _CURRENT)
        _sync(self._directory)

    def _generations(self) -> list[Path]:
        return sorted(p for p in self._directory.iterdir() if p.name.isdecimal() and p.is_dir())

    def _remove_left_overs(self) -> None:
        for path in self._generations():
            if path != self._path(self._current):
                shutil.rmtree(path)
        (self._directory / _CURRENT_NEW).unlink(missing_ok=True)

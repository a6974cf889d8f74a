"""The file that the next segment will be made of.

A segment is full of zeros before its first frame. Writing them takes 10 to 150 ms, which would be the
latency of whichever batch meets the end of a segment; so they are written ahead of need, a piece at a
time, in moments when nobody waits. The spare also is the reserve with which a log on a full disk still
goes on for a while (RC-70).
"""

from __future__ import annotations

from kvnode.disk.files import File, FileSystem
from kvnode.disk.whole_file import TEMPORARY
from kvnode.errors import DiskFull

SEGMENT_BYTES_MAX = 16 << 20
SEGMENT_BYTES_MIN = 64 << 10
SEGMENT_FREE_SHARE = 16
"""A segment takes at most this share (one in ...) of the free space."""
STEP_BYTES = 1 << 20
"""How much one step writes and syncs: about 2 ms here, 10 ms on a slow disk."""

_PAGE = 4096


class Spare:
    """A file of synced zeros, being made or ready. Its name is not durable; it needs none."""

    def __init__(self, fs: FileSystem, directory: str) -> None:
        """Start without one; what an earlier process left is removed."""
        self._fs = fs
        self._directory = directory
        self._file: File | None = None
        self._have = 0
        self._wanted = 0
        self.path = f"{directory}/spare{TEMPORARY}"
        fs.unlink(self.path)

    @property
    def ready(self) -> bool:
        """There is a whole one."""
        return 0 < self._wanted == self._have

    def step(self) -> bool:
        """Make a piece of it. Returns whether there is more to do.

        Raises:
            DiskFull: No space; the pieces made so far were given back.
        """
        if self.ready:
            return False
        if self._wanted == 0:
            free = self._fs.free_bytes(self._directory)
            if free < 2 * SEGMENT_BYTES_MIN:
                raise DiskFull(
                    f"{self._directory}: {free // 1024} KiB free, too little for a spare"
                )
            self._begin(_size_for(free, 0))
        self._grow(min(self._have + STEP_BYTES, self._wanted))
        return not self.ready

    def take(self, need: int) -> int:
        """Finish it for ``need`` bytes or more, and give it up to the caller. Returns its size.

        When the disk is nearly full the size is what is needed and no more.

        Raises:
            DiskFull: Not even that fits.
        """
        if self._wanted < need:
            self.drop()
            self._begin(_size_for(self._fs.free_bytes(self._directory), need))
        wanted, least = self._wanted, _round_up(need)
        try:
            self._grow(wanted)
        except DiskFull:
            if wanted <= least:
                raise
            self._begin(least)
            self._grow(least)
        size = self._wanted
        self._close()
        return size

    def drop(self) -> bool:
        """Remove it. Returns whether there was anything."""
        had = self._wanted > 0
        self._close()
        if had:
            self._fs.unlink(self.path)
        return had

    def close(self) -> None:
        """Release the file; what is there of it is removed at the next start."""
        self._close()

    def _begin(self, size: int) -> None:
        self._file = self._fs.create(self.path)
        self._have, self._wanted = 0, size

    def _grow(self, size: int) -> None:
        if self._have < size:
            assert self._file is not None
            try:
                self._file.preallocate(size)
                self._file.sync()
            except DiskFull:
                self.drop()
                raise
            self._have = size

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._have = self._wanted = 0


def _size_for(free: int, need: int) -> int:
    """A share of the free space within bounds, and at least what is needed."""
    share = min(max(_round_up(free // SEGMENT_FREE_SHARE), SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX)
    return max(_round_up(need), share)


def _round_up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE

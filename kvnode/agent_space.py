"""Refuses writes before the volume is full (RC-70).

A full disk stops a node: the log cannot grow, and the engine cannot even tidy up. So writes that add
data are refused while there is still room for what must go on: votes, the log's own upkeep, the
engine's flushes and compactions, deletes. Space that comes back ends the refusal by itself.

While writes are refused, deletes go on, and what they leave behind is given back at once if what is left fits
beside it: rewriting the engine's tables needs room, which is what is missing here. Otherwise the engine does
it piece by piece as deletes arrive, and at a restart.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from kvnode.errors import KvnodeError
from kvnode.ports import Scheduler, Worker

_LOG = structlog.get_logger("kvnode.agent")

INTERVAL_S = 0.5
"""Between two looks, while there is plenty."""
_CLOSE_INTERVAL_S = 0.05
_CLOSE = 4
"""Below so many reserves it looks more often: what is written between two looks must fit into one."""
_RECLAIM_INTERVAL_S = 1.0
"""Between two tries to get deleted data's space back."""
_RESERVE_BYTES_MAX = 256 << 20
_RESERVE_FRACTION = 4
_BACK = 1.25
"""Writes are taken again above this much more than the reserve, so that the answer does not flicker."""


def reserve_bytes(volume_bytes: int) -> int:
    """Return how much of a volume must stay free: a quarter of a small one, 256 MiB of a large one.

    An engine that rewrites its files holds old and new ones at a time, and so needs as much room
    again as the part that it rewrites.
    """
    return min(_RESERVE_BYTES_MAX, volume_bytes // _RESERVE_FRACTION)


class SpaceWatch:
    """Looks at the free space now and then, on the worker: a network volume may be slow to answer."""

    def __init__(
        self,
        *,
        free_bytes: Callable[[], int],
        reserve: int,
        refuse: Callable[[str], None],
        scheduler: Scheduler,
        worker: Worker,
        rows: Callable[[], int],
        reclaim: Callable[[int], None],
    ) -> None:
        """Watch nothing yet.

        Args:
            free_bytes: Asks the volume; may be slow, may raise a ``KvnodeError``.
            reserve: Bytes that must stay free.
            refuse: Told why writes are refused from now on; an empty text: they are taken again.
            scheduler: When to look.
            worker: Where to look.
            rows: How many keys there are: fewer than before means that something was deleted.
            reclaim: Gives deleted rows' space back, on the worker; told how many bytes are free.
        """
        self._free_bytes = free_bytes
        self._reserve = reserve
        self._refuse = refuse
        self._scheduler = scheduler
        self._worker = worker
        self._stopped = False
        self._rows = rows
        self._reclaim = reclaim
        self._rows_then = 0
        """How many there were when space was last asked back."""
        self._tried_at = 0.0
        self.refusing = False

    def start(self) -> None:
        """Look now, and then again and again."""
        if not self._stopped:
            self._worker.submit(self._free_bytes, self._looked)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._stopped = True

    def _looked(self, free: int | None, error: KvnodeError | None) -> None:
        if self._stopped:
            return
        if error is not None or free is None:
            # The volume does not answer: the next sync will say so, with consequences.
            self._scheduler.call_later(INTERVAL_S, self.start)
            return
        close = free < _CLOSE * self._reserve
        self._scheduler.call_later(_CLOSE_INTERVAL_S if close else INTERVAL_S, self.start)
        if not self.refusing and free < self._reserve:
            self.refusing = True
            text = f"the volume is nearly full, {self._reserve >> 10} KiB of it must stay free"
            _LOG.error("volume_nearly_full", free_bytes=free, reserve_bytes=self._reserve)
            self._rows_then = self._rows()
            self._refuse(text)
        elif self.refusing and free > self._reserve * _BACK:
            self.refusing = False
            _LOG.info("volume_has_space_again", free_bytes=free)
            self._refuse("")
        elif self.refusing:
            self._make_room(free)

    def _make_room(self, free: int) -> None:
        now, rows = self._scheduler.time(), self._rows()
        if rows >= self._rows_then or now - self._tried_at < _RECLAIM_INTERVAL_S:
            return
        self._rows_then, self._tried_at = rows, now
        self._worker.submit(lambda: self._reclaim(free), self._reclaimed)

    def _reclaimed(self, _: None, error: KvnodeError | None) -> None:
        if error is not None:  # a disk that fails says so again at the next sync, with consequences
            _LOG.warning("space_not_reclaimed", error=str(error))

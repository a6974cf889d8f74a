"""Keeps the window of history within its bounds: the leader's part.

Every node records changes as it applies them; what is forgotten, and whether anything is recorded at
all, is decided by whoever leads, by its own settings, and said through the log (``TrimHistory``). So all
nodes hold the same window, and a feed that moves to another node finds what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvnode.raft.types import Role
from kvnode.store.commands import Result, TrimHistory

if TYPE_CHECKING:
    from kvnode.errors import KvnodeError
    from kvnode.replica.replica import Replica

TRIM_AT_MOST = 1000
"""Changes forgotten by one entry, so that applying it stays short."""

SLACK_SHIFT = 4
"""It may grow by a sixteenth above its bounds before it is cut: a few larger entries, not many small."""


class HistoryKeeper:
    """Looks at the window of one node's store; called about every tick."""

    def __init__(self, replica: Replica) -> None:
        """Nothing is on its way."""
        self._replica = replica
        self._proposed = False

    def look(self) -> None:
        """Propose to trim, if this node leads and it is time."""
        replica = self._replica
        if self._proposed or replica.raft.role is not Role.LEADER or replica.raft.is_transferring:
            return
        command = self._needed()
        if command is not None:
            self._proposed = True
            replica.write(command, self._done)

    def _done(self, result: Result | None, _error: KvnodeError | None) -> None:
        self._proposed = False
        if result is not None:
            self.look()  # there may be more to forget; else the next look tries again

    def _needed(self) -> TrimHistory | None:
        replica = self._replica
        meta, settings = replica.store.meta, replica.settings
        rows_max, bytes_max = settings.history_entries_max, settings.history_bytes_max
        # On a volume that is nearly full, what was deleted must give its space back.
        recording = bool(rows_max and bytes_max and not replica.write_refusal)
        if not recording:
            rows_max = bytes_max = 0
        bound = 0
        if meta.history_rows > rows_max + (
            rows_max >> SLACK_SHIFT
        ) or meta.history_bytes > bytes_max + (bytes_max >> SLACK_SHIFT):
            bound = replica.store.trim_bound(
                meta.history_rows - rows_max, meta.history_bytes - bytes_max, TRIM_AT_MOST
            )
        if bound or meta.recording != recording or meta.history_limit != settings.history_bytes_max:
            return TrimHistory(bound, recording, settings.history_bytes_max)
        return None

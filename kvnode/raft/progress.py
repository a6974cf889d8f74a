"""What a leader knows about one follower, and how much it may send it (RC-68).

PROBE      one message at a time until the follower's position is known
REPLICATE  pipelined, bounded in messages and bytes
SNAPSHOT   nothing: a snapshot is on its way
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from kvnode.raft.types import Index


class ProgressState(Enum):
    """How entries are sent to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, seen by the leader. Constant memory, however slow the follower is."""

    __slots__ = (
        "answered",
        "commit_sent",
        "heard_tick",
        "inflight",
        "inflight_bytes",
        "match_index",
        "next_index",
        "probe_sent",
        "probe_tick",
        "read_round",
        "snapshot_index",
        "state",
    )

    def __init__(self, next_index: Index, tick: int) -> None:
        """Start probing at ``next_index``, as if heard at ``tick``."""
        self.match_index = Index(0)
        """Highest index known to be durable there and equal to ours."""
        self.next_index = next_index
        """First index to send next; always above ``match_index``."""
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.probe_tick = 0
        """The leader's tick at which it last probed; a probe is repeated once per heartbeat interval."""
        self.inflight: deque[tuple[Index, int]] = deque()
        """(last index, bytes) of each AppendEntries under way, while replicating."""
        self.inflight_bytes = 0
        self.heard_tick = tick
        """The leader's tick at which it last heard from the follower (RC-17)."""
        self.answered = False
        """Whether it was heard at all by this leader; until then ``heard_tick`` is only credit."""
        self.read_round = 0
        """Highest read round that it confirmed in this term."""
        self.snapshot_index = Index(0)
        """While in SNAPSHOT: the position that the stream will bring it to at least."""
        self.commit_sent = Index(0)
        """Highest commit index that it was told."""

    def is_paused(self, messages_max: int, bytes_max: int) -> bool:
        """Whether nothing may be sent now."""
        match self.state:
            case ProgressState.PROBE:
                return self.probe_sent
            case ProgressState.REPLICATE:
                return len(self.inflight) >= messages_max or self.inflight_bytes >= bytes_max
            case ProgressState.SNAPSHOT:
                return True

    def heard(self, tick: int) -> None:
        """A message of the leader's term came from it."""
        self.heard_tick = tick
        self.answered = True

    def sent(self, last_index: Index, size: int, count: int, tick: int) -> None:
        """Account for an AppendEntries with ``count`` entries that ends in ``last_index``."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next_index = Index(last_index + 1)
                self.inflight.append((last_index, size))
                self.inflight_bytes += size
        else:
            self.await_answer(tick)

    def await_answer(self, tick: int) -> None:
        """Send no probe before an answer, or a heartbeat interval later (see ``retry_probe``)."""
        self.probe_sent = True
        self.probe_tick = tick

    def retry_probe(self, tick: int, interval: int) -> None:
        """A sign of life: the probe may have been lost.

        Not at each sign, since read rounds bring many, and a probe can carry a megabyte.
        """
        if tick - self.probe_tick >= interval:
            self.probe_sent = False

    def acknowledged(self, index: Index) -> bool:
        """The follower holds everything up to ``index``. Returns whether that was news."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        self.next_index = max(self.next_index, Index(index + 1))
        if index <= self.match_index:
            return False
        self.match_index = index
        self.probe_sent = False
        return True

    def refused(self, prev_index: Index, next_index: Index) -> bool:
        """The follower refused an AppendEntries after ``prev_index``; go on at ``next_index``.

        Returns:
            False when the refusal is stale and must be ignored (RC-26), or a snapshot is on its way.
        """
        if self.state is ProgressState.SNAPSHOT:
            return False
        if prev_index <= self.match_index:
            return False  # It holds that entry durably, so this was said before it did.
        if self.state is ProgressState.REPLICATE:
            self.become_probe()
            return True
        if self.next_index - 1 != prev_index:
            return False
        self.next_index = max(min(prev_index, next_index), Index(self.match_index + 1))
        self.probe_sent = False
        return True

    def become_probe(self) -> None:
        """Find the follower's position again, from what it is known to hold."""
        known = self.match_index
        if self.state is ProgressState.SNAPSHOT:
            known = max(known, self.snapshot_index)
        self._reset(ProgressState.PROBE)
        self.next_index = Index(known + 1)

    def become_replicate(self) -> None:
        """The position is known: pipeline from there."""
        self._reset(ProgressState.REPLICATE)
        self.next_index = Index(self.match_index + 1)

    def become_snapshot(self, index: Index) -> None:
        """A snapshot that reaches at least ``index`` is on its way."""
        self._reset(ProgressState.SNAPSHOT)
        self.snapshot_index = index

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot_index = Index(0)

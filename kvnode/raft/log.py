"""The log in memory: entries after the base, and how far each stage has come.

    base < … <= applied_index <= min(commit_index, stable_index) <= last_index
                handed_index: given to the disk, not yet confirmed

Everything that is retained is held in memory; the driver bounds it by compaction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from kvnode.errors import InvariantBroken
from kvnode.raft.types import Entry, EntryKind, Index, LogId, Membership, Term

ENTRY_OVERHEAD = 64
"""Bytes counted per entry besides its data: header on disk and on the wire, and the objects here."""


def entry_bytes(entry: Entry) -> int:
    """Size used for every bound on entries."""
    return len(entry.data) + ENTRY_OVERHEAD


class RaftLog:
    """Entries ``base.index + 1 … last_index``, contiguous, and the memberships among them."""

    __slots__ = (
        "_entries",
        "_memberships",
        "_tickets",
        "applied_index",
        "base",
        "bytes",
        "commit_index",
        "handed_index",
        "stable_index",
    )

    def __init__(self, base: LogId, membership: Membership, entries: Sequence[Entry]) -> None:
        """Start from what the disk holds: all of it is stable.

        Raises:
            InvariantBroken: The entries are not contiguous from the base, or their terms fall.
        """
        self.base = base
        self._entries = list(entries)
        self.commit_index = base.index
        self.applied_index = base.index
        self.bytes = 0
        self._memberships: list[tuple[Index, Membership]] = [(base.index, membership)]
        # One number per write that is under way: the highest index whose durability it proves.
        self._tickets: list[Index] = []
        previous = base
        for entry in self._entries:
            if entry.index != previous.index + 1 or entry.term < previous.term:
                raise InvariantBroken(f"log entry {entry.id} follows {previous}")
            previous = entry.id
            self._count_in(entry)
        self.stable_index = self.handed_index = self.last_index

    # -- looking ------------------------------------------------------------------------------

    @property
    def first_index(self) -> Index:
        """Index of the first retained entry; ``last_index + 1`` when there is none."""
        return Index(self.base.index + 1)

    @property
    def last_index(self) -> Index:
        """Index of the last entry; the base's when there is none."""
        return Index(self.base.index + len(self._entries))

    @property
    def last(self) -> LogId:
        """Position of the last entry; the base when there is none."""
        return self._entries[-1].id if self._entries else self.base

    @property
    def membership(self) -> Membership:
        """The newest membership in the log, committed or not (thesis §4.1)."""
        return self._memberships[-1][1]

    @property
    def membership_index(self) -> Index:
        """Where the newest membership was appended."""
        return self._memberships[-1][0]

    def membership_at(self, index: Index) -> Membership:
        """The membership in force at ``index`` (not below the base)."""
        assert index >= self.base.index, "compacted"
        return next(m for at, m in reversed(self._memberships) if at <= index)

    def term_at(self, index: Index) -> Term | None:
        """Term of the entry at ``index``; None when compacted away or beyond the end."""
        position = index - self.base.index
        if position == 0:
            return self.base.term
        if 0 < position <= len(self._entries):
            return self._entries[position - 1].term
        return None

    def matches(self, at: LogId) -> bool:
        """Whether the log holds exactly this entry (or has it as its base)."""
        return self.term_at(at.index) == at.term

    def is_up_to_date(self, last: LogId) -> bool:
        """Whether a log that ends in ``last`` is at least as up to date as this one (Raft §5.4.1)."""
        mine = self.last
        return (last.term, last.index) >= (mine.term, mine.index)

    def slice(self, start: Index, stop: Index, bytes_max: int) -> tuple[Entry, ...]:
        """Entries in ``[start, stop)``, cut at ``bytes_max`` but never to less than one entry."""
        assert self.first_index <= start <= stop <= self.last_index + 1, (start, stop)
        low = start - self.base.index - 1
        high = low + (stop - start)
        size = 0
        # Measured before it is copied: a follower far behind asks for one small part after another.
        for position in range(low, high):
            size += len(self._entries[position].data) + ENTRY_OVERHEAD
            if size > bytes_max and position > low:
                high = position
                break
        return tuple(self._entries[low:high])

    def bytes_after(self, index: Index) -> int:
        """Bytes of all entries after ``index``."""
        low = max(0, index - self.base.index)
        return sum(entry_bytes(entry) for entry in self._entries[low:])

    def find_conflict(self, index: Index, term: Term) -> LogId:
        """Return the last position at or before ``index`` whose term is not above ``term``.

        Where a leader and a follower may still agree (RC-26). Never below the base. Terms never fall
        along a log, so it is bisected.
        """
        high = max(0, min(index, self.last_index) - self.base.index)
        count = bisect_right(self._entries, term, 0, high, key=attrgetter("term"))
        return self._entries[count - 1].id if count else self.base

    # -- changing -----------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Append a leader's own entry."""
        assert entry.index == self.last_index + 1, "a leader only appends"
        self._entries.append(entry)
        self._count_in(entry)

    def append_after(self, prev: LogId, entries: Sequence[Entry]) -> Index | None:
        """Append what a leader sent (Raft §5.3).

        Cuts only at a real conflict, so that old, short or doubled requests never remove newer
        matching entries (RC-23).

        Returns:
            The last index proven to match the leader's log; None when ``prev`` does not match.

        Raises:
            InvariantBroken: The conflict is at or below the commit index (RC-24).
        """
        if not self.matches(prev):
            return None
        for position, entry in enumerate(entries):
            if self.term_at(entry.index) == entry.term:
                continue
            if entry.index <= self.last_index:
                self._truncate(entry.index)
            for fresh in entries[position:]:
                self.append(fresh)
            break
        return Index(prev.index + len(entries))

    def check_committed(self, prev: LogId, entries: Sequence[Entry]) -> None:
        """Compare what a leader sent from below the commit index with what is committed here.

        ``prev`` is below the commit index. By the log matching property the last position
        that both hold speaks for all before it.

        Raises:
            InvariantBroken: A leader lacks a committed entry, or this node holds a wrong one (RC-24).
        """
        overlap = min(len(entries), self.commit_index - prev.index)
        last = entries[overlap - 1].id if overlap > 0 else prev
        mine = self.term_at(last.index)
        if mine is not None and mine != last.term:
            raise InvariantBroken(
                f"entry {last.index}@{mine} is committed, but the leader has {last}"
            )

    def _truncate(self, start: Index) -> None:
        """Drop every entry from ``start`` on."""
        if start <= self.commit_index:
            raise InvariantBroken(
                f"asked to replace entry {start}, but entries up to {self.commit_index} are committed"
            )
        low = start - self.base.index - 1
        self.bytes -= sum(entry_bytes(entry) for entry in self._entries[low:])
        del self._entries[low:]
        while self._memberships[-1][0] >= start:
            self._memberships.pop()
        # Writes under way no longer prove anything from here on: the same index may be written
        # again, with the same term even, and its first completion must not count for it (RC-5).
        kept = Index(start - 1)
        self.stable_index = min(self.stable_index, kept)
        self.handed_index = min(self.handed_index, kept)
        self._tickets = [min(ticket, kept) for ticket in self._tickets]

    def _count_in(self, entry: Entry) -> None:
        self.bytes += len(entry.data) + ENTRY_OVERHEAD
        if entry.kind == EntryKind.MEMBERSHIP:
            self._memberships.append((entry.index, Membership.decode(entry.data)))

    def commit_to(self, index: Index) -> bool:
        """Raise the commit index. Returns whether it rose. Never beyond the log's end."""
        if index <= self.commit_index:
            return False
        if index > self.last_index:
            raise InvariantBroken(
                f"told to commit {index} but the log ends at {self.last}: this node lost entries"
            )
        self.commit_index = index
        return True

    # -- the disk -----------------------------------------------------------------------------

    def hand_out(self) -> tuple[Entry, ...]:
        """Entries that the disk has not been given yet; opens a ticket that ``stable_to`` closes."""
        entries = tuple(self._entries[self.handed_index - self.base.index :])
        self.handed_index = self.last_index
        self._tickets.append(self.handed_index)
        return entries

    def stable_to(self) -> None:
        """The oldest ticket's write is durable."""
        proven = self._tickets.pop(0)
        self.stable_index = max(self.stable_index, proven)

    def take_committed(self, bytes_max: int) -> tuple[Entry, ...]:
        """Entries to apply next: committed, and stable on this node's own disk."""
        ready = min(self.commit_index, self.stable_index)
        if ready <= self.applied_index:
            return ()
        entries = self.slice(Index(self.applied_index + 1), Index(ready + 1), bytes_max)
        self.applied_index = entries[-1].index
        return entries

    def compact(self, index: Index) -> LogId:
        """Forget entries up to ``index``, which has been applied. Returns the new base."""
        assert self.base.index <= index <= self.applied_index, (self.base, index)
        term = self.term_at(index)
        assert term is not None
        membership = self.membership_at(index)
        count = index - self.base.index
        self.bytes -= sum(entry_bytes(entry) for entry in self._entries[:count])
        del self._entries[:count]
        self.base = LogId(index, term)
        later = [(at, m) for at, m in self._memberships if at > index]
        self._memberships = [(index, membership), *later]
        return self.base

    def reset(self, base: LogId, membership: Membership) -> None:
        """Replace everything by a snapshot's end (RC-37). The snapshot itself is durable already."""
        assert base.index > self.commit_index, "a snapshot never takes the log back"
        self.base = base
        self._entries = []
        self._memberships = [(base.index, membership)]
        self.bytes = 0
        self.commit_index = self.applied_index = base.index
        self.handed_index = base.index
        # Nothing is stable until the disk has taken the reset: an answer to a doubled request must
        # not claim the snapshot's end before (RC-3).
        self.stable_index = Index(0)
        self._tickets = [Index(0)] * len(self._tickets)

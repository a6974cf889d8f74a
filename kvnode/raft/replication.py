"""Replication: sending entries, the commit rule, heartbeats, snapshots (Raft §5.3, §5.4, §7)."""

from __future__ import annotations

from kvnode.raft.core import Core
from kvnode.raft.log import entry_bytes
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
)
from kvnode.raft.progress import Progress, ProgressState
from kvnode.raft.quorum import majority_index
from kvnode.raft.types import Index, LogId, NodeId, Role, SnapshotMeta, Term

# -- the leader's side --------------------------------------------------------------------------


def send_appends(core: Core) -> None:
    """Give every follower what it lacks, as far as its window allows.

    Called once per ``Ready``, so that all proposals of a turn travel in one message per follower.
    """
    for node, progress in core.progress.items():
        while progress.next_index <= core.log.last_index and _send_append(core, node, progress):
            pass


def has_appends(core: Core) -> bool:
    """Whether ``send_appends`` would send anything."""
    config = core.config
    return any(
        progress.next_index <= core.log.last_index
        and not progress.is_paused(config.inflight_messages_max, config.inflight_bytes_max)
        for progress in core.progress.values()
    )


def _send_append(core: Core, node: NodeId, progress: Progress) -> bool:
    """Send one AppendEntries, maybe empty. False: nothing more for now."""
    config = core.config
    if progress.is_paused(config.inflight_messages_max, config.inflight_bytes_max):
        return False
    prev_index = Index(progress.next_index - 1)
    prev_term = core.log.term_at(prev_index)
    if prev_term is None:
        _ask_about_base(core, node, progress)
        return False
    stop = Index(core.log.last_index + 1)
    entries = (
        core.log.slice(progress.next_index, stop, config.append_bytes_max)
        if progress.next_index < stop
        else ()
    )
    commit = core.log.commit_index
    core.send(
        AppendEntries(core.id, node, core.term, LogId(prev_index, prev_term), entries, commit)
    )
    last = entries[-1].index if entries else prev_index
    progress.sent(last, sum(map(entry_bytes, entries)), len(entries), core.tick_count)
    progress.commit_sent = min(commit, last)
    return bool(entries)


def _ask_about_base(core: Core, node: NodeId, progress: Progress) -> None:
    """What it may lack is compacted away: ask whether it holds the log's base, where the log begins.

    Only its refusal leads to a snapshot. A follower whose answers were lost may hold more than it could
    say; it would refuse a snapshot that brings it nothing, and that refusal says nothing either.
    """
    base = core.log.base
    progress.become_probe()
    progress.next_index = Index(base.index + 1)
    progress.commit_sent = base.index
    core.send(AppendEntries(core.id, node, core.term, base, (), core.log.commit_index))
    progress.await_answer(core.tick_count)


def _send_snapshot(core: Core, node: NodeId, progress: Progress) -> None:
    """What it lacks is compacted away: ask the driver to stream a snapshot (thesis §5.1)."""
    base = core.log.base
    progress.become_snapshot(base.index)
    meta = SnapshotMeta(base, core.log.membership_at(base.index))
    core.trace("snapshot_needed", {"term": core.term, "index": base.index, "to": node})
    core.send(InstallSnapshot(core.id, node, core.term, meta))


def report_snapshot(core: Core, node: NodeId, reached: Index | None) -> None:
    """A stream ended: the follower holds everything up to ``reached``, or it failed (None)."""
    progress = core.progress.get(node)
    if core.role is not Role.LEADER or progress is None:
        return
    if progress.state is not ProgressState.SNAPSHOT:
        return
    progress.snapshot_index = reached if reached is not None else Index(0)
    progress.become_probe()
    # After a failure wait for a sign of life: a follower that refuses snapshots is not hammered.
    if reached is None:
        progress.await_answer(core.tick_count)


def report_unreachable(core: Core, node: NodeId) -> None:
    """The connection broke, and messages on it are lost: find the position again."""
    progress = core.progress.get(node)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe()


def send_heartbeats(core: Core) -> None:
    """Tell everybody that this leader lives, and the newest read round (Raft §5.2)."""
    for node, progress in core.progress.items():
        _send_heartbeat(core, node, progress)


def spread_commit(core: Core) -> None:
    """Tell followers a commit index that no AppendEntries has told them yet."""
    for node, progress in core.progress.items():
        if progress.commit_sent < min(core.log.commit_index, progress.match_index):
            _send_heartbeat(core, node, progress)


def _send_heartbeat(core: Core, node: NodeId, progress: Progress) -> None:
    # Never more than what the follower is known to hold: its log may differ beyond (RC-25).
    commit = min(core.log.commit_index, progress.match_index)
    progress.commit_sent = max(progress.commit_sent, commit)
    core.send(Heartbeat(core.id, node, core.term, commit, core.read_round))


def handle_append_reply(core: Core, message: AppendEntriesReply) -> None:
    """Learn how far a follower is."""
    progress = core.progress.get(message.sender)
    if progress is None:
        return
    progress.heard(core.tick_count)
    if message.rejected:
        hint, base = message.match_index, core.log.base.index
        if hint > base:
            hint = core.log.find_conflict(hint, message.hint_term).index
        probed = progress.state is ProgressState.PROBE
        if not progress.refused(message.prev_index, Index(hint + 1)):
            return
        if probed and progress.next_index <= base:
            _send_snapshot(core, message.sender, progress)
        else:
            _send_append(core, message.sender, progress)
        return
    if message.match_index > core.log.last_index:
        return  # From a peer that confuses terms; never believe more than we hold.
    advanced = progress.acknowledged(message.match_index)
    if progress.state is ProgressState.PROBE or (
        progress.state is ProgressState.SNAPSHOT
        and message.match_index >= max(progress.snapshot_index, core.log.base.index)
    ):
        progress.become_replicate()
    if advanced:
        advance_commit(core)


def handle_heartbeat_reply(core: Core, message: HeartbeatReply) -> None:
    """A sign of life; a follower that is behind although nothing is under way is probed again."""
    progress = core.progress.get(message.sender)
    if progress is None:
        return
    progress.heard(core.tick_count)
    progress.read_round = max(progress.read_round, message.read_round)
    progress.retry_probe(core.tick_count, core.config.heartbeat_ticks)
    if progress.match_index < core.log.last_index and not progress.inflight:
        _send_append(core, message.sender, progress)


def probe_stalled(core: Core) -> None:
    """At each heartbeat interval: entries under way to a follower may have been lost on the way.

    An empty AppendEntries after the last one sent is refused by a follower that misses any of them,
    and starts the search again.
    """
    for node, progress in core.progress.items():
        if progress.state is ProgressState.REPLICATE and progress.inflight:
            prev_index = Index(progress.next_index - 1)
            term = core.log.term_at(prev_index)
            # What is under way may be compacted here meanwhile: then ask about the log's base, whose
            # refusal leads to a snapshot.
            prev = core.log.base if term is None else LogId(prev_index, term)
            commit = core.log.commit_index
            core.send(AppendEntries(core.id, node, core.term, prev, (), commit))


def advance_commit(core: Core) -> bool:
    """Commit what a majority holds durably, if it is of this term (Raft §5.4.2, fig. 8, RC-21)."""
    voters = core.membership.voters
    if not voters:
        return False
    match_index = {node: progress.match_index for node, progress in core.progress.items()}
    # The leader counts itself only up to what its own disk holds (RC-4).
    match_index[core.id] = core.log.stable_index
    index = majority_index(voters, match_index)
    if index <= core.log.commit_index or core.log.term_at(index) != core.term:
        return False
    before = core.log.commit_index
    core.log.commit_to(index)
    core.uncommitted_bytes -= sum(
        map(entry_bytes, core.log.slice(Index(before + 1), Index(index + 1), 1 << 62))
    )
    return True


# -- the follower's side --------------------------------------------------------------------------


def handle_append(core: Core, message: AppendEntries) -> None:
    """Append what the leader of this term sent, and say how far the logs are known to match."""
    commit = core.log.commit_index
    if message.prev.index < commit:
        # Committed entries are in every leader's log, so everything up to the commit index matches.
        core.log.check_committed(message.prev, message.entries)
        _accept(core, message, commit)
        return
    matched = core.log.append_after(message.prev, message.entries)
    if matched is None:
        hint = core.log.find_conflict(message.prev.index, message.prev.term)
        core.send(
            AppendEntriesReply(
                core.id,
                message.sender,
                core.term,
                message.prev.index,
                rejected=True,
                match_index=hint.index,
                hint_term=hint.term,
            )
        )
        return
    # Only what this message proved to match may be committed by it (RC-25).
    core.log.commit_to(min(message.commit_index, matched))
    _accept(core, message, matched)


def _accept(core: Core, message: AppendEntries | InstallSnapshot, matched: Index) -> None:
    prev = message.prev.index if isinstance(message, AppendEntries) else message.meta.last.index
    core.send(
        AppendEntriesReply(
            core.id,
            message.sender,
            core.term,
            prev,
            rejected=False,
            match_index=matched,
            hint_term=Term(0),
        )
    )


def handle_heartbeat(core: Core, message: Heartbeat) -> None:
    """Learn the commit index, confirm the leader's term and its read round."""
    core.log.commit_to(message.commit_index)
    core.send(HeartbeatReply(core.id, message.sender, core.term, message.read_round))


def handle_install_snapshot(core: Core, message: InstallSnapshot) -> None:
    """A snapshot has arrived whole and is durable: use it, unless it brings nothing (RC-37)."""
    meta = message.meta
    if meta.last.index <= core.log.commit_index:
        _accept(core, message, core.log.commit_index)
        return
    if core.log.matches(meta.last):
        # The log holds the position already: everything up to there is committed, nothing is lost.
        core.log.commit_to(meta.last.index)
        _accept(core, message, meta.last.index)
        return
    core.log.reset(meta.last, meta.membership)
    core.pending_snapshot = meta
    core.trace("snapshot_accepted", {"term": core.term, "index": meta.last.index})
    _accept_restored(core, message)


def _accept_restored(core: Core, message: InstallSnapshot) -> None:
    """Reply only when the disk has taken the reset: always held back."""
    core.held_messages.append(
        AppendEntriesReply(
            core.id,
            message.sender,
            core.term,
            message.meta.last.index,
            rejected=False,
            match_index=message.meta.last.index,
            hint_term=Term(0),
        )
    )

"""Deliberate bugs: each is put into the running code, and the nets must find it (RC section 11).

A net that has never caught anything proves nothing. Every entry names the rule that it breaks, the
net that must find it, and within how many seeds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

from kvnode.disk import raft_log
from kvnode.disk.files import FileSystem
from kvnode.disk.journal import JournalCore
from kvnode.disk.log_format import LogEnd
from kvnode.errors import DiskFailed
from kvnode.raft import confchange, election, rawnode, read_index, replication
from kvnode.raft import core as raft_core
from kvnode.raft.core import Core
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    InstallSnapshot,
    Message,
    PreVoteReply,
    Vote,
)
from kvnode.raft.progress import Progress
from kvnode.raft.quorum import majority_index
from kvnode.raft.types import Entry, HardState, Index, LogId, Membership, NodeId, Role
from kvnode.replica import requests, watches
from kvnode.replica.forwarding import Forwarder
from kvnode.replica.upkeep import Upkeep
from kvnode.store import kv, store
from kvnode.store.commands import KvSet
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import META_KEY
from tests.simulation.beyond_mutants import BEYOND_MUTANTS
from tests.simulation.cluster import Simulation
from tests.simulation.core_fuzz import CoreFuzz
from tests.simulation.disk import _SimFile
from tests.simulation.feature_mutants import FEATURE_MUTANTS
from tests.simulation.history_mutants import HISTORY_MUTANTS
from tests.simulation.mutant import Mutant, replacing
from tests.simulation.swarm import draw

# -- elections ------------------------------------------------------------------------------------


def _grants_any_log(core: Core, message: Vote) -> None:
    with mock.patch.object(RaftLog, "is_up_to_date", return_value=True):
        _real_handle_vote(core, message)


_real_handle_vote = election.handle_vote


def _votes_again(core: Core, message: Vote) -> None:
    if core.role is not Role.LEADER:
        core.vote = None
    _real_handle_vote(core, message)


def _hears_everything(raw: rawnode.RawNode, message: Message) -> None:
    _real_step(raw, message._replace(to=raw._core.id))


_real_step = rawnode.RawNode.step


def _never_holds(core: Core, message: Message) -> None:
    core.messages.append(message)


# -- replication ----------------------------------------------------------------------------------


def _counts_old_terms(core: Core) -> bool:
    """``advance_commit`` without the rule of Raft figure 8."""
    voters = core.membership.voters
    if not voters:
        return False
    match_index = {node: progress.match_index for node, progress in core.progress.items()}
    match_index[core.id] = core.log.stable_index
    index = majority_index(voters, match_index)
    if index <= core.log.commit_index:
        return False
    core.log.commit_to(index)
    core.uncommitted_bytes = 0
    return True


_real_advance_commit = replication.advance_commit


def _counts_learners(core: Core) -> bool:
    counted = core.membership.voters | core.membership.learners
    majority_of_all = majority_index(
        counted,
        {
            **{node: progress.match_index for node, progress in core.progress.items()},
            core.id: core.log.stable_index,
        },
    )
    if majority_of_all > core.log.commit_index and (core.log.term_at(majority_of_all) == core.term):
        core.log.commit_to(majority_of_all)
        core.uncommitted_bytes = 0
        return True
    return _real_advance_commit(core)


def _counts_itself_early(core: Core) -> bool:
    """The leader counts what its own disk does not hold yet."""
    stable = core.log.stable_index
    core.log.stable_index = core.log.last_index
    try:
        return _real_advance_commit(core)
    finally:
        core.log.stable_index = stable


_real_append_after = RaftLog.append_after


def _always_truncates(log: RaftLog, prev: LogId, entries: tuple[Entry, ...]) -> Index | None:
    """Cuts off whatever follows the request's end, conflict or not (RC-23)."""
    matched = _real_append_after(log, prev, entries)
    if matched is not None and log.commit_index <= matched < log.last_index:
        log._truncate(Index(matched + 1))
    return matched


_real_handle_append = replication.handle_append


def _trusts_commit(core: Core, message: AppendEntries) -> None:
    """Commits up to the leader's index even where nothing proved that the logs match (RC-25)."""
    _real_handle_append(core, message)
    core.log.commit_to(min(message.commit_index, core.log.last_index))


# -- reads ----------------------------------------------------------------------------------------


def _confirms_alone(core: Core) -> None:
    """A read round needs nobody (RC-30 c)."""
    while core.open_rounds:
        _, index, reads = core.open_rounds.popleft()
        core.confirmed_reads.append((index, reads))


_real_start_round = read_index.start_round


def _reads_before_noop(core: Core) -> None:
    """Reads do not wait for the term's no-op (RC-22)."""
    start, core.term_start = core.term_start, Index(0)
    try:
        _real_start_round(core)
    finally:
        core.term_start = start


# -- disk -----------------------------------------------------------------------------------------


def _forgets_vote(self: rawnode.RawNode, *args: Any, **kwargs: Any) -> Any:
    ready = _real_ready(self, *args, **kwargs)
    if ready.hard_state is not None:
        ready.hard_state = HardState(ready.hard_state.term, None)
    return ready


_real_ready = rawnode.RawNode.ready


def _syncs_nothing(file: Any) -> None:
    """A sync that returns without having done anything."""
    file._check()


def _saves_nothing(_engine: Any) -> None:
    """A flush that returns without having done anything."""


_real_changed = watches.Watches.changed


def _sleeps_through_trees(self: watches.Watches, index: int, key: bytes, tree: bool) -> None:
    """A deleted tree wakes nobody (RC-65)."""
    if not tree:
        _real_changed(self, index, key, tree)


_real_release = requests.Desk.release


def _releases_early(desk: requests.Desk, _applied: Index) -> Any:
    """A read is answered without waiting for the applied index (RC-30 d)."""
    return _real_release(desk, Index(1 << 60))


# -- what members say to each other -----------------------------------------------------------------


_real_pre_vote_reply = election.handle_pre_vote_reply


def _counts_polls(core: Core, message: PreVoteReply) -> None:
    """A late answer to the poll counts as a vote (RC-16)."""
    if core.role is Role.CANDIDATE and message.granted and message.term == core.term:
        core.votes.setdefault(message.sender, True)
        election._count(core)
        return
    _real_pre_vote_reply(core, message)


def _heartbeat_commits_all(core: Core, node: NodeId, _progress: Progress) -> None:
    """A heartbeat carries a commit index beyond what the follower is known to hold (RC-25)."""
    core.send(Heartbeat(core.id, node, core.term, core.log.commit_index, core.read_round))


_real_truncate = RaftLog._truncate


def _keeps_memberships(log: RaftLog, start: Index) -> None:
    """A membership stays in force although its entry was replaced (RC-42)."""
    kept = list(log._memberships)
    _real_truncate(log, start)
    log._memberships = kept


def _believes_old_writes(log: RaftLog, start: Index) -> None:
    """The completion of a write that was cut off meanwhile still counts (RC-5)."""
    tickets = list(log._tickets)
    _real_truncate(log, start)
    log._tickets = tickets


_real_take_committed = RaftLog.take_committed


def _applies_unsynced(log: RaftLog, bytes_max: int) -> tuple[Entry, ...]:
    """Applies what is committed, whether this disk holds it or not (RC-6)."""
    stable, log.stable_index = log.stable_index, log.last_index
    try:
        return _real_take_committed(log, bytes_max)
    finally:
        log.stable_index = stable


_real_send = Core.send


def _acknowledges_memory(core: Core, message: Message) -> None:
    """A follower acknowledges what only its memory holds (RC-3)."""
    if isinstance(message, AppendEntriesReply) and core.is_state_durable:
        core.messages.append(message)
    else:
        _real_send(core, message)


_real_accept = replication._accept


def _acknowledges_its_end(
    core: Core, message: AppendEntries | InstallSnapshot, _matched: Index
) -> None:
    """Acknowledges its log's end instead of what the request proved to match (RC-3)."""
    _real_accept(core, message, core.log.last_index)


def _snapshot_before_disk(core: Core, message: InstallSnapshot) -> None:
    """Acknowledges a snapshot before the disk has taken the log's reset (RC-37)."""
    held, core.held_messages = core.held_messages, core.messages
    try:
        _real_accept_restored(core, message)
    finally:
        core.held_messages = held


_real_accept_restored = replication._accept_restored


def _joins_open_round(core: Core) -> None:
    """A read joins a round that began before it came (RC-31)."""
    if core.role is Role.LEADER and core.open_rounds:
        core.open_rounds[-1][2].extend(core.waiting_reads)
        core.waiting_reads = []
    _real_start_round(core)


_real_drop_leadership = Core._drop_leadership


def _answers_when_deposed(core: Core) -> None:
    """Reads that wait at the end of a leadership are answered instead of failed (RC-32)."""
    waiting = [*core.waiting_reads, *(read for _, _, reads in core.open_rounds for read in reads)]
    core.waiting_reads = []
    core.open_rounds.clear()
    _real_drop_leadership(core)
    if waiting:
        core.confirmed_reads.append((core.log.commit_index, waiting))


def _matches_anything(log: RaftLog, at: LogId) -> bool:
    """An append is taken wherever the log is long enough, whatever the term there (RC-24)."""
    return log.base.index <= at.index <= log.last_index


def _changes_at_once(core: Core, _new: Membership) -> None:
    """No guard: changes of membership overlap, and come before the no-op (RC-43)."""


# -- the driver, the journal and the store ----------------------------------------------------------


_real_run = JournalCore.run


def _swallows_errors(core: JournalCore, operations: Any) -> None:
    """A write or sync that failed counts as done (RC-8)."""
    try:
        _real_run(core, operations)
    except DiskFailed:
        core.failure = None


_real_engine_write = MemoryEngine.write


def _applied_elsewhere(engine: MemoryEngine, batch: Any) -> None:
    """The applied index is not in the batch of the changes that it stands for (RC-6)."""
    _real_engine_write(engine, [item for item in batch if item[0] != META_KEY])


_real_batch_failed = Forwarder._batch_failed


def _retries_unknown(_self: Forwarder, batch: Any, _error: Any) -> Any:
    """A forwarded write without an answer is sent again (RC-59)."""
    return batch


_real_compact = Upkeep._compact


def _drops_unflushed(self: Upkeep, now: float) -> None:
    """The log forgets what the engine has not flushed yet (RC-39)."""
    replica = self._replica
    log = replica.raft.log
    if (
        log.last_index - log.base.index > replica.settings.log_entries_max
        and not replica.receiver.loading
    ):
        self._drop(Index(replica.store.applied_index))


_real_save = JournalCore._save
_real_open = raft_log.RaftLog.open


def _notes_the_end_first(
    self: JournalCore, hard_state: HardState | None, entries: list[Entry]
) -> None:
    """A crash before the sync then looks like damage (RC-71)."""
    if entries:
        sequence, offset = self._log.end
        offset += sum(size for _, size in raft_log._frames(entries))
        self._hard_state.save(hard_state or self._hard_state.state, LogEnd(sequence, offset))
    _real_save(self, None if entries else hard_state, entries)


def _believes_any_end(
    fs: FileSystem, directory: str, _synced: LogEnd
) -> tuple[raft_log.RaftLog, list[Entry]]:
    """Frames that read as zeros were never finished, whatever was noted of them (RC-71)."""
    return _real_open(fs, directory)


def _same_id_again(_self: Simulation, name: str) -> str:
    """A node whose volume was lost votes under its old id (RC-49)."""
    return f"{name}.1"


# -- the list -------------------------------------------------------------------------------------


@contextmanager
def _no_noop() -> Iterator[None]:
    """A new leader appends no entry of its own term, and reads do not wait (RC-22)."""
    real = raft_core.Core.append

    def append(core: Core, items: Any) -> Any:
        return core.log.last if items == [(0, b"")] else real(core, items)

    with mock.patch.object(raft_core.Core, "append", append):
        yield


def _set_without_cas(transaction: Any, index: int, command: Any) -> Any:
    return _real_set_key(transaction, index, command._replace(cas=None))


_real_set_key = kv.set_key

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "vote for any log",
        "RC-12",
        "core",
        200,
        replacing(election, "handle_vote", _grants_any_log),
    ),
    Mutant(
        "vote twice in a term",
        "RC-2",
        "core",
        100,
        replacing(election, "handle_vote", _votes_again),
    ),
    Mutant("say before it is durable", "RC-1", "core", 10, replacing(Core, "send", _never_holds)),
    Mutant(
        "count entries of earlier terms",
        "RC-21",
        "core",
        100,
        replacing(replication, "advance_commit", _counts_old_terms),
    ),
    Mutant(
        "count learners",
        "RC-44",
        "core",
        200,
        replacing(replication, "advance_commit", _counts_learners),
    ),
    Mutant(
        "count oneself before the sync",
        "RC-4",
        "core",
        50,
        replacing(replication, "advance_commit", _counts_itself_early),
    ),
    Mutant(
        "truncate on a stale append",
        "RC-23",
        "core",
        100,
        replacing(RaftLog, "append_after", _always_truncates),
    ),
    Mutant(
        "commit what is not known to match",
        "RC-25",
        "core",
        100,
        replacing(replication, "handle_append", _trusts_commit),
    ),
    Mutant(
        "confirm a read alone",
        "RC-30",
        "core",
        300,
        replacing(read_index, "confirm_rounds", _confirms_alone),
    ),
    Mutant(
        "read before the term's no-op",
        "RC-22",
        "core",
        300,
        replacing(read_index, "start_round", _reads_before_noop),
    ),
    Mutant("no no-op", "RC-22", "core", 50, _no_noop),
    Mutant(
        "forget the vote on disk",
        "RC-2",
        "core",
        100,
        replacing(rawnode.RawNode, "ready", _forgets_vote),
    ),
    Mutant(
        "ignore the condition of a cas",
        "RC-60",
        "cluster",
        5,
        lambda: mock.patch.dict(store._HANDLERS, {KvSet: _set_without_cas}),
    ),
    Mutant(
        "a flush that flushes nothing",
        "RC-10",
        "cluster",
        60,
        replacing(MemoryEngine, "flush", _saves_nothing),
    ),
    Mutant(
        "acknowledge a log write without a sync",
        "RC-1",
        "cluster",
        40,
        replacing(_SimFile, "sync", _syncs_nothing),
    ),
    Mutant(
        "answer a read before its index is applied",
        "RC-30",
        "cluster",
        20,
        replacing(requests.Desk, "release", _releases_early),
    ),
    Mutant(
        "a deleted tree wakes no watcher",
        "RC-65",
        "cluster",
        20,
        replacing(watches.Watches, "changed", _sleeps_through_trees),
    ),
    Mutant(
        "count a poll's answer as a vote",
        "RC-16",
        "core",
        300,
        replacing(election, "handle_pre_vote_reply", _counts_polls),
    ),
    Mutant(
        "a heartbeat commits beyond the match",
        "RC-25",
        "core",
        50,
        replacing(replication, "_send_heartbeat", _heartbeat_commits_all),
    ),
    Mutant(
        "a replaced membership stays in force",
        "RC-42",
        "core",
        300,
        replacing(RaftLog, "_truncate", _keeps_memberships),
    ),
    Mutant(
        "believe a write that was cut off",
        "RC-5",
        "core",
        300,
        replacing(RaftLog, "_truncate", _believes_old_writes),
    ),
    Mutant(
        "apply before it is durable here",
        "RC-6",
        "core",
        100,
        replacing(RaftLog, "take_committed", _applies_unsynced),
    ),
    Mutant(
        "acknowledge what is in memory",
        "RC-3",
        "core",
        20,
        replacing(Core, "send", _acknowledges_memory),
    ),
    Mutant(
        "acknowledge the log's end",
        "RC-3",
        "core",
        100,
        replacing(replication, "_accept", _acknowledges_its_end),
        equivalent="a leader searches down to the last common entry and sends what follows it, so the "
        "first request that a follower accepts in a term ends whatever it had beyond",
    ),
    Mutant(
        "acknowledge a snapshot before the reset",
        "RC-37",
        "core",
        100,
        replacing(replication, "_accept_restored", _snapshot_before_disk),
    ),
    Mutant(
        "a read joins an open round",
        "RC-31",
        "core",
        100,
        replacing(read_index, "start_round", _joins_open_round),
    ),
    Mutant(
        "answer reads when deposed",
        "RC-32",
        "core",
        100,
        replacing(Core, "_drop_leadership", _answers_when_deposed),
    ),
    Mutant(
        "append without the term's check",
        "RC-24",
        "core",
        100,
        replacing(RaftLog, "matches", _matches_anything),
    ),
    Mutant(
        "hear what is for another node",
        "RC-27",
        "core",
        20,
        replacing(rawnode.RawNode, "step", _hears_everything),
    ),
    Mutant(
        "a snapshot without asking",
        "RC-37",
        "core",
        300,
        replacing(replication, "_ask_about_base", replication._send_snapshot),
    ),
    Mutant(
        "overlapping changes of membership",
        "RC-43",
        "core",
        300,
        replacing(confchange, "_guard", _changes_at_once),
    ),
    Mutant(
        "a failed sync counts as done",
        "RC-8",
        "cluster",
        40,
        replacing(JournalCore, "run", _swallows_errors),
        ("disk_error", "power"),
    ),
    Mutant(
        "the applied index is not in the batch",
        "RC-6",
        "cluster",
        20,
        replacing(MemoryEngine, "write", _applied_elsewhere),
        ("crash", "power"),
    ),
    Mutant(
        "send a write of unknown outcome again",
        "RC-59",
        "cluster",
        60,
        replacing(Forwarder, "_batch_failed", _retries_unknown),
        ("crash", "cut_isolate", "cut_one_way"),
    ),
    Mutant(
        "compact what is not flushed",
        "RC-39",
        "cluster",
        40,
        replacing(Upkeep, "_compact", _drops_unflushed),
        ("power", "crash_all"),
    ),
    Mutant(
        "note an end of the log that is not synced",
        "RC-71",
        "cluster",
        40,
        replacing(JournalCore, "_save", _notes_the_end_first),
        ("power", "crash_all"),
    ),
    Mutant(
        "believe whatever end the log has",
        "RC-71",
        "cluster",
        150,
        replacing(raft_log.RaftLog, "open", _believes_any_end),
        ("misdirect",),
    ),
    Mutant(
        "an old id on an empty disk",
        "RC-49",
        "cluster",
        40,
        replacing(Simulation, "_new_node_id", _same_id_again),
        ("wipe", "power"),
    ),
    *FEATURE_MUTANTS,
    *BEYOND_MUTANTS,
    *HISTORY_MUTANTS,
)


_CLUMSY = (TypeError, AttributeError, NameError, ImportError)
"""What a bug put in wrongly raises: then nothing was found, and the entry must be mended."""


class Found(NamedTuple):
    """How a bug showed itself."""

    seed: int
    how: str


def find(mutant: Mutant) -> Found | None:
    """The first seed that fails with the bug put in; None: none did."""
    with mutant.patch():
        for seed in range(1, mutant.seeds + 1):
            try:
                if mutant.net == "core":
                    CoreFuzz(seed).run()
                else:
                    _cluster(mutant, seed).run()
            except _CLUMSY:
                raise
            except Exception as error:  # noqa: BLE001  # whatever else shows it has found it
                return Found(seed, f"{type(error).__name__}: {error}".split("\n")[0])
    return None


def _cluster(mutant: Mutant, seed: int) -> Simulation:
    swarm = replace(draw(seed), seconds=10.0)
    if mutant.faults:
        swarm = replace(swarm, faults=dict.fromkeys(mutant.faults, 1.0))
    if mutant.workloads:
        swarm = replace(swarm, workloads=dict.fromkeys(mutant.workloads, 5.0))
    return Simulation(seed, swarm=swarm)


def table(found: dict[str, Found | None]) -> list[str]:
    """A Markdown table: every deliberate bug, the rule it breaks, and the seeds it took."""
    lines = ["| Deliberate bug | Rule | Net | Seeds needed | Allowed |", "|---|---|---|---|---|"]
    for mutant in MUTANTS:
        if mutant.name in found:
            one = found[mutant.name]
            seeds = (
                ("harmless" if mutant.equivalent else "not found") if one is None else str(one.seed)
            )
            lines.append(
                f"| {mutant.name} | {mutant.rule} | {mutant.net} | {seeds} | {mutant.seeds} |"
            )
    return lines


def main(names: list[str]) -> int:
    """Try the named bugs, or all; 0 when each was found."""
    found: dict[str, Found | None] = {}
    for mutant in MUTANTS:
        if not names or mutant.name in names:
            began = time.process_time()
            one = found[mutant.name] = find(mutant)
            took = time.process_time() - began
            how = f"seed {one.seed}, {one.how:.160}" if one else "NOT FOUND"
            print(f"{mutant.name} ({took:.1f} s): {how}", file=sys.stderr)
    print("\n".join(table(found)))
    wrong = [
        m for m in MUTANTS if m.name in found and (found[m.name] is None) != bool(m.equivalent)
    ]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Deliberate bugs: each is put into the running code, and the nets must find it (RC section 11).

A net that has never caught anything proves nothing. Every entry names the rule that it breaks, the
net that must find it, and within how many seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

from kvnode.raft import core as raft_core
from kvnode.raft import election, rawnode, read_index, replication
from kvnode.raft.core import Core
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import AppendEntries, Message, Vote
from kvnode.raft.quorum import majority_index
from kvnode.raft.types import Entry, HardState, Index, LogId, Role
from kvnode.replica import requests, watches
from kvnode.store import kv, store
from kvnode.store.commands import KvSet
from kvnode.store.memory import MemoryEngine
from tests.simulation.disk import _SimFile

Net = Literal["core", "cluster"]


@dataclass(frozen=True)
class Mutant:
    """One deliberate bug."""

    name: str
    rule: str
    net: Net
    seeds: int
    """Within so many seeds, from 1 on, it must be found."""
    patch: Callable[[], Any]
    """Makes the context manager that puts it in."""


def _set(owner: Any, name: str, value: Any) -> Callable[[], Any]:
    return lambda: mock.patch.object(owner, name, value)


# -- elections ------------------------------------------------------------------------------------


def _grants_any_log(core: Core, message: Vote) -> None:
    with mock.patch.object(RaftLog, "is_up_to_date", return_value=True):
        _real_handle_vote(core, message)


_real_handle_vote = election.handle_vote


def _votes_again(core: Core, message: Vote) -> None:
    if core.role is not Role.LEADER:
        core.vote = None
    _real_handle_vote(core, message)


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
        "vote for any log", "RC-12", "core", 200, _set(election, "handle_vote", _grants_any_log)
    ),
    Mutant(
        "vote twice in a term", "RC-2", "core", 100, _set(election, "handle_vote", _votes_again)
    ),
    Mutant("say before it is durable", "RC-1", "core", 10, _set(Core, "send", _never_holds)),
    Mutant(
        "count entries of earlier terms",
        "RC-21",
        "core",
        100,
        _set(replication, "advance_commit", _counts_old_terms),
    ),
    Mutant(
        "count learners",
        "RC-44",
        "core",
        200,
        _set(replication, "advance_commit", _counts_learners),
    ),
    Mutant(
        "count oneself before the sync",
        "RC-4",
        "core",
        50,
        _set(replication, "advance_commit", _counts_itself_early),
    ),
    Mutant(
        "truncate on a stale append",
        "RC-23",
        "core",
        100,
        _set(RaftLog, "append_after", _always_truncates),
    ),
    Mutant(
        "commit what is not known to match",
        "RC-25",
        "core",
        100,
        _set(replication, "handle_append", _trusts_commit),
    ),
    Mutant(
        "confirm a read alone",
        "RC-30",
        "core",
        300,
        _set(read_index, "confirm_rounds", _confirms_alone),
    ),
    Mutant(
        "read before the term's no-op",
        "RC-22",
        "core",
        300,
        _set(read_index, "start_round", _reads_before_noop),
    ),
    Mutant("no no-op", "RC-22", "core", 50, _no_noop),
    Mutant(
        "forget the vote on disk",
        "RC-2",
        "core",
        100,
        _set(rawnode.RawNode, "ready", _forgets_vote),
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
        _set(MemoryEngine, "flush", _saves_nothing),
    ),
    Mutant(
        "acknowledge a log write without a sync",
        "RC-1",
        "cluster",
        40,
        _set(_SimFile, "sync", _syncs_nothing),
    ),
    Mutant(
        "answer a read before its index is applied",
        "RC-30",
        "cluster",
        20,
        _set(requests.Desk, "release", _releases_early),
    ),
    Mutant(
        "a deleted tree wakes no watcher",
        "RC-65",
        "cluster",
        20,
        _set(watches.Watches, "changed", _sleeps_through_trees),
    ),
)

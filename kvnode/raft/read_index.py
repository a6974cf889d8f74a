"""ReadIndex: linearizable reads without the log (thesis §6.4, RC-30 to RC-32).

A read waits for a heartbeat round that began after the read arrived. Rounds are numbered by the
leader and rise within its term; a reply confirms every round up to its number. All reads that wait
at a round's start share it, and at most one round is open, so that load makes rounds larger and not
more numerous.
"""

from __future__ import annotations

from kvnode.raft import replication
from kvnode.raft.core import Core
from kvnode.raft.quorum import has_majority
from kvnode.raft.types import Role


def start_round(core: Core) -> None:
    """Leader: begin a round for the waiting reads, once the term's no-op is committed (RC-22)."""
    if (
        core.role is not Role.LEADER
        or not core.waiting_reads
        or core.open_rounds
        or core.log.commit_index < core.term_start
    ):
        return
    core.read_round += 1
    core.open_rounds.append((core.read_round, core.log.commit_index, core.waiting_reads))
    core.waiting_reads = []
    replication.send_heartbeats(core)
    confirm_rounds(core)


def confirm_rounds(core: Core) -> None:
    """Release the reads of every round that a majority of voters has confirmed."""
    while core.open_rounds:
        number, index, reads = core.open_rounds[0]
        confirmed = {node for node, p in core.progress.items() if p.read_round >= number}
        if not has_majority(core.membership.voters, frozenset(confirmed | {core.id})):
            return
        core.open_rounds.popleft()
        core.confirmed_reads.append((index, reads))

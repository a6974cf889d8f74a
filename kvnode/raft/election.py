"""Elections: PreVote, votes, CheckQuorum and leadership transfer (Raft §5.2, thesis §3.4, §3.10, §9.6)."""

from __future__ import annotations

from kvnode.raft import replication
from kvnode.raft.core import Core
from kvnode.raft.messages import (
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from kvnode.raft.quorum import VoteResult, has_majority, vote_result
from kvnode.raft.types import NodeId, Role, Term


def tick_follower(core: Core) -> None:
    """One tick of anybody but the leader: campaign when the time-out passed.

    Not before the disk has the last campaign: nothing could be said, and a disk slower than the
    time-out would have each candidate give up before its requests have left.
    """
    core.elapsed += 1
    if core.elapsed >= core.timeout and core.may_campaign and core.is_state_durable:
        campaign(core)


def campaign(core: Core) -> None:
    """Start with a poll that changes nothing; the real election follows if it is won (RC-15)."""
    core.become_pre_candidate()
    if _count(core) is not VoteResult.PENDING:
        return
    for node in core.other_voters():
        core.send(PreVote(core.id, node, Term(core.term + 1), core.log.last))


def elect(core: Core, *, transfer: bool) -> None:
    """Campaign for real, in the next term."""
    core.become_candidate()
    for node in core.other_voters():
        core.send(Vote(core.id, node, core.term, core.log.last, transfer))


def own_vote_durable(core: Core) -> None:
    """The hard state that holds this candidate's vote for itself is on disk: count it.

    Only now its requests leave, so its time-out begins only now.
    """
    if core.role is Role.CANDIDATE and core.durable == (core.term, core.id):
        core.votes[core.id] = True
        core.elapsed = 0
        _count(core)


def has_heard_leader(core: Core) -> bool:
    """Whether a leader was heard within the minimum election time-out (thesis §4.2.3, RC-15)."""
    return core.leader_id is not None and (
        core.role is Role.LEADER or core.elapsed < core.config.election_ticks
    )


def suspect_leader(core: Core, node: NodeId) -> None:
    """The leader's connection broke: count as if it had been silent for a minimum time-out."""
    if core.role is Role.FOLLOWER and core.leader_id == node:
        core.elapsed = max(core.elapsed, core.config.election_ticks)


def handle_pre_vote(core: Core, message: PreVote) -> None:
    """Would I vote for this node? Changes no state (RC-13, RC-15)."""
    if has_heard_leader(core):
        return
    granted = message.term > core.term and core.log.is_up_to_date(message.last)
    # A refusal carries our own term, so that a candidate that is behind catches up (RC-18).
    term = message.term if granted else core.term
    core.send(PreVoteReply(core.id, message.sender, term, granted))


def handle_pre_vote_reply(core: Core, message: PreVoteReply) -> None:
    """Count it only in the poll that it belongs to (RC-16)."""
    if core.role is not Role.PRE_CANDIDATE:
        return
    if message.granted and message.term != core.term + 1:
        return
    core.votes.setdefault(message.sender, message.granted)
    _count(core)


def handle_vote(core: Core, message: Vote) -> None:
    """Grant at most one vote per term, to a log at least as up to date (Raft §5.4.1, RC-12).

    A learner, or a node that does not know its membership yet, answers too: it may be a voter that
    has not heard of it (RC-20).
    """
    assert message.term == core.term
    free = core.vote is None and core.leader_id is None
    granted = (free or core.vote == message.sender) and core.log.is_up_to_date(message.last)
    if granted:
        core.vote = message.sender
        core.elapsed = 0
        core.trace("granted_vote", {"term": core.term, "to": message.sender})
    core.send(VoteReply(core.id, message.sender, core.term, granted))


def handle_vote_reply(core: Core, message: VoteReply) -> None:
    """Count an answer of this very term."""
    if core.role is Role.CANDIDATE and message.term == core.term:
        core.votes.setdefault(message.sender, message.granted)
        _count(core)


def _count(core: Core) -> VoteResult:
    """Act on the poll as it stands."""
    result = vote_result(core.membership.voters, core.votes)
    match result, core.role:
        case VoteResult.WON, Role.PRE_CANDIDATE:
            elect(core, transfer=False)
        case VoteResult.WON, Role.CANDIDATE:
            core.become_leader()
            replication.send_heartbeats(core)
        case VoteResult.LOST, _:
            core.become_follower(core.term, None)
        case _:
            pass
    return result


# -- the leader's side --------------------------------------------------------------------------


def check_quorum(core: Core) -> None:
    """Step down when a quorum has been silent for an election time-out (thesis §6.2, RC-17)."""
    if has_majority(core.membership.voters, reachable(core)):
        return
    core.trace("lost_quorum", {"term": core.term, "index": core.log.commit_index})
    core.become_follower(core.term, None)


def reachable(core: Core) -> frozenset[NodeId]:
    """Leader: members heard within an election time-out, itself included.

    Who was never heard by this leader has credit for the first one: it had no time to answer yet.
    """
    since = core.tick_count - core.config.election_ticks
    heard = {node for node, progress in core.progress.items() if progress.heard_tick > since}
    return frozenset(heard | {core.id})


def answering(core: Core) -> frozenset[NodeId]:
    """Leader: ``reachable`` without the credit."""
    silent = {node for node, progress in core.progress.items() if not progress.answered}
    return reachable(core) - silent


def start_transfer(core: Core, target: NodeId) -> None:
    """Hand leadership to ``target``: catch it up, then tell it to campaign (thesis §3.10, RC-19)."""
    assert core.role is Role.LEADER
    assert target in core.membership.voters
    assert target != core.id
    core.transfer_to = target
    core.transfer_elapsed = 0
    core.trace("transfer_started", {"term": core.term, "to": target})
    advance_transfer(core)


def advance_transfer(core: Core) -> None:
    """Send TimeoutNow as soon as the target holds everything."""
    target = core.transfer_to
    if target is not None and core.progress[target].match_index == core.log.last_index:
        core.send(TimeoutNow(core.id, target, core.term))


def name_successor(core: Core) -> None:
    """A leader that stops leading for good: whoever holds most campaigns at once (thesis §4.2.2).

    Else the cluster would wait for an election time-out. Nothing depends on its arrival.
    """
    held = [(core.progress[voter].match_index, voter) for voter in core.other_voters()]
    core.send(TimeoutNow(core.id, max(held)[1], core.term))


def tick_transfer(core: Core) -> None:
    """Give up after one election time-out and accept proposals again (RC-19)."""
    if core.transfer_to is None:
        return
    core.transfer_elapsed += 1
    if core.transfer_elapsed >= core.config.election_ticks:
        core.trace("transfer_abandoned", {"term": core.term, "to": core.transfer_to})
        core.transfer_to = None


def handle_timeout_now(core: Core, message: TimeoutNow) -> None:
    """The leader asks this node to take over: no poll first, since it is expected (RC-19)."""
    if core.role is Role.FOLLOWER and core.is_voter and core.leader_id == message.sender:
        elect(core, transfer=True)

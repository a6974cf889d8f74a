"""What operators ask: remove a member, hand leadership over; and waiting until a change is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvnode.errors import (
    KvnodeError,
    LeadershipLost,
    MembershipRefused,
    NoLeader,
    NotLeader,
    Timeout,
)
from kvnode.ports import Done
from kvnode.raft.types import Index, LogId, NodeId, Term

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica


class Administration:
    """Operators' requests of one node; what only the leader can do goes one hop to it."""

    def __init__(self, replica: Replica) -> None:
        """Nothing under way."""
        self._replica = replica
        self._watched: list[tuple[LogId, float, Callable[[KvnodeError | None], None]]] = []

    def ask_leader(self, method: str, payload: Any, done: Done[Any]) -> None:
        """Ask the leader, one hop."""
        replica = self._replica
        leader = replica.raft.leader_id
        if leader is None or leader == replica.raft.id:
            replica.scheduler.call_soon(done, None, NoLeader("No cluster leader"))
            return
        replica.transport.request(leader, method, payload, replica.settings.leader_wait_s, done)

    def remove_member(self, node_id: NodeId, done: Done[Any], *, readmit_s: float = 0) -> None:
        """Remove a member, through the leader. A leader that removes itself hands over first."""
        replica = self._replica
        payload = [node_id, round(readmit_s)] if readmit_s else node_id
        if (
            replica.is_leader
            and node_id == replica.raft.id
            and len(replica.raft.membership.voters) > 1
        ):

            def handed_over(_successor: NodeId | None, error: KvnodeError | None) -> None:
                if error is not None:
                    done(None, error)
                else:
                    self.ask_leader("remove", payload, done)

            self.transfer_here(None, handed_over)
        elif replica.is_leader:
            replica.steward.remove(node_id, done, readmit_s=readmit_s)
        else:
            self.ask_leader("remove", payload, done)

    def transfer_leadership(self, target: NodeId | None, done: Done[Any]) -> None:
        """Hand leadership over, wherever it is now."""
        replica = self._replica
        if replica.is_leader:
            self.transfer_here(target, done)
        else:
            self.ask_leader("transfer", target or "", done)

    def transfer_here(self, target: NodeId | None, done: Done[Any]) -> None:
        """This node, as the leader, hands over; answers once somebody else leads."""
        replica = self._replica
        raft = replica.raft
        if not replica.is_leader:
            replica.scheduler.call_soon(done, None, NotLeader(raft.leader_id))
            return
        others = [n for n in sorted(raft.membership.voters & raft.reachable()) if n != raft.id]
        if target is None and others:
            target = max(others, key=raft.match_index)
        if target is None or target not in raft.membership.voters or target == raft.id:
            error = MembershipRefused("there is no other voter to hand leadership to")
            replica.scheduler.call_soon(done, None, error)
            return
        raft.transfer_leadership(target)
        deadline = replica.scheduler.time() + replica.settings.leader_wait_s
        self._await_successor(raft.term, deadline, done)
        replica.wake()

    def _await_successor(self, term: Term, deadline: float, done: Done[Any]) -> None:
        replica = self._replica
        raft = replica.raft
        if raft.term > term and raft.leader_id is not None:
            done(raft.leader_id, None)
        elif replica.stopped or (
            replica.is_leader and raft.term == term and not raft.is_transferring
        ):
            done(None, Timeout("leadership was not taken over in time", took_effect="no"))
        elif replica.scheduler.time() >= deadline:
            # Cut off: perhaps somebody took over, and it cannot be heard here.
            done(None, Timeout("no successor was heard in time", took_effect="unknown"))
        else:
            pause = replica.settings.tick_s
            replica.scheduler.call_later(pause, self._await_successor, term, deadline, done)

    def when_committed(
        self, position: LogId, timeout_s: float, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """Answer when the entry at ``position`` is committed, or certainly will not be."""
        replica = self._replica
        self._watched.append((position, replica.scheduler.time() + timeout_s, done))

    def sweep(self, now: float) -> None:
        """Answer whoever waits for a commit that is decided by now."""
        replica = self._replica
        if not self._watched:
            return
        log, open_ones = replica.raft.log, self._watched
        self._watched = []
        for item in open_ones:
            position, deadline, done = item
            term = log.term_at(position.index)
            if position.index <= log.commit_index and term in (position.term, None):
                done(None)
            elif term is not None and term != position.term:
                done(LeadershipLost("leadership lost while committing log", took_effect="no"))
            elif now >= deadline:
                done(Timeout("the change was not committed in time", took_effect="unknown"))
            else:
                self._watched.append(item)

    def skipped_to(self, index: Index) -> None:
        """A snapshot replaced the log up to ``index``: what became of changes there is unknown."""
        gone = [item for item in self._watched if item[0].index <= index]
        self._watched = [item for item in self._watched if item[0].index > index]
        for _, _, done in gone:
            done(LeadershipLost("leadership lost while committing log"))

    def fail_all(self) -> None:
        """The node stops: nobody may be left waiting."""
        watched, self._watched = self._watched, []
        for _, _, done in watched:
            done(LeadershipLost("this node stopped before the change was known"))

"""How a node stops in good order: hand over, finish what is open, be removed if that is due, end (RC-57).

A restart changes no membership. But a node whose StatefulSet wants no pod of its ordinal any more will not
come back, and counts in every majority until it is removed: so it asks the leader to remove it, and ends
when that is committed. All the nodes that are scaled away at once do so; the leader takes one
after the other, and refuses whom the majority still needs. Each refusal is asked again, with the
StatefulSet's size read anew: who is wanted again stops like any other. After ``removal_timeout_s`` it
ends as a member, and the leader looks after it (``scaling``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError
from kvnode.ports import Scale
from kvnode.raft.types import NodeId

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

SCALE_WAIT_S = 1.0
"""Leadership is handed over without knowing who stays, rather than later than this."""
REMOVAL_PAUSE_S = 0.25
SCALE_AGE_S = 2.0
"""An answer about the size is asked for again when it is older than this."""
_STOPPING = "this node is shutting down"


class Departure:
    """One node's way out. ``begin`` at most once."""

    def __init__(self, replica: Replica) -> None:
        """Stay."""
        self._replica = replica
        self._done: Callable[[], None] | None = None
        self._scale: Scale | None = None
        self._scale_at = 0.0
        self._asking_scale = False
        self._asking_removal = False
        self._forced = False
        self._was_surplus = False
        self._leaving = False
        self._left = False

    @property
    def is_under_way(self) -> bool:
        """Whether the node is stopping in good order."""
        return self._done is not None

    def begin(self, done: Callable[[], None], *, leave: bool = False) -> None:
        """Stop.

        Args:
            done: Called once, when the node has stopped.
            leave: Be removed in any case: an operator said so.
        """
        replica = self._replica
        assert self._done is None, "a node stops once"
        self._done, self._forced = done, leave
        replica.state, replica.reason = "stopping", _STOPPING
        now = replica.scheduler.time()
        self._ask_scale()
        known_by = now + SCALE_WAIT_S if replica.scaling.is_on and replica.cluster_id else now
        self._await_scale(known_by)

    def leave(self) -> None:
        """The cluster removed this node while it stops: store that, so that its next start joins anew."""
        replica = self._replica
        if self._leaving:
            return
        self._leaving = True

        def stored(error: KvnodeError | None) -> None:
            if error is not None:
                replica.fail_disk(error)
                return
            self._left = True
            replica.state, replica.reason = "removed", "this node left the cluster"
            replica.trace("left_cluster", {"term": replica.raft.term})

        replica.identity.set_aside(stored)

    # -- is it one too many? ------------------------------------------------------------------------

    def _ask_scale(self) -> None:
        replica = self._replica
        if not replica.scaling.is_on or not replica.cluster_id or self._asking_scale:
            return
        self._asking_scale = True

        def known(scale: Scale | None, _error: KvnodeError | None) -> None:
            self._asking_scale = False
            self._scale, self._scale_at = scale, replica.scheduler.time()

        replica.scaling.ask(known)

    def _await_scale(self, known_by: float) -> None:
        replica = self._replica
        if self._asking_scale and replica.scheduler.time() < known_by and not replica.stopped:
            replica.scheduler.call_later(replica.settings.tick_s, self._await_scale, known_by)
            return
        self._hand_over(replica.scheduler.time() + replica.settings.stop_wait_s)

    @property
    def _is_surplus(self) -> bool:
        own = self._replica.transport.hello.name
        return self._forced or (self._scale is not None and self._scale.is_surplus(own))

    # -- leadership, and what is open ---------------------------------------------------------------

    def _hand_over(self, deadline: float) -> None:
        """Hand leadership over and finish what is open; new requests are taken until it is handed over,
        so that they can still be forwarded.
        """
        replica = self._replica
        if replica.is_leader and not replica.raft.is_transferring:
            replica.admin.transfer_here(self._successor(), lambda _value, _error: None)
        handed_over = not replica.is_leader and replica.raft.leader_id is not None
        # Nobody to hand over to: a cluster of one, or one that stops as a whole.
        alone = not replica.cluster_id or not any(replica.transport.connected().values())
        replica.intake.closing = handed_over or alone
        idle = not replica.desk.count and not replica.sessions.open_renewals
        finished = replica.stopped or (replica.intake.closing and idle)
        if not finished and replica.scheduler.time() < deadline:
            replica.scheduler.call_later(replica.settings.tick_s, self._hand_over, deadline)
        elif alone or replica.stopped:
            self._end()
        else:
            self._await_removal(replica.scheduler.time() + replica.settings.removal_timeout_s)

    def _successor(self) -> NodeId | None:
        """Who stays and holds most; None: nobody is known to stay, so whoever holds most."""
        raft = self._replica.raft
        scale = self._scale
        if scale is None:
            return None
        staying = [
            member.node_id
            for member in raft.membership.members
            if member.node_id in raft.membership.voters
            and member.node_id in raft.reachable()
            and member.node_id != raft.id
            and not scale.is_surplus(member.name)
        ]
        return max(staying, key=raft.match_index, default=None)

    # -- being removed ------------------------------------------------------------------------------

    def _await_removal(self, deadline: float) -> None:
        replica = self._replica
        now = replica.scheduler.time()
        self._was_surplus |= self._is_surplus
        # A size that cannot be read now decides nothing: neither to be removed nor to give up.
        wanted_again = self._scale is not None and not self._is_surplus
        waits = self._asking_scale or (self._was_surplus and not wanted_again)
        if replica.stopped or self._left or not waits or now >= deadline:
            if waits and not self._left:
                replica.trace("removal_not_reached", {"reason": replica.reason})
            self._end()
            return
        if replica.is_leader:
            if not replica.raft.is_transferring:
                replica.admin.transfer_here(self._successor(), lambda _value, _error: None)
        elif replica.scaling.is_on and now - self._scale_at >= SCALE_AGE_S:
            self._ask_scale()
        elif self._is_surplus and not self._asking_removal and not self._leaving:
            self._ask_removal()
        replica.scheduler.call_later(REMOVAL_PAUSE_S, self._await_removal, deadline)

    def _ask_removal(self) -> None:
        replica = self._replica
        self._asking_removal = True

        def answered(_value: Any, error: KvnodeError | None) -> None:
            self._asking_removal = False
            if error is None:
                replica.removed(replica.cluster_id)
            elif not replica.stopped and not self._leaving:
                replica.reason = f"{_STOPPING} and waits to be removed: {error}"

        replica.admin.remove_member(replica.raft.id, answered)

    def _end(self) -> None:
        replica, done = self._replica, self._done
        assert done is not None
        replica.stopped = True
        replica.desk.fail_all()
        replica.sessions.fail_all()
        replica.admin.fail_all()
        done()

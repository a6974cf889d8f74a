"""Membership that follows the StatefulSet: who is one too many, and the leader's part in it (design §5).

Most members that are scaled away ask to be removed while they stop (``departure``). The leader looks after
those that died before they could: a member is removed when it was silent for a grace *and* the
StatefulSet, asked again at this very moment, wants no pod of its ordinal. One at a time, under the core's
guards, so never below a majority of live voters. An API server that fails, a StatefulSet that is gone or
has 0 replicas: nobody is removed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError
from kvnode.ports import Done, Scale, ScaleSource
from kvnode.raft.types import Member

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica


class Scaling:
    """Runs on every node; removes others only while it leads."""

    def __init__(self, replica: Replica, source: ScaleSource | None) -> None:
        """Ask nobody yet.

        Args:
            replica: The node.
            source: Whom to ask; None: this node's StatefulSet is not known, and nothing is done here.
        """
        self._replica = replica
        self._source = source
        self._asked_at = -math.inf
        self._asking = False
        self.problem = ""
        """Why the size is not known: a sentence for an operator; empty when it is."""

    @property
    def is_on(self) -> bool:
        """Whether there is anybody to ask."""
        return self._source is not None

    def ask(self, done: Done[Scale]) -> None:
        """Ask anew how large the StatefulSet is to be. Only where ``is_on``."""
        assert self._source is not None, "nobody to ask"
        self._source(lambda scale, error: self._answered(scale, error, done))

    def _answered(self, scale: Scale | None, error: KvnodeError | None, done: Done[Scale]) -> None:
        problem = str(error) if error is not None else ""
        if problem != self.problem:
            self.problem = problem
            if error is not None:
                self._replica.trace("scale_unknown", {"reason": problem})
            else:
                assert scale is not None
                self._replica.trace("scale_known", {"replicas": scale.replicas})
        if not self._replica.stopped:
            done(scale, error)

    # -- the leader ---------------------------------------------------------------------------------

    def run(self, now: float) -> None:
        """One round, about once a second: look after members that died after they were scaled away."""
        if self._source is None or self._asking:
            return
        settings = self._replica.settings
        busy = bool(self._silent() or self.problem)
        if now - self._asked_at >= (settings.scale_interval_s if busy else settings.scale_check_s):
            self._asked_at = now
            self._asking = True
            self.ask(self._judge)

    def _silent(self) -> list[Member]:
        """Leader: members that were not heard for the grace; else nobody."""
        replica = self._replica
        settings, raft = replica.settings, replica.raft
        if not replica.is_leader or not raft.has_term_commit:
            return []
        ticks = settings.scaled_away_grace_s / settings.tick_s
        members = raft.membership.members
        return [m for m in members if raft.ticks_since_heard(m.node_id) >= ticks]

    def _judge(self, scale: Scale | None, _error: KvnodeError | None) -> None:
        """The size is known, as of now: remove the highest of those that are one too many."""
        self._asking = False
        if scale is None:
            return
        surplus = [m for m in self._silent() if scale.is_surplus(m.name)]
        if not surplus:
            return
        replica = self._replica
        voters = replica.raft.membership.voters
        # Learners first: they cost no majority. Then as a StatefulSet does, from the top.
        surplus.sort(key=lambda m: (m.node_id in voters, -(scale.ordinal(m.name) or 0)))
        self._remove(surplus[0], scale)

    def _remove(self, member: Member, scale: Scale) -> None:
        replica = self._replica
        what = {"member": member.node_id, "name": member.name, "replicas": scale.replicas}

        def removed(_value: Any, error: KvnodeError | None) -> None:
            if error is None:
                replica.trace("scaled_away_member_removed", what)
                self._asked_at = -math.inf  # perhaps there is another one
            else:
                replica.steward.note_refusal(
                    "scaled_away_member_removed", member.node_id, str(error)
                )

        replica.steward.remove(member.node_id, removed)

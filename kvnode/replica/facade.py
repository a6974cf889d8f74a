"""What the rooms above see of a replica: requests with completions, and status as plain values.

Every completion is a plain call-back in the loop turn that decided it; nobody makes a task per
request down here. A completion is called exactly once, never from inside the call that asked.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, Protocol

from kvnode.ports import Done
from kvnode.raft.types import Index, NodeId, Role, Term
from kvnode.replica.watches import Watches
from kvnode.store.commands import Command, Result
from kvnode.store.control import Autopilot
from kvnode.store.records import Session
from kvnode.store.store import Store


class Consistency(Enum):
    """How fresh a read must be (Consul consistency modes; design §3)."""

    DEFAULT = "default"
    """Linearizable by ReadIndex, the same as ``CONSISTENT`` here."""
    CONSISTENT = "consistent"
    STALE = "stale"
    """This node's own state, whatever it is."""


class ReadView(NamedTuple):
    """Permission to read ``replica.store`` at this very moment, and how fresh that is (RC-35)."""

    known_leader: bool
    last_contact_ms: int
    """Milliseconds since a leader was last heard; 0 on the leader and for linearizable reads. A
    node that never heard one counts from its start."""


class MemberStatus(NamedTuple):
    """One member as this node sees it."""

    node_id: NodeId
    name: str
    address: str
    """Peer address, ``host:port``."""
    http_address: str
    """Empty when not known."""
    voter: bool
    leader: bool
    connected: bool
    """True for the node itself."""
    match_index: Index
    """How far it follows; known on the leader only, else 0."""
    read_replica: bool = False
    """Never becomes a voter."""


class Status(NamedTuple):
    """One replica's state, for people, probes and metrics."""

    node_id: NodeId
    name: str
    cluster_id: str
    """Empty before the node belongs to a cluster."""
    role: Role
    term: Term
    leader_id: NodeId | None
    leader_name: str
    leader_address: str
    """Empty when no leader is known."""
    commit_index: Index
    applied_index: Index
    last_index: Index
    last_term: Term
    first_index: Index
    snapshot_index: Index
    """Log base: everything up to here is only in the store."""
    snapshot_term: Term
    last_contact_ms: int
    leader_lost_ms: int
    """For how long no leader has been known; 0 while one is."""
    catch_up_index: Index
    """The commit index that the first leader heard since the start had; 0 before. The node has
    caught up when ``applied_index`` reached it."""
    voters: int
    members: tuple[MemberStatus, ...]
    state: str
    """``starting``, ``bootstrapping``, ``joining``, ``running``, ``stopping``, ``removed``,
    ``failed``."""
    reason: str
    """Why the state is not ``running``, or what is wrong although it is: one sentence for an operator;
    else empty."""


class ServerHealth(NamedTuple):
    """What the leader thinks of one member; see ``autopilot``."""

    node_id: NodeId
    name: str
    address: str
    alive: bool
    """Heard within an election time-out."""
    leader: bool
    voter: bool
    last_contact_ms: int
    last_term: Term
    last_index: Index
    """How far its log is known to agree with the leader's."""
    healthy: bool
    stable_ms: int
    """For how long ``healthy`` has been what it is, as far as this leader saw."""


class ClusterHealth(NamedTuple):
    """What the leader thinks of all members."""

    healthy: bool
    failure_tolerance: int
    """How many healthy voters may fail before there is no majority."""
    servers: tuple[ServerHealth, ...]


class PodStatus(NamedTuple):
    """One line of ``GET /pods``."""

    address: str
    """Where it was asked, ``host:port`` of the peer port."""
    reachable: bool
    error: str
    name: str
    node_id: str
    cluster_id: str
    role: str
    term: int
    applied_index: int
    lag: int
    """Entries behind the most advanced pod asked."""
    keys: int
    digest_index: int
    """The newest index for which every reachable pod knows its digest; 0: there is none."""
    digest: str
    """32 hex digits: digest of the data at ``digest_index``; equal on equal data. Empty: none."""


class ReplicaFacade(Protocol):
    """What ``kvnode.http`` and ``kvnode.agent`` need; ``replica.replica.Replica`` is one."""

    store: Store
    watches: Watches
    """Who waits for which change. Register inside a read's ``done`` and no change is missed."""
    session_watches: Watches
    """The same for sessions, by their ids."""
    registry_watches: Watches
    """The same for the registry, by the names of its indexes (``store.registry.touch``)."""
    event_watches: Watches
    """The same for events; watch the empty prefix."""

    def write(self, command: Command, done: Done[Result]) -> None:
        """Replicate one command, from any node.

        A node that does not lead forwards once; while no leader is known it holds the request for
        ``leader_wait_s`` (7 s, as Consul does), then fails with ``NoLeader``.

        Errors: ``NoLeader``, ``Overloaded``, ``DiskNearlyFull`` (took_effect "no"),
        ``LeadershipLost``, ``Timeout``, ``PeerUnreachable`` (look at ``took_effect``), ``BadRequest``.
        """
        ...

    def read(self, consistency: Consistency, done: Done[ReadView]) -> None:
        """Wait until this node's store may be read; read it inside ``done``, synchronously."""
        ...

    def renew_session(self, session_id: str, done: Done[Session]) -> None:
        """Restart a session's clock (spec §5.4), from any node: no log entry.

        Answered once the leader was confirmed after the call (RC-61). ``done(None, None)``: there is
        no such session, or it is about to end. An id has 36 characters.

        Errors: ``NoLeader``, ``Overloaded``, ``BadRequest``. Trying again is always safe.
        """
        ...

    def status(self) -> Status:
        """A snapshot of this node's state. Cheap, never blocks."""
        ...

    def pods(self, addresses: tuple[str, ...], done: Done[list[PodStatus]]) -> None:
        """Ask every address (and every known member) for its state; takes at most 2 s."""
        ...

    def remove_member(self, node_id: NodeId, done: Done[Any], *, readmit_s: float = 0) -> None:
        """Remove a member, through the leader. Errors also: ``MembershipRefused``.

        With ``readmit_s`` (at most an hour) no node of its name is let in again for so long: for pods that
        are about to be stopped for good.
        """
        ...

    def transfer_leadership(self, target: NodeId | None, done: Done[Any]) -> None:
        """Hand leadership to ``target``, or to the most advanced voter."""
        ...

    def autopilot(self) -> Autopilot:
        """How the leader looks after the members, as this node's store has it."""
        ...

    def health(self, done: Done[ClusterHealth]) -> None:
        """Ask the leader what it thinks of the members. Errors: ``NoLeader``."""
        ...

    def force_leave(self, name: str, done: Done[bool]) -> None:
        """Remove the members of this name or id that nothing is heard of; False: there is no such member.

        Errors: ``NoLeader``, ``MembershipRefused``.
        """
        ...

    def join(self, address: str, done: Done[str]) -> None:
        """Look for a cluster at this address as well, or for a newcomer; answers with the name found there.

        Errors: ``BadRequest``, ``PeerUnreachable`` (also for a node of another cluster), ``Timeout``.
        """
        ...

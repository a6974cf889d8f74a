"""What peers may ask of this node: one table of methods, everything from outside checked here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError, NotLeader, RemoteProtocolError
from kvnode.ports import Hello
from kvnode.raft.types import Index, Member, NodeId
from kvnode.replica import pods
from kvnode.replica.autopilot import encode_health
from kvnode.replica.forwarding import serve_writes
from kvnode.replica.peers import where

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

Reply = Callable[[Any], None]
Fail = Callable[[KvnodeError], None]

MEMBERS_ONLY = frozenset(
    {
        "write",
        "read_index",
        "renew",
        "remove",
        "transfer",
        "join_hop",
        "diverged",
        "where",
        "health",
        "force_leave",
    }
)
"""Methods that only a node of the same cluster may ask for."""


class Service:
    """Answers peers' requests."""

    def __init__(self, replica: Replica) -> None:
        """Serve for ``replica``."""
        self._replica = replica
        self._methods: dict[str, Callable[[Hello, Any, Reply, Fail], None]] = {
            "who": self._who,
            "pledge": self._pledge,
            "join": self._join,
            "join_hop": self._join_hop,
            "write": self._write,
            "read_index": self._read_index,
            "renew": self._renew,
            "remove": self._remove,
            "transfer": self._transfer,
            "pod": self._pod,
            "lead": self._lead,
            "digest": self._digest,
            "diverged": self._diverged,
            "where": self._where,
            "health": self._health,
            "force_leave": self._force_leave,
            "invite": self._invite,
        }

    def handle(self, sender: Hello, method: str, payload: Any, reply: Reply, fail: Fail) -> None:
        """Answer one request, now or later, exactly once."""
        cluster_id = self._replica.cluster_id
        handler = self._methods.get(method)
        if handler is None:
            fail(RemoteProtocolError(f"unknown method {method!r}"))
        elif method in MEMBERS_ONLY and (not cluster_id or sender.cluster_id != cluster_id):
            fail(NotLeader(None))
        else:
            handler(sender, payload, reply, fail)

    # -- open to everybody ----------------------------------------------------------------------------

    def _who(self, _sender: Hello, _payload: Any, reply: Reply, _fail: Fail) -> None:
        formation = self._replica.formation
        pledge = formation.pledge
        reply([formation.is_empty, pledge.cluster_id if pledge else ""])

    def _pledge(self, sender: Hello, payload: Any, reply: Reply, _fail: Fail) -> None:
        self._replica.formation.take_pledge(sender, payload, reply)

    def _pod(self, _sender: Hello, _payload: Any, reply: Reply, _fail: Fail) -> None:
        reply(pods.describe(self._replica))

    def _lead(self, _sender: Hello, _payload: Any, reply: Reply, fail: Fail) -> None:
        """Whether this node leads, by the word of a quorum that was asked since."""
        replica = self._replica

        def confirmed(_view: Any, error: KvnodeError | None) -> None:
            if error is None:
                reply(replica.raft.term)
            else:
                fail(error)

        replica.intake.take_read(confirmed, hopped=True)

    def _digest(self, _sender: Hello, payload: Any, reply: Reply, _fail: Fail) -> None:
        index = payload if type(payload) is int else -1
        reply(self._replica.store.digest_at(index) or "")

    def _join(self, sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        """A node wants in. Whoever it asks passes it on to the leader, one hop."""
        replica = self._replica
        member, read_replica = _parse_member(payload)
        if member is None or (member.node_id, member.name) != (sender.node_id, sender.name):
            fail(RemoteProtocolError("a join request has the wrong form"))
        elif not replica.cluster_id:
            fail(NotLeader(None))
        elif self._is_member(member.node_id):
            # It may be the very vote that the cluster needs for a leader.
            reply(replica.raft.id)
        elif replica.is_leader:
            replica.steward.join(member, _answer(reply, fail), read_replica=read_replica)
        else:
            replica.admin.ask_leader("join_hop", list(payload), _answer(reply, fail))

    def _is_member(self, node_id: NodeId) -> bool:
        """Whether a node certainly is a member: by what is committed, or by the founding entry."""
        log = self._replica.raft.log
        settled = max(log.commit_index, Index(min(1, log.last_index)))
        return log.membership_at(settled).member(node_id) is not None

    def _invite(self, sender: Hello, _payload: Any, reply: Reply, _fail: Fail) -> None:
        """Somebody wants this node to look for a cluster where it is itself."""
        self._replica.formation.invited(sender.address)
        reply(True)

    # -- members only -----------------------------------------------------------------------------------

    def _join_hop(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        member, read_replica = _parse_member(payload)
        if member is None:
            fail(RemoteProtocolError("a join request has the wrong form"))
        else:
            steward = self._replica.steward
            steward.join(member, _answer(reply, fail), read_replica=read_replica)

    def _write(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        serve_writes(self._replica, payload, reply, fail)

    def _read_index(self, _sender: Hello, _payload: Any, reply: Reply, fail: Fail) -> None:
        self._replica.intake.take_read(_answer(reply, fail), hopped=True)

    def _diverged(self, sender: Hello, payload: Any, reply: Reply, _fail: Fail) -> None:
        if not self._replica.comparison.told(sender.node_id, payload):
            reply(True)

    def _where(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        answer = where(self._replica.book, payload)
        if answer is None:
            fail(RemoteProtocolError("a question about addresses has the wrong form"))
        else:
            reply(answer)

    def _health(self, _sender: Hello, _payload: Any, reply: Reply, fail: Fail) -> None:
        replica = self._replica
        if replica.is_leader:
            reply(encode_health(replica.pilot.judge()))
        else:
            fail(NotLeader(replica.raft.leader_id))

    def _force_leave(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        replica = self._replica
        if not replica.is_leader:
            fail(NotLeader(replica.raft.leader_id))
        else:
            replica.pilot.force_leave(str(payload), _answer(reply, fail))

    def _renew(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        self._replica.sessions.serve(payload, _answer(reply, fail))

    def _remove(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        match payload:
            case str(node_id):
                readmit_s = 0
            case (str(node_id), int(readmit_s)):
                pass
            case _:
                fail(RemoteProtocolError("a removal has the wrong form"))
                return
        done = _answer(reply, fail)
        self._replica.steward.remove(NodeId(node_id), done, readmit_s=readmit_s)

    def _transfer(self, _sender: Hello, payload: Any, reply: Reply, fail: Fail) -> None:
        target = NodeId(payload) if isinstance(payload, str) and payload else None
        self._replica.admin.transfer_here(target, _answer(reply, fail))


def _answer(reply: Reply, fail: Fail) -> Callable[[Any, KvnodeError | None], None]:
    def done(value: Any, error: KvnodeError | None) -> None:
        if error is None:
            reply(value)
        else:
            fail(error)

    return done


def _parse_member(payload: Any) -> tuple[Member | None, bool]:
    """Read ``[id, name, address]``; a fourth part, which only read replicas send, says that it is one."""
    match payload:
        case (str(node_id), str(name), str(address), *rest) if rest in ([], [True]):
            if all(0 < len(text) <= 512 for text in (node_id, name, address)):
                return Member(NodeId(node_id), name, address), bool(rest)
    return None, False

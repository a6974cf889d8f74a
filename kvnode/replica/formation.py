"""How an empty node becomes part of a cluster: bootstrap or join (design §5, RC-50, RC-55, RC-56).

A node without a cluster goes round: it asks discovery for addresses and everybody there who they are.

- Somebody belongs to a cluster: ask it to let this node join.
- Nobody does, exactly ``expect`` names are found, all empty and all expecting the same number, and this
  node's name sorts first: bootstrap. Before anything is written as a cluster, each of the others makes
  a durable *pledge* to it and thereby to no other; only when all have pledged does the first node write
  the cluster's first log entry. So two nodes that saw different halves can never both finish.
- Otherwise: wait and ask again. Discovery adds addresses to ask; it never decides.

A pledge is given back only when its bootstrapper itself answers that it holds no such cluster.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from kvnode.addresses import parse_address
from kvnode.errors import BadRequest, KvnodeError, MembershipRefused
from kvnode.ports import Done, Hello
from kvnode.raft.types import Member, NodeId

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

ASK_TIMEOUT_S = 2.0
ADDRESSES_MAX = 64
ADDRESS_CHARACTERS_MAX = 512
INVITATIONS_MAX = 16
"""Of the addresses that were named by hand, the newest are tried."""


class Answered(NamedTuple):
    """What somebody said to "who are you?"."""

    hello: Hello
    empty: bool
    """Holds no log and no cluster."""
    pledged_to: str
    """Cluster id of its pledge, or empty."""


class Pledge(NamedTuple):
    """A promise to a cluster that may come to be."""

    cluster_id: str
    bootstrapper: NodeId
    members: tuple[Member, ...]

    def encode(self) -> str:
        """As kept in the identity record and sent to peers."""
        return json.dumps([self.cluster_id, self.bootstrapper, [list(m) for m in self.members]])

    @staticmethod
    def decode(text: str) -> Pledge:
        """Inverse of ``encode``.

        Raises:
            ValueError: It is no pledge.
        """
        try:
            cluster_id, bootstrapper, members = json.loads(text)
            found = tuple(Member(NodeId(str(i)), str(n), str(a)) for i, n, a in members)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not a pledge: {error}") from error
        ids = {member.node_id for member in found}
        texts = isinstance(cluster_id, str) and isinstance(bootstrapper, str)
        if not texts or not cluster_id or bootstrapper not in ids or len(ids) != len(found):
            raise ValueError("not a pledge: it names no cluster, or nobody twice")
        return Pledge(cluster_id, NodeId(bootstrapper), found)


def by_ordinal(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``kv-2`` comes before ``kv-10``."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part]


class Formation:
    """Goes round until this node belongs to a cluster."""

    def __init__(self, replica: Replica) -> None:
        """Does nothing before ``start``."""
        self._replica = replica
        self._busy = False
        self._adopting = False
        """The node's cluster is decided; its id is on its way to the disk."""
        self._joining = False
        """A cluster was asked to let this node in: it promises itself to no other meanwhile."""
        self._saves = 0
        """Writes of the identity under way; ``pledge`` still shows the record before them."""
        self._saved = 0
        """Writes of the identity ever begun."""
        self._invitations: dict[str, None] = {}
        """Addresses that an operator or a peer named, besides those that discovery knows."""
        self.reason = "looking for peers"
        """What it waits for: one sentence for an operator."""

    @property
    def is_empty(self) -> bool:
        """Whether this node holds no log and belongs to no cluster."""
        replica = self._replica
        return not replica.cluster_id and replica.raft.log.last_index == 0

    def is_free_of(self, cluster_id: str) -> bool:
        """Whether this node is empty and promised to nobody else than this cluster, which has removed it:
        then it may as well be another one.

        An incarnation that was let in, or was there when the cluster was founded, and was removed before it
        heard of either can never join.
        """
        busy = self._saves or self._adopting
        pledge = self.pledge
        return self.is_empty and not busy and (pledge is None or pledge.cluster_id == cluster_id)

    @property
    def pledge(self) -> Pledge | None:
        """This node's promise, if it gave one."""
        text = self._replica.identity.record.pledge
        return Pledge.decode(text) if text else None

    def start(self) -> None:
        """Finish what a stopped node had begun, or begin to go round."""
        replica = self._replica
        if replica.cluster_id:
            return
        pledge = self.pledge
        if pledge is not None and replica.raft.log.last_index > 0:
            # The first entry was written, the cluster id not yet: the cluster exists.
            self._adopt(pledge.cluster_id)
        else:
            self._round()

    def _again(self) -> None:
        self._busy = False
        delay = self._replica.settings.discovery_interval_s
        jitter = 0.5 + self._replica.rng.random()
        self._replica.scheduler.call_later(delay * jitter, self._round)

    def _round(self) -> None:
        replica = self._replica
        if self._busy or self._adopting or replica.cluster_id or replica.stopped:
            return
        self._busy = True
        if replica.settings.has_discovery:
            replica.discover(self._discovered)
        elif self._invitations:
            self._discovered([], None)
        else:
            self._judge([], asked=0)

    def _discovered(self, addresses: list[str] | None, error: KvnodeError | None) -> None:
        if error is not None:
            self.reason = f"discovery found nobody: {error}"
        replica = self._replica
        wanted = list(addresses or replica.book.seeds)[:ADDRESSES_MAX]
        if addresses:
            replica.book.seeds = list(wanted)
        wanted += [address for address in self._invitations if address not in wanted]
        pledge = self.pledge
        if pledge is not None:
            wanted += [m.address for m in pledge.members if m.address not in wanted]
        answers: list[Answered] = []
        saved_before = self._saved
        missing = len(wanted)
        if not wanted:
            if error is None:
                self.reason = "discovery knows no address yet"
            self._again()
            return

        def answered(value: tuple[Hello, Any] | None, _error: KvnodeError | None) -> None:
            nonlocal missing
            missing -= 1
            if value is not None:
                found = _parse_answer(*value)
                if found is not None:
                    answers.append(found)
            if missing == 0 and (self._saves or self._saved != saved_before):
                # The answers are older than what this node has promised since: ask again.
                self._again()
            elif missing == 0:
                self._judge(answers, asked=len(wanted))

        for address in wanted:
            replica.transport.request_address(address, "who", None, ASK_TIMEOUT_S, answered)

    # -- deciding -----------------------------------------------------------------------------------

    def _judge(self, answers: list[Answered], asked: int) -> None:
        """Everybody answered or failed to: join, bootstrap, or wait."""
        replica = self._replica
        if self._adopting or replica.cluster_id or replica.stopped:
            return
        pledge = self.pledge
        for answer in answers:
            theirs, who = answer.hello.cluster_id, answer.hello.node_id
            if theirs and who != replica.raft.id and self._may_join(pledge, theirs, who):
                self._join(answer.hello)
                return
        if pledge is not None and not self._may_release(pledge, answers):
            self.reason = f"promised to a cluster that {self._name_of(pledge)} is forming"
            self._again()
            return
        if pledge is not None:
            self._save("", "", lambda: self._again())
            return
        self._consider_bootstrap(answers, asked)

    def _may_join(self, pledge: Pledge | None, cluster_id: str, who: NodeId) -> bool:
        """A pledge binds to one cluster. But its bootstrapper belongs to one cluster only, so when
        that one answers from another, the promised one never came to be.
        """
        return pledge is None or pledge.cluster_id == cluster_id or pledge.bootstrapper == who

    def _name_of(self, pledge: Pledge) -> str:
        names = [m.name for m in pledge.members if m.node_id == pledge.bootstrapper]
        return names[0] if names else "another node"

    def _may_release(self, pledge: Pledge, answers: list[Answered]) -> bool:
        """Whether the pledge's cluster certainly never came to be.

        Only its bootstrapper writes it. This node's own pledge with an empty log is void, since it
        is the one that would have written; another's is void when the bootstrapper answers without
        it, or when its name answers as a new, empty incarnation.
        """
        if pledge.bootstrapper == self._replica.raft.id:
            return True
        name = self._name_of(pledge)
        return any(
            answer.empty
            and answer.pledged_to != pledge.cluster_id
            and (answer.hello.node_id == pledge.bootstrapper or answer.hello.name == name)
            for answer in answers
        )

    def _consider_bootstrap(self, answers: list[Answered], asked: int) -> None:
        replica = self._replica
        expect = replica.settings.expect
        own = replica.own_member()
        if not expect:
            why = replica.settings.founding_ruled_out or "not told to bootstrap one"
            self.reason = f"no cluster found among {asked} addresses; {why}"
            self._again()
            return
        found = {own.name: own}
        for answer in answers:
            hello = answer.hello
            if hello.node_id == own.node_id:
                continue
            if answer.empty and not hello.expect:
                continue  # it only wants to join, later, and cannot pledge
            if not answer.empty or hello.expect != expect:
                self.reason = (
                    f"{hello.name} holds data or expects {hello.expect} nodes, not {expect}"
                )
                self._again()
                return
            if found.setdefault(hello.name, _member(hello)).node_id != hello.node_id:
                self.reason = f"two nodes are called {hello.name}"
                self._again()
                return
        chosen = sorted(found.values(), key=lambda m: by_ordinal(m.name))[:expect]
        if len(chosen) < expect:
            self.reason = f"found {len(found)} of {expect} expected nodes"
            self._again()
        elif chosen[0].node_id != own.node_id:
            self.reason = f"waiting for {chosen[0].name} to bootstrap"
            self._again()
        else:
            self._bootstrap(tuple(sorted(chosen)))

    # -- bootstrapping ------------------------------------------------------------------------------

    def _bootstrap(self, members: tuple[Member, ...]) -> None:
        """Collect everybody's pledge, beginning with the own one."""
        replica = self._replica
        pledge = Pledge(_cluster_id(replica.raft.id, members), replica.raft.id, members)
        self.reason = "collecting pledges"
        self._save("", pledge.encode(), lambda: self._ask_pledges(pledge))

    def _ask_pledges(self, pledge: Pledge) -> None:
        others = [m for m in pledge.members if m.node_id != pledge.bootstrapper]
        missing = len(others)
        refused: list[str] = []

        def answered(name: str, value: Any, error: KvnodeError | None) -> None:
            nonlocal missing
            missing -= 1
            if error is not None or value is None or value[1] is not True:
                refused.append(name)
            if missing == 0 and not refused:
                self._found(pledge)
            elif missing == 0:
                self.reason = f"no pledge from {', '.join(sorted(refused))}"
                self._again()

        if not others:
            self._found(pledge)
        for member in others:
            self._replica.transport.request_address(
                member.address,
                "pledge",
                pledge.encode(),
                ASK_TIMEOUT_S,
                partial(answered, member.name),
            )

    def _found(self, pledge: Pledge) -> None:
        """Everybody is bound: write the cluster's first entry, then its id."""
        replica = self._replica
        assert self.pledge == pledge, "a promised node promises itself to no other"
        if replica.stopped:
            return
        replica.found_cluster(pledge.members, lambda: self._adopt(pledge.cluster_id))

    def take_pledge(self, sender: Hello, payload: Any, done: Callable[[bool], None]) -> None:
        """Another node asks for this node's pledge. Answers True only once it is durable."""
        try:
            pledge = Pledge.decode(payload) if isinstance(payload, str) else None
        except ValueError:
            pledge = None
        own = self._replica.own_member()
        if (
            pledge is None
            or self._saves
            or self._joining
            or not self.is_empty
            or sender.node_id != pledge.bootstrapper
            or sender.expect != self._replica.settings.expect
            or len(pledge.members) != self._replica.settings.expect
            or own.node_id not in {m.node_id for m in pledge.members}
        ):
            done(False)
            return
        mine = self.pledge
        # The same bootstrapper may start over: it has not written the cluster it asked for before.
        if mine is not None and mine.bootstrapper != pledge.bootstrapper:
            done(False)
            return
        self._save("", pledge.encode(), lambda: done(True))

    # -- joining --------------------------------------------------------------------------------------

    def _join(self, hello: Hello) -> None:
        """Ask a member of a running cluster to let this node in."""
        replica = self._replica
        self.reason = f"asking {hello.name} to join its cluster"
        self._joining = True

        def answered(value: tuple[Hello, Any] | None, error: KvnodeError | None) -> None:
            self._joining = False
            if self._adopting or replica.cluster_id or replica.stopped:
                return
            if value is not None and value[0].cluster_id == hello.cluster_id:
                self._adopt(hello.cluster_id)
                return
            if isinstance(error, MembershipRefused):
                self.reason = f"{hello.name} does not let this node in yet: {error}"
            self._again()

        timeout = replica.settings.leader_wait_s + ASK_TIMEOUT_S
        replica.transport.request_address(
            hello.address, "join", self.join_payload(), timeout, answered
        )

    def join_payload(self) -> list[Any]:
        """What this node says when it asks to be let in; see ``service``."""
        own: list[Any] = list(self._replica.own_member())
        return [*own, True] if self._replica.settings.read_replica else own

    def invite(self, address: str, done: Done[str]) -> None:
        """Look at this address as well; see ``ReplicaFacade.join``.

        Two nodes without a cluster learn of each other; a node without one looks where the other is. Who
        belongs together is decided as always.
        """
        replica = self._replica
        try:
            own = parse_address(replica.transport.hello.address, 0)
            wanted = str(parse_address(address, own.port))
        except ValueError as error:
            replica.scheduler.call_soon(done, None, BadRequest(str(error)))
            return

        def answered(value: tuple[Hello, Any] | None, error: KvnodeError | None) -> None:
            if value is None:
                done(None, error)
                return
            if not replica.cluster_id:
                self.invited(wanted)
            if not value[0].cluster_id:
                replica.transport.request_address(
                    wanted, "invite", None, ASK_TIMEOUT_S, lambda _value, _error: None
                )
            done(value[0].name, None)

        replica.transport.request_address(wanted, "who", None, ASK_TIMEOUT_S, answered)

    def invited(self, address: str) -> None:
        """Somebody named an address; the next round asks there too."""
        if self.is_empty and 0 < len(address) <= ADDRESS_CHARACTERS_MAX:
            self._invitations.pop(address, None)
            self._invitations[address] = None
            while len(self._invitations) > INVITATIONS_MAX:
                del self._invitations[next(iter(self._invitations))]

    def greeted(self, hello: Hello) -> None:
        """A peer introduced itself: if it is the cluster of our pledge, this node belongs to it.

        Unless this node is the one to found it: then nobody else can know it yet.
        """
        replica = self._replica
        pledge = self.pledge if not replica.cluster_id else None
        if (
            pledge is not None
            and pledge.bootstrapper != replica.raft.id
            and hello.cluster_id == pledge.cluster_id
        ):
            self._adopt(pledge.cluster_id)

    def _adopt(self, cluster_id: str) -> None:
        if self._adopting:
            return
        self._adopting = True
        self._save(cluster_id, "", lambda: self._replica.belong(cluster_id))

    def _save(self, cluster_id: str, pledge: str, then: Callable[[], None]) -> None:
        self._saves += 1
        self._saved += 1

        def saved(error: KvnodeError | None) -> None:
            self._saves -= 1
            if error is not None:
                self._replica.fail_disk(error)
                return
            self._replica.peers.refresh()
            then()

        self._replica.identity.save(cluster_id, pledge, saved)


def _member(hello: Hello) -> Member:
    return Member(hello.node_id, hello.name, hello.address)


def _parse_answer(hello: Hello, payload: Any) -> Answered | None:
    if isinstance(payload, (list, tuple)) and len(payload) == 2:
        empty, pledged_to = payload
        if isinstance(empty, bool) and isinstance(pledged_to, str):
            return Answered(hello, empty, pledged_to)
    return None


def _cluster_id(bootstrapper: NodeId, members: tuple[Member, ...]) -> str:
    """Derive the id of the cluster that this incarnation founds with these (RC-55).

    Its every try has the same id, so that a request of an earlier try that arrives late binds nobody to
    something that will never be.
    """
    ids = json.dumps([bootstrapper, sorted(member.node_id for member in members)])
    return str(uuid.UUID(bytes=hashlib.sha256(ids.encode()).digest()[:16], version=4))

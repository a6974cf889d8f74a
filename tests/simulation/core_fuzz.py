"""Cores alone: ``RawNode`` over a disk that is two lists, with a network that is one bag.

The first net, a few thousand steps a second: everything that needs no driver, no files and no time.
Messages are delivered in any order, doubled, lost, and to others; disks finish late; crashes keep any
prefix of the queued writes; logs are compacted to nothing; members come and go; reads are checked against
the highest index committed anywhere when they were asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from kvnode.errors import MembershipRefused, NotLeader, Overloaded
from kvnode.raft.core import RaftConfig
from kvnode.raft.messages import AppendEntriesReply, InstallSnapshot, Message
from kvnode.raft.rawnode import RawNode, Ready
from kvnode.raft.types import (
    ZERO,
    Entry,
    HardState,
    Index,
    LogId,
    Member,
    Membership,
    NodeId,
    Role,
    SnapshotMeta,
    Term,
)
from tests.simulation.checkers import Invariants, Violation
from tests.simulation.clock import derive


@dataclass
class _Node:
    """One node: its core, its disk, and what is queued for the disk."""

    id: NodeId
    raw: RawNode
    hard_state: HardState
    base: LogId
    membership: Membership
    entries: list[Entry]
    queue: list[Ready] = field(default_factory=list)
    store_applied: int = 0
    """What the store holds durably: at most what was applied."""
    up: bool = True
    slow_ticks: int = 0
    """So many of its next ticks do not come: its clock is slow, or its process was paused."""


@dataclass(frozen=True)
class Mix:
    """How often each thing happens, relative to each other."""

    deliver: float
    tick: float
    disk: float
    propose: float
    read: float
    crash: float
    restart: float
    compact: float
    member: float
    transfer: float
    cut: float
    depose: float
    drop: float
    double: float


_ACTIONS = tuple(field.name for field in fields(Mix) if field.name not in {"drop", "double"})


class CoreFuzz:
    """One seed."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = derive(seed, "core")
        self.astray = derive(seed, "core/astray")
        """Of its own: what goes astray must change nothing, the seed's course included."""
        self.invariants = Invariants()
        self.trace = trace
        self.nodes: dict[NodeId, _Node] = {}
        self.bag: list[Message] = []
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.refusals: set[tuple[Term, NodeId]] = set()
        """Who has refused an AppendEntries in which term, to its leader's knowledge."""
        self.proposals = 0
        self.answered_reads = 0
        self.names = 0
        rng = self.rng
        self.mix = Mix(
            deliver=rng.choice((40, 80, 120)),
            tick=rng.choice((10, 20)),
            disk=rng.choice((10, 30, 60)),
            propose=rng.choice((1, 5, 15)),
            read=rng.choice((0, 2, 6)),
            crash=rng.choice((0.0, 0.0, 0.1, 0.5, 1.5)),
            restart=rng.choice((1.0, 4.0)),
            compact=rng.choice((0.0, 1.0, 4.0)),
            member=rng.choice((0.0, 0.0, 0.3, 1.0)),
            transfer=rng.choice((0.0, 0.0, 0.2, 1.0)),
            cut=rng.choice((0.0, 0.0, 0.1, 0.5)),
            depose=rng.choice((0.0, 0.5, 1.0)),
            drop=rng.choice((0.0, 0.0, 0.01, 0.1)),
            double=rng.choice((0.0, 0.05, 0.2)),
        )
        size = rng.choice((1, 2, 3, 3, 3, 4, 5, 5, 7))
        ids = [self._new_name() for _ in range(size)]
        members = tuple(Member(i, f"name-{i}", f"{i}:1") for i in ids)
        self.first = Membership(frozenset(ids), frozenset(), members, ())
        self.invariants.membership = self.first
        self.invariants.core_of = self._core_of
        for node_id in ids:
            self._boot(node_id, self.first)

    def _core_of(self, node_id: NodeId) -> RawNode | None:
        node = self.nodes.get(node_id)
        return node.raw if node is not None and node.up else None

    def _new_name(self) -> NodeId:
        self.names += 1
        return NodeId(f"n{self.names:02d}")

    def _boot(self, node_id: NodeId, membership: Membership) -> None:
        node = _Node(
            node_id,
            None,  # type: ignore[arg-type]
            HardState(Term(0), None),
            ZERO,
            membership,
            [],
        )
        self.nodes[node_id] = node
        self._wake(node)

    def _wake(self, node: _Node) -> None:
        rng = self.rng
        applied = rng.randint(node.base.index, max(node.base.index, node.store_applied))
        node.raw = RawNode(
            RaftConfig(
                node_id=node.id,
                election_ticks=5,
                heartbeat_ticks=rng.choice((1, 2)),
                append_bytes_max=rng.choice((1, 200, 5000)),
                inflight_messages_max=rng.choice((1, 2, 16)),
                inflight_bytes_max=rng.choice((100, 10_000)),
                uncommitted_bytes_max=rng.choice((200, 100_000)),
                apply_bytes_max=rng.choice((1, 300, 100_000)),
            ),
            hard_state=node.hard_state,
            base=node.base,
            membership=node.membership,
            entries=list(node.entries),
            applied_index=Index(applied),
            random=rng,
        )
        node.queue = []
        node.up = True
        self.invariants.recovered(node.id, node.hard_state, node.base, node.entries)
        self.invariants.observe(node.id, node.raw)

    # -- one turn of a driver -----------------------------------------------------------------

    def _turn(self, node: _Node) -> None:
        """Observe, and hand out what is outstanding."""
        self.invariants.observe(node.id, node.raw)
        spins = 0
        while node.raw.has_ready():
            ready = node.raw.ready()
            spins += 1
            if spins > 10_000:
                raise Violation(f"{node.id} is never done: {ready!r:.300}")
            self._say(node, ready.messages)
            self.invariants.observe(node.id, node.raw)
            for state in ready.reads:
                for read in state.reads:
                    asked = read
                    assert isinstance(asked, int)
                    self.answered_reads += 1
                    if state.index < asked:
                        raise Violation(f"{node.id}: a read at {state.index} missed {asked}")
            if ready.committed:
                applied = ready.committed[-1].index
                if self.rng.random() < 0.5:
                    node.store_applied = max(node.store_applied, applied)
            if ready.needs_disk or ready.entries:
                node.queue.append(ready)

    def _say(self, node: _Node, messages: list[Message]) -> None:
        for message in messages:
            self.invariants.sending(message)
            if isinstance(message, InstallSnapshot):
                self._stream(node, message)
            else:
                self.bag.append(message)

    def _stream(self, node: _Node, message: InstallSnapshot) -> None:
        """The driver streams its newest state, to a follower that has said that it lacks something."""
        if (message.term, message.to) not in self.refusals:
            raise Violation(
                f"{node.id} offers a snapshot that {message.to} may not need: {message}"
            )
        applied = node.raw.log.applied_index
        index = self.rng.choice((message.meta.last.index, applied))
        term = node.raw.log.term_at(index)
        if term is None or index < message.meta.last.index:
            node.raw.report_snapshot(message.to, None)
            return
        meta = SnapshotMeta(LogId(index, term), node.raw.log.membership_at(index))
        self.bag.append(message._replace(meta=meta))

    def _disk(self, node: _Node) -> None:
        """The oldest queued write becomes durable."""
        if not node.queue:
            return
        ready = node.queue.pop(0)
        self._persist(node, ready)
        self._say(node, node.raw.advance(ready))

    def _persist(self, node: _Node, ready: Ready) -> None:
        if ready.snapshot is not None:
            node.base = ready.snapshot.last
            node.membership = ready.snapshot.membership
            node.entries = []
            node.store_applied = node.base.index
            self.invariants.disk_base(node.id, node.base, reset=True)
        if ready.hard_state is not None:
            node.hard_state = ready.hard_state
            self.invariants.disk_hard_state(node.id, ready.hard_state)
        for entry in ready.entries:
            position = entry.index - node.base.index - 1
            if position < 0:
                continue
            assert position <= len(node.entries), "a gap on the disk"
            del node.entries[position:]
            node.entries.append(entry)
        self.invariants.disk_entries(node.id, ready.entries)

    # -- things that happen -------------------------------------------------------------------

    def step(self) -> None:
        """One random thing."""
        mix, rng = self.mix, self.rng
        what = rng.choices(_ACTIONS, [getattr(mix, action) for action in _ACTIONS])[0]
        if what == "deliver" and not self.bag:
            what = "tick"
        if what == "deliver":
            self._deliver(rng.randrange(len(self.bag)))
            return
        if what == "cut":
            self._cut()
            return
        if what == "depose":
            self._depose()
            return
        node = self.nodes[rng.choice(sorted(self.nodes))]
        if what in {"propose", "read", "transfer"} and rng.random() < 0.8:
            leaders = [i for i, n in self.nodes.items() if n.up and n.raw.role is Role.LEADER]
            node = self.nodes[rng.choice(sorted(leaders))] if leaders else node
        if what == "restart":
            if not node.up:
                self._wake(node)
                self._turn(node)
            return
        if not node.up:
            return
        self._tell(f"{what} {node.id}")
        match what:
            case "tick" if node.slow_ticks:
                node.slow_ticks -= 1
            case "tick":
                node.raw.tick()
            case "disk":
                self._disk(node)
            case "propose":
                self._propose(node)
            case "read":
                self._read(node)
            case "crash":
                self._crash(node)
                return
            case "compact":
                self._compact(node)
            case "member":
                self._change_membership()
                return
            case "transfer":
                others = sorted(node.raw.membership.voters - {node.id})
                if node.raw.role is Role.LEADER and others:
                    node.raw.transfer_leadership(rng.choice(others))
            case _:
                raise AssertionError(what)
        self._turn(node)

    def _tell(self, text: str) -> None:
        if self.trace is not None:
            self.trace(text)

    def _deliver(self, position: int) -> None:
        rng = self.rng
        self.bag[position], self.bag[-1] = self.bag[-1], self.bag[position]
        message = self.bag[-1]
        if rng.random() >= self.mix.double:
            self.bag.pop()
        if len(self.bag) > 300:  # a stream's end is always reported: snapshots are never lost here
            old = self.bag[: len(self.bag) - 300]
            self.bag[: len(old)] = [m for m in old if isinstance(m, InstallSnapshot)]
        self._stray(message)
        target = self.nodes.get(message.to)
        lost = rng.random() < self.mix.drop or (message.sender, message.to) in self.cuts
        sender = self.nodes.get(message.sender)
        if isinstance(message, InstallSnapshot) and sender is not None and sender.up:
            arrived = not lost and target is not None and target.up
            if arrived and target.raw.log.commit_index >= message.meta.last.index:
                # It brings nothing: the receiver's driver refuses it, unless that came late.
                arrived = rng.random() < self.mix.drop
                lost = not arrived
            sender.raw.report_snapshot(message.to, message.meta.last.index if arrived else None)
            self._turn(sender)
        if lost or target is None or not target.up:
            return
        if isinstance(message, AppendEntriesReply) and message.rejected:
            self.refusals.add((message.term, message.sender))
        self._tell(f"deliver {message!r:.160}")
        target.raw.step(message)
        self._turn(target)

    def _stray(self, message: Message) -> None:
        """Sometimes a node hears what is for another one: an address changed hands (RC-27)."""
        if self.astray.random() < 0.1:
            other = self.nodes[self.astray.choice(sorted(self.nodes))]
            if other.up and other.id != message.to:
                other.raw.step(message)

    def _propose(self, node: _Node) -> None:
        self.proposals += 1
        with contextlib.suppress(NotLeader, Overloaded):
            node.raw.propose([b"%d" % self.proposals] * self.rng.choice((1, 1, 3)))

    def _read(self, node: _Node) -> None:
        with contextlib.suppress(NotLeader):
            node.raw.read_index(self.invariants.frontier)

    def _crash(self, node: _Node) -> None:
        """Any prefix of the queued writes may be durable."""
        for ready in node.queue[: self.rng.randint(0, len(node.queue))]:
            self._persist(node, ready)
        node.queue = []
        node.up = False

    def _compact(self, node: _Node) -> None:
        log = node.raw.log
        limit = min(node.store_applied, log.applied_index, log.stable_index)
        if node.queue or limit <= log.base.index:
            return
        base, membership = node.raw.compact(Index(self.rng.randint(log.base.index + 1, limit)))
        node.entries = [entry for entry in node.entries if entry.index > base.index]
        node.base, node.membership = base, membership
        self.invariants.disk_base(node.id, base, reset=False)

    def _change_membership(self) -> None:
        rng = self.rng
        leaders = [n for n in self.nodes.values() if n.up and n.raw.role is Role.LEADER]
        if not leaders:
            return
        leader = rng.choice(sorted(leaders, key=lambda n: n.id))
        now = leader.raw.membership
        change = rng.choice(("learner", "promote", "remove"))
        try:
            if change == "learner" and len(now.nodes()) < 7:
                name = self._new_name()
                self._boot(name, Membership())
                leader.raw.propose_membership(now.with_learner(Member(name, name, f"{name}:1")))
            elif change == "promote" and now.learners:
                leader.raw.propose_membership(now.with_voter(rng.choice(sorted(now.learners))))
            elif change == "remove" and len(now.nodes()) > 1:
                leader.raw.propose_membership(now.without(rng.choice(now.nodes())))
        except (MembershipRefused, NotLeader):
            return
        self._tell(f"membership {change} by {leader.id}")
        self._turn(leader)

    def _depose(self) -> None:
        """Cut a leader off whose newest entries reached only some: the way to figures 7 and 8."""
        rng = self.rng
        leaders = [n for n in self.nodes.values() if n.up and n.raw.role is Role.LEADER]
        if not leaders:
            self.cuts.clear()
            return
        leader = rng.choice(sorted(leaders, key=lambda n: n.id))
        with contextlib.suppress(NotLeader, Overloaded):
            leader.raw.propose([b"lonely"] * rng.choice((1, 2)))
        self._turn(leader)
        reached = {i for i in self.nodes if rng.random() < 0.4}
        self._tell(f"depose {leader.id}, which reaches {sorted(reached)}")
        for message in [m for m in self.bag if m.sender == leader.id and m.to in reached]:
            target = self.nodes[message.to]
            if target.up and not isinstance(message, InstallSnapshot):
                target.raw.step(message)
                self._turn(target)
        self.bag = [m for m in self.bag if m.sender != leader.id or isinstance(m, InstallSnapshot)]
        self.cuts = {p for o in self.nodes for p in ((leader.id, o), (o, leader.id))}
        leader.slow_ticks = rng.choice((0, 0, 10, 40))
        if rng.random() < 0.4:
            self._crash(leader)
            self._wake(leader)
            self._turn(leader)

    def _cut(self) -> None:
        rng = self.rng
        ids = sorted(self.nodes)
        if rng.random() < 0.4:
            self.cuts.clear()
            return
        match rng.choice(("link", "isolate", "halves", "bridge")):
            case "link":
                self.cuts.add((rng.choice(ids), rng.choice(ids)))
            case "isolate":
                alone = rng.choice(ids)
                self.cuts |= {(alone, other) for other in ids} | {(o, alone) for o in ids}
            case "halves":
                half = set(rng.sample(ids, len(ids) // 2))
                self.cuts |= {(a, b) for a in ids for b in ids if (a in half) != (b in half)}
            case "bridge":
                middle = rng.choice(ids)
                half = set(rng.sample(ids, len(ids) // 2))
                self.cuts |= {
                    (a, b)
                    for a in ids
                    for b in ids
                    if (a in half) != (b in half) and middle not in {a, b}
                }

    # -- the two phases -----------------------------------------------------------------------

    def run(self, steps: int = 3000) -> None:
        """Safety first, then liveness.

        Raises:
            Violation: What was broken; the core's own assertions and errors pass through.
        """
        for _ in range(steps):
            self.step()
        self.heal(400 + 5 * max(n.raw.log.last_index for n in self.nodes.values()))

    def heal(self, rounds: int) -> None:
        """No more faults: a leader appears, commits something new, and everybody follows."""
        self.cuts.clear()
        self.mix = Mix(1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0.0, 0.0)
        for node_id in sorted(self.nodes):
            node = self.nodes[node_id]
            if not node.up:
                self._wake(node)
                self._turn(node)
        goal = LogId(Index(0), Term(0))
        for _ in range(rounds):
            for node_id in sorted(self.nodes):
                node = self.nodes[node_id]
                node.raw.tick()
                self._turn(node)
                while node.queue:
                    self._disk(node)
                    self._turn(node)
            bag, self.bag = self.bag, []
            for message in bag:
                self.bag.append(message)
                self._deliver(len(self.bag) - 1)
            leader = self._agreed_leader()
            if leader is None:
                continue
            if goal.term != leader.raw.term:
                try:
                    goal = leader.raw.propose([b"goal"])
                except Overloaded:
                    continue
                self._turn(leader)
            members = [self.nodes[m] for m in leader.raw.membership.nodes()]
            if all(node.raw.log.applied_index >= goal.index for node in members):
                return
        state = "\n".join(str(node.raw.describe()) for node in self.nodes.values())
        raise Violation(f"no progress after the faults ended; goal {goal}\n{state}")

    def _agreed_leader(self) -> _Node | None:
        leaders = [n for n in self.nodes.values() if n.raw.role is Role.LEADER]
        leaders.sort(key=lambda n: n.raw.term)
        return leaders[-1] if leaders and not leaders[-1].raw.is_transferring else None

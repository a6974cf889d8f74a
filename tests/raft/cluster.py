"""A few cores, a disk for each that is plain lists, and a network that is one list.

Everything happens when a test says so: disks sync at once or on demand, messages wait on the network
until they are delivered, dropped, doubled or reordered. Shared by the unit tests, the golden scripts
and the fuzz.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvnode.raft.core import RaftConfig
from kvnode.raft.messages import InstallSnapshot, Message
from kvnode.raft.rawnode import RawNode, ReadState, Ready
from kvnode.raft.types import (
    ZERO,
    Entry,
    EntryKind,
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


class FixedDraw:
    """Draws the smallest time-out plus an offset, so that a test knows who campaigns first."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def randrange(self, start: int, stop: int) -> int:
        return start + self.offset % (stop - start)


def nid(number: int | str) -> NodeId:
    """``n1`` of 1 or "1"; names pass through."""
    text = str(number)
    return NodeId(text if text.startswith("n") else f"n{text}")


def membership(voters: Iterable[int], learners: Iterable[int] = ()) -> Membership:
    voting = [nid(v) for v in voters]
    learning = [nid(v) for v in learners]
    members = tuple(member(node) for node in sorted(voting + learning))
    return Membership(frozenset(voting), frozenset(learning), members)


def member(node: NodeId) -> Member:
    return Member(node, f"name-{node}", f"{node}:1")


def command(index: int, term: int, data: bytes | str = b"") -> Entry:
    raw = data.encode() if isinstance(data, str) else data
    return Entry(Index(index), Term(term), EntryKind.COMMAND, raw or b"%d@%d" % (index, term))


def log_of(*terms: int) -> list[Entry]:
    """A log from index 1 with an entry of each term."""
    return [command(index, term) for index, term in enumerate(terms, 1)]


def lid(index: int, term: int) -> LogId:
    return LogId(Index(index), Term(term))


NEVER = HardState(Term(0), None)
STRANGER = Membership()


@dataclass
class Disk:
    """What survives a crash."""

    hard_state: HardState = NEVER
    base: LogId = ZERO
    membership: Membership = STRANGER
    entries: list[Entry] = field(default_factory=list)

    @property
    def last_index(self) -> int:
        return self.base.index + len(self.entries)

    def write(self, ready: Ready) -> None:
        """What the journal does with one Ready."""
        if ready.snapshot is not None:
            self.base, self.membership = ready.snapshot.last, ready.snapshot.membership
            self.entries = []
        if ready.hard_state is not None:
            assert ready.hard_state.term >= self.hard_state.term, "a durable term fell"
            if ready.hard_state.term == self.hard_state.term:
                assert self.hard_state.vote in {None, ready.hard_state.vote}, "a second vote"
            self.hard_state = ready.hard_state
        for entry in ready.entries:
            position = entry.index - self.base.index - 1
            if position < 0:
                continue  # compacted while it was queued
            assert position <= len(self.entries), "a gap on the disk"
            del self.entries[position:]
            self.entries.append(entry)


class Node:
    """One core with its disk and its store."""

    def __init__(
        self,
        node_id: NodeId,
        disk: Disk,
        config: dict[str, Any],
        draw: Any,
        tracer: Callable[[str, str, dict[str, Any]], None],
    ) -> None:
        self.id = node_id
        self.disk = disk
        self.config = config
        self.draw = draw
        self.tracer = tracer
        self.syncs = True
        """Whether the disk finishes at once; else ``sync`` does it."""
        self.queue: deque[Ready] = deque()
        self.applied: dict[int, Entry] = {}
        """The store: everything applied, by index."""
        self.store_durable = disk.base.index
        self.reads: list[ReadState] = []
        self.failed_reads: list[object] = []
        self.snapshots: list[SnapshotMeta] = []
        self.up = True
        self.said: Callable[[Node, Message], None] = lambda _node, _message: None
        """Hears each message at the very moment at which it may leave."""
        self.handed: Callable[[Node, Ready], None] = lambda _node, _ready: None
        self.start(disk.base.index)

    def start(self, applied_index: int) -> None:
        self.raw = RawNode(
            RaftConfig(node_id=self.id, **self.config),
            hard_state=self.disk.hard_state,
            base=self.disk.base,
            membership=self.disk.membership,
            entries=list(self.disk.entries),
            applied_index=Index(applied_index),
            random=self.draw,
            tracer=lambda event, fields: self.tracer(self.id, event, fields),
        )
        self.queue.clear()
        self.up = True

    @property
    def core(self) -> Any:
        """The insides, for a test that must set a scene."""
        return self.raw._core

    def handle(self) -> list[Message]:
        """Work off every Ready. Returns what may leave."""
        out: list[Message] = []
        spins = 0
        while self.raw.has_ready():
            spins += 1
            assert spins < 10_000, "has_ready for ever"
            ready = self.raw.ready()
            self.handed(self, ready)
            for message in ready.messages:
                self.said(self, message)
            out += ready.messages
            if ready.snapshot is not None:
                self.snapshots.append(ready.snapshot)
            for entry in ready.committed:
                self.applied[entry.index] = entry
            self.reads += ready.reads
            self.failed_reads += ready.failed_reads
            if ready.needs_disk:
                self.queue.append(ready)
                if self.syncs:
                    out += self.sync_one()
        return out

    def sync_one(self) -> list[Message]:
        """The oldest queued write becomes durable."""
        ready = self.queue.popleft()
        self.disk.write(ready)
        messages = self.raw.advance(ready)
        for message in messages:
            self.said(self, message)
        return messages

    def crash(self, keep: int = 0) -> None:
        """Lose everything but the disk and the first ``keep`` queued writes."""
        for _ in range(keep):
            self.disk.write(self.queue.popleft())
        self.queue.clear()
        self.up = False


class Cluster:
    """Nodes and what is under way between them."""

    def __init__(
        self,
        voters: int | Sequence[int] = 3,
        learners: Sequence[int] = (),
        *,
        logs: dict[int, Sequence[int]] | None = None,
        terms: dict[int, int] | None = None,
        tracer: Callable[[str, str, dict[str, Any]], None] | None = None,
        draw: Callable[[NodeId], Any] | None = None,
        **config: Any,
    ) -> None:
        """Make the nodes.

        Args:
            voters: How many, or which.
            learners: Which.
            logs: The terms of the entries that some nodes start with.
            terms: Hard-state terms, where they are not the log's last term.
            tracer: Hears what every core traces.
            draw: Makes a node's random generator.
            config: Settings of every core; elections take 10 ticks unless told otherwise.
        """
        self.config = {"election_ticks": 10, "heartbeat_ticks": 1, **config}
        self.tracer = tracer or (lambda _node, _event, _fields: None)
        self.draw = draw or (lambda node: FixedDraw(int(node[1:]) - 1))
        self.network: list[Message] = []
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.nodes: dict[NodeId, Node] = {}
        self.on_send: Callable[[Message], None] = lambda _message: None
        self.on_drop: Callable[[Message], None] = lambda _message: None
        voting = range(1, voters + 1) if isinstance(voters, int) else voters
        self.first = membership(voting, learners)
        for number in (*voting, *learners):
            entries = log_of(*(logs or {}).get(number, ()))
            term = (terms or {}).get(number, entries[-1].term if entries else 0)
            hard = HardState(Term(term), None)
            self.boot(nid(number), Disk(hard, ZERO, self.first, entries))

    def boot(self, node_id: NodeId, disk: Disk | None = None) -> Node:
        """Start a node; an empty disk makes a stranger that waits to be told."""
        node = Node(node_id, disk or Disk(), self.config, self.draw(node_id), self.tracer)
        self.nodes[node_id] = node
        return node

    def __getitem__(self, number: int | str) -> Node:
        return self.nodes[nid(number)]

    def raw(self, number: int | str) -> RawNode:
        return self[number].raw

    @property
    def leader(self) -> Node | None:
        """The live leader of the highest term."""
        leading = [n for n in self.nodes.values() if n.up and n.raw.role is Role.LEADER]
        return max(leading, key=lambda n: n.raw.term) if leading else None

    # -- the network ----------------------------------------------------------------------------

    def pump(self, node: Node) -> None:
        """Let a node work, and put what it says on the network."""
        self.send(node, node.handle())

    def send(self, node: Node, messages: Iterable[Message]) -> None:
        for message in messages:
            self.on_send(message)
            if isinstance(message, InstallSnapshot):
                message = self._newest_snapshot(node, message)
                if self._is_useless(message):
                    node.raw.report_snapshot(message.to, None)
                    self.on_drop(message)
                    continue
            self.network.append(message)

    def _newest_snapshot(self, node: Node, message: InstallSnapshot) -> InstallSnapshot:
        """The driver streams its newest state and not the one that the core named."""
        log = node.raw.log
        index = log.applied_index
        term = log.term_at(index)
        assert term is not None
        return message._replace(meta=SnapshotMeta(LogId(index, term), log.membership_at(index)))

    def _is_useless(self, message: InstallSnapshot) -> bool:
        """Whether the receiver's driver refuses the stream at its beginning; its core does not hear of it."""
        target = self._reached(message)
        return target is not None and message.meta.last.index <= target.raw.log.commit_index

    def _reached(self, message: Message) -> Node | None:
        """The node that a message gets to; None: it is down, unknown or cut off."""
        target = self.nodes.get(message.to)
        cut = (message.sender, message.to) in self.cuts
        return target if target is not None and target.up and not cut else None

    def deliver(self, message: Message) -> None:
        """Hand one message over, whatever the network thinks of it; nothing happens when it is cut."""
        target = self._reached(message)
        if isinstance(message, InstallSnapshot):
            self._stream(message, self.nodes.get(message.sender), target)
        elif target is not None:
            target.raw.step(message)
            self.pump(target)
        else:
            self.on_drop(message)

    def _stream(self, message: InstallSnapshot, sender: Node | None, target: Node | None) -> None:
        """The stream ends: its end is told to the sender, and its content to the receiver."""
        if target is None:
            self.on_drop(message)
        if sender is not None and sender.up:
            reached = message.meta.last.index if target is not None else None
            sender.raw.report_snapshot(message.to, reached)
            self.pump(sender)
        if target is None:
            return
        before = len(target.snapshots)
        target.raw.step(message)
        self.pump(target)
        if len(target.snapshots) > before and sender is not None:
            last = message.meta.last.index
            target.applied = {i: e for i, e in sender.applied.items() if i <= last}
            target.store_durable = last

    def settle(self, limit: int = 10_000) -> None:
        """Deliver in order until nobody has anything to say."""
        for node in list(self.nodes.values()):
            if node.up:
                self.pump(node)
        for _ in range(limit):
            if not self.network:
                return
            self.deliver(self.network.pop(0))
        raise AssertionError(f"never quiet: {self.network[:5]}")

    def tick(self, numbers: Iterable[int | str] | None = None, times: int = 1) -> None:
        """Time passes at some nodes (default: all); what they say goes onto the network."""
        for _ in range(times):
            for node in [self[n] for n in numbers] if numbers else list(self.nodes.values()):
                if node.up:
                    node.raw.tick()
                    self.pump(node)

    def run(self, ticks: int) -> None:
        """Time passes everywhere, and everything is delivered after each tick."""
        for _ in range(ticks):
            self.tick()
            self.settle()

    def cut(self, *groups: Sequence[int | str]) -> None:
        """Only members of one group hear each other; a node may be in several."""
        ids = sorted(self.nodes)
        named = [{nid(n) for n in group} for group in groups]
        self.cuts = {(a, b) for a in ids for b in ids if not any(a in g and b in g for g in named)}

    def isolate(self, *numbers: int | str) -> None:
        alone = {nid(n) for n in numbers}
        rest = [n for n in self.nodes if n not in alone]
        self.cut(rest, *[[n] for n in alone])

    def heal(self) -> None:
        self.cuts = set()

    # -- what happens often ---------------------------------------------------------------------

    def elect(self, number: int | str) -> Node:
        """Make this node the leader by an ordinary election with everybody's clock run down."""
        node = self[number]
        for other in self.nodes.values():
            other.core.elapsed = 1 << 20
            if other is not node and other.up and other.raw.role is Role.LEADER:
                other.core.become_follower(other.raw.term, None)
        for other in self.nodes.values():
            other.core.elapsed = max(self.config["election_ticks"], 0)
        node.raw.campaign()
        self.settle()
        assert node.raw.role is Role.LEADER, f"{node.id} was not elected"
        return node

    def propose(self, number: int | str, *data: str) -> LogId:
        """Propose and let everything happen."""
        at = self[number].raw.propose([text.encode() for text in data])
        self.settle()
        return at

    def restart(self, number: int | str, applied_index: int | None = None) -> Node:
        node = self[number]
        applied = node.store_durable if applied_index is None else applied_index
        node.start(max(applied, node.disk.base.index))
        node.applied = {i: e for i, e in node.applied.items() if i <= applied}
        return node

    def compact(self, number: int | str, index: int) -> None:
        node = self[number]
        base, members = node.raw.compact(Index(index))
        node.disk.entries = [e for e in node.disk.entries if e.index > base.index]
        node.disk.base, node.disk.membership = base, members
        node.store_durable = max(node.store_durable, base.index)


def without_n3(entries: int, **config: Any) -> Cluster:
    """Three nodes; n1 leads, and n3 was cut off before so many entries, "0", "1", …, were written."""
    cluster = Cluster(3, **config)
    cluster.elect(1)
    cluster.isolate(3)
    for number in range(entries):
        cluster.propose(1, str(number))
    return cluster

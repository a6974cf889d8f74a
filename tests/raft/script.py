"""The language of the golden stories in ``tests/scripts/raft``.

A story is a text file of blocks: commands, a line ``----``, and everything that happened, until an
empty line. Comments (``#``) stand above a block's commands.

Setting a scene
    cluster nodes=3 [learners=4,5] [leader=1] [log1=1,1,2] [term1=3] [setting=number …]
    show [state] [apply] [disk] [messages] [heartbeats]     what is told; everything but heartbeats
                                                            unless said

Time, disks, network
    tick N…|all [times=k]        run TICKS (a tick everywhere, then everything is delivered)
    settle                       deliver until it is quiet
    deliver A B | drop A B | double A B | reverse A B       what is under way from A to B now
    forget                       all that is under way is lost
    cut 1 2 | 3                  isolate N…                heal
    disk N slow|fast             sync N [count]            crash N [keep=count]      restart N
Requests
    campaign N    propose N text…    read N name    transfer N M    unreachable N M    compact N index
    join N M      promote N M        remove N M     replace N OLD NEW (as the steward does)
    append A B term=t prev=i@t [entries=i@t,…] [commit=i]   a hand-made message from A to B
    heartbeat A B term=t commit=i [round=r]     confirm A B term=t round=r
    vote A B term=t last=i@t     snapshot A B term=t at=i@t
Looking
    logs          role, term, log and positions of every node
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvnode.errors import KvnodeError, MembershipRefused, NotLeader
from kvnode.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from kvnode.raft.rawnode import Ready
from kvnode.raft.types import Entry, EntryKind, Index, LogId, Membership, Role, SnapshotMeta, Term
from tests.raft.cluster import Cluster, Node, command, member, nid

KINDS = ("state", "apply", "disk", "messages", "heartbeats")


def rewrite(text: str) -> str:
    """Play a story and return it with what really happened."""
    story = Story()
    out: list[str] = []
    for head, commands in _blocks(text):
        out += [*head, *commands, "----", *story.play(commands), ""]
    return "\n".join(out)


def _blocks(text: str) -> list[tuple[list[str], list[str]]]:
    blocks: list[tuple[list[str], list[str]]] = []
    head: list[str] = []
    commands: list[str] = []
    below = False
    for line in text.splitlines():
        if below:
            below = bool(line.strip())
        elif line == "----":
            blocks.append((head, commands))
            head, commands, below = [], [], True
        elif commands and line.strip():
            commands.append(line)
        elif line.startswith("#") or not line.strip():
            head.append(line)
        else:
            commands.append(line)
    assert not commands, f"commands without ----: {commands}"
    return blocks


class Story:
    """One cluster, and what is told about it."""

    def __init__(self) -> None:
        self.cluster = Cluster(0)
        self.shown: set[str] = set(KINDS) - {"heartbeats"}
        self.lines: list[str] = []

    def play(self, commands: list[str]) -> list[str]:
        """Run some commands; returns what happened."""
        self.lines = []
        for line in commands:
            if len(commands) > 1:
                self.lines.append(f"> {line}")
            name, *words = line.split()
            options = dict(word.split("=", 1) for word in words if "=" in word)
            plain = [word for word in words if "=" not in word]
            handler: Callable[..., None] = getattr(self, "do_" + name)
            handler(*plain, **options)
        return self.lines

    def tell(self, kind: str, text: str) -> None:
        if kind in self.shown:
            self.lines.append(text)

    # -- listening --------------------------------------------------------------------------------

    def _traced(self, node: str, event: str, fields: dict[str, Any]) -> None:
        told = " ".join(f"{k}={_plain(v)}" for k, v in fields.items() if v != "")
        self.tell("state", f"{node} {event} {told}".rstrip())

    def _said(self, message: Message) -> None:
        heartbeat = isinstance(message, Heartbeat | HeartbeatReply)
        kind = "heartbeats" if heartbeat else "messages"
        self.tell(kind, f"{message.sender} → {message.to} {describe(message)}")

    def _dropped(self, message: Message) -> None:
        heartbeat = isinstance(message, Heartbeat | HeartbeatReply)
        kind = "heartbeats" if heartbeat else "messages"
        self.tell(kind, f"{message.sender} ✗ {message.to} {type(message).__name__}")

    def _handed(self, node: Node, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.tell("apply", f"{node.id} installs snapshot {ready.snapshot.last}")
        if ready.committed:
            self.tell("apply", f"{node.id} applies {_entries(ready.committed)}")
        for state in ready.reads:
            reads = " ".join(str(read) for read in state.reads)
            self.tell("apply", f"{node.id} answers {reads} at {state.index}")
        for read in ready.failed_reads:
            self.tell("apply", f"{node.id} fails {read}")

    def _written(self, node: Node, ready: Ready) -> None:
        parts: list[str] = []
        if ready.snapshot is not None:
            parts.append(f"reset to {ready.snapshot.last}")
        if ready.hard_state is not None:
            parts.append(f"term={ready.hard_state.term} vote={ready.hard_state.vote or '-'}")
        if ready.entries:
            parts.append(_entries(ready.entries))
        if parts:
            self.tell("disk", f"{node.id} saved {', '.join(parts)}")

    def _listen(self, node: Node) -> None:
        node.handed = self._handed
        node.said = lambda _node, message: self._said(message)
        write = node.disk.write

        def written(ready: Ready) -> None:
            write(ready)
            self._written(node, ready)

        node.disk.write = written  # type: ignore[method-assign]

    # -- setting a scene ----------------------------------------------------------------------------

    def do_cluster(
        self, nodes: str = "3", learners: str = "", leader: str = "", **options: str
    ) -> None:
        logs = {int(k[3:]): _numbers(v) for k, v in options.items() if _is_of(k, "log")}
        terms = {int(k[4:]): int(v) for k, v in options.items() if _is_of(k, "term")}
        settings = {
            k: int(v) for k, v in options.items() if not (_is_of(k, "log") or _is_of(k, "term"))
        }
        self.cluster = Cluster(
            int(nodes), _numbers(learners), logs=logs, terms=terms, tracer=self._traced, **settings
        )
        self.cluster.on_drop = self._dropped
        shown, self.shown = self.shown, set()
        for node in self.cluster.nodes.values():
            self._listen(node)
        if leader:
            self.cluster.elect(leader)
            self.cluster.run(1)
        self.shown = shown

    def do_show(self, *kinds: str) -> None:
        assert set(kinds) <= set(KINDS), kinds
        self.shown = set(kinds)

    # -- time, disks, network -------------------------------------------------------------------------

    def do_tick(self, *numbers: str, times: str = "1") -> None:
        self.cluster.tick(None if numbers == ("all",) else numbers, int(times))

    def do_run(self, ticks: str) -> None:
        self.cluster.run(int(ticks))

    def do_settle(self) -> None:
        self.cluster.settle()

    def _take(self, sender: str, to: str) -> list[Message]:
        found = [m for m in self.cluster.network if (m.sender, m.to) == (nid(sender), nid(to))]
        self.cluster.network = [m for m in self.cluster.network if m not in found]
        return found

    def do_deliver(self, sender: str, to: str) -> None:
        for message in self._take(sender, to):
            self.cluster.deliver(message)

    def do_drop(self, sender: str, to: str) -> None:
        for message in self._take(sender, to):
            self._dropped(message)

    def do_forget(self) -> None:
        self.cluster.network = []

    def do_double(self, sender: str, to: str) -> None:
        for message in [
            m for m in self.cluster.network if (m.sender, m.to) == (nid(sender), nid(to))
        ]:
            self.cluster.deliver(message)

    def do_reverse(self, sender: str, to: str) -> None:
        taken = self._take(sender, to)
        self.cluster.network += reversed(taken)

    def do_cut(self, *words: str) -> None:
        groups = " ".join(words).split("|")
        self.cluster.cut(*[group.split() for group in groups])

    def do_isolate(self, *numbers: str) -> None:
        self.cluster.isolate(*numbers)

    def do_heal(self) -> None:
        self.cluster.heal()

    def do_disk(self, number: str, speed: str) -> None:
        node = self.cluster[number]
        node.syncs = speed == "fast"
        while node.syncs and node.queue:
            self.do_sync(number)

    def do_sync(self, number: str, count: str = "1") -> None:
        node = self.cluster[number]
        for _ in range(int(count)):
            self.cluster.send(node, node.sync_one())
            self.cluster.pump(node)

    def do_crash(self, number: str, keep: str = "0") -> None:
        node = self.cluster[number]
        node.store_durable = min(node.raw.log.applied_index, node.disk.last_index)
        node.crash(int(keep))

    def do_restart(self, number: str) -> None:
        node = self.cluster.restart(number)
        self.cluster.pump(node)

    # -- requests ---------------------------------------------------------------------------------------

    def _try(self, number: str, request: Callable[[Any], object]) -> None:
        node = self.cluster[number]
        try:
            request(node.raw)
        except NotLeader as error:
            self.lines.append(f"{node.id} refuses: NotLeader leader={error.leader_id or '-'}")
        except MembershipRefused as error:
            self.lines.append(f"{node.id} refuses: {error}")
        except KvnodeError as error:
            self.lines.append(f"{node.id} {type(error).__name__}: {error}")
        self.cluster.pump(node)

    def do_campaign(self, number: str) -> None:
        self._try(number, lambda raw: raw.campaign())

    def do_propose(self, number: str, *texts: str) -> None:
        self._try(number, lambda raw: raw.propose([t.encode() for t in texts]))

    def do_read(self, number: str, name: str) -> None:
        self._try(number, lambda raw: raw.read_index(name))

    def do_transfer(self, number: str, target: str) -> None:
        self._try(number, lambda raw: raw.transfer_leadership(nid(target)))

    def do_unreachable(self, number: str, other: str) -> None:
        self._try(number, lambda raw: raw.report_unreachable(nid(other)))

    def do_compact(self, number: str, index: str) -> None:
        self.cluster.compact(number, int(index))

    def _change(self, number: str, change: Callable[[Membership], Membership]) -> None:
        self._try(number, lambda raw: raw.propose_membership(change(raw.membership)))

    def do_join(self, number: str, new: str) -> None:
        if nid(new) not in self.cluster.nodes:
            self._listen(self.cluster.boot(nid(new)))
        self._change(number, lambda now: now.with_learner(member(nid(new))))

    def do_promote(self, number: str, learner: str) -> None:
        self._change(number, lambda now: now.with_voter(nid(learner)))

    def do_remove(self, number: str, old: str) -> None:
        self._change(number, lambda now: now.without(nid(old)))

    def do_append(
        self, sender: str, to: str, *, term: str, prev: str, entries: str = "", commit: str = "0"
    ) -> None:
        made = tuple(
            command(at.index, at.term) for at in map(_log_id, filter(None, entries.split(",")))
        )
        self._inject(
            AppendEntries(
                nid(sender),
                nid(to),
                Term(int(term)),
                _log_id(prev),
                made,
                Index(int(commit)),
            )
        )

    def do_heartbeat(
        self,
        sender: str,
        to: str,
        *,
        term: str,
        commit: str,
        round: str = "0",  # noqa: A002
    ) -> None:
        self._inject(
            Heartbeat(nid(sender), nid(to), Term(int(term)), Index(int(commit)), int(round))
        )

    def do_snapshot(self, sender: str, to: str, *, term: str, at: str) -> None:
        meta = SnapshotMeta(_log_id(at), self.cluster.first)
        self._inject(InstallSnapshot(nid(sender), nid(to), Term(int(term)), meta))

    def do_confirm(self, sender: str, to: str, *, term: str, round: str) -> None:  # noqa: A002
        self._inject(HeartbeatReply(nid(sender), nid(to), Term(int(term)), int(round)))

    def do_vote(self, sender: str, to: str, *, term: str, last: str) -> None:
        self._inject(Vote(nid(sender), nid(to), Term(int(term)), _log_id(last), transfer=False))

    def _inject(self, message: Message) -> None:
        self._said(message)
        try:
            self.cluster.deliver(message)
        except KvnodeError as error:
            self.lines.append(f"{message.to} {type(error).__name__}: {error}")

    # -- looking ------------------------------------------------------------------------------------------

    def do_logs(self) -> None:
        for node in self.cluster.nodes.values():
            self.lines.append(picture(node))


def picture(node: Node) -> str:
    """One node on one line."""
    raw, log = node.raw, node.raw.log
    if not node.up:
        return f"{node.id} down"
    terms = " ".join(str(e.term) for e in log._entries)
    kind = (
        ""
        if node.id in raw.membership.voters
        else " learner"
        if node.id in raw.membership.learners
        else " stranger"
    )
    role = f"{raw.role.value}{kind}" if raw.role is not Role.FOLLOWER else (kind or " follower")[1:]
    base = f"base={log.base} " if log.base.index else ""
    stable = f" stable={log.stable_index}" if log.stable_index != log.last_index else ""
    return (
        f"{node.id} {role} term={raw.term} vote={raw.vote or '-'} leader={raw.leader_id or '-'} "
        f"{base}log=[{terms}] commit={log.commit_index} applied={log.applied_index}{stable}"
    )


def describe(message: Message) -> str:
    """A message without its ends."""
    name, term = type(message).__name__, f"term={message.term}"
    match message:
        case PreVote():
            return f"{name} {term} last={message.last}"
        case Vote():
            return f"{name} {term} last={message.last}{' transfer' if message.transfer else ''}"
        case PreVoteReply() | VoteReply():
            return f"{name} {term} {'granted' if message.granted else 'refused'}"
        case AppendEntries():
            return (
                f"{name} {term} prev={message.prev} [{_entries(message.entries)}] "
                f"commit={message.commit_index}"
            )
        case AppendEntriesReply() if message.rejected:
            hint = LogId(message.match_index, message.hint_term)
            return f"{name} {term} refused prev={message.prev_index} hint={hint}"
        case AppendEntriesReply():
            return f"{name} {term} match={message.match_index}"
        case Heartbeat():
            return f"{name} {term} commit={message.commit_index} round={message.read_round}"
        case HeartbeatReply():
            return f"{name} {term} round={message.read_round}"
        case InstallSnapshot():
            return f"{name} {term} to={message.meta.last}"
        case TimeoutNow():
            return f"{name} {term}"


def _entries(entries: tuple[Entry, ...]) -> str:
    return " ".join(_entry(entry) for entry in entries)


def _entry(entry: Entry) -> str:
    match entry.kind:
        case EntryKind.NOOP:
            return f"{entry.id}:noop"
        case EntryKind.MEMBERSHIP:
            now = Membership.decode(entry.data)
            learners = f"+{','.join(sorted(now.learners))}" if now.learners else ""
            return f"{entry.id}:members({','.join(sorted(now.voters))}{learners})"
        case EntryKind.COMMAND:
            text = entry.data.decode()
            return str(entry.id) if text == str(entry.id) else f"{entry.id}:{text}"


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_of(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and key[len(prefix) :].isdigit()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _log_id(text: str) -> LogId:
    index, term = text.split("@")
    return LogId(Index(int(index)), Term(int(term)))

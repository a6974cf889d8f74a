"""The driver: gives the core its inputs, and does what each ``Ready`` asks, in the one right order.

A turn is a plain function. Everything that came in since the last one (proposals, reads, messages,
completions of the disk) is in the core or in the desk's queues; the turn takes it all at once, so
that a whole turn shares one log write, one frame per follower and one read round. Nothing here is a
task; time, disk and network are the ports of ``kvnode.ports``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kvnode.errors import (
    DiskFailed,
    InvariantBroken,
    KvnodeError,
    MustStop,
    NotLeader,
    Removed,
)
from kvnode.ports import (
    Done,
    IdentityStore,
    Journal,
    LogBase,
    Recovered,
    ScaleSource,
    Scheduler,
    SnapshotStore,
    Transport,
    Worker,
)
from kvnode.raft import RaftConfig, RawNode, Ready
from kvnode.raft.messages import InstallSnapshot, Message
from kvnode.raft.types import (
    ZERO,
    Entry,
    EntryKind,
    HardState,
    Index,
    Member,
    Membership,
    NodeId,
    Role,
    Term,
)
from kvnode.replica import pods
from kvnode.replica.addresses import AddressBook
from kvnode.replica.administration import Administration
from kvnode.replica.applier import Applier
from kvnode.replica.autopilot import Pilot
from kvnode.replica.comparison import Comparison
from kvnode.replica.departure import Departure
from kvnode.replica.facade import Consistency, PodStatus, ReadView, Status
from kvnode.replica.formation import Formation
from kvnode.replica.forwarding import Forwarder
from kvnode.replica.intake import Intake
from kvnode.replica.lineage import Lineage
from kvnode.replica.listener import Listener
from kvnode.replica.peers import PeerFinder
from kvnode.replica.recovery import recover
from kvnode.replica.registrar import Registrar
from kvnode.replica.requests import Desk, ReadRequest
from kvnode.replica.scaling import Scaling
from kvnode.replica.sessions import Sessions
from kvnode.replica.settings import ReplicaSettings
from kvnode.replica.snapshots import SnapshotReceiver, SnapshotSender
from kvnode.replica.status import Contact, describe
from kvnode.replica.stewardship import Steward
from kvnode.replica.upkeep import Upkeep
from kvnode.replica.watches import Watches
from kvnode.store.commands import Command, Result
from kvnode.store.engine import EngineFactory
from kvnode.store.records import Session

SWEEP_TICKS = 5
"""Deadlines are looked at every so many ticks: answers may be this much late."""
FIRST_CAMPAIGN_TICKS = 4
LINEARIZABLE = ReadView(known_leader=True, last_contact_ms=0)
FIRST_TERM = Term(1)


class Replica:
    """One node of the cluster; see ``replica.facade`` for what the rooms above may ask."""

    def __init__(  # noqa: PLR0915  # a list of parts, read from top to bottom
        self,
        *,
        settings: ReplicaSettings,
        identity: IdentityStore,
        recovered: Recovered,
        journal: Journal,
        engines: EngineFactory,
        snapshots: SnapshotStore,
        worker: Worker,
        transport: Transport,
        scheduler: Scheduler,
        rng: random.Random,
        discover: Callable[[Done[list[str]]], None],
        scale: ScaleSource | None = None,
        on_fatal: Callable[[MustStop], None],
        trace: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """Wake up with what the disk holds. Slow: replays nothing, but may load a snapshot.

        Raises:
            MustStop: The disk's contents do not fit together.
        """
        self.settings = settings
        self.identity = identity
        self.journal = journal
        self.engines = engines
        self.snapshots = snapshots
        self.worker = worker
        self.transport = transport
        self.scheduler = scheduler
        self.rng = rng
        self.discover = discover
        self.trace = trace
        self._on_fatal = on_fatal

        recovery = recover(recovered, journal, engines, snapshots)
        self.store = recovery.store
        self.watches = Watches(settings.watchers_max, self.store.applied_index)
        self.store.on_change = self.watches.changed
        self.session_watches = Watches(settings.watchers_max, self.store.applied_index)
        self.registry_watches = Watches(settings.watchers_max, self.store.applied_index)
        self.event_watches = Watches(settings.watchers_max, self.store.applied_index)
        self.store.on_event = lambda index: self.event_watches.changed(index, b"", True)
        self.raft = self._make_raft(
            recovery.hard_state, recovery.base, recovery.entries, Index(self.store.applied_index)
        )
        self.desk = Desk(settings.waiting_requests_max, settings.waiting_bytes_max)
        self.desk.callback_failed = self._callback_failed
        self.intake = Intake(self)
        self.sessions = Sessions(self)
        self.registrar = Registrar(self)
        self.book = AddressBook()
        self.formation = Formation(self)
        self.admin = Administration(self)
        self.peers = PeerFinder(self)
        self.lineage = Lineage(self)
        self.steward = Steward(self)
        self.pilot = Pilot(self)
        # As the facade has them.
        self.autopilot, self.health = self.pilot.parameters, self.pilot.ask
        self.force_leave, self.join = self.pilot.force_leave, self.formation.invite
        self.upkeep = Upkeep(self)
        self.comparison = Comparison(self)
        self.scaling = Scaling(self, scale)
        self.departure = Departure(self)
        self.sender = SnapshotSender(self)
        self.receiver = SnapshotReceiver(self)
        self.applier = Applier(self)
        self.receiver.loading = recovery.pending_snapshot
        self.forwarder = Forwarder(settings, self.desk, transport, self.wake)
        self.contact = Contact(scheduler)

        self.state, self.reason = "starting", ""
        self.stopped = False
        self.write_refusal = ""
        """Why writes that add data are refused (RC-70); empty: they are taken. Set by the agent."""
        self.catch_up_index = Index(0)
        self._catching_up = False
        self._outbox: dict[NodeId, list[Message]] = {}
        self._turn_due = False
        self._spread_due = False
        self._ticks = 0
        self._saves: deque[float] = deque()
        """When each save that the journal has not confirmed yet was queued."""
        self._ticked_at = scheduler.time()
        self._known: tuple[Role, Term, NodeId | None] = (Role.FOLLOWER, Term(0), None)
        self._known_membership = self.raft.membership
        transport.handler = Listener(self)
        transport.is_removed = self.is_removed
        transport.is_rolled_back = self.lineage.is_rolled_back

    def _make_raft(
        self, hard_state: HardState, base: LogBase, entries: Sequence[Entry], applied: Index
    ) -> RawNode:
        settings = self.settings
        config = RaftConfig(
            node_id=self.identity.record.node_id,
            election_ticks=settings.election_ticks,
            heartbeat_ticks=settings.heartbeat_ticks,
            uncommitted_bytes_max=settings.uncommitted_bytes_max,
        )
        return RawNode(
            config,
            hard_state=hard_state,
            base=base.last,
            membership=base.membership,
            entries=entries,
            applied_index=applied,
            random=self.rng,
            tracer=self.trace,
        )

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tick, to talk, and to look for a cluster."""
        self.state = "running" if self.cluster_id else "joining"
        if not self.cluster_id and self.settings.expect:
            self.state = "bootstrapping"
        if self.receiver.loading:
            self.receiver.discard_loaded()
        self.peers.refresh()
        self.formation.start()
        if self.raft.membership.voters == {self.raft.id}:
            self.raft.campaign()
        self._ticked_at = self.scheduler.time()
        self.scheduler.call_later(self.settings.tick_s, self._tick)
        self.wake()

    def stop(self, done: Callable[[], None], *, leave: bool = False) -> None:
        """Stop in good order; see ``departure``.

        Args:
            done: Called once, when the node has stopped.
            leave: Be removed from the cluster first.
        """
        self.departure.begin(done, leave=leave)

    def fail(self, error: MustStop) -> None:
        """This node cannot go on safely: say nothing more, and tell the agent (RC-8, RC-75)."""
        if self.stopped:
            return
        self.stopped = True
        if self.state != "removed":
            self.state, self.reason = "failed", str(error)
        self._outbox.clear()
        self._on_fatal(error)

    def fail_disk(self, error: KvnodeError) -> None:
        """Something durable failed."""
        self.fail(error if isinstance(error, MustStop) else DiskFailed(str(error)))

    def journal_done(self, error: KvnodeError | None) -> None:
        """Completion of a journal call that nothing waits for."""
        if error is not None:
            self.fail_disk(error)

    def _callback_failed(self, error: BaseException) -> None:
        self.trace("completion_failed", {"error": repr(error)})

    # -- who we are ---------------------------------------------------------------------------------

    @property
    def cluster_id(self) -> str:
        """Empty before the node belongs to a cluster."""
        return self.identity.record.cluster_id

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""
        return self.raft.role is Role.LEADER

    def own_member(self) -> Member:
        """This node as a member."""
        hello = self.transport.hello
        return Member(hello.node_id, hello.name, hello.address)

    def found_cluster(self, members: tuple[Member, ...], then: Callable[[], None]) -> None:
        """Write the first entry of a new cluster: its membership (RC-55)."""
        assert self.formation.is_empty, "only an empty node founds a cluster"
        voters = frozenset(member.node_id for member in members)
        data = Membership(voters=voters, members=tuple(sorted(members))).encode()
        entry = Entry(Index(1), FIRST_TERM, EntryKind.MEMBERSHIP, data)
        hard_state = HardState(FIRST_TERM, None)

        def saved(error: KvnodeError | None) -> None:
            if error is not None:
                self.fail_disk(error)
                return
            base = LogBase(ZERO, Membership())
            self.raft = self._make_raft(hard_state, base, [entry], Index(0))
            self.trace("cluster_founded", {"term": FIRST_TERM, "index": 1, "voters": len(voters)})
            then()
            # The others adopt the cluster's id first; a poll before that would be lost.
            delay = FIRST_CAMPAIGN_TICKS * self.settings.tick_s
            self.scheduler.call_later(delay, self._campaign)

        self.journal.save(hard_state, [entry], saved)

    def _campaign(self) -> None:
        if not self.stopped and self.raft.leader_id is None:
            self.raft.campaign()
            self.wake()

    def belong(self, cluster_id: str) -> None:
        """The identity says durably that this node belongs to ``cluster_id``."""
        self.transport.hello = self.transport.hello._replace(cluster_id=cluster_id)
        self.state, self.reason = "running", ""
        self.trace("cluster_joined", {"cluster": cluster_id, "term": self.raft.term})
        self.peers.refresh()
        self.wake()

    def is_removed(self, node_id: NodeId) -> bool:
        """Whether a committed membership says that an incarnation may never come back (RC-47)."""
        # Only a committed removal counts: a node that hears of it sets its data aside for good, and an
        # uncommitted one may still be rolled back with the log (RC-42, RC-47).
        log = self.raft.log
        membership = log.membership_at(log.commit_index)
        return node_id in membership.removed and membership.member(node_id) is None

    # -- time ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.stopped:
            return
        self.scheduler.call_later(self.settings.tick_s, self._tick)
        self._ticks += 1
        self.raft.tick()
        now = self.scheduler.time()
        self._watch_loop(now)
        self._guarded(self.sessions.tick, now)
        self._guarded(self.upkeep.tick, now)
        self._guarded(self.registrar.tick, now)
        if self._ticks % SWEEP_TICKS == 0:
            self.desk.sweep(now)
            self.sessions.sweep(now)
            self.admin.sweep(now)
            self.peers.look(now)
            self._learn_catch_up()
            self._watch_disk(now)
            if self.cluster_id:
                self._guarded(self.steward.run, now)
                self._guarded(self.registrar.run, now)
                self._guarded(self.pilot.run, now)
        if self._ticks % (4 * SWEEP_TICKS) == 0 and self.cluster_id:
            self._guarded(self.upkeep.run, now)
            self._guarded(self.comparison.run, now)
            self.scaling.run(now)
        self.wake()

    def _watch_loop(self, now: float) -> None:
        """Say when the loop stood still for long enough to cost a leader its office (RC-69).

        Nothing else needs to be done: others may lead by now, and no read is answered without a round.
        """
        stalled = now - self._ticked_at - self.settings.tick_s
        self._ticked_at = now
        if stalled > self.settings.election_ticks * self.settings.tick_s / 2:
            self.trace("loop_stalled", {"seconds": round(stalled, 3)})

    def _watch_disk(self, now: float) -> None:
        """A leader whose disk hangs would go on to lead, and answer nobody: hand over (RC-69)."""
        stalled = now - self._saves[0] if self._saves else 0.0
        if (
            stalled > self.settings.disk_stall_s
            and self.is_leader
            and not self.raft.is_transferring
        ):
            self.trace("disk_stalled", {"seconds": round(stalled, 3), "term": self.raft.term})
            self.admin.transfer_here(None, lambda _value, _error: None)

    def _guarded(self, job: Callable[[float], None], now: float) -> None:
        try:
            job(now)
        except MustStop as error:
            self.fail(error)

    def _learn_catch_up(self) -> None:
        """Once, after the start: how far is the cluster? Ready means that we got there."""
        if self.catch_up_index or self._catching_up or self.raft.leader_id is None:
            return
        self._catching_up = True

        def known(view: ReadView | None, _error: KvnodeError | None) -> None:
            self._catching_up = False
            if view is not None:
                self.catch_up_index = Index(max(1, self.store.applied_index))

        self.read(Consistency.CONSISTENT, known)

    # -- requests -----------------------------------------------------------------------------------

    def write(self, command: Command, done: Done[Result]) -> None:
        """Replicate one command; see ``ReplicaFacade``."""
        self.intake.write(command, done)

    def read(self, consistency: Consistency, done: Done[ReadView]) -> None:
        """Wait until this node's store may be read; see ``ReplicaFacade``."""
        self.intake.read(consistency, done)

    def renew_session(self, session_id: str, done: Done[Session]) -> None:
        """Restart a session's clock; see ``ReplicaFacade``."""
        self.sessions.renew(session_id, done)

    def remove_member(self, node_id: NodeId, done: Done[Any], *, readmit_s: float = 0) -> None:
        """Remove a member; see ``ReplicaFacade``."""
        self.admin.remove_member(node_id, done, readmit_s=readmit_s)

    def transfer_leadership(self, target: NodeId | None, done: Done[Any]) -> None:
        """Hand leadership over; see ``ReplicaFacade``."""
        self.admin.transfer_leadership(target, done)

    def pods(self, addresses: tuple[str, ...], done: Done[list[PodStatus]]) -> None:
        """Ask every pod for its state."""
        pods.ask(self, addresses, done)

    def status(self) -> Status:
        """This node's state."""
        return describe(self)

    # -- the turn -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make sure that a turn comes."""
        if not self._turn_due and not self.stopped:
            self._turn_due = True
            self.scheduler.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.stopped:
            return
        try:
            self.registrar.follow()
            self.sessions.flush()
            self.intake.flush()
            self._drain()
            self._release_reads()
            self._send_outbox()
            self._notice_changes()
        except MustStop as error:
            self.fail(error)
        except AssertionError:
            raise  # the agent ends the process
        except Exception as error:
            # Half a turn: what was not saved, sent or applied would never be.
            raise InvariantBroken(f"a turn broke off: {error!r}") from error

    def _drain(self) -> None:
        while not self.stopped and self.raft.has_ready(apply=self.may_apply):
            self._handle(self.raft.ready(apply=self.may_apply))

    def _handle(self, ready: Ready) -> None:
        """Save, send, apply, answer: the contract of ``raft.rawnode``."""
        if ready.snapshot is not None:
            if ready.hard_state is not None:
                # A crash between the two must not leave a log of a later term than the hard state.
                self.journal.save(ready.hard_state, (), self.journal_done)
            base = LogBase(ready.snapshot.last, ready.snapshot.membership)
            self.journal.reset(base, self.journal_done)
        if ready.needs_disk:
            self._saves.append(self.scheduler.time())
            self.journal.save(
                ready.hard_state, ready.entries, lambda error: self._saved(ready, error)
            )
        for message in ready.messages:
            self._post(message)
        if ready.snapshot is not None:
            self.desk.skipped_to(ready.snapshot.last.index)
            self.admin.skipped_to(ready.snapshot.last.index)
            self.receiver.accepted(ready.snapshot)
            self.peers.refresh()
        if ready.committed:
            self._apply(ready.committed)
        for index, reads in ready.reads:
            self._confirmed(index, reads)
        if ready.failed_reads:
            self._leadership_lost(ready.failed_reads)

    def _saved(self, ready: Ready, error: KvnodeError | None) -> None:
        """The journal has made a ``Ready`` durable: what depended on it may leave."""
        if self.stopped:
            return
        if error is not None:
            self.fail_disk(error)
            return
        self._saves.popleft()
        for message in self.raft.advance(ready):
            self._post(message)
        self.wake()

    def _apply(self, committed: Sequence[Entry]) -> None:
        self.applier.apply(committed)
        if self.is_leader and not self._spread_due:
            self._spread_due = True
            self.scheduler.call_later(self.settings.commit_spread_s, self._spread_commit)

    def wake_watchers(self) -> None:
        """Call everybody whom the changes noted by now concern."""
        self.watches.wake(self.store.applied_index)
        self.session_watches.wake()
        self.registry_watches.wake()
        self.event_watches.wake()

    @property
    def may_apply(self) -> bool:
        """False while the store is being replaced (RC-38)."""
        return not (self.receiver.loading or self.applier.rebuilding)

    def _spread_commit(self) -> None:
        self._spread_due = False
        if self.is_leader and not self.stopped:
            self.raft.spread_commit()
            self.wake()

    def _confirmed(self, index: Index, reads: list[object]) -> None:
        for read in reads:
            assert isinstance(read, ReadRequest)
            if read.hopped:
                self.desk.finish(read, index)
            else:
                self.desk.park(index, read)

    def _leadership_lost(self, reads: list[object]) -> None:
        """Ask the next leader, until the deadline; a peer asks it by itself (RC-32, RC-59)."""
        own: list[ReadRequest] = []
        for read in reads:
            assert isinstance(read, ReadRequest)
            if read.hopped:
                self.desk.finish(read, None, NotLeader(self.raft.leader_id))
            else:
                own.append(read)
        self.desk.put_back(own)
        self.wake()

    def _release_reads(self) -> None:
        for read in self.desk.release(Index(self.store.applied_index)):
            self.desk.finish(read, LINEARIZABLE)

    def _post(self, message: Message) -> None:
        if isinstance(message, InstallSnapshot):
            self.sender.start(message)
        else:
            self._outbox.setdefault(message.to, []).append(message)

    def _send_outbox(self) -> None:
        if self._outbox and not self.stopped:
            outbox, self._outbox = self._outbox, {}
            for node, messages in outbox.items():
                self.transport.send(node, messages)

    def _notice_changes(self) -> None:
        """Look at what the turn changed in who leads and in who is a member."""
        raft = self.raft
        known = (raft.role, raft.term, raft.leader_id)
        if known != self._known:
            self._known = known
            self.contact.leader_known(raft.leader_id is not None)
            self.forwarder.follow(raft.leader_id)
            if raft.leader_id is not None:
                self.trace("leader_known", {"term": raft.term, "leader": raft.leader_id})
            self.peers.refresh()
        if raft.membership is not self._known_membership:
            # Also one that was taken back with the log: who is no peer meanwhile gets no answers.
            self._known_membership = raft.membership
            self.peers.refresh()
            self.lineage.members_changed()
        if (self.desk.writes or self.desk.reads) and self.is_leader and not raft.is_transferring:
            self.wake()  # what stayed behind goes out as soon as there is somebody to take it

    def step_snapshot(self, message: InstallSnapshot) -> None:
        """A whole snapshot is durable here: the core decides at once."""
        try:
            self.raft.step(message)
        except MustStop as error:
            self.fail(error)
            return
        self._turn()

    def report_snapshot(self, node: NodeId, reached: Index | None) -> None:
        """A stream to a follower ended."""
        self.raft.report_snapshot(node, reached)
        self.wake()

    def removed(self, cluster_id: str) -> None:
        """This cluster removed this incarnation: store that, then stop for good (RC-47)."""
        if self.stopped or self.state == "removed":
            return
        if not self.cluster_id and not self.formation.is_free_of(cluster_id):
            return
        if self.departure.is_under_way:
            self.departure.leave()
            return
        served = bool(self.catch_up_index)
        self.state, self.reason = "removed", "the cluster removed this node"
        self.trace("removed_from_cluster", {"term": self.raft.term})

        def marked(error: KvnodeError | None) -> None:
            if error is not None:
                self.fail_disk(error)
                return
            text = "the cluster removed this node; its data is set aside at the next start"
            self.intake.closing = True
            self.desk.fail_all()
            self.sessions.fail_all()
            self.fail(Removed(text, served=served))

        self.identity.set_aside(marked)

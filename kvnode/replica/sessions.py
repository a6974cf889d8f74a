"""Sessions in the driver: who counts their time, and renewals on their way to whoever does (spec §5).

Making and ending a session are commands like all others. Time is not: the leader keeps the clocks
(``session_timers``), every node notes when sessions ended (``lock_delays``), and a renewal is a request to
the leader that is in no log. It is answered only after the leader was confirmed by a round that began
after the renewal came (RC-61): somebody who leads no more must not promise time that the next leader does
not know of. The next leader began all clocks anew, so that it may well answer it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kvnode.errors import (
    BadRequest,
    KvnodeError,
    NoLeader,
    NotLeader,
    Overloaded,
    RemoteProtocolError,
)
from kvnode.ports import Done
from kvnode.raft.types import Term
from kvnode.replica.codec import encode
from kvnode.replica.facade import ReadView
from kvnode.replica.lock_delays import LockDelays
from kvnode.replica.session_timers import SessionTimers
from kvnode.store.commands import (
    ReapLockDelays,
    Result,
    SessionCreate,
    SessionDestroy,
    check_command,
    is_session_id,
)
from kvnode.store.records import Session

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

RENEWALS_PER_REQUEST_MAX: Final = 256
REQUESTS_MAX: Final = 8
"""Batches of renewals under way; what comes meanwhile gathers into the next one."""
ANSWER_BYTES_MAX: Final = 1 << 20
"""Of the sessions in one answer; further ones are asked for again."""
REAP_AT_MOST: Final = 1000
"""Lock-delays forgotten by one entry, so that applying it stays short."""
FOREIGN_S: Final = 60.0
"""After everything was replaced: for how long a session may belong to a node that is no member."""
AGAIN: Final = False
"""In an answer: neither a session nor None, but "ask again"."""

_NO_LEADER: Final = "No cluster leader"


class _Renewal:
    """One client that waits."""

    __slots__ = ("deadline", "done", "session_id")

    def __init__(self, session_id: str, done: Done[Session], deadline: float) -> None:
        self.session_id = session_id
        self.done = done
        self.deadline = deadline


class Sessions:
    """One node's part in the life of sessions."""

    def __init__(self, replica: Replica) -> None:
        """Listen to the store."""
        self._replica = replica
        self.timers = SessionTimers(replica.store, self._end, self._is_member)
        self.delays = LockDelays(replica.store, replica.scheduler.time)
        self._foreign_until = 0.0
        self._office: Term | None = None
        """The term in which this node leads, and counts."""
        self._names: frozenset[str] = frozenset()
        self._waiting: deque[_Renewal] = deque()
        self._under_way = 0
        self._carried = 0
        """Renewals that were sent, or wait for the leader to be confirmed."""
        replica.store.on_session = self._on_session

    # -- what happens to sessions -------------------------------------------------------------------

    def _on_session(self, index: int, session_id: str, session: Session | None) -> None:
        """The store applied the beginning or the end of one, or was replaced (no id)."""
        self._replica.session_watches.changed(index, session_id.encode(), not session_id)
        if not session_id:
            self.delays.restart()
            self._state_replaced()
        elif session is None:
            self.delays.ended(index)
            self.timers.ended(session_id)
        elif self._office is not None:
            self.timers.advance(self._replica.scheduler.time())
            self.timers.began(session)

    def _state_replaced(self) -> None:
        """All sessions may be others: they get their time in full.

        An archive of another cluster brings sessions of nodes that are no members here. They are let be
        for as long as Consul would take to notice: whoever restores can look at what there is.
        """
        scheduler = self._replica.scheduler
        self._foreign_until = scheduler.time() + FOREIGN_S
        scheduler.call_later(FOREIGN_S + 1, self._end_foreign)
        if self._office is not None:
            self.timers.begin(scheduler.time())

    def _end_foreign(self) -> None:
        if self._office is not None and not self._replica.stopped:
            self.timers.members_changed()

    def follow(self) -> None:
        """Who leads may have changed."""
        replica = self._replica
        office = replica.raft.term if replica.is_leader else None
        if office == self._office:
            return
        self._office = office
        if office is None:
            self.timers.stop()
            return
        self._learn_names()
        self.timers.begin(replica.scheduler.time())

    def members_changed(self) -> None:
        """A membership was committed: somebody's node may be gone."""
        if self._office is not None:
            self._learn_names()
            self.timers.members_changed()

    def _learn_names(self) -> None:
        log = self._replica.raft.log
        # A removal that is not committed may still be rolled back.
        membership = log.membership_at(log.commit_index)
        self._names = frozenset(member.name for member in membership.members)

    def _is_member(self, name: str) -> bool:
        replica = self._replica
        return (
            name in self._names
            or replica.store.registry().node(name) is not None
            or replica.scheduler.time() < self._foreign_until
        )

    def tick(self, now: float) -> None:
        """Every tick: the clocks of a leader."""
        self.follow()
        if self._office is not None and self._replica.raft.has_term_commit:
            self.timers.run(now)

    def sweep(self, now: float) -> None:
        """Now and then: who waits for too long."""
        late = [renewal for renewal in self._waiting if renewal.deadline <= now]
        if late:
            self._waiting = deque(r for r in self._waiting if r.deadline > now)
        for renewal in late:
            self._finish(renewal, None, NoLeader(_NO_LEADER))

    def reap(self) -> None:
        """The leader, about once a second: propose to forget lock-delays that are over."""
        bound = self._replica.store.delays_bound(self.delays.over_upto(), REAP_AT_MOST)
        if bound:
            self._propose_here(ReapLockDelays(bound), lambda _result, _error: None)

    def _end(self, session_id: str) -> None:
        """A session's time is over: let the log say so."""
        replica, office = self._replica, self._office
        replica.trace("session_expired", {"term": replica.raft.term, "session": session_id})

        def ended(_result: Result | None, error: KvnodeError | None) -> None:
            if error is not None and self._office == office:
                self.timers.failed(session_id)

        self._propose_here(SessionDestroy(session_id), ended)

    def _propose_here(
        self, command: SessionDestroy | ReapLockDelays, done: Callable[..., None]
    ) -> None:
        # As if a peer had forwarded it: what this leader's clock decided must not be carried on to
        # another leader, whose clock has just begun (RC-61).
        self._replica.intake.take_write(command, encode(command), done, hopped=True)

    # -- renewals -----------------------------------------------------------------------------------

    @property
    def open_renewals(self) -> int:
        """Renewals that are not answered yet."""
        return len(self._waiting) + self._carried

    def renew(self, session_id: str, done: Done[Session]) -> None:
        """Restart a session's clock; see ``ReplicaFacade.renew_session``."""
        replica = self._replica
        error: KvnodeError | None = None
        if not is_session_id(session_id):
            error = BadRequest("a session id has 36 characters")
        elif replica.stopped or replica.intake.closing:
            error = NoLeader("this node is stopping")
        elif self.open_renewals >= replica.settings.waiting_requests_max:
            error = Overloaded("too many renewals are waiting on this node")
        if error is not None:
            replica.scheduler.call_soon(done, None, error)
            return
        deadline = replica.scheduler.time() + replica.settings.leader_wait_s
        self._waiting.append(_Renewal(session_id, done, deadline))
        replica.wake()

    def flush(self) -> None:
        """Every turn: confirm what waits, or ask the leader."""
        replica = self._replica
        while self._waiting and self._under_way < REQUESTS_MAX:
            leader = replica.raft.leader_id
            if leader is None or (replica.is_leader and replica.raft.is_transferring):
                return
            if not replica.is_leader and not replica.transport.connected().get(leader):
                return
            batch = [
                self._waiting.popleft()
                for _ in range(min(len(self._waiting), RENEWALS_PER_REQUEST_MAX))
            ]
            self._under_way += 1
            self._carried += len(batch)
            ids = [renewal.session_id for renewal in batch]
            done = partial(self._answered, batch)
            if replica.is_leader:
                self._confirm(ids, done)
            else:
                timeout_s = replica.settings.read_index_timeout_s
                replica.transport.request(leader, "renew", ids, timeout_s, done)

    def serve(self, payload: Any, done: Done[Any]) -> None:
        """A peer forwarded renewals: it goes one hop only (RC-59)."""
        if (
            not isinstance(payload, (list, tuple))
            or not 0 < len(payload) <= RENEWALS_PER_REQUEST_MAX
            or not all(map(is_session_id, payload))
        ):
            done(None, RemoteProtocolError("forwarded renewals have the wrong form"))
        elif not self._replica.is_leader:
            done(None, NotLeader(self._replica.raft.leader_id))
        else:
            self._confirm(list(payload), done)

    def _confirm(self, ids: list[str], done: Done[Any]) -> None:
        """Renew once this node is known to lead, and knows of every session that there is."""

        def confirmed(_view: ReadView | None, error: KvnodeError | None) -> None:
            self.follow()
            if error is None and self._office is None:
                error = NotLeader(self._replica.raft.leader_id)
            if error is not None:
                done(None, error)
            else:
                done(self._renew(ids), None)

        self._replica.intake.take_read(confirmed, hopped=False)

    def _renew(self, ids: list[str]) -> list[Any]:
        room = ANSWER_BYTES_MAX
        found: list[Any] = []
        for session_id in ids:
            if room <= 0:
                found.append(AGAIN)
                continue
            self.timers.advance(self._replica.scheduler.time())
            session = self.timers.renew(session_id)
            if session is not None:
                room -= _size(session)
            found.append(session)
        return found

    def _answered(self, batch: list[_Renewal], found: Any, error: KvnodeError | None) -> None:
        self._under_way -= 1
        self._carried -= len(batch)
        if not isinstance(found, (list, tuple)) or len(found) != len(batch):
            found = [AGAIN] * len(batch)  # a renewal may be tried again, whatever became of it
        back: list[_Renewal] = []
        for renewal, item in zip(batch, found, strict=True):
            if item is AGAIN:
                back.append(renewal)
                continue
            try:
                self._finish(renewal, _parse(item), None)
            except RemoteProtocolError as failure:
                self._finish(renewal, None, failure)
        if self._replica.stopped:
            for renewal in back:
                self._finish(renewal, None, NoLeader("this node is stopping"))
            return
        self._waiting.extendleft(reversed(back))
        if self._waiting and error is None:
            self._replica.wake()

    def _finish(
        self, renewal: _Renewal, session: Session | None, error: KvnodeError | None
    ) -> None:
        try:
            renewal.done(session, error)
        except Exception as failure:  # noqa: BLE001  # reported, and nobody else may suffer
            self._replica.desk.callback_failed(failure)

    def fail_all(self) -> None:
        """The node stops: nobody may be left waiting."""
        waiting, self._waiting = self._waiting, deque()
        for renewal in waiting:
            self._finish(renewal, None, NoLeader("this node is stopping"))


def _size(session: Session) -> int:
    """Bytes of a session in an answer, roughly."""
    texts: Sequence[str] = (session.name, session.node, session.ttl, *session.node_checks)
    total = 200 + sum(map(len, texts))
    return total + sum(len(name) + len(space) for name, space in session.service_checks)


def _parse(value: Any) -> Session | None:
    """A session that came over the wire; None: there is none.

    Raises:
        RemoteProtocolError: It is neither.
    """
    if value is None or isinstance(value, Session):
        return value
    try:
        session = Session(*value)
        services = tuple([tuple(pair) for pair in session.service_checks])
        session = session._replace(
            node_checks=tuple(session.node_checks),
            service_checks=services,  # type: ignore[arg-type]  # checked below
        )
        check_command(SessionCreate(*session[:9]))
    except (TypeError, BadRequest) as error:
        raise RemoteProtocolError(f"the leader's answer is no session: {error}") from error
    if type(session.create_index) is not int or type(session.modify_index) is not int:
        raise RemoteProtocolError("the leader's answer is no session: its indexes are none")
    return session

"""A replica of one, without Raft: commands are applied to a real store in the next loop turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from kvnode.errors import KvnodeError
from kvnode.raft.types import Index, NodeId, Role, Term
from kvnode.replica.expiry import KeyTimers
from kvnode.replica.facade import (
    ClusterHealth,
    Consistency,
    MemberStatus,
    PodStatus,
    ReadView,
    ServerHealth,
    Status,
)
from kvnode.replica.lock_delays import LockDelays
from kvnode.replica.session_timers import SessionTimers
from kvnode.replica.watches import Watches
from kvnode.store.commands import Command, KvLock, RestoreFinish, Result, SessionDestroy, Txn
from kvnode.store.control import Autopilot
from kvnode.store.memory import MemoryEngine
from kvnode.store.own_commands import KvExpire, KvPut, Once
from kvnode.store.records import Session
from kvnode.store.registry_commands import Register
from kvnode.store.registry_records import Check, Node, Service
from kvnode.store.restore import rebuild
from kvnode.store.store import Store

ME = NodeId("11111111-1111-4111-8111-111111111111")
OTHER = NodeId("22222222-2222-4222-8222-222222222222")
REGISTERED = Register(
    "kvnode-0",
    Node(ME, "kvnode-0", "10.0.0.1", meta=(("consul-network-segment", ""),)),
    Service("kvnode-0", "consul", "consul", port=8300),
    (
        Check(
            "kvnode-0",
            "serfHealth",
            "Serf Health Status",
            "passing",
            output="Agent alive and reachable",
            is_local=True,
        ),
    ),
)
"""What a leader registers."""


class FakeReplica:
    """Keeps the facade's contract; failures are set by the test."""

    def __init__(self) -> None:
        self.store = Store(MemoryEngine())
        self.watches = Watches(100_000, 0)
        self.store.on_change = self.watches.changed
        self.session_watches = Watches(100_000, 0)
        self.event_watches = Watches(100_000, 0)
        self.store.on_event = lambda index: self.event_watches.changed(index, b"", True)
        self.judgement = ClusterHealth(True, 0, (
            ServerHealth(ME, "kvnode-0", "10.0.0.1:8300", True, True, True, 0, Term(3), Index(42),
                         True, 60_000),
            ServerHealth(OTHER, "kvnode-1", "10.0.0.2:8300", True, False, True, 22, Term(3), Index(40), True,
                         60_000),
        ))  # fmt: skip
        self.left: list[str] = []
        self.joined: list[str] = []
        self.store.on_session = self._on_session
        self.registry_watches = Watches(100_000, 0)
        self.store.on_registry = lambda index, name: self.registry_watches.changed(
            index, name, not name
        )
        self.delays = LockDelays(self.store, time.monotonic)
        self.timers = SessionTimers(self.store, self._end, lambda _node: True)
        self.key_timers = KeyTimers(self.store, self._expire)
        self.store.on_ttl = self._on_ttl
        self.store.apply_batch([(9, REGISTERED)])
        self._ticking = False
        self.next_index = 10
        self.write_error: KvnodeError | None = None
        self.read_error: KvnodeError | None = None
        self.view = ReadView(True, 0)
        self.stale_view = ReadView(True, 0)
        self.commands: list[Command] = []
        self.reads: list[Consistency] = []
        self.held: list[Callable[[], None]] | None = None
        """A list: completions gather here instead of being called."""
        self.removed: list[NodeId] = []
        self.transferred: list[NodeId | None] = []
        self.admin_error: KvnodeError | None = None
        self.pod_rows: list[PodStatus] = []
        self.asked: tuple[str, ...] = ()
        self.state = Status(
            node_id=ME,
            name="kvnode-0",
            cluster_id="c",
            role=Role.LEADER,
            term=Term(3),
            leader_id=ME,
            leader_name="kvnode-0",
            leader_address="10.0.0.1:8300",
            commit_index=Index(42),
            applied_index=Index(42),
            last_index=Index(42),
            last_term=Term(3),
            first_index=Index(1),
            snapshot_index=Index(0),
            snapshot_term=Term(0),
            last_contact_ms=0,
            leader_lost_ms=0,
            catch_up_index=Index(5),
            voters=2,
            members=(
                MemberStatus(ME, "kvnode-0", "10.0.0.1:8300", "10.0.0.1:8500", True, True, True,
                             Index(42)),
                MemberStatus(OTHER, "kvnode-1", "10.0.0.2:8300", "", True, False, False,
                             Index(40)),
            ),
            state="running",
            reason="",
        )  # fmt: skip

    def _complete(self, call: Callable[[], None]) -> None:
        if self.held is not None:
            self.held.append(call)
        else:
            asyncio.get_running_loop().call_soon(call)

    def release(self) -> None:
        """Call every held completion, and hold no more."""
        held, self.held = self.held or [], None
        for call in held:
            call()

    # What the driver does for sessions, in one place: clocks, lock-delays, watchers.

    def _on_session(self, index: int, session_id: str, session: Session | None) -> None:
        self.session_watches.changed(index, session_id.encode(), False)
        if session is None:
            self.delays.ended(index)
            self.timers.ended(session_id)
        else:
            self.timers.began(session)
        self._begin_ticking()

    def _on_ttl(self, key: bytes, since: int, ttl_ns: int) -> None:
        self._begin_ticking()
        if since:
            self.key_timers.began(key, since, ttl_ns, time.monotonic())
        else:
            self.key_timers.ended(key)

    def _expire(self, keys: tuple[tuple[bytes, int], ...]) -> None:
        self.write(KvExpire(keys), lambda _result, _error: None)

    def _begin_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.timers.begin(time.monotonic())
            self.key_timers.begin(time.monotonic())
            self._tick()

    def _tick(self) -> None:
        self.timers.run(time.monotonic())
        self.key_timers.run(time.monotonic())
        asyncio.get_running_loop().call_later(0.02, self._tick)

    def _end(self, session_id: str) -> None:
        self.write(SessionDestroy(session_id), lambda _result, _error: None)

    def renew_session(self, session_id: str, done: Any) -> None:
        if self.read_error is not None:
            self._complete(lambda: done(None, self.read_error))
        else:
            self._complete(lambda: done(self.timers.renew(session_id), None))

    def write(self, command: Command, done: Any) -> None:
        self.commands.append(command)
        if isinstance(command, (KvLock, KvPut, Once, Txn)):
            verdict = self.delays.judge(command)
            if isinstance(verdict, Result):
                self._complete(lambda: done(verdict, None))
                return
            command = verdict
        self._complete(lambda: self._apply(command, done))

    def _apply(self, command: Command, done: Any) -> None:
        if self.write_error is not None:
            done(None, self.write_error)
            return
        index, self.next_index = self.next_index, self.next_index + 1
        if isinstance(command, RestoreFinish) and self.store.is_restore_due(command):
            fresh = MemoryEngine()
            assert rebuild(self.store.engine.snapshot(), fresh, index, command) == ""
            self.store.replace(fresh)
            result = Result(True, index)
        else:
            result = self.store.apply_batch([(index, command)])[0]
        self.watches.wake(self.store.applied_index)
        self.session_watches.wake()
        self.registry_watches.wake()
        self.event_watches.wake()
        done(result, None)

    def read(self, consistency: Consistency, done: Any) -> None:
        self.reads.append(consistency)
        stale = consistency is Consistency.STALE
        if self.read_error is not None and not stale:
            self._complete(lambda: done(None, self.read_error))
        else:
            self._complete(lambda: done(self.stale_view if stale else self.view, None))

    def status(self) -> Status:
        return self.state

    def pods(self, addresses: tuple[str, ...], done: Any) -> None:
        self.asked = addresses
        self._complete(lambda: done(self.pod_rows, None))

    def remove_member(self, node_id: NodeId, done: Any, *, readmit_s: float = 0) -> None:
        self.removed.append(node_id)
        self._complete(lambda: done(None, self.admin_error))

    def transfer_leadership(self, target: NodeId | None, done: Any) -> None:
        self.transferred.append(target)
        self._complete(lambda: done(None, self.admin_error))

    def autopilot(self) -> Autopilot:
        return self.store.autopilot() or Autopilot(
            True, 200_000_000, 250, 0, 10**9, "", False, "", 0, 0
        )

    def health(self, done: Any) -> None:
        self._complete(lambda: done(None if self.admin_error else self.judgement, self.admin_error))

    def force_leave(self, name: str, done: Any) -> None:
        self.left.append(name)
        known = any(name in (member.name, member.node_id) for member in self.state.members)
        self._complete(lambda: done(None if self.admin_error else known, self.admin_error))

    def join(self, address: str, done: Any) -> None:
        self.joined.append(address)
        self._complete(lambda: done(None if self.admin_error else "kvnode-1", self.admin_error))

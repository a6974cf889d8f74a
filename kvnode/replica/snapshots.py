"""Snapshots between nodes: the leader's stream out, the follower's stream in (thesis §5.1, RC-36 to RC-41).

One stream each way at a time. Chunks are read, written, checked and loaded on the worker; the loop
only passes them on, so that heartbeats go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvnode.errors import DiskFull, InvariantBroken, KvnodeError, MustStop, PeerUnreachable
from kvnode.ports import Done, Hello, SnapshotWriter
from kvnode.raft.messages import InstallSnapshot
from kvnode.raft.types import Index, NodeId, SnapshotMeta, Term
from kvnode.replica.recovery import load_snapshot
from kvnode.store.engine import Engine

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

Answer = Callable[[KvnodeError | None], None]


class SnapshotSender:
    """The leader's side."""

    def __init__(self, replica: Replica) -> None:
        """Idle."""
        self._replica = replica
        self.busy_with: NodeId | None = None
        self._held_index = Index(0)
        self._held_since = 0.0
        self._not_before: dict[NodeId, float] = {}
        """When a follower that refused a stream, or broke it off, may get the next one."""

    def hold_index(self, now: float) -> Index | None:
        """The log must keep everything after this index for the stream under way (RC-39)."""
        hold_s = self._replica.settings.snapshot_hold_s
        if self.busy_with is None or now - self._held_since > hold_s:
            return None
        return self._held_index

    def start(self, message: InstallSnapshot) -> None:
        """The core wants a follower to get a snapshot: stream the store as it is now."""
        replica = self._replica
        node = message.to
        now = replica.scheduler.time()
        # One at a time. And a leader whose own store is just being replaced has none to send: its log
        # begins after what the store holds.
        if (
            self.busy_with is not None
            or not replica.may_apply
            or now < self._not_before.get(node, now)
        ):
            # The core does not ask again before it hears of this one.
            pause = max(replica.settings.snapshot_pause_s, self._not_before.get(node, now) - now)
            replica.scheduler.call_later(pause, self._put_off, node, message.term)
            return
        raft = replica.raft
        applied = Index(replica.store.applied_index)
        term = raft.log.term_at(applied)
        assert term is not None, "the store is inside the log"
        meta = SnapshotMeta(
            message.meta.last._replace(index=applied, term=term), raft.log.membership_at(applied)
        )
        self.busy_with, self._held_index = node, applied
        self._held_since = now
        engine = replica.store.engine
        dump = replica.store.dump()
        replica.trace("snapshot_sending", {"term": raft.term, "index": applied, "to": node})

        def next_chunk(done: Done[bytes]) -> None:
            if replica.stopped or not replica.is_leader or raft.term != message.term:
                # Nobody needs it from us any more, and it keeps the next leader's stream out.
                lost = PeerUnreachable("this node does not lead any more", took_effect="no")
                replica.scheduler.call_soon(done, None, lost)
                return
            if replica.store.engine is not engine:
                # A restore has put another one in its place, and this one may be closed by now.
                gone = PeerUnreachable("the state was replaced meanwhile", took_effect="no")
                replica.scheduler.call_soon(done, None, gone)
                return
            replica.worker.submit(lambda: next(dump, b""), done)

        def ended(error: KvnodeError | None) -> None:
            replica.worker.submit(dump.close, lambda _value, _error: None)
            self.busy_with = None
            now = replica.scheduler.time()
            self._not_before = {n: at for n, at in self._not_before.items() if at > now}
            if error is not None:
                self._not_before[node] = now + replica.settings.snapshot_pause_s
                if isinstance(error, MustStop):
                    replica.fail(error)  # our own store could not be read
                    return
            fields = {"term": raft.term, "index": applied, "to": node, "error": str(error or "")}
            replica.trace("snapshot_sent" if error is None else "snapshot_send_failed", fields)
            replica.report_snapshot(node, applied if error is None else None)

        replica.transport.send_snapshot(node, message.term, meta, next_chunk, ended)

    def _put_off(self, node: NodeId, term: Term) -> None:
        replica = self._replica
        if not replica.stopped and replica.raft.term == term and self.busy_with != node:
            replica.report_snapshot(node, None)


class SnapshotReceiver:
    """The follower's side: receive into a file, hand it to the core, load it."""

    def __init__(self, replica: Replica) -> None:
        """Idle."""
        self._replica = replica
        self._writer: _LazyWriter | None = None
        self._sender: Hello | None = None
        self._term = Term(0)
        self._meta: SnapshotMeta | None = None
        self._accepted: Answer | None = None
        self._received_bytes = 0
        self.loading = False
        """The store is being replaced; nothing may be applied (RC-38)."""

    @property
    def progress(self) -> str:
        """What is being done for this node's data, for an operator; empty: nothing."""
        if self.loading:
            return f"loading the data that were copied ({self._received_bytes >> 20} MiB)"
        if self._writer is not None and self._sender is not None:
            return (
                f"copying the data of {self._sender.name}: {self._received_bytes >> 20} MiB so far"
            )
        return ""

    def begin(self, sender: Hello, term: int, meta: SnapshotMeta) -> bool:
        """Take a stream, if it could be of use and none is under way, or only an older leader's."""
        replica = self._replica
        if not replica.may_apply or term < replica.raft.term:
            return False
        if replica.write_refusal or meta.last.index <= replica.raft.log.commit_index:
            return False
        if self._writer is not None:
            if term <= self._term:
                return False
            self._submit(self._writer.abort, lambda _error: None)
        self._sender, self._term, self._meta = sender, Term(term), meta
        self._writer = _LazyWriter(lambda: replica.snapshots.begin(meta))
        self._received_bytes = 0
        replica.trace(
            "snapshot_receiving", {"term": term, "index": meta.last.index, "from": sender.name}
        )
        return True

    def chunk(self, sender: Hello, chunk: bytes, done: Answer) -> None:
        """Store one chunk. An error ends the stream."""
        writer = self._of(sender)
        if writer is None:
            done(PeerUnreachable("no snapshot of this sender is being received"))
        elif self._replica.raft.term > self._term:
            done(PeerUnreachable("the snapshot's leader was replaced"))
        else:
            self._received_bytes += len(chunk)
            self._submit(lambda: writer.write(chunk), done)

    def end(self, sender: Hello, ok: bool, done: Answer) -> None:
        """The stream is complete, or broke off."""
        writer = self._of(sender)
        if writer is None:
            done(PeerUnreachable("no snapshot of this sender is being received"))
            return
        self._writer = None
        if self._replica.applier.rebuilding:
            # Two states would be put in the store's place. The leader begins again, if it must.
            busy = PeerUnreachable("a restore is being carried out")
            self._submit(writer.abort, lambda error: done(error or busy))
        elif ok:
            self.loading = True
            self._submit(writer.commit, lambda error: self._committed(writer, error, done))
        else:
            self._submit(writer.abort, done)

    def _of(self, sender: Hello) -> _LazyWriter | None:
        """The writer, unless it is another sender's by now."""
        known = self._sender
        return self._writer if known is not None and known.node_id == sender.node_id else None

    def _submit(self, job: Callable[[], None], done: Answer) -> None:
        def finished(_value: None, error: KvnodeError | None) -> None:
            # A snapshot that does not fit harms nothing else: it is dropped, the node goes on (RC-70).
            if isinstance(error, MustStop) and not isinstance(error, DiskFull):
                self._replica.fail(error)
            if not self._replica.stopped:
                done(error)

        self._replica.worker.submit(job, finished)

    def _committed(self, writer: _LazyWriter, error: KvnodeError | None, done: Answer) -> None:
        if error is None:
            self._complete(done)
            return
        # Whatever is there of it goes; only then may the next one come.
        self._submit(writer.abort, lambda _error: None)
        self._discard()
        done(error)

    def _complete(self, done: Answer) -> None:
        """All of it is durable: let the core decide."""
        replica, sender, meta = self._replica, self._sender, self._meta
        assert sender is not None, "begun"
        assert meta is not None, "begun"
        self._accepted = done
        message = InstallSnapshot(sender.node_id, replica.raft.id, self._term, meta)
        replica.step_snapshot(message)
        if replica.stopped:
            return
        if self._accepted is not None:
            # The core had it already, or the term has passed: nothing to load.
            self._accepted = None
            self._discard()
            done(None)

    def accepted(self, meta: SnapshotMeta) -> None:
        """The core took it: load it into a fresh engine. Its log reset is queued on the journal."""
        replica = self._replica
        done, self._accepted = self._accepted, None
        if done is not None:
            done(None)

        def job() -> Engine:
            complete = replica.snapshots.complete()
            if complete is None:
                raise InvariantBroken("the received snapshot is gone")
            return load_snapshot(replica.engines, replica.snapshots, complete[1])

        replica.worker.submit(job, lambda engine, error: self._loaded(meta, engine, error))

    def _loaded(self, meta: SnapshotMeta, engine: Engine | None, error: KvnodeError | None) -> None:
        replica = self._replica
        if error is not None or engine is None:
            replica.fail(_as_stop(error))
            return
        # Stale reads go on meanwhile, so the old engine is closed only after nobody can reach it.
        old = replica.store.replace(engine)
        replica.wake_watchers()
        replica.worker.submit(old.close, self._closed)
        if replica.store.applied_index != meta.last.index:
            replica.fail(
                InvariantBroken(
                    f"the snapshot of {meta.last} held a store at {replica.store.applied_index}"
                )
            )
            return
        replica.trace("snapshot_loaded", {"term": meta.last.term, "index": meta.last.index})
        # The log's reset was queued before: once an empty save behind it is through, both are durable.
        self.discard_loaded()

    def discard_loaded(self) -> None:
        """The store has a snapshot's state: drop its file once the log's reset is durable too."""

        def settled(error: KvnodeError | None) -> None:
            if error is not None:
                self._replica.fail_disk(error)
            else:
                self._discard()

        self._replica.journal.save(None, (), settled)

    def _closed(self, _value: None, error: KvnodeError | None) -> None:
        if isinstance(error, MustStop):
            self._replica.fail(error)

    def _discard(self) -> None:
        def finished(_value: None, error: KvnodeError | None) -> None:
            if error is not None:
                self._replica.fail(_as_stop(error))
                return
            self.loading = False
            self._replica.wake()

        self._replica.worker.submit(self._replica.snapshots.discard, finished)


class _LazyWriter:
    """A writer that is opened by its first job, on the worker: opening is slow too."""

    def __init__(self, begin: Callable[[], SnapshotWriter]) -> None:
        self._begin = begin
        self._writer: SnapshotWriter | None = None

    def _open(self) -> SnapshotWriter:
        if self._writer is None:
            self._writer = self._begin()
        return self._writer

    def write(self, chunk: bytes) -> None:
        self._open().write(chunk)

    def commit(self) -> None:
        self._open().commit()

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()


def _as_stop(error: KvnodeError | None) -> MustStop:
    if isinstance(error, MustStop):
        return error
    return InvariantBroken(f"a snapshot could not be loaded: {error}")

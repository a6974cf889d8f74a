"""Snapshots between nodes: the leader's stream out, the follower's stream in (thesis §5.1, RC-36 to RC-41).

One stream each way at a time. Chunks are read, written, checked and loaded on the worker; the loop
only passes them on, so that heartbeats go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvnode.errors import InvariantBroken, KvnodeError, MustStop, PeerUnreachable
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
        if self.busy_with is not None:
            # One at a time; the next sign of life from the follower brings it up again.
            replica.report_snapshot(node, None)
            return
        raft = replica.raft
        applied = Index(replica.store.applied_index)
        term = raft.log.term_at(applied)
        assert term is not None, "the store is inside the log"
        meta = SnapshotMeta(
            message.meta.last._replace(index=applied, term=term), raft.log.membership_at(applied)
        )
        self.busy_with, self._held_index = node, applied
        self._held_since = replica.scheduler.time()
        dump = replica.store.dump()
        replica.trace("snapshot_sending", {"term": raft.term, "index": applied, "to": node})

        def next_chunk(done: Done[bytes]) -> None:
            replica.worker.submit(lambda: next(dump, b""), done)

        def ended(error: KvnodeError | None) -> None:
            replica.worker.submit(dump.close, lambda _value, _error: None)
            self.busy_with = None
            fields = {"term": raft.term, "index": applied, "to": node, "error": str(error or "")}
            replica.trace("snapshot_sent" if error is None else "snapshot_send_failed", fields)
            replica.report_snapshot(node, applied if error is None else None)

        replica.transport.send_snapshot(node, message.term, meta, next_chunk, ended)


class SnapshotReceiver:
    """The follower's side: receive into a file, hand it to the core, load it."""

    def __init__(self, replica: Replica) -> None:
        """Idle."""
        self._replica = replica
        self._writer: SnapshotWriter | None = None
        self._sender: Hello | None = None
        self._term = Term(0)
        self._meta: SnapshotMeta | None = None
        self._accepted: Answer | None = None
        self.loading = False
        """The store is being replaced; nothing may be applied (RC-38)."""

    def begin(self, sender: Hello, term: int, meta: SnapshotMeta) -> bool:
        """Take a stream, if it could be of use and none is under way."""
        replica = self._replica
        if self.loading or self._writer is not None or term < replica.raft.term:
            return False
        if meta.last.index <= replica.raft.log.commit_index:
            return False
        self._sender, self._term, self._meta = sender, Term(term), meta
        self._writer = _LazyWriter(lambda: replica.snapshots.begin(meta))
        replica.trace(
            "snapshot_receiving", {"term": term, "index": meta.last.index, "from": sender.name}
        )
        return True

    def chunk(self, chunk: bytes, done: Answer) -> None:
        """Store one chunk."""
        writer = self._writer
        if writer is None:
            done(PeerUnreachable("no snapshot is being received"))
            return
        self._submit(lambda: writer.write(chunk), done)

    def end(self, ok: bool, done: Answer) -> None:
        """The stream is complete, or broke off."""
        writer, self._writer = self._writer, None
        if writer is None:
            done(PeerUnreachable("no snapshot is being received"))
        elif ok:
            self.loading = True
            self._submit(writer.commit, lambda error: self._complete(error, done))
        else:
            self._submit(writer.abort, done)

    def _submit(self, job: Callable[[], None], done: Answer) -> None:
        def finished(_value: None, error: KvnodeError | None) -> None:
            if isinstance(error, MustStop):
                self._replica.fail(error)
            done(error)

        self._replica.worker.submit(job, finished)

    def _complete(self, error: KvnodeError | None, done: Answer) -> None:
        """All of it is durable: let the core decide."""
        replica, sender, meta = self._replica, self._sender, self._meta
        if error is not None or sender is None or meta is None:
            self.loading = False
            done(error or InvariantBroken("a snapshot without a sender"))
            return
        self._accepted = done
        message = InstallSnapshot(sender.node_id, replica.raft.id, self._term, meta)
        replica.step_snapshot(message)
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
        old = replica.store.engine

        def job() -> Engine:
            complete = replica.snapshots.complete()
            if complete is None:
                raise InvariantBroken("the received snapshot is gone")
            return load_snapshot(old, replica.engines, replica.snapshots, complete[1])

        replica.worker.submit(job, lambda engine, error: self._loaded(meta, engine, error))

    def _loaded(self, meta: SnapshotMeta, engine: Engine | None, error: KvnodeError | None) -> None:
        replica = self._replica
        if error is not None or engine is None:
            replica.fail(_as_stop(error))
            return
        replica.store.replace(engine)
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
        self._replica.journal.save(
            None, (), lambda failed: self._discard() if failed is None else None
        )

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

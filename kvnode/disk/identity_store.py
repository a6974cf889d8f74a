"""The identity file while a node runs: every change is a job of the worker."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.disk.files import FileSystem
from kvnode.disk.identity import Identity, read_identity, write_identity
from kvnode.disk.quarantine import mark
from kvnode.errors import DirectoryInUse, KvnodeError
from kvnode.ports import PeerBoot, Worker


class IdentityFile:
    """``kvnode.ports.IdentityStore`` over the identity file; the writing is a job of a ``Worker``."""

    def __init__(self, fs: FileSystem, directory: str, identity: Identity, worker: Worker) -> None:
        """Keep ``identity``, which is what the file holds."""
        self._fs = fs
        self._directory = directory
        self._worker = worker
        self._newest = identity
        self.record = identity.record
        """See ``kvnode.ports.IdentityStore``."""

    def save(
        self, cluster_id: str, pledge: str, done: Callable[[KvnodeError | None], None]
    ) -> None:
        """See ``kvnode.ports.IdentityStore``."""
        old = self._newest.record
        assert old.cluster_id in ("", cluster_id), "a node never changes its cluster"
        record = old._replace(cluster_id=cluster_id, pledge=pledge)
        self._write(self._newest._replace(record=record), done)

    def set_aside(self, done: Callable[[KvnodeError | None], None]) -> None:
        """See ``kvnode.ports.IdentityStore``."""
        self._write(self._newest._replace(set_aside=True), done)

    def remember(
        self, peers: tuple[PeerBoot, ...], done: Callable[[KvnodeError | None], None]
    ) -> None:
        """See ``kvnode.ports.IdentityStore``."""
        record = self._newest.record._replace(peers=peers)
        self._write(self._newest._replace(record=record), done)

    def fence(self, text: str, done: Callable[[KvnodeError | None], None]) -> None:
        """See ``kvnode.ports.IdentityStore``."""
        boot = self.record.boot

        def write_mark() -> None:
            found = read_identity(self._fs, self._directory)
            if found is None or found.record.boot != boot:
                raise DirectoryInUse(f"another process has started on {self._directory}")
            mark(self._fs, self._directory, text)

        self._worker.submit(write_mark, lambda _none, error: done(error))

    def _write(self, identity: Identity, done: Callable[[KvnodeError | None], None]) -> None:
        def finish(_: None, error: KvnodeError | None) -> None:
            if error is None:
                self.record = identity.record
            done(error)

        self._newest = identity
        self._worker.submit(lambda: write_identity(self._fs, self._directory, identity), finish)

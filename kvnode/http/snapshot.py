"""``/v1/snapshot``: the whole state as Consul's archive, and back (spec §8, decision 0009).

Saving reads a view of one moment in a thread, into a nameless file, and only then answers: what can go wrong
does so before the status is out. Restoring receives the archive into such a file, checks all of it, and
stages it through the log piece by piece, from whatever node was asked; the last entry puts it in the place of
everything. Until then nothing has changed, and whatever breaks off on the way changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import IO, TYPE_CHECKING, Final, TypeVar

import structlog

from kvnode.archive import (
    Container,
    Loaded,
    Meta,
    Saved,
    load,
    open_container,
    save_state,
    write_container,
)
from kvnode.errors import (
    BadArchive,
    DiskNearlyFull,
    InvariantBroken,
    KvnodeError,
    NotNow,
    Overloaded,
)
from kvnode.http import errors
from kvnode.http.completion import wait_for
from kvnode.http.golang import parse_duration_ns
from kvnode.http.kv import read_head
from kvnode.http.messages import VARY, Request, Response, text
from kvnode.http.query import Options, parse_options
from kvnode.http.streams import Stream
from kvnode.http.uploads import open_spool
from kvnode.replica.facade import Consistency, ReadView
from kvnode.store.commands import Command, RestoreDrop, RestoreFinish, RestorePiece, Result
from kvnode.store.engine import Engine
from kvnode.store.view import View

if TYPE_CHECKING:
    from kvnode.http.context import HttpContext
    from kvnode.http.uploads import Upload

_LOG = structlog.get_logger("kvnode.http")

METHODS: Final = ("GET", "PUT")
_TYPE: Final = b"Content-Type: application/x-gzip\r\n"
UNPACKED_FACTOR: Final = 16
"""An archive may unpack to so many times of what may be sent; text shrinks to a tenth."""
RETRY_S: Final = 0.2
STALLED_S: Final = 60.0
"""A restore is given up when no piece could be staged for so long."""
FINISH_S: Final = 600.0
"""For how long the last entry is waited for: a large state takes a while to build."""
_SUPERSEDED: Final = "another restore began meanwhile; this one was given up"

_REPLACED: Final = "the data was replaced while it was being saved"

T = TypeVar("T")


class SnapshotRoutes:
    """The two handlers; one of each at a time is plenty."""

    def __init__(self, context: HttpContext) -> None:
        """Remember whom to ask."""
        self._replica = context.replica
        self._settings = context.settings
        self._saving = 0
        self._restoring = False

    async def handle(self, request: Request) -> Response | Stream:
        """Save or restore."""
        options = parse_options(request.query)
        refusal = options.error or options.foreign_datacenter(self._settings.datacenter)
        if refusal is not None:
            return refusal
        stale = options.consistency is Consistency.STALE
        if self._replica.status().leader_id is None and not (stale and request.method == "GET"):
            return text(500, "No cluster leader")  # at once, unlike other routes (spec §3)
        if request.method == "GET":
            return await self._save(options)
        assert request.upload is not None, "the route asks for it"
        return await self._restore(request.upload)

    # -- saving ---------------------------------------------------------------------------------

    async def _save(self, options: Options) -> Response | Stream:
        if self._saving >= self._settings.uploads_max:
            busy = Overloaded(f"{self._saving} snapshots are being saved")
            return errors.refuse(busy, v1=True, write=False)
        self._saving += 1
        try:
            fresh, view, engine = await self._open_view(options.consistency)
            state: IO[bytes] | None = None
            try:
                state = await asyncio.to_thread(open_spool, self._settings.spool_dir)
                saved = await self._write_state(view, engine, state)
            except BaseException:
                if state is not None:
                    state.close()
                raise
            finally:
                view.close()
        finally:
            self._saving -= 1
        head = _TYPE + read_head(saved.index, fresh, options)
        return Stream(
            200, head, _send(write_container(self._meta(saved), state, saved.digest), state)
        )

    async def _open_view(self, consistency: Consistency) -> tuple[ReadView, View, Engine]:
        """Wait until the store may be read, and open a view in that very moment (RC-35)."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[ReadView, View, Engine]] = loop.create_future()
        store = self._replica.store

        def done(fresh: ReadView | None, error: KvnodeError | None) -> None:
            if future.done():
                return
            if fresh is None:
                future.set_exception(error or NotNow())
                return
            try:
                future.set_result((fresh, store.view(), store.engine))
            except KvnodeError as problem:
                future.set_exception(problem)

        self._replica.read(consistency, done)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result()[1].close()
            raise

    async def _write_state(self, view: View, engine: Engine, state: IO[bytes]) -> Saved:
        """Write the state in a thread; whoever stops waiting stops the thread as well."""
        stop = threading.Event()

        def go_on(size: int) -> None:
            if stop.is_set():
                raise NotNow("the client hung up")
            if self._replica.store.engine is not engine:
                raise NotNow(_REPLACED)
            self._leave_room(size)

        def work() -> Saved:
            try:
                saved = save_state(view, state, go_on)
            except InvariantBroken as error:  # the view was closed with its engine
                raise NotNow(_REPLACED) from error
            state.seek(0)
            return saved

        return await _in_thread(work, stop)

    def _meta(self, saved: Saved) -> Meta:
        status = self._replica.status()
        now_ms = int(self._settings.wall_clock() * 1000)
        servers = tuple((member.node_id, member.address, member.voter) for member in status.members)
        name = f"{status.term}-{saved.index}-{now_ms}"
        return Meta(name, saved.index, status.term, servers, saved.size)

    def _leave_room(self, size: int) -> None:
        """Called in a thread before a write: the last space belongs to the log (RC-70)."""
        directory = self._settings.spool_dir
        if directory:
            volume = os.statvfs(directory)
            free = volume.f_bavail * volume.f_frsize - size
            if free < self._settings.spool_reserve_bytes:
                raise DiskNearlyFull(
                    f"there is no room for the snapshot, {free >> 20} MiB are free"
                )

    # -- restoring ------------------------------------------------------------------------------

    async def _restore(self, upload: Upload) -> Response:
        if self._restoring:
            busy = Overloaded("another restore is in progress on this node")
            return errors.refuse(busy, v1=True, write=True)
        self._restoring = True
        try:
            with await asyncio.to_thread(open_spool, self._settings.spool_dir) as state:
                loaded = await self._check(upload, state)
                return await self._stage(loaded)
        except BadArchive as problem:
            _LOG.warning("snapshot_refused", reason=str(problem), size=upload.size)
            return text(500, str(problem))
        finally:
            self._restoring = False

    async def _check(self, upload: Upload, state: IO[bytes]) -> Loaded:
        limit = self._settings.upload_bytes_max * UNPACKED_FACTOR
        stop = threading.Event()

        def may_write(size: int) -> None:
            if stop.is_set():
                raise NotNow("the client hung up")
            # What is unpacked comes a second time as pieces, and a third time as the new state.
            self._leave_room(3 * size)

        def work() -> Loaded:
            container: Container = open_container(upload.file, state, limit, may_write)
            return load(container.state, parse_duration_ns)

        return await _in_thread(work, stop)

    async def _stage(self, loaded: Loaded) -> Response:
        """Put everything through the log."""
        restore_id = str(uuid.uuid4())
        number = 0
        finished = False
        pieces = loaded.pieces
        try:
            while (data := await asyncio.to_thread(next, pieces, None)) is not None:
                result = await self._propose(RestorePiece(restore_id, number, data), STALLED_S)
                if not result.value:
                    return text(500, _SUPERSEDED)
                number += 1
            result = await self._propose(RestoreFinish(restore_id, number), FINISH_S)
            finished = True
        finally:
            if not finished:
                # Nobody waits for it: what is left is dropped by the leader in the end.
                self._replica.write(RestoreDrop(restore_id), lambda _result, _error: None)
        if not result.value:
            unsound = "the archive contradicts itself; nothing was changed"
            return text(500, _SUPERSEDED if result.value is False else unsound)
        _LOG.info(
            "snapshot_restored",
            index=result.index,
            keys=loaded.keys,
            sessions=loaded.sessions,
            skipped=dict(loaded.skipped),
            locks_released=loaded.released,
        )
        return Response(200, VARY + b"X-Kvnode-Index: %d\r\n" % result.index)

    async def _propose(self, command: Command, patience_s: float) -> Result:
        """Propose until it is known to be done: each of these may be repeated safely."""
        time = asyncio.get_running_loop().time
        give_up = time() + patience_s
        while True:
            try:
                return await wait_for(partial(self._replica.write, command))
            except DiskNearlyFull:
                raise
            except NotNow:
                if time() >= give_up:
                    raise
            await asyncio.sleep(RETRY_S)


async def _in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """Run something long in a thread, to its end: files it uses are closed only afterwards."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # it was told to stop, and nobody wants to hear how it did
        raise


async def _send(pieces: Iterator[bytes], state: IO[bytes]) -> AsyncGenerator[bytes, None]:
    """Compress in a thread, one piece at a time."""
    with state:
        while (data := await asyncio.to_thread(next, pieces, None)) is not None:
            yield data

"""One node: builds every part, starts them in order, stops them in reverse.

``Agent.run`` is the parts list. Everything that the process owns (signals, exit codes, the pid file, the
collector's mood) is here as well, and nowhere else.

Exit codes: 0 after a signal, 1 when the node must stop (``errors.MustStop``) or could not start, 2 for
settings that cannot be used (``cli.agent_command``).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog

from kvnode import __version__, agent_signals
from kvnode.addresses import Address
from kvnode.agent_checks import CheckRunner
from kvnode.agent_files import file_bounds, raise_file_limit
from kvnode.agent_founding import licence
from kvnode.agent_healing import heal
from kvnode.agent_label import LeaderLabel
from kvnode.agent_metrics import DiskCollector, TransportCollector
from kvnode.agent_settings import (
    api_server,
    discovery,
    http_address,
    http_settings,
    kubernetes_doubts,
    peer_address,
    replica_settings,
    resolver,
    rocks_settings,
    volume_bytes,
)
from kvnode.agent_space import SpaceWatch, reserve_bytes
from kvnode.agent_tls import Security
from kvnode.agent_waiting_room import NotingSnapshots, WaitingRoom
from kvnode.config import Config, Loaded, SettingError
from kvnode.disk.data_dir import DataDir
from kvnode.disk.files import OsFileSystem
from kvnode.disk.journal import ThreadJournal
from kvnode.disk.rocks_engine import RocksEngine, RocksEngineFactory
from kvnode.disk.worker import ThreadWorker
from kvnode.errors import (
    BadRequest,
    CorruptLog,
    DirectoryInUse,
    DiskFailed,
    DiskFull,
    ForeignDirectory,
    MustStop,
    Removed,
)
from kvnode.http.context import HttpContext
from kvnode.http.server import HttpServer
from kvnode.logs import Logs
from kvnode.ports import Hello
from kvnode.replica.replica import Replica
from kvnode.transport.handshake import PROTOCOL
from kvnode.transport.settings import TransportSettings
from kvnode.transport.tcp import TcpTransport

_LOG = structlog.get_logger("kvnode.agent")

_SWITCH_INTERVAL_S = 0.0005


def run_agent(loaded: Loaded, read_again: Callable[[], Loaded]) -> int:
    """Run one node until it is told to stop.

    Args:
        loaded: Settings, and the notices to log once logging works.
        read_again: Reads the settings anew, for SIGHUP.

    Returns:
        The exit code. A node that must stop at once does not return: it ends the process.
    """
    with _directory(loaded.config) as config:
        config = replace(config, node_name=config.node_name or socket.gethostname())
        logs = Logs(
            config.node_name,
            level=config.log_level,
            form=config.log_format,
            file=config.log_file,
        )
        if logs.problem:
            _LOG.warning("log_file_skipped", detail=logs.problem)
        for notice in loaded.notices:
            _LOG.warning(notice.event, detail=notice.detail)
        try:
            with _pid_file(config.pid_file), asyncio.Runner(loop_factory=_new_loop()) as runner:
                agent = Agent(config, logs, read_again)
                try:
                    return runner.run(agent.run())
                except CorruptLog as error:
                    if not config.heal_corruption or not runner.run(agent.heal(error)):
                        raise
                    _start_over(logs)
        except (BadRequest, SettingError) as error:
            _LOG.error("settings_refused", error=str(error))
            return 2
        except MustStop as error:
            _LOG.error("node_cannot_start", error=str(error), advice=_advice(error, config))
        except OSError as error:
            _LOG.error("node_cannot_start", error=str(error))
        finally:
            logs.close()
    return 1


def _start_over(logs: Logs) -> NoReturn:
    """Begin again under the same process id, with nothing left open of what was there before."""
    agent_signals.hold()
    logs.close()
    os.execv(sys.executable, sys.orig_argv)


class Agent:
    """One run of one node, inside its event loop."""

    def __init__(self, config: Config, logs: Logs, read_again: Callable[[], Loaded]) -> None:
        """Nothing is opened yet.

        Raises:
            BadRequest: ``--retry-join`` holds what is no address.
        """
        self._config = config
        self._discovery = discovery(config)
        self._logs = logs
        self._read_again = read_again
        self._stop = asyncio.Event()
        self._replica: Replica | None = None
        self._data_dir: DataDir | None = None
        self._leaving = False
        """Told to leave the cluster for good."""
        self._security: Security | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:  # noqa: PLR0915  # a list of parts, read from top to bottom
        """Build, start, wait, stop; return the exit code.

        Raises:
            MustStop: The data directory cannot be used.
            OSError: A port cannot be bound.
        """
        config, loop = self._config, asyncio.get_running_loop()
        self._loop = loop
        _tune_interpreter()
        loop.set_exception_handler(self._callback_failed)
        self._take_signals(loop)
        async with AsyncExitStack() as parts:
            self._security = security = Security(config)
            room = WaitingRoom(config.node_name, config.client, config.http_port, security.http)
            parts.callback(room.close)
            room.open()
            room.note(f"opening {config.data_dir}")
            self._data_dir = data_dir = DataDir.open(config.data_dir, config.node_name)
            parts.callback(data_dir.close)
            expect, ruled_out = self._may_found(data_dir)

            worker = ThreadWorker(loop)
            parts.callback(worker.close)  # idempotent: a start that fails half-way comes here only
            room.note("reading the log")
            core, recovered = data_dir.open_journal()
            room.note("opening the state")
            snapshots = NotingSnapshots(OsFileSystem(), data_dir.snapshots_path)
            snapshots.note = room.note
            journal = ThreadJournal(core, loop)
            parts.callback(journal.close)

            record = data_dir.record
            hello = Hello(
                protocol=PROTOCOL,
                cluster_id=record.cluster_id,
                node_id=record.node_id,
                name=record.name,
                boot=record.boot,
                address=str(peer_address(config)),
                http_address=http_address(config, config.http_port),
                expect=expect,
                runs=record.runs,
                term=recovered.hard_state.term,
                last_index=recovered.base.last.index + len(recovered.entries),
            )
            files = file_bounds(raise_file_limit())
            transport = TcpTransport(
                hello,
                bind_host=config.bind,
                bind_port=config.peer_port,
                resolve=resolver(config),
                tls=security.peers,
                secrets=security.secrets,
                settings=TransportSettings(
                    accepted_max=files.peers, handshakes_max=files.handshakes
                ),
            )
            security.on_secrets = partial(setattr, transport, "secrets")
            parts.push_async_callback(security.stop)
            parts.push_async_callback(transport.close)

            parts.push_async_callback(self._discovery.close)
            api = api_server(config)
            if doubts := kubernetes_doubts(config):
                _LOG.warning("kubernetes_settings_doubted", detail=doubts)
            if api is not None:
                parts.push_async_callback(api.close)
            replica = Replica(
                settings=replace(
                    replica_settings(config), expect=expect, founding_ruled_out=ruled_out
                ),
                identity=data_dir.identity_store(worker),
                recovered=recovered,
                journal=journal,
                engines=RocksEngineFactory(
                    Path(data_dir.state_path), rocks_settings(config), self._state_damaged
                ),
                snapshots=snapshots,
                worker=worker,
                transport=transport,
                scheduler=loop,
                rng=random.Random(),
                discover=self._discovery.discover,
                scale=api.ask_scale if api is not None else None,
                on_fatal=self._fatal,
                trace=_trace,
            )

            def refuse(reason: str) -> None:
                replica.write_refusal = reason

            reserve = reserve_bytes(volume_bytes(config.data_dir))
            space = SpaceWatch(
                free_bytes=data_dir.free_bytes,
                reserve=reserve,
                refuse=refuse,
                scheduler=loop,
                worker=worker,
                rows=lambda: replica.store.count(),
                reclaim=lambda free: _engine_of(replica).reclaim(free),
            )
            # A restore swaps the engine, so the one to close is found out at the end. The worker may
            # still be reading a snapshot of it, so it ends first.
            parts.callback(lambda: replica.store.engine.close())
            parts.callback(worker.close)
            parts.callback(space.stop)
            self._replica = replica

            http = HttpServer(
                HttpContext(
                    replica=replica,
                    tls=security.http,
                    tls_refused=security.http_handshake_failed,
                    settings=replace(
                        http_settings(config),
                        connections_max=min(config.http_connections_max, files.clients),
                        handshakes_max=files.handshakes,
                        spool_dir=data_dir.spool_path,
                        spool_reserve_bytes=2 * reserve,
                    ),
                    pod_addresses=self._pod_addresses,
                    notes=self._notes,
                    reload=self._reload,
                    leave=self._leave,
                    follow_log=self._logs.follow,
                    collectors=(
                        DiskCollector(journal, data_dir),
                        TransportCollector(transport.metrics),
                        security.collector(),
                    ),
                )
            )
            parts.push_async_callback(http.close)

            snapshots.note = None
            room.close()
            space.start()
            security.start()
            await self._start(replica, transport, http)
            checks = CheckRunner(replica, config.node_name)
            parts.push_async_callback(checks.close)
            checks.start()
            if api is not None and config.kubernetes_leader_label:
                label = LeaderLabel(api, lambda: replica.is_leader)
                parts.push_async_callback(label.close)
                label.start()
            await self._stop.wait()
            await self._hand_over(replica)
        _LOG.info("node_stopped")
        return 0

    def _may_found(self, data_dir: DataDir) -> tuple[int, str]:
        """What ``licence`` says of this directory; log it and whatever else the directory has to tell."""
        expect, ruled_out = licence(
            self._config, os.environ, socket.gethostname(), set_aside=not data_dir.may_found
        )
        if ruled_out:
            _LOG.warning("founding_ruled_out", reason=ruled_out, path=data_dir.path)
        for warning in data_dir.warnings:
            _LOG.warning("directory_noted", detail=warning)
        if data_dir.set_aside:
            _LOG.warning("data_set_aside", path=data_dir.set_aside)
        return expect, ruled_out

    async def heal(self, error: CorruptLog) -> bool:
        """After ``run`` raised: set the damaged data aside if that is safe, or until told to stop."""
        work = asyncio.create_task(heal(self._config, error), name="heal")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        for task in (work, stop):
            if not task.done():
                task.cancel()
        await asyncio.wait((work, stop))
        return not work.cancelled() and work.result()

    async def _start(self, replica: Replica, transport: TcpTransport, http: HttpServer) -> None:
        """Listen, then speak: peers are told an HTTP address that answers already."""
        config = self._config
        if config.http_port >= 0:
            with _naming("--http-port", config.client, config.http_port):
                await http.start(config.client, config.http_port)
            address = http_address(config, http.port)
            transport.hello = transport.hello._replace(http_address=address)
        with _naming("--peer-port", config.bind, config.peer_port):
            await transport.start()
        replica.start()
        # What was made so far lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        _LOG.info(
            "node_started",
            version=__version__,
            node_id=transport.hello.node_id,
            boot=transport.hello.boot,
            peer_address=transport.hello.address,
            http_address=transport.hello.http_address,
            data_dir=config.data_dir,
            index=replica.status().last_index,
        )

    async def _hand_over(self, replica: Replica) -> None:
        """Let the replica hand leadership over and finish what is in flight, within a bound."""
        _LOG.info("node_stopping", role=replica.status().role.value)
        config, stopped = self._config, asyncio.Event()
        replica.stop(stopped.set, leave=self._leaving)
        limit = config.shutdown_s
        if config.kubernetes_statefulset or self._leaving:
            limit += config.removal_timeout_s
        try:
            async with asyncio.timeout(limit):
                await stopped.wait()
        except TimeoutError:
            _LOG.warning("hand_over_timed_out", after_s=limit)

    # -- what the parts ask for ---------------------------------------------------------------------

    def _notes(self) -> dict[str, str]:
        """What readiness says besides its checks: DNS may be ill long before anybody misses it."""
        failed = self._discovery.failed
        return {"discovery": self._discovery.problem} if failed else {}

    async def _pod_addresses(self) -> list[str]:
        return [seed.address for seed in await self._discovery.lookup()]

    def _spawn(self, work: Any, name: str) -> None:
        """Run something short; the set keeps it alive until it is done."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        """Read the settings again: the log level, the log file by its name, certificates and secret."""
        try:
            loaded = self._read_again()
        except SettingError as error:
            _LOG.error("reload_refused", error=str(error))
            return
        problem = self._logs.reopen()
        self._logs.set_level(loaded.config.log_level)
        if self._security is not None:
            await self._security.look(again=True)
        _LOG.info("settings_reloaded", log_level=loaded.config.log_level, problem=problem)

    async def _leave(self) -> None:
        """Leave the cluster for good, then stop; a cluster of one just stops."""
        self._leaving = True
        self._stop.set()

    # -- the process --------------------------------------------------------------------------------

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in agent_signals.STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload(), "reload"))
        agent_signals.take()

    def _signalled(self, number: signal.Signals) -> None:
        """First: stop in good order. Second: the operator means it."""
        if self._stop.is_set():
            _LOG.warning("stopped_at_once", signal=number.name)
            self._exit(1)
        self._stop.set()

    def _fatal(self, error: MustStop) -> None:
        """End the process now: nothing may be said that the disk does not hold (RC-8)."""
        advice = _advice(error, self._config)
        _LOG.error("node_must_stop", reason=type(error).__name__, error=str(error), advice=advice)
        came_back = isinstance(error, Removed) and not error.served
        heals = isinstance(error, CorruptLog) and self._config.heal_corruption
        if (came_back or heals) and not self._stop.is_set():
            _start_over(self._logs)  # an old volume came back, or damage was marked
        self._exit(0 if came_back else 1)

    def _state_damaged(self, error: CorruptLog) -> None:
        """Somebody read a damaged part of the state: a request, a snapshot, an apply; in any thread.

        The next start would not notice, so it is written down first (RC-71).
        """
        assert self._data_dir is not None, "opened before the engine"
        self._data_dir.mark_damaged(error)
        with suppress(RuntimeError):  # the loop is closed: the node has stopped already
            self._loop.call_soon_threadsafe(self._stop_damaged, error)

    def _stop_damaged(self, error: CorruptLog) -> None:
        if self._replica is not None:
            self._replica.fail(error)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A call-back raised. A broken assertion means that going on could destroy data (RC-75)."""
        error = context.get("exception")
        _LOG.error("callback_failed", what=context.get("message", ""), exc_info=error)
        if isinstance(error, AssertionError | MustStop):
            self._exit(1)

    def _exit(self, code: int) -> NoReturn:
        self._logs.close()
        # Not sys.exit: that would run the orderly stop, which writes.
        os._exit(code)


# -- the process ------------------------------------------------------------------------------------


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where it is installed: about twice as fast on the hot path."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _tune_interpreter() -> None:
    """Set what the whole process shares."""
    # The disk thread comes back from a sync wanting the interpreter for microseconds. By default it
    # may wait 5 ms for a busy loop to let go: thirty times what the sync took.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # Requests make garbage without cycles. The default of 700 would walk young objects hundreds of
    # times a second for nothing, and all objects every so often, which is a pause.
    gc.set_threshold(20_000, 20, 50)


@contextmanager
def _naming(flag: str, host: str, port: int) -> Iterator[None]:
    """Let a failure to listen name the setting to change.

    Raises:
        OSError: With the flag, the address and the system's own words.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0  # below 0: the resolver's, with a text of its own
        why = os.strerror(number) if number > 0 else str(error)
        raise OSError(f"{flag}: cannot listen on {Address(host, port)}: {why}") from error


@contextmanager
def _directory(config: Config) -> Iterator[Config]:
    """Give ``--dev`` without a directory a temporary one for as long as it runs."""
    if config.data_dir:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="kvnode-dev-", ignore_cleanup_errors=True) as path:
        yield replace(config, data_dir=path)


@contextmanager
def _pid_file(name: str) -> Iterator[None]:
    """Keep the process id in a file while the node runs.

    Raises:
        OSError: It cannot be written.
    """
    if not name:
        yield
        return
    path, own = Path(name), f"{os.getpid()}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(own)
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_text() == own:
                path.unlink()


def _engine_of(replica: Replica) -> RocksEngine:
    engine = replica.store.engine
    assert isinstance(engine, RocksEngine)
    return engine


def _trace(event: str, fields: dict[str, Any]) -> None:
    """Log one change of state; the core and the driver name it, structlog writes it."""
    _LOG.info(event, **fields)


def _is_forbidden(error: MustStop) -> bool:
    """Whether this user may not do what it must; another look at the disk would not help."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def _advice(error: MustStop, config: Config) -> str:
    """Tell the operator what to do about an error that stopped the node."""
    match error:
        case DiskFull():
            return (
                f"make room on the volume of {config.data_dir}, or give it a larger one; then start the "
                "node again: what it had confirmed is read back and checked"
            )
        case DiskFailed() if _is_forbidden(error):
            return (
                f"let user {os.geteuid()} and group {os.getegid()} read and write everything in "
                f"{config.data_dir} (chown -R; in Kubernetes securityContext.fsGroup, on NFS the owner of "
                "the exported folder), and mount it writable; then start the node again"
            )
        case DiskFailed():
            return (
                f"check the volume of {config.data_dir} (space, kernel log), then start the node again: "
                "what it had confirmed is read back and checked"
            )
        case CorruptLog():
            return (
                "while the other nodes have a leader: start this node with --heal-corruption; it sets its "
                f"data aside inside {config.data_dir}, joins as a new member and copies them anew. "
                "Otherwise keep the files: they may be all there is"
            )
        case DirectoryInUse():
            return f"stop the other process, or give this one a --data-dir other than {config.data_dir}"
        case ForeignDirectory():
            return "give the directory's own --node-name, or another --data-dir"
        case Removed():
            return "nothing to do: started again, it sets its data aside and joins as a new member"
        case _:
            return (
                f"this is a fault in kvnode: keep the logs and a copy of {config.data_dir} for a report; "
                "the node may be started again"
            )

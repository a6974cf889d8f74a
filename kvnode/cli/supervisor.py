"""A whole cluster on this machine: one process per node, started, watched and ended together.

The directory's lock file is held for the supervisor's life. It is what tells a running cluster from a
crashed one: whoever can take the lock knows that nobody runs there, and whoever cannot may trust the
process id in the state file, since only the holder writes it. So nothing is ever ended that was not
started here, not even after process ids were used again.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from kvnode.errors import KvnodeError

_LOOPBACK = "127.0.0.1"
_TLS_DAYS = 3650
_STOP_S = 30.0
"""How long nodes may take to stop before they are killed: above the agent's own ``--shutdown-s``."""


class AlreadyRunning(KvnodeError):
    """Another supervisor holds the directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run."""

    nodes: int
    """At least 1."""
    data_dir: Path
    http_port: int
    """Node *i* has ``http_port + i``."""
    peer_port: int
    tls: bool = False
    """Certificates of a throw-away authority, and a peer secret, in ``tls_dir``."""
    agent_flags: tuple[str, ...] = ()
    """Handed to every node as they are."""

    @property
    def tls_dir(self) -> Path:
        """Where the authority, the nodes' certificate and the secret are."""
        return self.data_dir / "tls"

    @property
    def ca_file(self) -> str:
        """What clients need; empty without TLS."""
        return str(self.tls_dir / "ca.crt") if self.tls else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What runs, as the state file has it."""

    pid: int
    """The supervisor's."""
    names: tuple[str, ...]
    urls: tuple[str, ...]
    ca_file: str = ""
    """Empty without TLS."""


def names_in(data_dir: Path) -> list[str]:
    """Return the nodes that have data in a directory, by ordinal."""
    found = [path.name for path in data_dir.glob("kvnode-*") if path.is_dir()]
    ordinals = [int(name[7:]) for name in found if name[7:].isascii() and name[7:].isdigit()]
    return [f"kvnode-{ordinal}" for ordinal in sorted(ordinals)]


def url(plan: Plan, ordinal: int) -> str:
    """Return a node's base address."""
    return f"http{'s' if plan.tls else ''}://{_LOOPBACK}:{plan.http_port + ordinal}"


def agent_argv(plan: Plan, ordinal: int) -> list[str]:
    """Return the flags of one node."""
    joins = [f"--retry-join={_LOOPBACK}:{plan.peer_port + i}" for i in range(plan.nodes)]
    name = f"kvnode-{ordinal}"
    return [
        f"--node-name={name}",
        f"--data-dir={plan.data_dir / name}",
        f"--bind={_LOOPBACK}",
        f"--client={_LOOPBACK}",
        f"--advertise={_LOOPBACK}",
        f"--http-port={plan.http_port + ordinal}",
        f"--peer-port={plan.peer_port + ordinal}",
        f"--bootstrap-expect={plan.nodes}",
        *joins,
        *(_tls_flags(plan) if plan.tls else ()),
        *plan.agent_flags,
    ]


def _tls_flags(plan: Plan) -> list[str]:
    return [
        f"--tls-cert-file={plan.tls_dir / 'tls.crt'}",
        f"--tls-key-file={plan.tls_dir / 'tls.key'}",
        f"--tls-ca-file={plan.ca_file}",
        f"--peer-secret-file={plan.tls_dir / 'peer-secret'}",
    ]


def make_certificates(plan: Plan) -> None:
    """Make authority, certificate and secret, unless they are there.

    Raises:
        OSError: They cannot be written.
    """
    from kvnode.tls.authority import make_ca, make_certificate, make_secret, write_file

    directory = plan.tls_dir
    if (directory / "peer-secret").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    ca = make_ca("kvnode dev CA")
    node = make_certificate(ca, "kvnode dev", ("localhost", _LOOPBACK), days=_TLS_DAYS)
    for name, data in (("ca.key", ca.key), ("tls.key", node.key)):
        write_file(directory / name, data, private=True)
    for name, data in (("ca.crt", ca.cert), ("tls.crt", node.cert)):
        write_file(directory / name, data, private=False)
    # The last one: it says that all are there.
    write_file(directory / "peer-secret", make_secret().encode() + b"\n", private=True)


# -- the lock ---------------------------------------------------------------------------------------


def running(data_dir: Path) -> State | None:
    """Return what runs on a directory, or None when nothing does."""
    try:
        with _lock_file(data_dir, "r") as file:
            if _take(file):
                return None
            document = json.loads(_state_path(data_dir).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # written at this very moment: the supervisor is only starting
    return State(
        pid=document["pid"],
        names=tuple(document["names"]),
        urls=tuple(document["urls"]),
        ca_file=document.get("ca_file", ""),
    )


@contextmanager
def holding(plan: Plan) -> Iterator[None]:
    """Hold the directory and describe what runs there.

    Raises:
        AlreadyRunning: Another supervisor does.
    """
    plan.data_dir.mkdir(parents=True, exist_ok=True)
    with _lock_file(plan.data_dir, "a") as file:
        if not _take(file):
            raise AlreadyRunning(f"a cluster is running on {plan.data_dir} already")
        ordinals = range(plan.nodes)
        state = State(
            pid=os.getpid(),
            names=tuple(f"kvnode-{i}" for i in ordinals),
            urls=tuple(url(plan, i) for i in ordinals),
            ca_file=plan.ca_file,
        )
        fresh = _state_path(plan.data_dir).with_suffix(".new")
        fresh.write_text(json.dumps(asdict(state)) + "\n")
        fresh.replace(_state_path(plan.data_dir))
        try:
            yield
        finally:
            _state_path(plan.data_dir).unlink(missing_ok=True)


def _lock_file(data_dir: Path, mode: str) -> IO[str]:
    return (data_dir / "dev.lock").open(mode)


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _state_path(data_dir: Path) -> Path:
    return data_dir / "dev.json"


# -- the nodes --------------------------------------------------------------------------------------


async def supervise(
    plan: Plan, report: Callable[[str], None], ready: Callable[[], None], *, to_files: bool
) -> int:
    """Run the nodes until a signal, or until all have ended by themselves.

    Args:
        plan: What to run.
        report: Told, in sentences, what happens to the nodes.
        ready: Called once all processes were started.
        to_files: Each node's output goes to ``DIR/NAME.log`` rather than to this process's own.

    Returns:
        0 after a signal when all stopped cleanly, else 1.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    nodes: list[asyncio.subprocess.Process] = []
    try:
        for ordinal in range(plan.nodes):
            node = await _start(plan, ordinal, to_files=to_files)
            nodes.append(node)  # at once: a later start that fails must not leave it behind
        ready()
        failures = await _watch(nodes, stop, report)
    finally:
        # Also when a start failed or this task was cancelled: no node is left behind.
        clean = await _end(nodes, report)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return 0 if clean and not failures else 1


async def _start(plan: Plan, ordinal: int, *, to_files: bool) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "kvnode", "agent", *agent_argv(plan, ordinal)]
    log = (plan.data_dir / f"kvnode-{ordinal}.log").open("ab") if to_files else None
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A terminal's Ctrl-C must reach this process alone: to a node a second signal means "at once".
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    finally:
        if log is not None:
            log.close()


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the supervisor dies, whatever killed it; elsewhere do nothing."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


async def _watch(
    nodes: Sequence[asyncio.subprocess.Process],
    stop: asyncio.Event,
    report: Callable[[str], None],
) -> int:
    """Wait for a signal or for the last node's end; return how many ended by themselves."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    waits = {asyncio.create_task(node.wait(), name=f"kvnode-{i}") for i, node in enumerate(nodes)}
    failures = 0
    try:
        while waits:
            done, _ = await asyncio.wait({*waits, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                return failures
            for task in done:
                waits.discard(task)
                failures += 1
                report(f"{task.get_name()} ended by itself: {_how(task.result())}")
        report("no node is left")
        return failures
    finally:
        for task in (*waits, stopping):
            task.cancel()


async def _end(nodes: Sequence[asyncio.subprocess.Process], report: Callable[[str], None]) -> bool:
    """Stop the nodes that still run; True when each of them ended with code 0."""
    alive = [(i, node) for i, node in enumerate(nodes) if node.returncode is None]
    for _, node in alive:
        node.terminate()
    waits = [asyncio.create_task(node.wait()) for _, node in alive]
    if waits:
        await asyncio.wait(waits, timeout=_STOP_S)
    clean = True
    for i, node in alive:
        if node.returncode is None:
            report(f"kvnode-{i} did not stop within {_STOP_S:.0f} s and is killed")
            node.kill()
            await node.wait()
        if node.returncode != 0:
            report(f"kvnode-{i} stopped badly: {_how(node.returncode)}")
            clean = False
    return clean


def _how(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"

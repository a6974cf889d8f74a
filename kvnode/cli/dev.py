"""``kvnode dev``: a whole cluster on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from kvnode.cli.output import Output, OutputOption, emit_json, emit_table, fail, say
from kvnode.cli.supervisor import (
    AlreadyRunning,
    Plan,
    State,
    holding,
    make_certificates,
    names_in,
    running,
    supervise,
    url,
)
from kvnode.client import ClientTls, KvnodeClient, RaftPeer
from kvnode.errors import KvnodeError

app = typer.Typer(
    help="Run a whole cluster on this machine, one process per node.",
    epilog="Examples: kvnode dev · kvnode dev --nodes 5 --http-port 9500 · kvnode dev --tls · "
    "kvnode dev -- --log-level debug",
    invoke_without_command=True,
)

AGENT_FLAGS: ContextVar[tuple[str, ...]] = ContextVar("agent_flags")
"""What followed ``--``; set by ``main`` before the rest is parsed."""
DEFAULT_DATA_DIR = Path("data")
_LEADER_S = 60.0
"""How long a fresh cluster may take to elect its first leader; it takes two seconds."""

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir", help="Directory of all nodes; one sub-directory each.", file_okay=False
    ),
]


@app.callback()
def dev(
    context: typer.Context,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes",
            min=1,
            max=99,
            help="How many. Not given: as many as there are data of, else 3.",
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    http_port: Annotated[
        int,
        typer.Option(
            "--http-port", min=1, max=65535, help="HTTP port of kvnode-0; kvnode-1 has the next."
        ),
    ] = 8500,
    peer_port: Annotated[
        int,
        typer.Option(
            "--peer-port", min=1, max=65535, help="Peer port of kvnode-0; kvnode-1 has the next."
        ),
    ] = 8300,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls",
            help="HTTPS, TLS and a secret between the nodes, by an authority made in DIR/tls.",
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Run in the background; return once a leader is elected."),
    ] = False,
    to_files: Annotated[bool, typer.Option("--log-to-files", hidden=True)] = False,
) -> None:
    """Run a cluster until Ctrl-C: kvnode-0, kvnode-1, … on loopback, each a process of its own.

    Starting it again on the same directory finds the data again. What follows -- goes to every node
    (kvnode agent --help). A node that dies is reported, not started again.
    """
    if context.invoked_subcommand is not None:
        return
    existing = names_in(data_dir)
    count = nodes or len(existing) or 3
    if len(existing) > 2 * count:
        say(
            f"{data_dir} holds data of {len(existing)} nodes: {count} of them cannot elect a leader"
        )
    plan = Plan(
        nodes=count,
        data_dir=data_dir.absolute(),
        http_port=http_port,
        peer_port=peer_port,
        tls=tls,
        agent_flags=AGENT_FLAGS.get(()),
    )
    if tls:
        try:
            make_certificates(plan)
        except OSError as error:
            fail(f"{error.filename or plan.tls_dir}: {error.strerror}")
    raise typer.Exit(_detached(plan) if detach else _foreground(plan, to_files=to_files))


@app.command("stop")
def stop(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop what runs on a directory; the data stay."""
    state = running(data_dir)
    if state is None:
        say(f"nothing is running on {data_dir}")
        return
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + 45
    while running(data_dir) is not None:
        if time.monotonic() > deadline:
            fail(f"still running after 45 s: process {state.pid}")
        time.sleep(0.05)
    say(f"stopped; the data are in {data_dir}")


@app.command("status")
def status(data_dir: DataDir = DEFAULT_DATA_DIR, output: OutputOption = Output.text) -> None:
    """Show what runs on a directory. Exit code 1 when nothing does, or nobody leads."""
    state = running(data_dir)
    if state is None:
        fail(f"nothing is running on {data_dir}")
    peers = asyncio.run(_peers(state.urls, state.ca_file))
    leader = next((peer.name for peer in peers if peer.leader), "")
    rows = [
        (name, address, _role(name, peers))
        for name, address in zip(state.names, state.urls, strict=True)
    ]
    if output is Output.json:
        emit_json([dict(zip(("name", "url", "role"), row, strict=True)) for row in rows])
    else:
        emit_table(("name", "url", "role"), rows)
    raise typer.Exit(0 if leader else 1)


def _role(name: str, peers: tuple[RaftPeer, ...]) -> str:
    for peer in peers:
        if peer.name == name:
            return "leader" if peer.leader else "voter" if peer.voter else "learner"
    return "-"


def _foreground(plan: Plan, *, to_files: bool) -> int:
    async def run() -> int:
        announcer: list[asyncio.Task[None]] = []

        def ready() -> None:
            announcer.append(asyncio.create_task(_announce(plan), name="announce"))

        try:
            return await supervise(plan, say, ready, to_files=to_files)
        finally:
            for task in announcer:
                task.cancel()

    try:
        with holding(plan):
            return asyncio.run(run())
    except AlreadyRunning as error:
        say(f"kvnode dev: {error}; kvnode dev stop ends it")
        return 1


async def _announce(plan: Plan) -> None:
    """Say where to look, once there is something to see."""
    leader = await _leader(_urls(plan), plan.ca_file)
    _say_where(_urls(plan), plan.data_dir, leader, plan.ca_file)


def _detached(plan: Plan) -> int:
    """Start a supervisor in a session of its own, and wait until its cluster has a leader."""
    state = running(plan.data_dir)
    if state is not None:
        say(f"already running on {plan.data_dir}")
        leader = asyncio.run(_leader(state.urls, state.ca_file))
        _say_where(state.urls, plan.data_dir, leader, state.ca_file)
        return 0
    plan.data_dir.mkdir(parents=True, exist_ok=True)
    log = plan.data_dir / "dev.log"
    command = [
        sys.executable, "-m", "kvnode", "dev", "--log-to-files",
        f"--nodes={plan.nodes}", f"--data-dir={plan.data_dir}",
        f"--http-port={plan.http_port}", f"--peer-port={plan.peer_port}",
        *(["--tls"] if plan.tls else []),
    ]  # fmt: skip
    with log.open("ab") as sink:
        supervisor = subprocess.Popen(
            [*command, "--", *plan.agent_flags],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    leader = asyncio.run(_leader_while(supervisor, _urls(plan), plan.ca_file))
    if not leader:
        with suppress(ProcessLookupError):
            supervisor.terminate()
        supervisor.wait()
        say(f"kvnode dev: no leader was elected; the logs are {plan.data_dir}/*.log")
        for ordinal in range(plan.nodes):
            say(_last_line(plan.data_dir / f"kvnode-{ordinal}.log"))
        return 1
    supervisor.returncode = 0  # it outlives us on purpose: nothing to wait for, nothing to warn of
    _say_where(_urls(plan), plan.data_dir, leader, plan.ca_file)
    say(f"logs: {plan.data_dir}/*.log; kvnode dev stop --data-dir {plan.data_dir} ends it")
    return 0


def _last_line(log: Path) -> str:
    """Return what a node said last, after its name."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return f"{log.stem}: {lines[-1] if lines else 'it said nothing'}"


async def _leader_while(
    supervisor: subprocess.Popen[bytes], urls: tuple[str, ...], ca_file: str
) -> str:
    """Wait for a leader, but not longer than the supervisor lives or ``_LEADER_S``."""
    search = asyncio.create_task(_leader(urls, ca_file))
    deadline = time.monotonic() + _LEADER_S
    while not search.done() and supervisor.poll() is None and time.monotonic() < deadline:
        await asyncio.wait({search}, timeout=0.1)
    if search.done():
        return search.result()
    search.cancel()
    return ""


async def _leader(urls: tuple[str, ...], ca_file: str) -> str:
    """Wait until somebody leads; return the name."""
    while True:
        peers = await _peers(urls, ca_file)
        for peer in peers:
            if peer.leader:
                return peer.name
        await asyncio.sleep(0.1)


async def _peers(urls: tuple[str, ...], ca_file: str) -> tuple[RaftPeer, ...]:
    """Return the Raft group as the first node that answers sees it; empty when none does."""
    for address in urls:
        async with KvnodeClient(address, timeout_s=1.0, tls=ClientTls(ca_file=ca_file)) as client:
            with suppress(KvnodeError):
                peers = await client.raft_peers(stale=True)
                if any(peer.leader for peer in peers):
                    return peers
    return ()


def _urls(plan: Plan) -> tuple[str, ...]:
    return tuple(url(plan, ordinal) for ordinal in range(plan.nodes))


def _say_where(urls: tuple[str, ...], data_dir: Path, leader: str, ca_file: str) -> None:
    first, curl = urls[0], f"curl --cacert {ca_file}" if ca_file else "curl"
    lines = [f"{len(urls)} nodes, {leader} leads, data in {data_dir}:"]
    lines += [f"  kvnode-{i}  {address}" for i, address in enumerate(urls)]
    lines += [
        "try:",
        f"  {curl} -X POST -d hello {first}/kv/greeting",
        f"  {curl} {urls[-1]}/kv/greeting",
        f"  {curl} {first}/pods",
    ]
    if ca_file:
        lines.append(f"  KVNODE_CACERT={ca_file} kvnode members --http-addr {first}")
    say("\n".join(lines))


__all__ = ["State", "app"]

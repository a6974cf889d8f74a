"""``kvnode bench``: put a load on a cluster, and say what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer

from kvnode.cli.output import (
    DEFAULT_ADDR,
    HttpAddr,
    Output,
    OutputOption,
    emit_json,
    emit_table,
    fail,
    say,
)
from kvnode.cli.tls_options import base_addresses, current_tls
from kvnode.client.client import base_url
from kvnode.client.load import Load, Lost, report
from kvnode.client.plan import Operation, Plan
from kvnode.errors import BadRequest, PeerUnreachable

_SHOW_S = 1.0
_LOST_SHOWN = 10


def bench(
    mix: Annotated[
        str,
        typer.Option(
            "--mix",
            help="What to ask, with weights: put, get (linearizable), stale, delete, list. "
            "Such as put=20,get=80, or put alone.",
        ),
    ] = "put=20,get=80",
    duration: Annotated[float, typer.Option("--duration", "-d", help="Seconds.")] = 10.0,
    connections: Annotated[
        int, typer.Option("--connections", "-c", help="One request at a time on each.")
    ] = 32,
    rate: Annotated[
        float,
        typer.Option(
            "--rate",
            help="Requests a second, over all connections; 0: as fast as they are answered.",
        ),
    ] = 0.0,
    keys: Annotated[int, typer.Option("--keys", help="Number of keys.")] = 1000,
    value_bytes: Annotated[int, typer.Option("--value-bytes", help="Length of each value.")] = 100,
    prefix: Annotated[str, typer.Option("--prefix", help="Of the keys.")] = "kvnode-bench/",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read everything back afterwards: an acknowledged write that is lost is exit code 1.",
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the keys there.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds until an answer is given up.")
    ] = 10.0,
    seed: Annotated[int, typer.Option("--seed", help="For the same choices again; 0: others.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No live figures.")] = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
) -> None:
    """Put a load on a cluster. Live figures go to stderr, the result to stdout.

    Connections are spread over all addresses of --http-addr and move on to the next when one breaks, so nodes
    may be killed meanwhile: the longest gap without an acknowledged write is among the results.

    Exit code 1: an acknowledged write was lost or could not be read back (--verify), or nothing was answered.

    Examples: kvnode bench · kvnode bench --mix put -c 128 -d 30 --verify ·
    kvnode bench --rate 500 --http-addr localhost:8500,localhost:8501,localhost:8502 --output json
    """
    try:
        plan = Plan(
            addresses=[base_url(part) for part in base_addresses(http_addr)],
            ssl=current_tls().context(),
            server_name=current_tls().server_name,
            mix=parse_mix(mix),
            connections=connections,
            duration_s=duration,
            rate=rate,
            keys=max(keys, connections),
            value_bytes=value_bytes,
            prefix=prefix,
            timeout_s=timeout,
            seed=seed,
        )
        outcome = run(plan, verify=verify, keep=keep, quiet=quiet)
    except BadRequest as error:
        fail(str(error), code=2)
    except PeerUnreachable as error:
        fail(str(error))
    load, lost = outcome.load, outcome.lost
    document = report(load)
    if verify:
        document["verified"] = {
            "keys": 0 if outcome.unverified else plan.keys,
            "lost": [item._asdict() for item in lost],
        }
    if output is Output.json:
        emit_json(document)
    else:
        _print(document)
    if lost:
        for item in lost[:_LOST_SHOWN]:
            say(f"LOST {item.key}: write {item.acknowledged} was acknowledged, found {item.found}")
        fail(f"{len(lost)} of {plan.keys} keys do not hold what was acknowledged")
    if outcome.unverified:
        fail(f"not verified: {outcome.unverified}")
    if verify:
        say(f"verified: all {plan.keys} keys hold what was acknowledged")
    if not load.answered:
        fail(f"nothing was answered: {load.words()}")


def parse_mix(text: str) -> dict[Operation, int]:
    """Parse ``put=20,get=80``; a name without a number weighs 1.

    Raises:
        BadRequest: An unknown operation, or no number.
    """
    mix: dict[Operation, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = part.partition("=")
        try:
            operation = Operation(name)
            mix[operation] = int(weight) if equals else 1
        except ValueError:
            known = ", ".join(op.value for op in Operation)
            raise BadRequest(
                f"--mix: {part!r} is not an operation with a weight ({known})"
            ) from None
    return mix


class Outcome(NamedTuple):
    """What came of a load."""

    load: Load
    lost: list[Lost]
    unverified: str
    """Why it could not be verified; else empty."""


def run(plan: Plan, *, verify: bool, keep: bool, quiet: bool) -> Outcome:
    """Run all phases in an event loop of their own; the fast one where it is installed.

    An interrupt ends the load early; what was measured until then is the result.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_phases(plan, verify=verify, keep=keep, quiet=quiet))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _phases(plan: Plan, *, verify: bool, keep: bool, quiet: bool) -> Outcome:
    load = Load(plan)
    if not quiet:
        say(f"writing {plan.keys} keys under {plan.prefix} …")
    await load.fill()
    task = asyncio.ensure_future(load.run())
    try:
        if quiet:
            await task
        else:
            await _show(load, task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await load.clean()
        raise
    lost: list[Lost] = []
    unverified = ""
    try:
        lost = await load.verify() if verify else []
    except PeerUnreachable as error:
        unverified = str(error)
    if not keep:
        await load.clean()
    return Outcome(load, lost, unverified)


async def _show(load: Load, task: asyncio.Future[None]) -> None:
    """Say once a second how it goes: in one place on a terminal, else a line each."""
    with _line() as show:
        before, at = 0, time.monotonic()
        while not (await asyncio.wait({task}, timeout=_SHOW_S))[0]:
            now, answered = time.monotonic(), load.answered
            bad = sum(t.refused + t.failed + t.unknown for t in load.tallies.values())
            parts = [
                f"{load.seconds:6.1f} s",
                f"{(answered - before) / (now - at):9,.0f} /s",
                *(
                    f"{op.value} p99 {tally.times.percentile(0.99) * 1000:.1f} ms"
                    for op, tally in load.tallies.items()
                ),
                f"{bad} not answered as asked" if bad else "",
            ]
            show("  ".join(filter(None, parts)))
            before, at = answered, now
    await task


@contextlib.contextmanager
def _line() -> Iterator[Any]:
    if not sys.stderr.isatty():
        yield say
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True) as live:
        yield lambda text: live.update(text)


def _print(document: dict[str, Any]) -> None:
    rows = []
    for name, figures in document["operations"].items():
        times = figures["latency_ms"]
        rows.append(
            (
                name,
                str(figures["answered"]),
                f"{figures['per_second']:,.0f}",
                *(f"{times[column]:.2f}" for column in ("p50", "p90", "p99", "p99.9", "max")),
                str(figures["refused"]),
                str(figures["unknown"]),
                str(figures["failed"]),
            )
        )
    emit_table(
        (
            "operation",
            "answered",
            "per second",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "refused",
            "unknown",
            "failed",
        ),
        rows,
    )
    total = f"{document['requests']} answers in {document['seconds']:.1f} s"
    total += f", {document['per_second']:,.0f} a second"
    gap = document["longest_gap_ms"]
    say(total + (f"; longest gap between two acknowledged writes {gap:.0f} ms" if gap else ""))
    nodes = ", ".join(f"{name} {count}" for name, count in document["nodes"].items())
    if nodes:
        say(f"answered by: {nodes}")
    if document["connections_lost"]:
        say(f"connections lost: {document['connections_lost']}")
    for reason, count in document["failures"].items():
        say(f"{count} x {reason}")

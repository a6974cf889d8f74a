"""Every command but ``agent`` as one typer application."""

from __future__ import annotations

from typing import Annotated

import typer

from kvnode.cli import (
    autopilot,
    bench,
    changes,
    dev,
    kubernetes,
    kv,
    lock,
    operator,
    snapshot,
    tls,
    transfer,
    watch,
)
from kvnode.cli.tls_options import add_tls_options

app = typer.Typer(
    name="kvnode",
    help="A replicated key-value store: run nodes, read and write keys, look after the cluster.",
    epilog="Start here: kvnode dev, then kvnode kv put greeting hello, kvnode kv get greeting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(dev.app, name="dev")
for name, command in (
    ("history", changes.history),
    ("rollback", changes.rollback),
    ("changes", changes.changes),
    ("export", transfer.export),
    ("import", transfer.import_),
):
    kv.app.command(name)(command)
app.add_typer(kv.app, name="kv")
app.command("bench")(bench.bench)
# What follows the first argument is another command line, whose options are not ours.
_RUNS_OTHERS = {"allow_interspersed_args": False}
kv.app.command("watch", context_settings=_RUNS_OTHERS)(watch.watch)
app.command("exec", context_settings=_RUNS_OTHERS)(watch.exec_)
app.command("lock", context_settings=_RUNS_OTHERS)(lock.lock)
app.command("members")(operator.members)
operator.app.add_typer(autopilot.app, name="autopilot")
app.add_typer(operator.app, name="operator")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(tls.app, name="tls")
app.add_typer(kubernetes.app, name="kubernetes")


@app.command("agent", add_help_option=False)
def agent() -> None:
    """Run one node. kvnode agent --help lists its flags."""
    raise AssertionError("main() takes this word before typer sees it")


@app.command("version")
def version(
    output: Annotated[str, typer.Option("--output", help="text or json.")] = "text",
) -> None:
    """Print the version."""
    raise AssertionError("main() takes this word before typer sees it")


add_tls_options(app)  # last: every command is there

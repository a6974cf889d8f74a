"""What commands print, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from kvnode.cli.tls_options import base_addresses, current_tls
from kvnode.client import KvnodeClient
from kvnode.errors import BadRequest, KvnodeError, NotNow

T = TypeVar("T")


class Output(StrEnum):
    """Forms of output."""

    text = "text"
    json = "json"


HttpAddr = Annotated[
    str,
    typer.Option(
        "--http-addr",
        envvar=["KVNODE_HTTP_ADDR", "CONSUL_HTTP_ADDR"],
        help="Node to ask, http://… or https://…; several, separated by commas, are tried in turn.",
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of what is printed.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer, in all.")
]
DEFAULT_ADDR = "http://127.0.0.1:8500"
DEFAULT_TIMEOUT_S = 30.0


def ask(
    http_addr: str, timeout_s: float, call: Callable[[KvnodeClient], Coroutine[Any, Any, T]]
) -> T:
    """Run one conversation with a cluster.

    Raises:
        typer.Exit: It failed; said on stderr. Code 2 when the request was wrong, else 1.
    """

    async def conversation() -> T:
        client = KvnodeClient(
            base_addresses(http_addr), timeout_s=timeout_s, patient=False, tls=current_tls()
        )
        async with client:
            return await call(client)

    try:
        return asyncio.run(conversation())
    except BadRequest as error:
        fail(str(error), code=2)
    except NotNow as error:
        unknown = (
            "; it may have taken effect all the same" if error.took_effect == "unknown" else ""
        )
        fail(f"{error}{unknown}")
    except KvnodeError as error:
        fail(str(error))


def command_line(words: Sequence[str], *, shell: bool = True) -> list[str]:
    """Return another program's command line: without the ``--`` before it; one word is for the shell."""
    words = list(words[1:] if words[:1] == ["--"] else words)
    if not words:
        fail("no command was given", code=2)
    return (
        [os.environ.get("SHELL", "/bin/sh"), "-c", *words] if shell and len(words) == 1 else words
    )


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Say why on stderr and end with ``code``."""
    say(f"kvnode: {message}")
    raise typer.Exit(code)


def say(message: str) -> None:
    """Talk to the person: stderr."""
    typer.echo(message, err=True)


def emit(data: bytes) -> None:
    """Write bytes to stdout as they are; a terminal gets a final newline so that the prompt is whole."""
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(data)
        if sys.stdout.isatty() and not data.endswith(b"\n"):
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def emit_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    emit(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")


def emit_line(document: Any) -> None:
    """Write one JSON document to stdout, on one line, for streams of them."""
    emit(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def emit_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows: a table on a terminal, aligned columns in a pipe (never cut to a width)."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*headers, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        emit(line.rstrip().encode() + b"\n")

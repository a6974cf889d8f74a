"""``kvnode kv history|rollback|changes``: what keys were, and what becomes of them."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import typer

from kvnode.cli.kv import Key, document
from kvnode.cli.output import (
    DEFAULT_ADDR,
    DEFAULT_TIMEOUT_S,
    HttpAddr,
    Output,
    OutputOption,
    TimeoutOption,
    ask,
    emit,
    emit_json,
    emit_line,
    emit_table,
    fail,
    say,
)
from kvnode.client import Change, KvnodeClient, KVPair

_SHOWN_CHARACTERS = 60


def history(
    key: Key,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many revisions.")
    ] = 20,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print what a key was, the newest first. Exit code 1 when nothing is known of it.

    Examples: kvnode kv history app/db · kvnode kv history -n 1000 -o json app/db
    """
    found = ask(http_addr, timeout, lambda kv: kv.history(key, limit=limit))
    if output is Output.json:
        emit_json([
            {
                "index": revision.index,
                "by": revision.by,
                "entry": None if revision.pair is None else document(revision.pair),
            }
            for revision in found.revisions
        ])  # fmt: skip
    elif found.revisions:
        emit_table(
            ("index", "by", "flags", "session", "value"),
            [
                (str(r.index), r.by or "?", *_columns(r.pair))
                for r in found.revisions
            ],
        )  # fmt: skip
        if not found.complete:
            say(f"there are older ones: --limit is {limit}")
    if not found.revisions:
        fail(f"nothing is known of {key}; changes are kept from index {found.oldest_index} on")


def rollback(
    key: Key,
    index: Annotated[
        int, typer.Argument(min=0, help="The index to go back to, see kvnode kv history.")
    ],
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Write what a key was at an index, value and flags; delete it if there was none then.

    Exit code 1 when somebody else changed the key at the same time: nothing was written then.

    Examples: kvnode kv rollback app/db 4711
    """
    done = ask(http_addr, timeout, lambda kv: kv.roll_back(key, index))
    if output is Output.json:
        emit_json({"success": done})
    else:
        say(f"{key} is as it was at {index}" if done else f"kvnode: {key} was changed meanwhile")
    if not done:
        raise typer.Exit(1)


def changes(
    prefix: Annotated[str, typer.Argument(help="What the keys begin with; empty: all.")] = "",
    since: Annotated[
        str,
        typer.Option("--since", help="Go on behind this index or event id; empty: from now on."),
    ] = "",
    initial: Annotated[bool, typer.Option("--initial", help="First print what there is.")] = False,
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, help="End after so many; 0: never.")
    ] = 0,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print every change under a prefix as it happens, each once, in order, until Ctrl-C.

    Goes on by itself after a disconnect, at any of the given addresses. With --output json one document
    per line. Exit code 2 when --since is compacted.

    Examples: kvnode kv changes app/ · kvnode kv changes --initial -o json | jq .key
    """

    async def follow(client: KvnodeClient) -> None:
        number = 0
        async with client.changes(prefix, since=since or None, initial=initial) as feed:
            async for change in feed:
                _show(change, output)
                number += 1
                if number == count:
                    return

    ask(http_addr, timeout, follow)


def _show(change: Change, output: Output) -> None:
    if output is Output.json:
        emit_line(_change_document(change))
        return
    flags, session, value = _columns(change.new)
    sign = "-" if change.new is None else "+" if change.old is None else "~"
    holder = f" held by {session}" if session != "-" else ""
    marked = f" flags {flags}" if flags not in {"0", "-"} else ""
    shown = f" = {value}" if change.new is not None else ""
    where = change.event_id or change.index
    emit(f"{where} {sign} {change.key} ({change.by}){shown}{marked}{holder}\n".encode())


def _change_document(change: Change) -> dict[str, Any]:
    return {
        "id": change.event_id,
        "index": change.index,
        "by": change.by,
        "key": change.key,
        "new": None if change.new is None else document(change.new),
        "old": None if change.old is None else document(change.old),
    }


def _columns(pair: KVPair | None) -> tuple[str, str, str]:
    if pair is None:
        return "-", "-", "(deleted)"
    try:
        text = pair.value.decode()
    except UnicodeDecodeError:
        text = "base64:" + base64.b64encode(pair.value).decode()
    if not text.isprintable():
        text = repr(text)[1:-1]
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]}… ({len(pair.value)} bytes)"
    return str(pair.flags), pair.session or "-", text

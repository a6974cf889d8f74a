"""``kvnode kv export`` and ``import``: keys as a file, in Consul's JSON format."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, NamedTuple, Protocol

import typer

from kvnode.cli.kv import Stale, given_bytes
from kvnode.cli.output import (
    DEFAULT_ADDR,
    DEFAULT_TIMEOUT_S,
    HttpAddr,
    TimeoutOption,
    ask,
    emit,
    fail,
    say,
)
from kvnode.client import KvnodeClient, KVPair
from kvnode.client.client import Consistency
from kvnode.errors import BadRequest, KvnodeError

AT_A_TIME: Final = 16
"""Writes under way during an import."""
PAGE: Final = 500


class Item(NamedTuple):
    """One key of a file."""

    key: str
    value: bytes
    flags: int


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, count: int = 1) -> None:
        """So many more are done."""
        ...


def export(
    prefix: Annotated[str, typer.Argument(help="What the keys begin with; empty: all.")] = "",
    stale: Stale = False,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print keys with values and flags as JSON, in the format of consul kv export.

    It is the state of one moment, unless it is too large for one answer: then it is read page by page, which
    is said on stderr. Sessions and locks are not in it; kvnode snapshot save has everything.

    Examples: kvnode kv export app/ > app.json · kvnode kv export | gzip > all.json.gz
    """
    mode: Consistency = "stale" if stale else "default"
    pairs = ask(http_addr, timeout, lambda kv: _read(kv, prefix, mode))
    rows = [
        {"key": p.key, "flags": p.flags, "value": base64.b64encode(p.value).decode()} for p in pairs
    ]
    emit(json.dumps(rows, indent="\t", ensure_ascii=False).encode() + b"\n")


async def _read(kv: KvnodeClient, prefix: str, mode: Consistency) -> Sequence[KVPair]:
    try:
        return await kv.list(prefix, consistency=mode)
    except BadRequest as error:
        say(f"{error}: reading page by page, which is not the state of one moment")
    total = await kv.count(prefix, consistency=mode)
    pairs: list[KVPair] = []
    after: str | None = None
    with _progress("exporting", total) as advance:
        while True:
            page = await kv.page(prefix, limit=PAGE, after=after, consistency=mode)
            pairs += page.items
            advance(len(page.items))
            after = page.next_after
            if after is None:
                return pairs


def import_(
    data: Annotated[
        str, typer.Argument(help="The JSON itself; - reads it from stdin, @FILE from a file.")
    ] = "-",
    prefix: Annotated[str, typer.Option("--prefix", help="Put this before every key.")] = "",
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Store the keys of an export, of kvnode's or of Consul's. Other keys are left alone.

    All of the file is read and checked before the first key is stored. Each key is one write; what was stored
    before a failure stays.

    Examples: kvnode kv import @app.json · consul kv export app/ | kvnode kv import · kvnode kv import --prefix old/ @app.json
    """  # noqa: E501  # an example is one line
    try:
        items = parse(given_bytes(data))
    except ValueError as error:
        fail(f"this is no export: {error}", code=2)
    stored = ask(http_addr, timeout, lambda kv: _store(kv, items, prefix))
    say(f"imported {stored} keys")


def parse(document: bytes) -> list[Item]:
    """Read an export.

    Raises:
        ValueError: It is none.
    """
    rows = json.loads(document)
    if not isinstance(rows, list):
        raise ValueError("not an array")  # noqa: TRY004  # what is wrong is the document
    return [_item(row, at) for at, row in enumerate(rows)]


def _item(row: Any, at: int) -> Item:
    if not isinstance(row, dict):
        raise ValueError(f"entry {at} is no object")  # noqa: TRY004
    key, flags, value = row.get("key"), row.get("flags", 0), row.get("value")
    if not isinstance(key, str) or not key:
        raise ValueError(f"entry {at} has no key")
    if type(flags) is not int or not 0 <= flags < 1 << 64:
        raise ValueError(f"{key}: flags are a number from 0 to 2^64-1")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key}: a value is base64 text")
    try:
        return Item(key, base64.b64decode(value or "", validate=True), flags)
    except binascii.Error as error:
        raise ValueError(f"{key}: the value is no base64: {error}") from error


async def _store(kv: KvnodeClient, items: Sequence[Item], prefix: str) -> int:
    stored = 0
    waiting = iter(items)

    async def work() -> None:
        nonlocal stored
        for item in waiting:
            try:
                await kv.put(prefix + item.key, item.value, flags=item.flags)
            except KvnodeError:
                say(f"{stored} of {len(items)} keys were imported; {prefix}{item.key} was not")
                raise
            stored += 1
            advance()

    with _progress("importing", len(items)) as advance:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_A_TIME, len(items))):
                    group.create_task(work())
        except* KvnodeError as failed:
            raise failed.exceptions[0] from None
    return stored


@contextmanager
def _progress(what: str, total: int) -> Iterator[Advance]:
    """Show a bar on a terminal's stderr; nothing anywhere else."""
    if not sys.stderr.isatty():
        yield lambda count=1: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count=1: bar.advance(task, count)

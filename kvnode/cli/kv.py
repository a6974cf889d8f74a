"""``kvnode kv``: read and write keys."""

from __future__ import annotations

import base64
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

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
    emit_table,
    fail,
    say,
)
from kvnode.client import KvnodeClient, KVPair
from kvnode.client.client import Consistency

app = typer.Typer(
    help="Read and write keys.",
    no_args_is_help=True,
    epilog="Examples: kvnode kv put app/db postgres · kvnode kv get app/db · kvnode kv list app/",
)

Key = Annotated[str, typer.Argument(help="The key, such as app/db/password; no leading slash.")]
Stale = Annotated[
    bool, typer.Option("--stale", help="Ask this node's own state, even without a leader.")
]
Cas = Annotated[
    int | None,
    typer.Option(
        "--cas", min=0, help="Only if the key's modify index is this; 0: only if missing."
    ),
]


@app.command("get")
def get(
    key: Key,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print the value's bytes: the default.")
    ] = False,
    detailed: Annotated[bool, typer.Option("--detailed", help="Print everything known.")] = False,
    stale: Stale = False,
    as_of: Annotated[
        int | None,
        typer.Option("--as-of", min=0, help="As it was at this index, see kvnode kv history."),
    ] = None,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print a key's value, byte for byte. Exit code 1 when there is no such key.

    Examples: kvnode kv get app/db · kvnode kv get --detailed app/db · kvnode kv get cert > cert.pem ·
    kvnode kv get --as-of 4711 app/db
    """
    pair = ask(
        http_addr,
        timeout,
        lambda kv: (
            kv.get(key, consistency=_consistency(stale), ttl=detailed or output is Output.json)
            if as_of is None
            else kv.get_as_of(key, as_of)
        ),
    )
    if pair is None:
        fail(f"no such key: {key}")
    if output is Output.json and not raw:
        emit_json(document(pair))
    elif detailed:
        emit_table(("field", "value"), [(name, str(value)) for name, value in _details(pair)])
    else:
        emit(pair.value)


@app.command("put")
def put(
    key: Key,
    value: Annotated[
        str, typer.Argument(help="The value; - reads it from stdin, @FILE from a file.")
    ] = "",
    flags: Annotated[int, typer.Option("--flags", min=0, help="A number kept beside it.")] = 0,
    cas: Cas = None,
    ttl: Annotated[
        float | None, typer.Option("--ttl", min=0, help="Seconds after which the key is deleted.")
    ] = None,
    add: Annotated[
        int | None,
        typer.Option("--add", help="Add this to the number that is stored, and print the result."),
    ] = None,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Store a value. Exit code 1 when --cas did not fit.

    Examples: kvnode kv put app/db postgres · kvnode kv put cert @cert.pem · date | kvnode kv put now - ·
    kvnode kv put --cas 0 app/lock me · kvnode kv put --ttl 60 app/up yes · kvnode kv put --add 1 app/visits
    """
    if add is not None:
        if value or flags:
            fail("--add takes neither a value nor --flags", code=2)
        number = ask(http_addr, timeout, lambda kv: kv.add(key, add, cas=cas, ttl_s=ttl))
        _counted(number, f"not changed: {key} has another modify index", output)
        return
    data = given_bytes(value)
    written = ask(http_addr, timeout, lambda kv: kv.put(key, data, flags=flags, cas=cas, ttl_s=ttl))
    _finish(written, f"stored {key}", f"not stored: {key} has another modify index", output)


@app.command("delete")
def delete(
    key: Key,
    recurse: Annotated[
        bool, typer.Option("--recurse", help="Delete every key that begins with KEY.")
    ] = False,
    cas: Cas = None,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Delete a key, or all keys with a prefix. Deleting what is not there is a success.

    Examples: kvnode kv delete app/db · kvnode kv delete --recurse app/
    """
    if recurse and cas is not None:
        fail("--recurse and --cas exclude each other", code=2)
    deleted = ask(
        http_addr,
        timeout,
        lambda kv: kv.delete_tree(key) if recurse else kv.delete(key, cas=cas),
    )
    _finish(deleted, f"deleted {key}", f"not deleted: {key} has another modify index", output)


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Argument(help="What the keys begin with; empty: all.")] = "",
    separator: Annotated[
        str,
        typer.Option("--separator", help="Cut keys after the first one that follows the prefix."),
    ] = "",
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Print sizes and indexes beside the keys.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="At most so many; says on stderr when there are more."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", help="Only what follows this key, in the order asked for."),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From the last to the first.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Print only how many there are.")] = False,
    stale: Stale = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print the keys under a prefix, one per line; with --output json the values too.

    Examples: kvnode kv list · kvnode kv list app/ --separator / · kvnode kv list app/ --output json ·
    kvnode kv list app/ --limit 100 --after app/key17 · kvnode kv list app/ --count
    """
    mode = _consistency(stale)
    if count:
        number = ask(
            http_addr, timeout, lambda kv: kv.count(prefix, separator=separator, consistency=mode)
        )
        _counted(number, "", output)
        return
    page = _Paging(limit, after, reverse) if limit or after is not None or reverse else None
    if separator or not (detailed or output is Output.json):
        keys = ask(
            http_addr,
            timeout,
            lambda kv: _keys(kv, prefix, separator, mode, page),
        )
        if output is Output.json:
            emit_json(list(keys))
        else:
            emit(b"".join(key.encode() + b"\n" for key in keys) or b"")
        return
    pairs = ask(http_addr, timeout, lambda kv: _pairs(kv, prefix, mode, page))
    if output is Output.json:
        emit_json([document(pair) for pair in pairs])
    else:
        rows = [
            (p.key, str(len(p.value)), str(p.flags), str(p.modify_index), p.session or "")
            for p in pairs
        ]
        emit_table(("key", "bytes", "flags", "modify_index", "session"), rows)


class _Paging(NamedTuple):
    """Which part of a list."""

    limit: int | None
    after: str | None
    reverse: bool


_EVERYTHING = 2**32


async def _keys(
    kv: KvnodeClient, prefix: str, separator: str, mode: Consistency, paging: _Paging | None
) -> tuple[str, ...]:
    if paging is None:
        return await kv.keys(prefix, separator=separator, consistency=mode)
    limit, after, reverse = paging
    page = await kv.key_page(
        prefix,
        limit=limit or _EVERYTHING,
        after=after,
        reverse=reverse,
        separator=separator,
        consistency=mode,
    )
    _say_more(page.next_after)
    return page.items


async def _pairs(
    kv: KvnodeClient, prefix: str, mode: Consistency, paging: _Paging | None
) -> tuple[KVPair, ...]:
    if paging is None:
        return await kv.list(prefix, consistency=mode)
    limit, after, reverse = paging
    page = await kv.page(
        prefix, limit=limit or _EVERYTHING, after=after, reverse=reverse, consistency=mode
    )
    _say_more(page.next_after)
    return page.items


def _say_more(after: str | None) -> None:
    if after is not None:
        say(f"there is more: --after {shlex.quote(after)}")


Recurse = Annotated[
    bool, typer.Option("--recurse", help="Every key that begins with SOURCE, in one step.")
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Also where there are keys already; else nothing is done."),
]


@app.command("cp")
def copy(
    source: Annotated[str, typer.Argument(help="The key, or with --recurse the prefix.")],
    target: Annotated[str, typer.Argument(help="Its new name; with --recurse the new prefix.")],
    recurse: Recurse = False,
    overwrite: Overwrite = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Copy a key, or all keys with a prefix: all of them, or none.

    Examples: kvnode kv cp app/db app/db.bak · kvnode kv cp --recurse live/ staging/
    """
    count = ask(
        http_addr,
        timeout,
        lambda kv: kv.copy(source, target, recurse=recurse, overwrite=overwrite),
    )
    _transferred(count, "copied", output)


@app.command("mv")
def move(
    source: Annotated[str, typer.Argument(help="The key, or with --recurse the prefix.")],
    target: Annotated[str, typer.Argument(help="Its new name; with --recurse the new prefix.")],
    recurse: Recurse = False,
    overwrite: Overwrite = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Move a key, or all keys with a prefix: all of them, or none. Locked keys are not moved.

    Examples: kvnode kv mv app/db app/database · kvnode kv mv --recurse live/ old/
    """
    count = ask(
        http_addr,
        timeout,
        lambda kv: kv.move(source, target, recurse=recurse, overwrite=overwrite),
    )
    _transferred(count, "moved", output)


def _transferred(count: int, word: str, output: Output) -> None:
    if output is Output.json:
        emit_json({"success": True, "keys": count})
    else:
        say(f"{word} {count} key{'' if count == 1 else 's'}")


def _counted(number: int | None, refused: str, output: Output) -> None:
    """Print a number; None: it was not changed."""
    if output is Output.json:
        emit_json({"success": number is not None, "value": number})
    elif number is not None:
        emit(b"%d\n" % number)
    else:
        say(f"kvnode: {refused}")
    if number is None:
        raise typer.Exit(1)


def document(pair: KVPair) -> dict[str, Any]:
    """Return a pair as JSON: ``value`` is null where the bytes are no text."""
    try:
        text: str | None = pair.value.decode()
    except UnicodeDecodeError:
        text = None
    known: dict[str, Any] = {
        "key": pair.key,
        "value": text,
        "value_base64": base64.b64encode(pair.value).decode(),
        "flags": pair.flags,
        "create_index": pair.create_index,
        "modify_index": pair.modify_index,
        "lock_index": pair.lock_index,
        "session": pair.session,
    }
    if pair.ttl:
        known["ttl"] = pair.ttl
    return known


def _details(pair: KVPair) -> list[tuple[str, object]]:
    everything = document(pair)
    del everything["value_base64"]
    everything["value"] = pair.value.decode(errors="backslashreplace")
    everything["session"] = pair.session or "-"
    return list(everything.items())


def given_bytes(given: str) -> bytes:
    """Return the bytes that an argument stands for.

    Raises:
        typer.Exit: The file cannot be read.
    """
    if given == "-":
        return sys.stdin.buffer.read()
    if not given.startswith("@"):
        return given.encode(errors="surrogateescape")
    try:
        return Path(given[1:]).read_bytes()
    except OSError as error:
        fail(f"{given[1:]}: {error.strerror}", code=2)


def _finish(success: bool, done: str, refused: str, output: Output) -> None:
    if output is Output.json:
        emit_json({"success": success})
    else:
        say(done if success else f"kvnode: {refused}")
    if not success:
        raise typer.Exit(1)


def _consistency(stale: bool) -> Consistency:
    return "stale" if stale else "default"

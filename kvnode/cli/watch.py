"""``kvnode kv watch`` and ``kvnode exec``: keys as they change, and keys as a command's environment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kvnode.cli.kv import Key, Stale, document
from kvnode.cli.output import (
    DEFAULT_ADDR,
    DEFAULT_TIMEOUT_S,
    HttpAddr,
    Output,
    OutputOption,
    TimeoutOption,
    ask,
    command_line,
    emit,
    fail,
    say,
)
from kvnode.client import KvnodeClient, KVPair
from kvnode.client.client import Consistency

_WAIT_S = 60.0
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_]")


def watch(
    key: Key,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to run at each change, with the state as JSON on its input; one word goes to the "
            "shell. Not given: print the value."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End after the first state.")] = False,
    stale: Stale = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print a key's value now and whenever it changes, or run a command then.

    The command gets what kvnode kv get -o json prints, or null once the key is gone, and the index in
    KVNODE_INDEX. States that follow each other quickly may be seen as one; kvnode kv changes shows every change, and
    those under a prefix.

    Examples: kvnode kv watch app/config · kvnode kv watch app/config -- ./reload.sh --quick
    """  # noqa: E501
    mode: Consistency = "stale" if stale else "default"

    async def follow(kv: KvnodeClient) -> None:
        index: int | None = None
        while True:
            answer = await kv.read(key, consistency=mode, index=index, wait_s=_WAIT_S)
            if answer.index != index:
                await _show(answer.value, answer.index, command, output)
                if once:
                    return
            # A fallen index means that the past is another one: begin anew (spec §2.4).
            index = answer.index if index is None or answer.index >= index else None

    ask(http_addr, timeout, follow)


async def _show(
    pair: KVPair | None, index: int, command: Sequence[str] | None, output: Output
) -> None:
    shown: dict[str, Any] | None = None if pair is None else document(pair)
    if command:
        words = command_line(command)
        text = str(index)
        environment = {**os.environ, "KVNODE_INDEX": text, "CONSUL_INDEX": text}
        try:
            child = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.PIPE, env=environment
            )
        except OSError as error:
            fail(f"{words[0]}: {error.strerror}", code=127)
        await child.communicate(json.dumps(shown).encode() + b"\n")
        if child.returncode:
            say(f"kvnode: {words[0]} ended with {child.returncode}")
    elif output is Output.json:
        emit(json.dumps(shown, ensure_ascii=False).encode() + b"\n")
    elif pair is None:
        say("the key is gone")
    else:
        emit(pair.value if pair.value.endswith(b"\n") else pair.value + b"\n")


def exec_(
    prefix: Annotated[str, typer.Argument(help="Prefix of the keys, such as app/env/.")],
    command: Annotated[
        list[str], typer.Argument(help="What to run; it takes this process's place.")
    ],
    upper: Annotated[
        bool, typer.Option("--upper/--as-is", help="Capital letters in the variables' names.")
    ] = True,
    pristine: Annotated[
        bool, typer.Option("--pristine", help="Pass on no other variables than the keys.")
    ] = False,
    stale: Stale = False,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Run a command with the keys below a prefix as environment variables.

    app/env/db/host becomes DB_HOST below the prefix app/env/: what a name cannot hold becomes an underscore. Two
    keys of one name, and values that no variable can hold, are refused.

    Examples: kvnode exec app/env/ -- ./server --port 80 · kvnode exec --pristine app/env/ env
    """  # noqa: E501
    mode: Consistency = "stale" if stale else "default"
    pairs = ask(http_addr, timeout, lambda kv: kv.list(prefix, consistency=mode))
    try:
        found = variables(prefix, pairs, upper=upper)
    except ValueError as error:
        fail(str(error), code=2)
    base = {} if pristine else dict(os.environb)
    words = command_line(command, shell=False)
    sys.stdout.flush()
    try:
        os.execvpe(words[0], words, base | found)
    except OSError as error:
        fail(f"{words[0]}: {error.strerror}", code=127)


def variables(prefix: str, pairs: Sequence[KVPair], *, upper: bool) -> dict[bytes, bytes]:
    """Make environment variables of keys.

    Raises:
        ValueError: Two keys would be one variable, or a value holds a zero byte.
    """
    found: dict[bytes, bytes] = {}
    keys: dict[str, str] = {}
    for pair in pairs:
        name = _NOT_A_NAME.sub("_", pair.key.removeprefix(prefix).strip("/"))
        if not name or pair.key.endswith("/"):
            continue  # a folder as some web pages make them
        name = f"_{name}" if name[0].isdigit() else name
        name = name.upper() if upper else name
        if name in keys:
            raise ValueError(f"{keys[name]} and {pair.key} would both be {name}")
        if b"\0" in pair.value:
            raise ValueError(f"{pair.key}: a variable cannot hold a zero byte")
        keys[name] = pair.key
        found[name.encode()] = pair.value
    return found

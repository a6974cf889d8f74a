"""``kvnode snapshot``: save, look at and restore Consul's archives."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Final, NamedTuple

import typer

from kvnode.archive import Loaded, Meta, load, open_container
from kvnode.archive.state import NAMES, Reader
from kvnode.cli.output import (
    DEFAULT_ADDR,
    HttpAddr,
    Output,
    OutputOption,
    ask,
    emit,
    emit_json,
    emit_table,
    fail,
    say,
)
from kvnode.errors import BadArchive
from kvnode.http.golang import parse_duration_ns

app = typer.Typer(
    help="Save, inspect and restore everything, in Consul's own archive format.",
    no_args_is_help=True,
    epilog="Examples: kvnode snapshot save backup.snap · kvnode snapshot inspect backup.snap · "
    "kvnode snapshot restore backup.snap",
)

_STATE_BYTES_MAX: Final = 1 << 40
"""What a file on this machine may unpack to; its owner vouches for it."""

TransferTimeout = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds for all of it.")
]
_TRANSFER_S: Final = 600.0


class Inspected(NamedTuple):
    """What a good archive holds."""

    meta: Meta
    size: int
    """Bytes of the state."""
    counts: Counter[int]
    bytes: Counter[int]
    """By kind of record."""
    loaded: Loaded


def examine(file: IO[bytes], directory: str | None = None) -> Inspected:
    """Check an archive to its last byte, and count what is in it. ``directory``: for a temporary file.

    Raises:
        BadArchive: It cannot be restored.
    """
    with tempfile.TemporaryFile(dir=directory) as state:
        container = open_container(file, state, _STATE_BYTES_MAX, lambda _size: None)
        loaded = load(container.state, parse_duration_ns)
        container.state.seek(0)
        counts: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        for record in Reader(container.state, frozenset()).records():
            counts[record.kind] += 1
            sizes[record.kind] += record.size
        return Inspected(container.meta, container.size, counts, sizes, loaded)


@app.command("save")
def save(
    file: Annotated[str, typer.Argument(help="Where to save it; - for standard output.")],
    stale: Annotated[
        bool, typer.Option("--stale", help="The asked node's own state, even without a leader.")
    ] = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TransferTimeout = _TRANSFER_S,
) -> None:
    """Save everything: keys, sessions and locks, at one moment.

    The file appears under its name only when it is whole, checked and on the disk; a file of that name is
    replaced then, and is left alone otherwise.

    Examples: kvnode snapshot save backup.snap · kvnode snapshot save --stale rescue.snap
    """
    directory = None if file == "-" else str(Path(file).resolve().parent)
    with _whole_file(directory) as part:
        with _bar("saving", None) as progress:

            def sink(piece: bytes) -> None:
                part.write(piece)
                progress(len(piece))

            ask(
                http_addr,
                timeout,
                lambda kv: kv.save_snapshot(sink, stale=stale, timeout_s=timeout),
            )
        part.flush()
        part.seek(0)
        try:
            found = examine(part, directory)
        except BadArchive as error:
            fail(f"what was received is not sound, and was not kept: {error}")
        if file == "-":
            part.seek(0)
            with suppress(BrokenPipeError):
                shutil.copyfileobj(part, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        else:
            _keep(part, Path(file))
    if output is Output.json and file != "-":
        emit_json(_document(found))
    else:
        say(f"Saved and verified snapshot to index {found.meta.index}")


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="The archive.")],
    output: OutputOption = Output.text,
) -> None:
    """Check an archive, and print what is in it. Exit code 1 when it could not be restored.

    Examples: kvnode snapshot inspect backup.snap · kvnode snapshot inspect --output json backup.snap
    """
    with _opened(file) as archive:
        found = _examined(archive, file)
    if output is Output.json:
        emit_json(_document(found))
        return
    meta = found.meta
    for name, value in (
        ("ID", meta.snapshot_id),
        ("Size", found.size),
        ("Index", meta.index),
        ("Term", meta.term),
        ("Version", meta.version),
    ):
        emit(f"{name:<13}{value}\n".encode())
    emit(b"\n")
    rows = [[str(row[name]) for name in ("type", "count", "bytes")] for row in _kinds(found)]
    emit_table(("Type", "Count", "Bytes"), rows)


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="The archive, of kvnode or of Consul.")],
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TransferTimeout = _TRANSFER_S,
) -> None:
    """Replace everything in the cluster by what an archive holds. There is no way back but another archive.

    The archive is checked first; one that is damaged is not even sent. All nodes go on from the restored
    state, or, should anything break on the way, from the old one.

    Examples: kvnode snapshot restore backup.snap
    """
    with _opened(file) as archive:
        found = _examined(archive, file)
        size = archive.seek(0, os.SEEK_END)
        with _bar("restoring", size) as progress:
            index = ask(
                http_addr,
                timeout,
                lambda kv: kv.restore_snapshot(archive, size, progress=progress, timeout_s=timeout),
            )
    if output is Output.json:
        emit_json({"index": index, "keys": found.loaded.keys, "sessions": found.loaded.sessions})
    else:
        say(f"Restored snapshot: {found.loaded.keys} keys, {found.loaded.sessions} sessions")
        for name, count in found.loaded.skipped.items():
            say(f"skipped {count} records of the kind {name}")


def _kinds(found: Inspected) -> list[dict[str, object]]:
    return [
        {
            "type": NAMES.get(kind, f"type {kind}"),
            "count": count,
            "bytes": found.bytes[kind],
            "restored": kind not in _NOT_RESTORED and NAMES.get(kind) not in found.loaded.skipped,
        }
        for kind, count in found.counts.most_common()
    ]


_NOT_RESTORED: Final = frozenset({5, 16})
"""Tombstones and the indexes of tables: they begin anew."""


def _document(found: Inspected) -> dict[str, object]:
    meta = found.meta
    return {
        "id": meta.snapshot_id,
        "size": found.size,
        "index": meta.index,
        "term": meta.term,
        "version": meta.version,
        "keys": found.loaded.keys,
        "sessions": found.loaded.sessions,
        "records": _kinds(found),
    }


def _examined(archive: IO[bytes], file: Path) -> Inspected:
    try:
        return examine(archive)
    except BadArchive as error:
        fail(f"{file}: {error}")


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        opened = file.open("rb")
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror or error}")
    with opened:
        yield opened


@contextmanager
def _whole_file(directory: str | None) -> Iterator[IO[bytes]]:
    """Make a file that is nobody's until it is kept."""
    try:
        part = tempfile.NamedTemporaryFile(  # noqa: SIM115  # it may be renamed before it is closed
            dir=directory, prefix=".snapshot-", delete=False
        )
    except OSError as error:
        fail(f"cannot write to {directory or tempfile.gettempdir()}: {error.strerror or error}")
    try:
        with part:
            yield part.file
    except OSError as error:
        fail(f"cannot write the snapshot: {error.strerror or error}")
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part.name)


def _keep(part: IO[bytes], file: Path) -> None:
    """Give a whole file its name, durably (it has mode 0600: it may hold secrets)."""
    os.fsync(part.fileno())
    os.rename(part.name, file)
    directory = os.open(file.resolve().parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _size: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda size: shown.advance(task, size)

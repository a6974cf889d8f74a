"""Who this node is: one small JSON file, replaced whole, with a checksum.

The file is the root of the data directory: as long as it exists the directory belongs to one
incarnation of one node (RC-49), and the boot number in it rises at each start before anything else
happens (RC-52). A file that cannot be read or is damaged is an error, never an empty directory
(RC-50).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

from kvnode.disk.files import FileSystem
from kvnode.disk.whole_file import read_whole, write_whole
from kvnode.errors import CorruptLog, ForeignDirectory
from kvnode.ports import IdentityRecord, PeerBoot
from kvnode.raft.types import NodeId

IDENTITY_NAME = "identity.json"
IDENTITY_BYTES_MAX = 1 << 20
FORMAT = 1
"""Version of the data directory as a whole."""
RUNS_KEPT = 16
"""So many starts in a row may pass unheard of before an old copy of a volume goes unnoticed."""

DATA_NAMES = ("raft", "state", "snapshots")
"""What belongs to an incarnation, besides its identity."""


_FIELDS = {
    "node_id": str,
    "name": str,
    "cluster_id": str,
    "pledge": str,
    "boot": int,
    "log_made": bool,
    "set_aside": bool,
}


class Identity(NamedTuple):
    """Content of the identity file."""

    record: IdentityRecord
    log_made: bool
    """The journal's directory was made: from then on it must be there."""
    set_aside: bool
    """The next start moves this incarnation's data away and begins as a new one (RC-51)."""


class OpenedIdentity(NamedTuple):
    """What ``open_identity`` found."""

    identity: Identity
    fresh: bool
    """The node has no journal yet."""
    set_aside: str
    """Directory to which the data of a removed incarnation were just moved; empty: none were."""


def new_run() -> int:
    """Draw a number for a process, see ``kvnode.ports.Hello``."""
    return 1 + secrets.randbits(62)


def open_identity(
    fs: FileSystem,
    directory: str,
    name: str,
    new_node_id: Callable[[], str],
    new_run: Callable[[], int] = new_run,
) -> OpenedIdentity:
    """Read who this node is and raise its boot number; make an identity in an empty directory.

    Args:
        fs: Where the directory is.
        directory: The data directory; it exists.
        name: The node's configured name.
        new_node_id: Makes a never used id.
        new_run: Draws a number for this process.

    Raises:
        ForeignDirectory: The directory is another node's, or of an unknown format.
        CorruptLog: The identity is damaged, or missing beside data (RC-50).
    """
    path = f"{directory}/{IDENTITY_NAME}"
    aside = ""
    identity = _read(fs, path) if fs.exists(path) else None
    if identity is not None and identity.set_aside:
        aside = _move_aside(fs, directory, identity.record.node_id)
        identity = None
    if identity is None:
        _check_empty(fs, directory)
        record = IdentityRecord(NodeId(new_node_id()), name, "", "", 0)
        identity = Identity(record, log_made=False, set_aside=False)
    elif identity.record.name != name:
        raise ForeignDirectory(
            f"{directory} belongs to the node named {identity.record.name!r}, and this one is named "
            f"{name!r}. Start it with that name, or give it a data directory of its own"
        )
    record = identity.record
    runs = (new_run(), *record.runs)[:RUNS_KEPT]
    record = record._replace(boot=record.boot + 1, runs=runs)
    identity = identity._replace(record=record)
    write_identity(fs, directory, identity)
    return OpenedIdentity(identity, not identity.log_made, aside)


def read_identity(fs: FileSystem, directory: str) -> Identity | None:
    """Read the identity without changing anything; None: there is none.

    Raises:
        CorruptLog: It is damaged.
        ForeignDirectory: It is of an unknown format.
    """
    path = f"{directory}/{IDENTITY_NAME}"
    return _read(fs, path) if fs.exists(path) else None


def write_identity(fs: FileSystem, directory: str, identity: Identity) -> None:
    """Replace the identity file, durably and atomically."""
    write_whole(fs, directory, IDENTITY_NAME, _encode(identity))


def _encode(identity: Identity) -> bytes:
    content: dict[str, Any] = {
        "format": FORMAT,
        **identity.record._asdict(),
        "log_made": identity.log_made,
        "set_aside": identity.set_aside,
    }
    return (
        json.dumps({"identity": content, "crc32": _checksum(content)}, indent=2) + "\n"
    ).encode()


def _checksum(content: Any) -> int:
    """Of the content's one canonical spelling, so that people may indent the file as they like."""
    return crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _read(fs: FileSystem, path: str) -> Identity:
    damaged = (
        f"{path}: damaged, so it is not known which node this directory belongs to. Bring the volume "
        f"back from a sound copy, or empty the directory to begin as a new node"
    )
    try:
        value = json.loads(read_whole(fs, path, IDENTITY_BYTES_MAX))
        content = value["identity"]
        checksum = value["crc32"]
        if checksum != _checksum(content):
            raise CorruptLog(damaged)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptLog(damaged) from error
    if not isinstance(content, dict):
        raise CorruptLog(damaged)
    if content.get("format") != FORMAT:
        raise ForeignDirectory(
            f"{path}: data format {content.get('format')}; this version of kvnode reads {FORMAT}. "
            f"Start the version that wrote it"
        )
    if any(type(content.get(name)) is not kind for name, kind in _FIELDS.items()):
        raise CorruptLog(damaged)
    peers, runs = _read_peers(content.get("peers", [])), content.get("runs", [])
    if peers is None or not isinstance(runs, list) or any(type(run) is not int for run in runs):
        raise CorruptLog(damaged)
    record = IdentityRecord(
        node_id=NodeId(content["node_id"]),
        name=content["name"],
        cluster_id=content["cluster_id"],
        pledge=content["pledge"],
        boot=content["boot"],
        runs=tuple(runs),
        peers=peers,
    )
    return Identity(record, content["log_made"], content["set_aside"])


def _read_peers(rows: Any) -> tuple[PeerBoot, ...] | None:
    """Read ``IdentityRecord.peers``, which the first builds did not write; None: it has another form."""
    if not isinstance(rows, list):
        return None
    found = []
    for row in rows:
        match row:
            case [str(node_id), int(boot), int(run)]:
                found.append(PeerBoot(NodeId(node_id), boot, run))
            case _:
                return None
    return tuple(found)


def _check_empty(fs: FileSystem, directory: str) -> None:
    """Data without an identity are somebody's, and were not lost by us (RC-50)."""
    found = [name for name in DATA_NAMES if fs.exists(f"{directory}/{name}")]
    if found:
        raise CorruptLog(
            f"{directory}/{IDENTITY_NAME}: missing, but there is {', '.join(found)} beside it. Bring "
            f"the file back, or move everything out of {directory} to begin as a new node"
        )


def _move_aside(fs: FileSystem, directory: str, node_id: str) -> str:
    """Move an incarnation's data out of the way; nothing is deleted (RC-51).

    The identity, which carries the mark, goes last: a crash in between is made good at the next start.
    """
    target = f"{directory}/set-aside-{node_id}"
    fs.mkdir(target)
    fs.sync_dir(directory)
    for name in (*DATA_NAMES, IDENTITY_NAME):
        if fs.exists(f"{directory}/{name}"):
            fs.rename(f"{directory}/{name}", f"{target}/{name}")
            fs.sync_dir(target)
            fs.sync_dir(directory)
    return target

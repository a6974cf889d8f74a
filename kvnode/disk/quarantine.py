"""Damaged data: remembered, and set aside when the operator allows it (RC-71, decision 0008).

Damage found at start is found again at the next one. Damage found while running may not be: RocksDB
opens happily on a table whose middle nobody has read yet. So that one is written down, in a file whose
presence keeps the node from starting (a fence), until the data were set aside or an operator removed it.

Setting aside moves everything that belongs to the incarnation into one directory; nothing is deleted.
The mark is written first and moved last, so that a crash in between is made good by doing it again.
There is one such directory: damage that comes back is a failing disk, not an accident, and it would fill the
volume with copies.
"""

from __future__ import annotations

from kvnode.disk.files import FileSystem
from kvnode.disk.identity import DATA_NAMES, IDENTITY_NAME, read_identity
from kvnode.disk.whole_file import read_whole, write_whole
from kvnode.errors import CorruptLog, DiskFailed, KvnodeError

MARK_NAME = "DAMAGED"
MARK_BYTES_MAX = 64 << 10
SET_ASIDE_PREFIX = "set-aside-"
TARGET_NAME = f"{SET_ASIDE_PREFIX}damaged"


def mark(fs: FileSystem, directory: str, text: str) -> None:
    """Remember damage. The first text stays: what follows is often a consequence."""
    if not fs.exists(f"{directory}/{MARK_NAME}"):
        data = text.encode("utf-8", "replace")[: MARK_BYTES_MAX - 1]
        write_whole(fs, directory, MARK_NAME, data + b"\n")


def check_mark(fs: FileSystem, directory: str) -> None:
    """Refuse a directory in which damage was found.

    Raises:
        CorruptLog: With what was found then.
    """
    path = f"{directory}/{MARK_NAME}"
    if fs.exists(path):
        text = read_whole(fs, path, MARK_BYTES_MAX).decode("utf-8", "replace").strip()
        raise CorruptLog(f"{path}: damage was found before: {text}")


def check_room(fs: FileSystem, directory: str) -> None:
    """Make sure that nothing was set aside here for damage before.

    Raises:
        DiskFailed: Something was; the text says what to do.
    """
    target = f"{directory}/{TARGET_NAME}"
    if fs.exists(f"{target}/{MARK_NAME}"):
        raise DiskFailed(
            f"{target} holds damaged data already, so this volume was damaged twice. Check the disk; then "
            f"remove that directory to let the node heal itself once more"
        )


def set_damaged_aside(fs: FileSystem, directory: str, text: str) -> str:
    """Move an incarnation's data away, whatever is left of it. Returns where to.

    Only with the directory's lock in hand, and only when the cluster can do without them.

    Args:
        fs: Where the directory is.
        directory: The data directory.
        text: What was found.
    """
    check_room(fs, directory)
    mark(fs, directory, text)
    target = f"{directory}/{TARGET_NAME}"
    fs.mkdir(target)
    fs.sync_dir(directory)
    for name in (*DATA_NAMES, IDENTITY_NAME, MARK_NAME):
        if fs.exists(f"{directory}/{name}"):
            fs.rename(f"{directory}/{name}", f"{target}/{name}")
            fs.sync_dir(target)
            fs.sync_dir(directory)
    return target


def has_set_aside(fs: FileSystem, directory: str) -> bool:
    """Whether an earlier incarnation's data lie here: this node was a member of some cluster."""
    return any(name.startswith(SET_ASIDE_PREFIX) for name in fs.listdir(directory))


def known_cluster(fs: FileSystem, directory: str) -> str:
    """The cluster that the directory belongs to, as far as that can still be read; else empty."""
    try:
        identity = read_identity(fs, directory)
    except KvnodeError:
        return ""
    return identity.record.cluster_id if identity is not None else ""

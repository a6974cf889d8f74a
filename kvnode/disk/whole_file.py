"""Small files that are replaced whole (RC-9).

A reader, and a crash at any point, see the old content or the new one, never a mixture: the new
content is written beside the file, synced, renamed over it, and the directory is synced.
"""

from __future__ import annotations

from kvnode.disk.files import FileSystem
from kvnode.errors import CorruptLog, DiskFull

TEMPORARY = ".tmp"
"""Ending of files that are not finished; whoever finds one at start removes it."""


def write_whole(fs: FileSystem, directory: str, name: str, data: bytes) -> None:
    """Replace ``directory/name`` by ``data``, durably.

    Raises:
        DiskFull: The old content is still there and the half-written copy was removed.
        DiskFailed: Old or new content; a restart decides (RC-8).
    """
    final = f"{directory}/{name}"
    temporary = final + TEMPORARY
    fs.unlink(temporary)
    file = fs.create(temporary)
    try:
        try:
            file.pwrite(data, 0)
            file.sync()
        finally:
            file.close()
    except DiskFull:
        fs.unlink(temporary)
        raise
    fs.rename(temporary, final)
    fs.sync_dir(directory)


def read_whole(fs: FileSystem, path: str, bytes_max: int) -> bytes:
    """Return a file's content.

    Raises:
        CorruptLog: It is longer than ``bytes_max``, which no such file of ours can be.
    """
    file = fs.open(path)
    try:
        data = file.pread(bytes_max + 1, 0)
    finally:
        file.close()
    if len(data) > bytes_max:
        raise CorruptLog(f"{path}: longer than {bytes_max} bytes, which this file cannot be")
    return data

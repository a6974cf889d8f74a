"""Request bodies that are too large for memory: spooled to a temporary file, chunk by chunk.

The file has no name, so nothing is left of it when the process dies. It lies on the data volume when the
agent says so (``spool_dir``): a pod's root file system is read-only. There it must not use up the last
space, which the log needs: free space is looked at before every piece.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, NamedTuple

from aiohttp import web

from kvnode.errors import DiskNearlyFull, Overloaded
from kvnode.http import errors
from kvnode.http.messages import TEXT_TYPE, Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from kvnode.http.context import HttpSettings
    from kvnode.http.gate import Gate

PIECE_BYTES = 1 << 20
"""Gathered in memory before it is written."""
_SLOW = Response(408, TEXT_TYPE, b"the request's body did not arrive in time; nothing was changed")
_BROKEN = Response(400, TEXT_TYPE, b"the request's body is malformed; nothing was changed")


class Upload(NamedTuple):
    """A request's body in a file, which stands at its beginning and is closed after the request."""

    file: IO[bytes]
    size: int
    """Bytes."""


def open_spool(directory: str) -> IO[bytes]:
    """Open a temporary file without a name. Blocks."""
    if directory:
        os.makedirs(directory, exist_ok=True)
    return tempfile.TemporaryFile(dir=directory or None)


class Uploads:
    """Receives such bodies, a few at a time."""

    def __init__(self, settings: HttpSettings, gate: Gate) -> None:
        """Remember the bounds."""
        self._settings = settings
        self._gate = gate
        self._open = 0

    @asynccontextmanager
    async def receive(
        self, request: web.BaseRequest, *, v1: bool
    ) -> AsyncGenerator[Upload | Response, None]:
        """Receive the body into a file, or say why not. The file is closed at the end of the block."""
        settings = self._settings
        if self._open >= settings.uploads_max:
            busy = Overloaded(f"{settings.uploads_max} uploads are in progress")
            yield errors.refuse(busy, v1=v1, write=True)
            return
        self._open += 1
        try:
            try:
                file = await asyncio.to_thread(open_spool, settings.spool_dir)
            except OSError as error:
                yield _no_space(str(error), v1)
                return
            with file:
                yield await self._fill(request, file, v1)
        finally:
            self._open -= 1

    async def _fill(self, request: web.BaseRequest, file: IO[bytes], v1: bool) -> Upload | Response:
        limit = self._settings.upload_bytes_max
        gate = self._gate
        size = 0
        pieces: list[bytes] = []
        gathered = 0
        try:
            while chunk := await self._next(request):
                size += len(chunk)
                gathered += len(chunk)
                gate.body_bytes += len(chunk)
                if size > limit:
                    return errors.too_large(None, limit, "upload_bytes_max", v1=v1)
                pieces.append(chunk)
                if gathered >= PIECE_BYTES:
                    await asyncio.to_thread(self._write, file, b"".join(pieces))
                    gate.body_bytes -= gathered
                    pieces, gathered = [], 0
            await asyncio.to_thread(self._write, file, b"".join(pieces))
            file.seek(0)
        except TimeoutError:
            return _SLOW
        except web.RequestPayloadError:
            return _BROKEN
        except DiskNearlyFull as error:
            return errors.refuse(error, v1=v1, write=True)
        except OSError as error:
            return _no_space(str(error), v1)
        finally:
            gate.body_bytes -= gathered
        return Upload(file, size)

    async def _next(self, request: web.BaseRequest) -> bytes:
        """Return some bytes; a body may be long, but must not stop coming."""
        async with asyncio.timeout(self._settings.receive_timeout_s):
            return await request.content.readany()

    def _write(self, file: IO[bytes], piece: bytes) -> None:
        """Append. Blocks, so it runs in a thread."""
        if self._settings.spool_dir:
            volume = os.statvfs(self._settings.spool_dir)
            free = volume.f_bavail * volume.f_frsize - len(piece)
            if free < self._settings.spool_reserve_bytes:
                raise DiskNearlyFull(f"there is no room for the upload, {free >> 20} MiB are free")
        file.write(piece)


def _no_space(reason: str, v1: bool) -> Response:
    return errors.refuse(DiskNearlyFull(f"cannot spool the upload: {reason}"), v1=v1, write=True)

"""Whole archives through HTTP: streams, so that neither end holds one in memory."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import IO, Any, Final, NamedTuple

import aiohttp
from yarl import URL

from kvnode.client.failures import from_answer, from_exception
from kvnode.errors import KvnodeError, PeerUnreachable

PIECE_BYTES: Final = 256 << 10
PATH: Final = "/v1/snapshot"


class Connection(NamedTuple):
    """What a transfer needs of its client."""

    session: aiohttp.ClientSession
    bases: Sequence[URL]
    """Tried in turn until one can be connected to."""
    timeout: aiohttp.ClientTimeout
    tls: Any
    """``ssl`` of an aiohttp request."""
    server_name: str | None


async def save(connection: Connection, sink: Callable[[bytes], None], *, stale: bool) -> int:
    """Receive an archive; return the index of its state. See ``KvnodeClient.save_snapshot``."""
    query = {"stale": ""} if stale else {}

    async def receive(response: aiohttp.ClientResponse) -> int:
        async for piece in response.content.iter_chunked(PIECE_BYTES):
            sink(piece)
        return _number(response.headers.get("X-Consul-Index"))

    return await _anywhere(connection, "GET", query, lambda: None, receive)


async def restore(
    connection: Connection, archive: IO[bytes], size: int, progress: Callable[[int], None]
) -> int:
    """Send an archive; return the index of the restore. See ``KvnodeClient.restore_snapshot``."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        archive.seek(0)
        while data := await asyncio.to_thread(archive.read, PIECE_BYTES):
            yield data
            progress(len(data))

    async def receive(response: aiohttp.ClientResponse) -> int:
        await response.read()
        return _number(response.headers.get("X-Kvnode-Index"))

    length = {"Content-Length": str(size)}
    return await _anywhere(connection, "PUT", {}, pieces, receive, length)


async def _anywhere(
    connection: Connection,
    method: str,
    query: dict[str, str],
    body: Callable[[], Any],
    receive: Callable[[aiohttp.ClientResponse], Any],
    headers: dict[str, str] | None = None,
) -> int:
    """Ask the first node that can be connected to, once."""
    failure: KvnodeError = PeerUnreachable("no address given", took_effect="no")
    for base in connection.bases:
        try:
            async with connection.session.request(
                method,
                base.with_path(PATH).with_query(query),
                data=body(),
                headers=headers,
                timeout=connection.timeout,
                allow_redirects=False,
                ssl=connection.tls,
                server_hostname=connection.server_name if base.scheme == "https" else None,
            ) as response:
                if response.status != 200:
                    raise from_answer(response.status, await response.read())
                index: int = await receive(response)
                return index
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = from_exception(error, str(base))
            if not isinstance(failure, PeerUnreachable) or failure.took_effect != "no":
                raise failure from error
    raise failure


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


class SnapshotCalls(ABC):
    """The client's part about snapshots."""

    @abstractmethod
    def _streaming(self, timeout_s: float) -> Connection:
        """Say how to ask for something that takes ``timeout_s`` in all."""

    async def save_snapshot(
        self, sink: Callable[[bytes], None], *, stale: bool = False, timeout_s: float = 600.0
    ) -> int:
        """Receive everything as Consul's snapshot archive, piece by piece, and return its index.

        Args:
            sink: Called with each piece, in order. What it got before an error is worth nothing.
            stale: The asked node's own state, also without a leader.
            timeout_s: For all of it.
        """
        return await save(self._streaming(timeout_s), sink, stale=stale)

    async def restore_snapshot(
        self,
        archive: IO[bytes],
        size: int,
        *,
        progress: Callable[[int], None] = lambda _size: None,
        timeout_s: float = 600.0,
    ) -> int:
        """Replace everything in the cluster by what an archive holds; return at which index.

        Args:
            archive: Can be sought; read from its beginning.
            size: Its bytes.
            progress: Called with the number of bytes sent just now.
            timeout_s: For all of it.
        """
        return await restore(self._streaming(timeout_s), archive, size, progress)

"""Following a change feed for as long as one likes, over all nodes of the cluster.

A ``ChangeFeed`` keeps one thing, its ``position``: the id of the last event. Whenever a stream ends,
breaks, falls silent or comes from a node that has lost its leader, it goes on at the next address from
there. So what it gives out has no gap and nothing twice, whatever happens to nodes and connections. It ends
only by ``Compacted``: it was away for longer than changes are kept.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from ssl import SSLContext
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from kvnode.client.events import Event, EventParser
from kvnode.client.failures import from_answer, from_exception
from kvnode.client.results import Change, parse_change, parse_entry
from kvnode.errors import Compacted, NotNow, PeerUnreachable, RemoteProtocolError

SILENCE_S: Final = 50.0
"""A node that says nothing for three heartbeats is gone."""
_LEADERLESS_MAX: Final = 2
"""So many heartbeats without a leader, and the others are asked: this node may be cut off alone."""
_PAUSE_S: Final = 0.1
_PAUSE_MAX_S: Final = 3.0


class ChangeFeed:
    """The changes under a prefix: iterate over it, ``async for change in feed``.

    ``KvnodeClient.changes`` makes them. Closed by ``aclose``, or as a context manager.

    Attributes:
        position: The id of the last event, heartbeats included: keep it, and give it as ``since`` to a
            later feed. Empty before the first. It belongs to everything that was given out before.
        ready: Whether everything up to the beginning has been given out.
        reconnects: How often the feed went on at another connection.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        ssl: SSLContext | bool,
        bases: Sequence[URL],
        prefix: str,
        *,
        since: str | int | None,
        initial: bool,
        stale: bool,
        connect_timeout_s: float,
        silence_s: float = SILENCE_S,
        server_name: str | None = None,
    ) -> None:
        """Remember where to begin; nothing is connected yet. See ``KvnodeClient.changes``."""
        self._session = session
        self._ssl = ssl
        self._server_name = server_name
        self._bases = bases
        self._path = "/v1/watch/" + quote(prefix, safe="/")
        wanted = (("initial", initial), ("stale", stale))
        self._query = [(name, "") for name, is_wanted in wanted if is_wanted]
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_s, sock_read=silence_s
        )
        self._changes = self._run()
        self.position = "" if since is None else str(since)
        self.ready = False
        self.reconnects = 0

    def __aiter__(self) -> Self:
        """Itself: there is one place in the feed."""
        return self

    async def __anext__(self) -> Change:
        """The next change.

        Raises:
            Compacted: The changes after ``position`` are not kept any more.
            BadRequest: The server refuses to begin.
        """
        return await anext(self._changes)

    async def __aenter__(self) -> Self:
        """Nothing is needed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the stream."""
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream. Idempotent."""
        await self._changes.aclose()

    # -- the loop -----------------------------------------------------------------------------------

    async def _run(self) -> AsyncGenerator[Change, None]:
        number = 0
        pause_s = _PAUSE_S
        while True:
            base = self._bases[number % len(self._bases)]
            try:
                async with aclosing(self._follow(base)) as changes:
                    async for change in changes:
                        pause_s = _PAUSE_S
                        yield change
            except NotNow:
                pass  # every failure may be tried again: nothing changes by asking
            number += 1
            self.reconnects += 1
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(_PAUSE_MAX_S, pause_s * 2)

    async def _follow(self, base: URL) -> AsyncGenerator[Change, None]:
        """Give out what one connection brings; return or raise ``NotNow`` when it ends."""
        url = base.with_path(self._path, encoded=True).with_query(self._query)
        headers = {"Last-Event-ID": self.position} if self.position else {}
        try:
            async with self._session.get(
                url,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
                ssl=self._ssl,
                server_hostname=self._server_name if url.scheme == "https" else None,
            ) as response:
                if response.status != 200:
                    raise from_answer(response.status, await response.read())
                parser = EventParser()
                leaderless = 0
                async for data in response.content.iter_any():
                    for event in parser.feed(data):
                        change = self._take(event)
                        if change is not None:
                            yield change
                        lost = event.comment.startswith("no leader")
                        leaderless = leaderless + 1 if lost else 0
                    if leaderless >= _LEADERLESS_MAX:
                        return
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = from_exception(error, str(base))
            if isinstance(failure, RemoteProtocolError):
                raise PeerUnreachable(str(failure)) from error
            raise failure from error

    def _take(self, event: Event) -> Change | None:
        """Note where we are; return the change, if it is one."""
        change = None
        if event.name in {"set", "delete"}:
            change = parse_change(event.id, event.data)
        elif event.name == "entry":
            change = parse_entry(event.data)
        elif event.name == "compacted":
            raise _compacted(event.data)
        self.ready |= event.name == "ready"
        self.position = event.id or self.position
        return change


def _compacted(data: str) -> Compacted:
    try:
        document = json.loads(data)
        return Compacted(int(document["Index"]), int(document["Oldest"]), int(document["Newest"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteProtocolError(f"not a last event: {data[:200]!r}") from error

"""``KvnodeClient``: the routes as methods, over a loop that knows when it may try again."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from kvnode.client import results
from kvnode.client.failures import from_answer, from_exception
from kvnode.client.feed import ChangeFeed
from kvnode.client.results import Answer, History, KVPair, Member, Page, RaftPeer
from kvnode.client.snapshots import Connection, SnapshotCalls
from kvnode.client.tls import ClientTls
from kvnode.errors import BadRequest, KvnodeError, NotNow, PeerUnreachable

Consistency = Literal["default", "consistent", "stale"]

_PAUSE_S = 0.1
_PAUSE_MAX_S = 2.0


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class KvnodeClient(SnapshotCalls):
    """A client of one cluster. Use it as an async context manager, from one event loop.

    Args:
        addresses: Base addresses of one or more nodes, ``http://host:port`` or ``host:port``. The first
            is preferred; the others are asked while it cannot be reached.
        timeout_s: How long one call may take in all, tries included. Above 0.
        connect_timeout_s: How long one try may take to connect.
        patient: Whether to go on until ``timeout_s`` while no address can be connected to; else one round
            over the addresses is all.
        tls: How to prove servers at ``https://`` addresses, and oneself; None: by the system's CAs.
        idempotent: Send writes of keys with an ``Idempotency-Key``, and so try again also when the outcome of
            a try is unknown: kvnode executes them once. A server that is no kvnode is found out before, and
            not asked again.

    Every method raises, besides what it names: ``BadRequest`` (the caller's fault, nothing happened),
    ``NotNow`` and its kin (look at ``took_effect``), ``RemoteProtocolError`` (not a kvnode at all).
    """

    def __init__(
        self,
        addresses: str | Sequence[str] = "http://127.0.0.1:8500",
        *,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 3.0,
        patient: bool = True,
        tls: ClientTls | None = None,
        idempotent: bool = True,
    ) -> None:
        """Keep the addresses; nothing is connected yet.

        Raises:
            BadRequest: An address is none, or a file of ``tls`` cannot be used.
        """
        given = [addresses] if isinstance(addresses, str) else list(addresses)
        if not given:
            raise BadRequest("no address given")
        self._bases = [base_url(address) for address in given]
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._patient = patient
        secure = any(base.scheme == "https" for base in self._bases)
        # Read once: a client that lives longer than its certificate is made anew.
        self._ssl = tls.context() if secure and tls is not None else True
        self._server_name = (tls.server_name if tls is not None else "") or None
        self._idempotent = idempotent
        self._is_kvnode: bool | None = None
        """Whether the servers know idempotency keys; None: nobody has answered yet."""
        self._preferred = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self.close()

    async def close(self) -> None:
        """Close every connection. Idempotent; a later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- keys ---------------------------------------------------------------------------------------

    async def get(
        self, key: str, *, consistency: Consistency = "default", ttl: bool = False
    ) -> KVPair | None:
        """Return the pair, or None when there is no such key; with ``ttl`` how long it lives, too."""
        return (await self.read(key, consistency=consistency, ttl=ttl)).value

    async def read(
        self,
        key: str,
        *,
        consistency: Consistency = "default",
        index: int | None = None,
        wait_s: float = 0,
        ttl: bool = False,
    ) -> Answer[KVPair | None]:
        """Return the pair with the answer's index.

        Args:
            key: The key.
            consistency: How fresh; ``stale`` asks the node's own state.
            index: Wait until the key's index is above this one (blocking query); None: do not wait.
            wait_s: How long to wait, at most 600; 0: the server's default, 300.
            ttl: Ask how long the key lives.
        """
        query = _consistency(consistency) + _waiting(index, wait_s) + [("ttl", "")] * ttl
        reply = await self._ask(
            "GET",
            _kv(key),
            query,
            safe=True,
            wait_s=_held_s(index, wait_s),
            missing_is_an_answer=True,
        )
        pairs = results.parse_pairs(reply.body) if reply.status == 200 else ()
        return _answer(pairs[0] if pairs else None, reply)

    async def list(
        self, prefix: str = "", *, consistency: Consistency = "default"
    ) -> tuple[KVPair, ...]:
        """Return every pair whose key begins with ``prefix``, in byte order; empty when none does."""
        query = [("recurse", ""), *_consistency(consistency)]
        reply = await self._ask("GET", _kv(prefix), query, safe=True, missing_is_an_answer=True)
        return results.parse_pairs(reply.body) if reply.status == 200 else ()

    async def keys(
        self, prefix: str = "", *, separator: str = "", consistency: Consistency = "default"
    ) -> tuple[str, ...]:
        """Return the keys under ``prefix`` in byte order, cut after the first ``separator`` that follows
        it, each cut key once.
        """
        query = [("keys", ""), *_consistency(consistency)]
        if separator:
            query.append(("separator", separator))
        reply = await self._ask("GET", _kv(prefix), query, safe=True, missing_is_an_answer=True)
        return results.parse_keys(reply.body) if reply.status == 200 else ()

    async def history(self, key: str, *, limit: int = 20) -> History:
        """Return a key's newest revisions, at most ``limit`` (1 to 1000); none: nothing is known of it."""
        query = [("history", ""), ("limit", str(limit))]
        reply = await self._ask(
            "GET", _kv(_named(key)), query, safe=True, missing_is_an_answer=True
        )
        return History(
            revisions=results.parse_revisions(reply.body) if reply.status == 200 else (),
            complete=reply.headers.get("X-Kvnode-More") != "true",
            oldest_index=_number(reply.headers.get("X-Kvnode-Oldest-Index")),
        )

    async def get_as_of(self, key: str, index: int) -> KVPair | None:
        """Return the pair as it was when ``index`` had been applied, or None when there was none.

        Raises:
            Compacted: The index is outside of the window of changes that are kept.
        """
        query = [("as_of", str(index))]
        reply = await self._ask(
            "GET", _kv(_named(key)), query, safe=True, missing_is_an_answer=True
        )
        pairs = results.parse_pairs(reply.body) if reply.status == 200 else ()
        return pairs[0] if pairs else None

    async def roll_back(self, key: str, index: int) -> bool:
        """Write what a key was at ``index``, value and flags; delete it if there was none then.

        Who holds it goes on to hold it; LockIndex becomes 0, as by any plain write.

        Returns:
            False when the key was changed by somebody else meanwhile; nothing was written then.

        Raises:
            Compacted: As ``get_as_of``.
        """
        then, now = await self.get_as_of(key, index), await self.get(key)
        if then is None:
            return now is None or await self.delete(key, cas=now.modify_index)
        cas = 0 if now is None else now.modify_index
        return await self.put(key, then.value, flags=then.flags, cas=cas)

    def changes(
        self,
        prefix: str = "",
        *,
        since: str | int | None = None,
        initial: bool = False,
        stale: bool = False,
    ) -> ChangeFeed:
        """Follow every change under a prefix: each once, in order, over all addresses, for ever.

            async with client.changes("app/") as feed:
                async for change in feed:
                    ...  # change.key, change.new, change.old; keep feed.position to go on later

        Args:
            prefix: Empty for all keys.
            since: Go on behind this index or event id; None: from now on.
            initial: First give out what there is (``Change.by`` is ``initial``). If that breaks off it
                begins again, so that keys may come twice before ``feed.ready``. Not with ``since``.
            stale: Begin at a node's own state, also without a leader.

        Raises (while iterating): ``Compacted``, ``BadRequest``. Anything else is tried again.
        """
        _kv(prefix)
        return ChangeFeed(
            self._open(),
            self._ssl,
            self._bases,
            prefix,
            since=since,
            initial=initial and since is None,
            stale=stale,
            connect_timeout_s=self._connect_timeout_s,
            server_name=self._server_name,
        )

    async def page(
        self,
        prefix: str = "",
        *,
        limit: int,
        after: str | None = None,
        reverse: bool = False,
        consistency: Consistency = "default",
    ) -> Page[KVPair]:
        """Return at most ``limit`` pairs behind the key ``after``, in byte order or backwards.

        Each page is of the moment at which it was read. Only kvnode has pages.
        """
        query = [("recurse", ""), *_consistency(consistency), *_paging(limit, after, reverse)]
        reply = await self._ask("GET", _kv(prefix), query, safe=True)
        return Page(items=results.parse_pairs(reply.body), next_after=_next_after(reply))

    async def key_page(
        self,
        prefix: str = "",
        *,
        limit: int,
        after: str | None = None,
        reverse: bool = False,
        separator: str = "",
        consistency: Consistency = "default",
    ) -> Page[str]:
        """Return at most ``limit`` keys as ``keys`` does, behind ``after``."""
        query = [("keys", ""), *_consistency(consistency), *_paging(limit, after, reverse)]
        if separator:
            query.append(("separator", separator))
        reply = await self._ask("GET", _kv(prefix), query, safe=True)
        return Page(items=results.parse_keys(reply.body), next_after=_next_after(reply))

    async def count(
        self, prefix: str = "", *, separator: str = "", consistency: Consistency = "default"
    ) -> int:
        """Return how many keys begin with ``prefix``; with ``separator``, how many cut ones."""
        query = [("keys", ""), ("count", ""), *_consistency(consistency)]
        if separator:
            query.append(("separator", separator))
        reply = await self._ask("GET", _kv(prefix), query, safe=True)
        return results.parse_number(reply.body)

    async def put(
        self,
        key: str,
        value: bytes | str,
        *,
        flags: int = 0,
        cas: int | None = None,
        ttl_s: float | None = None,
    ) -> bool:
        """Store a value.

        Args:
            key: Not empty, no leading slash.
            value: Bytes, or text that is stored as UTF-8.
            flags: Any number below 2^64; a write without flags clears them.
            cas: Write only if the pair's ``modify_index`` is this; 0: only if there is no such key.
            ttl_s: For how many seconds the key lives; None: until it is deleted. Only kvnode has this.

        Returns:
            False when ``cas`` did not fit; nothing was written then.
        """
        query = [("flags", str(flags))] if flags else []
        query += _cas(cas) + _ttl(ttl_s)
        body = value.encode() if isinstance(value, str) else value
        reply = await self._ask("PUT", _kv(_named(key)), query, body=body, once=True)
        return results.parse_truth(reply.body)

    async def add(
        self, key: str, delta: int = 1, *, cas: int | None = None, ttl_s: float | None = None
    ) -> int | None:
        """Add to the decimal number that a key holds; a missing key counts as 0. Only kvnode has this.

        Args:
            key: Not empty, no leading slash.
            delta: From -2^63 to 2^63-1, and so must the result be.
            cas: As of ``put``.
            ttl_s: For how many seconds the key lives from now on; None: its time goes on as it was.

        Returns:
            The new number; None when ``cas`` did not fit.

        Raises:
            BadRequest: The value is no number, or the result is out of range; nothing was changed.
        """
        query = [("add", str(delta)), *_cas(cas), *_ttl(ttl_s)]
        reply = await self._ask("PUT", _kv(_named(key)), query, once=True)
        return None if reply.body.strip() == b"false" else results.parse_number(reply.body)

    async def copy(
        self, source: str, target: str, *, recurse: bool = False, overwrite: bool = False
    ) -> int:
        """Copy a key, or all that begin with ``source``, in one step. Only kvnode has this.

        Returns:
            How many keys were copied.

        Raises:
            BadRequest: There is no such source, a target exists and ``overwrite`` is not given, or it is too
                much for one step; nothing was changed.
        """
        return await self._transfer("copy", source, target, recurse, overwrite)

    async def move(
        self, source: str, target: str, *, recurse: bool = False, overwrite: bool = False
    ) -> int:
        """As ``copy``, and delete the source in the same step. Locked keys are not moved."""
        return await self._transfer("move", source, target, recurse, overwrite)

    async def _transfer(
        self, verb: str, source: str, target: str, recurse: bool, overwrite: bool
    ) -> int:
        query = [(verb, source)]
        query += [(name, "") for name, on in (("recurse", recurse), ("overwrite", overwrite)) if on]
        reply = await self._ask("PUT", _kv(target), query, once=True)
        return _number(reply.headers.get("X-Kvnode-Count"))

    async def delete(self, key: str, *, cas: int | None = None) -> bool:
        """Delete a key; True also when there was none.

        Returns:
            False when ``cas`` did not fit; nothing was deleted then.
        """
        reply = await self._ask("DELETE", _kv(_named(key)), _cas(cas), once=True)
        return results.parse_truth(reply.body)

    async def delete_tree(self, prefix: str) -> bool:
        """Delete every key that begins with ``prefix``; the empty prefix deletes everything."""
        reply = await self._ask("DELETE", _kv(prefix), [("recurse", "")], once=True)
        return results.parse_truth(reply.body)

    # -- the cluster --------------------------------------------------------------------------------

    async def leader(self) -> str:
        """Return the leader's peer address, ``host:port``; empty while there is none."""
        reply = await self._ask("GET", "/v1/status/leader", safe=True)
        return results.parse_text(reply.body)

    async def members(self) -> tuple[Member, ...]:
        """Return the nodes that the asked one knows, by name."""
        reply = await self._ask("GET", "/v1/agent/members", safe=True)
        return results.parse_members(reply.body)

    async def raft_peers(self, *, stale: bool = False) -> tuple[RaftPeer, ...]:
        """Return the Raft group's members, by name; ``stale`` works without a leader."""
        query = [("stale", "")] if stale else []
        reply = await self._ask("GET", "/v1/operator/raft/configuration", query, safe=True)
        return results.parse_peers(reply.body)

    async def transfer_leadership(self, node_id: str | None = None) -> None:
        """Hand leadership to a voter, or to the most advanced one."""
        query = [] if node_id is None else [("id", node_id)]
        await self._ask("POST", "/v1/operator/raft/transfer-leader", query)

    async def remove_peer(
        self, *, node_id: str = "", address: str = "", readmit_s: float = 0
    ) -> None:
        """Remove a member for good, by id or by peer address: exactly one of the two. No node of its name is
        let in again for ``readmit_s``, at most 3600.
        """
        query = [(name, given) for name, given in (("id", node_id), ("address", address)) if given]
        if readmit_s:
            query.append(("readmit-after", f"{round(readmit_s * 1000)}ms"))
        await self._ask("DELETE", "/v1/operator/raft/peer", query)

    def _streaming(self, timeout_s: float) -> Connection:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=self._connect_timeout_s)
        return Connection(self._open(), self._bases, timeout, self._ssl, self._server_name)

    # -- the loop -----------------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: bytes | None = None,
        safe: bool = False,
        once: bool = False,
        wait_s: float = 0,
        missing_is_an_answer: bool = False,
        deadline: float | None = None,
    ) -> _Reply:
        """Ask until there is an answer, trying again only what may be tried again.

        Args:
            method: HTTP method.
            path: Encoded path.
            query: Parameters in order.
            body: Body of a write.
            safe: Nothing changes by asking, so every failure may be tried again.
            once: The route takes an ``Idempotency-Key``, so a kvnode may be asked again after any failure.
            wait_s: How long the server was asked to hold the request.
            missing_is_an_answer: 404 means "no such key" here.
            deadline: Loop time at which to give up; None: as the client was told.
        """
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self._timeout_s + wait_s
        once = once and self._idempotent
        headers = {"Idempotency-Key": uuid.uuid4().hex} if once else {}
        pause_s = _PAUSE_S
        unreachable = 0
        doubtful = False
        while True:
            base = self._bases[self._preferred]
            url = base.with_path(path, encoded=True).with_query(list(query))
            try:
                reply = await self._once(method, url, body, headers, deadline - loop.time())
                if reply.status < 300 or (reply.status == 404 and missing_is_an_answer):
                    return reply
                raise from_answer(reply.status, reply.body)
            except NotNow as error:
                unreachable += isinstance(error, PeerUnreachable)
                if not self._patient and unreachable >= len(self._bases):
                    raise
                pause_s = min(_PAUSE_MAX_S, pause_s * 2) * random.uniform(0.5, 1.0)
                doubtful = doubtful or error.took_effect == "unknown"
                if doubtful:
                    error.took_effect = "unknown"  # whatever became of this last try
                again = safe or not doubtful or (once and self._is_kvnode is not False)
                if not again or loop.time() + pause_s >= deadline:
                    raise
                if doubtful and not safe and not await self._knows_keys(deadline):
                    raise
                await asyncio.sleep(pause_s)
                if loop.time() >= deadline:  # late: aiohttp would take nothing left for no limit
                    raise
            self._preferred = (self._preferred + 1) % len(self._bases)

    async def _knows_keys(self, deadline: float) -> bool:
        """Whether the servers execute a write with an ``Idempotency-Key`` once, as kvnodes do."""
        if self._is_kvnode is None:
            try:
                await self._ask("GET", "/v1/status/leader", safe=True, deadline=deadline)
            except KvnodeError:
                return False
        return self._is_kvnode is True

    async def _once(
        self,
        method: str,
        url: URL,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> _Reply:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=self._connect_timeout_s)
        try:
            async with self._open().request(
                method,
                url,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                ssl=self._ssl,
                server_hostname=self._server_name if url.scheme == "https" else None,
            ) as response:
                self._is_kvnode = "X-Kvnode-Node" in response.headers
                return _Reply(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise from_exception(error, str(url.origin())) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            session = aiohttp.ClientSession()
            # aiohttp by itself sends PUT and DELETE a second time when a kept connection breaks,
            # although the first may have been executed. A test watches that it does not.
            session._retry_connection = False
            self._session = session
        return self._session


def base_url(address: str) -> URL:
    """Parse ``host:port`` or ``http://host:port``, as in ``CONSUL_HTTP_ADDR``.

    Raises:
        BadRequest: It is neither.
    """
    text = address if "://" in address else f"http://{address}"
    try:
        url = URL(text)
    except ValueError as error:
        raise BadRequest(f"{address!r}: not an address") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise BadRequest(f"{address!r}: not an address such as http://localhost:8500")
    return url.origin()


def _kv(key: str) -> str:
    if key.startswith("/"):
        raise BadRequest(f"Invalid key. Key must not begin with a '/': {key}")
    return "/v1/kv/" + quote(key, safe="/")


def _named(key: str) -> str:
    if not key:
        raise BadRequest("Missing key name")
    return key


def _consistency(consistency: Consistency) -> list[tuple[str, str]]:
    return [] if consistency == "default" else [(consistency, "")]


def _cas(cas: int | None) -> list[tuple[str, str]]:
    return [] if cas is None else [("cas", str(cas))]


def _ttl(ttl_s: float | None) -> list[tuple[str, str]]:
    return [] if ttl_s is None else [("ttl", f"{round(ttl_s * 1000)}ms")]


def _paging(limit: int, after: str | None, reverse: bool) -> list[tuple[str, str]]:
    query = [("limit", str(limit))]
    if after is not None:
        query.append(("after", after))
    return [*query, ("reverse", "")] if reverse else query


def _next_after(reply: _Reply) -> str | None:
    shown = reply.headers.get("X-Kvnode-Next-After")
    return None if shown is None else unquote(shown, errors="surrogateescape")


def _waiting(index: int | None, wait_s: float) -> list[tuple[str, str]]:
    if index is None:
        return []
    wait = [("wait", f"{round(wait_s * 1000)}ms")] if wait_s else []
    return [("index", str(index)), *wait]


def _held_s(index: int | None, wait_s: float) -> float:
    """How long the server may hold a blocking query: the wait and up to a sixteenth more (RC-65)."""
    return 0.0 if index is None else (wait_s or 300.0) * 17 / 16


def _answer(value: KVPair | None, reply: _Reply) -> Answer[KVPair | None]:
    return Answer(
        value=value,
        index=_number(reply.headers.get("X-Consul-Index")),
        known_leader=reply.headers.get("X-Consul-KnownLeader") == "true",
        last_contact_ms=_number(reply.headers.get("X-Consul-LastContact")),
        node=reply.headers.get("X-Kvnode-Node", ""),
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0

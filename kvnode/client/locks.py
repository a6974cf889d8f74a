"""Locks for whoever runs as long as it holds one: a session that is kept alive, a mutex, a semaphore.

The keys, their flags and the document of the semaphore are those of Consul's own Go client and of
``consul lock`` (spec §13), so that both exclude each other.

What is promised is what a lease can promise: ``lost`` returns before anybody else can have got the lock, as
far as the clocks of this process and of the leader run alike. A process that is paused does not hear of
it: let whatever is protected check a fencing number (``docs/http.md``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final, Protocol
from urllib.parse import quote

from kvnode.client.client import KvnodeClient
from kvnode.client.results import KVPair, parse_pairs, parse_truth
from kvnode.errors import BadRequest, KvnodeError, NotNow, RemoteProtocolError

LOCK_FLAGS: Final = 3304740253564472344
SEMAPHORE_FLAGS: Final = 16210313421097356768
LOCK_KEY: Final = ".lock"
WAIT_S: Final = 15.0
"""How long one blocking query waits."""
LOCK_DELAY_PAUSE_S: Final = 1.0
"""Between two tries while the key is nobody's, and cannot be had: its lock-delay runs."""


class Lease:
    """A session that lives as long as this process renews it."""

    def __init__(
        self, client: KvnodeClient, *, name: str, ttl_s: float, delete: bool, lock_delay_s: float
    ) -> None:
        """Nothing is begun yet.

        Args:
            client: Whom to ask.
            name: Shown to people.
            ttl_s: After so long without a renewal it may end.
            delete: Its end deletes the keys that it holds, and does not only release them.
            lock_delay_s: For how long nobody gets a key that it held when it was cut off.
        """
        self._client = client
        self._document: dict[str, Any] = {
            "Name": name,
            "TTL": f"{round(ttl_s * 1000)}ms",
            "Behavior": "delete" if delete else "release",
            "LockDelay": f"{round(lock_delay_s * 1000)}ms",
            "NodeChecks": [],
        }
        self._ttl_s = ttl_s
        self._sure_until = 0.0
        self.session_id = ""

    async def begin(self) -> None:
        """Create the session."""
        began = asyncio.get_running_loop().time()
        body = json.dumps(self._document).encode()
        reply = await self._client._ask("PUT", "/v1/session/create", body=body)
        self.session_id = _member(reply.body, "ID")
        self._sure_until = began + self._ttl_s

    async def lost(self) -> str:
        """Renew until the session has ended, or may have; return why."""
        loop = asyncio.get_running_loop()
        path = f"/v1/session/renew/{self.session_id}"
        while True:
            await asyncio.sleep(min(self._ttl_s / 3, max(0.0, self._sure_until - loop.time())))
            asked = loop.time()
            if asked >= self._sure_until:
                return f"the session could not be renewed for {self._ttl_s:g} s"
            try:
                reply = await self._client._ask(
                    "PUT", path, safe=True, missing_is_an_answer=True, deadline=self._sure_until
                )
            except NotNow:
                continue
            if reply.status == 404:
                return "the session has ended"
            self._sure_until = asked + self._ttl_s

    async def end(self) -> None:
        """Destroy the session, and let go of what it holds."""
        if self.session_id:
            await self._client._ask("PUT", f"/v1/session/destroy/{self.session_id}", safe=True)


class Held(Protocol):
    """A lock of either kind."""

    async def acquire(self) -> None:
        """Wait until it is held. Raises ``BadRequest`` when the keys are used for something else."""
        ...

    async def lost(self) -> str:
        """Wait until it is not held any more; return why."""
        ...

    async def release(self) -> None:
        """Let go, and clean up behind the last one."""
        ...


class Mutex:
    """One holder at a time."""

    def __init__(self, client: KvnodeClient, prefix: str, lease: Lease, value: bytes = b"") -> None:
        """``<prefix>/.lock`` is the key; ``value`` tells others who holds it."""
        self._client = client
        self._key = f"{prefix.strip('/')}/{LOCK_KEY}"
        self._lease = lease
        self._value = value

    async def acquire(self) -> None:
        """See ``Held``."""
        index: int | None = None
        while True:
            try:
                answer = await self._client.read(
                    self._key, consistency="consistent", index=index, wait_s=WAIT_S
                )
                pair = answer.value
                index = None
                if pair is not None and pair.flags != LOCK_FLAGS:
                    raise BadRequest(f"{self._key} is not used as a lock")
                if pair is not None and pair.session == self._lease.session_id:
                    return  # by a try whose answer was lost
                if pair is not None and pair.session:
                    index = answer.index
                    continue
                if await _put(
                    self._client, self._key, self._value, acquire=self._lease.session_id,
                    flags=LOCK_FLAGS,
                ):  # fmt: skip
                    return
                await asyncio.sleep(LOCK_DELAY_PAUSE_S)
            except NotNow:
                index = None
                await asyncio.sleep(LOCK_DELAY_PAUSE_S)

    async def lost(self) -> str:
        """See ``Held``."""
        index: int | None = None
        while True:
            try:
                answer = await self._client.read(
                    self._key, consistency="consistent", index=index, wait_s=WAIT_S
                )
            except NotNow:
                await asyncio.sleep(LOCK_DELAY_PAUSE_S)  # the lease says how long that may go on
                continue
            if answer.value is None or answer.value.session != self._lease.session_id:
                return f"{self._key} is held by {_holder(answer.value)}"
            index = answer.index

    async def release(self) -> None:
        """See ``Held``."""
        await _put(
            self._client, self._key, self._value, release=self._lease.session_id, flags=LOCK_FLAGS
        )
        pair = await self._client.get(self._key)
        if pair is not None and not pair.session and pair.flags == LOCK_FLAGS:
            await self._client.delete(self._key, cas=pair.modify_index)


class Semaphore:
    """At most ``limit`` holders at a time."""

    def __init__(
        self, client: KvnodeClient, prefix: str, lease: Lease, limit: int, value: bytes = b""
    ) -> None:
        """Everybody who wants in must give the same ``limit``."""
        self._client = client
        self._prefix = prefix.strip("/") + "/"
        self._lease = lease
        self._limit = limit
        self._value = value

    async def acquire(self) -> None:
        """See ``Held``."""
        own = self._prefix + self._lease.session_id
        if not await _put(
            self._client, own, self._value, acquire=self._lease.session_id, flags=SEMAPHORE_FLAGS
        ):
            raise RemoteProtocolError(f"{own} cannot be locked, although nobody else knows it")
        index: int | None = None
        while True:
            try:
                pairs, found = await self._list(index)
                index = None
                lock, holders = self._read(pairs)
                if self._lease.session_id in holders:
                    return
                if len(holders) >= self._limit:
                    index = found
                    continue
                await self._write(lock, [*holders, self._lease.session_id])
            except NotNow:
                index = None
                await asyncio.sleep(LOCK_DELAY_PAUSE_S)

    async def lost(self) -> str:
        """See ``Held``."""
        index: int | None = None
        while True:
            try:
                pairs, index = await self._list(index)
            except NotNow:
                await asyncio.sleep(LOCK_DELAY_PAUSE_S)
                continue
            if self._lease.session_id not in self._read(pairs)[1]:
                return f"{self._prefix}{LOCK_KEY} does not name this holder any more"

    async def release(self) -> None:
        """See ``Held``."""
        while True:
            pairs, _ = await self._list(None)
            lock, holders = self._read(pairs)
            rest = [holder for holder in holders if holder != self._lease.session_id]
            if len(rest) == len(holders) or await self._write(lock, rest):
                break
        await self._client.delete(self._prefix + self._lease.session_id)
        pairs, _ = await self._list(None)
        if len(pairs) == 1 and pairs[0].key == self._prefix + LOCK_KEY and not rest:
            await self._client.delete(pairs[0].key, cas=pairs[0].modify_index)

    def _read(self, pairs: Sequence[KVPair]) -> tuple[KVPair | None, list[str]]:
        """Return the lock's entry, and those of its holders whose sessions still live."""
        alive = {pair.session for pair in pairs if pair.session}
        lock = next((pair for pair in pairs if pair.key == self._prefix + LOCK_KEY), None)
        if lock is None:
            return None, []
        try:
            document = json.loads(lock.value)
            limit, holders = int(document["Limit"]), list(document["Holders"] or {})
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(f"{lock.key} is not used as a semaphore") from error
        if lock.flags != SEMAPHORE_FLAGS:
            raise BadRequest(f"{lock.key} is not used as a semaphore")
        if limit != self._limit:
            raise BadRequest(f"{lock.key} has the limit {limit}, not {self._limit}")
        return lock, [holder for holder in holders if holder in alive]

    async def _write(self, lock: KVPair | None, holders: list[str]) -> bool:
        document = {"Limit": self._limit, "Holders": dict.fromkeys(holders, True)}
        value = json.dumps(document, separators=(",", ":")).encode()
        cas = 0 if lock is None else lock.modify_index
        return await _put(
            self._client, self._prefix + LOCK_KEY, value, cas=str(cas), flags=SEMAPHORE_FLAGS
        )

    async def _list(self, index: int | None) -> tuple[tuple[KVPair, ...], int]:
        query = [("recurse", ""), ("consistent", "")]
        if index is not None:
            query += [("index", str(index)), ("wait", f"{WAIT_S:g}s")]
        reply = await self._client._ask(
            "GET", f"/v1/kv/{_quoted(self._prefix)}", query, safe=True, wait_s=WAIT_S * 17 / 16,
            missing_is_an_answer=True,
        )  # fmt: skip
        pairs = parse_pairs(reply.body) if reply.status == 200 else ()
        return pairs, int(reply.headers.get("X-Consul-Index", "0"))


async def first_loss(lease: Lease, lock: Held) -> str:
    """Wait until the lease or the lock is lost; return why."""
    tasks = [asyncio.create_task(lease.lost()), asyncio.create_task(lock.lost())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        reasons = [_reason(task) for task in done]
        return reasons[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reason(task: asyncio.Task[str]) -> str:
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, KvnodeError):
        return str(error)
    raise error


async def _put(
    client: KvnodeClient, key: str, value: bytes, *, flags: int, **conditions: str
) -> bool:
    query = [("flags", str(flags)), *conditions.items()]
    reply = await client._ask("PUT", f"/v1/kv/{_quoted(key)}", query, body=value)
    return parse_truth(reply.body)


def _quoted(key: str) -> str:
    return quote(key, safe="/")


def _holder(pair: KVPair | None) -> str:
    return "nobody" if pair is None or not pair.session else f"session {pair.session}"


def _member(body: bytes, name: str) -> str:
    try:
        document: Any = json.loads(body)
        return str(document[name])
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteProtocolError(f"not what was expected: {body[:200]!r}") from error

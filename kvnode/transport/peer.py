"""A peer that we stay connected with: two lanes, each dialled, kept and repaired by itself.

One long-lived task per lane; nothing is started per message. A lane is *up* while its connection is
greeted. Where the peer lives is looked up anew at each dial, all candidates side by side, and whoever
answers must be the node that was looked for: addresses move between nodes (RC-53).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from kvnode.addresses import Address
from kvnode.errors import KvnodeError, PeerUnreachable
from kvnode.ports import Hello
from kvnode.raft.types import NodeId
from kvnode.transport.connection import Connection, Hub
from kvnode.transport.handshake import Lane
from kvnode.transport.metrics import PeerCounters
from kvnode.transport.peer_tls import PeerTls, why_not
from kvnode.transport.resolve import Resolve, parse_candidates

IPS_MAX = 4
"""Of one name, tried one after the other."""

log = structlog.get_logger(__name__)


class PeerOwner(Hub, Protocol):
    """What a peer needs from the transport besides being a hub."""

    resolve: Resolve
    rng: random.Random
    tls: PeerTls | None
    """None: plain connections."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that the transport owns: its failure is reported, ``close`` ends it."""
        ...

    def lane_down(self, node_id: NodeId) -> None:
        """A lane broke: messages on it may be lost."""
        ...


class Backoff:
    """Jittered, doubling waits: of ``[delay/2, delay)``, from ``min_s`` up to ``max_s`` seconds."""

    __slots__ = ("_delay", "_max_s", "_min_s", "_rng")

    def __init__(self, min_s: float, max_s: float, rng: random.Random) -> None:
        """Start with ``min_s``."""
        assert 0 < min_s <= max_s
        self._min_s, self._max_s, self._rng = min_s, max_s, rng
        self._delay = min_s

    def next(self) -> float:
        """Seconds to wait before the next try."""
        delay = self._delay
        self._delay = min(self._max_s, delay * 2)
        return delay * (0.5 + self._rng.random() / 2)

    def reset(self) -> None:
        """The last try was a success that lasted."""
        self._delay = self._min_s


async def dial(
    owner: PeerOwner, candidates: list[Address], lane: Lane, expected: str
) -> Connection:
    """Connect and get introduced; the first candidate that answers as it should wins.

    Raises:
        PeerUnreachable: None did; the message has the last reason. ``took_effect`` is "no".
    """
    if not candidates:
        raise PeerUnreachable("no address is known", took_effect="no")
    tasks = {
        owner.loop.create_task(_attempt(owner, address, lane, expected), name=f"dial {address}")
        for address in candidates
    }
    winner: Connection | None = None
    reasons: list[str] = []
    pending = tasks
    try:
        while pending and winner is None:
            finished, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                result = task.result()
                if isinstance(result, PeerUnreachable):
                    reasons.append(str(result))
                elif winner is None:
                    winner = result
                else:
                    result.close("another address answered first")
    except asyncio.CancelledError:
        if winner is not None:
            winner.abort("no longer wanted")
        raise
    finally:
        for task in pending:
            task.cancel()
            task.add_done_callback(_discard)
    if winner is None:
        raise PeerUnreachable("; ".join(sorted(set(reasons)))[:300], took_effect="no")
    return winner


def _discard(task: asyncio.Task[Connection | PeerUnreachable]) -> None:
    """An attempt that lost; it may have connected before its cancellation arrived."""
    if not task.cancelled() and isinstance(result := task.result(), Connection):
        result.abort("another address answered first")


async def _attempt(
    owner: PeerOwner, address: Address, lane: Lane, expected: str
) -> Connection | PeerUnreachable:
    """Try one ``host:port``: its IPs one after the other."""
    settings = owner.settings
    try:
        async with asyncio.timeout(settings.resolve_timeout_s):
            targets = await owner.resolve(address)
    except TimeoutError:
        return PeerUnreachable(f"{address}: the name was not resolved in time")
    except PeerUnreachable as error:
        return error
    last = PeerUnreachable(f"{address}: no address", took_effect="no")
    for target in targets[:IPS_MAX]:
        result = await _attempt_ip(owner, target, address.host, lane, expected)
        if isinstance(result, Connection):
            return result
        last = PeerUnreachable(f"{target}: {result}", took_effect="no")
    return last


async def _attempt_ip(
    owner: PeerOwner, target: Address, name: str, lane: Lane, expected: str
) -> Connection | KvnodeError:
    tls = owner.tls
    if tls is None:
        return await _attempt_once(owner, target, name, lane, expected)
    result = await _attempt_once(owner, target, name, lane, expected, tls)
    if tls.required or isinstance(result, Connection):
        return result
    return await _attempt_once(owner, target, name, lane, expected)


async def _attempt_once(
    owner: PeerOwner,
    target: Address,
    name: str,
    lane: Lane,
    expected: str,
    tls: PeerTls | None = None,
) -> Connection | KvnodeError:
    settings = owner.settings
    connection = Connection(owner, lane, expected)
    timeout_s, options = settings.connect_timeout_s, dict[str, Any]()
    if tls is not None:
        timeout_s += settings.greet_timeout_s
        name = tls.server_name or name.rstrip(".")
        options = {
            "ssl": tls.client(),
            "server_hostname": name,
            "ssl_handshake_timeout": settings.greet_timeout_s,
            "ssl_shutdown_timeout": settings.greet_timeout_s,
        }
    try:
        async with asyncio.timeout(timeout_s):
            await owner.loop.create_connection(
                lambda: connection, target.host, target.port, **options
            )
        async with asyncio.timeout(settings.greet_timeout_s):
            outcome = await asyncio.shield(connection.outcome)
    except TimeoutError:
        connection.abort("no answer in time")
        return PeerUnreachable("no answer in time", took_effect="no")
    except (OSError, ValueError, OverflowError) as cause:  # the address may be nonsense
        reason = why_not(cause, name) if tls is not None else str(cause)
        return PeerUnreachable(reason, took_effect="no")
    except asyncio.CancelledError:
        connection.abort("no longer wanted")
        raise
    return connection if isinstance(outcome, Hello) else outcome


class PeerLane:
    """One lane to one peer."""

    def __init__(self, owner: PeerOwner, peer: Peer, lane: Lane) -> None:
        """Start to dial."""
        self._owner = owner
        self._peer = peer
        self._lane = lane
        self._connection: Connection | None = None
        self._wake = asyncio.Event()
        self._nudge_after = float("-inf")
        settings = owner.settings
        self._backoff = Backoff(settings.backoff_min_s, settings.backoff_max_s, owner.rng)
        self.bytes_max = settings.fast_bytes_max if lane is Lane.FAST else settings.bulk_bytes_max
        self.task = owner.spawn(self._keep(), f"lane {lane.name.lower()} to {peer.node_id}")

    @property
    def connection(self) -> Connection | None:
        """The greeted connection, or None while the lane is down."""
        connection = self._connection
        return connection if connection is not None and connection.is_greeted else None

    def nudge(self) -> None:
        """There is news about the peer: dial now rather than later.

        At most once in a while: two nodes whose connections break as soon as they stand would else
        wake each other without any pause.
        """
        now = self._owner.loop.time()
        if now < self._nudge_after:
            return
        self._nudge_after = now + self._owner.settings.backoff_max_s / 4
        self._backoff.reset()
        self._wake.set()

    def send(self, frame: bytes, messages: int) -> None:
        """Write a frame of Raft messages, or drop it when the lane is down or full (RC-68)."""
        connection = self.connection
        if connection is None:
            self._peer.counters.dropped += messages
        elif connection.write_buffer_size() > self.bytes_max:
            self._peer.counters.dropped += messages
            if not connection.dropping:
                connection.dropping = True
                self._owner.loop.call_soon(self._owner.lane_down, self._peer.node_id)
        else:
            connection.dropping = False
            connection.send(frame)

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            try:
                connection = await dial(
                    self._owner, self._peer.candidates, self._lane, self._peer.node_id
                )
            except PeerUnreachable as error:
                self._peer.note_unreachable(str(error))
                await self._rest(self._backoff.next())
                continue
            await self._use(connection)

    async def _use(self, connection: Connection) -> None:
        self._connection = connection
        self._peer.note_connected()
        since = self._owner.loop.time()
        try:
            reason = await connection.closed
        finally:
            self._connection = None
            connection.abort("no longer wanted")
        self._peer.note_lost(self._lane, reason)
        if self._owner.loop.time() - since >= self._owner.settings.backoff_max_s:
            self._backoff.reset()
        self._owner.lane_down(self._peer.node_id)
        await self._rest(self._backoff.next())

    async def _rest(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return


class Peer:
    """A node that the driver wants to be connected with."""

    def __init__(
        self,
        owner: PeerOwner,
        node_id: NodeId,
        addresses: tuple[str, ...],
        counters: PeerCounters,
        may_log: Callable[[str], bool],
    ) -> None:
        """Start to dial both lanes."""
        self.node_id = node_id
        self.counters = counters
        self.addresses = addresses
        self.candidates = parse_candidates(addresses)
        self._may_log = may_log
        self.fast = PeerLane(owner, self, Lane.FAST)
        self.bulk = PeerLane(owner, self, Lane.BULK)

    @property
    def is_connected(self) -> bool:
        """Whether both lanes are up."""
        return self.fast.connection is not None and self.bulk.connection is not None

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """Where the peer may be from now on; connections that stand are left alone."""
        if addresses != self.addresses:
            self.addresses = addresses
            self.candidates = parse_candidates(addresses)
            self.nudge()

    def nudge(self) -> None:
        """Dial the lanes that are down now."""
        self.fast.nudge()
        self.bulk.nudge()

    def note_connected(self) -> None:
        """A lane came up."""
        self.counters.connects += 1
        if self.is_connected:
            log.info("peer_connected", peer=self.node_id)

    def note_lost(self, lane: Lane, reason: str) -> None:
        """A lane broke. The fast lane takes the bulk lane along: it would notice much later."""
        self.counters.disconnects += 1
        if lane is Lane.FAST and self.bulk.connection is not None:
            self.bulk.connection.abort("the fast lane broke")
        if self._may_log(f"lost {self.node_id}"):
            log.warning("peer_lost", peer=self.node_id, lane=lane.name.lower(), reason=reason)

    def note_unreachable(self, reason: str) -> None:
        """Nobody answered as the peer."""
        if self._may_log(f"unreachable {self.node_id}"):
            log.info("peer_unreachable", peer=self.node_id, reason=reason)

    async def close(self) -> None:
        """Stop both lanes; their connections are closed when this returns."""
        tasks = [self.fast.task, self.bulk.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

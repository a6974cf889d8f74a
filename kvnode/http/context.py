"""What the HTTP room is given: a replica, its settings, and a few hooks."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from kvnode.replica.facade import ReplicaFacade
    from kvnode.tls.listener import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Bounds and names. Every bound has an answer of its own when it is reached (RC-67)."""

    node_name: str
    """Sent as ``X-Kvnode-Node`` on every answer."""
    datacenter: str = "dc1"
    session_ttl_min_ns: int = 10 * 10**9
    """A session may not ask for a shorter TTL (spec §5.1)."""
    txn_ops_max: int = 128
    """Operations of one transaction; with more it is 413 (spec §6)."""
    txn_read_bytes_max: int = 4 * 1024 * 1024
    """What a transaction that writes may read in all; with more it is rolled back. It has to fit into
    one answer between nodes. One that only reads is bounded as a list is."""
    event_bytes_max: int = 512
    """Name, payload and filters of one event; with more it is 500, as in Consul."""
    version: str = "0.1.0"
    consul_version: str = "1.22.0"
    """What ``agent/self`` reports: clients compare it with 1.x (spec §10)."""
    bootstrap_expect: int = 0
    value_bytes_max: int = 512 * 1024
    """A longer body is 413 (spec §4.2)."""
    key_bytes_max: int = 4 * 1024
    """After decoding. A longer key is 400."""
    body_bytes_max: int = 512 * 1024
    """Body of any other route."""
    url_bytes_max: int = 16 * 1024
    """Request line; must hold a percent-encoded key. A longer one is 414."""
    header_bytes_max: int = 32 * 1024
    """Whole head of a request. A longer one is 431."""
    connections_max: int = 25_000
    """Above it a new connection is told so and closed."""
    handshakes_max: int = 256
    """Connections whose TLS handshake is under way; the oldest gives way."""
    requests_max: int = 8_192
    """Requests in progress on all connections."""
    pending_bytes_max: int = 64 * 1024 * 1024
    """Bodies of requests in progress, received so far."""
    feed_heartbeat_s: float = 15.0
    """A change feed that has nothing to tell says that it is there."""
    feed_initial_s: float = 120.0
    """For how long a feed may take to hand over the state that it begins with."""
    feed_initials_max: int = 8
    """Feeds at a time that do; further ones wait."""
    streams_max: int = 5_000
    """Endless streams at a time, such as server-sent events."""
    upload_bytes_max: int = 1024 * 1024 * 1024
    """Length of a body that goes to a file: a snapshot to restore. A longer one is 413."""
    uploads_max: int = 2
    """Such bodies at a time."""
    spool_dir: str = ""
    """Where large bodies wait in files; empty: where the system keeps temporary files."""
    spool_reserve_bytes: int = 0
    """What spooling must leave free on the volume of ``spool_dir``."""
    pipeline_max: int = 16
    """Reads in progress on one connection; more wait in the socket."""
    list_bytes_max: int = 64 * 1024 * 1024
    """Length of a list's answer; a longer one is 400."""
    key_ttl_min_ns: int = 10**9
    """A key may not ask for a shorter time to live."""
    copy_keys_max: int = 5_000
    copy_bytes_max: int = 16 * 1024 * 1024
    """What one copy or move of a prefix may hold; with more it is 413."""
    idempotency_keys_max: int = 100_000
    """Writes that are remembered by their idempotency key."""
    list_turn_s: float = 0.003
    """For how long a list may hold up everything else before it lets others run."""
    long_lists_max: int = 2
    """Long lists being built at a time; further ones wait."""
    idle_timeout_s: float = 120.0
    """Longer than the 90 s after which Go clients drop an idle connection, so that they do first."""
    receive_timeout_s: float = 30.0
    """From a request's first byte to its last."""
    write_timeout_s: float = 60.0
    """For how long a client may refuse to take its answer."""
    close_grace_s: float = 10.0
    """How long ``HttpServer.close`` waits for requests in progress."""
    ready_leader_grace_s: float = 15.0
    """For how long a node without a leader stays ready: an election must not empty the Service."""
    pods_timeout_s: float = 3.0
    """For finding and asking all pods."""
    clients_verified: bool = False
    """Only the health routes are served without a client certificate; the TLS layer has verified the rest."""
    fast_path: bool = True
    """Serve the KV routes without aiohttp. Off: the same answers, more slowly."""
    ui: bool = True
    wall_clock: Callable[[], float] = time.time
    """Seconds since the epoch, for the name of a snapshot. Nothing is decided by it."""


def nothing_to_note() -> dict[str, str]:
    """Note nothing: the default of ``HttpContext.notes``."""
    return {}


async def no_addresses() -> list[str]:
    """Find no pods: the default of ``HttpContext.pod_addresses``."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpContext:
    """Everything that the routes reach for."""

    replica: ReplicaFacade
    settings: HttpSettings
    pod_addresses: Callable[[], Awaitable[list[str]]] = no_addresses
    """Asks discovery for ``host:port`` of every pod's peer port. May fail or hang; it is bounded."""
    notes: Callable[[], dict[str, str]] = nothing_to_note
    """What is not well around the node, by a word each: shown by readiness, which it does not fail."""
    reload: Callable[[], Awaitable[None]] | None = None
    """``PUT /v1/agent/reload``; None: the route answers that it cannot."""
    follow_log: Callable[[str, bool], AsyncGenerator[bytes, None]] | None = None
    """The log from now on: from this level (``trace`` … ``error``), as JSON or not; one line per chunk. None:
    the route answers that it cannot."""
    leave: Callable[[], Awaitable[None]] | None = None
    """``PUT /v1/agent/leave``; starts to leave and returns."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Gives the context for the next connection; None: plain HTTP."""
    tls_refused: Callable[[Refusal], None] = lambda _: None
    """Told of connections that failed the handshake."""
    collectors: tuple[Collector, ...] = field(default=())
    """Further metrics of the process, read at each scrape."""

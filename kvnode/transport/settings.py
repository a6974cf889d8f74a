"""Bounds and times of the transport. The defaults suit nodes of one data centre."""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.transport.framing import FRAME_BYTES_MAX

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """Bytes, counts and seconds. All bounds are per connection unless they say otherwise."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    """Largest frame that is sent or accepted after the introduction."""
    fast_bytes_max: int = 1 * MIB
    """Unsent bytes of a fast lane above which Raft messages are dropped (RC-68)."""
    bulk_bytes_max: int = 16 * MIB
    """The same for a bulk lane; requests are refused with ``Overloaded`` above it. One frame more
    than this may be held."""
    requests_max: int = 4096
    """Requests under way to one peer, and, on the other side, from one connection."""
    asks_max: int = 64
    """``request_address`` calls under way, in all."""
    accepted_max: int = 512
    """Accepted connections, in all."""
    strangers_max: int = 128
    """Accepted connections that have not introduced themselves; the oldest gives way."""
    handshakes_max: int = 128
    """Accepted connections whose TLS handshake is under way; the oldest gives way."""
    resolve_timeout_s: float = 2.0
    connect_timeout_s: float = 1.0
    """For one IP address; the addresses of a peer are tried side by side."""
    greet_timeout_s: float = 2.0
    backoff_min_s: float = 0.05
    backoff_max_s: float = 2.0
    """Jittered, doubling wait between dials; a peer that dials us ends it."""
    sweep_s: float = 0.05
    """Resolution of every time-out of requests."""
    ping_s: float = 1.0
    silent_pings_max: int = 4
    """Silent ping intervals after which a connection is dead. Counted in turns of our own timer, so
    that a pause of this process kills nobody."""
    bulk_silent_pings_max: int = 15
    """The same for bulk lanes, where a full pipe may hold a ping back for long; a write buffer that
    gets shorter counts as a sign of life, and the fast lane's death takes the bulk lane along."""
    snapshot_window: int = 4
    """Chunks under way before one is acknowledged."""
    snapshot_stall_s: float = 30.0
    """Longest wait for one step of a snapshot stream: a chunk to send, an acknowledgement."""
    snapshot_commit_s: float = 120.0
    """Longest wait for the receiver to make a whole snapshot durable."""
    snapshot_bytes_per_s: int | None = None
    """Bound on the rate of one outgoing snapshot; None: none."""

"""The settings that are bounds: how much of anything a node takes, and says by name when it is too much."""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.config.declaration import setting as _setting

LIMITS = "Limits"
"""Name of the section."""
_LIMITS = LIMITS

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Part of ``settings.Config``."""

    value_bytes_max: int = _setting(
        512 * _KIB,
        "Largest value.",
        section=_LIMITS,
        unit="bytes",
        lo=1,
        hi=8 * _MIB,
        json=("limits.kv_max_value_size",),
    )
    key_bytes_max: int = _setting(
        4096, "Longest key.", section=_LIMITS, unit="bytes", lo=1, hi=64 * _KIB
    )
    txn_bytes_max: int = _setting(
        512 * _KIB,
        "Largest body of one transaction.",
        section=_LIMITS,
        unit="bytes",
        lo=1,
        hi=8 * _MIB,
        json=("limits.txn_max_req_len",),
    )
    txn_ops_max: int = _setting(
        128, "Operations of one transaction.", section=_LIMITS, lo=1, hi=4096
    )
    txn_read_bytes_max: int = _setting(
        4 * _MIB,
        "Keys and values that the gets of one transaction may return in all.",
        section=_LIMITS,
        unit="bytes",
        lo=1 * _KIB,
        hi=6 * _MIB,
    )
    event_bytes_max: int = _setting(
        512,
        "Name, payload and filters of one event.",
        section=_LIMITS,
        unit="bytes",
        lo=1,
        hi=9 * _KIB,
    )
    list_bytes_max: int = _setting(
        64 * _MIB,
        "Largest answer to a list of keys or entries; a page ends before it.",
        section=_LIMITS,
        unit="bytes",
        lo=1 * _KIB,
        hi=1 * _GIB,
    )
    url_bytes_max: int = _setting(
        16 * _KIB,
        "Longest request line; it must hold a percent-encoded key.",
        section=_LIMITS,
        unit="bytes",
        lo=256,
        hi=1 * _MIB,
    )
    copy_keys_max: int = _setting(
        5_000, "Keys that one copy or move of a prefix may have.", section=_LIMITS, lo=1, hi=100_000
    )
    copy_bytes_max: int = _setting(
        16 * _MIB,
        "The same in bytes of keys and values.",
        section=_LIMITS,
        unit="bytes",
        lo=1 * _KIB,
        hi=1 * _GIB,
    )
    idempotency_keys_max: int = _setting(
        100_000,
        "Writes with an Idempotency-Key that are remembered; beyond it the oldest are forgotten.",
        section=_LIMITS,
        lo=1,
        hi=10_000_000,
    )
    uncommitted_bytes_max: int = _setting(
        64 * _MIB,
        "Bytes of writes that the leader holds before they are committed; more are refused.",
        section=_LIMITS,
        unit="bytes",
        lo=1 * _MIB,
        hi=4 * _GIB,
    )

    http_connections_max: int = _setting(
        25_000,
        "HTTP connections at a time, those that wait too; more are told so and closed. At most what the "
        "limit on open files leaves.",
        section=_LIMITS,
        lo=1,
        hi=1_000_000,
        json=("limits.http_max_conns",),
    )
    streams_max: int = _setting(
        5_000,
        "Endless answers at a time, such as change feeds, each about 16 KiB; more are refused.",
        section=_LIMITS,
        lo=0,
        hi=1_000_000,
    )
    upload_bytes_max: int = _setting(
        1024 * _MIB,
        "Largest snapshot archive that may be sent to be restored. While it is received it waits in a file "
        "on the data volume.",
        section=_LIMITS,
        unit="bytes",
        lo=64 * _KIB,
        hi=1024 * 1024 * _MIB,
    )

"""Open files: as many as the system allows, and never all of them for clients.

A node that cannot open its next file must stop (RC-8), so whoever could use up its file descriptors by just
connecting could stop it. Connections of clients and peers are therefore bounded below the limit.
"""

from __future__ import annotations

import resource
from typing import NamedTuple

import structlog

from kvnode.http.gate import REFUSED_MAX

_LOG = structlog.get_logger("kvnode.agent")

_OWN_MAX = 1024
"""Kept for the log, the engine's tables and what else the node opens; at most half of the limit."""
_PEERS_MAX = 512
_PEERS_SHARE = 8
_HANDSHAKES_MAX = 256
_HANDSHAKES_SHARE = 32
_FEW = 4096


class FileBounds(NamedTuple):
    """How many descriptors may go where."""

    clients: int
    """Connections served at a time. Others are accepted to be told so: as many, ``REFUSED_MAX`` at most."""
    peers: int
    """Connections accepted on the peer port."""
    handshakes: int
    """Connections of either port that are still shaking hands, for TLS; as many for each port."""


def file_bounds(limit: int) -> FileBounds:
    """Divide a limit on open files."""
    own = min(_OWN_MAX, limit // 2)
    peers = max(16, min(_PEERS_MAX, limit // _PEERS_SHARE))
    handshakes = max(8, min(_HANDSHAKES_MAX, limit // _HANDSHAKES_SHARE))
    rest = limit - own - peers - 2 * handshakes
    return FileBounds(max(1, rest // 2, rest - REFUSED_MAX), peers, handshakes)


def raise_file_limit() -> int:
    """Raise the soft limit on open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError) as error:
            _LOG.warning("file_limit_not_raised", limit=soft, error=str(error))
    limit = most if soft == resource.RLIM_INFINITY else soft
    if limit < _FEW:
        _LOG.warning("file_limit_is_low", limit=limit, clients_max=file_bounds(limit).clients)
    return limit

"""Ports for processes that tests start."""

from __future__ import annotations

import os
import random
import socket
from itertools import cycle, islice
from typing import Final

_PORTS: Final = range(20_000, 32_000)
"""Below Linux's ephemeral ports: while a node is down, nobody's connection or listener gets its port."""
_WORKERS_MAX: Final = 16
_SHARE: Final = len(_PORTS) // _WORKERS_MAX
"""Each of the workers that run tests side by side has ports of its own."""


def _own() -> list[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = _PORTS[worker % _WORKERS_MAX * _SHARE :][:_SHARE]
    first = random.randrange(_SHARE)  # so that another run beside this one is elsewhere
    return [*share[first:], *share[:first]]


_ports = cycle(_own())


def free_ports(count: int) -> list[int]:
    """Return ports in a row that nobody has on 127.0.0.1, for TCP or UDP. The same ones come again late."""
    row: list[int] = []
    for port in islice(_ports, 2 * _SHARE):
        if row and port != row[-1] + 1:
            row = []
        row = [*row, port] if _is_free(port) else []
        if len(row) == count:
            return row
    raise AssertionError(f"no {count} free ports in a row on loopback")


def _is_free(port: int) -> bool:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        try:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

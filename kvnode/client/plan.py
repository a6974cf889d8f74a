"""What a load asks: operations, their mix, how fast, of whom."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from yarl import URL

from kvnode.errors import BadRequest

VALUE_BYTES_MIN: Final = 24
"""A value says which write it was."""


class Operation(Enum):
    """What a request asks."""

    PUT = "put"
    GET = "get"
    STALE = "stale"
    """A get that any node answers from its own state."""
    DELETE = "delete"
    LIST = "list"
    """The names under the load's prefix that begin with one digit."""


WRITES: Final = frozenset({Operation.PUT, Operation.DELETE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ask."""

    addresses: Sequence[URL]
    mix: Mapping[Operation, int]
    """Weights."""
    connections: int = 32
    duration_s: float = 10.0
    rate: float = 0.0
    """Requests a second, over all connections; 0: each connection asks again when it was answered."""
    keys: int = 1000
    """At least ``connections``: each has its own."""
    value_bytes: int = 100
    prefix: str = "kvnode-bench/"
    timeout_s: float = 10.0
    ssl: ssl.SSLContext | None = None
    server_name: str = ""
    """Name that certificates must be for; empty: the host in the address."""
    token: str = ""
    """Sent as X-Consul-Token if not empty."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            BadRequest: Some bound is not kept.
        """
        if not self.addresses:
            raise BadRequest("no address given")
        if not any(self.mix.values()) or min(self.mix.values()) < 0:
            raise BadRequest("the mix asks for nothing")
        if not 1 <= self.connections <= self.keys:
            raise BadRequest("there must be at least one connection, and a key for each")
        if self.value_bytes < VALUE_BYTES_MIN:
            raise BadRequest(f"a value must have at least {VALUE_BYTES_MIN} bytes")
        if self.duration_s <= 0 or self.rate < 0 or self.timeout_s <= 0:
            raise BadRequest("times must be above zero, and a rate not below")
        if not self.prefix or self.prefix.startswith("/"):
            raise BadRequest("the prefix must not be empty, nor begin with a slash")

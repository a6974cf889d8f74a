"""``--retry-join``: addresses that people wrote down. Pure: names are resolved when they are dialled."""

from __future__ import annotations

from collections.abc import Iterable

from kvnode.addresses import parse_address
from kvnode.discovery.seeds import Seed, seed_for
from kvnode.errors import BadRequest


def parse_retry_join(values: Iterable[str], peer_port: int) -> list[Seed]:
    """Turn ``host``, ``host:port``, ``[v6]:port`` into seeds, in the order written.

    Args:
        values: What was given; empty texts are skipped, since templates produce them.
        peer_port: Port where none is written. Consul's serf port has no special meaning: whoever
            writes 8301 gets 8301.

    Raises:
        BadRequest: A value is no address; the message names it.
    """
    seeds: dict[Seed, None] = {}
    for value in values:
        if not value.strip():
            continue
        if "=" in value:
            raise BadRequest(f"retry-join {value!r}: cloud auto-join is not supported")
        try:
            address = parse_address(value, peer_port)
        except ValueError as error:
            raise BadRequest(f"retry-join: {error}") from error
        if address.port == 0:
            raise BadRequest(f"retry-join {value!r}: port 0 is no port")
        seeds[seed_for(address.host, address.port)] = None
    return list(seeds)

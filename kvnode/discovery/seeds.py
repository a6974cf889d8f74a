"""What discovery yields: addresses to try. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from kvnode.addresses import Address

SEEDS_MAX = 256
"""Bound on one answer; a Service with more pods than this is not ours."""

_DIGITS = re.compile(r"(\d+)")


class Seed(NamedTuple):
    """A place where a node may be found. Says nothing about who belongs to the cluster (RC-56)."""

    name: str
    """First label of the host name, in Kubernetes the pod's name; empty when only an IP is known."""
    address: str
    """``host:port``; the host is a name wherever there is one, and is resolved again at each dial."""


def seed_for(host: str, port: int) -> Seed:
    """Make the seed of a host name or IP; a trailing dot is taken off."""
    bare = host.rstrip(".")
    is_ip = ":" in bare or bare.replace(".", "").isdigit()
    return Seed("" if is_ip else bare.partition(".")[0], str(Address(bare, port)))


def natural_key(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key with numbers as numbers: ``kvnode-2`` before ``kvnode-10``."""
    return tuple(
        (int(part), "") if part.isdigit() and part.isascii() else (-1, part)
        for part in _DIGITS.split(text)
        if part
    )


def tidy(seeds: Iterable[Seed]) -> list[Seed]:
    """Sort by ordinal, drop repetitions of an address, bound the number.

    Name servers answer in random order; the same set of pods must always give the same list.
    """
    by_address: dict[str, Seed] = {}
    for seed in sorted(seeds, key=lambda s: (natural_key(s.address), s)):
        by_address.setdefault(seed.address, seed)
    return list(by_address.values())[:SEEDS_MAX]

"""Peers from DNS: SRV records of a headless Service first, then its addresses.

Observed on a real cluster, and the reason for most lines below: a Service without endpoints is
NXDOMAIN, the same as no Service at all, and means "nobody yet"; the bare Service name answers SRV once
per *port*; answers come in random order; ``aiodns`` does not use the search path; and c-ares caches
inside the process with no switch, denials for up to an hour, so each round makes a new resolver.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiodns
import pycares

from kvnode.discovery.seeds import Seed, seed_for, tidy

NO_DATA = 1
SERVER_FAILURE = 3
NO_SUCH_NAME = 4
BAD_NAME = 8
TIMED_OUT = 12

UNASKED = -1
_NOBODY = frozenset({UNASKED, NO_DATA, NO_SUCH_NAME})
"""Codes that mean "nobody yet" and are no failure (RC-56)."""

_TEXTS = {
    UNASKED: "there is no name to ask for",
    NO_DATA: "the name has no such records yet",
    2: "the name server rejected the query as malformed",
    SERVER_FAILURE: "the name server failed or refused",
    NO_SUCH_NAME: "no such name yet",
    5: "the name server does not do this kind of query",
    6: "the name server refused",
    BAD_NAME: "this is not a host name",
    10: "the name server's answer was malformed",
    11: "no name server can be reached",
    TIMED_OUT: "no name server answered in time",
    16: "the look-up was cancelled",
    24: "the look-up was cancelled",
}

SEARCH_MAX = 8
NAMES_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """What to ask, whom, and for how long."""

    name: str
    """The headless Service: ``kvnode``, ``kvnode.ns.svc.cluster.local``, or a whole SRV name
    ``_raft._tcp.kvnode.ns.svc.cluster.local``. Short names are completed by the search path."""
    peer_port: int
    """Port of nodes found by A/AAAA, and the one that counts in SRV answers of the bare name."""
    port_name: str = "raft"
    """Name of the peer port in the Service."""
    nameservers: tuple[str, ...] = ()
    """``ip`` or ``ip:port``; empty: those of resolv.conf."""
    search: tuple[str, ...] | None = None
    """Domains for short names; None: those of resolv.conf."""
    resolv_conf: Path = Path("/etc/resolv.conf")
    query_timeout_s: float = 1.0
    """For one try of one query."""
    query_tries: int = 2
    round_timeout_s: float = 5.0
    """For all queries of a round together."""


class Answer(NamedTuple):
    """What one round found."""

    seeds: list[Seed]
    """Sorted by ordinal; empty when nobody was found."""
    ttl_s: float
    """Lowest TTL of the records; 0 when there are none."""
    reason: str
    """Why there are no seeds, for an operator; empty when there are some."""
    failed: bool
    """Whether DNS itself failed; False for "nobody yet"."""


class _Records(NamedTuple):
    seeds: list[Seed]
    ttl_s: float
    code: int


def candidate_names(name: str, search: Sequence[str]) -> list[str]:
    """Complete a name as a stub resolver would; full names, each without its trailing dot.

    A name with a trailing dot is complete. One with a dot inside is tried as it is first, a single
    label last. A leading ``_port._tcp.`` does not count as dots.
    """
    if name.endswith("."):
        return [name.rstrip(".")]
    completed = [
        f"{name}.{domain.strip('.')}" for domain in search[:SEARCH_MAX] if domain.strip(".")
    ]
    service = _service_of(name)
    names = [name, *completed] if "." in service else [*completed, name]
    return list(dict.fromkeys(names))[:NAMES_MAX]


def read_search(resolv_conf: Path) -> tuple[str, ...]:
    """Domains of the last ``search`` or ``domain`` line; empty when the file cannot be read."""
    try:
        lines = resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    search: tuple[str, ...] = ()
    for line in lines:
        words = line.split()
        if words and words[0] in {"search", "domain"}:
            search = tuple(words[1 : 1 + SEARCH_MAX])
    return search


def code_text(code: int) -> str:
    """A c-ares code in words."""
    return _TEXTS.get(code, f"look-up failed with code {code}")


async def look_up(settings: DnsSettings) -> Answer:
    """Run one round with a resolver of its own. Never raises for what DNS says.

    Every way of asking is tried until one finds somebody: per candidate name SRV of the named port,
    SRV of the bare name filtered by the peer port, then A and AAAA with the peer port.
    """
    search = read_search(settings.resolv_conf) if settings.search is None else settings.search
    options: dict[str, Any] = {}
    if settings.nameservers:
        options["nameservers"] = list(settings.nameservers)
    worst = UNASKED
    try:
        resolver = aiodns.DNSResolver(
            timeout=settings.query_timeout_s, tries=settings.query_tries, **options
        )
    except pycares.AresError as error:
        return Answer([], 0.0, f"no resolver: {error}", failed=True)
    try:
        async with asyncio.timeout(settings.round_timeout_s):
            for name in candidate_names(settings.name, search):
                found = await _look_up_name(resolver, settings, name)
                if found.seeds:
                    return Answer(tidy(found.seeds), found.ttl_s, "", failed=False)
                # A name server may well refuse a single label that the search path did not complete.
                is_label = "." not in _service_of(name) and worst != UNASKED
                if worst in _NOBODY and not is_label:
                    worst = found.code
    except TimeoutError:
        worst = TIMED_OUT
    finally:
        await resolver.close()
    reason = f"{settings.name}: {code_text(worst)}"
    return Answer([], 0.0, reason, failed=worst not in _NOBODY)


async def _look_up_name(resolver: aiodns.DNSResolver, settings: DnsSettings, name: str) -> _Records:
    service = _service_of(name)
    srv_name = name if name.startswith("_") else f"_{settings.port_name}._tcp.{name}"
    named = await _query_srv(resolver, srv_name, None)
    if named.seeds or named.code not in _NOBODY:
        return named
    bare = await _query_srv(resolver, service, settings.peer_port)
    if bare.seeds or bare.code not in _NOBODY:
        return bare
    return await _query_addresses(resolver, service, settings.peer_port)


async def _query_srv(resolver: aiodns.DNSResolver, name: str, port: int | None) -> _Records:
    """SRV records; ``port`` keeps only those with that port."""
    try:
        result = await resolver.query_dns(name, "SRV")
    except (aiodns.error.DNSError, ValueError) as error:
        return _Records([], 0.0, _code_of(error))
    seeds, ttls = [], []
    for record in result.answer:
        data = record.data
        if not isinstance(data, pycares.SRVRecordData) or not _is_host(data.target):
            continue
        if data.port and port in {None, data.port}:
            seeds.append(seed_for(data.target, data.port))
            ttls.append(record.ttl)
    return _Records(seeds, float(min(ttls, default=0)), NO_DATA)


async def _query_addresses(resolver: aiodns.DNSResolver, name: str, port: int) -> _Records:
    found = await asyncio.gather(
        _query_ips(resolver, name, "A", port), _query_ips(resolver, name, "AAAA", port)
    )
    seeds = [seed for records in found for seed in records.seeds]
    ttl_s = min((records.ttl_s for records in found if records.seeds), default=0.0)
    failures = [records.code for records in found if records.code not in _NOBODY]
    return _Records(seeds, ttl_s, failures[0] if failures else found[0].code)


async def _query_ips(
    resolver: aiodns.DNSResolver, name: str, kind: Literal["A", "AAAA"], port: int
) -> _Records:
    try:
        result = await resolver.query_dns(name, kind)
    except (aiodns.error.DNSError, ValueError) as error:
        return _Records([], 0.0, _code_of(error))
    seeds, ttls = [], []
    for record in result.answer:  # CNAMEs on the way are records too
        if isinstance(record.data, pycares.ARecordData | pycares.AAAARecordData):
            seeds.append(seed_for(str(ipaddress.ip_address(record.data.addr)), port))
            ttls.append(record.ttl)
    return _Records(seeds, float(min(ttls, default=0)), NO_DATA)


def _code_of(error: Exception) -> int:
    if isinstance(error, ValueError):  # a label that cannot be encoded at all
        return BAD_NAME
    code = error.args[0] if error.args else SERVER_FAILURE
    return code if isinstance(code, int) else SERVER_FAILURE


def _service_of(name: str) -> str:
    """The name without a leading ``_port._proto.``."""
    labels = name.split(".")
    while len(labels) > 1 and labels[0].startswith("_"):
        labels = labels[1:]
    return ".".join(labels)


def _is_host(target: str) -> bool:
    """Whether an SRV target can be dialled; ``.`` means "not offered" (RFC 2782)."""
    bare = target.rstrip(".")
    return 0 < len(bare) <= 253 and not any(c.isspace() or c in "[]/" for c in bare)

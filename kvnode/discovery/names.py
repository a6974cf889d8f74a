"""Host names to addresses by the DNS servers that an operator named, for dialling peers (RC-53).

``getaddrinfo`` only knows the system's resolver. Where ``--dns-servers`` names others, SRV targets are
known to those alone, so that dialling must ask them too. As in ``dns``, each look-up has a resolver of
its own, since c-ares keeps denials.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import aiodns
import pycares

from kvnode.addresses import Address
from kvnode.errors import PeerUnreachable

QUERY_TIMEOUT_S = 1.0


class NameResolver:
    """Asks given DNS servers, and whoever is second when they know nothing."""

    def __init__(
        self,
        servers: tuple[str, ...],
        otherwise: Callable[[Address], Awaitable[list[Address]]],
    ) -> None:
        """Servers are ``host`` or ``host:port``; ``otherwise`` is asked after a denial."""
        self._servers = servers
        self._otherwise = otherwise

    async def __call__(self, address: Address) -> list[Address]:
        """Return the IPs of ``address.host``, each with the port; never empty.

        Raises:
            PeerUnreachable: Nobody knows the name.
        """
        if _is_literal(address.host):
            return [address]
        found = await self._ask(address.host)
        if found:
            return [Address(ip, address.port) for ip in found]
        return await self._otherwise(address)

    async def _ask(self, host: str) -> list[str]:
        try:
            resolver = aiodns.DNSResolver(
                nameservers=list(self._servers), timeout=QUERY_TIMEOUT_S, tries=2
            )
        except pycares.AresError as error:
            raise PeerUnreachable(f"no resolver: {error}", took_effect="no") from error
        try:
            kinds = await asyncio.gather(
                *(self._records(resolver, host, kind) for kind in ("A", "AAAA"))
            )
        finally:
            await resolver.close()
        return [ip for ips in kinds for ip in ips]

    async def _records(self, resolver: aiodns.DNSResolver, host: str, kind: str) -> list[str]:
        try:
            result = await resolver.query_dns(host, kind)
        except (aiodns.error.DNSError, ValueError):
            return []
        return [
            str(ipaddress.ip_address(record.data.addr))
            for record in result.answer
            if isinstance(record.data, pycares.ARecordData | pycares.AAAARecordData)
        ]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True

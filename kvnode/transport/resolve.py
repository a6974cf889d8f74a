"""Names to socket addresses, anew at each dial (RC-53), off the loop.

``getaddrinfo`` honours /etc/hosts and the search path, but it blocks and cannot be interrupted, for
tens of seconds when a name server is silent. Each look-up therefore runs in a daemon thread of its
own: it neither fills the loop's shared pool nor holds up the process's end. Look-ups for the same name
share one thread, and their number is bounded.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from kvnode.addresses import Address, parse_address
from kvnode.errors import PeerUnreachable

LOOKUPS_MAX: Final = 32

Resolve = Callable[[Address], Awaitable[list[Address]]]
"""Gives the IP addresses of a host, best first, each with the port."""


def is_literal(host: str) -> bool:
    """Whether ``host`` is an IP address and needs no look-up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


class ThreadResolver:
    """``getaddrinfo`` with bounds. Owned by one loop."""

    def __init__(self) -> None:
        """No look-up is under way."""
        self._waiting: dict[str, asyncio.Future[list[str] | OSError]] = {}

    async def __call__(self, address: Address) -> list[Address]:
        """Return the IPs of ``address.host``; never empty. The caller bounds the time.

        Raises:
            PeerUnreachable: Unknown name, or too many look-ups are stuck already.
        """
        if is_literal(address.host):
            return [address]
        found = await asyncio.shield(self._lookup(address.host))
        if isinstance(found, OSError):
            raise PeerUnreachable(f"cannot resolve {address.host}: {found}", took_effect="no")
        return [Address(ip, address.port) for ip in found]

    def _lookup(self, host: str) -> asyncio.Future[list[str] | OSError]:
        future = self._waiting.get(host)
        if future is not None:
            return future
        if len(self._waiting) >= LOOKUPS_MAX:
            raise PeerUnreachable(
                f"cannot resolve {host}: {LOOKUPS_MAX} look-ups are stuck", took_effect="no"
            )
        loop = asyncio.get_running_loop()
        future = self._waiting[host] = loop.create_future()

        def finish(result: list[str] | OSError) -> None:
            self._waiting.pop(host, None)
            if not future.done():
                future.set_result(result)

        def work() -> None:
            result = _getaddrinfo(host)
            try:
                loop.call_soon_threadsafe(finish, result)
            except RuntimeError:
                return  # the loop was closed meanwhile; nobody waits any more

        threading.Thread(target=work, name=f"resolve-{host}"[:15], daemon=True).start()
        return future


def _getaddrinfo(host: str) -> list[str] | OSError:
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError as error:  # a label that is empty or too long for IDNA
        return OSError(str(error))
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


def parse_candidates(texts: tuple[str, ...], candidates_max: int = 8) -> list[Address]:
    """Parse the places where a peer may be; malformed ones and repetitions are left out."""
    found: dict[Address, None] = {}
    for text in texts:
        try:
            found[parse_address(text)] = None
        except ValueError:
            continue
    return list(found)[:candidates_max]

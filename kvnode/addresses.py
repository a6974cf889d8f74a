"""``host:port`` as people write it, in one place. Pure text: nothing here asks the network."""

from __future__ import annotations

from typing import NamedTuple

PORT_MAX = 65535


class Address(NamedTuple):
    """A host, a name or an IP without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int | None = None) -> Address:
    """Parse ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a bare IPv6 address.

    Args:
        text: What was written; spaces around it are ignored.
        default_port: Port where none is given; None means that one must be given.

    Raises:
        ValueError: No host, no port, or a port outside ``[0, 65535]``. The text is in the message.
    """
    stripped = text.strip()
    if stripped.startswith("["):
        host, bracket, rest = stripped[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"not an address: {text!r}")
        port_text = rest[1:] if rest else None
    elif stripped.count(":") > 1:
        host, port_text = stripped, None  # an IPv6 address without brackets has no port
    else:
        host, colon, after = stripped.partition(":")
        port_text = after if colon else None
    if not host or any(c.isspace() for c in host):
        raise ValueError(f"not an address, the host is missing: {text!r}")
    return Address(host, _port(port_text, default_port, text))


def _port(port_text: str | None, default_port: int | None, text: str) -> int:
    if port_text is None:
        if default_port is None:
            raise ValueError(f"not an address, the port is missing: {text!r}")
        return default_port
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > PORT_MAX:
        raise ValueError(f"not an address, the port is wrong: {text!r}")
    return int(port_text)

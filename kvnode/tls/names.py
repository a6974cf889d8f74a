"""Whether a certificate is for a name, by RFC 6125 as far as servers use it today. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

Certificate = Mapping[str, Any]
"""What ``ssl.SSLSocket.getpeercert()`` returns."""


def certificate_names(certificate: Certificate) -> tuple[str, ...]:
    """Return the DNS names and IP addresses that a certificate is for, in its order.

    Only the subject's alternative names count: common names have not for years.
    """
    return tuple(
        str(value)
        for kind, value in certificate.get("subjectAltName", ())
        if kind in ("DNS", "IP Address")
    )


def matches(certificate: Certificate, host: str) -> bool:
    """Return whether a certificate is for ``host``, a DNS name or an IP address.

    A star stands for exactly one whole label, the first one; an IP address is only matched by itself.
    """
    host = host.rstrip(".").lower()
    address = _address(host)
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "IP Address" and address is not None:
            if _address(str(value)) == address:
                return True
        elif kind == "DNS" and address is None and _dns_matches(str(value).lower(), host):
            return True
    return False


def _dns_matches(pattern: str, host: str) -> bool:
    pattern = pattern.rstrip(".")
    if not pattern or not host:
        return False
    if not pattern.startswith("*."):
        return pattern == host
    first, _, rest = host.partition(".")
    # "*.com" would be half of the world: at least two labels have to follow the star.
    return bool(first) and rest == pattern[2:] and "." in rest


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None

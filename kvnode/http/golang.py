"""The pieces of Go that show through Consul's API: numbers, durations, query strings.

Consul's clients are written against what Go's standard library accepts and says, so the grammar and
the error texts are reproduced here, apart from everything else (spec §1.2, §1.3, §4.2).
"""

from __future__ import annotations

import re
from urllib.parse import quote_plus

from kvnode.http.paths import unquote

UINT64_MAX = 2**64 - 1
INT64_MAX = 2**63 - 1
_DIGITS = re.compile(r"[0-9]+").fullmatch
_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,  # Go accepts the Greek letter beside the micro sign
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_SMALL_UNITS = (("ms", 10**6), ("µs", 10**3), ("ns", 1))
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")


def quote(value: str) -> str:
    """Quote as ``strconv.Quote`` does, near enough for an error text."""
    shown = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) + '"'


def parse_uint(value: str) -> int:
    """Parse an unsigned 64-bit decimal number.

    Raises:
        ValueError: With Go's text, ``strconv.ParseUint: parsing "abc": invalid syntax``.
    """
    if not _DIGITS(value):
        raise ValueError(f"strconv.ParseUint: parsing {quote(value)}: invalid syntax")
    # The length first: Python refuses to convert thousands of digits.
    digits = value.lstrip("0") or "0"
    if len(digits) > 20 or int(digits) > UINT64_MAX:
        raise ValueError(f"strconv.ParseUint: parsing {quote(value)}: value out of range")
    return int(digits)


def parse_duration_ns(value: str) -> int:
    """Parse a duration such as ``1h30m`` or ``9.97s``; return nanoseconds.

    Raises:
        ValueError: With Go's text, ``time: invalid duration "foo"``.
    """
    rest = value
    sign = 1
    if rest[:1] in {"-", "+"}:
        sign = -1 if rest[0] == "-" else 1
        rest = rest[1:]
    if rest == "0":
        return 0
    invalid = f"time: invalid duration {quote(value)}"
    if not rest or len(rest) > 64:
        raise ValueError(invalid)
    total = 0
    while rest:
        match = _TERM.match(rest)
        assert match is not None, "every part of the pattern may be empty"
        whole, fraction, unit = match.groups()
        if not whole and not fraction:
            raise ValueError(invalid)
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(value)}")
        scale = _UNITS_NS.get(unit)
        if scale is None:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(value)}")
        total += int(whole or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        if total > INT64_MAX:
            raise ValueError(invalid)
        rest = rest[match.end() :]
    return sign * total


def format_duration(nanoseconds: int) -> str:
    """Write a duration as ``Duration.String`` does: ``10s``, ``1m0s``, ``24h0m0s``, ``1.5ms``."""
    sign, left = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if left == 0:
        return "0s"
    if left < 10**9:
        unit, scale = next((u, n) for u, n in _SMALL_UNITS if left >= n)
        return f"{sign}{_decimal(left, scale)}{unit}"
    minutes, seconds = divmod(left, 60 * 10**9)
    shown = f"{_decimal(seconds, 10**9)}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        shown = f"{hours}h{minutes}m{shown}" if hours else f"{minutes}m{shown}"
    return sign + shown


def _decimal(value: int, scale: int) -> str:
    whole, fraction = divmod(value, scale)
    digits = str(scale + fraction)[1:].rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def parse_query(raw: bytes) -> dict[str, list[str]]:
    """Split a query string; a malformed pair is left out, as ``URL.Query`` does.

    Bytes that are no UTF-8 survive as surrogate escapes: encode with ``surrogateescape``.
    """
    values: dict[str, list[str]] = {}
    for pair in raw.split(b"&"):
        if not pair or b";" in pair:
            continue
        name, _, value = pair.partition(b"=")
        decoded_name = unquote(name.replace(b"+", b" "))
        decoded_value = unquote(value.replace(b"+", b" "))
        if decoded_name is None or decoded_value is None:
            continue
        key = decoded_name.decode("utf-8", "surrogateescape")
        values.setdefault(key, []).append(decoded_value.decode("utf-8", "surrogateescape"))
    return values


def encode_query(values: dict[str, list[str]]) -> str:
    """Encode again with the names sorted, as ``Values.Encode`` does."""
    return "&".join(
        f"{quote_plus(name, errors='surrogateescape')}={quote_plus(value, errors='surrogateescape')}"
        for name in sorted(values)
        for value in values[name]
    )

"""The header lines of a request, read only when they cannot be misread.

Request smuggling lives where two parsers disagree about where a message ends. This one accepts a strict
subset of HTTP/1.1, checked by one regular expression. Whatever is doubtful (folded lines, two lengths,
``Transfer-Encoding``, ``Expect``, ``Upgrade``, bare line feeds) is left to a full parser.

Why not ``httptools``: it calls back once per header line, and does not tell where in the bytes a message
ended, which handing a connection over needs. Clients repeat their header lines on a kept connection, so
a block seen before costs one look-up here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_BLOCK = re.compile(
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*", re.DOTALL
).fullmatch
_LENGTH = re.compile(rb"[0-9]{1,10}").fullmatch
_ODD_HEADERS = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"idempotency-key"})
_ONCE = re.compile(rb"(?im)^idempotency-key:[ \t]*([^\r\n]+)\r\n")
_REMEMBERED_BLOCK_BYTES_MAX = 768


class Facts(NamedTuple):
    """What a block of header lines says that matters here."""

    length: int
    """Bytes of body that follow."""
    close: bool
    """The client wants the connection closed after the answer."""
    once: bytes = b""
    """The request's idempotency key, as it came; empty: it has none."""


def read_block(block: bytes) -> Facts | None:
    """Read header lines, each ended by CRLF. None: leave this request to the full parser."""
    if b"potency-" in block:  # spelt otherwise, it is left to the full parser
        return _read_once(block)
    if len(block) <= _REMEMBERED_BLOCK_BYTES_MAX:
        return _read_remembered(block)
    return _read_block(block)


def _read_once(block: bytes) -> Facts | None:
    """Read the lines of a write with a key, which is another in each request, apart from the others."""
    keys = _ONCE.findall(block)
    if len(keys) != 1:
        return None
    facts = read_block(_ONCE.sub(b"", block))
    return None if facts is None else facts._replace(once=keys[0])


def _read_block(block: bytes) -> Facts | None:
    if not _BLOCK(block):
        return None
    length: bytes | None = None
    hosts = 0
    close = False
    for line in block[:-2].split(b"\r\n"):
        raw_name, _, raw_value = line.partition(b":")
        name = raw_name.lower()
        if name in _ODD_HEADERS:
            return None
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            value = raw_value.strip(b" \t")
            if length is not None or not _LENGTH(value):
                return None
            length = value
        elif name == b"connection":
            option = raw_value.strip(b" \t").lower()
            if option not in {b"close", b"keep-alive"}:
                return None
            close = close or option == b"close"
    return Facts(int(length or 0), close) if hosts == 1 else None


_read_remembered = lru_cache(maxsize=512)(_read_block)

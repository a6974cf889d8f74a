"""Requests and answers as plain values, and the JSON that Consul's clients expect.

Nothing here knows a server library. A ``Response`` carries its header lines as ready bytes, so that
the lean path only joins them, and the other shell splits them again (``header_pairs``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from kvnode.http.uploads import Upload

VARY = b"Vary: Accept-Encoding\r\nX-Consul-Default-ACL-Policy: allow\r\n"
"""On every answer under ``/v1`` (spec §1.7)."""
JSON_TYPE = b"Content-Type: application/json\r\n"
TEXT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
HTML_TYPE = b"Content-Type: text/html; charset=utf-8\r\n"
RETRY_AFTER = b"Retry-After: 1\r\n"
"""Seconds. A leader is usually elected within one or two."""


class Response(NamedTuple):
    """One answer."""

    status: int
    head: bytes = b""
    """Header lines, each ended by CRLF. Without Content-Length, Connection, Date, Server and
    X-Kvnode-Node: the shell adds those."""
    body: bytes = b""


class Request(NamedTuple):
    """One request as the routes see it, read completely and bounded."""

    method: str
    path: bytes
    """Decoded and clean (see ``paths``)."""
    query: bytes
    """As received, without the question mark."""
    headers: Mapping[str, str]
    """Names match without regard to case."""
    body: bytes
    upload: Upload | None = None
    """The body in a file, for routes that ask for it; ``body`` is empty then."""


Respond = Callable[[Response], None]
"""Takes the answer; called exactly once."""


def header_pairs(head: bytes) -> list[tuple[str, str]]:
    """Split ready header lines into names and values."""
    lines = head.decode("latin-1").split("\r\n")
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines) if name]


def text(status: int, body: str, *, head: bytes = b"", v1: bool = True) -> Response:
    """Make a plain text answer, without a newline at the end (spec §1.6)."""
    prefix = VARY if v1 else b""
    return Response(status, prefix + TEXT_TYPE + head, body.encode("utf-8", "replace"))


def own_text(status: int, body: str, *, head: bytes = b"") -> Response:
    """Make a plain text answer of our own routes: one line for people, ended by a newline."""
    return text(status, body + "\n", head=head, v1=False)


def json_answer(
    value: Any, *, pretty: bool = False, status: int = 200, head: bytes = b"", v1: bool = True
) -> Response:
    """Make a JSON answer; members keep the order of ``value`` (spec §1.4)."""
    body = dump_json(value)
    prefix = VARY if v1 else b""
    return Response(status, prefix + JSON_TYPE + head, prettify(body) if pretty else body)


_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
_TO_ESCAPE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_PLAIN_KEY = re.compile(rb"[ !#-%'-;=?-\[\]-~]*").fullmatch
"""ASCII without control characters, quote, backslash and the three that Go escapes."""


def _escape(match: re.Match[str]) -> str:
    # A lone surrogate stands for a byte that is no UTF-8; Go writes the replacement character.
    return _ESCAPES.get(match.group(), "\\ufffd")


def html_safe(document: str) -> str:
    """Escape what Go's encoder escapes inside strings (spec §1.4)."""
    return _TO_ESCAPE.sub(_escape, document)


def dump_json(value: Any) -> bytes:
    """Encode as Go does: compact, UTF-8, ``<``, ``>``, ``&`` and U+2028/9 escaped (spec §1.4)."""
    document = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return html_safe(document).encode()


def json_string(value: bytes) -> bytes:
    r"""Encode bytes as a JSON string; a byte that is no UTF-8 becomes ``\\ufffd``, as in Go."""
    if _PLAIN_KEY(value):
        return b'"%b"' % value
    return dump_json(value.decode("utf-8", "surrogateescape"))


def prettify_item(document: bytes) -> bytes:
    """Indent one item of an array, without the indent of its first line (spec §1.4)."""
    indented = json.dumps(json.loads(document), ensure_ascii=False, indent=4)
    return html_safe(indented).encode().replace(b"\n", b"\n    ")


def prettify(document: bytes) -> bytes:
    """Indent by four spaces and end with a newline (spec §1.4)."""
    indented = json.dumps(json.loads(document), ensure_ascii=False, indent=4)
    return html_safe(indented).encode() + b"\n"

"""From the request line to a clean path (spec §1.1).

Consul decodes the path first and then looks at it, so ``%2F`` separates and ``%2e%2e`` climbs. A path
that is not clean is redirected: 301 where the method survives that (GET, HEAD), 307 elsewhere, since
a 301 makes most clients drop the method and the body.
"""

from __future__ import annotations

import posixpath
from html import escape
from urllib.parse import quote_from_bytes

from kvnode.http.messages import HTML_TYPE, Response

_HEX = {f"{n:02x}".encode(): bytes([n]) for n in range(256)}
_SAFE = "/$&+,:;=@!*'()"
"""What Go leaves alone in a path besides letters, digits and ``-_.~``."""

BAD_ESCAPE = Response(
    400, b"Content-Type: text/plain; charset=utf-8\r\n", b"Bad request: invalid URL escape"
)
NOT_PRINTABLE = Response(400)


def unquote(raw: bytes) -> bytes | None:
    """Decode ``%XX``; None when an escape is malformed, as Go refuses those."""
    pieces = raw.split(b"%")
    decoded = [pieces[0]]
    for piece in pieces[1:]:
        byte = _HEX.get(piece[:2].lower())
        if byte is None:
            return None
        decoded.append(byte + piece[2:])
    return b"".join(decoded)


def resolve(method: str, raw_path: bytes, raw_query: bytes) -> bytes | Response:
    """Return the decoded path, or the answer that refuses or redirects it.

    Args:
        method: Decides between 301 and 307.
        raw_path: As received, starting with a slash.
        raw_query: As received; a redirect keeps it.
    """
    path = raw_path
    if b"%" in raw_path:
        decoded = unquote(raw_path)
        if decoded is None:
            return BAD_ESCAPE
        path = decoded
    # Go's strings hold any bytes; a byte that is no UTF-8 counts as printable there.
    if not path.decode("utf-8", "replace").isprintable():
        return NOT_PRINTABLE
    if b"//" in path or b"/." in path:
        clean = clean_path(path)
        if clean != path:
            return redirect(method, clean, raw_query)
    return path


def clean_path(path: bytes) -> bytes:
    """Remove empty, ``.`` and ``..`` segments; a final slash stays (Go's ``ServeMux``)."""
    clean = posixpath.normpath(path)
    if clean.startswith(b"//"):  # POSIX leaves exactly two leading slashes alone
        clean = clean[1:]
    # Go keeps a final slash, but not one that only a dot segment made.
    return clean + b"/" if path.endswith(b"/") and clean != b"/" else clean


def redirect(method: str, path: bytes, raw_query: bytes = b"") -> Response:
    """Redirect to ``path``, with the body that Go's server sends on GET."""
    reads = method in {"GET", "HEAD"}
    target = quote_from_bytes(path, safe=_SAFE)
    if raw_query:
        # What is no plain URL text (or could end the header line) is encoded once more.
        target += "?" + quote_from_bytes(raw_query, safe="%/?:@!$&'()*+,;=")
    head = b"Location: %b\r\n" % target.encode("ascii")
    if not reads:
        return Response(307, head)
    body = f'<a href="{escape(target, quote=True)}">Moved Permanently</a>.\n\n'
    return Response(301, HTML_TYPE + head, body.encode())

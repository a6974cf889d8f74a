"""The web page, the API's own description, and ``/``."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from importlib import resources
from typing import TYPE_CHECKING

from kvnode.http.messages import HTML_TYPE, JSON_TYPE, TEXT_TYPE, Request, Response, own_text
from kvnode.http.paths import redirect

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings

_TYPES = {
    "html": HTML_TYPE,
    "js": b"Content-Type: text/javascript; charset=utf-8\r\n",
    "css": b"Content-Type: text/css; charset=utf-8\r\n",
    "svg": b"Content-Type: image/svg+xml\r\n",
}
_UI_HEAD = (
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'\r\n"
    b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
)


@cache
def ui_files() -> dict[bytes, tuple[bytes, bytes]]:
    """Load the web page's files once: name -> (header lines, content)."""
    files = {}
    for item in resources.files("kvnode.ui").iterdir():
        kind = _TYPES.get(item.name.rpartition(".")[2])
        if kind is not None:
            content = item.read_bytes()
            tag = blake2b(content, digest_size=12).hexdigest().encode()
            # The files carry no version in their names: ask each time, answer 304 when unchanged.
            head = kind + _UI_HEAD + b'ETag: "%b"\r\nCache-Control: no-cache\r\n' % tag
            files[item.name.encode()] = (head, content)
    return files


class PageRoutes:
    """The handlers."""

    def __init__(self, settings: HttpSettings) -> None:
        """Read the files now, so that no request touches the disk."""
        self._ui_on = settings.ui
        self._openapi = resources.files("kvnode.http").joinpath("openapi.json").read_bytes()
        if settings.ui:
            ui_files()

    async def root(self, request: Request) -> Response:
        """``GET /``: to the web page; without one, Consul's words (spec §1.1)."""
        if self._ui_on:
            return redirect("GET", b"/ui/")
        return Response(200, TEXT_TYPE, b"Consul Agent")

    async def ui(self, request: Request) -> Response:
        """``GET /ui/…``: the page's files; an unknown name below it is 404."""
        name = request.path[len(b"/ui/") :] or b"index.html"
        found = ui_files().get(name) if self._ui_on else None
        if found is None:
            return own_text(404, "no such page")
        head, content = found
        tag = head.partition(b"ETag: ")[2].partition(b"\r\n")[0].decode()
        if tag in request.headers.get("If-None-Match", ""):
            return Response(304, head)
        return Response(200, head, content)

    async def openapi(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return Response(200, JSON_TYPE, self._openapi)

"""Which handler answers which path, and what every route answers alike (spec §1.1).

A table and one look-up: exact paths first, then prefixes that end with a slash, the longest first, as
Go's ``ServeMux`` does. OPTIONS, 405 and 404 are decided here, before a body is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from kvnode.http.messages import VARY, Request, Response, text
from kvnode.http.paths import redirect, resolve
from kvnode.http.streams import Stream

Handler = Callable[[Request], Awaitable[Response | Stream]]


class Route(NamedTuple):
    """One line of the table."""

    path: str
    """Exact, or a prefix when it ends with a slash; also the route's label in the metrics."""
    methods: tuple[str, ...]
    """As ``Allow`` lists them."""
    handler: Handler
    unlisted: tuple[str, ...] = ()
    """Methods that work, but are not in ``Allow``."""
    large_body: bool = False
    """The body is a value: bounded by ``value_bytes_max``, and refused with Consul's text."""
    upload: tuple[str, ...] = ()
    """Methods whose body goes to a file (``Request.upload``), bounded by ``upload_bytes_max``."""

    @property
    def v1(self) -> bool:
        """Whether the route is one of Consul's: they register no HEAD (spec §1.1)."""
        return self.path.startswith("/v1/")

    def allow(self) -> str:
        """Return the value of ``Allow``: OPTIONS first, no spaces."""
        listed = list(self.methods)
        if not self.v1 and "GET" in listed:
            listed.insert(listed.index("GET") + 1, "HEAD")
        return ",".join(("OPTIONS", *listed))

    def takes(self, method: str) -> bool:
        """Whether the handler may be called with this method."""
        if method == "HEAD":
            return not self.v1 and "GET" in self.methods
        return method in self.methods or method in self.unlisted


class Match(NamedTuple):
    """A route and the path that led to it."""

    route: Route
    path: bytes
    """Decoded and clean."""


class Router:
    """The table."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Index the routes."""
        self.routes = tuple(routes)
        self._exact = {route.path.encode(): route for route in self.routes}
        prefixes = [
            route for route in self.routes if route.path.endswith("/") and route.path != "/"
        ]
        self._prefixes = [
            (route.path.encode(), route)
            for route in sorted(prefixes, key=lambda route: len(route.path), reverse=True)
        ]
        assert len(self._exact) == len(self.routes), "two routes with one path"

    def find(self, method: str, raw_path: bytes, raw_query: bytes) -> Match | tuple[str, Response]:
        """Find the route, or the answer at once with its label for the metrics."""
        path = resolve(method, raw_path, raw_query)
        if isinstance(path, Response):
            return "redirect" if path.status in {301, 307} else "bad_path", path
        route = self._look_up(path)
        if route is None:
            if self._is_prefix(path + b"/"):
                return "redirect", redirect(method, path + b"/", raw_query)
            return "unknown", _unknown(path)
        if route.takes(method):
            return Match(route, path)
        allow = b"Allow: %b\r\n" % route.allow().encode()
        if method == "OPTIONS":
            return route.path, Response(200, (VARY if route.v1 else b"") + allow)
        return route.path, text(405, f"method {method} not allowed", head=allow, v1=route.v1)

    def _is_prefix(self, path: bytes) -> bool:
        return any(path == prefix for prefix, _ in self._prefixes)

    def _look_up(self, path: bytes) -> Route | None:
        route = self._exact.get(path)
        if route is not None:
            return route
        for prefix, route in self._prefixes:
            if path.startswith(prefix):
                return route
        return None


def _unknown(path: bytes) -> Response:
    if b"/v1/" in path:
        return text(404, "Invalid URL path: not a recognized HTTP API endpoint\n", v1=False)
    return text(
        404,
        "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n",
        v1=False,
    )

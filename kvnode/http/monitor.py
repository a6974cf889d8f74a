"""``GET /v1/agent/monitor``: the node's log from now on, as lines of text or JSON (spec §10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvnode.http.messages import TEXT_TYPE, VARY, Request, Response, text
from kvnode.http.query import parse_options
from kvnode.http.streams import Stream

if TYPE_CHECKING:
    from kvnode.http.context import HttpContext

LEVELS: Final = {
    "trace": "trace",
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "warning": "warn",
    "err": "error",
    "error": "error",
}


class MonitorRoute:
    """The handler."""

    def __init__(self, context: HttpContext) -> None:
        """Remember where lines come from."""
        self._follow = context.follow_log

    async def monitor(self, request: Request) -> Response | Stream:
        """``?loglevel=`` (default ``info``) is independent of what the node logs itself; ``?logjson``."""
        options = parse_options(request.query)
        wanted = options.first("loglevel") or "info"
        level = LEVELS.get(wanted.lower())
        if level is None:
            return text(400, f"Unknown log level: {wanted}")
        if self._follow is None:
            return text(500, "this node has no log to show")
        chunks = self._follow(level, "logjson" in options.values)
        return Stream(200, VARY + TEXT_TYPE, chunks, endless=True)

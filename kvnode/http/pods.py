"""``GET /pods``: ask discovery, then every pod, and show one line for each (design §6)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from kvnode.http.completion import wait_for
from kvnode.http.messages import JSON_TYPE, TEXT_TYPE, Request, Response, dump_json, prettify
from kvnode.http.query import parse_options

if TYPE_CHECKING:
    from kvnode.http.context import HttpContext
    from kvnode.replica.facade import PodStatus

_LOG = structlog.get_logger("kvnode.http")

_COLUMNS = ("NAME", "ADDRESS", "ROLE", "TERM", "APPLIED", "LAG", "KEYS", "DIGEST")
_DIGEST_SHOWN = 12
"""Digits of the digest in the table; JSON has all of them."""


class PodsRoute:
    """The handler."""

    def __init__(self, context: HttpContext) -> None:
        """Remember whom to ask."""
        self._context = context

    async def pods(self, request: Request) -> Response:
        """Answer plain text, or JSON when ``Accept`` prefers it or ``?format=json`` asks."""
        options = parse_options(request.query)
        note = ""
        found: list[str] = []
        try:
            async with asyncio.timeout(self._context.settings.pods_timeout_s):
                found = await self._context.pod_addresses()
        except TimeoutError:
            note = "discovery did not answer in time; only known members were asked"
        except Exception as error:  # noqa: BLE001  # any resolver's error: the members remain
            _LOG.warning("pods_discovery_failed", error=repr(error))
            note = "discovery failed; only known members were asked"
        addresses = tuple(dict.fromkeys(found))
        pods: list[PodStatus] = await wait_for(partial(self._context.replica.pods, addresses))
        pods.sort(key=lambda pod: (not pod.reachable, pod.name, pod.address))
        if _wants_json(request.headers.get("Accept", "")) or options.first("format") == "json":
            body = dump_json([pod._asdict() for pod in pods])
            return Response(200, JSON_TYPE, prettify(body) if options.pretty else body + b"\n")
        return Response(200, TEXT_TYPE, table(pods, note).encode())


def _wants_json(accept: str) -> bool:
    """Whether JSON stands before ``text/*`` and ``*/*``; curl's ``*/*`` means the table."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind == "application/json":
            return True
        if kind in {"text/plain", "text/html", "text/*", "*/*"}:
            return False
    return False


def table(pods: list[PodStatus], note: str = "") -> str:
    """Lay the pods out in columns, unreachable ones last with their error."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for pod in pods:
        if not pod.reachable:
            rows.append((pod.name or "?", pod.address, f"unreachable: {pod.error}"))
            continue
        digest = f"{pod.digest[:_DIGEST_SHOWN]}@{pod.digest_index}" if pod.digest else "-"
        numbers = (pod.term, pod.applied_index, pod.lag, pod.keys)
        rows.append((pod.name, pod.address, pod.role, *map(str, numbers), digest))
    full = [row for row in rows if len(row) == len(_COLUMNS)]
    widths = [max(len(row[i]) for row in full) for i in range(len(_COLUMNS))]
    for row in rows:
        for i in range(2):
            widths[i] = max(widths[i], len(row[i]))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
             for row in rows]  # fmt: skip
    lines.append(_verdict(pods))
    if note:
        lines.append(note)
    return "\n".join(lines) + "\n"


def _verdict(pods: list[PodStatus]) -> str:
    """Say whether the data agrees (RC-74)."""
    reachable = [pod for pod in pods if pod.reachable]
    digests = {pod.digest for pod in reachable if pod.digest}
    if len(digests) > 1:
        return f"{len(reachable)} of {len(pods)} pods reachable; THE DATA DIFFERS"
    if not digests:
        return f"{len(reachable)} of {len(pods)} pods reachable; no common index to compare"
    index = max(pod.digest_index for pod in reachable)
    return f"{len(reachable)} of {len(pods)} pods reachable; data equal at index {index}"

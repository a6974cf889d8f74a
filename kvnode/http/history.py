"""What changed, as JSON: revisions of a key, and the parameters that ask for the past."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvnode.http.entries import entry_json
from kvnode.http.golang import parse_uint
from kvnode.http.messages import Response, text
from kvnode.store.records import Cause

if TYPE_CHECKING:
    from kvnode.http.query import Options
    from kvnode.store.history import Revisions
    from kvnode.store.records import KVPair

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 1000
"""Revisions in one answer."""
BYTES_MAX: Final = 4 * 1024 * 1024
"""About so many bytes of values in one answer."""

_CAUSES: Final = {
    int(cause): cause.name.lower().replace("_", "-").encode("ascii") for cause in Cause
}


def cause_json(cause: int) -> bytes:
    """Return what did it as a JSON string, such as ``"delete-tree"``; null: not known any more."""
    if not cause:
        return b"null"
    return b'"%b"' % _CAUSES.get(cause, b"other")


def pair_json(pair: KVPair | None) -> bytes:
    """Return an entry as a read would give it, or null."""
    return b"null" if pair is None else entry_json(pair)


def revisions_json(revisions: Revisions) -> bytes:
    """Return revisions as a JSON array, the newest first."""
    return b"[%b]" % b",".join(
        b'{"Index":%d,"By":%b,"Entry":%b}' % (index, cause_json(cause), pair_json(pair))
        for index, cause, pair in revisions.found
    )


def parse_as_of(options: Options) -> int | Response | None:
    """Return the index at which a key is to be read; None: now; or refuse it."""
    raw = options.first("as_of")
    if raw is None:
        return None
    try:
        return parse_uint(raw)
    except ValueError:
        return text(400, "Invalid as_of index")


def parse_limit(options: Options) -> int | Response:
    """Return how many revisions are asked for, or refuse it."""
    raw = options.first("limit")
    try:
        limit = parse_uint(raw) if raw else LIMIT_DEFAULT
    except ValueError:
        limit = 0
    if not 1 <= limit <= LIMIT_MAX:
        return text(400, f"Invalid limit: a number from 1 to {LIMIT_MAX}")
    return limit

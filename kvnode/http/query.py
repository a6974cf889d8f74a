"""The query options that every read under ``/v1`` shares (spec §1.2, §2.4, §3)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from kvnode.http.golang import parse_duration_ns, parse_query, parse_uint, quote
from kvnode.http.messages import Response, text
from kvnode.replica.facade import Consistency

if TYPE_CHECKING:
    from kvnode.replica.facade import ReadView

WAIT_DEFAULT_S = 300.0
WAIT_MAX_S = 600.0
_CACHED_QUERY_BYTES_MAX = 128


class Options(NamedTuple):
    """A parsed query string."""

    values: dict[str, list[str]]
    """All pairs. Shared between requests: never change it."""
    consistency: Consistency
    effective: bytes
    """What ``X-Consul-Effective-Consistency`` says: ``leader``, ``consistent`` or ``stale``."""
    max_stale_ms: float
    """Stale answers may not be older than this; 0: any age will do."""
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    """Block until the read's index is above it; 0: answer at once."""
    wait_s: float
    pretty: bool
    error: Response | None
    """The answer to a bad option; every other field is then a default."""
    enterprise: Response | None = None
    """The answer to an option that only Consul Enterprise has. Judged after ``error``."""

    def first(self, name: str) -> str | None:
        """Return the first value of a parameter, or None when it is absent."""
        found = self.values.get(name)
        return found[0] if found else None

    def fresh(self) -> Options:
        """Return the same for the leader's answer: a stale one was older than the client allows."""
        return self._replace(consistency=Consistency.DEFAULT, effective=b"leader", max_stale_ms=0.0)

    def is_too_stale(self, view: ReadView) -> bool:
        """Whether a view is older than the client allows: the read is then asked again as ``fresh``."""
        return 0 < self.max_stale_ms < view.last_contact_ms

    def foreign_datacenter(self, datacenter: str) -> Response | None:
        """Refuse a request for another datacenter (spec §1.2)."""
        wanted = self.first("dc")
        if wanted and wanted != datacenter:
            return text(500, "No path to datacenter")
        return None


def parse_options(raw: bytes) -> Options:
    """Parse a query string. Short ones are remembered: clients repeat a handful of them."""
    if not raw:
        return NO_OPTIONS
    if len(raw) <= _CACHED_QUERY_BYTES_MAX:
        return _parse_cached(raw)
    return _parse(raw)


@lru_cache(maxsize=2048)
def _parse_cached(raw: bytes) -> Options:
    return _parse(raw)


def _failed(values: dict[str, list[str]], message: str) -> Options:
    return NO_OPTIONS._replace(values=values, error=text(400, message))


def _parse(raw: bytes) -> Options:
    """Parse in Consul's order, so that of two mistakes the same one is reported."""
    values = parse_query(raw)
    stale = "stale" in values
    max_stale_ms = 0.0
    raw_max_stale = values.get("max_stale", [""])[0]
    if raw_max_stale:
        try:
            max_stale_ms = max(0.0, parse_duration_ns(raw_max_stale) / 1e6)
        except ValueError:
            return _failed(values, f"Invalid max_stale value {quote(raw_max_stale)}")
        stale = stale or max_stale_ms > 0
    consistent = "consistent" in values
    for name, present in (("stale", stale), ("cached", "cached" in values)):
        if present and consistent:
            return _failed(
                values, f"Cannot specify ?{name} with ?consistent, conflicting semantics."
            )
    try:
        wait_s = _wait_s(values.get("wait", [""])[0])
    except ValueError:
        return _failed(values, "Invalid wait time")
    try:
        index = parse_uint(values.get("index", [""])[0] or "0")
    except ValueError:
        return _failed(values, "Invalid index")
    consistency, effective = Consistency.DEFAULT, b"leader"
    if stale:
        consistency, effective = Consistency.STALE, b"stale"
    elif consistent:
        consistency, effective = Consistency.CONSISTENT, b"consistent"
    return Options(
        values,
        consistency,
        effective,
        max_stale_ms,
        index,
        wait_s,
        "pretty" in values,
        None,
        _enterprise(values),
    )


def _enterprise(values: dict[str, list[str]]) -> Response | None:
    """Refuse namespaces and partitions; empty ones are fine (spec §1.2)."""
    for name, feature in (("ns", "Namespaces are"), ("partition", "Partitions are")):
        if values.get(name, [""])[0]:
            return text(
                400,
                f'Bad request: Invalid query parameter: "{name}" - '
                f"{feature} a Consul Enterprise feature",
            )
    return None


def _wait_s(raw: str) -> float:
    """Return the wait limit: absent, zero and negative mean the default (spec §2.4)."""
    wait_s = parse_duration_ns(raw) / 1e9 if raw else 0.0
    return min(wait_s, WAIT_MAX_S) if wait_s > 0 else WAIT_DEFAULT_S


NO_OPTIONS = Options({}, Consistency.DEFAULT, b"leader", 0.0, 0, WAIT_DEFAULT_S, False, None)
"""What an empty query means."""

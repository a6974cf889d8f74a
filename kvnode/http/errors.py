"""From an error to an answer, in one place.

Under ``/v1`` the answers are Consul's: its clients match on status 500 and on the texts, and a 429 or
503 makes them drop their locks (spec §1.6, §14; design §6). On our own routes the status says what to
do: 400 change the request, 429 and 503 try again, 504 *find out first*, since the write may have taken
effect (RC-58).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from kvnode import errors
from kvnode.http.messages import RETRY_AFTER, Response, own_text, text

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings

_LOG = structlog.get_logger("kvnode.http")

_UNKNOWN = (
    "the outcome of this write is unknown: it may or may not have been stored, "
    "read the key before trying again"
)
_SETTINGS = {"kv_max_value_size": "value_bytes_max", "txn_max_req_len": "txn_bytes_max"}
"""Our names of Consul's settings."""
_NOTHING_STORED = "nothing was stored, try again"
INTERNAL = "internal error"


def refuse(error: BaseException, *, v1: bool, write: bool) -> Response:
    """Answer an error.

    Args:
        error: What the replica, the store or a route raised.
        v1: Whether the route is one of Consul's.
        write: Whether the request could have changed something: only then can its outcome be
            unknown.
    """
    status, message, again = _describe(error, write=write)
    head = RETRY_AFTER if again else b""
    if v1:
        # Consul knows few codes; everything that is not the client's mistake is 500.
        return text(status if status in {400, 410, 413} else 500, message, head=head)
    return own_text(status, message, head=head)


def _describe(error: BaseException, *, write: bool) -> tuple[int, str, bool]:
    """Return our own routes' status, the text, and whether trying again may help."""
    unknown = write and isinstance(error, errors.NotNow) and error.took_effect == "unknown"
    match error:
        case errors.ValueTooLarge():
            return 413, str(error), False
        case errors.Compacted():
            return 410, str(error), False
        case errors.BadRequest():
            return 400, str(error), False
        case errors.LeadershipLost() if unknown:
            return 504, f"leadership lost while committing log: {_UNKNOWN}", False
        case errors.NotNow() if unknown:
            return 504, f"{_cause(error)}: {_UNKNOWN}", False
        case errors.NoLeader() | errors.NotLeader():
            return 503, "No cluster leader", True
        case errors.Overloaded():
            return 429, f"server overloaded, {_again(write)}: {error}", True
        case errors.NotNow():
            return 503, f"{_cause(error)}: {_again(write)}", True
        case errors.MembershipRefused():
            return 409, str(error), False
        case errors.MustStop():
            _LOG.error("http_request_hit_fatal_error", error=str(error))
            return 503, f"this node is stopping: {error}", True
        case _:
            _LOG.error("http_request_failed", exc_info=error)
            return 500, INTERNAL, False


def _again(write: bool) -> str:
    return _NOTHING_STORED if write else "try again"


def _cause(error: errors.NotNow) -> str:
    match error:
        case errors.LeadershipLost():
            return "leadership lost"
        case errors.Timeout():
            return "timed out"
        case errors.PeerUnreachable():
            return "the leader cannot be reached"
        case _:
            return str(error)


def too_large(length: int | None, limit: int, setting: str, *, v1: bool) -> Response:
    """Refuse a body above the limit (spec §4.2, §6), naming it as Consul does.

    ``length`` None: it was not announced.
    """
    announced = "" if length is None else f"({length} bytes)"
    message = (
        f"Request body{announced} too large, max size: {limit} bytes. "
        "See https://developer.hashicorp.com/consul/docs/agent/config/config-files"
        f"#{setting}. The setting is {_SETTINGS.get(setting, setting)}."
    )
    return text(413, message) if v1 else own_text(413, message)


def key_too_long(length: int, settings: HttpSettings, *, v1: bool) -> Response:
    """Refuse a key above the bound, naming it."""
    message = key_too_long_text(length, settings)
    return text(400, message) if v1 else own_text(400, message)


def key_too_long_text(length: int, settings: HttpSettings) -> str:
    """Say what is wrong with a key above the bound."""
    return f"Key is too long ({length} > {settings.key_bytes_max} bytes). The setting is key_bytes_max."

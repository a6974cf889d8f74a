"""What ``/v1/kv`` and ``/kv`` can do beyond Consul: parameters of writes and of lists, and their answers.

Nothing in here is reached by a request without one of these parameters, so Consul's clients see Consul.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes

from kvnode.http.golang import (
    INT64_MAX,
    encode_query,
    format_duration,
    parse_duration_ns,
    parse_uint,
    quote,
)
from kvnode.http.messages import Response, own_text, text
from kvnode.http.session_ids import canonical
from kvnode.store.fields import INT64_MIN
from kvnode.store.own_commands import KvAdd, KvCopy, KvPut, Mode, Why
from kvnode.store.paging import Page

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings
    from kvnode.http.query import Options
    from kvnode.store.commands import Command
    from kvnode.store.own_commands import Refused

WRITES: Final = frozenset({"ttl", "add", "copy", "move", "keep", "if-index"})
"""Parameters of PUT that are ours."""
LISTS: Final = frozenset({"limit", "after", "reverse", "count", "start", "end"})
"""Parameters of lists that are ours."""
TTL_MAX_NS: Final = 10 * 365 * 86_400 * 10**9
NEXT_AFTER: Final = b"X-Kvnode-Next-After: %b\r\n"

_VERBS: Final = ("acquire", "add", "copy", "move", "release")
"""What a PUT can be, beside a plain one: one of them."""
_CONDITIONS: Final = ("cas", "if-index")
_NOT_WITH: Final = {
    "add": ("flags", "if-index", "keep", "overwrite", "recurse"),
    "copy": ("flags", "if-index", "keep", "ttl"),
    "move": ("flags", "if-index", "keep", "ttl"),
    "keep": ("flags",),
    "acquire": ("cas",),
    "release": ("cas",),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,25}").fullmatch


class _RefusalError(Exception):
    """A request that cannot be; ``response`` says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.response = text(status, message)


def parse_page(options: Options) -> Page | Response:
    """Read which part of a list is asked for."""
    values = options.values
    limit = None
    if "limit" in values:
        try:
            limit = parse_uint(values["limit"][0])
        except ValueError:
            limit = 0
        if not limit:
            return text(400, "Invalid limit: a number from 1 on")
    return Page(
        limit,
        _bytes(options, "after"),
        "reverse" in values,
        _bytes(options, "start"),
        _bytes(options, "end"),
    )


def _bytes(options: Options, name: str) -> bytes | None:
    value = options.first(name)
    return None if value is None else value.encode("utf-8", "surrogateescape")


def next_after(name: bytes | None) -> bytes:
    """Return the header line that leads to the next page; nothing behind the last one."""
    if name is None:
        return b""
    return NEXT_AFTER % quote_from_bytes(name, safe="/").encode()


def parse_put(
    key: bytes, options: Options, body: bytes, settings: HttpSettings
) -> Command | Response:
    """Parse a PUT with one of our parameters; an empty key is left to the caller, but of copies."""
    try:
        return _parse_put(key, options, body, settings)
    except _RefusalError as refusal:
        return refusal.response


def _parse_put(key: bytes, options: Options, body: bytes, settings: HttpSettings) -> Command:
    values = options.values
    verbs = [name for name in _VERBS if name in values]
    conditions = [name for name in _CONDITIONS if name in values]
    clash = len(verbs) > 1 or len(conditions) > 1
    for name in (*verbs, "keep"):
        if name in values:
            clash = clash or any(other in values for other in _NOT_WITH.get(name, ()))
    if clash:
        raise _RefusalError(f"Conflicting flags: {encode_query(values)}\n")
    verb = verbs[0] if verbs else ""
    if verb in ("copy", "move"):
        return _parse_copy(key, verb, options, body, settings)
    if not key:
        raise _RefusalError("Missing key name")
    if verb == "add":
        return _parse_add(key, options, body, settings)
    return _parse_general(key, verb, options, body, settings)


def _parse_general(
    key: bytes, verb: str, options: Options, body: bytes, settings: HttpSettings
) -> KvPut:
    values = options.values
    keep = "keep" in values
    if keep and not verb:
        raise _RefusalError("?keep leaves the value as it is; it goes with ?acquire or ?release")
    if keep and body:
        raise _RefusalError("?keep leaves the value as it is, so the request takes no body")
    condition = "if-index" if "if-index" in values else "cas"
    put = KvPut(
        key,
        body,
        _uint(options, "flags") or 0,
        _uint(options, condition),
        keep=keep,
        ttl_ns=_ttl_ns(options, settings),
    )
    if not verb:
        return put
    session = values[verb][0]
    if not session:
        raise _RefusalError("missing session", 500)
    try:
        session = canonical(session)
    except ValueError as error:
        raise _RefusalError(str(error), 500) from error
    return put._replace(session=session, mode=Mode.LOCK if verb == "acquire" else Mode.UNLOCK)


def _uint(options: Options, name: str) -> int | None:
    value = options.first(name)
    if value is None:
        return None
    try:
        return parse_uint(value)
    except ValueError as error:
        raise _RefusalError(str(error), 500) from error  # as Consul does


def _ttl_ns(options: Options, settings: HttpSettings) -> int:
    shown = options.first("ttl")
    if shown is None:
        return 0
    try:
        ttl_ns = parse_duration_ns(shown)
    except ValueError as error:
        raise _RefusalError(f"Invalid ttl: {error}") from error
    least = max(1, settings.key_ttl_min_ns)
    if ttl_ns < least:
        shortest = f"{format_duration(least)} is the shortest (setting key_ttl_min_s)"
        raise _RefusalError(f"Invalid ttl {quote(shown)}: {shortest}")
    if ttl_ns > TTL_MAX_NS:
        longest = f"{format_duration(TTL_MAX_NS)} is the longest"
        raise _RefusalError(f"Invalid ttl {quote(shown)}: {longest}")
    return ttl_ns


def _parse_add(key: bytes, options: Options, body: bytes, settings: HttpSettings) -> KvAdd:
    shown = options.values["add"][0]
    if body:
        raise _RefusalError("?add changes the number that is stored, so the request takes no body")
    # A plus sign in a query is a space.
    found = _INTEGER(shown.strip(" "))
    delta = int(found[0]) if found else INT64_MAX + 1
    if not INT64_MIN <= delta <= INT64_MAX:
        raise _RefusalError(f"Invalid add {quote(shown)}: a decimal number from -2^63 to 2^63-1")
    return KvAdd(key, delta, _uint(options, "cas"), _ttl_ns(options, settings))


def _parse_copy(
    key: bytes, verb: str, options: Options, body: bytes, settings: HttpSettings
) -> KvCopy:
    values = options.values
    tree = "recurse" in values
    source = _bytes(options, verb)
    if not source:
        raise _RefusalError(f"Missing key name: ?{verb}=<source>")
    if source == key:
        raise _RefusalError(f"source and target of ?{verb} are the same")
    if not key and not tree:
        raise _RefusalError("Missing key name")
    if body:
        raise _RefusalError(
            f"?{verb} takes the value from the source, so the request takes no body"
        )
    if tree and "cas" in values:
        raise _RefusalError(f"Conflicting flags: {encode_query(values)}\n")
    return KvCopy(
        source,
        key,
        tree,
        verb == "move",
        "overwrite" in values,
        _uint(options, "cas"),
        settings.copy_keys_max,
        settings.copy_bytes_max,
        settings.key_bytes_max,
    )


def refuse(refusal: Refused, command: Command, *, v1: bool) -> Response:
    """Answer a write that the state of the data refused."""
    status, message = _describe(refusal, command)
    return text(status, message) if v1 else own_text(status, message)


def _describe(refusal: Refused, command: Command) -> tuple[int, str]:
    key = quote(refusal.key.decode("utf-8", "replace"))
    match refusal.why:
        case Why.NOT_A_NUMBER:
            return 409, "not changed: the key's value is not a decimal number of 64 bits"
        case Why.OVERFLOW:
            return 409, "not changed: the number would leave the range of -2^63 to 2^63-1"
        case Why.NO_SOURCE:
            return 404, "nothing was changed: there is no such source"
        case Why.TARGET_EXISTS:
            return 409, f"nothing was changed: the key {key} exists; ?overwrite replaces it"
        case Why.SOURCE_LOCKED:
            return 409, f"nothing was changed: a session holds the key {key}, so it is not moved"
        case Why.TOO_MUCH:
            assert isinstance(command, KvCopy), "nothing else has these bounds"
            return 413, (
                f"nothing was changed: the source has more than {command.keys_max} keys (setting "
                f"copy_keys_max) or {command.bytes_max} bytes (setting copy_bytes_max)"
            )
        case Why.KEY_LENGTH:
            assert isinstance(command, KvCopy), "nothing else has this bound"
            return 400, (
                f"nothing was changed: the copy of the key {key} would be empty or longer than "
                f"{command.key_bytes_max} bytes (setting key_bytes_max)"
            )
        case Why.OTHER_REQUEST:
            return 422, (
                "nothing was changed: this Idempotency-Key was used for another request, at index "
                f"{refusal.number}"
            )
        case _:
            return 409, (
                f"this write was executed before, at index {refusal.number}; its answer was too large "
                "to be kept"
            )

"""The KV routes, ``/v1/kv/…`` and ``/kv/…``, as plain functions.

``parse`` turns a request into an operation, or into the answer that refuses it; ``start`` runs the
operation and calls back with the answer. There is no task, no future and no server library in here,
so that both shells (``app`` and ``fast``) share every word of it.

The two styles: ``/v1/kv`` is Consul's (spec §4), ``/kv`` is for people: the body is the value, the
answer is the value, and the status says the rest (design §6).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kvnode.errors import KvnodeError
from kvnode.http import errors, history, own_writes
from kvnode.http.blocking import Query
from kvnode.http.completion import given
from kvnode.http.entries import entry_json, timed_entry_json
from kvnode.http.golang import encode_query, format_duration, parse_uint, quote
from kvnode.http.lists import Wanted
from kvnode.http.messages import (
    JSON_TYPE,
    TEXT_TYPE,
    VARY,
    Respond,
    Response,
    own_text,
    prettify,
    text,
)
from kvnode.http.paths import resolve
from kvnode.http.query import Options, parse_options
from kvnode.http.session_ids import canonical
from kvnode.store.commands import KvDelete, KvDeleteTree, KvLock, KvSet, KvUnlock
from kvnode.store.own_commands import KvCopy, KvPut, Mode, Refused

if TYPE_CHECKING:
    from kvnode.http.blocking import Blocking, Parked
    from kvnode.http.context import HttpSettings
    from kvnode.http.lists import Listed, Lists
    from kvnode.replica.facade import ReadView, ReplicaFacade
    from kvnode.store.commands import Command, Result
    from kvnode.store.paging import Page
    from kvnode.store.records import KVPair
    from kvnode.store.store import Store

V1_PREFIX = b"/v1/kv/"
OWN_PREFIX = b"/kv/"
METHODS = ("GET", "PUT", "DELETE")
"""As ``Allow`` lists them. POST is taken as PUT and is not listed (spec §1.1)."""

_READ_HEAD = (
    VARY + b"X-Consul-Index: %d\r\nX-Consul-KnownLeader: %b\r\nX-Consul-LastContact: %d\r\n"
    b"X-Consul-Effective-Consistency: %b\r\nX-Consul-Query-Backend: blocking-query\r\n"
)
_READ_HEAD_JSON = _READ_HEAD + JSON_TYPE
_RAW_TYPE = (
    b"Content-Type: text/plain\r\nX-Content-Type-Options: nosniff\r\n"
    b"Content-Security-Policy: sandbox\r\n"
)
"""A stored page must not run as one (spec §4.1)."""
_WRITE_HEAD = VARY + JSON_TYPE + b"X-Kvnode-Index: %d\r\n"
_OWN_WRITE_HEAD = TEXT_TYPE + b"X-Kvnode-Index: %d\r\n"
_MISSING_KEY = text(400, "Missing key name")
_NOT_HELD = "not released: this session does not hold the key"
_NOT_LOCKED = "not locked: another session holds the key, or its lock-delay has not passed"
_LISTS = frozenset({"recurse", "keys"})
_PAST = frozenset({"history", "as_of"})


class Read(NamedTuple):
    """One read."""

    v1: bool
    shape: str
    """``one``, ``raw``, ``recurse``, ``keys`` or ``history``."""
    key: bytes
    """The key, or the prefix."""
    separator: bytes
    options: Options
    as_of: int | None = None
    """Read the key as it was at this index; None: as it is."""
    limit: int = 0
    """Of a history: the most revisions."""
    page: Page | None = None
    """Of a list: not all of it."""


class Write(NamedTuple):
    """One write."""

    v1: bool
    command: Command
    pretty: bool


Operation = Read | Write


def parse(
    method: str, raw_path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
) -> Operation | Response:
    """Parse a request as it came in; the path starts with one of the two prefixes.

    Returns:
        The operation, or the answer at once: a mistake, a redirect, or a foreign method.
    """
    path = resolve(method, raw_path, raw_query)
    if isinstance(path, Response):
        return path
    return parse_decoded(method, path, raw_query, body, settings)


def parse_decoded(
    method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
) -> Operation | Response:
    """Parse a request whose path ``paths.resolve`` has decoded and found clean."""
    v1 = path.startswith(V1_PREFIX)
    key = path[7:] if v1 else path[4:]
    options = parse_options(raw_query)
    if options.error is not None:
        return _styled(options.error, v1=v1)
    if options.enterprise is not None and (key or method not in {"GET", "HEAD"} or _lists(options)):
        return _styled(options.enterprise, v1=v1)
    parsed: Operation | Response
    if method in {"GET", "HEAD"}:
        parsed = _parse_get(v1, key, options)
    elif method in {"PUT", "POST"}:
        parsed = _parse_put(v1, key, options, body, settings)
    else:
        assert method == "DELETE", "the shells pass no other method"
        parsed = _parse_delete(v1, key, options)
    if isinstance(parsed, Response):
        return _styled(parsed, v1=v1)
    if len(key) > settings.key_bytes_max:
        return errors.key_too_long(len(key), settings, v1=v1)
    if options.values and v1:
        return options.foreign_datacenter(settings.datacenter) or parsed
    return parsed


def _lists(options: Options) -> bool:
    return not _LISTS.isdisjoint(options.values)


def _styled(refusal: Response, *, v1: bool) -> Response:
    """Strip Consul's headers from a refusal on our own routes, and never say 500 there."""
    if v1:
        return refusal
    status = 400 if refusal.status >= 500 else refusal.status
    return own_text(status, refusal.body.decode().rstrip("\n"))


def _parse_get(v1: bool, key: bytes, options: Options) -> Read | Response:
    values = options.values
    if not _PAST.isdisjoint(values):
        return _parse_past(v1, key, options)
    if "keys" in values:
        # Both spellings work, the right one wins (spec §4.1).
        separator = options.first("separator")
        if separator is None:
            separator = options.first("seperator") or ""
        cut = separator.encode("utf-8", "surrogateescape")
        return _paged(Read(v1, "keys", key, cut, options))
    if "recurse" in values and v1:
        return _paged(Read(v1, "recurse", key, b"", options))
    if not key:
        return _MISSING_KEY if v1 else text(400, "Missing key name; add ?keys to list all keys")
    return Read(v1, "raw" if "raw" in values or not v1 else "one", key, b"", options)


def _parse_past(v1: bool, key: bytes, options: Options) -> Read | Response:
    """Parse a read of what a key was; ours, not Consul's."""
    values = options.values
    if sum(name in values for name in ("history", "as_of", "keys", "recurse")) > 1:
        return text(400, "history, as_of, keys and recurse exclude each other")
    if options.index:
        return text(400, "index makes a read wait for the future: not together with the past")
    if not key:
        return _MISSING_KEY
    if "history" in values:
        limit = history.parse_limit(options)
        if isinstance(limit, Response):
            return limit
        return Read(v1, "history", key, b"", options, limit=limit)
    as_of = history.parse_as_of(options)
    if isinstance(as_of, Response):
        return as_of
    return Read(v1, "raw" if "raw" in values or not v1 else "one", key, b"", options, as_of=as_of)


def _paged(read: Read) -> Read | Response:
    if own_writes.LISTS.isdisjoint(read.options.values):
        return read
    page = own_writes.parse_page(read.options)
    return page if isinstance(page, Response) else read._replace(page=page)


def _parse_put(
    v1: bool, key: bytes, options: Options, body: bytes, settings: HttpSettings
) -> Write | Response:
    values = options.values
    if not values:
        return Write(v1, KvSet(key, body), False) if key else _MISSING_KEY
    if not own_writes.WRITES.isdisjoint(values):
        command = own_writes.parse_put(key, options, body, settings)
        if isinstance(command, Response):
            return command
        return Write(v1, command, options.pretty)
    if not key:
        return _MISSING_KEY
    conflict = _conflict(options, ("cas", "acquire", "release"))
    if conflict is not None:
        return conflict
    try:
        flags = parse_uint(values["flags"][0]) if "flags" in values else 0
        cas = parse_uint(values["cas"][0]) if "cas" in values else None
    except ValueError as error:
        return text(500, str(error))
    if "acquire" in values:
        return _parse_acquire(v1, KvLock(key, body, values["acquire"][0], flags), options)
    if "release" in values:
        return _parse_release(v1, KvUnlock(key, body, values["release"][0], flags), options)
    return Write(v1, KvSet(key, body, flags, cas), options.pretty)


def _parse_acquire(v1: bool, command: KvLock, options: Options) -> Write | Response:
    """Refuse what cannot be a session; whether there is such a one is found out later (spec §4.2)."""
    if not command.session:
        return text(500, "missing session")
    try:
        session = canonical(command.session)
    except ValueError as error:
        return text(500, str(error))
    return Write(v1, command._replace(session=session), options.pretty)


def _parse_release(v1: bool, command: KvUnlock, options: Options) -> Write | Response:
    """What cannot be a session holds nothing: no look-up, any text is allowed (spec §4.2)."""
    if not command.session:
        return text(500, "missing session")
    try:
        session = canonical(command.session)
    except ValueError:
        if not v1:
            return own_text(409, _NOT_HELD)
        return Response(200, VARY + JSON_TYPE, prettify(b"false") if options.pretty else b"false")
    return Write(v1, command._replace(session=session), options.pretty)


def _parse_delete(v1: bool, key: bytes, options: Options) -> Write | Response:
    values = options.values
    conflict = _conflict(options, ("recurse", "cas"))
    if conflict is not None:
        return conflict
    if "recurse" in values:
        return Write(v1, KvDeleteTree(key), options.pretty)
    if not key:
        return _MISSING_KEY
    try:
        cas = parse_uint(values["cas"][0]) if "cas" in values else None
    except ValueError as error:
        return text(500, str(error))
    return Write(v1, KvDelete(key, cas), options.pretty)


def _conflict(options: Options, names: tuple[str, ...]) -> Response | None:
    """Refuse more than one of ``names``; the only text that ends with a newline (spec §4.2)."""
    if sum(name in options.values for name in names) < 2:
        return None
    return text(400, f"Conflicting flags: {encode_query(options.values)}\n")


class Backend(NamedTuple):
    """What operations run on."""

    replica: ReplicaFacade
    lists: Lists
    blocking: Blocking


def start(operation: Operation, backend: Backend, respond: Respond) -> Parked | None:
    """Run an operation; ``respond`` is called exactly once, in a later turn of the loop.

    Returns:
        The handle of a blocking query. When its client hangs up, give it to ``Blocking.cancel``;
        ``respond`` is then not called any more.
    """
    if isinstance(operation, Write):
        backend.replica.write(operation.command, partial(_write_done, operation, respond))
        return None
    if operation.options.index and operation.v1:
        return backend.blocking.start(_query(operation, backend, respond))
    done = partial(_read_done, operation, backend, respond)
    backend.replica.read(operation.options.consistency, done)
    return None


def _query(operation: Read, backend: Backend, respond: Respond) -> Query:
    """Describe what a blocking read waits for (spec §2.4)."""
    options = operation.options
    at_once = operation._replace(options=options._replace(index=0))
    return Query(
        operation.key,
        operation.shape in _LISTS,
        options.index,
        options.wait_s,
        options.consistency,
        partial(_has_news, operation, backend.replica),
        partial(_read_done, at_once, backend, respond),
    )


def _has_news(operation: Read, replica: ReplicaFacade) -> bool:
    """Whether the read's index (spec §2.2) is above the one that the client knows."""
    index, store = operation.options.index, replica.store
    if index >= store.kv_index():
        return False
    if operation.shape not in _LISTS:
        pair = store.get(operation.key)
        return (store.key_index(pair) if pair is not None else store.kv_index()) > index
    if not operation.key:
        return True
    changed = replica.watches.changed_since(index, operation.key)
    if changed is not None:
        return changed
    return (store.prefix_index(operation.key) or store.kv_index()) > index


def _read_done(
    operation: Read,
    backend: Backend,
    respond: Respond,
    view: ReadView | None,
    error: KvnodeError | None,
) -> None:
    """Answer a read: the store may be read right now, and only now."""
    options = operation.options
    try:
        view = given(view, error)
        if options.is_too_stale(view):
            # Too old: the leader answers instead, as if staleness had not been allowed.
            start(operation._replace(options=options.fresh()), backend, respond)
            return
        store = backend.replica.store
        if operation.shape in _LISTS:
            wanted = Wanted(
                operation.key,
                operation.shape == "recurse",
                operation.separator,
                options.pretty,
                "ttl" in options.values,
                operation.page,
                operation.page is not None and "count" in options.values,
            )
            backend.lists.build(store, wanted, partial(_listed, operation, view, respond))
            return
        response = answer(operation, store, view)
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=operation.v1, write=False)
    respond(response)


def answer(operation: Read, store: Store, view: ReadView) -> Response:
    """Read one key and build the answer (spec §4.1)."""
    options = operation.options
    if operation.shape == "history":
        return _history(operation, store, view)
    key, as_of = operation.key, operation.as_of
    pair = store.get(key) if as_of is None else store.as_of(key, as_of)
    if pair is None:
        if not operation.v1:
            return Response(404)
        return Response(404, read_head(store.kv_index(), view, options))
    if options.values and "ttl" in options.values:
        return _answer_timed(operation, store, view, pair)
    if operation.shape == "one":
        body = b"[%b]" % entry_json(pair)
        if options.pretty:
            body = prettify(body)
        known = b"true" if view.known_leader else b"false"
        head = _READ_HEAD_JSON % (
            store.key_index(pair),
            known,
            view.last_contact_ms,
            options.effective,
        )
        return Response(200, head, body)
    if operation.v1:
        head = read_head(store.key_index(pair), view, options)
    else:
        head = b"X-Kvnode-Index: %d\r\nX-Kvnode-Flags: %d\r\n" % (pair.modify_index, pair.flags)
    return Response(200, head + _RAW_TYPE, pair.value)


def _history(operation: Read, store: Store, view: ReadView) -> Response:
    """Answer with a key's newest revisions; 404: nothing is known of such a key."""
    options = operation.options
    revisions = store.history(operation.key, limit=operation.limit, bytes_max=history.BYTES_MAX)
    head = b"X-Kvnode-Oldest-Index: %d\r\n" % store.history_floor()
    if not revisions.complete:
        head += b"X-Kvnode-More: true\r\n"
    if operation.v1:
        head += read_head(store.kv_index(), view, options)
    if not revisions.found:
        return Response(404, head)
    body = history.revisions_json(revisions)
    if options.pretty:
        body = prettify(body)
    return Response(200, head + JSON_TYPE, body if operation.v1 else body + b"\n")


def _answer_timed(operation: Read, store: Store, view: ReadView, pair: KVPair) -> Response:
    """Answer a read of one key that asks how long it lives."""
    options = operation.options
    ttl = store.ttl(operation.key)
    head = b"X-Kvnode-TTL: %b\r\n" % format_duration(ttl[1]).encode() if ttl is not None else b""
    if operation.shape == "one":
        body = b"[%b]" % timed_entry_json(pair, ttl)
        head += read_head(pair.modify_index, view, options) + JSON_TYPE
        return Response(200, head, prettify(body) if options.pretty else body)
    plain = operation._replace(options=options._replace(values={}))
    _, rest, body = answer(plain, store, view)
    return Response(200, head + rest, body)


def _listed(
    operation: Read,
    view: ReadView,
    respond: Respond,
    listed: Listed | None,
    error: Exception | None,
) -> None:
    """Answer a list (spec §4.1)."""
    options = operation.options
    if listed is None:
        assert error is not None
        respond(errors.refuse(error, v1=operation.v1, write=False))
    elif operation.page is not None:
        head = own_writes.next_after(listed.next_after) + JSON_TYPE
        if operation.v1:
            respond(Response(200, read_head(listed.index, view, options) + head, listed.body))
        else:
            end = b"" if listed.body.endswith(b"\n") else b"\n"
            index = b"X-Kvnode-Index: %d\r\n" % (listed.index or 1)
            respond(Response(200, index + head, listed.body + end))
    elif not operation.v1:
        end = b"" if options.pretty else b"\n"
        respond(Response(200, JSON_TYPE, listed.body + end))
    else:
        head = read_head(listed.index, view, options)
        if listed.count or (operation.shape == "keys" and not operation.key):
            respond(Response(200, head + JSON_TYPE, listed.body))
        else:
            # The empty prefix has an empty list of names, and no entries.
            respond(Response(404, head))


def read_head(index: int, view: ReadView, options: Options) -> bytes:
    """Build the query headers (spec §1.7). The index is never 0."""
    known = b"true" if view.known_leader else b"false"
    return _READ_HEAD % (index or 1, known, view.last_contact_ms, options.effective)


def _write_done(
    operation: Write, respond: Respond, result: Result | None, error: KvnodeError | None
) -> None:
    try:
        if result is None:
            assert error is not None
            response = errors.refuse(error, v1=operation.v1, write=True)
        else:
            response = _written(operation, result)
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=operation.v1, write=True)
    respond(response)


def _written(operation: Write, result: Result) -> Response:
    """Answer a write; an identical one names the index that the key kept (spec §2.1)."""
    index = result.modify_index or result.index
    command = operation.command
    value = result.value
    if operation.v1 and (value is True or value is False):
        body = b"true" if value else b"false"
        return Response(200, _WRITE_HEAD % index, body + b"\n" if operation.pretty else body)
    if isinstance(value, Refused):
        return own_writes.refuse(value, command, v1=operation.v1)
    if value is None:
        assert isinstance(command, (KvLock, KvPut)), "nothing else needs a session"
        return _styled(text(500, f"invalid session {quote(command.session)}"), v1=operation.v1)
    if value is not True and value is not False:
        return _counted(operation, result, index)
    done, not_done = _words(command)
    head = _OWN_WRITE_HEAD % index
    if not result.value:
        return Response(409, head, not_done.encode() + b"\n")
    return Response(200, head, done.encode() + b"\n")


def _counted(operation: Write, result: Result, index: int) -> Response:
    """Answer with the new number, or with how many keys were copied."""
    number = result.value
    assert isinstance(number, int), "what these commands give"
    head, body, own = b"", b"%d" % number, f"{number}"
    if isinstance(operation.command, KvCopy):
        head, body = b"X-Kvnode-Count: %d\r\n" % number, b"true"
        word = "moved" if operation.command.move else "copied"
        own = f"{word} {number} key{'' if number == 1 else 's'}"
    if not operation.v1:
        return Response(200, _OWN_WRITE_HEAD % index + head, own.encode() + b"\n")
    return Response(200, _WRITE_HEAD % index + head, body + b"\n" if operation.pretty else body)


def _words(command: Command) -> tuple[str, str]:
    """Return what our own routes say when it was done, and when not."""
    match command:
        case KvLock():
            return "locked", _NOT_LOCKED
        case KvUnlock():
            return "released", _NOT_HELD
        case KvSet(_, _, _, cas):
            return "stored", f"not changed: the key's index is not {cas or 0}"
        case KvPut(mode=Mode.SET, cas=cas):
            return "stored", f"not changed: the key's index is not {cas or 0}"
        case KvPut(mode=Mode.LOCK, cas=cas):
            return "locked", _NOT_LOCKED + (", or the key's index is another" if cas else "")
        case KvPut(cas=cas):
            return "released", _NOT_HELD + (", or the key's index is another" if cas else "")
        case _:
            cas = getattr(command, "cas", None)
            return "deleted", f"not changed: the key's index is not {cas or 0}"

"""Transactions, ``PUT /v1/txn`` (spec §6), as plain functions; built as ``kv``.

A transaction with an operation that writes goes through the log as one entry. One that only reads is a
read, and so is one that is bound to fail whatever the data is: it is evaluated, since all of its failures
are to be told, and nothing is proposed.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.errors import BadRequest, KvnodeError
from kvnode.http import errors, own_writes
from kvnode.http.completion import given
from kvnode.http.decode import Members, kind_of, load
from kvnode.http.entries import entry_json
from kvnode.http.golang import quote
from kvnode.http.messages import JSON_TYPE, VARY, Response, dump_json, prettify, text
from kvnode.http.query import Options, parse_options
from kvnode.http.session_ids import canonical
from kvnode.replica.facade import Consistency
from kvnode.store.commands import WRITING_VERBS, Trouble, Txn, TxnOp, TxnOutcome, Verb
from kvnode.store.own_commands import Refused

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings
    from kvnode.http.kv import Backend
    from kvnode.http.messages import Respond
    from kvnode.replica.facade import ReadView
    from kvnode.store.commands import Problem, Result

_VERBS: Final = {
    verb.name.lower().replace("_", "-"): verb for verb in Verb if verb is not Verb.UNKNOWN
}
_READING: Final = frozenset({Verb.GET, Verb.GET_OR_EMPTY, Verb.GET_TREE})
_FOREIGN: Final = ("Node", "Service", "Check")
"""Operations on the catalog, which kvnode does not have."""
_READ_HEAD: Final = (
    VARY + JSON_TYPE + b"X-Consul-KnownLeader: %b\r\nX-Consul-LastContact: %d\r\n"
    b"X-Consul-Effective-Consistency: %b\r\n"
)
_WRITE_HEAD: Final = VARY + JSON_TYPE + b"X-Kvnode-Index: %d\r\n"


class Operation(NamedTuple):
    """One transaction."""

    command: Txn
    verbs: tuple[str, ...]
    """Of each operation, as the client wrote them."""
    refused: tuple[tuple[int, str], ...]
    """Operations that cannot be, and why: if there are any, only they are told."""
    writes: bool
    doomed: bool
    """An operation fails whatever the data is."""
    options: Options


# -- parsing --------------------------------------------------------------------------------------


def parse_decoded(
    method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
) -> Operation | Response:
    """Parse a request; the body's mistakes come first, as in Consul."""
    options = parse_options(raw_query)
    try:
        items = _items(load(body))
        if len(items) > settings.txn_ops_max:
            bound = f"{len(items)} > {settings.txn_ops_max}"
            message = (
                f"Transaction contains too many operations ({bound}). The setting is txn_ops_max."
            )
            return text(413, message)
        gathered = _Gathered(settings)
        for item in items:
            gathered.add(Members(item, "", "api.TxnOp"))
    except _TooLargeError as error:
        return text(413, str(error))
    except BadRequest as error:
        return text(400, str(error))
    except ValueError as error:
        return text(400, f"Failed to parse body: {error}")
    operation = gathered.operation(options)
    refusal = None if operation.writes else options.error
    refusal = refusal or options.enterprise or options.foreign_datacenter(settings.datacenter)
    return refusal or operation


def _items(document: Any) -> list[Any]:
    if document is None:
        return []
    if not isinstance(document, list):
        raise ValueError(  # noqa: TRY004  # the client's mistake
            f"json: cannot unmarshal {kind_of(document)} into Go value of type api.TxnOps"
        )
    return document


class _TooLargeError(Exception):
    """A value is above the limit."""


class _Gathered:
    """The operations of one body, as they come."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._ops: list[TxnOp] = []
        self._verbs: list[str] = []
        self._refused: list[tuple[int, str]] = []
        self._writes = False

    def add(self, members: Members) -> None:
        """Take one operation; one that is none of the known kinds is skipped.

        Raises:
            ValueError, BadRequest, _TooLargeError: It cannot be read, or is beyond a bound.
        """
        value = members.get("KV")
        if value is not None:
            self._add_kv(Members(value, "TxnOp.KV", "api.KVTxnOp", "KVTxnOp.KV"))
            return
        for kind in _FOREIGN:
            value = members.get(kind)
            if value is not None:
                verb = Members(value, f"TxnOp.{kind}", f"api.{kind}TxnOp").text("Verb")
                self._refuse(f"{kind} operations are not supported")
                self._append(TxnOp(Verb.UNKNOWN, b""), verb, writes=verb != "get")
                return

    def _add_kv(self, members: Members) -> None:
        shown = members.text("Verb", "", "api.KVOp")
        verb = _VERBS.get(shown, Verb.UNKNOWN)
        key, value = members.text("Key").encode(), members.base64("Value")
        flags, index, session = (
            members.uint("Flags"),
            members.uint("Index"),
            members.text("Session"),
        )
        settings = self._settings
        if len(value) > settings.value_bytes_max:
            raise _TooLargeError(
                f"Value for key {quote(key.decode())} is too large "
                f"({len(value)} > {settings.value_bytes_max} bytes). The setting is value_bytes_max."
            )
        if key.startswith(b"/"):
            raise BadRequest(
                "Invalid key in transaction: invalid key name, must not begin with a '/': "
                + quote(key.decode())
            )
        if len(key) > settings.key_bytes_max:
            raise BadRequest(errors.key_too_long_text(len(key), settings))
        if not key and verb is not Verb.DELETE_TREE:
            self._refuse("Must provide key")
        with suppress(ValueError):  # told when it is looked for
            session = canonical(session)
        self._append(
            TxnOp(verb, key, value, flags, index, session), shown, writes=verb in WRITING_VERBS
        )

    def _refuse(self, what: str) -> None:
        self._refused.append((len(self._ops), what))

    def _append(self, op: TxnOp, shown: str, *, writes: bool) -> None:
        self._ops.append(op)
        self._verbs.append(shown)
        self._writes |= writes

    def operation(self, options: Options) -> Operation:
        """Put it together."""
        ops = tuple(self._ops)
        reads = any(op.verb in _READING for op in ops)
        return Operation(
            Txn(ops, self._settings.txn_read_bytes_max if reads else 0),
            tuple(self._verbs),
            tuple(self._refused),
            self._writes,
            any(op.verb == Verb.UNKNOWN for op in ops),
            options,
        )


# -- running --------------------------------------------------------------------------------------


def start(operation: Operation, backend: Backend, respond: Respond) -> None:
    """Run a transaction; ``respond`` is called exactly once, in a later turn of the loop."""
    if operation.writes and not (operation.refused or operation.doomed):
        backend.replica.write(operation.command, partial(_written, operation, respond))
        return
    options = operation.options
    consistency = Consistency.DEFAULT if operation.writes else options.consistency
    backend.replica.read(consistency, partial(_read_done, operation, backend, respond))


def _written(
    operation: Operation, respond: Respond, result: Result | None, error: KvnodeError | None
) -> None:
    try:
        result = given(result, error)
        if isinstance(result.value, Refused):
            response = own_writes.refuse(result.value, operation.command, v1=True)
        else:
            assert isinstance(result.value, TxnOutcome), "what a transaction gives"
            response = _answer(operation, result.value, _WRITE_HEAD % result.index, b"")
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=True, write=True)
    respond(response)


def _read_done(
    operation: Operation,
    backend: Backend,
    respond: Respond,
    view: ReadView | None,
    error: KvnodeError | None,
) -> None:
    """Evaluate: the store may be read right now, and only now."""
    options = operation.options
    try:
        view = given(view, error)
        if options.is_too_stale(view):
            start(operation._replace(options=options.fresh()), backend, respond)
            return
        outcome = TxnOutcome((), ())
        if not operation.refused:
            outcome = backend.replica.store.evaluate(operation.command)
        known = b"true" if view.known_leader else b"false"
        if operation.writes:
            response = _answer(operation, outcome, VARY + JSON_TYPE, b"")
        else:
            head = _READ_HEAD % (known, view.last_contact_ms, options.effective)
            tail = b',"Index":0,"LastContact":%d,"KnownLeader":%b,"ConsistencyLevel":""' % (
                view.last_contact_ms * 1_000_000,
                known,
            )
            response = _answer(operation, outcome, head, tail)
    except Exception as problem:  # noqa: BLE001  # a completion must not raise into the replica
        response = errors.refuse(problem, v1=True, write=False)
    respond(response)


def _answer(operation: Operation, outcome: TxnOutcome, head: bytes, tail: bytes) -> Response:
    """Answer with results, 200, or with everything that failed, 409."""
    told = operation.refused or [(p.op, _what(operation, p)) for p in outcome.problems]
    if told:
        failed = dump_json([{"OpIndex": position, "What": what} for position, what in told])
        status, body = 409, b'{"Results":null,"Errors":%b%b}' % (failed, tail)
    else:
        results = b",".join([b'{"KV":%b}' % entry_json(pair) for pair in outcome.pairs])
        status, body = 200, b'{"Results":[%b],"Errors":null%b}' % (results, tail)
    return Response(status, head, prettify(body) if operation.options.pretty else body)


def _what(operation: Operation, problem: Problem) -> str:
    """Say why an operation failed, in Consul's words."""
    op = operation.command.ops[problem.op]
    key = quote(op.key.decode("utf-8", "replace"))
    match problem.trouble:
        case Trouble.UNKNOWN_VERB:
            return f"unknown KV verb {quote(operation.verbs[problem.op])}"
        case Trouble.STALE_SET:
            return f"failed to set key {key}, index is stale"
        case Trouble.STALE_DELETE:
            return f"failed to delete key {key}, index is stale"
        case Trouble.MISSING_SESSION:
            return "missing session"
        case Trouble.INVALID_SESSION:
            return _invalid_session(op.session)
        case Trouble.LOCK_HELD:
            return f"failed to lock key {key}, lock is already held"
        case Trouble.LOCK_DELAY:
            return f"failed to lock key {key} due to lock delay"
        case Trouble.LOCK_NOT_HELD:
            return f"failed to unlock key {key}, lock isn't held, or is held by another session"
        case Trouble.NO_KEY:
            return f"{_CHECKS.get(op.verb, '')}key {key} doesn't exist"
        case Trouble.KEY_EXISTS:
            return f"key {key} exists"
        case Trouble.OTHER_INDEX:
            found = f"current modify index {problem.detail} != {op.index}"
            return f"failed index check for key {key}, {found}"
        case Trouble.OTHER_SESSION:
            found = f"current session {quote(str(problem.detail))} != {quote(op.session)}"
            return f"failed session check for key {key}, {found}"
        case _:
            bound = operation.command.read_bytes_max
            return (
                f"the transaction reads more than {bound} bytes. The setting is txn_read_bytes_max."
            )


_CHECKS: Final[dict[int, str]] = {
    Verb.CHECK_INDEX: "failed to check index, ",
    Verb.CHECK_SESSION: "failed to check session, ",
}


def _invalid_session(session: str) -> str:
    try:
        canonical(session)
    except ValueError as error:
        return str(error)
    return f"invalid session {quote(session)}"

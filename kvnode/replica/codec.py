"""Commands as bytes: what a log entry holds.

A msgpack array of the command's number and its fields. New fields go to the end with a default, so
that older entries still decode (RC-28); an unknown number stops the node (RC-29).
"""

from __future__ import annotations

from typing import Any

import msgpack

from kvnode.errors import BadRequest, InvariantBroken, RemoteProtocolError
from kvnode.store.commands import (
    KINDS,
    NUMBERS,
    Command,
    Problem,
    Result,
    Txn,
    TxnOp,
    TxnOutcome,
    check_command,
    is_session_id,
)
from kvnode.store.own_commands import Once, Refused
from kvnode.store.records import KVPair
from kvnode.store.registry_commands import Register

_pack = msgpack.Packer(use_bin_type=True).pack


def encode(command: Command) -> bytes:
    """Return the entry data of a command."""
    if type(command) is Once:
        *fields, inner = command
        command_fields = (*fields, (NUMBERS[type(inner)], *inner))
        once: bytes = _pack((NUMBERS[Once], *command_fields))
        return once
    data: bytes = _pack((NUMBERS[type(command)], *command))
    return data


def decode(data: bytes) -> Command:
    """Inverse of ``encode``, for data that this cluster wrote.

    Raises:
        InvariantBroken: An unknown command: written by a newer version, or not by kvnode at all.
    """
    return _build(msgpack.unpackb(data, use_list=False))


def _build(parts: tuple[Any, ...]) -> Command:
    number, *fields = parts
    kind = KINDS.get(number)
    if kind is None:
        raise InvariantBroken(
            f"the log holds a command of kind {number}, which this version does not know: upgrade this node"
        )
    if kind is Txn:
        ops, *fields = fields
        return Txn(tuple([TxnOp(*op) for op in ops]), *fields)
    if kind is Once:
        *others, inner = fields
        if not isinstance(inner, tuple) or inner[:1] == (NUMBERS[Once],):
            raise InvariantBroken("the log holds a command to be done once that is none")
        return Once(*others, _build(inner))  # type: ignore[call-arg]  # of unknown number
    if kind is Register:
        return Register.of(*fields)
    return kind(*fields)


def decode_foreign(data: Any, bytes_max: int) -> Command:
    """``decode`` for data that a peer sent and nobody has checked.

    An entry that no node can apply would stop them all, so nothing of that kind gets past here.

    Raises:
        RemoteProtocolError: It is no command of ours.
    """
    if not isinstance(data, bytes) or len(data) > bytes_max:
        raise RemoteProtocolError("a forwarded command is not bytes, or too large")
    try:
        command = decode(data)
        check_command(command)
        if encode(command) == data:
            return command
    except (BadRequest, InvariantBroken, ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a forwarded command cannot be read: {error}") from error
    raise RemoteProtocolError("a forwarded command is not in its one spelling")


def encode_result(result: Result) -> tuple[Any, int, int]:
    """Plain data for the way to another node.

    What a transaction gave travels as bytes: it may hold more pairs than a frame may hold members.
    """
    value, index, modify_index = result
    if isinstance(value, TxnOutcome):
        return _pack(value), index, modify_index
    if isinstance(value, Refused):
        return tuple(value), index, modify_index
    return value, index, modify_index


def decode_result(value: Any) -> Result:
    """A ``Result`` that came over the wire.

    Raises:
        RemoteProtocolError: It is none.
    """
    if isinstance(value, (list, tuple)) and len(value) == 3:
        answer, index, modify_index = value
        if type(index) is int and type(modify_index) is int:
            if answer is None or isinstance(answer, int) or is_session_id(answer):
                return Result(answer, index, modify_index)
            if _is_refusal(answer):
                return Result(Refused(*answer), index, modify_index)
            if type(answer) is bytes:
                return Result(_decode_outcome(answer), index, modify_index)
    raise RemoteProtocolError("a forwarded answer is no result")


def _is_refusal(answer: Any) -> bool:
    return isinstance(answer, (list, tuple)) and tuple(map(type, answer)) == (int, int, bytes)


def _decode_outcome(data: bytes) -> TxnOutcome:
    try:
        pairs, problems = msgpack.unpackb(data, use_list=False)
        outcome = TxnOutcome(
            tuple([KVPair(*pair) for pair in pairs]), tuple([Problem(*item) for item in problems])
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a forwarded answer cannot be read: {error}") from error
    if all(map(_is_pair, outcome.pairs)) and all(map(_is_problem, outcome.problems)):
        return outcome
    raise RemoteProtocolError("a forwarded answer is no outcome of a transaction")


def _is_pair(pair: KVPair) -> bool:
    return tuple(map(type, pair)) == (bytes, bytes, int, int, int, int, str)


def _is_problem(problem: Problem) -> bool:
    op, trouble, detail = problem
    return type(op) is int and type(trouble) is int and type(detail) in (int, str)

"""Writes that are executed once, however often they are sent (RC-58). Deterministic: RC-28.

The answer of a write may get lost, and whoever sent it cannot know whether it was executed. With a key of
its own a write can be sent again: the first entry with that key is executed and its result kept; any later
one gets that result. The table is replicated, and so survives changes of leader and restarts. It is bounded
in number by the entries themselves, and in time by the leader's clock (``ReapOnce``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from struct import Struct
from typing import Any, Final, NamedTuple

from kvnode.errors import CorruptLog
from kvnode.store.commands import Problem, Result, SessionCreate, TxnOutcome, Value
from kvnode.store.own_commands import Once, ReapOnce, Refused, Why
from kvnode.store.packing import pack, unpack
from kvnode.store.records import (
    MARK_BYTES,
    ONCE,
    ONCE_COUNT,
    ONCE_ORDER,
    KVPair,
    decode_order_key,
    mark_of,
    order_key,
    order_stop,
)
from kvnode.store.tables import Transaction

Handlers = Mapping[type, Callable[[Transaction, int, Any], Result]]

TRIM: Final = 256
"""So many go at once when there are too many: looking for the oldest costs a scan. Never change it."""

ONCE_VERSION: Final = 1
_BODY: Final = Struct("<BQQ16s")
"""Version, index, modify index, fingerprint; then the packed kind of value and value."""
_COUNT_VERSION: Final = 1
_COUNT: Final = Struct("<BQQ")
"""Version, number of keys, index below which none is left."""

# What the value of a result is, since tuples lose their names.
_PLAIN: Final = 0
_OUTCOME: Final = 1
_REFUSED: Final = 2


class Kept(NamedTuple):
    """The first execution of a write."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    modify_index: int
    fingerprint: bytes
    value: Value


def encode_kept(raw: bytes, kept: Kept, bytes_max: int) -> bytes:
    """Build the record of a write; a value of more than ``bytes_max`` bytes is left out."""
    index, modify_index, fingerprint, value = kept
    kind = _PLAIN
    if isinstance(value, TxnOutcome):
        kind = _OUTCOME
    elif isinstance(value, Refused):
        kind = _REFUSED
    packed = pack((kind, value))
    if len(packed) > bytes_max:
        packed = pack((_REFUSED, Refused(Why.NOT_KEPT, index)))
    body = _BODY.pack(ONCE_VERSION, index, modify_index, fingerprint) + packed
    return mark_of(raw, body) + body


def decode_kept(raw: bytes, record: bytes) -> Kept:
    """Inverse of ``encode_kept``.

    Raises:
        CorruptLog: It is no such record of a known version.
    """
    body_end = MARK_BYTES + _BODY.size
    if len(record) <= body_end or record[MARK_BYTES] != ONCE_VERSION:
        raise CorruptLog(f"the record of the idempotency key {raw[1:]!r} has an unknown form")
    _, index, modify_index, fingerprint = _BODY.unpack_from(record, MARK_BYTES)
    try:
        kind, value = unpack(record[body_end:])
        if kind == _OUTCOME:
            pairs, problems = value
            value = TxnOutcome(
                tuple([KVPair(*pair) for pair in pairs]),
                tuple([Problem(*item) for item in problems]),
            )
        elif kind == _REFUSED:
            value = Refused(*value)
    except (TypeError, ValueError) as error:
        raise CorruptLog(f"the result kept for {raw[1:]!r} is not readable") from error
    return Kept(index, modify_index, fingerprint, value)


def decode_count(record: bytes | None) -> tuple[int, int]:
    """Return how many keys there are, and the index below which there is none.

    Raises:
        CorruptLog: The record is of no known version.
    """
    if record is None:
        return 0, 0
    if len(record) != MARK_BYTES + _COUNT.size or record[MARK_BYTES] != _COUNT_VERSION:
        raise CorruptLog("the count of idempotency keys has an unknown form")
    _, count, floor = _COUNT.unpack_from(record, MARK_BYTES)
    return count, floor


def run_once(tx: Transaction, index: int, command: Once, handlers: Handlers) -> Result:
    """Execute a write, unless it was: then tell what came of it."""
    raw = ONCE + command.key
    record = tx.get(raw)
    if record is not None:
        kept = decode_kept(raw, record)
        if kept.fingerprint != command.fingerprint:
            return Result(Refused(Why.OTHER_REQUEST, kept.index), index)
        return Result(kept.value, kept.index, kept.modify_index)
    inner = command.command
    result = handlers[type(inner)](tx, index, inner)
    if isinstance(inner, SessionCreate) and result.value is True:
        result = result._replace(value=inner.session_id)
    kept = Kept(index, result.modify_index, command.fingerprint, result.value)
    tx.put(raw, encode_kept(raw, kept, command.result_bytes_max), None)
    tx.overlay[order_key(index, raw, ONCE_ORDER)] = b""
    count, floor = decode_count(tx.get(ONCE_COUNT))
    count += 1
    if count > command.keys_max:
        start = order_key(floor, b"", ONCE_ORDER)
        with closing(tx.scan_in_order(start, order_stop(index - 1, ONCE_ORDER))) as rows:
            oldest = [raw for raw, _ in islice(rows, TRIM)]
        floor = _forget(tx, oldest, floor)
        count -= len(oldest)
    _put_count(tx, count, floor)
    return result


def reap_once(tx: Transaction, index: int, command: ReapOnce) -> Result:
    """Forget old writes; no index moves."""
    stop = order_stop(command.upto, ONCE_ORDER)
    oldest = sorted(raw for raw, _ in tx.scan(ONCE_ORDER, stop))
    if oldest:
        count, floor = decode_count(tx.get(ONCE_COUNT))
        _put_count(tx, count - len(oldest), _forget(tx, oldest, floor))
    return Result(len(oldest), index)


def _forget(tx: Transaction, rows: list[bytes], floor: int) -> int:
    """Remove rows of the order, and what they order; return below which index nothing is left."""
    for row in rows:
        index, raw = decode_order_key(row)
        old = tx.get(raw)
        if old is None:
            raise CorruptLog(f"the order of idempotency keys names {raw[1:]!r}: not there")
        tx.remove(raw, old)
        tx.overlay[row] = None
        floor = max(floor, index + 1)
    return floor


def _put_count(tx: Transaction, count: int, floor: int) -> None:
    body = _COUNT.pack(_COUNT_VERSION, count, floor)
    tx.put(ONCE_COUNT, mark_of(ONCE_COUNT, body) + body, tx.get(ONCE_COUNT))

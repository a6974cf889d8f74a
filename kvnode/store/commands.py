"""What can be asked of the store through the log: one named tuple per command.

A command is proposed by one node and applied by all, maybe by other versions and years later, so it
holds effects and never conditions that only one node can judge (clocks, limits, random numbers:
RC-28). ``KIND`` numbers are written to disk: never reuse one; a node that meets an unknown one stops
applying (RC-29). The fields' order is the order on disk and on the wire; new fields go to the end
with a default.
"""

from __future__ import annotations

from typing import NamedTuple

from kvnode.errors import BadRequest


class KvSet(NamedTuple):
    """Set a key (Consul kv API, PUT). Result: True, or False when ``cas`` did not match."""

    key: bytes
    value: bytes
    flags: int = 0
    """0 … 2^64-1."""
    cas: int | None = None
    """None: unconditional. 0: only if missing. N: only if ModifyIndex == N."""


class KvDelete(NamedTuple):
    """Delete a key (Consul kv API, DELETE).

    Result: True, also for a missing key; False when it exists and ``cas`` differs from its
    ModifyIndex (0 never equals one).
    """

    key: bytes
    cas: int | None = None


class KvDeleteTree(NamedTuple):
    """Delete every key that starts with ``prefix``; an empty prefix deletes all. Result: True."""

    prefix: bytes


class ReapGraves(NamedTuple):
    """Forget tombstones with an index up to ``upto``. Proposed by the leader by its own clock
    (spec §2.3). Result: the number reaped.
    """

    upto: int


Command = KvSet | KvDelete | KvDeleteTree | ReapGraves

KINDS: dict[int, type[Command]] = {1: KvSet, 2: KvDelete, 3: KvDeleteTree, 4: ReapGraves}
"""Number on disk -> command."""

NUMBERS: dict[type[Command], int] = {command: number for number, command in KINDS.items()}
"""Command -> number on disk."""


class Result(NamedTuple):
    """What applying a command gave. Equal on every node."""

    value: bool | int
    """The command's answer, see each command."""
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    """The log index at which it was applied."""
    modify_index: int = 0
    """``KvSet`` that answered True: the key's ModifyIndex afterwards; lower than ``index`` when
    the write was identical and changed nothing (spec §2.1)."""


UINT64_MAX = (1 << 64) - 1


def check_command(command: object) -> None:
    """Refuse a command that no node could apply, before it is proposed.

    An entry that cannot be applied stops every node for good, so whoever appends looks first. Limits
    on the length of keys and values are settings and are judged by whoever has them.

    Raises:
        BadRequest: A field is of the wrong type or out of its range.
    """
    match command:
        case KvSet(key, value, flags, cas):
            sound = _is_bytes(key) and _is_bytes(value) and _is_uint64(flags)
            sound = sound and (cas is None or _is_uint64(cas))
        case KvDelete(key, cas):
            sound = _is_bytes(key) and (cas is None or _is_uint64(cas))
        case KvDeleteTree(prefix):
            sound = _is_bytes(prefix)
        case ReapGraves(upto):
            sound = _is_uint64(upto)
        case _:
            sound = False
    if not sound:
        raise BadRequest(f"no node could apply {command!r:.200}")


def _is_bytes(value: object) -> bool:
    return type(value) is bytes


def _is_uint64(value: object) -> bool:
    return type(value) is int and 0 <= value <= UINT64_MAX

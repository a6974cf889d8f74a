"""What can be asked of the store through the log: one named tuple per command.

A command is proposed by one node and applied by all, maybe by other versions and years later, so it
holds effects and never conditions that only one node can judge (clocks, limits, random numbers:
RC-28). ``KIND`` numbers are written to disk: never reuse one; a node that meets an unknown one stops
applying (RC-29). The fields' order is the order on disk and on the wire; new fields go to the end
with a default.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from kvnode.errors import BadRequest
from kvnode.store.control_commands import (
    AutopilotSet,
    EventFire,
    is_sound_autopilot,
    is_sound_event,
)
from kvnode.store.fields import (
    INT64_MAX,
    is_bool,
    is_bytes,
    is_int63,
    is_text,
    is_uint64,
)
from kvnode.store.own_commands import (
    OWN_KINDS,
    KvAdd,
    KvCopy,
    KvExpire,
    KvPut,
    Mode,
    Once,
    ReapOnce,
    Refused,
    is_sound,
)
from kvnode.store.records import DELETE, HISTORY_LIMIT, RELEASE, SESSION_ID_CHARACTERS, KVPair
from kvnode.store.registry_commands import (
    Deregister,
    Register,
    UpdateCheck,
    is_sound_registration,
)


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


class KvLock(NamedTuple):
    """Lock a key for a session and set it (Consul kv API, PUT ``?acquire``; spec §4.2).

    Result: True; False when another session holds it, or a lock-delay is on it that the leader had not
    seen when it proposed this; None when there is no such session.
    """

    key: bytes
    value: bytes
    session: str
    flags: int = 0
    """0 … 2^64-1."""
    as_of: int = 0
    """Set by the leader as it proposes: the index up to which it has judged lock-delays by its own
    clock. A lock-delay that began after it refuses the lock, whatever the time (RC-62)."""


class KvUnlock(NamedTuple):
    """Release a key and set it (Consul kv API, PUT ``?release``; spec §4.2).

    Result: True; False when this very session does not hold it.
    """

    key: bytes
    value: bytes
    session: str
    flags: int = 0


class SessionCreate(NamedTuple):
    """Begin a session. Result: True; False when there is one with this id already; ``Refused`` when its
    node or one of its checks is missing, or a check is critical.

    The id is made by whoever proposes, so that all nodes agree (RC-28). What may be asked for (TTL,
    behaviour, checks) is judged before the log.
    """

    session_id: str
    """36 characters."""
    name: str
    node: str
    """Name of the node that it belongs to."""
    lock_delay_ns: int
    """For as long the keys that it held cannot be locked after its end; more than 60 s acts as 60 s."""
    behavior: int
    """What its end does to the keys that it holds, see ``records.RELEASE`` and ``records.DELETE``."""
    ttl: str
    """As the client wrote it; empty: none."""
    ttl_ns: int
    """0: it does not expire. Counted by the leader, never here (RC-61)."""
    node_checks: tuple[str, ...]
    service_checks: tuple[tuple[str, str], ...]
    """Pairs of id and namespace."""
    checked: bool = False
    """Node and checks must be in the registry. Entries from before there was one are not judged by it."""


class SessionDestroy(NamedTuple):
    """End a session, because a client says so or its time is over (spec §5.5). Result: True, also
    when there is none.

    Every key that it holds is released or deleted in this one entry, and its lock-delay begins.
    """

    session_id: str


class ReapLockDelays(NamedTuple):
    """Forget the lock-delays that began up to ``upto``. Proposed by the leader once they are over by
    its own clock. Result: the number reaped.
    """

    upto: int


class TrimHistory(NamedTuple):
    """Forget the changes up to ``upto``, and say whether and how far further ones are kept. Proposed by the
    leader by its settings. Result: the number of rows forgotten.
    """

    upto: int
    recording: bool = True
    """False: nothing is known from now on; the rows that are left go with the next trims."""
    bytes_max: int = HISTORY_LIMIT
    """See ``Meta.history_limit``."""


class RestorePiece(NamedTuple):
    """Stage one piece of what is to replace everything; see ``restore``.

    Result: True, also when it is there already; False when another restore began meanwhile. The number 0
    begins one, and with it every other staging ends.
    """

    restore_id: str
    """36 characters."""
    number: int
    """0 for the first; without gaps."""
    data: bytes
    """A chunk as ``snapshot.encode_rows`` makes it."""


class RestoreFinish(NamedTuple):
    """Put what was staged in the place of everything, at this entry's index.

    Result: True, also when this very restore was the last one; False when another one began meanwhile;
    None when what was staged is not sound: it is dropped, and nothing else changes.
    """

    restore_id: str
    pieces: int
    """How many there must be."""


class RestoreDrop(NamedTuple):
    """Give a staging up. Result: True, also when there is none."""

    restore_id: str


class Verb(IntEnum):
    """What one operation of a transaction does (spec §6). The numbers are on disk."""

    UNKNOWN = 0
    """Only for an operation that is evaluated and never proposed: it always fails."""
    SET = 1
    CAS = 2
    LOCK = 3
    UNLOCK = 4
    GET = 5
    GET_OR_EMPTY = 6
    GET_TREE = 7
    CHECK_INDEX = 8
    CHECK_SESSION = 9
    CHECK_NOT_EXISTS = 10
    DELETE = 11
    DELETE_TREE = 12
    DELETE_CAS = 13


WRITING_VERBS: Final = frozenset(
    {
        Verb.SET,
        Verb.CAS,
        Verb.LOCK,
        Verb.UNLOCK,
        Verb.DELETE,
        Verb.DELETE_TREE,
        Verb.DELETE_CAS,
    }
)
"""A transaction with none of these is a read."""


class TxnOp(NamedTuple):
    """One operation; what a verb does not use is ignored."""

    verb: int
    key: bytes
    """The key, or the prefix of a tree."""
    value: bytes = b""
    flags: int = 0
    index: int = 0  # type: ignore[assignment]  # a field, not tuple.index
    session: str = ""


class Txn(NamedTuple):
    """Several operations, all or nothing (spec §6, RC-66). Result: a ``TxnOutcome``."""

    ops: tuple[TxnOp, ...]
    read_bytes_max: int
    """Of what its gets may return in all; more fails it. Decided before the log (RC-28)."""
    as_of: int = 0
    """As ``KvLock.as_of``."""


class Trouble(IntEnum):
    """Why an operation of a transaction failed; the numbers travel between nodes."""

    UNKNOWN_VERB = 1
    STALE_SET = 2
    STALE_DELETE = 3
    MISSING_SESSION = 4
    """The operation names none."""
    INVALID_SESSION = 5
    """There is no such session."""
    LOCK_HELD = 6
    LOCK_DELAY = 7
    LOCK_NOT_HELD = 8
    NO_KEY = 9
    KEY_EXISTS = 10
    OTHER_INDEX = 11
    """``Problem.detail``: the key's ModifyIndex."""
    OTHER_SESSION = 12
    """``Problem.detail``: the key's session."""
    TOO_LARGE = 13
    """The gets return more than ``Txn.read_bytes_max``."""


class Problem(NamedTuple):
    """One failed operation."""

    op: int
    """Its position, from 0."""
    trouble: int
    detail: int | str = 0


class TxnOutcome(NamedTuple):
    """What a transaction gave: it took effect exactly if there are no problems."""

    pairs: tuple[KVPair, ...]
    """What the operations returned, in their order; those that only write return no values."""
    problems: tuple[Problem, ...]


Command = (
    KvSet
    | KvDelete
    | KvDeleteTree
    | ReapGraves
    | KvLock
    | KvUnlock
    | SessionCreate
    | SessionDestroy
    | ReapLockDelays
    | Txn
    | AutopilotSet
    | EventFire
    | TrimHistory
    | KvPut
    | KvAdd
    | KvExpire
    | KvCopy
    | Once
    | ReapOnce
    | Register
    | Deregister
    | UpdateCheck
    | RestorePiece
    | RestoreFinish
    | RestoreDrop
)

KINDS: dict[int, type[Command]] = {
    1: KvSet,
    2: KvDelete,
    3: KvDeleteTree,
    4: ReapGraves,
    5: KvLock,
    6: KvUnlock,
    7: SessionCreate,
    8: SessionDestroy,
    9: ReapLockDelays,
    10: Txn,
    11: Register,
    12: Deregister,
    13: UpdateCheck,
    20: AutopilotSet,
    21: EventFire,
    25: TrimHistory,
    **OWN_KINDS,
    70: RestorePiece,
    71: RestoreFinish,
    72: RestoreDrop,
}
"""Number on disk -> command."""

NUMBERS: dict[type[Command], int] = {command: number for number, command in KINDS.items()}
"""Command -> number on disk."""

Value = bool | int | str | TxnOutcome | Refused | None


class Result(NamedTuple):
    """What applying a command gave. Equal on every node."""

    value: Value
    """The command's answer, see each command."""
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    """The log index at which it was applied."""
    modify_index: int = 0
    """Of a command that wrote one key: its ModifyIndex afterwards; lower than ``index`` when the write was
    identical and changed nothing (spec §2.1). 0 of all others."""


def adds_data(command: Command) -> bool:
    """Whether a command may need more room, and is refused while there is hardly any (RC-70).

    What ends sessions and locks, deletes or reaps always goes through: it is the way out.
    """
    if type(command) is Once:
        return adds_data(command.command)
    if type(command) is KvPut:
        return command.mode != Mode.UNLOCK
    if type(command) is Txn:
        return any(op[0] in _ADDING_VERBS for op in command.ops)
    return type(command) in _ADDING


_ADDING: Final = frozenset({KvSet, KvLock, SessionCreate, EventFire, KvAdd, KvCopy, Register})
_ADDING_VERBS: Final = frozenset({Verb.SET, Verb.CAS, Verb.LOCK})

CHECKS_MAX: Final = 0xFFFF
"""Of each kind that a session may name: what its record can count."""


def check_command(command: object) -> None:
    """Refuse a command that no node could apply, before it is proposed.

    An entry that cannot be applied stops every node for good, so whoever appends looks first. Limits
    on the length of keys and values are settings and are judged by whoever has them.

    Raises:
        BadRequest: A field is of the wrong type or out of its range.
    """
    match command:
        case KvSet(key, value, flags, cas):
            sound = is_bytes(key) and is_bytes(value) and is_uint64(flags)
            sound = sound and (cas is None or is_uint64(cas))
        case KvDelete(key, cas):
            sound = is_bytes(key) and (cas is None or is_uint64(cas))
        case KvDeleteTree(prefix):
            sound = is_bytes(prefix)
        case ReapGraves(upto) | ReapLockDelays(upto):
            sound = is_uint64(upto)
        case TrimHistory(upto, recording, bytes_max):
            sound = is_uint64(upto) and is_bool(recording) and is_int63(bytes_max)
        case KvLock(key, value, session, flags, as_of):
            sound = is_bytes(key) and is_bytes(value) and is_text(session)
            sound = sound and is_uint64(flags) and is_uint64(as_of)
        case KvUnlock(key, value, session, flags):
            sound = is_bytes(key) and is_bytes(value) and is_text(session) and is_uint64(flags)
        case SessionCreate():
            sound = _is_sound_session(command)
        case SessionDestroy(session_id):
            sound = is_session_id(session_id)
        case RestorePiece(restore_id, number, data):
            sound = is_session_id(restore_id) and is_uint64(number) and is_bytes(data)
        case RestoreFinish(restore_id, pieces):
            sound = is_session_id(restore_id) and is_uint64(pieces)
        case RestoreDrop(restore_id):
            sound = is_session_id(restore_id)
        case Txn(ops, read_bytes_max, as_of):
            sound = type(ops) is tuple and all(map(_is_sound_operation, ops))
            sound = sound and is_uint64(read_bytes_max) and is_uint64(as_of)
        case AutopilotSet():
            sound = is_sound_autopilot(command)
        case EventFire():
            sound = is_sound_event(command)
        case Once():
            sound = is_sound(command) and type(command.command) in _ONCE_KINDS
            if sound:
                check_command(command.command)
        case Register() | Deregister() | UpdateCheck():
            sound = is_sound_registration(command)
        case _:
            sound = is_sound(command)
    if not sound:
        raise BadRequest(f"no node could apply {command!r:.200}")


def is_session_id(value: object) -> bool:
    """Whether it could be the id of a session: 36 ASCII characters."""
    return type(value) is str and len(value) == SESSION_ID_CHARACTERS and value.isascii()


def _is_sound_session(command: Any) -> bool:
    checks, service_checks = command.node_checks, command.service_checks
    return (
        is_session_id(command.session_id)
        and all(map(is_text, (command.name, command.node, command.ttl)))
        and type(command.lock_delay_ns) is int
        and -INT64_MAX <= command.lock_delay_ns <= INT64_MAX
        and type(command.ttl_ns) is int
        and 0 <= command.ttl_ns <= INT64_MAX
        and type(command.checked) is bool
        and type(command.behavior) is int
        and command.behavior in (RELEASE, DELETE)
        and type(checks) is tuple
        and len(checks) <= CHECKS_MAX
        and all(map(is_text, checks))
        and type(service_checks) is tuple
        and len(service_checks) <= CHECKS_MAX
        and all(
            type(pair) is tuple and len(pair) == 2 and all(map(is_text, pair))
            for pair in service_checks
        )
    )


def _is_sound_operation(op: object) -> bool:
    if type(op) is not TxnOp:
        return False
    verb, key, value, flags, index, session = op
    return (
        type(verb) in (int, Verb)
        and verb in _PROPOSABLE_VERBS
        and is_bytes(key)
        and is_bytes(value)
        and is_uint64(flags)
        and is_uint64(index)
        and is_text(session)
    )


_ONCE_KINDS: Final = frozenset(
    {KvSet, KvDelete, KvDeleteTree, KvLock, KvUnlock, KvPut, KvAdd, KvCopy, SessionCreate, Txn}
    | {SessionDestroy}
)
"""What clients may ask to be done once."""
_PROPOSABLE_VERBS: Final = frozenset(Verb) - {Verb.UNKNOWN}

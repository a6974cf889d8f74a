"""Commands for what Consul cannot do; see ``commands``, whose rules they keep."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.store.fields import (
    INT64_MAX,
    INT64_MIN,
    is_bool,
    is_bytes,
    is_int63,
    is_uint64,
)

if TYPE_CHECKING:
    from kvnode.store.commands import Command

FINGERPRINT_BYTES: Final = 16
ONCE_KEY_BYTES_MAX: Final = 255
EXPIRE_AT_ONCE_MAX: Final = 1024
"""Keys that one entry may expire; whoever proposes stays far below."""


class Mode(IntEnum):
    """What a ``KvPut`` does with the lock. The numbers are on disk."""

    SET = 0
    LOCK = 1
    UNLOCK = 2


_MODES: Final = frozenset(Mode)


class KvPut(NamedTuple):
    """Set, lock or release a key, with a time to live, with a condition, or without its value.

    Result: as of ``KvSet``, ``KvLock`` or ``KvUnlock``; False also when ``cas`` did not match.
    """

    key: bytes
    value: bytes
    flags: int = 0
    """0 … 2^64-1."""
    cas: int | None = None
    """As ``KvSet.cas``, in every mode."""
    session: str = ""
    """Of ``LOCK`` and ``UNLOCK``."""
    mode: int = Mode.SET
    keep: bool = False
    """Leave value and flags as they are; a missing key gets those given."""
    ttl_ns: int = 0
    """For so long the key lives, from this entry on; 0: it does not expire. Counted by the leader,
    never here."""
    as_of: int = 0
    """As ``KvLock.as_of``."""


class KvAdd(NamedTuple):
    """Add to a key whose value is a decimal number; a missing one counts as 0.

    Result: the new number; False when ``cas`` did not match; ``Refused``. What holds the key goes on
    holding it, flags stay.
    """

    key: bytes
    delta: int
    """-2^63 … 2^63-1, and so is the result."""
    cas: int | None = None
    ttl_ns: int = 0
    """0: the key's time goes on as it was."""


class KvExpire(NamedTuple):
    """Delete keys whose time is over. Proposed by the leader by its own clock. Result: how many.

    A key that was written since is left alone: its time did not begin at the index given.
    """

    keys: tuple[tuple[bytes, int], ...]
    """Keys, each with the index at which its time began."""


class KvCopy(NamedTuple):
    """Copy or move one key, or all under a prefix, in one step. Result: how many; False when ``cas``
    did not match; ``Refused``, and nothing was done.

    Everything is read before anything is written, so the two may overlap. What is copied is value, flags
    and time to live, which begins anew; locks stay where they are.
    """

    source: bytes
    target: bytes
    tree: bool
    """Both are prefixes."""
    move: bool
    """The source is deleted. A key that a session holds is not moved."""
    overwrite: bool
    """Else a key that exists where one is to be written refuses the whole. An overwritten key stays
    locked."""
    cas: int | None
    """The target's, of a single key; it allows to overwrite."""
    keys_max: int
    bytes_max: int
    key_bytes_max: int
    """Bounds, decided before the log (RC-28): number of keys, bytes of keys and values, length of a key."""


class Once(NamedTuple):
    """Another command, executed once however often it is sent (RC-58). Result: the first one's.

    Where the command is a ``SessionCreate``, the session's id stands in for True: whoever sends it again
    has made up another one. ``Refused`` for another request with the same key.
    """

    key: bytes
    """As the client made it up; 1 … 255 bytes."""
    fingerprint: bytes
    """16 bytes of hash of the request."""
    keys_max: int
    """Bound on the keys remembered; the oldest go first."""
    result_bytes_max: int
    """A larger result is not kept: sent again, the write is neither repeated nor told."""
    command: Command


class ReapOnce(NamedTuple):
    """Forget idempotency keys of entries up to ``upto``. Proposed by the leader by its own clock.
    Result: the number forgotten.
    """

    upto: int


class Why(IntEnum):
    """Why a command was refused by the state of the data; the numbers are on disk and travel."""

    NOT_A_NUMBER = 1
    OVERFLOW = 2
    NO_SOURCE = 3
    TARGET_EXISTS = 4
    """``Refused.key``: which."""
    SOURCE_LOCKED = 5
    """``Refused.key``: which."""
    TOO_MUCH = 6
    """More than ``KvCopy.keys_max`` or ``KvCopy.bytes_max``."""
    KEY_LENGTH = 7
    """A key would become empty or longer than ``KvCopy.key_bytes_max``. ``Refused.key``: of the source."""
    OTHER_REQUEST = 8
    """The idempotency key was used for another request; ``Refused.number``: at which index."""
    NOT_KEPT = 9
    """The write was executed, but its result was too large to keep; ``Refused.number``: its index."""
    REGISTRY = 10
    """Something is not registered, or unhealthy; ``Refused.key``: the text that says what."""


class Refused(NamedTuple):
    """A result: nothing was changed, and why."""

    why: int
    number: int = 0
    key: bytes = b""


OWN_KINDS: Final[dict[int, Any]] = {
    30: KvPut,
    31: KvAdd,
    32: KvExpire,
    33: KvCopy,
    34: Once,
    35: ReapOnce,
}
"""Number on disk -> command; 30 to 39 are for these."""


def is_sound(command: object) -> bool:
    """Whether every field of a command can be applied and stored; that inside a ``Once`` is left out."""
    sound: bool
    match command:
        case KvPut():
            return _is_sound_put(command)
        case KvAdd(key, delta, cas, ttl_ns):
            sound = is_bytes(key) and _is_cas(cas) and is_int63(ttl_ns)
            return sound and type(delta) is int and INT64_MIN <= delta <= INT64_MAX
        case KvExpire(keys):
            sound = type(keys) is tuple and len(keys) <= EXPIRE_AT_ONCE_MAX
            return sound and all(map(_is_timed_key, keys))
        case KvCopy(source, target, tree, move, overwrite, cas, keys_max, bytes_max, key_max):
            sound = is_bytes(source) and is_bytes(target) and _is_cas(cas)
            sound = sound and all(map(is_bool, (tree, move, overwrite)))
            return sound and all(map(is_uint64, (keys_max, bytes_max, key_max)))
        case Once(key, fingerprint, keys_max, result_bytes_max, _):
            sound = is_bytes(key) and 0 < len(key) <= ONCE_KEY_BYTES_MAX
            sound = sound and is_bytes(fingerprint) and len(fingerprint) == FINGERPRINT_BYTES
            return sound and is_uint64(keys_max) and keys_max > 0 and is_uint64(result_bytes_max)
        case ReapOnce(upto):
            return is_uint64(upto)
        case _:
            return False


def _is_sound_put(put: KvPut) -> bool:
    return (
        is_bytes(put.key)
        and is_bytes(put.value)
        and is_uint64(put.flags)
        and _is_cas(put.cas)
        and _is_ascii(put.session)
        and type(put.mode) in (int, Mode)
        and put.mode in _MODES
        and is_bool(put.keep)
        and is_int63(put.ttl_ns)
        and is_uint64(put.as_of)
    )


def _is_timed_key(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    return is_bytes(pair[0]) and is_uint64(pair[1])


def _is_ascii(value: object) -> bool:
    return isinstance(value, str) and value.isascii()


def _is_cas(value: object) -> bool:
    return value is None or is_uint64(value)

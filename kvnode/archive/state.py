"""The records of ``state.bin``: a type byte and one msgpack map each, after a header that is a map.

Consul's msgpack is the old one, without ``bin`` and ``str8``; both are read, only the old one is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

import msgpack

from kvnode.errors import BadArchive

SESSION: Final = 3
KV: Final = 2
TOMBSTONE: Final = 5
TABLE_INDEX: Final = 16
EXTRA: Final = b"Kvnode"
"""Member of a map for what only kvnode has."""

NAMES: Final = {
    0: "Register",
    2: "KVS",
    3: "Session",
    5: "Tombstone",
    6: "CoordinateBatchUpdate",
    7: "PreparedQuery",
    9: "Autopilot",
    12: "Intention",
    13: "ConnectCA",
    14: "ConnectCAProviderState",
    15: "ConnectCAConfig",
    16: "Index",
    17: "ACLToken",
    19: "ACLPolicy",
    22: "ConfigEntry",
    23: "ACLRole",
    25: "ACLBindingRule",
    27: "ACLAuthMethod",
    29: "ChunkingState",
    30: "FederationState",
}
"""What Consul's own inspection calls them."""

RECORD_BYTES_MAX: Final = 64 << 20
"""One record of a kind that is skipped may be this long."""
_TYPE_MAX: Final = 127
_ARRAY_MAX: Final = 1 << 20
_MAP_MAX: Final = 1 << 16

_UNREADABLE: Final = (ValueError, TypeError, msgpack.UnpackException, RecursionError)
"""What msgpack raises over bytes that are none; a map as the name of a member is a ``TypeError``."""

Fields = dict[Any, Any]


class Record(NamedTuple):
    """One record."""

    kind: int
    fields: Fields | None
    """None: it was skipped."""
    at: int
    """Where it begins, in bytes."""
    size: int


def pack(value: object) -> bytes:
    """Encode as Consul does."""
    data: bytes = msgpack.packb(value, use_bin_type=False)
    return data


def write_record(kind: int, fields: Fields) -> bytes:
    """Encode one record."""
    return bytes((kind,)) + pack(fields)


class Reader:
    """Walks through a state once."""

    def __init__(self, state: IO[bytes], wanted: frozenset[int]) -> None:
        """Read the header; of the records, decode only the ``wanted`` kinds.

        Raises:
            BadArchive: There is no header.
        """
        self._wanted = wanted
        self._unpacker = msgpack.Unpacker(
            state,
            raw=True,
            strict_map_key=False,
            read_size=256 << 10,
            max_buffer_size=RECORD_BYTES_MAX,
            max_str_len=RECORD_BYTES_MAX,
            max_bin_len=RECORD_BYTES_MAX,
            max_array_len=_ARRAY_MAX,
            max_map_len=_MAP_MAX,
            max_ext_len=RECORD_BYTES_MAX,
        )
        header = self._next("the header")
        if not isinstance(header, dict):
            raise BadArchive("state.bin begins with no header")
        self.header: Fields = header

    def records(self) -> Iterator[Record]:
        """Yield every record.

        Raises:
            BadArchive: One is not readable.
        """
        unpacker = self._unpacker
        while True:
            at = unpacker.tell()
            try:
                kind = unpacker.unpack()
            except msgpack.OutOfData:
                if unpacker.tell() != at:
                    raise BadArchive(f"state.bin ends inside a record, at {at}") from None
                return
            except _UNREADABLE as error:
                raise BadArchive(f"state.bin is not readable at {at}: {error}") from error
            if type(kind) is not int or not 0 <= kind <= _TYPE_MAX or unpacker.tell() != at + 1:
                raise BadArchive(f"state.bin has no record at {at}")
            fields = None
            if kind in self._wanted:
                fields = self._next(f"the record at {at}")
                if not isinstance(fields, dict):
                    raise BadArchive(f"the record at {at} of state.bin is no map")
            else:
                self._skip(at)
            yield Record(kind, fields, at, unpacker.tell() - at)

    def _next(self, what: str) -> Any:
        try:
            return self._unpacker.unpack()
        except msgpack.OutOfData:
            raise BadArchive(f"state.bin ends inside {what}") from None
        except _UNREADABLE as error:
            raise BadArchive(f"{what} of state.bin is not readable: {error}") from error

    def _skip(self, at: int) -> None:
        try:
            self._unpacker.skip()
        except msgpack.OutOfData:
            raise BadArchive(f"state.bin ends inside the record at {at}") from None
        except _UNREADABLE as error:
            raise BadArchive(f"the record at {at} of state.bin is not readable: {error}") from error


def number(fields: Fields, name: bytes, lo: int = 0, hi: int = (1 << 64) - 1) -> int:
    """Return a number that must be there, or is 0.

    Raises:
        BadArchive: It is none, or out of its range.
    """
    value = fields.get(name, 0)
    if type(value) is not int or not lo <= value <= hi:
        raise BadArchive(f"{name.decode()} of a record is {value!r:.60}")
    return value


def raw_bytes(fields: Fields, name: bytes) -> bytes:
    """Return bytes, or none when it is nil or missing.

    Raises:
        BadArchive: It is something else.
    """
    value = fields.get(name)
    if value is None:
        return b""
    if type(value) is not bytes:
        raise BadArchive(f"{name.decode()} of a record is {value!r:.60}")
    return value


def text(fields: Fields, name: bytes) -> str:
    """Return text; bytes that are no UTF-8 are replaced, as in Consul's JSON."""
    return raw_bytes(fields, name).decode("utf-8", "replace")


def extra(fields: Fields) -> Fields:
    """Return what only kvnode has.

    Raises:
        BadArchive: It is no map.
    """
    found = fields.get(EXTRA, {})
    if not isinstance(found, dict):
        raise BadArchive("what belongs to kvnode in a record is no map")
    return found

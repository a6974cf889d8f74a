"""Results as bytes, for those that the store keeps: one tag, then the content. Only what results are made
of: None, booleans, integers, bytes, text, and tuples of these.

Written by hand, since what is in the store must be the same on every node and in every version.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Any, Final

from kvnode.errors import CorruptLog

_SIZE: Final = Struct("<I")
_SMALL: Final = {None: b"N", True: b"T", False: b"F"}
_VALUES: Final = {ord(tag): value for value, tag in _SMALL.items()}


def pack(value: Any) -> bytes:
    """Write a value; a named tuple is written as a plain one, an enumerated number as a number.

    Raises:
        TypeError: It is of no such type.
    """
    if value is None or isinstance(value, bool):
        return _SMALL[value]
    if isinstance(value, int):
        return _sized(b"I", b"%d" % int(value))
    if isinstance(value, bytes):
        return _sized(b"B", value)
    if isinstance(value, str):
        return _sized(b"S", value.encode())
    if isinstance(value, tuple):
        return b"L" + _SIZE.pack(len(value)) + b"".join(map(pack, value))
    raise TypeError(f"a result holds a {type(value).__name__}")


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + _SIZE.pack(len(content)) + content


def unpack(data: bytes) -> Any:
    """Inverse of ``pack``.

    Raises:
        CorruptLog: It is not what ``pack`` wrote.
    """
    try:
        value, end = _read(data, 0)
    except (StructError, IndexError, ValueError, RecursionError) as error:
        raise CorruptLog("a kept result is not readable") from error
    if end != len(data):
        raise CorruptLog("a kept result is not as long as it says")
    return value


def _read(data: bytes, at: int) -> tuple[Any, int]:
    tag = data[at]
    if tag in _VALUES:
        return _VALUES[tag], at + 1
    size: int = _SIZE.unpack_from(data, at + 1)[0]
    at += 5
    if tag == ord("L"):
        items = []
        for _ in range(size):
            item, at = _read(data, at)
            items.append(item)
        return tuple(items), at
    content = data[at : at + size]
    if len(content) != size:
        raise ValueError("it breaks off")
    match tag:
        case 0x49:
            return int(content), at + size
        case 0x42:
            return content, at + size
        case 0x53:
            return content.decode(), at + size
        case _:
            raise ValueError("unknown tag")

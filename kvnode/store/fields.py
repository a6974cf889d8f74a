"""What the field of a command may be: the types and ranges that every node can store and send."""

from __future__ import annotations

from typing import Final, TypeGuard

UINT64_MAX: Final = (1 << 64) - 1
INT64_MAX: Final = (1 << 63) - 1
INT64_MIN: Final = -(1 << 63)


def is_bytes(value: object) -> bool:
    """Whether it is bytes, and nothing like them."""
    return type(value) is bytes


def is_bool(value: object) -> bool:
    """Whether it is True or False, and no number."""
    return type(value) is bool


def is_uint64(value: object) -> bool:
    """Whether it is a whole number from 0 to 2^64-1."""
    return type(value) is int and 0 <= value <= UINT64_MAX


def is_int63(value: object) -> bool:
    """Whether it is a whole number from 0 to 2^63-1."""
    return type(value) is int and 0 <= value <= INT64_MAX


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is text that can be written as UTF-8."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

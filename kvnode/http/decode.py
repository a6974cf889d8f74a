"""JSON from clients, read as Go's decoder reads it (spec §1.5).

Member names match without regard to case, unknown members are ignored, ``null`` leaves a default alone,
and whatever stands behind the document is not looked at. The reasons given for what cannot be read are
Go's, near enough to be recognised.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from typing import Any

from kvnode.http.golang import UINT64_MAX

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = " \t\r\n"
_NOT_BASE64 = re.compile("[^A-Za-z0-9+/=]")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"invalid character {name[0]!r} looking for beginning of value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def load(body: bytes) -> Any:
    """Read one document.

    Raises:
        ValueError: It is none; the text is the reason.
    """
    document = body.decode("utf-8", "replace").lstrip(_SPACE)
    if not document:
        raise ValueError("EOF")
    try:
        value, _ = _DECODER.raw_decode(document)
    except json.JSONDecodeError as error:
        if error.pos >= len(document.rstrip(_SPACE)) or "Unterminated" in error.msg:
            raise ValueError("unexpected EOF") from error
        raise ValueError(f"invalid character {document[error.pos]!r}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("exceeded max depth") from error
    return value


def kind_of(value: Any) -> str:
    """Name a value's type as Go's decoder does."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


class Members:
    """The members of one object."""

    __slots__ = ("_folded", "_inside")

    def __init__(self, value: Any, where: str, kind: str, inside: str | None = None) -> None:
        """Take an object; ``null`` has no members.

        Args:
            value: What stands there.
            where: Path of Go's fields, for error texts; empty for the whole document.
            kind: Name of Go's type.
            inside: The path of its own members; None: the same.

        Raises:
            ValueError: It is no object.
        """
        if value is None:
            value = {}
        if not isinstance(value, dict):
            field = f"Go struct field {where}" if where else "Go value"
            shown = f"json: cannot unmarshal {kind_of(value)} into {field} of type {kind}"
            raise ValueError(shown)  # noqa: TRY004  # the client's mistake
        self._folded = {name.lower(): member for name, member in value.items()}
        self._inside = where if inside is None else inside

    def __contains__(self, name: str) -> bool:
        """Whether there is such a member, be it null."""
        return name.lower() in self._folded

    def get(self, name: str) -> Any:
        """Return a member as it is; None when there is none."""
        return self._folded.get(name.lower())

    def _mismatch(self, name: str, value: Any, kind: str) -> ValueError:
        shown = kind_of(value)
        if shown == "number" and kind.startswith("uint"):
            shown = f"number {json.dumps(value)[:40]}"
        return ValueError(
            f"json: cannot unmarshal {shown} into Go struct field {self._inside}.{name} of type {kind}"
        )

    def text(self, name: str, default: str = "", kind: str = "string") -> str:
        """Return a text; half of a surrogate pair becomes the replacement character."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._mismatch(name, value, kind)
        return _LONE_SURROGATE.sub("\ufffd", value)

    def texts(self, name: str, kind: str) -> tuple[str, ...]:
        """Return an array of texts; empty when there is none."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._mismatch(name, value, f"[]{kind}")
        return tuple(
            [Members({name: item}, self._inside, "").text(name, "", kind) for item in value]
        )

    def boolean(self, name: str) -> bool:
        """Return a truth; False when there is none."""
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._mismatch(name, value, "bool")
        return value

    def uint(self, name: str) -> int:
        """Return an unsigned 64-bit number; 0 when there is none."""
        value = self.get(name)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value <= UINT64_MAX:
            raise self._mismatch(name, value, "uint64")
        return value

    def base64(self, name: str) -> bytes:
        """Return bytes; empty when there are none."""
        value = self.get(name)
        if value is None:
            return b""
        if not isinstance(value, str):
            raise self._mismatch(name, value, "[]uint8")
        encoded = value.replace("\n", "").replace("\r", "")
        bad = _NOT_BASE64.search(encoded)
        at = bad.start() if bad is not None else len(encoded) // 4 * 4
        try:
            if bad is None:
                return b64decode(encoded, validate=True)
        except Base64Error:
            pass
        raise ValueError(f"illegal base64 data at input byte {at}")

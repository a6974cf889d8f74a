"""Filter expressions (``?filter=``), as Consul's: ``Node == "n1" and "prod" in ServiceTags``.

::

    any      = all { "or" all }              all   = term { "and" term }
    term     = "not" term | "(" any ")" | match
    match    = selector ( "==" | "!=" | ["not"] "contains" ) value
             | selector "is" ["not"] "empty" | value ["not"] "in" selector
    selector = name { "." name | "[" string "]" }

They are evaluated on the JSON that would be answered, so the names are those of its members. A path through
a list means any of its items. ``matches`` is refused: a regular expression that somebody sends can hold the
event loop for as long as they like.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from kvnode.errors import BadRequest

Filter = Callable[[Any], bool]
"""Whether an item of the answer is wanted."""

LENGTH_MAX: Final = 4096
DEPTH_MAX: Final = 32
_TOKEN: Final = re.compile(
    r"""\s*(?:(==|!=|[().\[\]])|"((?:[^"\\]|\\.)*)"|`([^`]*)`|([A-Za-z0-9_/:-]+))"""
)
_FREE: Final = frozenset(
    {"Meta", "NodeMeta", "ServiceMeta", "TaggedAddresses", "ServiceTaggedAddresses", "Header"}
)
"""Members whose own members anybody may name: one that is not there is no mistake."""
_WORDS: Final = frozenset({"and", "or", "not", "in", "is", "contains", "matches", "empty"})

Token = tuple[str, bool]
"""Text, and whether it was quoted."""


def parse_filter(expression: str) -> Filter:
    """Read an expression.

    Raises:
        BadRequest: It is none; the text says where. The filter itself raises it for a selector that
            names nothing.
    """
    if len(expression) > LENGTH_MAX:
        raise _mistake(f"it is longer than {LENGTH_MAX} characters")
    parser = _Parser(_tokens(expression))
    found = parser.any_of(0)
    parser.end()
    return found


def _mistake(reason: str) -> BadRequest:
    return BadRequest(f"Failed to create boolean expression evaluator: {reason}")


def _tokens(expression: str) -> list[Token]:
    found: list[Token] = []
    at, end = 0, len(expression.rstrip())
    while at < end:
        match = _TOKEN.match(expression, at)
        if match is None:
            raise _mistake(f"nothing can begin with {expression[at:].strip()[:20]!r}")
        sign, quoted, raw, word = match.groups()
        if quoted is not None:
            found.append((re.sub(r"\\(.)", r"\1", quoted), True))
        elif raw is not None:
            found.append((raw, True))
        else:
            found.append((sign or word, False))
        at = match.end()
    return found


class _Parser:
    """Goes through the tokens once."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def any_of(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise _mistake("it is nested too deeply")
        parts = [self._all_of(depth)]
        while self._take("or"):
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else lambda item: any(part(item) for part in parts)

    def _all_of(self, depth: int) -> Filter:
        parts = [self._term(depth)]
        while self._take("and"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else lambda item: all(part(item) for part in parts)

    def _term(self, depth: int) -> Filter:
        if self._take("not"):
            if depth > DEPTH_MAX:
                raise _mistake("it is nested too deeply")
            inner = self._term(depth + 1)
            return lambda item: not inner(item)
        if self._take("("):
            inner = self.any_of(depth + 1)
            self._need(")")
            return inner
        return self._match()

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise _mistake(f"{self._tokens[self._at][0]!r} does not belong there")

    # -- one comparison -----------------------------------------------------------------------------

    def _match(self) -> Filter:
        after = self._peek(1), self._peek(2)
        if after[0] == "in" or after == ("not", "in"):
            value = self._value()
            negated = self._take("not")
            self._need("in")
            return _holds(self._selector(), value, negated=negated)
        path = self._selector()
        for sign in ("==", "!="):
            if self._take(sign):
                return _equals(path, self._value(), negated=sign == "!=")
        if self._take("is"):
            negated = self._take("not")
            self._need("empty")
            return lambda item: bool(_present(_look(item, path))) is negated
        negated = self._take("not")
        if self._take("contains"):
            return _holds(path, self._value(), negated=negated)
        if self._peek() == "matches":
            raise _mistake('"matches" is not implemented')
        raise _mistake(f"a comparison is expected behind {'.'.join(path)!r}")

    def _selector(self) -> tuple[str, ...]:
        path = [self._name()]
        while True:
            if self._take("."):
                path.append(self._name())
            elif self._take("["):
                path.append(self._value())
                self._need("]")
            else:
                return tuple(path)

    def _name(self) -> str:
        if self._at < len(self._tokens):
            text, quoted = self._tokens[self._at]
            if not quoted and text not in _WORDS and text[0].isalpha():
                self._at += 1
                return text
        raise _mistake("the name of a member is expected")

    def _value(self) -> str:
        if self._at < len(self._tokens):
            text, quoted = self._tokens[self._at]
            if quoted or text not in ("==", "!=", "(", ")", ".", "[", "]"):
                self._at += 1
                return text
        raise _mistake("a value is expected")

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        if at >= len(self._tokens) or self._tokens[at][1]:
            return ""
        return self._tokens[at][0]

    def _take(self, word: str) -> bool:
        if self._peek() == word:
            self._at += 1
            return True
        return False

    def _need(self, word: str) -> None:
        if not self._take(word):
            raise _mistake(f"{word!r} is expected")


# -- evaluation -------------------------------------------------------------------------------------


def _look(item: Any, path: tuple[str, ...], *, free: bool = False) -> list[Any]:
    """Return what a selector names in an item: nothing, one value, or one for each item of a list."""
    if isinstance(item, (list, tuple)) and path:
        return [found for part in item for found in _look(part, path, free=free)]
    if not path:
        return [item]
    name, rest = path[0], path[1:]
    if item is None and free:
        return []
    if not isinstance(item, dict) or (name not in item and not free and name not in _FREE):
        raise BadRequest(f'Selector "{".".join(path)}" is not valid')
    if name not in item:
        return []
    return _look(item[name], rest, free=name in _FREE)


def _present(found: list[Any]) -> bool:
    return any(bool(value) for value in found)


def _same(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return wanted.lower() == ("true" if value else "false")
    if isinstance(value, int):
        return wanted == str(value)
    return isinstance(value, str) and value == wanted


def _equals(path: tuple[str, ...], wanted: str, *, negated: bool) -> Filter:
    return lambda item: any(_same(value, wanted) for value in _look(item, path)) is not negated


def _holds(path: tuple[str, ...], wanted: str, *, negated: bool) -> Filter:
    def holds(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(_same(part, wanted) for part in value)
        return isinstance(value, (str, dict)) and wanted in value

    return lambda item: any(holds(value) for value in _look(item, path)) is not negated

"""How a setting is declared: what is known about it besides its type and default."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

Kind = Literal["str", "int", "float", "bool", "list"]
Value = str | int | float | bool | tuple[str, ...]

KINDS: dict[object, Kind] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    tuple[str, ...]: "list",
}


class Setting(NamedTuple):
    """What is known about one setting."""

    name: str
    kind: Kind
    default: Any
    help: str
    section: str
    unit: str
    """``bytes``, ``ms``, ``s`` or empty. A value may carry its own unit: ``64MiB``, ``1.5s``."""
    lo: float | None
    """Smallest value allowed, inclusive."""
    hi: float | None
    """Largest value allowed, inclusive."""
    choices: tuple[str, ...]
    consul_flags: tuple[str, ...]
    """Consul's spellings without the dash, where they differ from our own name."""
    consul_json: tuple[str, ...]
    """Dotted paths of Consul's JSON members."""
    secret: bool
    """Its value is shown nowhere: in no error, no log line, and not in ``repr``."""

    @property
    def flag(self) -> str:
        """The flag, such as ``--http-port``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, such as ``KVNODE_HTTP_PORT``."""
        return "KVNODE_" + self.name.upper()


def setting(
    default: Value,
    help: str,  # noqa: A002 - the word that every reader of a declaration expects
    *,
    section: str,
    unit: str = "",
    lo: float | None = None,
    hi: float | None = None,
    choices: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    json: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Declare one setting; see ``Setting`` for the meaning of each argument."""
    meta = {
        "help": help,
        "section": section,
        "unit": unit,
        "lo": lo,
        "hi": hi,
        "choices": choices,
        "consul_flags": flags,
        "consul_json": json,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=meta, repr=not secret)

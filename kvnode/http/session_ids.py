"""Ids of sessions, as Consul reads them: any case, and with its own words for what is none (spec §5.3)."""

from __future__ import annotations

import re

from kvnode.store.records import SESSION_ID_CHARACTERS

_NOT_HEX = re.compile("[^0-9a-fA-F]")
_LOOK_UP = "failed session lookup: index error: "


def canonical(shown: str) -> str:
    """Return an id as sessions have it.

    Raises:
        ValueError: It cannot be one; the text is the answer (status 500).
    """
    if len(shown.encode("utf-8", "surrogateescape")) != SESSION_ID_CHARACTERS:
        raise ValueError(_LOOK_UP + "UUID must be 36 characters")
    hyphens = shown.count("-")
    if hyphens > 4:
        raise ValueError(f'{_LOOK_UP}UUID should have maximum of 4 "-"; got {hyphens}')
    digits = shown.replace("-", "")
    if len(digits) % 2:
        raise ValueError(_LOOK_UP + "Input (without hyphens) must be even length")
    bad = _NOT_HEX.search(digits)
    if bad is not None:
        shown_bad = f"U+{ord(bad.group()):04X}"
        if bad.group().isprintable():
            shown_bad += f" '{bad.group()}'"
        raise ValueError(f"{_LOOK_UP}Invalid UUID: encoding/hex: invalid byte: {shown_bad}")
    return shown.lower()

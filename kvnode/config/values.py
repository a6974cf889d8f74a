"""Text and file values turned into typed ones, with their units and bounds."""

from __future__ import annotations

import re
from math import inf
from typing import Any

from kvnode.config.declaration import Setting, Value
from kvnode.errors import SettingError

_SIZES = {
    "": 1, "b": 1,
    "k": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gib": 1024**3, "gb": 1000**3,
}  # fmt: skip
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_TEXT_CHARACTERS_MAX = 400
"""Looking for units in a longer text could take seconds; no number needs so much."""
_TRUE = frozenset({"1", "t", "true", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "no", "off"})


def convert(setting: Setting, raw: Any, where: str) -> Value:
    """Turn what was given into the setting's type and check its bounds.

    Args:
        setting: The setting.
        raw: Text from a flag or a variable, or a plain value from a file.
        where: Who gave it, for the error: ``--http-port``, ``KVNODE_HTTP_PORT``, ``ports.http in x.json``.

    Raises:
        SettingError: It cannot be used. The text begins with ``where``.
    """
    match setting.kind:
        case "str":
            return _text(setting, raw, where)
        case "bool":
            return _switch(raw, where)
        case "list":
            return _several(raw, where)
        case "int":
            number = _bounded(setting, _number(setting, raw, where), where)
            if number != int(number):
                raise SettingError(f"{where}: {raw!r} is not a whole number")
            return int(number)
        case "float":
            return float(_bounded(setting, _number(setting, raw, where), where))


def _text(setting: Setting, raw: Any, where: str) -> str:
    if not isinstance(raw, str):
        shown = type(raw).__name__ if setting.secret else repr(raw)
        raise SettingError(f"{where}: expected text, not {shown}")
    if not setting.choices:
        return raw
    # Consul writes levels in capitals and has longer names for two of them.
    word = {"warning": "warn", "err": "error"}.get(raw.lower(), raw.lower())
    if word not in setting.choices:
        raise SettingError(f"{where}: {raw!r} is none of {', '.join(setting.choices)}")
    return word


def _switch(raw: Any, where: str) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise SettingError(f"{where}: {raw!r} is neither true nor false")


def _several(raw: Any, where: str) -> tuple[str, ...]:
    if isinstance(raw, str):
        if (
            "=" in raw
        ):  # Consul's provider=k8s label_selector="a=b,c=d": one thing, whatever it holds
            return (raw,)
        return tuple(part.strip() for part in raw.split(",") if part.strip())
    if isinstance(raw, list | tuple) and all(isinstance(part, str) for part in raw):
        return tuple(raw)
    raise SettingError(f"{where}: expected a list of texts, not {raw!r}")


def _number(setting: Setting, raw: Any, where: str) -> float:
    if isinstance(raw, bool):
        raise SettingError(f"{where}: expected a number, not {raw!r}")
    if isinstance(raw, int | float):
        return _finite(raw)
    text = str(raw).strip()
    try:
        return float(text) if "." in text or "e" in text.lower() else _finite(int(text))
    except ValueError:
        pass
    if len(text) > _TEXT_CHARACTERS_MAX:
        raise SettingError(f"{where}: {text[:40]!r}… is too long for a number")
    if setting.unit == "bytes" and (size := _SIZE.fullmatch(text)):
        factor = _SIZES.get(size[2].lower())
        if factor is not None:
            return float(size[1]) * factor
    if setting.unit in ("s", "ms"):
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            return round(seconds * 1000, 6) if setting.unit == "ms" else round(seconds, 9)
    expected = {"bytes": "a size such as 64MiB", "": "a number"}.get(
        setting.unit, "a duration such as 1.5s"
    )
    raise SettingError(f"{where}: {raw!r} is not {expected}")


def _finite(number: float) -> float:
    """An integer beyond every float is infinite: it can be compared and printed then."""
    try:
        float(number)
    except OverflowError:
        return inf if number > 0 else -inf
    return number


def _bounded(setting: Setting, number: float, where: str) -> float:
    unit = f" {setting.unit}" if setting.unit else ""
    # Written so that nan, which compares false with everything, is refused too.
    if setting.lo is not None and not number >= setting.lo:
        raise SettingError(f"{where}: {number:g}{unit} is below the least, {setting.lo:g}{unit}")
    if setting.hi is not None and not number <= setting.hi:
        raise SettingError(f"{where}: {number:g}{unit} is above the most, {setting.hi:g}{unit}")
    return number

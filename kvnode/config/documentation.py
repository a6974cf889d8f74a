"""Writes the settings down: ``docs/configuration.md`` and the help of ``kvnode agent``.

``python -m kvnode.config.documentation`` prints the page; a test fails while the stored one differs.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby

from kvnode.config.declaration import Setting
from kvnode.config.settings import SETTINGS

_INTRODUCTION = """\
# Settings

*Written by `python -m kvnode.config.documentation > docs/configuration.md` from the declarations in
`kvnode/config/settings.py`; a test fails while the two differ.*

Each setting can be given as a flag of `kvnode agent`, as a variable, or as a member of a TOML or JSON
file named by `--config-file`. Flags win over variables, variables over files, files over defaults.

- `--http-port 8500`, `--http-port=8500` and Consul's `-http-port=8500` are the same. A switch such as
  `--ui` is turned off by `--no-ui` or `--ui=false`. A list is given by repeating its flag, by commas in
  a variable, by a list in a file.
- Sizes take a unit (`64MiB`), durations too (`250ms`, `1m30s`); a bare number is in the setting's unit.
- Consul's flags and members that mean something here are in the last column. Those that mean nothing
  here never stop the start: they are logged as `flag_ignored` or `member_ignored`.
- A bad value stops the start with exit code 2 and a sentence that begins with its name.
- SIGHUP reads `log_level` again, and the files of certificates and of the peer secret, which are also noticed
  by themselves within seconds; every other change needs a restart.
"""


def markdown() -> str:
    """Return the page of all settings."""
    lines = [_INTRODUCTION]
    for section, settings in groupby(SETTINGS.values(), key=lambda setting: setting.section):
        lines.append(f"## {section}\n")
        lines.append("| Setting | Default | Meaning | Consul |")
        lines.append("|---|---|---|---|")
        lines.extend(_row(setting) for setting in settings)
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    names = f"`{setting.flag}`<br>`{setting.variable}`<br>`{setting.name}`"
    aliases = [f"`-{flag}`" for flag in setting.consul_flags]
    aliases += [f"`{path}`" for path in setting.consul_json if path != setting.name]
    meaning = setting.help + (f" ({facts})" if (facts := _facts(setting)) else "")
    return f"| {names} | {_default(setting)} | {meaning} | {' '.join(aliases)} |"


def _facts(setting: Setting) -> str:
    """Unit, bounds and choices in words."""
    facts = []
    if setting.choices:
        facts.append(", ".join(f"`{choice}`" for choice in setting.choices))
    if setting.unit:
        facts.append(setting.unit)
    if setting.lo is not None and setting.hi is not None:
        facts.append(f"{setting.lo:.12g} to {setting.hi:.12g}")
    if setting.kind == "list":
        facts.append("list")
    return "; ".join(facts)


def _default(setting: Setting) -> str:
    match setting.default:
        case bool(value):
            return "on" if value else "off"
        case "" | ():
            return ""
        case value:
            return f"`{value}`"


def flags_help(width: int = 100) -> str:
    """Return the flags as plain text, for ``kvnode agent --help``."""
    return "\n".join(_flag_lines(width))


def _flag_lines(width: int) -> Iterator[str]:
    for section, settings in groupby(SETTINGS.values(), key=lambda setting: setting.section):
        yield f"{section}:"
        for setting in settings:
            consul = "".join(f", -{flag}" for flag in setting.consul_flags)
            what = "" if setting.kind == "bool" else f" {setting.unit or setting.kind}"
            yield f"  {setting.flag}{consul}{what}"
            default = _default(setting).strip("`")
            text = setting.help + (f" Default: {default}." if default else "")
            yield textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        yield ""


if __name__ == "__main__":
    sys.stdout.write(markdown())

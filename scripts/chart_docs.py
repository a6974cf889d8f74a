"""Write what the chart repeats from elsewhere: the table in its README, the settings in its schema.

Usage: python scripts/chart_docs.py [--check]

The table comes from the ``# --`` comments in ``values.yaml``, so that a value and its meaning stand
together. The settings come from ``kvnode/config/settings.py``, so that a chart refuses what the agent would.
``--check`` writes nothing and ends with exit code 1 when something is not current.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "kvnode"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"

OWNED = frozenset(
    {
        "node_name", "data_dir", "config_file", "dev", "pid_file", "bind", "client", "http_port",
        "peer_port", "advertise", "bootstrap_expect", "bootstrap", "join_srv", "domain",
        "kubernetes_statefulset", "kubernetes_namespace", "kubernetes_first_ordinal", "read_replica",
    }
)  # fmt: skip
"""Settings that the chart gives by flags; in ``settings`` they would have no effect."""


class Row(NamedTuple):
    """One value."""

    key: str
    default: str
    meaning: str


def main(*, check: bool) -> int:
    """Write, or compare; return the exit code."""
    stale = []
    for path, text in ((CHART / "README.md", readme()), (CHART / "values.schema.json", schema())):
        if path.read_text() == text:
            continue
        stale.append(path)
        if not check:
            path.write_text(text)
    for path in stale:
        verb = "is not current" if check else "was written"
        sys.stderr.write(f"{path.relative_to(ROOT)} {verb}\n")
    return 1 if check and stale else 0


def readme() -> str:
    """Return the README with a current table."""
    text = (CHART / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables((CHART / 'values.yaml').read_text())}{END}{after}"


def schema() -> str:
    """Return the schema with current settings."""
    document = json.loads((CHART / "values.schema.json").read_text())
    document["definitions"]["settings"] = settings_schema()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def settings_schema() -> dict[str, Any]:
    """Return the agent's settings as a JSON schema."""
    from kvnode.config.settings import SETTINGS

    properties = {
        name: _schema_of(s) for name, s in SETTINGS.items() if name not in OWNED and not s.secret
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema_of(setting: Any) -> dict[str, Any]:
    match setting.kind:
        case "bool":
            return {"type": "boolean"}
        case "list":
            return {"type": "array", "items": {"type": "string"}}
        case "str" if setting.choices:
            return {"enum": list(setting.choices)}
        case "str":
            return {"type": "string"}
    number: dict[str, Any] = {"type": "integer" if setting.kind == "int" else "number"}
    if setting.lo is not None:
        number["minimum"] = setting.lo
    if setting.hi is not None:
        number["maximum"] = setting.hi
    if not setting.unit:
        return number
    unit = "([kKmMgG]i?[bB]?|[bB])" if setting.unit == "bytes" else "(ms|s|m|h)"
    more = "" if setting.unit == "bytes" else "+"
    pattern = f"^({'[0-9]+([.][0-9]+)?' if more else '[0-9]+'}{unit}){more}$"
    return {"anyOf": [number, {"type": "string", "pattern": pattern}]}


# -- values.yaml ------------------------------------------------------------------------------------


def tables(text: str) -> str:
    """Return one table for each section of ``values.yaml``.

    Raises:
        ValueError: A value has no comment.
    """
    lines = text.splitlines()
    document = yaml.compose(text)
    sections = {n: line[5:] for n, line in enumerate(lines) if line.startswith("# ## ")}
    out: list[str] = []
    rows = list(_rows(document, lines, ""))
    bounds = [*sorted(sections), len(lines)]
    for start, end in pairwise(bounds):
        out += ["", f"### {sections[start]}", "", "| Value | Default | Meaning |", "|---|---|---|"]
        out += [
            f"| `{row.key}` | `{row.default}` | {row.meaning} |"
            for number, row in rows
            if start <= number < end
        ]
    return "\n".join(out)[1:] + "\n\n"


def _rows(node: Any, lines: list[str], prefix: str) -> Any:
    """Yield (line, row) of every value that has a comment, and of what is in the others."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        comment = _comment(lines, key.start_mark.line)
        if comment:
            plain = yaml.safe_load(yaml.serialize(value))
            default = json.dumps(plain, ensure_ascii=False).replace("|", "\\|")
            yield key.start_mark.line, Row(name, default, comment.replace("|", "\\|"))
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _rows(value, lines, name + ".")
        else:
            raise ValueError(f"values.yaml: {name} has no comment that begins with '# -- '")


def _comment(lines: list[str], at: int) -> str:
    """Return the ``# --`` comment right above a line; empty when there is none."""
    found: list[str] = []
    while at > 0 and lines[at - 1].strip().startswith("#"):
        at -= 1
        words = lines[at].strip().removeprefix("#").strip()
        found.insert(0, words)
        if words.startswith("-- "):
            return " ".join(found)[3:]
    return ""


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(check="--check" in sys.argv[1:]))

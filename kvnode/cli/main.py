"""The ``kvnode`` command: its parts, and what becomes of errors."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kvnode import __version__

CONSUL_VERSION = "1.22.0"
"""What suites read that start a ``consul`` executable themselves (spec §15)."""

_CONSUL_LETTER = re.compile(r"-[a-z]=.+", re.DOTALL)
_RUNNERS = ((("lock",), 1), (("exec",), 1), (("kv", "watch"), 2))
"""Commands that run others, and how many words they are."""
_CONSUL_OPTION = re.compile(r"-[a-z][a-z0-9]+(-[a-z0-9]+)*(=.*)?", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process: 0 it worked, 1 the answer is no, 2 wrong usage."""
    program = Path(sys.argv[0]).name
    words = list(sys.argv[1:] if argv is None else argv)
    # These two are on the way of every start of a node or a suite, so they need not wait for typer.
    if words[:1] == ["agent"]:
        from kvnode.cli import agent_command

        sys.exit(agent_command.run(words[1:]))
    if words[:1] in (["version"], ["--version"], ["-version"], ["-v"]):
        sys.stdout.write(version_text(program, words[1:]))
        sys.exit(0)
    if words[:1] == ["dev"] and "--" in words:
        from kvnode.cli import dev

        # The parser would take the first of them for a command inside this one.
        at = words.index("--")
        dev.AGENT_FLAGS.set(tuple(words[at + 1 :]))
        del words[at:]
    from kvnode.cli.commands import app

    app(two_dashes(words), prog_name="kvnode")
    sys.exit(0)


def version_text(program: str, words: Sequence[str]) -> str:
    """Return what ``version`` prints. Called as ``consul``, the first line is Consul's."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    if "json" in words or "--output=json" in words:
        return json.dumps({"version": __version__, "python": python}) + "\n"
    if program == "consul":
        return f"Consul v{CONSUL_VERSION}\nkvnode v{__version__} on {python}\n"
    return f"kvnode v{__version__}\n{python} on {platform.system()} {platform.machine()}\n"


def _option(word: str) -> str:
    if _CONSUL_OPTION.fullmatch(word):
        return "-" + word
    # ``-n=2``, where others write ``-n2``.
    return word[:2] + word[3:] if _CONSUL_LETTER.fullmatch(word) else word


def two_dashes(words: Sequence[str]) -> list[str]:
    """Give Consul's single-dash options (``-http-addr=…``) the second dash; after ``--`` none is one."""
    end = words.index("--") if "--" in words else len(words)
    start = next((count for names, count in _RUNNERS if tuple(words[:count]) == names), 0)
    if start:  # what comes after the first argument is somebody else's command line
        plain = (at for at in range(start, end) if not words[at].startswith("-"))
        end = next(plain, end)
    options = [_option(word) for word in words[:end]]
    return options + list(words[end:])

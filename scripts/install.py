"""Make a virtual environment with the project in it, unless it is already as pyproject.toml asks.

Usage: python3 scripts/install.py VENV [EXTRA ...]

The stamp ``VENV/.installed.json`` holds a digest of the requirements and the extras installed, so that a
second run needs neither time nor network. Only the standard library is used here.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

LEAST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent


def main(venv: Path, extras: list[str]) -> None:
    """Install what is missing."""
    if sys.version_info < LEAST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"kvnode needs Python 3.11 or later, this is {found}; try make PYTHON=python3.13")
    stamp = venv / ".installed.json"
    wanted = digest()
    installed = read_stamp(stamp)
    same = installed.get("digest") == wanted and (venv / "bin" / "kvnode").exists()
    missing = set(extras) - set(installed.get("extras", []))
    if same and not missing:
        return
    have = set(installed.get("extras", [])) if same else set()
    extras = sorted(have | set(extras))
    make_venv(venv)
    what = f".[{','.join(extras)}]" if extras else "."
    sys.stderr.write(f"installing {what} into {venv}\n")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "-qq", "--editable", what])
    stamp.write_text(json.dumps({"digest": wanted, "extras": extras}))


def digest() -> str:
    """Return what changes when, and only when, there is something to install."""
    import tomllib  # not at the top: older Pythons must come as far as the sentence above

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {name: document[name] for name in ("build-system", "project")}
    text = json.dumps([sys.version, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_stamp(stamp: Path) -> dict:
    """Return the stamp; empty when there is none."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}


def make_venv(venv: Path) -> None:
    """Create the environment where there is none, or none that works."""
    python = venv / "bin" / "python"
    if (
        python.exists()
        and subprocess.run(
            [str(python), "-m", "pip", "--version"], check=False, capture_output=True
        ).returncode
        == 0
    ):
        return
    command = [sys.executable, "-m", "venv", str(venv)]
    if subprocess.run(command, check=False).returncode == 0:
        return
    # Debian ships Python without the module that makes environments.
    if os.geteuid() == 0 and shutil.which("apt-get"):
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        run(["apt-get", "install", "--yes", "--no-install-recommends", version])
        run([*command[:3], "--clear", str(venv)])
        return
    sys.exit("cannot make a virtual environment: install your system's python3-venv package")


def run(command: list[str]) -> None:
    """Run from the project's root; end with the command's own message when it fails."""
    if subprocess.run(command, check=False, cwd=ROOT).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main((ROOT / sys.argv[1]).absolute(), sys.argv[2:])

"""Fetch Consul's clients that are tests by themselves, into ``.cache``: consul, py-consul's, npm's.

Usage: python scripts/fetch_clients.py

Nothing is installed: each is unpacked into the cache folder, by the registries' own programs. What is there
already is left alone: a second run needs neither time nor network. What cannot be had is said on stderr; its
tests are then skipped with a reason. Exit code 0 either way.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
TOOLS = CACHE / "tools"
TIMEOUT_S = 180

PY_CONSUL = "py-consul==1.8.0"
PY_CONSUL_SHA256 = "ed9ab0adb335d33ea84f7622f372411f8e288bb09aee5e7632264d28d285a52c"
PY_CONSUL_TESTS = TOOLS / "py_consul-1.8.0"
"""The source package: the wheel has no tests."""
NODE_CONSUL = "consul@2.0.1"
NODE_CONSUL_MODULES = TOOLS / "node_consul-2.0.1"


def main() -> None:
    """Fetch what is missing."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    for name, there, fetch in (
        ("consul", CACHE / "consul" / "root", _fetch_consul),
        ("py-consul's tests", PY_CONSUL_TESTS, _fetch_py_consul),
        ("npm's consul", NODE_CONSUL_MODULES, _fetch_node_consul),
    ):
        if there.exists() or (name == "consul" and shutil.which("consul")):
            continue
        try:
            sys.stderr.write(f"fetching {name}\n")
            fetch()
        except (OSError, subprocess.SubprocessError, ValueError, tarfile.TarError) as error:
            sys.stderr.write(f"cannot be had: {name} ({error}); its tests are skipped\n")


def _fetch_consul() -> None:
    _run(["sh", str(ROOT / "benchmarks" / "get_consul.sh")])


def _fetch_py_consul() -> None:
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{PY_CONSUL} --hash=sha256:{PY_CONSUL_SHA256}\n")
        _run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
             "--no-deps", "--require-hashes", "--no-binary=py-consul", "--dest", folder,
             "--requirement", str(requirements)]
        )  # fmt: skip
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")
        (Path(folder) / PY_CONSUL_TESTS.name).rename(PY_CONSUL_TESTS)


def _fetch_node_consul() -> None:
    if shutil.which("npm") is None:
        raise ValueError("there is no npm here")
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        _run(
            ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder,
             NODE_CONSUL]
        )  # fmt: skip
        if not (Path(folder) / "node_modules" / "consul").is_dir():
            raise ValueError("npm installed nothing")
        (Path(folder) / "node_modules").rename(NODE_CONSUL_MODULES)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ValueError(f"{command[0]} failed: {' '.join(last)}")


if __name__ == "__main__":
    main()

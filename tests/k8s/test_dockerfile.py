"""The Dockerfile and what it installs, as far as that can be seen without building."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.k8s.charts import ROOT

DOCKERFILE = ROOT / "Dockerfile"
LOCK = ROOT / "docker" / "requirements.txt"


def instructions() -> list[str]:
    """One line for each instruction, comments left out."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def locked(path: Path) -> dict[str, str]:
    """Name and version of everything in a lock file."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("hadolint is not here; it is in the dev extra on Linux")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_node_is_process_1() -> None:
    """A shell in between would keep SIGTERM for itself."""
    last = {line.split()[0]: line.partition(" ")[2] for line in instructions()}
    assert json.loads(last["ENTRYPOINT"]) == ["kvnode"]
    assert json.loads(last["CMD"])[0] == "agent"
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == "python3"


def test_the_user_is_a_number_and_not_root() -> None:
    """Kubernetes can check ``runAsNonRoot`` for a number only."""
    (user,) = [line.split()[1] for line in instructions() if line.startswith("USER")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_base_can_be_replaced() -> None:
    """For mirrors and for pinning by digest."""
    stages = [line.split()[1] for line in instructions() if line.startswith("FROM")]
    assert stages == ["${BASE_IMAGE}", "${BASE_IMAGE}"]


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    """An image with other versions than the tests had would be another product."""
    versions = locked(LOCK)
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for text in asked:
        requirement = Requirement(text)
        assert requirement.name in versions, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(versions[requirement.name]), text


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_everything_locked_has_a_hash(name: str) -> None:
    path = LOCK.with_name(name)
    text = path.read_text()
    entries = re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked(path)) > 0
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text, "where packages come from is not the lock's business"


def test_the_build_context_holds_what_is_copied() -> None:
    """``.dockerignore`` lets only that through."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word
        for line in instructions()
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    for name in copied:
        assert name in allowed or f"{Path(name).parent}/*{Path(name).suffix}" in allowed, name

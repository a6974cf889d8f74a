"""Volumes that cannot be used: one log line that says what is wrong and what to do, and code 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.machines import ROOT, tool
from tests.chaos.processes import Node
from tests.ports import free_ports

USER = 10001
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(tool, ("setpriv", "unshare", "mount"))),
        reason="other users and mounts need root, setpriv, unshare and mount",
    ),
]
NOBODY = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


def node(folder: Path, *, name: str = "kvnode-0", wrapper: Sequence[str] = ()) -> Node:
    http, peer = free_ports(2)
    made = Node(name, folder, http, peer, ["--bootstrap"], environment={"PYTHONPATH": str(ROOT)})
    made.wrapper = list(wrapper)
    return made


def as_nobody() -> list[str]:
    return [str(tool("setpriv")), *NOBODY]


def ends(started: Node) -> dict[str, Any]:
    """The last line of a node that cannot start."""
    started.start()
    assert started.process is not None
    try:
        assert started.process.wait(20) == 1
    except subprocess.TimeoutExpired:
        started.kill()
        raise AssertionError(f"it started\n{started.log.read_text()[-2000:]}") from None
    said = started.events()[-1]
    assert said["event"] == "node_cannot_start"
    assert said["advice"]
    return said


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a node that ran."""
    made = node(tmp_path_factory.mktemp("used"))
    made.start()
    try:
        for _ in range(400):
            if made.log.exists() and b"became_leader" in made.log.read_bytes():
                break
            assert made.process is not None
            try:
                made.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        assert made.stop() == 0
    finally:
        if made.is_running:
            made.kill()
    return made.data


def opened(path: Path) -> None:
    """Let everybody reach the test's folder."""
    for parent in path.parents:
        if parent.stat().st_mode & 0o005 != 0o005 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o005)


def test_another_users_directory(tmp_path: Path) -> None:
    """As of an export for root only, or without ``fsGroup``."""
    made = node(tmp_path, wrapper=as_nobody())
    made.data.mkdir(mode=0o755)
    opened(made.data)
    said = ends(made)
    assert f"this process (user {USER}" in said["error"]
    assert f"let user {USER} and group {USER} read and write" in said["advice"]
    assert "fsGroup" in said["advice"]


def test_another_users_files_in_an_own_directory(tmp_path: Path, used: Path) -> None:
    """As after a run as root."""
    made = node(tmp_path, wrapper=as_nobody())
    shutil.copytree(used, made.data)
    os.chown(made.data, USER, USER)
    opened(made.data)
    said = ends(made)
    assert "Permission denied" in said["error"]
    assert "chown -R" in said["advice"]


def test_a_volume_mounted_read_only(tmp_path: Path, used: Path) -> None:
    made = node(tmp_path)
    shutil.copytree(used, made.data)
    mount = f"mount --bind {made.data} {made.data} && mount -o remount,ro,bind {made.data}"
    made.wrapper = [str(tool("unshare")), "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    assert "mount it writable" in ends(made)["advice"]


def test_another_nodes_volume(tmp_path: Path, used: Path) -> None:
    made = node(tmp_path, name="kvnode-1")
    shutil.copytree(used, made.data)
    said = ends(made)
    assert "belongs to the node named 'kvnode-0'" in said["error"]
    assert "--node-name" in said["advice"]
    kept = json.loads((made.data / "identity.json").read_text())
    assert kept == json.loads((used / "identity.json").read_text())


@pytest.mark.parametrize("name", ["identity.json", "raft/hard_state"])
def test_a_volume_that_cannot_be_read(tmp_path: Path, used: Path, name: str) -> None:
    """Never taken for an empty one."""
    made = node(tmp_path)
    shutil.copytree(used, made.data)
    (made.data / name).write_bytes(b"\x00" * 9000)
    said = ends(made)
    assert name in said["error"]
    assert "--heal-corruption" in said["advice"]


def test_a_volume_without_space(tmp_path: Path) -> None:
    made = node(tmp_path)
    made.data.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {made.data}"
    made.wrapper = [str(tool("unshare")), "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    said = ends(made)
    assert "KiB free" in said["error"]
    assert "give it a larger one" in said["advice"]

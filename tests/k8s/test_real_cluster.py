"""The chart on a real control plane: install, test, upgrade, scale, uninstall. Skipped where there is none.

KVNODE_TEST_KUBECONFIG names the cluster's file, KVNODE_TEST_IMAGE an image that its nodes can pull or have,
such as ``registry.example/kvnode:0.1.0``. A namespace is made for the test and deleted afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.k8s.charts import CHART, tool

KUBECONFIG = os.environ.get("KVNODE_TEST_KUBECONFIG", "")
IMAGE = os.environ.get("KVNODE_TEST_IMAGE", "")

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (KUBECONFIG and IMAGE),
        reason="no API server: set KVNODE_TEST_KUBECONFIG and KVNODE_TEST_IMAGE",
    ),
]
RELEASE = "kv"
SET = "kv-kvnode"


class Namespace:
    """One namespace of the cluster, and the two programs that work on it."""

    def __init__(self) -> None:
        self.name = f"kvnode-test-{uuid.uuid4().hex[:8]}"

    def run(self, program: str, *words: str, check: bool = True, timeout_s: float = 600) -> str:
        done = subprocess.run(
            [str(tool(program)), "--kubeconfig", KUBECONFIG, "--namespace", self.name, *words],
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{program} {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *words: str, check: bool = True) -> str:
        return self.run("kubectl-1.37", *words, check=check)

    def helm(self, *words: str) -> str:
        return self.run("helm-4", *words)

    def values(self, **more: object) -> list[str]:
        repository, _, tag = IMAGE.rpartition(":")
        chosen = {"image.repository": repository, "image.tag": tag} | more
        return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]

    def inside(self, pod: int, *words: str) -> str:
        """Run a command in a pod."""
        return self.kubectl("exec", f"{SET}-{pod}", "--container", "kvnode", "--", *words)

    def members(self) -> dict[str, bool]:
        """Name of each member and whether it votes."""
        peers = json.loads(
            self.inside(0, "kvnode", "operator", "raft", "list-peers", "--output", "json")
        )
        return {peer["name"]: peer["voter"] for peer in peers}

    def ready(self, replicas: int) -> bool:
        found: dict[str, Any] = json.loads(
            self.kubectl("get", "statefulset", SET, "--output", "json")
        )
        return bool(
            found["status"].get("readyReplicas", 0) == replicas == found["spec"]["replicas"]
        )


def until(check: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(1.0)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    made.kubectl("create", "namespace", made.name)
    try:
        yield made
    finally:
        made.kubectl("delete", "namespace", made.name, "--wait=false", check=False)


def voters(count: int) -> dict[str, bool]:
    return {f"{SET}-{number}": True for number in range(count)}


def test_install_test_upgrade_scale_and_uninstall(namespace: Namespace) -> None:
    """docs/kubernetes.md, as a user goes through it."""
    namespace.helm("install", RELEASE, str(CHART), "--wait", "--timeout", "5m", *namespace.values())
    assert namespace.members() == voters(3)
    namespace.helm("test", RELEASE)
    namespace.inside(0, "kvnode", "kv", "put", "a", "b")

    namespace.helm(
        "upgrade", RELEASE, str(CHART), "--wait", "--timeout", "10m",
        *namespace.values(**{"settings.log_level": "debug", "replicas": 5}),
    )  # fmt: skip
    until(lambda: namespace.members() == voters(5), 120, "five voters")
    assert namespace.inside(4, "kvnode", "kv", "get", "a").strip() == "b"

    # In one step, which leaves one of five: the others must have been removed before they went.
    namespace.kubectl("scale", "statefulset", SET, "--replicas", "1")
    until(lambda: namespace.ready(1), 300, "one pod")
    until(lambda: namespace.members() == voters(1), 120, "one voter")
    assert namespace.inside(0, "kvnode", "kv", "get", "a").strip() == "b"

    namespace.kubectl("scale", "statefulset", SET, "--replicas", "3")
    until(lambda: namespace.ready(3), 300, "three pods with their old volumes")
    until(lambda: namespace.members() == voters(3), 120, "three voters")

    namespace.kubectl("delete", "pod", "--selector", "app.kubernetes.io/component=server")
    until(lambda: namespace.ready(3), 300, "all pods back with new addresses")
    assert namespace.inside(2, "kvnode", "kv", "get", "a").strip() == "b"

    namespace.helm("uninstall", RELEASE, "--wait")
    claims = json.loads(namespace.kubectl("get", "pvc", "--output", "json"))["items"]
    assert len(claims) == 5, "the claims stay"

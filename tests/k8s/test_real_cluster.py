"""The chart on a real control plane: install, upgrade, scale, drain, back up, uninstall; and the examples.

KVNODE_TEST_KUBECONFIG names a cluster's file, KVNODE_TEST_IMAGE an image that its nodes have or can pull,
such as ``registry.example/kvnode:0.1.0``. Without them, KVNODE_TEST_KUBERNETES=1 (what
``make test-kubernetes`` says) starts a Kubernetes of one node. Each test has a namespace of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.charts import CHART, ROOT, tool
from tests.k8s.containers import until
from tests.k8s.one_node import (
    IMAGE,
    OneNode,
    adapted,
    as_of_1_20,
    lacks_kubernetes,
    one_node,
    volumes,
)

KUBECONFIG = os.environ.get("KVNODE_TEST_KUBECONFIG", "")
WANTED = bool(os.environ.get("KVNODE_TEST_KUBERNETES"))


def lacks_cluster() -> str:
    if KUBECONFIG:
        return "" if os.environ.get("KVNODE_TEST_IMAGE") else "set KVNODE_TEST_IMAGE"
    return lacks_kubernetes() if WANTED else "no API server: make test-kubernetes"


pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(lacks_cluster()), reason=lacks_cluster() or "there is one"),
]
SET = "kv-kvnode"
EXAMPLES = ROOT / "k8s" / "examples"


class Target:
    """The cluster that is tested on."""

    def __init__(self, node: OneNode | None, directory: Path) -> None:
        self.node = node
        self.kubeconfig = str(node.kubeconfig) if node else KUBECONFIG
        self.image = IMAGE if node else os.environ["KVNODE_TEST_IMAGE"]
        self.chart = adapted(directory) if node else CHART

    def run(self, program: str, *words: str) -> list[str]:
        command = [str(tool(program)), "--kubeconfig", self.kubeconfig, *words]
        return self.node.enter(*command) if self.node else command


class Namespace:
    """One namespace of the cluster, and the two programs that work on it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name = f"kvnode-test-{uuid.uuid4().hex[:8]}"

    def run(self, program: str, *words: str, check: bool = True, text: str | None = None) -> str:
        command = self.target.run(program, "--namespace", self.name, *words)
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0 or not check, f"{program} {words}: {done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if done.returncode else "")

    def kubectl(self, *words: str, check: bool = True, text: str | None = None) -> str:
        return self.run("kubectl-1.32", *words, check=check, text=text)

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "--output", "json"))

    def helm(self, command: str, *words: str) -> str:
        # The older API does not know all fields of the chart and leaves those out.
        old = command in ("install", "upgrade") and self.target.node is not None
        more = ["--disable-openapi-validation"] if old else []
        return self.run("helm-3.17", command, *words, *more)

    def install(self, release: str = "kv", command: str = "install", **values: object) -> None:
        """``helm install`` or ``upgrade``, waiting; with volumes made by hand where there is no class."""
        repository, _, tag = self.target.image.rpartition(":")
        chosen: dict[str, object] = {"image.repository": repository, "image.tag": tag}
        if self.target.node:
            chosen |= {"persistence.perPod.storageClass": "-", "backup.storageClass": "-"}
            chosen |= {"backup.size": "1Gi", "image.pullPolicy": "Never"}
        words = [f"{key}={value}" for key, value in (chosen | values).items()]
        settings = [word for each in words for word in ("--set", each)]
        chart = str(self.target.chart)
        self.helm(command, release, chart, "--wait", "--timeout", "5m", *settings)

    def inside(self, pod: int, *words: str, check: bool = True) -> str:
        """Run a command in a pod."""
        return self.kubectl(
            "exec", f"{SET}-{pod}", "--container", "kvnode", "--", *words, check=check
        )

    def members(self) -> dict[str, bool]:
        """Name of each member and whether it votes; empty while nobody answers."""
        said = self.inside(
            0, "kvnode", "operator", "raft", "list-peers", "--output", "json", check=False
        )
        return {p["name"]: p["voter"] for p in json.loads(said)} if said.startswith("[") else {}

    def ready(self, replicas: int, name: str = SET) -> bool:
        """Whether the controller has seen the last change, and all pods are there and ready."""
        found = self.get("statefulset", name)
        status = found["status"]
        return bool(
            status.get("observedGeneration") == found["metadata"]["generation"]
            and status.get("readyReplicas", 0) == status["replicas"] == replicas
            and status.get("updatedReplicas", replicas) == replicas == found["spec"]["replicas"]
        )

    def apply(self, manifests: str) -> None:
        """Apply with the image under test, and wait for nothing."""
        text = re.sub(r"image: kvnode\S*.*", f"image: {self.target.image}", manifests)
        if self.target.node:
            text = as_of_1_20(text)
        self.kubectl("apply", "--validate=false", "--filename", "-", text=text)

    def proxied(self, path: str) -> str:
        """GET through the API server's proxy; the error's text when it fails."""
        raw = f"/api/v1/namespaces/{self.name}/{path}"
        return self.kubectl("get", "--raw", raw, check=False)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("kubernetes")
    if KUBECONFIG:
        yield Target(None, directory)
        return
    with one_node(directory) as node:
        made = Target(node, directory)
        cluster = Namespace(made)
        cluster.kubectl("apply", "--filename", "-", text=volumes(node))
        until(lambda: '"Ready"' in cluster.kubectl("get", "node", "-o", "json"), 60, "the node")
        yield made


@pytest.fixture
def namespace(target: Target) -> Iterator[Namespace]:
    made = Namespace(target)
    made.kubectl("create", "namespace", made.name)
    until(lambda: "default" in made.kubectl("get", "serviceaccount"), 30, "the service account")
    try:
        yield made
    finally:
        made.kubectl("delete", "namespace", made.name, "--wait=false", check=False)


def voters(count: int) -> dict[str, bool]:
    return {f"{SET}-{number}": True for number in range(count)}


class Writer:
    """Puts one key after another through the client Service, from a pod of its own, until told to stop."""

    PROGRAM = """
import http.client, os, sys, time
number, failed, slowest = 0, [], 0.0
while not os.path.exists("/tmp/stop"):
    began = time.monotonic()
    try:
        connection = http.client.HTTPConnection(sys.argv[1], 8500, timeout=10)
        connection.request("PUT", f"/v1/kv/writer/{number}", str(number))
        answer = connection.getresponse()
        good = answer.status == 200 and answer.read() == b"true"
    except OSError as error:
        good = False
    slowest = max(slowest, time.monotonic() - began)
    if good:
        number += 1
    else:
        failed.append(number)
    connection.close()
    time.sleep(0.02)
print(number, len(failed), slowest, flush=True)
"""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        spec = {
            "restartPolicy": "Never",
            "containers": [
                {"name": "writer", "image": namespace.target.image, "imagePullPolicy": "IfNotPresent",
                 "command": ["python3", "-c", self.PROGRAM, SET]}
            ],
        }  # fmt: skip
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "writer"}, "spec": spec}
        namespace.kubectl("apply", "--filename", "-", text=json.dumps(pod))
        namespace.kubectl("wait", "--for=condition=Ready", "pod/writer", "--timeout=60s")

    def stop(self) -> tuple[int, int, float]:
        """Return how many writes were acknowledged, how many failed, and the longest time of one, s."""
        self.namespace.kubectl("exec", "writer", "--", "touch", "/tmp/stop")

        def done() -> bool:
            phase: str = self.namespace.get("pod", "writer")["status"]["phase"]
            return phase == "Succeeded"

        until(done, 60, "the writer")
        number, failed, slowest = self.namespace.kubectl("logs", "writer").split()
        return int(number), int(failed), float(slowest)


def kept(namespace: Namespace, count: int) -> None:
    """Every acknowledged write is there."""
    stored = json.loads(namespace.inside(0, "kvnode", "kv", "export", "writer/"))
    assert {f"writer/{n}" for n in range(count)} <= {pair["key"] for pair in stored}


def test_install_test_upgrade_scale_and_uninstall(namespace: Namespace) -> None:
    """docs/kubernetes.md, as a user goes through it."""
    namespace.install()
    assert namespace.members() == voters(3)
    namespace.helm("test", "kv")
    namespace.inside(0, "kvnode", "kv", "put", "a", "b")
    assert namespace.proxied(f"services/{SET}:http/proxy/kv/a") == "b"

    writer = Writer(namespace)
    namespace.install(command="upgrade", **{"settings.log_level": "debug", "replicas": 5})
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
    count, failed, slowest = writer.stop()
    print(f"scaling 3-5-1-3: {count} acknowledged, {failed} failed, longest {slowest:.2f} s")
    kept(namespace, count)

    namespace.kubectl("delete", "pod", "--selector", "app.kubernetes.io/component=server")
    until(lambda: namespace.ready(3), 300, "all pods back with new addresses")
    assert namespace.inside(2, "kvnode", "kv", "get", "a").strip() == "b"
    kept(namespace, count)

    namespace.helm("uninstall", "kv", "--wait")
    claims = namespace.get("pvc")["items"]
    assert len(claims) == 5, "the claims stay"


def test_a_rolling_restart_loses_no_write_and_fails_none(namespace: Namespace) -> None:
    namespace.install()
    writer = Writer(namespace)
    namespace.kubectl("rollout", "restart", f"statefulset/{SET}")
    namespace.kubectl("rollout", "status", f"statefulset/{SET}", "--timeout=300s")
    count, failed, slowest = writer.stop()
    print(f"rolling restart: {count} acknowledged, {failed} failed, longest {slowest:.2f} s")
    assert count > 100
    # A connection that a pod's end breaks before it was answered is the client's to try again.
    assert failed <= 3
    kept(namespace, count)


def test_a_drain_takes_one_pod_at_a_time(namespace: Namespace) -> None:
    """The eviction API refuses the second while the first is not back."""
    namespace.install()

    def evict(pod: int) -> str:
        version = "policy/v1beta1" if namespace.target.node else "policy/v1"
        name = {"name": f"{SET}-{pod}", "namespace": namespace.name}
        body = {"apiVersion": version, "kind": "Eviction", "metadata": name}
        path = f"/api/v1/namespaces/{namespace.name}/pods/{SET}-{pod}/eviction"
        return namespace.kubectl(
            "create", "--raw", path, "--filename", "-", text=json.dumps(body), check=False
        )

    assert "Success" in evict(0)
    assert "TooManyRequests" in evict(1)
    until(lambda: "Success" in evict(1), 120, "the first to be back")
    until(lambda: namespace.ready(3), 120, "both")


def test_lost_pods_come_back_on_their_volumes_and_a_lost_volume_as_a_new_member(
    namespace: Namespace,
) -> None:
    namespace.install()
    namespace.inside(0, "kvnode", "kv", "put", "a", "b")
    pods = [f"{SET}-{n}" for n in range(3)]
    namespace.kubectl("delete", "pod", *pods, "--force", "--grace-period=0")
    until(lambda: namespace.ready(3), 120, "three pods after they were killed")
    assert namespace.inside(1, "kvnode", "kv", "get", "a").strip() == "b"

    before = namespace.inside(2, "cat", "/data/identity.json")
    namespace.kubectl("delete", "pvc", f"data-{SET}-2", "--wait=false")
    namespace.kubectl("delete", "pod", f"{SET}-2")
    until(lambda: namespace.ready(3), 180, "the third pod on a new volume")
    until(lambda: namespace.members() == voters(3), 120, "three voters")
    assert namespace.inside(2, "cat", "/data/identity.json") != before
    assert namespace.inside(2, "kvnode", "kv", "get", "--stale", "a").strip() == "b"


def job_of(namespace: Namespace, cron: str, name: str) -> str:
    """Run a CronJob's job now, as ``kubectl create job --from`` does; return what it printed."""
    spec = namespace.get("cronjob", cron)["spec"]["jobTemplate"]["spec"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
    namespace.kubectl("apply", "--filename", "-", text=json.dumps(job))
    namespace.kubectl("wait", "--for=condition=complete", f"job/{name}", "--timeout=120s")
    return namespace.kubectl("logs", f"job/{name}", "--all-containers")


def test_tls_a_secret_read_replicas_backup_and_restore(namespace: Namespace) -> None:
    """Jobs with their own rights make the certificates, save a snapshot, and restore it elsewhere."""
    namespace.install(
        **{"tls.enabled": "true", "peerSecret.generate": "true", "readReplicas.enabled": "true"},
        **{"backup.enabled": "true"},
    )
    members = voters(3) | {f"{SET}-read-0": False}
    until(lambda: namespace.members() == members, 60, "a read replica")
    namespace.helm("test", "kv")
    assert "tls" in namespace.get("secret", f"{SET}-tls")["type"]
    assert "kept" in job_of(namespace, f"{SET}-secrets", "renew")
    namespace.inside(0, "kvnode", "kv", "put", "kept", "yes")
    assert ".snap" in job_of(namespace, f"{SET}-backup", "save")
    namespace.install(
        "other", **{"restore.enabled": "true", "restore.existingClaim": f"{SET}-backup"}
    )
    words = ("--container", "kvnode", "--", "kvnode", "kv", "get", "kept")
    assert namespace.kubectl("exec", "other-kvnode-1", *words).strip() == "yes"


def test_the_plain_manifests_make_the_same_cluster(namespace: Namespace) -> None:
    base = namespace.run("kubectl-1.32", "kustomize", str(ROOT / "k8s" / "base"))
    namespace.apply(base)
    until(lambda: namespace.ready(3, "kvnode"), 120, "three pods")
    said = namespace.kubectl("exec", "kvnode-0", "--", "kvnode", "members")
    assert said.count("alive") == 3


def test_post_some_data_and_get_it_back(namespace: Namespace) -> None:
    """The example's own lines, through the API server's proxy."""
    namespace.apply(namespace.run("kubectl-1.32", "kustomize", str(EXAMPLES / "post-and-get")))
    until(lambda: namespace.ready(2, "kubia"), 120, "two pods")
    post = f"/api/v1/namespaces/{namespace.name}/pods/kubia-0/proxy/kv/note"
    namespace.kubectl("create", "--raw", post, "--filename", "-", text="remember me")
    assert namespace.proxied("pods/kubia-1/proxy/kv/note") == "remember me"
    namespace.kubectl("delete", "pod", "kubia-0")
    note = "services/kubia-public/proxy/kv/note"
    until(lambda: namespace.proxied(note) == "remember me", 60, "the data by the Service")
    namespace.kubectl("scale", "statefulset", "kubia", "--replicas", "3")
    until(lambda: namespace.ready(3, "kubia"), 120, "three pods")

    def all_agree() -> bool:
        said = namespace.proxied("services/kubia-public/proxy/pods")
        pods = json.loads(said) if said.startswith("[") else []
        return len(pods) == 3 and len({pod.get("digest") for pod in pods}) == 1

    until(all_agree, 60, "the same data on three pods")


def test_the_manifest_that_was_written_for_consul(namespace: Namespace) -> None:
    """One claim for all, mounted twice; addresses of pods for names; then all addresses change."""
    documents = list(yaml.safe_load_all((EXAMPLES / "consul" / "consul.yaml").read_text()))
    for document in documents:
        if document["kind"] == "StatefulSet" and namespace.target.node:
            # One node cannot keep pods of the set apart.
            del document["spec"]["template"]["spec"]["affinity"]
    claim = list(yaml.safe_load_all((EXAMPLES / "consul" / "volume.yaml").read_text()))[-1]
    claim["spec"].pop("volumeName")
    claim["spec"]["resources"]["requests"]["storage"] = "1Gi"
    if not namespace.target.node:
        del claim["spec"]["storageClassName"]
    namespace.apply(yaml.safe_dump_all([claim, *documents]))
    until(lambda: namespace.ready(3, "consul"), 120, "three pods")
    consul = ("exec", "consul-0", "--", "consul")

    def agree() -> bool:
        said = namespace.kubectl(*consul, "members", check=False)
        return said.count("alive") == 3 and "leader" in said

    until(agree, 60, "three members")
    # "Moved Permanently" is the proof of success that its users know; the redirect is followed here.
    assert "<title>kvnode" in namespace.proxied("pods/consul-0:8500/proxy/")
    namespace.kubectl(*consul, "kv", "put", "x", "y")
    namespace.kubectl("delete", "pod", "consul-0", "consul-1", "consul-2")
    until(lambda: namespace.ready(3, "consul"), 120, "three pods with other addresses")
    until(agree, 60, "three members that found each other again")
    assert namespace.kubectl(*consul, "kv", "get", "x").strip() == "y"

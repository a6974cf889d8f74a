"""The image, built from the tree and run as the chart's pods are: same user, mounts, arguments, DNS."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.k8s.api_server import ApiServer
from tests.k8s.charts import ROOT, Object, parsed, render, the
from tests.k8s.containers import (
    IMAGE,
    Network,
    Pod,
    World,
    build_image,
    flags_of,
    lacks_containers,
    network,
    podman,
    program,
    run_job,
    until,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(420),
    pytest.mark.skipif(bool(lacks_containers()), reason=lacks_containers() or "containers"),
]
READY_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    build_image()


class Cluster:
    """A StatefulSet's pods, and the controller's part in their lives."""

    def __init__(self, world: World, net: Network, name: str) -> None:
        self.world, self.net, self.name = world, net, name
        self.pods: dict[int, Pod] = {}

    def start(self, *ordinals: int) -> None:
        for ordinal in ordinals:
            pod = f"{self.name}-{ordinal}"
            flags, words = flags_of(self.world, pod)
            self.pods[ordinal] = Pod(pod, self.net, flags, words)
            self.pods[ordinal].start()
        self.publish()

    def publish(self) -> None:
        """Show DNS who is there, ready or not."""
        self.net.publish({pod.name: pod.address for pod in self.pods.values()})

    def stop(self, ordinal: int) -> int:
        pod = self.pods.pop(ordinal)
        code = pod.stop()
        self.publish()
        return code

    def ready(self, *ordinals: int) -> None:
        """Wait until these are Ready; say what they lack when they are not."""
        for ordinal in ordinals or tuple(self.pods):
            pod = self.pods[ordinal]
            try:
                until(pod.is_ready, READY_S, f"{pod.name} to be ready")
            except AssertionError as error:
                said = pod.http("/health/ready")[1]
                raise AssertionError(f"{error}\n{said}\n{pod.logs()[-6000:]}") from error

    def members(self, ordinal: int = 0) -> dict[str, bool]:
        """Name of each member and whether it votes."""
        text = self.pods[ordinal].execute(
            "kvnode", "operator", "raft", "list-peers", "--output", "json"
        )
        return {peer["name"]: peer["voter"] for peer in yaml.safe_load(text)}

    def leader(self) -> int:
        asked = next(iter(self.pods.values()))
        text = asked.execute("kvnode", "operator", "raft", "list-peers", "--output", "json")
        name = next(peer["name"] for peer in yaml.safe_load(text) if peer["leader"])
        return int(name.rpartition("-")[2])


@contextmanager
def cluster(world: World, service: str, name: str) -> Iterator[Cluster]:
    with network(service) as net:
        made = Cluster(world, net, name)
        try:
            yield made
        finally:
            for pod in made.pods.values():
                pod.remove()


@pytest.fixture
def chart(tmp_path: Path) -> Iterator[Cluster]:
    """The chart's default cluster; no pod is started."""
    with cluster(World(render("helm-4"), tmp_path), "kvnode-headless", "kvnode") as made:
        yield made


def test_the_image_is_small_and_nobody_is_root() -> None:
    sizes = [
        int(podman("image", "inspect", "--format", "{{.Size}}", name).stdout)
        for name in (IMAGE, "docker.io/library/python:3.13-slim")
    ]
    assert sizes[0] - sizes[1] < 120 << 20
    done = podman("run", "--rm", "--network", "none", "--entrypoint", "id", IMAGE, "-u")
    assert done.stdout.strip() == "10001"
    for word in ("pip", "gcc"):
        found = podman(
            "run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGE, "-c",
            f"ls /opt/kvnode/bin/{word}", check=False,
        )  # fmt: skip
        assert found.returncode != 0, f"{word} is in the image"


def test_without_arguments_it_is_a_node_to_try_out() -> None:
    """As Consul's image: ``docker run IMAGE``."""
    with network() as net:
        pod = Pod("try", net, [], [])
        try:
            pod.start()
            until(pod.is_ready, READY_S, "the node")
            assert pod.http("/kv/a", "--data-binary", "b")[0] == 200
            assert pod.execute("consul", "kv", "get", "a").strip() == "b"
            assert pod.stop() == 0
        finally:
            pod.remove()


@pytest.mark.parametrize("replicas", [1, 5])
def test_first_boot_of_other_sizes(replicas: int, tmp_path: Path) -> None:
    """No init Job; the pods run before DNS knows any of them."""
    objects = render("helm-4", {"replicas": replicas})
    with cluster(World(objects, tmp_path), "kvnode-headless", "kvnode") as made:
        made.start(*range(replicas))
        made.ready()
        assert made.members() == {f"kvnode-{n}": True for n in range(replicas)}
        found = [pod.http("/v1/agent/self")[0] for pod in made.pods.values()]
        assert found == [200] * replicas


def test_three_empty_pods_become_a_cluster_that_survives_everything(
    chart: Cluster, tmp_path: Path
) -> None:
    """First boot; ``helm test``; a rolling restart; all pods back with new addresses; one lost volume."""
    chart.start(0, 1, 2)
    chart.ready()
    assert chart.members() == {f"kvnode-{n}": True for n in range(3)}
    run_helm_test(chart)

    with Writer(chart) as writer:
        for ordinal in (
            2,
            1,
            0,
        ):  # as the controller does: the highest first, the next when it is ready
            assert chart.stop(ordinal) == 0, "the handover took too long, or failed"
            chart.start(ordinal)
            chart.ready(ordinal)
    assert writer.acknowledged > 10
    assert writer.lost(chart) == []

    for ordinal in (0, 1, 2):
        chart.pods.pop(ordinal).kill()
    chart.publish()
    chart.start(0, 1, 2)
    chart.ready()
    assert writer.lost(chart) == []

    # A lost volume: a new incarnation, which replaces the old one and gets the data.
    chart.stop(1)
    for found in (tmp_path / "kvnode-1").glob("*-data"):
        found.rename(found.with_name("lost"))
    chart.start(1)
    chart.ready(1)
    until(lambda: chart.members() == {f"kvnode-{n}": True for n in range(3)}, 30, "the swap")
    assert chart.pods[1].http("/kv/w-0?stale")[0] == 200


def run_helm_test(chart: Cluster) -> None:
    """Run the pod of ``helm test`` with its own command, environment and user."""
    done = run_job(chart.world, chart.net, "kvnode-test", the(chart.world.objects, "Pod")["spec"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "handed over to" in done.stdout
    assert done.stdout.endswith("kvnode works\n")


class Writer:
    """Writes one key after another to whichever pod is ready, as a client of the Service does."""

    def __init__(self, chart: Cluster) -> None:
        self._chart = chart
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.acknowledged = 0
        self.refused = 0

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _write(self) -> None:
        while not self._over.is_set():
            for pod in list(self._chart.pods.values()):
                body = str(self.acknowledged)
                status, _ = pod.http(f"/kv/w-{self.acknowledged}", "--data-binary", body)
                if status == 200:
                    self.acknowledged += 1
                    break
                self.refused += 1
            time.sleep(0.02)

    def lost(self, chart: Cluster) -> list[int]:
        """Numbers that were acknowledged and are not there."""
        pod = next(iter(chart.pods.values()))
        found = set(yaml.safe_load(pod.http("/kv/w-?keys")[1]))
        return [n for n in range(self.acknowledged) if f"w-{n}" not in found]


def test_scaling_up_down_and_up_again(chart: Cluster) -> None:
    """3 → 5 as ``kubectl scale`` does it, 5 → 3 as docs/kubernetes.md says, and 5 with the old volumes."""
    chart.start(0, 1, 2)
    chart.ready()
    assert chart.pods[0].http("/kv/a", "--data-binary", "b")[0] == 200
    five = {f"kvnode-{n}": True for n in range(5)}

    chart.start(3, 4)
    chart.ready()
    until(lambda: chart.members() == five, 60, "five voters")

    for ordinal in (4, 3):
        assert chart.stop(ordinal) == 0
        chart.pods[0].execute(
            "kvnode", "operator", "raft", "remove-peer", "--name", f"kvnode-{ordinal}"
        )
    assert chart.members() == {f"kvnode-{n}": True for n in range(3)}
    assert chart.pods[0].http("/kv/a", "--data-binary", "c")[0] == 200

    chart.start(3, 4)
    chart.ready()
    until(lambda: chart.members() == five, 60, "five voters again")
    assert chart.pods[4].http("/kv/a")[1] == "c"


def test_scaling_to_one_and_back(chart: Cluster) -> None:
    """docs/kubernetes.md: the last but one is removed while it runs, since one of two is no majority."""
    chart.start(0, 1, 2)
    chart.ready()
    assert chart.pods[0].http("/kv/a", "--data-binary", "b")[0] == 200

    chart.stop(2)
    chart.pods[0].execute("kvnode", "operator", "raft", "remove-peer", "--name", "kvnode-2")
    chart.pods[0].execute("kvnode", "operator", "raft", "remove-peer", "--name", "kvnode-1")
    chart.pods.pop(1).kill()
    chart.publish()
    assert chart.members() == {"kvnode-0": True}
    assert chart.pods[0].http("/kv/a", "--data-binary", "c")[0] == 200

    chart.start(1, 2)
    chart.ready()
    until(lambda: chart.members() == {f"kvnode-{n}": True for n in range(3)}, 60, "three voters")
    assert chart.pods[2].http("/kv/a")[1] == "c"


def test_a_hand_written_consul_manifest_comes_up_with_nothing_but_the_image_changed(
    tmp_path: Path,
) -> None:
    """Kubernetes guide §7.1, pods one after another as OrderedReady starts them."""
    objects = parsed((ROOT / "k8s/examples/consul/consul.yaml").read_text())
    with cluster(World(objects, tmp_path), "consul", "consul") as made:
        for ordinal in range(3):
            made.start(ordinal)
        made.ready()
        assert made.members() == {f"consul-{n}": True for n in range(3)}
        status, body = made.pods[1].http("/")
        assert (status, body.strip()) == (301, '<a href="/ui/">Moved Permanently</a>.')
        assert made.pods[2].http("/v1/kv/a", "--request", "PUT", "--data-binary", "b") == (
            200,
            "true",
        )
        assert made.pods[0].execute("consul", "kv", "get", "a").strip() == "b"
        # The addresses that it advertises are new after this; 10 s is the manifest's grace period.
        for ordinal in range(3):
            assert made.pods.pop(ordinal).stop(10) == 0
        made.start(0, 1, 2)
        made.ready()
        assert made.pods[1].http("/kv/a") == (200, "b")


def test_a_volume_that_cannot_be_written_is_said(chart: Cluster, tmp_path: Path) -> None:
    """As of an NFS export for root only: the log says what is wrong, the code is not 0."""
    flags, words = flags_of(chart.world, "kvnode-0")
    (volume,) = (tmp_path / "kvnode-0").glob("*-data")
    os.chown(volume, 0, 0)
    volume.chmod(0o755)
    pod = Pod("kvnode-0", chart.net, flags, words)
    try:
        pod.start()
        assert pod.wait() == 1
        said = pod.logs()
        assert "/data belongs to user 0 and group 0 with mode 0755" in said
        assert "this process (user 10001" in said
    finally:
        pod.remove()


# -- with everything switched on ---------------------------------------------------------------------

SECURE = {
    "tls": {"enabled": True},
    "peerSecret": {"generate": True},
    "backup": {"enabled": True, "existingClaim": "backups", "keep": 2},
    "restore": {"enabled": True, "existingClaim": "backups"},
}


def make_secrets(objects: list[Object], folder: Path) -> dict[str, dict[str, bytes]]:
    """Let the chart's Job make the Secrets, with its own arguments and rights, at a stand-in API server."""
    job = the(objects, "Job", "kvnode-secrets")["spec"]["template"]["spec"]
    role = the(objects, "Role", "kvnode-secrets")
    rights = {
        (verb, resource, name)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }

    async def make() -> dict[str, dict[str, bytes]]:
        async with ApiServer(folder) as api:
            account = api.account("job", *rights)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "kvnode", *job["containers"][0]["args"],
                "--kubernetes-api", api.url, "--kubernetes-credentials", str(account),
            )  # fmt: skip
            assert await process.wait() == 0
            names = [name for kind, name in api.objects if kind == "secrets"]
            return {name: api.secret(name) for name in names}

    return asyncio.run(make())


def test_with_tls_and_a_secret_everything_goes_on_as_before(tmp_path: Path) -> None:
    """Boot, ``helm test``, ``kubectl exec``, backups, new addresses, and a restore into another release."""
    objects = render("helm-4", SECURE)
    backups = tmp_path / "backups"
    world = World(objects, tmp_path, make_secrets(objects, tmp_path / "api"), {"backups": backups})
    assert world.secrets.keys() == {"kvnode-tls", "kvnode-tls-ca", "kvnode-peer-secret"}
    ca = tmp_path / "ca.crt"
    ca.write_bytes(world.secrets["kvnode-tls"]["ca.crt"])

    def ask(pod: Pod, path: str, *words: str) -> tuple[int, str]:
        done = pod.network.inside(
            str(program("curl")), "--silent", "--max-time", "20", "--write-out", "\n%{http_code}", *words,
            "--cacert", str(ca), "--resolve", f"kvnode:8500:{pod.address}", f"https://kvnode:8500{path}",
            check=False,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    with cluster(world, "kvnode-headless", "kvnode") as made:
        made.start(0, 1, 2)
        made.ready()
        assert made.members() == {f"kvnode-{n}": True for n in range(3)}
        assert ask(made.pods[0], "/kv/a", "--data-binary", "b")[0] == 200
        assert ask(made.pods[2], "/kv/a") == (200, "b")
        assert made.pods[1].http("/kv/a")[0] in (0, 400), "plain HTTP on the TLS port"
        run_helm_test(made)

        job = the(objects, "CronJob", "kvnode-backup")["spec"]["jobTemplate"]["spec"]
        for _ in range(3):
            done = run_job(world, made.net, "backup", job["template"]["spec"])
            assert done.returncode == 0, done.stdout + done.stderr
            second = int(time.time())  # the file's name is the second
            until(lambda second=second: time.time() >= second + 1, 5, "another second")
        kept = sorted(backups.glob("*.snap"))
        assert len(kept) == 2
        assert not list(backups.glob("*.part"))

        for ordinal in (0, 1, 2):
            made.pods.pop(ordinal).kill()
        made.publish()
        made.start(0, 1, 2)
        made.ready()
        assert ask(made.pods[1], "/kv/a") == (200, "b")

    # Another release, empty: restored from the newest file, and not a second time.
    other = World(objects, tmp_path / "other", world.secrets, {"backups": backups})
    restore = the(objects, "Job", "kvnode-restore")["spec"]["template"]["spec"]
    with cluster(other, "kvnode-headless", "kvnode") as made:
        made.start(0, 1, 2)
        made.ready()
        done = run_job(other, made.net, "restore", restore)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ask(made.pods[2], "/kv/a") == (200, "b")
        done = run_job(other, made.net, "restore", restore)
        assert done.returncode == 1
        assert "holds keys already" in done.stderr


def test_the_load_test_job_says_what_it_measured(chart: Cluster) -> None:
    """k8s/load-test against the chart's cluster, shortened."""
    job = the(parsed((ROOT / "k8s/load-test/job.yaml").read_text()), "Job")
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    container["args"] = [
        "--duration=3" if word.startswith("--duration") else word for word in container["args"]
    ]
    chart.start(0, 1, 2)
    chart.ready()
    done = run_job(chart.world, chart.net, "load", spec)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verified"]["lost"] == []
    assert result["operations"]["put"]["answered"] > 100

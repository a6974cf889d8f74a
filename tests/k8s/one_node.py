"""A whole Kubernetes on one node: API server, controllers, scheduler, kubelet, proxy, containerd: all real.

They are built by ``scripts/build_kubernetes.sh`` and run in namespaces (network, processes, mounts) of their
own, which end with the test and take every pod with them. The cluster has one network for pods, a name
server (``cluster_dns.py``), and volumes made by hand; no storage provisioner and no network policy.

It is Kubernetes 1.20, the last whose source a distribution carries whole, and older than what the chart
asks for: ``adapted`` says what is changed in a copy of the chart so that it can be installed there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.k8s import containers
from tests.k8s.charts import CHART
from tests.k8s.cluster_dns import NODE
from tests.k8s.containers import program

PROGRAMS = (
    Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "kvnode" / "kubernetes"
)
SERVER = f"https://{NODE}:6443"
IMAGE = containers.IMAGE
VOLUMES = 40


def lacks_kubernetes() -> str:
    """Why none can be started here; empty when one can."""
    if not (PROGRAMS / "complete").exists():
        return "no API server: `make test-kubernetes` builds one"
    missing = [name for name in ("containerd", "etcd", "runc", "iptables") if not program(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return containers.lacks_containers()


def adapted(target: Path) -> Path:
    """Copy the chart, with the older names of two APIs that 1.20 does not have yet."""
    chart = target / "chart"
    shutil.copytree(CHART, chart)
    lines = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(
        re.sub(r"^kubeVersion: .*$", 'kubeVersion: ">=1.20.0-0"', lines, flags=re.MULTILINE)
    )
    for template in (chart / "templates").rglob("*.yaml"):
        template.write_text(as_of_1_20(template.read_text()))
    return chart


def as_of_1_20(manifest: str) -> str:
    """Give a disruption budget and a CronJob the versions that they had."""
    manifest = manifest.replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n")
    return manifest.replace(
        "apiVersion: batch/v1\nkind: CronJob", "apiVersion: batch/v1beta1\nkind: CronJob"
    )


@dataclass
class OneNode:
    """A started cluster; ``directory`` holds its data, logs and volumes."""

    directory: Path
    holder: subprocess.Popen[bytes]
    init: int
    """The first process inside; the namespaces end with it."""
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "admin.kubeconfig"

    def enter(self, *words: str) -> list[str]:
        """Return a command line for the cluster's namespaces."""
        spaces = ["--target", str(self.init), "--net", "--pid", "--mount"]
        return [str(program("nsenter")), *spaces, *words]

    def run(self, *words: str, timeout_s: float = 60) -> str:
        done = subprocess.run(
            self.enter(*words), capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, *words: str) -> None:
        """Start one of its programs; its output goes to a file."""
        with (self.directory / "log" / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                self.enter(str(program("setpriv")), "--pdeathsig", "KILL", *words),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def until(self, check: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """Wait for something true and return it; when one of the programs has ended, say so."""
        deadline = time.monotonic() + timeout_s
        while not (found := check()):
            for name, process in self.started.items():
                assert process.poll() is None, f"{name} ended: {self.said(name)}"
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
            time.sleep(0.3)
        return found

    def said(self, name: str) -> str:
        return (self.directory / "log" / f"{name}.log").read_text(errors="replace")[-2000:]


@contextmanager
def one_node(directory: Path) -> Iterator[OneNode]:
    """Start the cluster with the image in it, and end it with everything that ran there."""
    containers.build_image()
    for name in ("log", "pki", "net", "volumes"):
        (directory / name).mkdir()
    made = OneNode(directory, *_namespaces())
    try:
        _network(made)
        _control_plane(made)
        _load_images(made)
        _node(made)
        yield made
    finally:
        # The first process ends with its holder, and the kernel ends all the others with that one.
        made.holder.kill()
        made.holder.wait()
        for process in made.started.values():
            process.wait()


def _namespaces() -> tuple[subprocess.Popen[bytes], int]:
    """Start the first process of the cluster, which takes in orphans; it ends with its holder."""
    wait = "trap : CHLD; while :; do sleep 3600 & wait $!; done"
    holder = subprocess.Popen(
        [str(program("setpriv")), "--pdeathsig", "KILL",
         str(program("unshare")), "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc",
         "sh", "-c", wait],
    )  # fmt: skip
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")

    def shell() -> int:
        """The child, once it has become the shell: its own ``/proc`` is mounted by then."""
        for pid in children.read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "sh\n":
                return int(pid)
        return 0

    return holder, int(containers.until(shell, 10, "the first process"))


def _network(made: OneNode) -> None:
    ip = str(program("ip"))
    made.run(ip, "link", "set", "lo", "up")
    # A bridge with nothing on it: an interface that is always there.
    made.run(ip, "link", "add", "eth0", "type", "bridge")
    made.run(ip, "address", "add", f"{NODE}/24", "dev", "eth0")
    made.run(ip, "link", "set", "eth0", "up")
    made.run(ip, "route", "add", "default", "via", "10.99.0.1")
    made.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.route_localnet=1")
    (made.directory / "resolv.conf").write_text(f"nameserver {NODE}\n")
    (made.directory / "net" / "10-pods.conflist").write_text(
        """{"cniVersion": "0.3.1", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": true,
             "ipam": {"type": "host-local", "dataDir": "%s",
                      "ranges": [[{"subnet": "10.244.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]}"""
        % (made.directory / "addresses")
    )


# -- the control plane ------------------------------------------------------------------------------

USERS = {
    "admin": ("admin", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": ("system:node:node1", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
}


def _control_plane(made: OneNode) -> None:
    at, pki = made.directory, made.directory / "pki"
    made.run("openssl", "genrsa", "-out", str(pki / "accounts.key"), "2048")
    (pki / "tokens.csv").write_text(
        "".join(f'{key}-token,{user},{key},"{group}"\n' for key, (user, group) in USERS.items())
    )
    made.start(
        "etcd", "etcd", f"--data-dir={at / 'etcd'}", "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
    )  # fmt: skip
    key = pki / "accounts.key"
    made.start(
        "apiserver", str(PROGRAMS / "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
        f"--cert-dir={pki}", f"--bind-address={NODE}", f"--advertise-address={NODE}",
        "--service-cluster-ip-range=10.96.0.0/16", f"--token-auth-file={pki / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC", f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}", "--allow-privileged",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--kubelet-preferred-address-types=InternalIP",
    )  # fmt: skip
    made.until((pki / "apiserver.crt").exists, 60, "the API server's certificate")
    for user in USERS:
        (at / f"{user}.kubeconfig").write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
            f'clusters: [{{name: c, cluster: {{server: "{SERVER}", '
            f'certificate-authority: "{pki / "apiserver.crt"}"}}}}]\n'
            f"users: [{{name: u, user: {{token: {user}-token}}}}]\n"
            "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        )
    ready = made.enter("curl", "--silent", "--insecure", "--max-time", "2", f"{SERVER}/readyz")
    made.until(
        lambda: subprocess.run(ready, capture_output=True, check=False).stdout == b"ok",
        90,
        "the API",
    )
    made.start(
        "controllers", str(PROGRAMS / "kube-controller-manager"),
        f"--kubeconfig={made.kubeconfig}", f"--root-ca-file={pki / 'apiserver.crt'}",
        f"--service-account-private-key-file={key}", "--use-service-account-credentials",
    )  # fmt: skip
    made.start(
        "scheduler", str(PROGRAMS / "kube-scheduler"), f"--kubeconfig={at / 'scheduler.kubeconfig'}"
    )
    made.start("dns", sys.executable, "-m", "tests.k8s.cluster_dns", str(at))


# -- the node ---------------------------------------------------------------------------------------


def _load_images(made: OneNode) -> None:
    """Start containerd with the image of kvnode and the one that holds a pod's namespaces open."""
    at = made.directory
    (at / "containerd.toml").write_text(f"""
        version = 2
        root = "{at / "containerd"}"
        state = "{at / "containerd-state"}"
        [grpc]
        address = "{at / "containerd.sock"}"
        [plugins."io.containerd.grpc.v1.cri"]
        sandbox_image = "localhost/pause:1"
        disable_apparmor = true
        restrict_oom_score_adj = true
        [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "/usr/lib/cni"
        conf_dir = "{at / "net"}"
    """)
    made.start("containerd", "containerd", f"--config={at / 'containerd.toml'}")
    made.until((at / "containerd.sock").exists, 30, "containerd")
    pause = at / "pause"
    pause.mkdir()
    shutil.copy(PROGRAMS / "pause", pause)
    (pause / "Dockerfile").write_text(
        'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n'
    )
    containers.podman("build", "--isolation", "chroot", "--tag", "localhost/pause:1", str(pause))
    for name, image in (("kvnode", IMAGE), ("pause", "localhost/pause:1")):
        archive = at / f"{name}.tar"
        containers.podman("save", "--format", "docker-archive", "--output", str(archive), image)
        load = [
            "ctr",
            f"--address={at / 'containerd.sock'}",
            "--namespace=k8s.io",
            "images",
            "import",
        ]
        made.run(*load, str(archive), timeout_s=120)
        archive.unlink()


def _node(made: OneNode) -> None:
    at = made.directory
    (at / "kubelet.yaml").write_text(f"""
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {NODE}
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
clusterDNS: ["{NODE}"]
clusterDomain: cluster.local
evictionHard: {{}}
imageGCHighThresholdPercent: 100  # never: the images cannot be pulled again
resolvConf: {at / "resolv.conf"}
""")
    made.start(
        "kubelet", str(PROGRAMS / "kubelet"), f"--config={at / 'kubelet.yaml'}",
        f"--kubeconfig={at / 'kubelet.kubeconfig'}", "--hostname-override=node1", f"--node-ip={NODE}",
        "--container-runtime=remote", f"--container-runtime-endpoint=unix://{at / 'containerd.sock'}",
        f"--root-dir={at / 'kubelet'}", f"--cert-dir={at / 'kubelet-pki'}",
    )  # fmt: skip
    made.start(
        "proxy", str(PROGRAMS / "kube-proxy"), f"--kubeconfig={at / 'proxy.kubeconfig'}",
        "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16", "--proxy-mode=iptables",
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    )  # fmt: skip


def volumes(made: OneNode) -> str:
    """Manifests of volumes made by hand, without a class, that any claim of up to 1 GiB may get."""
    found = []
    for number in range(VOLUMES):
        folder = made.directory / "volumes" / str(number)
        folder.mkdir()
        folder.chmod(0o777)
        found.append(
            f"apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: volume-{number}}}\n"
            "spec:\n  capacity: {storage: 1Gi}\n  accessModes: [ReadWriteOnce, ReadWriteMany]\n"
            f"  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: {folder}}}\n"
        )
    return "---\n".join(found)

"""Builds the image and runs it as the kubelet would run the chart's pods, without a cluster.

Podman does both, with storage of its own below ``.cache``, so that nothing is shared with the
machine's containers. The base image cannot be pulled here; ``mmdebstrap`` makes one with the same
Python, once. Each pod has a network namespace with an address of its own on a bridge; the bridge is in
a namespace too, and dnsmasq answers there for the headless Service. The namespaces have no names: they
end with the processes that hold them, which end with the test.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.charts import ROOT, Object, expanded, the, voters

STORE = ROOT / ".cache" / "podman"
BASE = ROOT / ".cache" / "tools" / "base-trixie.tar"
BASE_NAME = "docker.io/library/python:3.13-slim"
IMAGE = "localhost/kvnode:test"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
NEEDED = ("podman", "runc", "ip", "unshare", "nsenter", "setpriv", "dnsmasq", "curl")
SUBNET = "10.99.0"
"""Inside the namespaces only, so that it cannot collide with anything."""
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def program(name: str) -> str | None:
    """Path of a program, also where only root usually looks."""
    return shutil.which(name, path=_PATH)


@cache
def lacks_containers() -> str:
    """Why containers cannot be run here; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "containers need root on Linux"
    missing = [name for name in NEEDED if program(name) is None]
    if not BASE.exists() and program("mmdebstrap") is None:
        missing.append("mmdebstrap")
    if missing:
        return f"not installed: {', '.join(missing)}"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlay file system"
    tried = subprocess.run(
        [str(program("unshare")), "--net", str(program("ip")), "link", "add", "br0", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no bridge in a namespace: {tried.stderr.strip()}" if tried.returncode else ""


# -- podman -----------------------------------------------------------------------------------------


def podman(
    *words: str, check: bool = True, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run podman on the project's own storage."""
    _configure()
    environ = dict(os.environ) | {
        "PATH": _PATH,
        "CONTAINERS_CONF": str(STORE / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(STORE / "storage.conf"),
    }
    done = subprocess.run(
        [str(program("podman")), *words],
        env=environ, capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0 or not check, f"podman {words[0]}: {done.stdout}{done.stderr}"
    return done


@cache
def _configure() -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    # runc and cgroupfs: the others want a systemd or a unified hierarchy. Limits that may be set
    # anywhere: podman's own are above what some machines allow.
    files = min(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    processes = min(16384, resource.getrlimit(resource.RLIMIT_NPROC)[1])
    (STORE / "containers.conf").write_text(
        "[containers]\n"
        f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    (STORE / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE / "root"}"\nrunroot = "{STORE / "run"}"\n'
    )


def build_image() -> None:
    """Build the image from the tree; layers that did not change are not built again."""
    if podman("image", "exists", BASE_NAME, check=False).returncode:
        _make_base()
        podman("import", "--quiet", str(BASE), BASE_NAME, timeout_s=120)
    # The machine's own certificates, for package indexes that it alone trusts: for the build, not in it.
    mounts = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.exists() else []
    done = podman(
        "build", "--isolation", "chroot", "--network", "host", "--pull=never", "--format", "docker",
        *mounts, "--tag", IMAGE, str(ROOT), check=False, timeout_s=240,
    )  # fmt: skip
    said = done.stdout + done.stderr
    if done.returncode and "Failed to establish a new connection" in said:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, said[-4000:]
    # What is left of yesterday's builds. Not of today's: they are the next build's cache.
    podman("image", "prune", "--force", "--filter", "until=24h", check=False)


def _make_base() -> None:
    """Debian's Python of the same version as the Dockerfile's base; about a minute, once."""
    if BASE.exists():
        return
    BASE.parent.mkdir(parents=True, exist_ok=True)
    part = BASE.with_suffix(".part.tar")
    done = subprocess.run(
        [str(program("mmdebstrap")), "--quiet", "--variant=apt", "--aptopt=Acquire::Languages \"none\"",
         "--include=python3,python3-venv,python3-pip,ca-certificates", "trixie", str(part)],
        env=dict(os.environ) | {"PATH": _PATH}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    if done.returncode:
        part.unlink(missing_ok=True)
        pytest.skip(f"no base image: {done.stderr.strip().splitlines()[-1:]}")
    part.rename(BASE)


# -- the network ------------------------------------------------------------------------------------


def _hold() -> subprocess.Popen[bytes]:
    """Start a process in a network namespace of its own; it ends with this one."""
    holder = subprocess.Popen(
        [
            str(program("unshare")),
            "--net",
            str(program("setpriv")),
            "--pdeathsig",
            "KILL",
            "sleep",
            "inf",
        ]
    )
    own = os.readlink("/proc/self/ns/net")
    until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own, 10, "a namespace")
    return holder


def until(check: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Wait for something true and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


@dataclass
class Network:
    """A bridge, the DNS server on it, and a cable for each pod."""

    hub: subprocess.Popen[bytes]
    service: str = "kvnode-headless"
    dns: subprocess.Popen[bytes] | None = None
    hosts: dict[str, str] = field(default_factory=dict)
    """Pod -> address, as the headless Service shows them."""
    cables: int = 0

    @property
    def domain(self) -> str:
        return f"{self.service}.default.svc.cluster.local"

    def inside(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run something on the bridge's side."""
        done = subprocess.run(
            [str(program("nsenter")), "--target", str(self.hub.pid), "--net", *words],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr
        return done

    def plug(self) -> tuple[subprocess.Popen[bytes], str]:
        """Make a namespace with a new address on the bridge."""
        holder = _hold()
        self.cables += 1
        number, ip = self.cables, str(program("ip"))
        address = f"{SUBNET}.{number + 1}"
        self.inside(ip, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0",
                    "netns", str(holder.pid))  # fmt: skip
        self.inside(ip, "link", "set", f"v{number}", "master", "br0", "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            enter = [str(program("nsenter")), "--target", str(holder.pid), "--net", ip, *command]
            subprocess.run(enter, check=True)
        return holder, address

    def publish(self, hosts: Mapping[str, str]) -> None:
        """Let DNS answer for these pods, and for no others."""
        self.hosts = dict(hosts)
        self.stop_dns()
        arguments = [
            str(program("nsenter")), "--target", str(self.hub.pid), "--net",
            str(program("dnsmasq")), "--keep-in-foreground", "--no-resolv", "--no-hosts", "--no-daemon",
            f"--listen-address={SUBNET}.1", "--bind-interfaces", "--conf-file=/dev/null", "--pid-file=",
            "--user=root", "--local-ttl=1", "--local=/cluster.local/",
        ]  # fmt: skip
        for pod, address in hosts.items():
            arguments.append(f"--host-record={pod}.{self.domain},{address}")
            arguments.append(f"--srv-host=_raft._tcp.{self.domain},{pod}.{self.domain},8300")
            # The client Service has one address that leads to any of them; a name with all of them will do.
            name = self.service.removesuffix("-headless")
            arguments.append(f"--host-record={name}.default.svc.cluster.local,{address}")
        self.dns = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop_dns(self) -> None:
        """Stop answering; the process is the one that was started here."""
        if self.dns is not None:
            self.dns.terminate()
            self.dns.wait()
            self.dns = None


@contextmanager
def network(service: str = "kvnode-headless") -> Iterator[Network]:
    """A bridge with nobody on it."""
    made = Network(_hold(), service)
    try:
        ip = str(program("ip"))
        made.inside(ip, "link", "set", "lo", "up")
        made.inside(ip, "link", "add", "br0", "type", "bridge")
        made.inside(ip, "address", "add", f"{SUBNET}.1/24", "dev", "br0")
        made.inside(ip, "link", "set", "br0", "up")
        made.publish({})
        yield made
    finally:
        made.stop_dns()
        made.hub.kill()
        made.hub.wait()


DNS_FLAGS = (
    "--dns", f"{SUBNET}.1", "--dns-search", "default.svc.cluster.local", "--dns-search",
    "svc.cluster.local", "--dns-search", "cluster.local", "--dns-option", "ndots:5",
)  # fmt: skip
"""As the kubelet writes a pod's resolv.conf."""


# -- pods -------------------------------------------------------------------------------------------


@dataclass
class Pod:
    """One pod: its container, its address, its volumes."""

    name: str
    network: Network
    flags: list[str]
    """Of ``podman run``, without the network's."""
    words: list[str]
    holder: subprocess.Popen[bytes] | None = None
    address: str = ""

    @property
    def container(self) -> str:
        return f"kvnode-test-{os.getpid()}-{self.name}"

    def start(self) -> None:
        """Start it, with a new address, as every start of a pod has one."""
        self.holder, self.address = self.network.plug()
        words = [word.replace("$(PODIP)", self.address) for word in self.words]
        podman(
            "run", "--detach", "--name", self.container, "--hostname", self.name,
            "--network", f"ns:/proc/{self.holder.pid}/ns/net", *DNS_FLAGS,
            "--no-healthcheck", *self.flags, IMAGE, *words,
        )  # fmt: skip

    def stop(self, grace_s: int = 60) -> int:
        """SIGTERM, and SIGKILL after the grace period; return the exit code."""
        podman("stop", "--time", str(grace_s), self.container, timeout_s=grace_s + 30)
        return self._gone()

    def kill(self) -> None:
        """As when its host loses power."""
        podman("kill", self.container, check=False)
        self._gone()

    def wait(self, timeout_s: float = 30) -> int:
        """Wait until it ends by itself; return the exit code."""
        return int(podman("wait", self.container, timeout_s=timeout_s).stdout)

    def _gone(self) -> int:
        code = int(podman("inspect", "--format", "{{.State.ExitCode}}", self.container).stdout)
        self.remove()
        return code

    def remove(self) -> None:
        """Remove the container and its namespace; volumes stay."""
        podman("rm", "--force", "--time", "0", self.container, check=False)
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()
            self.holder = None

    def logs(self) -> str:
        done = podman("logs", self.container, check=False)
        return done.stdout + done.stderr

    def events(self) -> list[dict[str, Any]]:
        """What it logged, as far as it is JSON."""
        found = []
        for line in self.logs().splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def execute(self, *words: str, check: bool = True) -> str:
        """Run a command in the container, as ``kubectl exec`` does."""
        done = podman("exec", self.container, *words, check=check)
        return done.stdout

    def http(
        self, path: str, *curl: str, port: int = 8500, scheme: str = "http"
    ) -> tuple[int, str]:
        """Ask the pod over the network; (0, "") while nobody answers."""
        done = self.network.inside(
            str(program("curl")), "--silent", "--max-time", "20", "--write-out", "\n%{http_code}",
            *curl, f"{scheme}://{self.address}:{port}{path}", check=False,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def is_ready(self) -> bool:
        """As the kubelet finds out: it does not look at the certificate."""
        scheme = "https" if any(word.startswith("--tls-cert") for word in self.words) else "http"
        return self.http("/health/ready", "--insecure", scheme=scheme)[0] == 200


Secrets = Mapping[str, Mapping[str, bytes]]
"""Name of each Secret, and what is in it."""


@dataclass
class World:
    """What the kubelet would mount: the release's objects, its Secrets, and a folder for volumes."""

    objects: list[Object]
    folder: Path
    secrets: Secrets = field(default_factory=dict)
    claims: dict[str, Path] = field(default_factory=dict)
    """Folder of each claim that is named; those of ``volumeClaimTemplates`` are made for each pod."""


def flags_of(world: World, pod: str) -> tuple[list[str], list[str]]:
    """Turn a StatefulSet's pod into what podman takes: (flags, arguments)."""
    spec = voters(world.objects)["spec"]["template"]["spec"]
    return container_of(world, pod, spec, spec["containers"][0])


def container_of(
    world: World, pod: str, spec: Object, container: Object
) -> tuple[list[str], list[str]]:
    """Turn one container of a pod into what podman takes: (flags, arguments).

    ConfigMaps and Secrets become folders, the ``data`` volume a folder that belongs to root and to the group
    that ``fsGroup`` names, as the kubelet leaves it. There is no API server: its folder is empty.
    """
    context, own = spec.get("securityContext", {}), container.get("securityContext", {})
    flags = []
    if "runAsUser" in context:
        flags += ["--user", f"{context['runAsUser']}:{context['runAsGroup']}"]
    if "fsGroup" in context:
        flags += ["--group-add", str(context["fsGroup"])]
    if own.get("readOnlyRootFilesystem"):
        flags += ["--read-only", "--read-only-tmpfs=false"]
    if own.get("capabilities", {}).get("drop") == ["ALL"]:
        flags += ["--cap-drop", "ALL"]
    if own.get("allowPrivilegeEscalation") is False:
        flags += ["--security-opt", "no-new-privileges"]
    known = {"POD_NAME": pod, "PODNAME": pod, "POD_NAMESPACE": "default", "NAMESPACE": "default"}
    given = {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}
    # The unique id of a pod, and such.
    other = {v["name"]: pod for v in container.get("env", []) if "value" not in v}
    for name, value in (other | given | known).items():
        flags += ["--env", f"{name}={value}"]
    volumes = {v["name"]: v for v in spec.get("volumes", [])}
    for number, mount in enumerate(container.get("volumeMounts", [])):
        volume = volumes.get(mount["name"], {})
        place = world.folder / pod / f"{number}-{mount['name']}"
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            place = world.claims.get(claim, place)
        place.mkdir(parents=True, exist_ok=True)
        if not _fill(world, volume, place) and not mount.get("readOnly"):
            if "fsGroup" in context:
                os.chown(place, 0, context["fsGroup"])
                place.chmod(0o2775)
            else:
                place.chmod(0o777)  # as an NFS provisioner leaves it
        mode = "ro" if mount.get("readOnly") else "rw"
        flags += ["--volume", f"{place}:{mount['mountPath']}:{mode}"]
    words = expanded(container, **(other | known | {"PODIP": "$(PODIP)"}))
    if "command" in container:
        first, *rest = container["command"]
        return [*flags, "--entrypoint", first], [*rest, *words]
    return flags, words


def _fill(world: World, volume: Object, place: Path) -> bool:
    """Write what a ConfigMap or a Secret holds; whether it is one."""
    if "configMap" in volume:
        config_map = the(world.objects, "ConfigMap", volume["configMap"]["name"])
        for key, text in config_map["data"].items():
            (place / key).write_text(text)
        return True
    if "secret" in volume:
        wanted = volume["secret"]
        paths = {item["key"]: item["path"] for item in wanted.get("items", [])}
        for key, content in world.secrets[wanted["secretName"]].items():
            if not paths or key in paths:
                (place / paths.get(key, key)).write_bytes(content)
        return True
    return "projected" in volume


def run_job(
    world: World, net: Network, name: str, spec: Object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the containers of a pod that ends by itself, in order; return how the last one ended."""
    holder, _ = net.plug()
    done = None
    try:
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            flags, words = container_of(world, name, spec, container)
            for variable, value in variables.items():
                flags += ["--env", f"{variable}={value}"]
            done = podman(
                "run", "--rm", "--no-healthcheck", "--network", f"ns:/proc/{holder.pid}/ns/net",
                *DNS_FLAGS, *flags, IMAGE, *words, check=False, timeout_s=150,
            )  # fmt: skip
            if done.returncode:
                break
    finally:
        holder.kill()
        holder.wait()
    assert done is not None
    return done

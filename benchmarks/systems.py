"""The systems: how three nodes of each are started on loopback, and which of them leads.

Each runs with its own defaults, in particular for durability: kvnode, etcd and Consul all sync their
log on a quorum before they acknowledge a write.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import HarnessError, Process, free_ports, stop_all
from benchmarks.workload import ConsulDialect, Dialect, EtcdDialect

ROOT = Path(__file__).resolve().parents[1]
CONSUL_CACHE = ROOT / ".cache/consul/root/usr/bin/consul"
NODES = 3
START_TIMEOUT_S = 60.0


def call(method: str, url: str, body: bytes = b"", timeout_s: float = 10.0) -> bytes:
    """Return the body of an HTTP answer.

    Raises:
        OSError: not reached, timed out, or a status of 400 and above.
    """
    request = urllib.request.Request(url, data=body or None, method=method)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return bytes(answer.read())


class Cluster(ABC):
    """Three running nodes of one system. `start` first, `stop` always."""

    name: str
    dialect: Dialect

    def __init__(self, directory: Path) -> None:
        """Choose ports; nothing runs and nothing is written before `start`."""
        self.directory = directory / self.name
        self.processes: list[Process] = []
        ports = free_ports(3 * NODES)
        self.http_ports, self.peer_ports, self.gossip_ports = (
            ports[:NODES],
            ports[NODES : 2 * NODES],
            ports[2 * NODES :],
        )

    @classmethod
    @abstractmethod
    def version(cls) -> str | None:
        """Return the version of what would be started; None when it is not on this machine."""

    @abstractmethod
    def _argv(self, node: int) -> Sequence[str]:
        """Return the command line of one node; its data belong in ``self.data(node)``."""

    @abstractmethod
    def _find_leader(self) -> int | None:
        """Return the leader's number. Raises OSError or ValueError while a node cannot say."""

    def data(self, node: int) -> Path:
        return self.directory / f"node-{node}"

    def start(self) -> None:
        """Start all nodes and wait until they have a leader that answers a linearizable read.

        Raises:
            HarnessError: a node ended, or no leader within `START_TIMEOUT_S`.
        """
        self.directory.mkdir(parents=True)
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ETCD_", "CONSUL_", "KVNODE_"))
        }
        for node in range(NODES):
            argv = self._argv(node)
            log = self.directory / f"node-{node}.log"
            self.processes.append(Process(f"{self.name}-{node}", argv, log=log, cwd=ROOT, env=env))
        self._await_read(START_TIMEOUT_S)

    def stop(self) -> None:
        stop_all(self.processes)
        self.processes.clear()

    def url(self, node: int) -> str:
        return f"http://127.0.0.1:{self.http_ports[node]}"

    def leader(self, timeout_s: float = 30.0) -> int:
        """Return the number of the leader that the nodes name, waiting for one.

        Raises:
            HarnessError: a node ended, or none was named within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        problem = "none is named"
        while time.monotonic() < deadline:
            for process in self.processes:
                process.check_alive()
            try:
                node = self._find_leader()
            except (OSError, ValueError, KeyError) as error:
                problem, node = str(error), None
            if node is not None:
                return node
            time.sleep(0.1)
        raise HarnessError(
            "\n".join(
                [
                    f"{self.name}: no leader within {timeout_s:.0f} s ({problem})",
                    *(f"{each.name}: {line}" for each in self.processes for line in each.tail(3)),
                ]
            )
        )

    def _await_read(self, timeout_s: float) -> None:
        """Wait until the leader answers a linearizable read."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.read_all(self.leader(timeout_s))
            except (OSError, ValueError) as error:
                if time.monotonic() > deadline:
                    raise HarnessError(f"{self.name}: the leader does not read: {error}") from error
                time.sleep(0.2)
            else:
                return

    def read_all(self, node: int) -> dict[str, bytes]:
        """Return every benchmark key with its value, by one linearizable listing."""
        method, path, body = self.dialect.listing()
        try:
            return self.dialect.parse_listing(call(method, self.url(node) + path, body, 30.0))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            raise

    def cpu_s(self) -> list[float]:
        return [process.cpu_s() for process in self.processes]

    def pause(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGCONT)


def _first_match(argv: Sequence[str], pattern: str) -> str | None:
    """Return group 1 of ``pattern`` in what a command prints; None when it cannot be run."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=20, cwd=ROOT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group(1) if found else None


class Kvnode(Cluster):
    """Three `python -m kvnode agent` processes of this checkout, by the running interpreter."""

    name = "kvnode"
    dialect = ConsulDialect()

    @classmethod
    def version(cls) -> str | None:
        pattern = r"(\d+\.\d+\S*)"
        return _first_match([sys.executable, "-m", "kvnode", "version"], pattern)

    def _argv(self, node: int) -> Sequence[str]:
        joins = [f"--retry-join=127.0.0.1:{port}" for port in self.peer_ports]
        return [
            *(sys.executable, "-m", "kvnode", "agent"),
            *(f"--node-name=kvnode-{node}", f"--data-dir={self.data(node)}"),
            *("--bind=127.0.0.1", f"--http-port={self.http_ports[node]}"),
            *(f"--peer-port={self.peer_ports[node]}", f"--bootstrap-expect={NODES}"),
            *joins,
        ]

    def _find_leader(self) -> int | None:
        return _leader_by_peer_port(self)


class Etcd(Cluster):
    """Three members of a static etcd cluster, spoken to through the JSON gateway."""

    name = "etcd"
    dialect = EtcdDialect()

    @classmethod
    def version(cls) -> str | None:
        return _first_match(["etcd", "--version"], r"etcd Version: (\S+)")

    def _argv(self, node: int) -> Sequence[str]:
        peers = [f"http://127.0.0.1:{port}" for port in self.peer_ports]
        members = ",".join(f"etcd-{number}={url}" for number, url in enumerate(peers))
        return [
            *("etcd", f"--name=etcd-{node}", f"--data-dir={self.data(node)}"),
            *(
                f"--listen-client-urls={self.url(node)}",
                f"--advertise-client-urls={self.url(node)}",
            ),
            *(f"--listen-peer-urls={peers[node]}", f"--initial-advertise-peer-urls={peers[node]}"),
            *(f"--initial-cluster={members}", "--initial-cluster-state=new"),
        ]

    def _find_leader(self) -> int | None:
        for node in range(NODES):
            status = json.loads(call("POST", self.url(node) + "/v3/maintenance/status", b"{}"))
            if status["header"]["member_id"] == status.get("leader"):
                return node
        return None


class Consul(Cluster):
    """Three Consul servers; `get_consul.sh` fetches one where the machine has none."""

    name = "consul"
    dialect = ConsulDialect()

    @staticmethod
    def binary() -> str | None:
        """Return CONSUL_BIN, or what is on PATH, or what `get_consul.sh` has put in the cache."""
        cached = str(CONSUL_CACHE) if CONSUL_CACHE.exists() else None
        return os.environ.get("CONSUL_BIN") or shutil.which("consul") or cached

    @classmethod
    def version(cls) -> str | None:
        binary = cls.binary()
        return _first_match([binary, "version"], r"Consul v(\S+)") if binary else None

    def _argv(self, node: int) -> Sequence[str]:
        config = {
            "server": True,
            "node_name": f"consul-{node}",
            "data_dir": str(self.data(node)),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "bootstrap_expect": NODES,
            "retry_join": [f"127.0.0.1:{port}" for port in self.gossip_ports],
            "disable_update_check": True,
            "ports": {
                "http": self.http_ports[node],
                "server": self.peer_ports[node],
                "serf_lan": self.gossip_ports[node],
                "serf_wan": -1,
                "dns": -1,
                "grpc": -1,
            },
        }
        path = self.directory / f"node-{node}.json"
        path.write_text(json.dumps(config))
        binary = self.binary()
        assert binary is not None, "version() said that there is one"
        return [binary, "agent", f"-config-file={path}"]

    def _find_leader(self) -> int | None:
        return _leader_by_peer_port(self)


def _leader_by_peer_port(cluster: Cluster) -> int | None:
    """Return the node whose peer port `/v1/status/leader` names; every node must name the same."""
    answers = {
        json.loads(call("GET", cluster.url(node) + "/v1/status/leader")) for node in range(NODES)
    }
    if len(answers) != 1:
        return None
    port = answers.pop().rpartition(":")[2]
    return cluster.peer_ports.index(int(port)) if port else None


SYSTEMS: dict[str, type[Cluster]] = {system.name: system for system in (Kvnode, Etcd, Consul)}
"""In the order in which a round visits them. kvnode first: the others are its peers."""

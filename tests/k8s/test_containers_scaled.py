"""The image as the chart runs it, scaled down: its own arguments, mounts and Role against an API server."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.machines import tool
from tests.chaos.netswitch import enter_network
from tests.k8s.api_server import ApiServer
from tests.k8s.charts import Object, render, the
from tests.k8s.containers import (
    SUBNET,
    Network,
    Pod,
    World,
    build_image,
    flags_of,
    lacks_containers,
    network,
    until,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(lacks_containers()), reason=lacks_containers() or "containers"),
    pytest.mark.skipif(tool("openssl") is None, reason="openssl is not installed"),
]
PORT = 6443


def rights(objects: list[Object]) -> set[tuple[str, str, str]]:
    """What the chart's Role allows, as the stand-in understands it."""
    return {
        (verb, resource, name)
        for rule in the(objects, "Role")["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def listening(net: Network) -> socket.socket:
    """A socket on the bridge's side, for a server in this process."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_network(f"/proc/{net.hub.pid}/ns/net")
        try:
            made = socket.create_server((f"{SUBNET}.1", PORT))
        finally:
            enter_network(f"/proc/thread-self/fd/{home}")
    finally:
        os.close(home)
    made.setblocking(False)
    return made


@contextmanager
def api_server(net: Network, folder: Path) -> Iterator[ApiServer]:
    """The stand-in for the API server, at the cluster's edge, in a thread of its own."""
    made = ApiServer(folder, names=[f"{SUBNET}.1"])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(made.start(listening(net)), loop).result(10)
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_members_go_with_their_pods_in_one_step_and_come_back(tmp_path: Path) -> None:
    """3 → 1 → 3, as ``kubectl scale`` does it."""
    build_image()
    world = World(render("helm-4"), tmp_path)
    pods: dict[int, Pod] = {}
    with network() as net, api_server(net, tmp_path / "kubernetes") as api:
        account = api.account("kvnode", *rights(world.objects))

        def publish() -> None:
            net.publish({pod.name: pod.address for pod in pods.values()})

        def start(*ordinals: int) -> None:
            for ordinal in ordinals:
                name = f"kvnode-{ordinal}"
                flags, words = flags_of(world, name)
                (mounted,) = (tmp_path / name).glob("*-api-access")
                for file in account.iterdir():  # as the kubelet does
                    (mounted / file.name).write_bytes(file.read_bytes())
                flags += ["--env", f"KUBERNETES_SERVICE_HOST={SUBNET}.1"]
                flags += ["--env", f"KUBERNETES_SERVICE_PORT={PORT}"]
                pods[ordinal] = Pod(name, net, flags, words)
                pods[ordinal].start()
            publish()
            for ordinal in ordinals:
                until(pods[ordinal].is_ready, 60, f"kvnode-{ordinal} to be ready")

        def voters() -> list[str]:
            text = pods[0].execute("kvnode", "operator", "raft", "list-peers")
            return sorted(line.split()[0] for line in text.splitlines()[1:] if " true " in line)

        try:
            api.statefulset("kvnode", 3)
            start(0, 1, 2)
            assert pods[0].http("/kv/a", "--data-binary", "b")[0] == 200
            api.statefulset("kvnode", 1)
            going = [pods.pop(1), pods.pop(2)]
            with ThreadPoolExecutor(2) as pool:
                assert list(pool.map(Pod.stop, going)) == [0, 0]
            publish()
            assert voters() == ["kvnode-0"]
            assert pods[0].http("/kv/a", "--data-binary", "c")[0] == 200
            api.statefulset("kvnode", 3)
            start(1, 2)
            until(lambda: voters() == ["kvnode-0", "kvnode-1", "kvnode-2"], 60, "three voters")
            assert pods[2].http("/kv/a")[1] == "c"
            assert not [e for e in pods[0].events() if e["event"] == "scale_unknown"]
        finally:
            for pod in pods.values():
                pod.remove()

"""What pods live through: restarts, new addresses, ill DNS, lost volumes, two pods of one name."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.lab import LabNode
from tests.chaos.machines import lacks_strace
from tests.chaos.processes import Writers, check_kept, in_one_of_three
from tests.k8s.statefulset import (
    NAME,
    StatefulSet,
    events,
    eventually,
    lacks_statefulsets,
    statefulset,
)

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(lacks_statefulsets()), reason=lacks_statefulsets() or "machines"),
]
NAMES = [f"{NAME}-{n}" for n in range(3)]
LEADER = "whoever leads"


async def first_boot(made: StatefulSet, replicas: int) -> None:
    made.api.statefulset(NAME, replicas)
    made.start(*range(replicas), expect=replicas)
    await made.ready()
    await made.become(*range(replicas))


async def test_a_rolling_restart_under_load_loses_nothing_and_hands_over_each_time(
    tmp_path: Path,
) -> None:
    """The highest ordinal first, each when the one before is ready; whoever leads hands over."""
    async with statefulset(tmp_path, 3, replicas=3) as made:
        async with Writers(made.cluster, 4, "w") as writers:
            await writers.first_after(0.0, 10.0)
            for name in (*reversed(NAMES), LEADER):
                await in_one_of_three(partial(restart, made, name, writers))
        for node in made.pods.values():
            check_kept(writers, await made.cluster.dump(node, "w/"))
        await made.become(0, 1, 2)


async def restart(made: StatefulSet, name: str, writers: Writers) -> list[str]:
    """Restart a pod, or whoever leads, and say what was not as smooth as it should be."""
    leader = await made.cluster.lab_leader()
    node = leader if name == LEADER else made.pods[name]
    began = time.monotonic()
    by_time_out = len(made.cluster.events("became_pre_candidate"))
    assert await made.stop(node.name) == [0]
    trouble = []
    if node is leader and not events(node, "transfer_started"):
        trouble.append("it left without handing over")
    made.start_names([node.name])
    await made.ready()
    if len(made.cluster.events("became_pre_candidate")) > by_time_out:
        trouble.append("an election by time-out instead of a hand-over")
    gap = writers.longest_gap(began)
    if gap >= 2.0:
        trouble.append(f"nothing was written for {gap:.1f} s")
    return trouble


async def test_all_pods_gone_and_back_with_new_addresses(tmp_path: Path) -> None:
    """While DNS still tells the old ones, then some, then all."""
    async with statefulset(tmp_path, 3, replicas=3) as made:
        async with Writers(made.cluster, 4, "w") as writers:
            await writers.first_after(0.0, 10.0)
            await asyncio.sleep(0.3)
        old = {n.replace("-", "_"): made.pods[n].machine.address for n in NAMES}
        made.kill(*NAMES)
        made.move(*NAMES)
        for name in NAMES:
            node = made.pod(name)
            node.start()
            made.pods[name] = node
        made._list()
        made.publish(NAMES, **old)  # stale: nobody lives there any more
        said = await made.until_says(made[0], "not ready: leader")
        assert "no leader" in said
        made.publish(NAMES[:2])  # partial
        await made.ready(0, 1)
        made.publish(NAMES)
        await made.ready()
        await made.become(0, 1, 2)
        for node in made.pods.values():
            check_kept(writers, await made.cluster.dump(node, "w/"))


async def test_addresses_that_changed_hands_lead_nobody_astray(tmp_path: Path) -> None:
    """DNS gives each pod the address that another one has now: whoever answers there says who it is."""
    async with statefulset(tmp_path, 3, replicas=3) as made:
        await made.cluster.write(made[0], "a", "1")
        addresses = [made[n].machine.address for n in range(3)]
        made.kill(*NAMES)
        for name in NAMES:
            made.pods[name] = made.pod(name)
            made.pods[name].start()
        made._list()
        rotated = {n.replace("-", "_"): addresses[i - 1] for i, n in enumerate(NAMES)}
        made.publish(NAMES, **rotated)
        await asyncio.sleep(3.0)
        made.publish(NAMES)
        await made.ready()
        assert await made.cluster.get(made[2], "a") == "1"
        assert not [e for n in NAMES for e in made.pods[n].events("cluster_founded")][1:]


async def test_a_first_boot_while_dns_is_silent_empty_and_partial(tmp_path: Path) -> None:
    """Two of three are not three: nothing is founded before all have answered each other."""
    async with statefulset(tmp_path, 3) as made:
        made.api.statefulset(NAME, 3)
        made.silence()
        for name in NAMES:
            made.pods[name] = made.pod(name, expect=3)
            made.pods[name].start()
        made._list()
        said = await made.until_says(made[0], "NetworkPolicy")
        assert "port 53 over UDP and TCP" in said
        assert events(made[0], "discovery_found_nobody")
        assert (await made.says(made[0], "/health/live"))[0] == 200
        made.publish([])
        await made.until_says(made[0], "nobody is listed yet")
        made.publish(NAMES[:2])
        await made.until_says(made[0], "found 2 of 3 expected nodes")
        assert not [
            event for node in made.pods.values() for event in events(node, "cluster_founded")
        ]
        made.publish(NAMES)
        await made.ready()
        await made.become(0, 1, 2)
        founded = [
            event for node in made.pods.values() for event in events(node, "cluster_founded")
        ]
        assert len(founded) == 1
        # DNS ill later on costs nothing, and is said.
        made.silence()
        await made.stop(NAMES[2])
        made.silence()
        made.pods[NAMES[2]] = made.pod(NAMES[2])
        made.pods[NAMES[2]].start()
        made._list()
        await made.until_says(made[2], "note discovery")
        await made.cluster.write(made[0], "a", "1")


async def test_first_boots_of_one_and_five_and_a_late_pod_with_the_licence_to_found(
    tmp_path: Path,
) -> None:
    """Consul's manifests give -bootstrap-expect to every pod, also to those added later."""
    async with statefulset(tmp_path, 5) as made:
        await first_boot(made, 5)
        await made.cluster.write(made[4], "a", "1")
        made.kill(*[f"{NAME}-{n}" for n in range(5)])
    async with statefulset(tmp_path / "one", 3) as made:
        await first_boot(made, 1)
        made.kill(NAMES[0])
        # The whole cluster is down, and two new, empty pods that may each found one of 1.
        made.start(1, 2, expect=1)
        await made.until_says(made[1], "is not among the 1 pods")
        assert not made[1].events("cluster_founded")
        made.start(0, expect=1)
        await made.become(0, 1, 2)


async def test_a_wiped_volume_comes_back_through_a_learner(tmp_path: Path) -> None:
    async with statefulset(tmp_path, 3, replicas=3) as made:
        await made.cluster.write(made[0], "a", "1")
        made.kill(NAMES[0])  # the one that founded the cluster, with its licence to found
        made._known[NAMES[0]].wipe()
        made.start(0, expect=3)
        await made.ready()
        await made.become(0, 1, 2)
        assert await made.cluster.get(made[0], "a") == "1"
        assert len(made._known[NAMES[0]].events("cluster_founded")) <= 1


async def test_a_second_pod_of_the_same_name_waits_for_the_first_one_to_be_gone(
    tmp_path: Path,
) -> None:
    """A force-deleted pod that still runs, on a file system both can write to (Kubernetes guide §2.4)."""
    async with statefulset(tmp_path, 4, replicas=3) as made:
        old = made[2]
        others = [made[0].machine, made[1].machine, made.lab.clients]
        made.lab.network.cut([old.machine], others)
        newcomer = second_pod(made, old)
        newcomer.start()
        await eventually(lambda: not newcomer.is_running, "it starts beside the old one")
        assert newcomer.process is not None
        assert newcomer.process.returncode == 1
        said = newcomer.log.read_text()
        assert "is in use by process" in said
        assert "stop the other process" in said
        made.lab.network.heal()
        old.kill()
        newcomer.start()
        made.pods[NAMES[2]] = newcomer
        made._known[NAMES[2]] = newcomer
        made._list()
        made.publish()
        await made.ready()
        await made.become(0, 1, 2)


@pytest.mark.skipif(bool(lacks_strace()), reason=lacks_strace() or "strace")
async def test_where_locks_lie_the_older_pod_notices_and_ends(tmp_path: Path) -> None:
    """``flock`` fails with ENOLCK as on some network file systems; the epoch in the directory decides."""
    no_locks = ["-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    async with statefulset(tmp_path, 4) as made:
        made.api.statefulset(NAME, 3)
        for name in NAMES:
            made.pods[name] = made.pod(name, expect=3)
            made.pods[name].start(*(no_locks if name == NAMES[2] else ()))
        made._list()
        made.publish()
        await made.ready()
        old = made[2]
        newcomer = second_pod(made, old)
        newcomer.start(*no_locks)

        async def it_ends() -> bool:
            # It looks before each write of its own, so somebody must write.
            await made.cluster.put(made[0], "a", "1")
            return not old.is_running

        await made.cluster.until(it_ends, "the older process ends", 30.0)
        assert "took this data directory over" in old.log.read_text()
        made.pods[NAMES[2]] = made._known[NAMES[2]] = newcomer
        made._list()
        made.publish()

        async def it_is_ready() -> bool:
            # The older one still held the engine's own lock when it came: a kubelet starts it again.
            if not newcomer.is_running:
                newcomer.start(*no_locks)
            return await made.cluster.is_ready(newcomer)

        await made.cluster.until(it_is_ready, "the newcomer is ready")
        await made.ready()
        await made.become(0, 1, 2)
        assert await made.cluster.get(newcomer, "a") == "1"


def second_pod(made: StatefulSet, first: LabNode) -> LabNode:
    """Another pod of the same name on another host, with the same directory."""
    machine = made.lab.machines[3]
    return replace(
        first, machine=machine, host=machine.address, environment=dict(first.environment),
        directory=first.directory, process=None,
    )  # fmt: skip

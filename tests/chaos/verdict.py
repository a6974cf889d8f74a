"""The end of a run: everything healed, every node asked, every promise checked."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any

from tests.chaos.lab import LabCluster, LabNode
from tests.chaos.processes import Cluster
from tests.chaos.workload import Listing, Workload, shared_keys, written
from tests.history.linearizability import Verdict, check
from tests.history.operations import Operation

CLOSING_TIMEOUT_S = 90.0
LATECOMERS_S = 25.0
"""A write may wait for a leader and then for its commit: seven and ten seconds by default."""
_ALARMS = frozenset({"callback_failed", "http_request_failed", "http_request_hit_fatal_error"})


async def healthy(cluster: LabCluster, timeout_s: float = CLOSING_TIMEOUT_S) -> None:
    """Wait until every node runs, is ready, and is a voter of one cluster."""

    async def all_vote() -> bool:
        leader = await cluster.lab_leader()
        members = await cluster.members(leader)
        names = sorted(member["Node"] for member in members)
        return names == sorted(node.name for node in cluster.nodes) and all(
            member["Voter"] for member in members
        )

    await cluster.ready(timeout_s)
    await cluster.until(all_vote, "every node is a voter", timeout_s)


async def digests_equal(
    cluster: Cluster, timeout_s: float = 30.0, *, nobody_else: bool = False
) -> dict[str, Any]:
    """Wait until all nodes give a digest of what they applied, and compare the digests (RC-74).

    A busy node may be late, and is asked again. Digests that differ are a failure at once.

    Args:
        cluster: All its nodes run.
        timeout_s: For all of them to answer.
        nobody_else: No other address may be listed; else one that a node has left is, and does not answer.
    """
    found: list[dict[str, Any]] = []

    async def comparable() -> bool:
        nonlocal found
        pods = await cluster.pods(cluster.nodes[0])
        assert len({pod["digest"] for pod in pods} - {""}) <= 1, f"the data differs: {pods}"
        found = [pod for pod in pods if pod["reachable"]]
        complete = len(found) == len(cluster.nodes) and all(pod["digest"] for pod in found)
        return complete and not (nobody_else and len(pods) > len(found))

    await cluster.until(comparable, "all nodes give a digest", timeout_s)
    assert len({pod["digest_index"] for pod in found}) == 1, found
    return {"digest": found[0]["digest"], "index": found[0]["digest_index"]}


async def final_reads(cluster: LabCluster, load: Workload) -> dict[str, dict[str, Any]]:
    """Ask each node for everything, linearizably, and note it in the history; return what it had."""
    dumps = {}
    for node in cluster.lab_nodes:
        called = time.monotonic()
        dumps[node.name] = await _everything(cluster, node)
        returned = time.monotonic()
        for epoch in range(1, load.epochs + 1):
            for key in shared_keys(epoch):
                item = dumps[node.name].get(key)
                value, index = (None, None) if item is None else (item[0], item[1])
                load.recorder.operations.append(
                    Operation(node.name, "read", key, called, returned, value, index=index)
                )
    return dumps


async def _everything(cluster: LabCluster, node: LabNode) -> dict[str, tuple[str, int]]:
    async with cluster.session.get(f"{node.url}/v1/kv/?recurse") as answer:
        if answer.status == 404:
            return {}
        assert answer.status == 200, (node.name, answer.status, await answer.text())
        return {
            item["Key"]: (base64.b64decode(item["Value"] or "").decode(), int(item["ModifyIndex"]))
            for item in await answer.json()
        }


def check_ledger(load: Workload, found: dict[str, tuple[str, int]], where: str) -> None:
    """Every acknowledged write is there; nothing is there that nobody asked for (RC-1)."""
    lost = [key for key in load.ledger if key not in found]
    assert not lost, f"{where}: {len(lost)} acknowledged writes are lost: {lost[:5]}"
    asked = load.ledger | load.in_doubt
    for key, (value, _) in found.items():
        if key.startswith("w/"):
            assert asked.get(key) == value, f"{where}: {key} holds {value!r:.80}"


def check_listings(listings: Sequence[Listing], operations: Sequence[Operation]) -> None:
    """A list is one moment: no key in it is older than a write that another key in it came after.

    The newest ModifyIndex in it is at most the moment's index; so every write up to that index to
    any of the epoch's keys shows.
    """
    writes_of = written(operations)
    for listing in listings:
        moment = max(listing.found.values(), default=0)
        for key in shared_keys(listing.epoch):
            shown = listing.found.get(key)
            before = [op for op in writes_of(key) if (op.index or 0) <= moment]
            if not before:
                continue
            last = before[-1]
            if last.kind == "set":
                # A later write, of unknown outcome, may stand in its place; or have deleted it.
                assert shown is None or shown >= (last.index or 0), (
                    f"a list of index {moment} or later shows {key} at {shown}, but {last}"
                )
            else:
                assert shown is None or shown > (last.index or 0), (
                    f"a list of index {moment} or later shows {key} at {shown}, but {last}"
                )


def check_history(operations: Sequence[Operation]) -> dict[str, Any]:
    """Linearizable, or the explanation (RC-58)."""
    began = time.monotonic()
    report = check(operations)
    assert report.verdict is Verdict.LINEARIZABLE, f"{report.verdict}: {report.explanation}"
    return {"checked": len(operations), "check_s": round(time.monotonic() - began, 2)}


def check_logs(cluster: LabCluster) -> None:
    """No node said that something happened which cannot."""
    for node in cluster.lab_nodes:
        for event in node.events():
            assert event["event"] not in _ALARMS, f"{node.name}: {event}"
            reason = event.get("reason", "")
            assert reason not in {"InvariantBroken", "CorruptLog"}, f"{node.name}: {event}"
        text = node.log.read_text(errors="replace")
        assert "Traceback" not in text, f"{node.name}: {text[text.index('Traceback') :][:2000]}"


def _differences(dumps: Sequence[dict[str, tuple[str, int]]]) -> list[str]:
    keys = sorted({key for dump in dumps for key in dump})
    return [
        f"{key}: {[found and (found[0][:20], found[1]) for found in shown]}"
        for key in keys
        if len(set(shown := [dump.get(key) for dump in dumps])) > 1
    ][:10]


async def judge(cluster: LabCluster, load: Workload) -> dict[str, Any]:
    """Check every promise of a run whose faults are over. Returns the figures to print.

    Raises:
        AssertionError: One is broken.
    """
    await healthy(cluster)
    deadline = time.monotonic() + LATECOMERS_S
    while True:
        dumps = await final_reads(cluster, load)
        for name, found in dumps.items():
            check_ledger(load, found, name)
        differing = _differences(list(dumps.values()))
        if not differing:
            break
        # A write that its client has given up may still come between two nodes' answers.
        assert time.monotonic() < deadline, f"the nodes differ: {differing}"
        await asyncio.sleep(1.0)
    figures = await digests_equal(cluster)
    figures |= check_history(load.recorder.operations)
    check_listings(load.listings, load.recorder.operations)
    check_logs(cluster)
    assert not load.surprises, f"{len(load.surprises)} surprises: {load.surprises[:5]}"
    return figures

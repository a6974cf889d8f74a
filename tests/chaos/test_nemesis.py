"""Minutes of faults at random, clients that write everything down, and a verdict at the end.

``KVNODE_CHAOS_MINUTES`` (default 3) says how long, ``KVNODE_CHAOS_SEED`` chooses the schedule (by default
that of this source; the system's own timing is never the same twice), ``KVNODE_CHAOS_NODES`` how many nodes
(default 3).
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.chaos.lab import VOLUME_MIB, lab_cluster
from tests.chaos.machines import lacks_machines, lacks_volumes
from tests.chaos.nemesis import Nemesis, kinds
from tests.chaos.verdict import healthy, judge
from tests.chaos.workload import Workload
from tests.simulation.soak import source_base

MINUTES = float(os.environ.get("KVNODE_CHAOS_MINUTES", "3"))
SEED = int(os.environ.get("KVNODE_CHAOS_SEED", "0")) or source_base()
NODES = int(os.environ.get("KVNODE_CHAOS_NODES", "3"))
OVERTIME = 2.0
"""How many times as long a slow machine may take until there was enough traffic."""
FAULTS_PER_MINUTE_MIN = 20 / 3
OPERATIONS_PER_MINUTE_MIN = 10_000 / 3
KINDS_MIN = 10

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(MINUTES * 60 * (OVERTIME + 1) + 300),
    pytest.mark.skipif(bool(lacks_machines()), reason=lacks_machines() or "-"),
]


async def test_no_fault_makes_the_cluster_lose_or_lie(tmp_path: Path) -> None:
    """All of RC-1 to RC-75 at once: nothing acknowledged is lost, no linearizable read is stale."""
    rng = random.Random(SEED)
    volumes = not lacks_volumes()
    flags = [f"--log-entries-max={rng.choice((200, 1000, 20_000))}"]
    print(f"\nKVNODE_CHAOS_SEED={SEED} KVNODE_CHAOS_NODES={NODES} {' '.join(flags)}")
    for kind, why in kinds(volumes=volumes).items():
        if why:
            print(f"left out: {kind}: {why}")
    async with lab_cluster(
        tmp_path, NODES, flags=flags, volume_mib=VOLUME_MIB * volumes, fake_clock=True, seed=SEED
    ) as made:
        await healthy(made)
        began = time.monotonic()
        async with Workload(made, SEED) as load:
            nemesis = Nemesis(made, load, rng, volumes)
            while _goes_on(time.monotonic() - began, nemesis, load):
                await nemesis.step()
            lasted = time.monotonic() - began
            await load.stop()
        figures = await judge(made, load)
        packets = made.network.counts()
    outcomes = dict(sorted(load.outcomes.items()))
    print("operations", outcomes)
    print("refusals", dict(load.refusals.most_common(8)))
    print("packets", packets)
    figures |= {
        "seed": SEED,
        "nodes": NODES,
        "seconds": round(lasted),
        "faults": len(nemesis.done),
        "kinds": len({kind for kind, _ in nemesis.done}),
        "operations": load.completed(),
        "acknowledged_writes": len(load.acknowledged),
        "lost": 0,
        "recovery_s_max": round(max(nemesis.recoveries), 2),
    }
    print(json.dumps(figures))
    assert len(nemesis.done) >= FAULTS_PER_MINUTE_MIN * MINUTES, "void: too few faults"
    assert figures["kinds"] >= min(KINDS_MIN, FAULTS_PER_MINUTE_MIN * MINUTES), (
        "void: too few kinds"
    )
    assert load.completed() >= OPERATIONS_PER_MINUTE_MIN * MINUTES, "void: too little traffic"


def _goes_on(lasted: float, nemesis: Nemesis, load: Workload) -> bool:
    """Until the time is up and enough has happened, but not for ever."""
    enough = (
        len(nemesis.done) >= FAULTS_PER_MINUTE_MIN * MINUTES
        and load.completed() >= OPERATIONS_PER_MINUTE_MIN * MINUTES
    )
    return lasted < MINUTES * 60 or (not enough and lasted < MINUTES * 60 * OVERTIME)

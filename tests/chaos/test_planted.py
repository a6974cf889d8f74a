"""Nodes with deliberate bugs: the clients' history, the ledger and the other checks must find each."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from tests.chaos.lab import VOLUME_MIB, lab_cluster
from tests.chaos.machines import lacks_machines, lacks_strace, lacks_volumes
from tests.chaos.nemesis import RECOVERY_S_MAX, Nemesis
from tests.chaos.verdict import healthy, judge
from tests.chaos.workload import Workload

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(lacks_machines()), reason=lacks_machines() or "-"),
    pytest.mark.skipif(
        not os.environ.get("KVNODE_CHAOS_PLANTED"),
        reason="two minutes, and left to chance: KVNODE_CHAOS_PLANTED=1 runs it",
    ),
]
ROUNDS = 8
"""Each bug must show itself within so many faults of the kinds that bring it out."""
LOST = "acknowledged writes are lost|no write in|ended by themselves"
LIED = "no order explains|a value that nobody wrote|was given after|w/[^ ]* holds"


@pytest.mark.parametrize(
    ("bug", "faults", "sign"),
    [
        ("confirm_alone", ("leader_isolated", "stutter_leader"), LIED),
        ("commit_alone", ("leader_isolated",), f"{LOST}|{LIED}"),
        ("deny_unknown", ("kill_leader",), LIED),
        ("sync_nothing", ("power_cut_all",), f"{LOST}|{LIED}"),
        ("sync_once_more", ("eio_on_sync",), "goes on after an error"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
async def test_a_planted_bug_is_found(
    tmp_path: Path, bug: str, faults: tuple[str, ...], sign: str
) -> None:
    volumes = "power_cut_all" in faults
    why = (volumes and lacks_volumes()) or ("eio_on_sync" in faults and lacks_strace())
    if why:
        pytest.skip(why)
    with pytest.raises(AssertionError, match=sign):
        await attack(tmp_path, ("tests.chaos.planted", bug), faults, volumes=volumes)


async def attack(
    directory: Path, module: tuple[str, ...], faults: tuple[str, ...], *, volumes: bool
) -> None:
    """Faults of a few kinds, under more load than usual: a bug needs requests under way to show."""
    mib = VOLUME_MIB * volumes
    async with lab_cluster(directory, volume_mib=mib, module=module) as made:
        await healthy(made)
        async with Workload(made, seed=7, clients=12, think_s=0.004) as load:
            nemesis = Nemesis(made, load, random.Random(7), volumes)
            for _ in range(ROUNDS):
                await asyncio.gather(*(getattr(nemesis, fault)() for fault in faults))
                silent = [node.name for node in made.lab_nodes if not node.is_running]
                assert not silent, f"{silent} ended by themselves\n{made.tails()}"
                await load.first_after(time.monotonic(), RECOVERY_S_MAX)
        await judge(made, load)

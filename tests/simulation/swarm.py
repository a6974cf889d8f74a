"""What a seed draws: size, time-outs, weather, clients, and a mix of faults of its own (swarm testing)."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.clock import derive
from tests.simulation.network import Weather
from tests.simulation.workloads.catalog import CATALOG
from tests.simulation.workloads.change_feed import ChangeFeed


@dataclass(frozen=True)
class Swarm:
    """What one seed draws."""

    size: int
    machines: int
    """``size`` of them bootstrap; more may be started later."""
    tick_s: float
    election_ticks: int
    heartbeat_ticks: int
    log_entries_max: int
    history_entries_max: int
    disk_latency_s: float
    disk_stall: float
    """Probability of a write that takes a hundred times as long."""
    weather: Weather
    clients: int
    keys: int
    think_s: float
    operations: int
    """Of all clients in the first phase, roughly and at most: they come in bursts."""
    pace_s: float
    """Mean time between two faults."""
    faults: dict[str, float]
    """Kind -> weight."""
    clock_spread: float
    dns: float
    """Probability that discovery fails, or knows only some."""
    seconds: float
    heal_all: bool
    workloads: dict[str, float]
    """Name -> weight among the clients' turns."""


FAULTS = (
    "crash",
    "power",
    "crash_all",
    "pause",
    "cut_isolate",
    "cut_halves",
    "cut_bridge",
    "cut_ring",
    "cut_one_way",
    "clog",
    "storm",
    "disk_error",
    "full_disk",
    "bit_flip",
    "slow_disk",
    "transfer",
    "stop",
    "wipe",
    "remove",
    "grow",
    "move",
)

MORE_FAULTS = (
    "clock_rate",
    "clock_step",
    "dns_empty",
    "dns_partial",
    "dns_stale",
    "dns_failing",
    "double_burst",
    "delay_long",
    "roll_back",
    "clone",
    "misdirect",
    "wipe_crash",
)
"""Drawn by a generator of their own, so that they do not change what else a seed draws."""


def draw(seed: int) -> Swarm:
    """The swarm settings of a seed."""
    rng = derive(seed, "swarm")
    size = rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 7))
    chosen = [fault for fault in FAULTS if rng.random() < 0.45]
    more = derive(seed, "swarm/more")
    extra = {fault: more.choice((0.5, 1.0, 2.0)) for fault in MORE_FAULTS if more.random() < 0.3}
    tick_s = rng.choice((0.01, 0.02, 0.05, 0.05))
    return Swarm(
        size=size,
        machines=size + rng.choice((0, 0, 1, 2)),
        tick_s=tick_s,
        election_ticks=rng.choice((10, 20)),
        heartbeat_ticks=rng.choice((1, 2, 4)),
        log_entries_max=rng.choice((4, 10, 40, 200, 20_000)),
        # Drawn apart: what is trimmed moves the indexes of everybody else.
        history_entries_max=ChangeFeed.window(seed) if ChangeFeed.draw(seed) else 100_000,
        disk_latency_s=rng.choice((0.0002, 0.001, 0.005, 0.02)),
        disk_stall=rng.choice((0.0, 0.0, 0.01)),
        weather=Weather(
            delay_max=rng.choice((0.001, 0.005, 0.02)),
            slow=rng.choice((0.0, 0.0, 0.02)),
            slow_max=rng.choice((0.1, 0.5)),
            loss=rng.choice((0.0, 0.0, 0.02, 0.1)),
            double=rng.choice((0.0, 0.0, 0.05)),
            reorder=rng.random() < 0.3,
            breaks=rng.choice((0.0, 0.0, 0.001, 0.01)),
        ),
        clients=rng.choice((2, 4, 8)),
        keys=rng.choice((1, 3, 10)),
        think_s=rng.choice((0.002, 0.02, 0.1)),
        pace_s=rng.choice((0.3, 1.0, 3.0)),
        faults={fault: rng.choice((1.0, 2.0, 5.0)) for fault in chosen} | extra,
        clock_spread=rng.choice((0.0, 0.0, 0.1, 0.5)),
        dns=rng.choice((0.0, 0.0, 0.2, 0.6)),
        seconds=rng.choice((10.0, 20.0, 40.0, 60.0)),
        heal_all=rng.random() < 0.7,
        operations=more.choice((200, 600, 2000)),
        workloads={kind.name: weight for kind in CATALOG if (weight := kind.draw(seed))},
    )

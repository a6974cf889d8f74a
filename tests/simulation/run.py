"""Repeat one seed, or look for new ones: ``python -m tests.simulation.run --seed 7 [--trace]``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from tests.simulation.cluster import run_seed
from tests.simulation.swarm import Swarm, draw


def _swarm(options: argparse.Namespace, seed: int) -> Swarm:
    """What the seed draws, but for what the command line says."""
    swarm = draw(seed)
    if options.faults is not None:
        kinds = [kind for kind in options.faults.split(",") if kind]
        swarm = replace(swarm, faults={kind: swarm.faults.get(kind, 1.0) for kind in kinds})
    if options.workloads is not None:
        names = [name for name in options.workloads.split(",") if name]
        swarm = replace(swarm, workloads={n: swarm.workloads.get(n) or 5.0 for n in names})
    if options.clients is not None:
        swarm = replace(swarm, clients=options.clients)
    if options.seconds is not None:
        swarm = replace(swarm, seconds=options.seconds)
    return swarm


def _failure(seed: int, swarm: Swarm) -> str:
    """How it fails, by kind and first words; empty: it holds."""
    try:
        run_seed(seed, None, swarm)
    except Exception as error:  # noqa: BLE001  # any failure is one
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return ""


def _smaller(swarm: Swarm) -> Iterator[Swarm]:
    """Every way to need a little less."""
    for kind in sorted(swarm.faults):
        rest = {other: weight for other, weight in swarm.faults.items() if other != kind}
        yield replace(swarm, faults=rest)
    for name in sorted(swarm.workloads):
        if len(swarm.workloads) > 1:
            others = {n: weight for n, weight in swarm.workloads.items() if n != name}
            yield replace(swarm, workloads=others)
    if swarm.seconds > 1.0:
        yield replace(swarm, seconds=round(swarm.seconds / 2, 2))
        yield replace(swarm, seconds=round(swarm.seconds * 0.9, 2))
    if swarm.clients > 1:
        yield replace(swarm, clients=swarm.clients // 2)


def shrink(seed: int, swarm: Swarm) -> int:
    """Drop faults, time and clients while it still fails; print the least that does.

    A smaller mix takes another course, so the least failure may be another one than the first: both
    are printed.
    """
    first = last = _failure(seed, swarm)
    if not first:
        print(f"seed {seed} holds: nothing to shrink")
        return 0
    while True:
        for candidate in _smaller(swarm):
            if found := _failure(seed, candidate):
                swarm, last = candidate, found
                break
        else:
            break
    print(f"at first: {first}\nat last:  {last}")
    print(
        f"python -m tests.simulation.run --seed {seed} --faults '{','.join(sorted(swarm.faults))}' "
        f"--workloads '{','.join(swarm.workloads)}' "
        f"--clients {swarm.clients} --seconds {swarm.seconds} --trace"
    )
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when every seed held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--trace", action="store_true", help="print the story, line by line")
    parser.add_argument("--keep-going", action="store_true", help="report failures and go on")
    parser.add_argument("--shrink", action="store_true", help="look for the least that fails")
    parser.add_argument("--faults", help="comma-separated, instead of the kinds the seed draws")
    parser.add_argument("--workloads", help="comma-separated, likewise")
    parser.add_argument("--clients", type=int, help="instead of what the seed draws")
    parser.add_argument("--seconds", type=float, help="length of the first phase, likewise")
    options = parser.parse_args(arguments)
    if options.shrink:
        return shrink(options.seed, _swarm(options, options.seed))
    failed: list[int] = []
    for seed in range(options.seed, options.seed + options.count):
        began = time.process_time()
        try:
            swarm = _swarm(options, seed)
            outcome = run_seed(seed, print if options.trace else None, swarm)
        except Exception as error:
            failed.append(seed)
            if not options.keep_going:
                raise
            print(f"seed {seed} FAILED: {type(error).__name__}: {error}")
            continue
        print(f"seed {seed} held: {outcome} cpu {time.process_time() - began:.2f}s")
    if failed:
        print(f"failed: {failed}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Repeat one seed, or look for new ones: ``python -m tests.simulation.run --seed 7 [--trace]``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.cluster import run_seed


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when every seed held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--trace", action="store_true", help="print the story, line by line")
    parser.add_argument("--keep-going", action="store_true", help="report failures and go on")
    options = parser.parse_args(arguments)
    failed: list[int] = []
    for seed in range(options.seed, options.seed + options.count):
        began = time.process_time()
        try:
            outcome = run_seed(seed, print if options.trace else None)
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

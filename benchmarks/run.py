"""Compare kvnode with etcd and Consul on this machine: `python benchmarks/run.py --help`.

Reads as the story of one run: start all clusters, take turns under load, measure memory on fresh
clusters, write everything down. Progress goes to stderr, the tables to stdout, the raw figures to JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":  # run as a file: the package is found from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import facts, report
from benchmarks.processes import HarnessError
from benchmarks.stats import Sample, summarize
from benchmarks.systems import ROOT, SYSTEMS
from benchmarks.turns import WARM_UP_S, WORKLOADS, Options, Run, cells, measure_memory, say

MEASURED = (*WORKLOADS, "memory")
TARGETS = ("leader", "any")


def _names(allowed: Sequence[str]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not names or not set(names) <= set(allowed):
            raise argparse.ArgumentTypeError(f"a list out of {','.join(allowed)}")
        return names

    return parse


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError("a list of numbers") from error
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("numbers from 1")
    return numbers


def parse_options(argv: Sequence[str]) -> Options:
    """Return the options; prints usage and exits with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=(__doc__ or "").splitlines()[0]
    )
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    add = parser.add_argument
    add("--quick", action="store_true", help="two rounds of 2 s at 1 and 32 connections")
    add("--systems", type=_names(tuple(SYSTEMS)), default=tuple(SYSTEMS), help="a,b,c")
    add("--only", type=_names(MEASURED), default=MEASURED, help="put,get,memory")
    add("--targets", type=_names(TARGETS), default=("leader",), help="leader,any")
    add("--connections", type=_numbers, help="default 1,32,128")
    add("--seconds", type=int, help="per measurement; default 4")
    add("--rounds", type=int, help="default 5")
    add("--keys", type=int, default=10_000, help="key space of put and get; default %(default)s")
    add("--memory-keys", type=int, help="keys loaded for the memory figures; default 100000")
    add(
        "--idle-peers",
        choices=("run", "stop"),
        default="run",
        help="the systems not under load: leave them idle, or SIGSTOP them (default %(default)s)",
    )
    add("--data-dir", type=Path, default=ROOT / ".cache/bench", help="on the disk to measure")
    add("--json", type=Path, default=ROOT / f"benchmarks/results/{started}.json")
    given = parser.parse_args(argv)
    quick = given.quick
    options = Options(
        systems=given.systems,
        only=given.only,
        targets=given.targets,
        connections=given.connections or ((1, 32) if quick else (1, 32, 128)),
        seconds=given.seconds or (2 if quick else 4),
        rounds=given.rounds or (2 if quick else 5),
        keys=given.keys,
        memory_keys=given.memory_keys or (10_000 if quick else 100_000),
        idle_peers=given.idle_peers,
        data_dir=given.data_dir,
        json=given.json,
    )
    if min(options.seconds, options.rounds) < 1:
        parser.error("--seconds and --rounds start at 1")
    if options.keys < 4 * max(options.connections):
        parser.error("--keys must be at least four times the connections")
    return options


def _present(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the systems that are on this machine, saying which are not."""
    hints = {"consul": " (benchmarks/get_consul.sh fetches one)"}
    versions = {}
    for name in names:
        version = SYSTEMS[name].version()
        if version is None:
            say(f"{name} is not here: skipped{hints.get(name, '')}")
        else:
            versions[name] = version
    return versions


def benchmark(options: Options, directory: Path, raw: dict[str, Any]) -> list[Sample]:
    """Measure everything asked for; ``raw`` is filled as it goes and holds what there is on failure."""
    todo = cells(options)
    kinds = [SYSTEMS[name] for name in raw["facts"]["versions"] if name in SYSTEMS]
    per_cell = len(kinds) * (options.rounds * options.seconds + WARM_UP_S)
    say(f"{len(kinds)} systems, {len(todo)} cells: about {len(todo) * per_cell * 1.15:.0f} s")
    samples: list[Sample] = []
    if todo:
        with ExitStack() as stack:
            run = Run(options, [kind(directory) for kind in kinds], raw["failures"])
            raw["measurements"], samples = run.measurements, run.samples
            for cluster in list(run.clusters):
                stack.callback(cluster.stop)
                say(f"starting {cluster.name}")
                try:
                    cluster.start()
                except (HarnessError, OSError) as error:
                    raw["failures"].append(f"{cluster.name} did not start: {error}")
                    run.clusters.remove(cluster)
                    cluster.stop()
            if run.clusters:
                raw["idle_cpu_percent"] = run.idle_cpu_percent()
            for cell in todo if run.clusters else ():
                run.measure_cell(cell)
    if "memory" in options.only:
        for kind in kinds:
            try:
                found = measure_memory(kind, directory / "memory", options.memory_keys)
                raw["memory"].append(found)
            except (HarnessError, OSError) as error:
                raw["failures"].append(f"memory {kind.name}: {error}")
    return samples


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into the exception that Ctrl-C raises, so that every clean-up runs."""
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Run, print, write JSON. Returns 0, or 1 when something failed or a measurement is void."""
    options = parse_options(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    options.data_dir.mkdir(parents=True, exist_ok=True)
    versions = _present(options.systems)
    if not versions or (cells(options) and shutil.which("wrk") is None):
        say("nothing to measure: no system is here" if not versions else "wrk is not here")
        return 1
    raw: dict[str, Any] = {
        "schema": 1,
        "command": shlex.join(["benchmarks/run.py", *argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {name: str(value) for name, value in asdict(options).items()},
        "facts": facts.gather(options.data_dir, versions),
        "idle_cpu_percent": {},
        "measurements": [],
        "memory": [],
        "failures": [],
    }
    if raw["facts"]["file_system"] in ("tmpfs", "ramfs"):
        say("WARNING: the data directory is in memory: syncs cost nothing there; see --data-dir")
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.data_dir) as directory:
        try:
            samples = benchmark(options, Path(directory), raw)
        except (HarnessError, OSError) as error:
            raw["failures"].append(str(error))
    summaries = summarize(samples)
    raw["summary"] = [{**asdict(summary), "cell": summary.cell._asdict()} for summary in summaries]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(raw, indent=1))
    report.print_report(raw, summaries)
    say(f"raw figures: {options.json}")
    return 1 if raw["failures"] or any(sample.void for sample in samples) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("interrupted; everything that was started has been stopped")
        sys.exit(130)

"""What a reader must know about the machine before a figure means anything."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.systems import ROOT

_BLOCK = 4096


def parse_mountinfo(text: str, path: str) -> tuple[str, str]:
    """Return file system type and device of the mount that holds ``path`` (an absolute real path),
    from a ``/proc/self/mountinfo`` text: the longest mount point wins, the later of equal ones.
    """
    best, found = -1, ("unknown", "unknown")
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount_point = left.split()[4].encode().decode("unicode_escape")
        holds = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if holds and len(mount_point) >= best:
            kind, device = right.split()[:2]
            best, found = len(mount_point), (kind, device)
    return found


def probe_fdatasync_ms(
    directory: Path, count: int = 200, seconds_max: float = 3.0
) -> Mapping[str, float]:
    """Return p50 and p99 of writing 4 KiB into a preallocated file and syncing it, in milliseconds.

    It is the floor under every acknowledged write: one such sync on the leader and one on a follower
    lie in its way. Ends after ``count`` writes or ``seconds_max``, whichever comes first.
    """
    path = directory / "fdatasync.probe"
    took: list[float] = []
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, count * _BLOCK)
        os.fsync(descriptor)
        ends = time.monotonic() + seconds_max
        for number in range(count):
            started = time.perf_counter()
            os.pwrite(descriptor, b"k" * _BLOCK, number * _BLOCK)
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - started) * 1e3)
            if time.monotonic() > ends and len(took) > 1:
                break
    finally:
        os.close(descriptor)
        path.unlink()
    return {"p50": round(median(took), 3), "p99": round(quantiles(took, n=100)[98], 3)}


def _line(path: str, prefix: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(prefix):
            return line.partition(":")[2].strip()
    return "unknown"


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=10, cwd=ROOT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def gather(directory: Path, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the machine facts; ``directory`` is where the systems keep their data."""
    kind, device = parse_mountinfo(
        Path("/proc/self/mountinfo").read_text(), str(directory.resolve())
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _line("/proc/cpuinfo", "model name"),
        "memory_kib": int(_line("/proc/meminfo", "MemTotal").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": kind,
        "device": device,
        "fdatasync_ms": probe_fdatasync_ms(directory),
        "load_average": os.getloadavg()[0],
        "versions": {
            **versions,
            "wrk": _output("wrk", "-v").removeprefix("wrk ").partition(" [")[0],
        },
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
    }

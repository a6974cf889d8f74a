"""Runs wrk and says whether its figures may be used."""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import HarnessError
from benchmarks.workload import Replay

_SCRIPT = Path(__file__).with_name("replay.lua")
_MARK = "RESULT "
_REQUEST_TIMEOUT_S = 10
_ANSWER_BYTES_SLACK = 16
"""Answers to one workload differ by the digits of an index or a revision, and by nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrkResult:
    """One wrk run. Latencies are microseconds, corrected by wrk for coordinated omission."""

    duration_us: int
    requests: int
    """Answered ones."""
    bytes: int
    """Of all answers, headers included."""
    sent: int
    bad: int
    """Answers without the proof; counted in checked runs only."""
    first_bad: str
    connect: int
    read: int
    write: int
    status: int
    """Answers with a status of 400 and above."""
    timeout: int
    mean_us: float
    p50_us: int
    p90_us: int
    p99_us: int
    p999_us: int
    max_us: int
    client_cpu_s: float = 0.0
    """Processor seconds of wrk itself."""

    @property
    def per_s(self) -> float:
        return self.requests / (self.duration_us / 1e6)

    @property
    def answer_bytes(self) -> float:
        return self.bytes / self.requests if self.requests else 0.0


def parse_result(output: str) -> WrkResult:
    """Return the figures of `replay.lua`'s last line.

    Raises:
        HarnessError: there is no such line; wrk failed before its end.
    """
    for line in reversed(output.splitlines()):
        if line.startswith(_MARK):
            return WrkResult(**json.loads(line.removeprefix(_MARK)))
    raise HarnessError(f"wrk printed no result:\n{output}")


def void_reason(result: WrkResult, connections: int, answer_bytes: float | None) -> str | None:
    """Return why the figures must not be used, or None.

    Args:
        result: The run.
        connections: Requests that may have been under way when wrk stopped.
        answer_bytes: Mean size of answers that were checked one by one; None in the run that checks.
    """
    errors = {
        name: getattr(result, name)
        for name in ("bad", "connect", "read", "write", "status", "timeout")
        if getattr(result, name)
    }
    if errors:
        text = ", ".join(f"{name} {count}" for name, count in errors.items())
        return f"errors: {text} {result.first_bad}".rstrip()
    if not result.requests:
        return "no request was answered"
    lost = result.sent - result.requests
    if lost > connections:
        return f"{lost} requests were never answered"
    if answer_bytes is not None and abs(result.answer_bytes - answer_bytes) > _ANSWER_BYTES_SLACK:
        return f"answers of {result.answer_bytes:.0f} bytes, checked ones had {answer_bytes:.0f}"
    return None


def scratch_directory() -> Path | None:
    """Return a memory file system for the request files: writing them back must not meet the
    systems' syncs on the measured disk. None, the default temporary place, where there is none.
    """
    shm = Path("/dev/shm")
    return shm if shm.is_dir() else None


def run_wrk(
    ports: Sequence[int], replay: Replay, *, connections: int, seconds: int, check: bool = False
) -> WrkResult:
    """Drive ``ports``, one wrk thread each, for ``seconds``.

    Args:
        ports: Loopback HTTP ports; the connections are shared out evenly among them.
        replay: What to send.
        connections: In all; a multiple of ``len(ports)``.
        seconds: At least 1; the run ends by itself shortly after.
        check: Look at every answer's body for ``replay.proof``, which slows wrk down.

    Raises:
        HarnessError: wrk failed or did not end.
    """
    assert connections % len(ports) == 0
    assert seconds >= 1
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.NamedTemporaryFile(prefix="kvnode-bench-", dir=scratch_directory()) as file:
        file.write(replay.encode())
        file.flush()
        argv = [
            *("wrk", f"-t{len(ports)}", f"-c{connections}", f"-d{seconds}s", "--latency"),
            *(f"--timeout={_REQUEST_TIMEOUT_S}s", f"--script={_SCRIPT}"),
            *(f"http://127.0.0.1:{ports[0]}/", "--", file.name, replay.proof if check else ""),
            *(f"127.0.0.1 {port}" for port in ports),
        ]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=seconds + 20, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise HarnessError(f"wrk did not end {seconds + 20} s after its start") from error
    if done.returncode:
        raise HarnessError(f"wrk ended with {done.returncode}: {done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return replace(parse_result(done.stdout), client_cpu_s=round(cpu_s, 4))

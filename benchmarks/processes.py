"""Child processes: started with a deadline on their lives, measured through /proc, ended by pid.

Linux only, as `wrk` and the figures from /proc are.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral ports, which a load of outgoing connections may take at any moment."""


class HarnessError(Exception):
    """The benchmark cannot go on: something did not start, answer or add up. Says what to look at."""


def free_ports(count: int) -> list[int]:
    """Return distinct loopback ports that nobody listens on at this moment."""
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise HarnessError("no free ports on loopback")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of one process, in KiB. ``anonymous`` leaves out mapped files (etcd's bbolt
    file, shared libraries), which the kernel may drop at will.
    """

    resident: int
    anonymous: int


def parse_status(text: str) -> Memory:
    """Return the memory figures of a ``/proc/<pid>/status`` text."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Memory(
        resident=int(fields["VmRSS"].split()[0]), anonymous=int(fields["RssAnon"].split()[0])
    )


def parse_stat_cpu_ticks(text: str) -> int:
    """Return user and system clock ticks of a ``/proc/<pid>/stat`` text.

    The command name, in brackets, may contain blanks and brackets itself: the last one counts.
    """
    after_name = text.rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])


def parse_busy_ticks(text: str) -> int:
    """Return the machine's busy clock ticks, steal included, of a ``/proc/stat`` text."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, text.splitlines()[0].split()[1:9]
    )
    return user + nice + system + irq + softirq + steal


def machine_busy_s() -> float:
    """Return processor seconds that the whole machine has been busy since it started."""
    return parse_busy_ticks(Path("/proc/stat").read_text()) / _TICKS_PER_SECOND


def _die_with_parent() -> None:
    """Run in the child: SIGKILL it when this process dies in a way that skips every clean-up."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Process:
    """One child with its log file; in its own session, so that Ctrl-C reaches only the harness."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start ``argv``; its stdout and stderr go to ``log``."""
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env) if env is not None else None,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def check_alive(self) -> None:
        """Raise `HarnessError` with the log's end when the process has ended."""
        if not self.alive:
            heading = f"{self.name} ended with {self._child.returncode}:"
            raise HarnessError("\n".join([heading, *self.tail(15)]))

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of the log."""
        return self.log.read_text(errors="replace").splitlines()[-lines:]

    def cpu_s(self) -> float:
        """Return processor seconds used so far, in steps of a clock tick (10 ms)."""
        text = Path(f"/proc/{self._child.pid}/stat").read_text()
        return parse_stat_cpu_ticks(text) / _TICKS_PER_SECOND

    def memory(self) -> Memory:
        return parse_status(Path(f"/proc/{self._child.pid}/status").read_text())

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            self._child.send_signal(number)

    def stop(self, grace_s: float = 8.0) -> None:
        """End the process: SIGTERM, and SIGKILL when it is still there after ``grace_s``."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._child.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def stop_all(processes: Sequence[Process], grace_s: float = 8.0) -> None:
    """End all of them, asking all first, so that the grace runs once and not three times."""
    for process in processes:
        process.signal(signal.SIGCONT)
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in processes:
        process.stop(max(0.1, deadline - time.monotonic()))

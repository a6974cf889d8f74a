"""Whether the machine itself stood still while something was measured on it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

STALL_S = 0.9
"""A machine, or its disk, that stands still for so long may cost a leader its office, and proves nothing."""


class Bystander:
    """How long this machine stood still at the longest: a thread that sleeps, writes and syncs."""

    def __init__(self, directory: Path) -> None:
        self.longest_s = 0.0
        self._file = directory / "bystander"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def stalled(self) -> bool:
        return self.longest_s >= STALL_S

    def _watch(self) -> None:
        with self._file.open("wb") as file:
            before = time.monotonic()
            while not self._ended.wait(0.1):
                file.write(b"x" * 512)
                file.flush()
                os.fsync(file.fileno())
                now = time.monotonic()
                self.longest_s = max(self.longest_s, now - before - 0.1)
                before = now

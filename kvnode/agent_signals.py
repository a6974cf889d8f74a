"""SIGTERM and SIGINT wait while a node is not yet there to take them.

A node imports for half a second before its event loop takes signals, and once more when it starts over.
Unblocked, a signal in that time would end the process half-way, or, for the first process of a container,
be lost: the kernel sends such a one no signal that it does not handle (pid_namespaces(7)). What is blocked
and what waits survive exec (execve(2)).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def hold() -> None:
    """Let them wait, in this thread and in those that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def take() -> None:
    """Let them come, first the one that waited. Call in the main thread, once something handles them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def held() -> Iterator[None]:
    """``hold``; in the end they are as they were before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""``kvnode lock``: signals that come while the command is being started."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from kvnode.cli import lock


class Standing:
    """A lease, and a lock on it, that nothing ends."""

    async def lost(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def release(self) -> None:
        """Nobody else waits."""


async def test_a_signal_before_the_command_is_known_to_run_is_the_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have set its traps by itself when the signal comes."""
    standing: Any = Standing()
    script = ("sh", "-c", "sleep 60")
    runner = lock._Runner(standing, standing, standing, script, 0, pass_stdin=False, verbose=False)
    really_start = asyncio.create_subprocess_exec

    async def start(*words: str, **options: Any) -> asyncio.subprocess.Process:
        child = await really_start(*words, **options)
        runner._signalled(signal.SIGTERM)
        return child

    monkeypatch.setattr("asyncio.create_subprocess_exec", start)
    async with asyncio.timeout(20):
        assert await runner._run_child() == 128 + signal.SIGTERM

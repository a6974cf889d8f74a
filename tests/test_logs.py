"""The log can be followed, at a level of its own and without harm to the log itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog

from kvnode.logs import FOLLOWER_LINES_MAX, Logs

_LOG = structlog.get_logger("kvnode.test")


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    handlers, level = logging.root.handlers[:], logging.root.level
    made = Logs("n1", level="warn", form="json", file=str(tmp_path / "log"))
    yield made
    made.close()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def written(tmp_path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]


async def begin(
    stack: AsyncGenerator[bytes, None],
) -> asyncio.Task[bytes]:
    """Ask for the next lines, and be a follower when this returns."""
    task: asyncio.Task[bytes] = asyncio.create_task(anext(stack))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    return task


async def test_a_follower_has_a_level_of_its_own(logs: Logs, tmp_path: Path) -> None:
    async with aclosing(logs.follow("debug", as_json=False)) as lines:
        task = await begin(lines)
        _LOG.debug("looked", term=3)
        _LOG.warning("stumbled", why="a 'stone'")
        text = (await asyncio.wait_for(task, 5)).decode()
        first, second = text.splitlines()
        assert first.endswith("[DEBUG] looked: term=3")
        assert second.endswith("[WARN] stumbled: why=\"a 'stone'\"")
    _LOG.info("unheard")
    assert written(tmp_path) == ["stumbled"]


async def test_json_lines_are_objects(logs: Logs) -> None:
    async with aclosing(logs.follow("info", as_json=True)) as lines:
        task = await begin(lines)
        _LOG.debug("too fine")
        _LOG.info("looked", data=b"\xff")
        found: dict[str, Any] = json.loads(await asyncio.wait_for(task, 5))
        assert (found["event"], found["level"], found["node"]) == ("looked", "info", "n1")


async def test_other_libraries_are_heard_too(logs: Logs, tmp_path: Path) -> None:
    async with aclosing(logs.follow("info", as_json=False)) as lines:
        task = await begin(lines)
        logging.getLogger("elsewhere").info("said %s", "something")
        assert b"[INFO] said something: logger='elsewhere'" in await asyncio.wait_for(task, 5)
    assert written(tmp_path) == []


async def test_who_reads_slowly_is_told_what_was_missed(logs: Logs) -> None:
    async with aclosing(logs.follow("info", as_json=False)) as lines:
        task = await begin(lines)
        for number in range(FOLLOWER_LINES_MAX + 5):
            _LOG.info("counted", number=number)
        text = (await asyncio.wait_for(task, 5)).decode()
        assert len(text.splitlines()) == FOLLOWER_LINES_MAX + 1
        assert "5 lines were missed" in text.splitlines()[-1]


async def test_lines_of_other_threads_arrive(logs: Logs) -> None:
    async with aclosing(logs.follow("info", as_json=False)) as lines:
        task = await begin(lines)
        await asyncio.to_thread(_LOG.info, "from afar")
        assert b"from afar" in await asyncio.wait_for(task, 5)

"""The leader's label on its own pod."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnode import agent_label
from kvnode.agent_label import LABEL, LeaderLabel
from kvnode.kubernetes import ApiServer, ApiSettings
from tests.k8s import api_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        for _ in iter(condition, True):
            await asyncio.sleep(0.01)


async def shows(server: api_server.ApiServer, value: str) -> None:
    await until(lambda: server.labels("kvnode-0").get(LABEL) == value)


async def test_the_label_follows_leadership_and_is_taken_back_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_label, "INTERVAL_S", 0.01)
    monkeypatch.setattr(agent_label, "RETRY_S", 0.01)
    leads = False
    async with api_server.ApiServer(tmp_path) as server:
        server.pod("kvnode-0")
        folder = server.account("kvnode", ("patch", "pods", "kvnode-0"))
        settings = ApiSettings(
            url=server.url, statefulset="kvnode", pod="kvnode-0", credentials=str(folder)
        )
        label = LeaderLabel(ApiServer(settings), lambda: leads)
        label.start()
        await shows(server, "false")
        asked = len(server.requests)
        await asyncio.sleep(0.1)
        assert len(server.requests) == asked, "nothing changed, so nobody is asked"
        server.fault = 503
        leads = True
        await until(lambda: len(server.requests) >= asked + 3)
        server.fault = 0
        await shows(server, "true")
        await label.close()
        assert server.labels("kvnode-0")[LABEL] == "false"
        await label.close()

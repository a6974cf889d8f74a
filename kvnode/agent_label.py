"""Shows on this pod's own label whether it leads, for a Service that selects the leader.

Only with ``kubernetes_leader_label``. A label may lag behind, and a leader that was cut off cannot take its
own back: clients of such a Service then reach a node that passes requests on or refuses them, never one
that answers in a leader's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from kvnode.errors import ApiServerFailed
from kvnode.kubernetes import ApiServer

_LOG = structlog.get_logger("kvnode.agent")

LABEL = "kvnode/leader"
INTERVAL_S = 0.5
"""Between two looks at who leads: a look asks nobody."""
RETRY_S = 5.0


class LeaderLabel:
    """A task that keeps the label true. ``start``, then ``close``."""

    def __init__(self, api: ApiServer, leads: Callable[[], bool]) -> None:
        """Show nothing yet."""
        self._api = api
        self._leads = leads
        self._shown = ""
        """What the label says, as far as known; empty: unknown, as after a start."""
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="leader label")

    async def close(self) -> None:
        """Stop looking, and take the label back. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if self._shown != "false":
            await self._show("false")

    async def _run(self) -> None:
        while True:
            wanted = "true" if self._leads() else "false"
            if wanted != self._shown and not await self._show(wanted):
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(INTERVAL_S)

    async def _show(self, value: str) -> bool:
        self._shown = ""
        try:
            await self._api.label_pod({LABEL: value})
        except ApiServerFailed as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _LOG.warning("leader_label_failed", error=str(error))
            return False
        self._shown, self._problem = value, ""
        _LOG.info("leader_label_set", value=value)
        return True

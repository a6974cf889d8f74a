"""The probes' routes. Each says which check failed, in a sentence (Kubernetes guide §7).

- ``live``: the loop turns. That this answer was written proves it. Never depends on a quorum: a
  restart does not bring one back.
- ``startup``: the node is through with opening its data. Waiting for others to form or to join a
  cluster is no reason to start it again.
- ``leader``: it leads, and a majority confirmed that after the question came. For load balancers outside
  Kubernetes that send everything to the leader; no probe of a container.
- ``ready``: it may be sent requests: it runs, it knows a leader or lost it only a moment ago (an
  election must not empty the Service), and it has applied what was committed when it came.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kvnode.errors import KvnodeError
from kvnode.http.completion import wait_for
from kvnode.http.messages import TEXT_TYPE, Request, Response
from kvnode.raft.types import Role
from kvnode.replica.facade import Consistency

if TYPE_CHECKING:
    from kvnode.http.context import HttpContext
    from kvnode.replica.facade import Status


CONFIRM_S = 2.0
"""How long ``leader`` waits for a majority."""


_WORDS = {True: "ok  ", False: "FAIL", None: "note"}


class Check(NamedTuple):
    """One check of a probe."""

    name: str
    passed: bool | None
    """None: a note, which decides nothing."""
    detail: str


class HealthRoutes:
    """The four handlers."""

    def __init__(self, context: HttpContext) -> None:
        """Remember whom to ask."""
        self._replica = context.replica
        self._notes = context.notes
        self._leader_grace_ms = context.settings.ready_leader_grace_s * 1000

    async def live(self, request: Request) -> Response:
        """``GET /health/live``."""
        return _report("live", [Check("loop", True, "the event loop turns")])

    async def startup(self, request: Request) -> Response:
        """``GET /health/startup``."""
        return _report("started", [_started(self._replica.status())])

    async def ready(self, request: Request) -> Response:
        """``GET /health/ready``."""
        status = self._replica.status()
        checks = [_running(status), self._leader(status), _caught_up(status)]
        checks += [Check(name, None, detail) for name, detail in self._notes().items()]
        return _report("ready", checks)

    async def leader(self, request: Request) -> Response:
        """``GET /health/leader``."""
        check = self._leads()
        if check.passed:
            try:
                async with asyncio.timeout(CONFIRM_S):
                    await wait_for(partial(self._replica.read, Consistency.CONSISTENT))
            except TimeoutError:
                check = Check("leader", False, f"no majority confirmed it within {CONFIRM_S:g} s")
            except KvnodeError as error:
                check = Check("leader", False, f"no majority confirmed it: {error}")
            else:
                check = self._leads()
        return _report("leading", [check])

    def _leads(self) -> Check:
        status = self._replica.status()
        if status.state != "running":
            return _running(status)
        if status.role is Role.LEADER:
            return Check("leader", True, f"{status.name} leads term {status.term}")
        name = status.leader_name or status.leader_id
        return Check("leader", False, f"{name} leads" if name else "no leader is known")

    def _leader(self, status: Status) -> Check:
        if status.leader_id is not None:
            return Check("leader", True, f"{status.leader_name or status.leader_id} leads")
        lost = f"no leader known for {status.leader_lost_ms / 1000:.1f} s"
        recent = status.leader_lost_ms < self._leader_grace_ms and status.catch_up_index > 0
        return Check("leader", recent, lost)


def _started(status: Status) -> Check:
    detail = status.state + (f": {status.reason}" if status.reason else "")
    return Check("started", status.state != "starting", detail)


def _running(status: Status) -> Check:
    detail = status.state + (f": {status.reason}" if status.reason else "")
    return Check("state", status.state == "running", detail)


def _caught_up(status: Status) -> Check:
    if not status.catch_up_index:
        return Check("applied", False, "no leader has been heard since the start")
    detail = f"applied {status.applied_index} of {status.catch_up_index}"
    return Check("applied", status.applied_index >= status.catch_up_index, detail)


def _report(word: str, checks: list[Check]) -> Response:
    """Say ``word`` or ``not word``, then one line per check."""
    failed = [check for check in checks if check.passed is False]
    first = f"not {word}: {', '.join(check.name for check in failed)}" if failed else word
    lines = [first]
    lines += [f"{_WORDS[check.passed]} {check.name}: {check.detail}" for check in checks]
    body = "\n".join(lines) + "\n"
    head = TEXT_TYPE + b"Cache-Control: no-store\r\n"
    return Response(503 if failed else 200, head, body.encode())

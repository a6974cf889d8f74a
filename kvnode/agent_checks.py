"""HTTP and TCP checks: looking at the services that were registered through this node (spec §10).

What to look at is in the replicated registry; each node looks at what it owns, and writes what has changed:
a status at once, the output alone at most every few minutes, so that an unchanging world costs the log
nothing. One task keeps the time for all checks; a probe is a short task of its own, and few run at once.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import aiohttp
import structlog

from kvnode import __version__
from kvnode.addresses import parse_address
from kvnode.errors import KvnodeError
from kvnode.replica.facade import ReplicaFacade
from kvnode.store.commands import Result
from kvnode.store.registry_commands import UpdateCheck
from kvnode.store.registry_records import CHECK_INDEX, CRITICAL, PASSING, WARNING, Check

_LOG = structlog.get_logger("kvnode.checks")

INTERVAL_MIN_S: Final = 1.0
TIMEOUT_S: Final = 10.0
"""Of a check that names none, as in Consul."""
OUTPUT_BYTES_MAX: Final = 4096
OUTPUT_PAUSE_S: Final = 300.0
"""An output that changed while the status did not is written so often at most."""
PROBES_MAX: Final = 64
"""Probes at once; further ones are late."""
LOOK_S: Final = 0.25
_KINDS: Final = frozenset({"http", "tcp"})


class Finding(NamedTuple):
    """What a probe found."""

    status: str
    output: str


class CheckRunner:
    """Performs the checks that one node owns."""

    def __init__(self, replica: ReplicaFacade, node: str) -> None:
        """Nothing is looked at yet."""
        self._replica = replica
        self._node = node
        self._checks: dict[str, Check] = {}
        self._due: list[tuple[float, str]] = []
        self._seen = -1
        """The index of checks for which ``_checks`` was read."""
        self._written: dict[str, float] = {}
        """When the output of a check was written last."""
        self._next: dict[str, float] = {}
        """When each check is looked at next; another time in the heap is an old one."""
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Begin to keep the time."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="checks")

    async def close(self) -> None:
        """End all probes. Idempotent."""
        tasks = [*self._probes.values(), *([self._task] if self._task is not None else [])]
        self._task = None
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self._session is not None:
            await self._session.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._learn(loop.time())
                self._begin_due(loop.time())
            except KvnodeError as error:
                # The store cannot be read just now; whoever owns it does what is to be done about that.
                _LOG.warning("checks_not_read", error=str(error))
            await asyncio.sleep(LOOK_S)

    def _learn(self, now: float) -> None:
        """Read which checks there are, if any has changed."""
        registry = self._replica.store.registry()
        index = registry.index(CHECK_INDEX)
        if index == self._seen:
            return
        self._seen = index
        before = self._checks
        self._checks = {
            check.check_id: check
            for check in registry.checks(self._node)
            if check.is_local and check.type in _KINDS
        }
        for check_id, check in self._checks.items():
            known = before.get(check_id)
            if known is None or known.definition != check.definition:
                # By chance within the first interval, so that not all are looked at together.
                self._plan(check_id, now + random.uniform(0, _interval_s(check)))
        self._next = {name: at for name, at in self._next.items() if name in self._checks}
        self._written = {name: at for name, at in self._written.items() if name in self._checks}

    def _plan(self, check_id: str, at: float) -> None:
        self._next[check_id] = at
        heapq.heappush(self._due, (at, check_id))

    def _begin_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now and len(self._probes) < PROBES_MAX:
            at, check_id = heapq.heappop(self._due)
            if self._next.get(check_id) != at:
                continue  # gone, or it has got a new definition and with it another time
            check = self._checks[check_id]
            self._plan(check_id, max(at + _interval_s(check), now))
            if check_id not in self._probes:  # else the last look is not over
                look = self._look(check)
                task = asyncio.get_running_loop().create_task(look, name=f"check {check_id}")
                self._probes[check_id] = task
                task.add_done_callback(partial(self._looked, check_id))

    def _looked(self, check_id: str, task: asyncio.Task[None]) -> None:
        del self._probes[check_id]
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("check_failed", check=check_id, exc_info=task.exception())

    async def _look(self, check: Check) -> None:
        found = await self.probe(check)
        current = self._replica.store.registry().check(self._node, check.check_id)
        if current is None or current.definition != check.definition:
            return
        now = asyncio.get_running_loop().time()
        last = self._written.get(check.check_id)
        recent = last is not None and now - last < OUTPUT_PAUSE_S
        same = current.status == found.status
        if (same and current.output == found.output) or (same and recent):
            return
        command = UpdateCheck(self._node, check.check_id, check.type, *found)
        self._replica.write(command, partial(self._noted, check.check_id, now))

    def _noted(
        self, check_id: str, now: float, result: Result | None, _error: KvnodeError | None
    ) -> None:
        if result is not None:  # else the next look tries again
            self._written[check_id] = now

    # -- probes -------------------------------------------------------------------------------------

    async def probe(self, check: Check) -> Finding:
        """Look once; never raises, and takes at most the check's time-out."""
        timeout_s = check.definition.timeout_ns / 1e9 or TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                found = await (self._http(check) if check.type == "http" else _tcp(check))
        except TimeoutError:
            found = Finding(CRITICAL, f"{_target(check)}: no answer within {timeout_s:g} s")
        except (OSError, ValueError, aiohttp.ClientError) as error:
            found = Finding(CRITICAL, f"{_target(check)}: {str(error) or type(error).__name__}")
        return Finding(found.status, found.output[:OUTPUT_BYTES_MAX])

    async def _http(self, check: Check) -> Finding:
        definition = check.definition
        if self._session is None:
            # A new connection each time: the question is whether the service takes one.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, limit=PROBES_MAX),
                auto_decompress=False,
                headers={"User-Agent": f"kvnode/{__version__} health check"},
            )
        headers = [(name, value) for name, values in definition.header for value in values]
        method = (definition.method or "GET").upper()
        async with self._session.request(
            method,
            definition.http,
            headers=headers,
            data=definition.body or None,
            ssl=not definition.tls_skip_verify,
            max_redirects=10,
        ) as answer:
            body = (await answer.content.read(OUTPUT_BYTES_MAX)).decode("utf-8", "replace")
            reason = f"{answer.status} {answer.reason or ''}".strip()
            status = PASSING if 200 <= answer.status < 300 else CRITICAL
            if answer.status == 429:
                status = WARNING
            return Finding(status, f"HTTP {method} {definition.http}: {reason} Output: {body}")


async def _tcp(check: Check) -> Finding:
    address = parse_address(check.definition.tcp)
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.close()
    return Finding(PASSING, f"TCP connect {check.definition.tcp}: Success")


def _target(check: Check) -> str:
    definition = check.definition
    if check.type == "http":
        return f"HTTP {definition.method or 'GET'} {definition.http}"
    return f"TCP connect {definition.tcp}"


def _interval_s(check: Check) -> float:
    return max(INTERVAL_MIN_S, check.definition.interval_ns / 1e9)

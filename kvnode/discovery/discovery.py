"""``Discovery``: every source together, with a memory of the last good answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from kvnode.discovery.dns import Answer, DnsSettings, look_up
from kvnode.discovery.seeds import Seed, tidy
from kvnode.discovery.static import parse_retry_join
from kvnode.errors import PeerUnreachable
from kvnode.ports import Done

TTL_FLOOR_S = 1.0
TTL_CEILING_S = 30.0

log = structlog.get_logger(__name__)


class Discovery:
    """Finds addresses to try. Never adds or removes a member: the driver asks whoever answers.

    Rounds never overlap: who asks while one is under way gets its result. An answer is kept for its
    TTL, at least ``TTL_FLOOR_S`` and at most ``TTL_CEILING_S``. When a later round fails or is empty,
    the last good answer stays in force and ``reason`` says why (RC-56).

    Attributes:
        reason: Why the newest round gave nothing new; empty when it was good.
        failed: Whether DNS itself failed in the newest round.
    """

    def __init__(
        self,
        *,
        retry_join: Sequence[str] = (),
        peer_port: int,
        dns: DnsSettings | None = None,
        ask: Callable[[DnsSettings], Awaitable[Answer]] = look_up,
    ) -> None:
        """Make one; nothing is asked yet.

        Args:
            retry_join: Static addresses, see ``parse_retry_join``.
            peer_port: Port where none is given.
            dns: What to ask DNS; None: nothing.
            ask: One DNS round; tests hand in their own.

        Raises:
            BadRequest: A static address cannot be read.
        """
        self.reason = ""
        self.failed = False
        self._static = parse_retry_join(retry_join, peer_port)
        self._dns = dns
        self._ask = ask
        self._last_good: list[Seed] = []
        self._fresh_until = float("-inf")
        self._round: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Task[None]] = set()

    @property
    def problem(self) -> str:
        """Why the newest round found nobody, and what an operator can do about it; empty: it did."""
        if not self.reason:
            return ""
        if self.failed:
            return (
                f"{self.reason}: check --dns-servers (else /etc/resolv.conf), and that a NetworkPolicy lets "
                "this node ask port 53 over UDP and TCP"
            )
        return (
            f"{self.reason}: nobody is listed yet; should that last, check --join-srv, and that the headless "
            "Service publishes pods that are not ready"
        )

    async def lookup(self) -> list[Seed]:
        """Return static seeds as written, then those from DNS by ordinal; empty when there are none.

        Never raises for what DNS says; takes at most the settings' ``round_timeout_s``.
        """
        loop = asyncio.get_running_loop()
        if self._dns is not None and loop.time() >= self._fresh_until:
            if self._round is None:
                self._round = loop.create_task(self._ask_dns(self._dns), name="discovery round")
            await asyncio.shield(self._round)
        known = {seed.address for seed in self._static}
        return [*self._static, *(seed for seed in self._last_good if seed.address not in known)]

    def discover(self, done: Done[list[str]]) -> None:
        """Call ``done`` with the addresses of ``lookup``, in a later turn of the running loop.

        After ``close`` the call-back gets ``PeerUnreachable``.
        """
        task = asyncio.get_running_loop().create_task(self._discover(done), name="discover")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def close(self) -> None:
        """Break off what is under way. Idempotent."""
        tasks = [*self._waiting]
        if self._round is not None:
            tasks.append(self._round)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _discover(self, done: Done[list[str]]) -> None:
        try:
            seeds = await self.lookup()
        except asyncio.CancelledError:
            done(None, PeerUnreachable("discovery was stopped", took_effect="no"))
            raise
        if seeds or not self.problem:
            done([seed.address for seed in seeds], None)
        else:
            done(None, PeerUnreachable(self.problem, took_effect="no"))

    async def _ask_dns(self, dns: DnsSettings) -> None:
        try:
            answer = await self._ask(dns)
        finally:
            self._round = None
        news = answer.reason != self.reason
        self.reason, self.failed = answer.reason, answer.failed
        ttl_s = min(max(answer.ttl_s, TTL_FLOOR_S), TTL_CEILING_S)
        self._fresh_until = asyncio.get_running_loop().time() + ttl_s
        if answer.seeds:
            self._last_good = tidy(answer.seeds)
        elif news:
            emit = log.warning if answer.failed else log.info
            emit("discovery_found_nobody", reason=answer.reason, kept=len(self._last_good))

"""``kvnode lock``: run a command while a lock is held, and only then."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Final

import typer

from kvnode.cli.output import (
    DEFAULT_ADDR,
    DEFAULT_TIMEOUT_S,
    HttpAddr,
    TimeoutOption,
    command_line,
    fail,
    say,
)
from kvnode.cli.tls_options import base_addresses, current_tls
from kvnode.client import KvnodeClient
from kvnode.client.locks import Held, Lease, Mutex, Semaphore, first_loss
from kvnode.errors import BadRequest, KvnodeError

KILL_GRACE_S: Final = 5.0
"""Between SIGTERM and SIGKILL, for a command whose lock is lost."""
CLEAN_UP_S: Final = 5.0
NOT_HELD: Final = 1
_FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def lock(
    name: Annotated[str, typer.Argument(help="Prefix of the lock's keys, such as locks/backup.")],
    command: Annotated[
        list[str],
        typer.Argument(
            help="What to run: one word goes to the shell, several are run as they are."
        ),
    ],
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="So many may hold it at a time.")
    ] = 1,
    acquire_timeout: Annotated[
        float,
        typer.Option("--acquire-timeout", min=0, help="Seconds to wait for the lock; 0: for ever."),
    ] = 0,
    ttl: Annotated[
        float,
        typer.Option(
            "--ttl",
            min=1,
            max=86_400,
            help="Seconds without a renewal after which others may get the lock.",
        ),
    ] = 15,
    lock_delay: Annotated[
        float,
        typer.Option(
            "--lock-delay",
            min=0,
            max=60,
            help="Seconds for which nobody gets the lock after its holder was cut off.",
        ),
    ] = 15,
    label: Annotated[str, typer.Option("--label", help="Name of the session.")] = "",
    pass_stdin: Annotated[
        bool, typer.Option("--pass-stdin", help="Let the command read this one's input.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell what happens.")] = False,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Wait for a lock, run a command, release the lock.

    The command and what it started are ended (SIGTERM, five seconds later SIGKILL) when the lock is lost.
    Signals are passed on to them. The keys are those of consul lock: both exclude each other. Exit code: the
    command's, 128 + N when signal N ended it, 1 when the lock was not got or was lost.

    Examples: kvnode lock locks/backup ./backup.sh · kvnode lock -n 3 locks/build -- make -j4
    """  # fmt: skip
    if not name.strip("/"):
        fail("a lock needs a name", code=2)
    client = KvnodeClient(base_addresses(http_addr), timeout_s=timeout, tls=current_tls())
    lease = Lease(
        client,
        name=label or f"kvnode lock {name} at {socket.gethostname()}",
        ttl_s=ttl,
        delete=limit > 1,
        lock_delay_s=lock_delay,
    )
    value = socket.gethostname().encode()
    held: Held = (
        Mutex(client, name, lease, value)
        if limit == 1
        else Semaphore(client, name, lease, limit, value)
    )
    runner = _Runner(
        client,
        lease,
        held,
        command_line(command),
        acquire_timeout,
        pass_stdin=pass_stdin,
        verbose=verbose,
    )
    try:
        code = asyncio.run(runner.run())
    except BadRequest as error:
        fail(str(error), code=2)
    except KvnodeError as error:
        fail(str(error))
    raise typer.Exit(code)


class _Runner:
    """One run, from the session to its end."""

    def __init__(
        self,
        client: KvnodeClient,
        lease: Lease,
        held: Held,
        command: Sequence[str],
        timeout_s: float,
        *,
        pass_stdin: bool,
        verbose: bool,
    ) -> None:
        self._client = client
        self._lease = lease
        self._held = held
        self._command = command
        self._timeout_s = timeout_s
        self._pass_stdin = pass_stdin
        self._verbose = verbose
        self._child: asyncio.subprocess.Process | None = None
        self._interrupted = asyncio.Event()
        self._early: list[signal.Signals] = []
        """Signals that came before the command ran."""

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._signalled, number)
        async with self._client:
            await self._lease.begin()
            try:
                if not await self._acquire():
                    return NOT_HELD
                self._tell("the lock is held")
                return await self._run_child()
            finally:
                with suppress(KvnodeError, TimeoutError):
                    async with asyncio.timeout(CLEAN_UP_S):
                        await self._lease.end()

    def _signalled(self, number: signal.Signals) -> None:
        """Before the lock is held, a signal ends the waiting; afterwards it is the command's."""
        if self._child is None:
            self._early.append(number)
            self._interrupted.set()
        elif self._child.returncode is None:
            self._signal(self._child, number)

    def _signal(self, child: asyncio.subprocess.Process, number: signal.Signals) -> None:
        """Signal the command and all that it started; without a group of its own, the command alone."""
        with suppress(ProcessLookupError):
            if self._pass_stdin:
                child.send_signal(number)
            else:
                os.killpg(child.pid, number)

    async def _acquire(self) -> bool:
        self._tell("waiting for the lock")
        waiting = asyncio.create_task(self._held.acquire())
        ended = asyncio.create_task(self._lease.lost())
        interrupted = asyncio.create_task(self._interrupted.wait())
        tasks = {waiting, ended, interrupted}
        try:
            await asyncio.wait(
                tasks, timeout=self._timeout_s or None, return_when=asyncio.FIRST_COMPLETED
            )
            if waiting.done():
                waiting.result()
                return not self._interrupted.is_set()
            if ended.done():
                say(f"kvnode: {ended.result()}")
            elif not interrupted.done():
                say(f"kvnode: the lock was not to be had within {self._timeout_s:g} s")
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_child(self) -> int:
        environment = {**os.environ, "KVNODE_LOCK_HELD": "true", "CONSUL_LOCK_HELD": "true"}
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                env=environment,
                stdin=None if self._pass_stdin else asyncio.subprocess.DEVNULL,
                # Who reads a terminal has to stay in its foreground group.
                process_group=None if self._pass_stdin else 0,
            )
        except OSError as error:
            await self._release()
            fail(f"{self._command[0]}: {error.strerror}", code=127)
        self._child = child
        for number in self._early:  # it may run by itself before we hear that it does
            self._signalled(number)
        running = asyncio.create_task(child.wait())
        lost = asyncio.create_task(first_loss(self._lease, self._held))
        await asyncio.wait((running, lost), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
            await self._release()
            return _exit_code(running.result())
        say(f"kvnode: the lock is lost: {lost.result()}; the command is ended")
        await self._end_child(child, running)
        return NOT_HELD

    async def _end_child(
        self, child: asyncio.subprocess.Process, running: asyncio.Task[int]
    ) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(child, number)
            await asyncio.wait((running,), timeout=KILL_GRACE_S)
            if running.done():
                return

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                await self._held.release()
        except (KvnodeError, TimeoutError) as error:
            say(f"kvnode: the lock was not released, and is free once its session ends: {error}")
        else:
            self._tell("the lock is released")

    def _tell(self, text: str) -> None:
        if self._verbose:
            say(text)


def _exit_code(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned

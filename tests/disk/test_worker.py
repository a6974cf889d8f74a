"""Laws of ``kvnode.disk.worker``."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kvnode.disk.worker import ThreadWorker
from kvnode.errors import DiskFailed, InvariantBroken, KvnodeError, MustStop, Overloaded
from kvnode.ports import Worker


async def test_jobs_run_in_order_off_the_loop_and_complete_on_it() -> None:
    worker: Worker = ThreadWorker(asyncio.get_running_loop())
    finished = asyncio.Event()
    seen: list[tuple[object, KvnodeError | None]] = []
    threads: set[int] = set()

    def done(value: object, error: KvnodeError | None) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((value, error))
        if len(seen) == 50:
            finished.set()

    def job(number: int) -> int:
        threads.add(threading.get_ident())
        return number

    for number in range(50):
        worker.submit(lambda number=number: job(number), done)  # type: ignore[misc]
    assert seen == []
    async with asyncio.timeout(10):
        await finished.wait()
    assert seen == [(number, None) for number in range(50)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert isinstance(worker, ThreadWorker)
    worker.close()


async def test_errors_arrive_as_they_are_and_bugs_as_broken_invariants() -> None:
    worker = ThreadWorker(asyncio.get_running_loop())
    errors: asyncio.Queue[KvnodeError | None] = asyncio.Queue()
    failure = DiskFailed("x")

    def fail() -> None:
        raise failure

    worker.submit(fail, lambda _, error: errors.put_nowait(error))
    worker.submit(lambda: 1 // 0, lambda _, error: errors.put_nowait(error))
    async with asyncio.timeout(10):
        assert await errors.get() is failure
        broken = await errors.get()
    assert isinstance(broken, InvariantBroken)
    assert isinstance(broken.__cause__, ZeroDivisionError)
    worker.close()


@pytest.mark.parametrize("error", [ValueError("x"), DiskFailed("x"), AssertionError("x")])
async def test_a_completion_that_breaks_off_stops_the_node(error: Exception) -> None:
    """What it should have begun, nobody would begin again; the agent ends at these."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Queue[Exception] = asyncio.Queue()
    loop.set_exception_handler(lambda _, context: seen.put_nowait(context["exception"]))
    worker = ThreadWorker(loop)

    def broken(_value: None, _error: KvnodeError | None) -> None:
        raise error

    worker.submit(lambda: None, broken)
    async with asyncio.timeout(10):
        found = await seen.get()
    worker.close()
    assert isinstance(found, MustStop | AssertionError)
    assert error in (found, found.__cause__)


async def test_close_finishes_the_jobs_that_wait_and_refuses_others() -> None:
    worker = ThreadWorker(asyncio.get_running_loop(), jobs_max=3)
    results: asyncio.Queue[tuple[int | None, KvnodeError | None]] = asyncio.Queue()
    gate = threading.Event()

    def put(value: int | None, error: KvnodeError | None) -> None:
        results.put_nowait((value, error))

    worker.submit(lambda: int(gate.wait(10)), put)
    for number in range(20):
        worker.submit(lambda number=number: number, put)  # type: ignore[misc]
    gate.set()
    worker.close()
    worker.submit(lambda: 99, put)
    async with asyncio.timeout(10):
        found = [await results.get() for _ in range(22)]
    values = [value for value, error in found if error is None]
    refused = [error for _, error in found if error is not None]
    assert 1 in values
    assert len(values) in (3, 4)  # the first job may still have counted as a waiting one
    assert all(isinstance(e, Overloaded) and e.took_effect == "no" for e in refused)

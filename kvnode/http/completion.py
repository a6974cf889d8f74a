"""What a completion call-back was given; and from one to an awaitable, for the routes that are not hot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from kvnode.errors import KvnodeError
from kvnode.ports import Done

if TYPE_CHECKING:
    from kvnode.replica.facade import Consistency, ReadView, ReplicaFacade
    from kvnode.store.store import Store

T = TypeVar("T")


def given(value: T | None, error: KvnodeError | None) -> T:
    """Return what a completion was called with, inside the place that turns errors into answers.

    Raises:
        KvnodeError: What it was called with instead.
    """
    if value is None:
        assert error is not None
        raise error
    return value


async def wait_for(ask: Callable[[Done[T]], None]) -> T:
    """Call ``ask`` with a completion and wait for it.

    A cancelled waiter does not undo what was asked: the late completion falls on the floor.

    Raises:
        KvnodeError: What the completion was called with.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(value: T | None, error: KvnodeError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    ask(done)
    result: T = await future
    return result


async def read_store(
    replica: ReplicaFacade, consistency: Consistency, look: Callable[[Store], T]
) -> T:
    """Look at the store while it may be read, and only then (RC-35).

    Raises:
        KvnodeError: It may not be read.
    """

    def ask(done: Callable[[T | None, KvnodeError | None], None]) -> None:
        def ready(view: ReadView | None, error: KvnodeError | None) -> None:
            if view is None:
                done(None, error)
                return
            try:
                found = look(replica.store)
            except KvnodeError as problem:
                done(None, problem)
            else:
                done(found, None)

        replica.read(consistency, ready)

    return await wait_for(ask)

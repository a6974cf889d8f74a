"""From a completion call-back to an awaitable, for the routes that are not hot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from kvnode.errors import KvnodeError
from kvnode.ports import Done

T = TypeVar("T")


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

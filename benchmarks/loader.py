"""Writes many keys once: a bounded number of keep-alive connections, bounded in time.

wrk repeats for a while and cannot say "these keys, once"; this can. Not used for any timing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from benchmarks.processes import HarnessError


async def _work(host: str, port: int, requests: Iterator[bytes], proof: bytes) -> int:
    """Send requests from the shared iterator one after the other; return how many were proved."""
    reader, writer = await asyncio.open_connection(host, port)
    done = 0
    try:
        for request in requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b" ", 2)[1]
            body = await reader.readexactly(_content_length(head))
            if status != b"200" or proof not in body:
                raise HarnessError(f"a write was answered {status!r} {body[:200]!r}")
            done += 1
    finally:
        writer.close()
    return done


def _content_length(head: bytes) -> int:
    """Return the length of the body that follows ``head``.

    Raises:
        HarnessError: no such header (a chunked answer), which none of the systems gives to a write.
    """
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise HarnessError(f"an answer without Content-Length: {head!r}")


async def _load(
    port: int, requests: Iterable[bytes], proof: str, connections: int, timeout_s: float
) -> int:
    shared = iter(requests)
    async with asyncio.timeout(timeout_s):
        return sum(
            await asyncio.gather(
                *(_work("127.0.0.1", port, shared, proof.encode()) for _ in range(connections))
            )
        )


def load(
    port: int, requests: Iterable[bytes], proof: str, *, connections: int = 32, timeout_s: float
) -> int:
    """Send every request once to ``127.0.0.1:port`` and return their number.

    Args:
        port: Where to send them.
        requests: Whole HTTP requests; taken one by one, so a generator may be as long as it likes.
        proof: Text that every answer's body must contain.
        connections: Requests under way at any time, at most.
        timeout_s: For all of it.

    Raises:
        HarnessError: an answer was not the expected one, or the time was up; some writes may have
            been made.
    """
    try:
        return asyncio.run(_load(port, requests, proof, connections, timeout_s))
    except TimeoutError as error:
        raise HarnessError(f"loading was not done within {timeout_s:.0f} s") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise HarnessError(f"loading was cut off: {error}") from error

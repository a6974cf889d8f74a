"""What takes a connection of its own for a while: one question to an address, one snapshot to a peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvnode.addresses import Address
from kvnode.errors import KvnodeError, PeerUnreachable, Timeout
from kvnode.ports import Done, Hello
from kvnode.raft.types import SnapshotMeta
from kvnode.transport.connection import Connection
from kvnode.transport.handshake import Lane
from kvnode.transport.peer import Peer, PeerOwner, dial
from kvnode.transport.snapshot_stream import Outgoing


async def ask(
    owner: PeerOwner,
    address: Address,
    method: str,
    payload: Any,
    deadline: float,
    done: Done[tuple[Hello, Any]],
) -> None:
    """Ask whoever lives at ``address``; ``done`` is called exactly once, at the latest at ``deadline``."""
    connection: Connection | None = None
    error: KvnodeError
    try:
        async with asyncio.timeout_at(deadline):
            connection = await dial(owner, [address], Lane.ASK, "")
        answer: asyncio.Future[tuple[Any, KvnodeError | None]] = owner.loop.create_future()

        def answered(value: Any, problem: KvnodeError | None) -> None:
            if not answer.done():
                answer.set_result((value, problem))

        connection.request(method, payload, deadline, answered)
        value, problem = await answer
        if problem is None:
            assert connection.peer is not None, "dial returns greeted connections"
            done((connection.peer, value), None)
            return
        error = problem
    except TimeoutError:
        error = Timeout(f"{address} was not reached in time", took_effect="no")
    except KvnodeError as failure:
        error = failure
    except asyncio.CancelledError:
        done(None, PeerUnreachable("this node is stopping", took_effect="unknown"))
        raise
    finally:
        if connection is not None:
            connection.close("answered")
    done(None, error)


async def stream(
    owner: PeerOwner,
    peer: Peer,
    term: int,
    meta: SnapshotMeta,
    next_chunk: Callable[[Done[bytes]], None],
    done: Callable[[KvnodeError | None], None],
) -> None:
    """Send one snapshot; ``done`` is called exactly once."""
    connection: Connection | None = None
    error: KvnodeError | None = None
    try:
        connection = await dial(owner, peer.candidates, Lane.SNAPSHOT, peer.node_id)
        await Outgoing(connection).run(term, meta, next_chunk)
    except KvnodeError as failure:
        error = failure
    except asyncio.CancelledError:
        done(PeerUnreachable("this node is stopping"))
        raise
    finally:
        if connection is not None:
            connection.abort("snapshot stream finished")
    done(error)

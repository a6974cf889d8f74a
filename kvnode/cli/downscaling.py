"""``kvnode operator scale``: remove members one by one, ahead of a smaller StatefulSet."""

from __future__ import annotations

import asyncio

from kvnode.cli.output import say
from kvnode.client import KvnodeClient, RaftPeer
from kvnode.errors import BadRequest, NotNow
from kvnode.ports import Scale

_PAUSE_S = 0.5


async def scale_down(
    kv: KvnodeClient,
    replicas: int,
    statefulset: str,
    first_ordinal: int,
    readmit_s: float,
    timeout_s: float,
) -> list[str]:
    """Remove whoever is one too many, from the top; return the names.

    Raises:
        BadRequest: The StatefulSet's name is not given and not certain.
        NotNow: Somebody could not be spared within ``timeout_s``.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    removed: list[str] = []
    name = statefulset or _only_statefulset(await kv.raft_peers())
    scale = Scale(name, replicas, first_ordinal)
    while True:
        try:
            peers = await kv.raft_peers()
        except NotNow as error:
            # It may be the node that was just removed; behind a Service the next one answers.
            if loop.time() >= deadline:
                raise
            say(f"asked again: {error}")
            await asyncio.sleep(_PAUSE_S)
            continue
        surplus = [peer for peer in peers if scale.is_surplus(peer.name)]
        if not surplus:
            return removed
        if not any(peer.voter and not scale.is_surplus(peer.name) for peer in peers):
            raise BadRequest(f"no voter would be left: {name} has no pod below {replicas}")
        highest = max(surplus, key=lambda peer: scale.ordinal(peer.name) or 0)
        try:
            await kv.remove_peer(node_id=highest.node_id, readmit_s=readmit_s)
        except NotNow as error:
            # Perhaps it worked: the list says so. Else the change before is not committed yet, or who
            # is left is no majority at the moment.
            if loop.time() >= deadline:
                raise
            say(f"{highest.name} not yet: {error}")
            await asyncio.sleep(_PAUSE_S)
            continue
        removed.append(highest.name)
        say(f"removed {highest.name} ({highest.node_id})")


def _only_statefulset(peers: tuple[RaftPeer, ...]) -> str:
    """The part before the ordinal that all voters have in common."""
    names = {peer.name.rpartition("-")[0] for peer in peers if peer.voter}
    if len(names) != 1 or "" in names:
        raise BadRequest(f"--statefulset: give its name; the voters are called {sorted(names)}")
    return names.pop()

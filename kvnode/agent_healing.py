"""Lets a node with damaged data start over, and only when its cluster can do without them.

With ``--heal-corruption`` a node that finds its data damaged at start sets them aside, deletes nothing, and
comes back as a new incarnation, which joins through a learner and copies everything from the leader
(RC-49, RC-71). The votes and entries that the old incarnation promised are thereby gone for the
cluster. That is safe as long as the others are a quorum without it, so this is asked first: a leader
that a quorum confirms in a round that begins after this node went down has a quorum of others (RC-17, RC-31).
A leader's own word would not do, it steps down a while after it has lost its quorum only. Nobody who
answers like that: nothing is touched.

The new incarnation never founds a cluster (``DataDir.may_found``): if all nodes were damaged at once, they
wait for each other, with all data aside, instead of beginning anew with none.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, NamedTuple

import structlog

from kvnode.agent_settings import discovery, peer_address, resolver
from kvnode.agent_tls import Security
from kvnode.config import Config
from kvnode.disk.data_dir import DataDir
from kvnode.disk.files import OsFileSystem
from kvnode.disk.quarantine import check_room, known_cluster
from kvnode.errors import CorruptLog, DiskFailed, KvnodeError
from kvnode.ports import Hello
from kvnode.raft.types import NodeId
from kvnode.transport.handshake import PROTOCOL
from kvnode.transport.tcp import TcpTransport

_LOG = structlog.get_logger("kvnode.agent")

LEADER_WAIT_S = 30.0
"""How long a leader is looked for: the others may be electing one."""
ASK_TIMEOUT_S = 2.0
ADDRESSES_MAX = 64


class Leadership(NamedTuple):
    """Somebody who leads, and whom a quorum has confirmed."""

    cluster_id: str
    node_id: NodeId
    name: str
    term: int


async def heal(config: Config, error: CorruptLog) -> bool:
    """Set damaged data aside if the cluster can do without. False: nothing was touched; it is logged why."""
    files = OsFileSystem()
    try:
        check_room(files, config.data_dir)
        found = await _confirmed_leader(config, known_cluster(files, config.data_dir))
        if isinstance(found, str):
            _LOG.error("healing_refused", reason=found)
            return False
        path = DataDir.set_damaged_aside(config.data_dir, error)
    except DiskFailed as problem:
        _LOG.error("healing_refused", reason=str(problem))
        return False
    _LOG.warning("damaged_data_set_aside", error=str(error), path=path, leader=found.name)
    return True


async def _confirmed_leader(config: Config, cluster_id: str) -> Leadership | str:
    """Find a leader that has a quorum without this node, or say why there is none."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LEADER_WAIT_S
    while True:
        found = await _ask_all(config, cluster_id)
        if isinstance(found, Leadership) or loop.time() > deadline:
            return found
        await asyncio.sleep(config.discovery_interval_s)


async def _ask_all(config: Config, cluster_id: str) -> Leadership | str:
    """Ask everybody whom discovery knows who leads."""
    seeds = discovery(config)
    hello = Hello(
        protocol=PROTOCOL,
        cluster_id="",
        node_id=NodeId(str(uuid.uuid4())),  # nobody that a peer could know, and be it only us
        name=config.node_name,
        boot=1,
        address=str(peer_address(config)),
        http_address="",
        expect=0,
    )
    security = Security(config)
    transport = TcpTransport(
        hello, resolve=resolver(config), tls=security.peers, secrets=security.secrets
    )
    try:
        addresses = [seed.address for seed in await seeds.lookup()][:ADDRESSES_MAX]
        answers = await asyncio.gather(*(_ask(transport, address) for address in addresses))
    finally:
        await seeds.close()
        await transport.close()
    leaders = [
        leader
        for leader in map(_leadership, answers)
        if leader is not None and leader.name != config.node_name
    ]
    if not addresses:
        return "no other node is known to ask; give --retry-join or --join-srv"
    ours = [leader for leader in leaders if not cluster_id or leader.cluster_id == cluster_id]
    if not ours:
        return (
            f"none of {len(addresses)} addresses is the leader of this node's cluster, confirmed by a quorum"
            " without this node"
        )
    if len({leader.cluster_id for leader in ours}) > 1:
        return "leaders of several clusters answer, and the damaged identity does not say which is ours"
    return max(ours, key=lambda leader: leader.term)


async def _ask(transport: TcpTransport, address: str) -> tuple[Hello, Any] | None:
    answered: asyncio.Future[tuple[Hello, Any] | None] = asyncio.get_running_loop().create_future()

    def done(value: tuple[Hello, Any] | None, _error: KvnodeError | None) -> None:
        if not answered.done():
            answered.set_result(value)

    transport.request_address(address, "lead", None, ASK_TIMEOUT_S, done)
    try:
        async with asyncio.timeout(2 * ASK_TIMEOUT_S):
            return await answered
    except TimeoutError:
        return None


def _leadership(answer: tuple[Hello, Any] | None) -> Leadership | None:
    """Read an answer to "lead": the term."""
    if answer is None:
        return None
    hello, term = answer
    if type(term) is int and hello.cluster_id:
        return Leadership(hello.cluster_id, hello.node_id, hello.name, term)
    return None

"""``kvnode members`` and ``kvnode operator``: who is in the cluster, and changes to that."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from kvnode.cli.downscaling import scale_down
from kvnode.cli.output import (
    DEFAULT_ADDR,
    DEFAULT_TIMEOUT_S,
    HttpAddr,
    Output,
    OutputOption,
    TimeoutOption,
    ask,
    emit_json,
    emit_table,
    fail,
    say,
)
from kvnode.client import KvnodeClient, Member, RaftPeer

app = typer.Typer(help="Look after the cluster.", no_args_is_help=True)
raft = typer.Typer(help="The Raft group: peers and leadership.", no_args_is_help=True)
app.add_typer(raft, name="raft")


def members(
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print the nodes that the asked one knows, and who leads.

    Examples: kvnode members · kvnode members --output json --http-addr localhost:8501
    """
    found, leader = ask(http_addr, timeout, _members)
    if output is Output.json:
        emit_json([dataclasses.asdict(m) | {"leader": m.address == leader} for m in found])
        return
    rows = [(m.name, m.address, m.status, _role(m, leader), m.build, m.node_id) for m in found]
    emit_table(("name", "address", "status", "role", "build", "id"), rows)


def _role(member: Member, leader: str) -> str:
    if member.address == leader:
        return "leader"
    return "read replica" if member.read_replica else ""


async def _members(kv: KvnodeClient) -> tuple[tuple[Member, ...], str]:
    return await kv.members(), await kv.leader()


@raft.command("list-peers")
def list_peers(
    stale: Annotated[
        bool, typer.Option("--stale", help="Ask this node alone, even without a leader.")
    ] = False,
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print the members of the Raft group.

    Examples: kvnode operator raft list-peers · kvnode operator raft list-peers --stale
    """
    peers = ask(http_addr, timeout, lambda kv: kv.raft_peers(stale=stale))
    if output is Output.json:
        emit_json([dataclasses.asdict(peer) for peer in peers])
        return
    rows = [
        (
            peer.name,
            peer.node_id,
            peer.address,
            "leader" if peer.leader else "follower",
            "true" if peer.voter else "false",
            str(peer.last_index) if peer.last_index else "-",
        )
        for peer in peers
    ]
    emit_table(("node", "id", "address", "state", "voter", "last_index"), rows)


@raft.command("transfer-leader")
def transfer_leader(
    to: Annotated[str, typer.Option("--to", "--id", help="Name or id of the voter to lead.")] = "",
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Hand leadership to a voter; without --to, to the one that is furthest ahead.

    Examples: kvnode operator raft transfer-leader · kvnode operator raft transfer-leader --to kvnode-1
    """

    async def transfer(kv: KvnodeClient) -> str:
        target = _one(await kv.raft_peers(), to) if to else None
        await kv.transfer_leadership(target.node_id if target else None)
        return target.name if target else "the voter that is furthest ahead"

    say(f"leadership was handed to {ask(http_addr, timeout, transfer)}")


@raft.command("remove-peer")
def remove_peer(
    name: Annotated[str, typer.Option("--name", help="Name of the member.")] = "",
    node_id: Annotated[str, typer.Option("--id", help="Id of the member.")] = "",
    address: Annotated[str, typer.Option("--address", help="Its peer address, host:port.")] = "",
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Remove a member for good: a node that will not come back. Its data directory is not touched.

    Refused where the voters that are left and reachable would be no majority. Should the node come
    back, it is told that it was removed, sets its data aside, and joins as a new member.

    Examples: kvnode operator raft remove-peer --name kvnode-4
    """
    given = [wanted for wanted in (name, node_id, address) if wanted]
    if len(given) != 1:
        fail("give exactly one of --name, --id and --address", code=2)

    async def remove(kv: KvnodeClient) -> RaftPeer:
        peer = _one(await kv.raft_peers(), given[0])
        await kv.remove_peer(node_id=peer.node_id)
        return peer

    peer = ask(http_addr, timeout, remove)
    say(f"removed {peer.name} ({peer.node_id})")


@app.command("scale")
def scale(
    to: Annotated[int, typer.Option("--to", min=1, help="How many pods there will be.")],
    statefulset: Annotated[
        str,
        typer.Option(
            "--statefulset", help="Name of the StatefulSet; by default that of the voters."
        ),
    ] = "",
    first_ordinal: Annotated[
        int, typer.Option("--first-ordinal", min=0, help="spec.ordinals.start.")
    ] = 0,
    readmit_after: Annotated[
        float,
        typer.Option("--readmit-after", min=0, max=3600, help="Seconds that the names stay out."),
    ] = 300.0,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for all of it.")
    ] = 120.0,
) -> None:
    """Remove the members that a StatefulSet of this size has no place for, ahead of scaling it down.

    One at a time from the top, and never below a majority that answers: whoever cannot be spared within the
    time ends this with code 1, and nothing is lost. The nodes stop; their names stay out for a while, so that
    they do not come back before the StatefulSet is smaller. Nothing to remove is success.

    Examples: kvnode operator scale --to 3 · kvnode operator scale --to 1 --statefulset kv-kvnode
    """
    removed = ask(
        http_addr,
        timeout,
        lambda kv: scale_down(kv, to, statefulset, first_ordinal, readmit_after, timeout),
    )
    say(f"{len(removed)} members removed" if removed else "nothing to do")


def _one(peers: tuple[RaftPeer, ...], wanted: str) -> RaftPeer:
    """Find the one peer of that name, id or address.

    Raises:
        typer.Exit: There is none, or the name is carried by two (an old incarnation beside a new one).
    """
    found = [peer for peer in peers if wanted in (peer.name, peer.node_id, peer.address)]
    if not found:
        fail(f"no such member: {wanted}; there are {', '.join(peer.name for peer in peers)}")
    if len(found) > 1:
        fail(f"{wanted} is not one member: {', '.join(peer.node_id for peer in found)}; give --id")
    return found[0]

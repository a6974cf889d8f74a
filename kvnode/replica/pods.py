"""``GET /pods``: ask every address who is there and what it holds, compare digests (RC-74)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kvnode.errors import KvnodeError
from kvnode.ports import Done, Hello
from kvnode.replica.facade import PodStatus

if TYPE_CHECKING:
    from kvnode.replica.replica import Replica

ASK_TIMEOUT_S = 1.0
"""Per round of questions; there are two."""
ADDRESSES_MAX = 64

UNREACHABLE = PodStatus(
    address="", reachable=False, error="", name="", node_id="", cluster_id="", role="", term=0,
    applied_index=0, lag=0, keys=0, digest_index=0, digest="",
)  # fmt: skip


def describe(replica: Replica) -> list[Any]:
    """This node's answer to the first question: role, term, applied index, number of keys."""
    raft = replica.raft
    role = "read-replica" if raft.id in raft.membership.read_replicas else raft.role.value
    return [role, raft.term, replica.store.applied_index, replica.store.count()]


def ask(replica: Replica, addresses: tuple[str, ...], done: Done[list[PodStatus]]) -> None:
    """Ask all addresses and all members; two rounds, both bounded in time."""
    book, membership = replica.book, replica.raft.membership
    members = [book.address(m) for m in membership.members if m.node_id != replica.raft.id]
    own = replica.own_member().address
    wanted = list(dict.fromkeys((own, *addresses, *members)))[:ADDRESSES_MAX]
    rows: dict[str, PodStatus] = {}

    def first(address: str, value: tuple[Hello, Any] | None, error: KvnodeError | None) -> None:
        rows[address] = _row(address, value, error)
        if len(rows) == len(wanted):
            _compare(replica, [rows[known] for known in wanted], done)

    for address in wanted:
        if address == own:
            replica.scheduler.call_soon(
                first, address, (replica.transport.hello, describe(replica)), None
            )
            continue
        replica.transport.request_address(
            address,
            "pod",
            None,
            ASK_TIMEOUT_S,
            partial(first, address),
        )


def _row(address: str, value: tuple[Hello, Any] | None, error: KvnodeError | None) -> PodStatus:
    if value is None:
        return UNREACHABLE._replace(address=address, error=str(error))
    hello, answer = value
    try:
        role, term, applied, keys = answer
        return PodStatus(
            address=address, reachable=True, error="", name=hello.name, node_id=hello.node_id,
            cluster_id=hello.cluster_id, role=str(role), term=int(term),
            applied_index=int(applied), lag=0, keys=int(keys), digest_index=0, digest="",
        )  # fmt: skip
    except (TypeError, ValueError):
        return UNREACHABLE._replace(address=address, error="its answer has the wrong form")


def _compare(replica: Replica, rows: list[PodStatus], done: Done[list[PodStatus]]) -> None:
    """Ask everybody for the digest at the newest index that all of them have applied."""
    seen: set[str] = set()
    unique = []
    for row in rows:
        # One node can be found at two addresses: by its DNS name and by what the membership says.
        if row.node_id and row.node_id in seen:
            continue
        seen.add(row.node_id)
        unique.append(row)
    cluster = replica.cluster_id
    ours = [row for row in unique if row.reachable and row.cluster_id == cluster and cluster]
    if not ours:
        done(unique, None)
        return
    common = min(row.applied_index for row in ours)
    newest = max(row.applied_index for row in ours)
    digests: dict[str, str] = {}

    def second(address: str, value: tuple[Hello, Any] | None, _error: KvnodeError | None) -> None:
        digest = value[1] if value is not None else ""
        digests[address] = digest if isinstance(digest, str) else ""
        if len(digests) == len(ours):
            done([_finish(row, digests, common, newest) for row in unique], None)

    for row in ours:
        if row.node_id == replica.raft.id:
            digest = replica.store.digest_at(common) or ""
            own = (replica.transport.hello, digest)
            replica.scheduler.call_soon(second, row.address, own, None)
            continue
        replica.transport.request_address(
            row.address,
            "digest",
            common,
            ASK_TIMEOUT_S,
            partial(second, row.address),
        )


def _finish(row: PodStatus, digests: dict[str, str], common: int, newest: int) -> PodStatus:
    if row.address not in digests:
        return row
    digest = digests[row.address]
    return row._replace(
        lag=newest - row.applied_index, digest=digest, digest_index=common if digest else 0
    )

"""``kvnode operator scale``: who is removed, in which order, and when it gives up."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.cli import downscaling
from kvnode.cli.downscaling import scale_down
from kvnode.client import RaftPeer
from kvnode.errors import BadRequest, NotNow


def peer(name: str, *, voter: bool = True) -> RaftPeer:
    return RaftPeer(
        name=name,
        node_id=f"id-{name}",
        address=f"{name}:1",
        leader=False,
        voter=voter,
        last_index=1,
    )


class Client:
    """A cluster that removes whom it is told to; ``refusals`` come first."""

    def __init__(self, *peers: RaftPeer, refusals: int = 0) -> None:
        self.peers = list(peers)
        self.refusals = refusals
        self.removed: list[tuple[str, float]] = []

    async def raft_peers(self) -> tuple[RaftPeer, ...]:
        return tuple(self.peers)

    async def remove_peer(self, *, node_id: str, readmit_s: float) -> None:
        if self.refusals:
            self.refusals -= 1
            raise NotNow("the voters that would be left do not answer")
        self.removed.append((node_id, readmit_s))
        self.peers = [p for p in self.peers if p.node_id != node_id]


async def scaled(client: Client, to: int, *, name: str = "", timeout_s: float = 5.0) -> list[str]:
    kv: Any = client
    return await scale_down(kv, to, name, 0, 60.0, timeout_s)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downscaling, "_PAUSE_S", 0.01)


async def test_from_the_top_one_at_a_time_and_nobody_else() -> None:
    readers = [peer(f"kv-read-{n}", voter=False) for n in range(5)]
    client = Client(*[peer(f"kv-{n}") for n in (0, 1, 2, 9, 10)], *readers)
    assert await scaled(client, 2) == ["kv-10", "kv-9", "kv-2"]
    assert {readmit for _, readmit in client.removed} == {60.0}
    assert await scaled(client, 2) == []


async def test_a_refusal_is_tried_again_until_the_time_is_over() -> None:
    client = Client(peer("kv-0"), peer("kv-1"), refusals=3)
    assert await scaled(client, 1) == ["kv-1"]
    client = Client(peer("kv-0"), peer("kv-1"), refusals=10**6)
    with pytest.raises(NotNow, match="do not answer"):
        await scaled(client, 1, timeout_s=0.05)
    assert len(client.peers) == 2


async def test_a_name_that_is_not_certain_must_be_given() -> None:
    client = Client(peer("kv-0"), peer("other-1"))
    with pytest.raises(BadRequest, match="--statefulset"):
        await scaled(client, 1)
    assert await scaled(client, 1, name="other") == ["other-1"]


async def test_somebody_must_be_left() -> None:
    with pytest.raises(BadRequest, match="no voter would be left"):
        await scaled(Client(peer("kv-3"), peer("kv-4")), 3)

"""``/health/leader``: 200 from the confirmed leader only."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from kvnode.errors import NoLeader
from kvnode.http import health
from kvnode.http.context import HttpContext, HttpSettings
from kvnode.http.messages import Request, Response
from kvnode.raft.types import Role
from kvnode.replica.facade import Consistency
from tests.http.fake_replica import OTHER, FakeReplica


async def ask(replica: FakeReplica) -> Response:
    context = HttpContext(replica=replica, settings=HttpSettings(node_name="kvnode-0"))  # type: ignore[arg-type]
    request = Request("GET", b"/health/leader", b"", CIMultiDict(), b"")
    return await health.HealthRoutes(context).leader(request)


async def test_the_leader_says_so_once_a_majority_confirmed_it() -> None:
    replica = FakeReplica()
    answer = await ask(replica)
    assert (answer.status, answer.body.splitlines()[0]) == (200, b"leading")
    assert replica.reads == [Consistency.CONSISTENT]


async def test_a_follower_says_who_leads_and_asks_nobody() -> None:
    replica = FakeReplica()
    replica.state = replica.state._replace(
        role=Role.FOLLOWER, leader_id=OTHER, leader_name="kvnode-1"
    )
    answer = await ask(replica)
    assert answer.status == 503
    assert b"kvnode-1 leads" in answer.body
    assert replica.reads == []


async def test_a_leader_that_is_cut_off_does_not_claim_to_lead() -> None:
    replica = FakeReplica()
    replica.read_error = NoLeader("No cluster leader")
    assert (await ask(replica)).status == 503


async def test_a_leader_that_is_not_confirmed_in_time_does_not_claim_to_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "CONFIRM_S", 0.02)
    replica = FakeReplica()
    replica.held = []
    answer = await ask(replica)
    assert answer.status == 503
    assert b"no majority confirmed it within" in answer.body
    replica.release()


async def test_a_stopping_leader_is_none() -> None:
    replica = FakeReplica()
    replica.state = replica.state._replace(state="stopping", reason="this node is shutting down")
    assert (await ask(replica)).status == 503

"""A read replica is shown as one, wherever members are listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from kvnode.client.results import parse_members
from kvnode.http.agent import AgentRoutes
from kvnode.http.context import HttpContext, HttpSettings
from kvnode.http.messages import Request
from kvnode.http.operator import OperatorRoutes
from tests.http.fake_replica import ME, OTHER, FakeReplica

GET = Request("GET", b"", b"", CIMultiDict(), b"")


@pytest.fixture
def context() -> HttpContext:
    """Two members: the second is a read replica."""
    replica = FakeReplica()
    first, second = replica.state.members
    second = second._replace(voter=False, read_replica=True)
    replica.state = replica.state._replace(members=(first, second))
    return HttpContext(replica=replica, settings=HttpSettings(node_name="kvnode-0"))  # type: ignore[arg-type]


async def test_in_the_configuration_it_does_not_vote(context: HttpContext) -> None:
    operator: Any = OperatorRoutes(context)
    body = json.loads((await operator.configuration(GET)).body)
    assert [(s["Node"], s["Voter"]) for s in body["Servers"]] == [
        ("kvnode-0", True),
        ("kvnode-1", False),
    ]


async def test_among_the_members_it_has_a_tag(context: HttpContext) -> None:
    agent: Any = AgentRoutes(context, None)  # type: ignore[arg-type]
    body = (await agent.members(GET)).body
    assert [m.read_replica for m in parse_members(body)] == [False, True]


async def test_in_the_autopilots_state_it_has_a_type_and_a_list(context: HttpContext) -> None:
    operator: Any = OperatorRoutes(context)
    body = json.loads((await operator.state(GET)).body)
    kinds = {node: server["NodeType"] for node, server in body["Servers"].items()}
    assert kinds == {ME: "voter", OTHER: "read-replica"}
    assert body["ReadReplicas"] == [OTHER]

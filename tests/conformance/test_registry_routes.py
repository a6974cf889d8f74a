"""Spec §10, §11: services and checks registered with an agent, the catalog, health, and waiting for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.conformance.conftest import Target
from tests.conformance.wire import Answer, Wire

LONG = "1h"


class Agent:
    """Registers, and cleans up."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._services: list[str] = []

    async def register(self, name: str, **members: Any) -> Answer:
        self._services.append(str(members.get("ID", name)))
        body = json.dumps({"Name": name, **members})
        return await self._wire("PUT", "/v1/agent/service/register", body)

    async def put(self, path: str, body: str = "") -> Answer:
        return await self._wire("PUT", path, body)

    async def get(self, path: str) -> Any:
        answer = await self._wire("GET", path)
        assert answer.status == 200, answer.text
        return answer.json

    async def clean(self) -> None:
        for service in self._services:
            await self._wire("PUT", f"/v1/agent/service/deregister/{service}")


@pytest.fixture
async def agent(wire: Wire) -> AsyncIterator[Agent]:
    made = Agent(wire)
    yield made
    await made.clean()


async def test_the_servers_are_nodes_of_the_catalog(agent: Agent, wire: Wire) -> None:
    """Test harnesses wait for this."""
    answer = await wire("GET", "/v1/catalog/nodes")
    assert answer.index >= 2
    assert answer.headers["x-consul-knownleader"] == "true"
    assert list(answer.json[0]) == [
        "ID", "Node", "Address", "Datacenter", "TaggedAddresses", "Meta", "CreateIndex",
        "ModifyIndex",
    ]  # fmt: skip
    assert (await agent.get("/v1/catalog/services"))["consul"] == []
    [check] = [
        c for c in await agent.get("/v1/health/node/kvnode-0") if c["CheckID"] == "serfHealth"
    ]
    assert (check["Status"], check["Output"]) == ("passing", "Agent alive and reachable")
    assert await agent.get("/v1/catalog/datacenters") == ["dc1"]


async def test_a_service_from_its_registration_to_its_end(agent: Agent) -> None:
    """Spec §10."""
    answer = await agent.register(
        "life", ID="l/1", Port=80, Tags=["a"], Check={"TTL": LONG}, enable_tag_override=True
    )
    assert (answer.status, answer.body) == (200, b"")
    assert (await agent.get("/v1/agent/services"))["l/1"]["EnableTagOverride"] is True
    check = (await agent.get("/v1/agent/checks"))["service:l/1"]
    assert (check["Status"], check["Type"], check["Definition"]) == ("critical", "ttl", {})
    assert await agent.get("/v1/health/service/life?passing") == []
    assert (await agent.put("/v1/agent/check/pass/service:l/1?note=fine")).status == 200
    [found] = await agent.get("/v1/health/service/life?passing")
    assert found["Checks"][-1]["Output"] == "fine"
    assert (await agent.get("/v1/agent/service/l/1"))["ContentHash"]
    assert (await agent.put("/v1/agent/service/deregister/l/1")).status == 200
    assert await agent.get("/v1/catalog/service/life") == []
    assert "service:l/1" not in await agent.get("/v1/agent/checks")


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("service/register", "{}", 400, "Missing service name"),
        ("service/register", '{"Name":"x","Port":"y"}', 400, "Request decode failed: json: cannot "
         "unmarshal string into Go struct field .Port of type int"),
        ("service/register", '{"Name":"x","Check":{"TTL":"9"}}', 400,
         'Request decode failed: time: missing unit in duration "9"'),
        ("service/register", '{"Name":"x","Address":"::"}', 400, "Invalid service address"),
        ("service/register", '{"Name":"x\\u0000"}', 400,
         "Invalid name or number in the registration"),
        ("service/register", '{"Name":"x","Kind":"connect-proxy"}', 400,
         "Invalid service: there is no service mesh here (Kind, Proxy, Connect)"),
        ("service/register", '{"Name":"x","Check":{"GRPC":"h:1","TTL":"1h"}}', 400,
         "Invalid check: gRPC checks are not implemented"),
        ("check/register", '{"Name":"x","TTL":"1h","ServiceID":"none"}', 500,
         'ServiceID "none" does not exist'),
        ("check/register", '{"TTL":"1h"}', 400, "Missing check name"),
        ("check/pass/none", "", 500, 'CheckID "none" does not have associated TTL'),
        ("check/update/none", '{"Status":"odd"}', 400, "Invalid check status: 'odd'"),
        ("service/deregister/", "", 500, "ServiceID missing"),
        ("maintenance", "", 400, "Missing value for enable"),
        ("maintenance?enable=x", "", 400, 'Invalid value for enable: "x"'),
        ("service/maintenance/none?enable=true", "", 404,
         'No service registered with ID "none"'),
    ],
)  # fmt: skip
async def test_what_an_agent_refuses(
    agent: Agent, wire: Wire, path: str, body: str, status: int, text: str
) -> None:
    before = (await wire("GET", "/v1/catalog/services")).index
    answer = await agent.put(f"/v1/agent/{path}", body)
    assert (answer.status, answer.text) == (status, text)
    assert (await wire("GET", "/v1/catalog/services")).index == before


async def test_the_members_own_registrations_are_not_an_agents(agent: Agent) -> None:
    """In Consul an agent does not know of them; here a session depends on the check."""
    await agent.put("/v1/agent/check/deregister/serfHealth")
    await agent.put("/v1/agent/service/deregister/consul")
    assert "consul" in await agent.get("/v1/catalog/services")
    assert "consul" not in await agent.get("/v1/agent/services")
    assert "serfHealth" not in await agent.get("/v1/agent/checks")


async def test_maintenance_takes_a_service_out_of_use(agent: Agent) -> None:
    await agent.register("idle", ID="m1")
    assert len(await agent.get("/v1/health/service/idle?passing")) == 1
    await agent.put("/v1/agent/service/maintenance/m1?enable=true&reason=why")
    check = (await agent.get("/v1/agent/checks"))["_service_maintenance:m1"]
    assert (check["Status"], check["Notes"], check["ServiceID"]) == ("critical", "why", "m1")
    assert await agent.get("/v1/health/service/idle?passing") == []
    await agent.put("/v1/agent/service/maintenance/m1?enable=false")
    assert len(await agent.get("/v1/health/service/idle?passing")) == 1


async def test_health_of_an_agents_services_speaks_in_codes(agent: Agent, wire: Wire) -> None:
    await agent.register("coded", ID="h1", Check={"TTL": LONG, "Status": "passing"})
    for report, status in (("pass", 200), ("warn", 429), ("fail", 503)):
        await agent.put(f"/v1/agent/check/{report}/service:h1")
        answer = await wire("GET", "/v1/agent/health/service/id/h1")
        assert answer.status == status
        assert (await wire("GET", "/v1/agent/health/service/name/coded")).status == status
    assert (await wire("GET", "/v1/agent/health/service/id/none")).status == 404


async def test_a_session_ends_with_the_check_that_it_is_bound_to(agent: Agent, wire: Wire) -> None:
    """Spec §5: in the very entry."""
    await agent.register("bound", ID="b1", Check={"TTL": LONG, "Status": "passing"})
    checks = {"NodeChecks": ["serfHealth"], "ServiceChecks": [{"ID": "service:b1"}]}
    body = json.dumps(checks | {"LockDelay": 0})
    made = (await agent.put("/v1/session/create", body)).json["ID"]
    assert (await wire("PUT", f"/v1/kv/bound/lock?acquire={made}", b"v")).text == "true"
    await agent.put("/v1/agent/check/fail/service:b1")
    assert await agent.get(f"/v1/session/info/{made}") == []
    [check] = await agent.get("/v1/health/checks/bound")
    [pair] = await agent.get("/v1/kv/bound/lock")
    assert "Session" not in pair
    assert pair["ModifyIndex"] == check["ModifyIndex"]
    refused = await agent.put("/v1/session/create", body)
    assert (refused.status, refused.text) == (500, "Check 'service:b1' is in critical state")
    await wire("DELETE", "/v1/kv/bound/lock")


async def test_a_service_wakes_for_its_own_changes_only(
    agent: Agent, wire: Wire, node: Target
) -> None:
    """Spec §2.4: woken by a check of an instance, and by nothing of another service."""
    await agent.register("woken", ID="w1", Check={"TTL": LONG, "Status": "passing"})
    index = (await wire("GET", "/v1/health/service/woken")).index
    other = Wire(node.host, node.port)
    waiting = asyncio.ensure_future(
        other("GET", f"/v1/health/service/woken?index={index}&wait=20s")
    )
    await agent.register("another", ID="w2")
    await agent.put("/v1/agent/check/pass/service:w1")  # as it was, but for an empty output
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    await agent.put("/v1/agent/check/warn/service:w1")
    answer = await asyncio.wait_for(waiting, 10)
    assert answer.index > index
    assert answer.json[0]["Checks"][-1]["Status"] == "warning"
    await other.close()


async def test_a_missing_service_wakes_when_it_is_registered(
    agent: Agent, wire: Wire, node: Target
) -> None:
    answer = await wire("GET", "/v1/catalog/service/fresh")
    other = Wire(node.host, node.port)
    path = f"/v1/catalog/service/fresh?index={answer.index}&wait=20s"
    waiting = asyncio.ensure_future(other("GET", path))
    await asyncio.sleep(0)
    await agent.register("fresh", ID="f1")
    answer = await asyncio.wait_for(waiting, 10)
    assert [found["ServiceID"] for found in answer.json] == ["f1"]
    await other.close()


async def test_a_wait_that_is_over_answers_what_there_is(wire: Wire) -> None:
    before = await wire("GET", "/v1/health/state/any")
    after = await wire("GET", f"/v1/health/state/any?index={before.index}&wait=50ms")
    assert (after.index, after.json) == (before.index, before.json)


async def test_filters_select(agent: Agent) -> None:
    await agent.register("sieve", ID="s1", Tags=["prod"], Meta={"team": "x"})
    await agent.register("sieve", ID="s2", Tags=["test"])

    async def ids(path: str, expression: str) -> set[str]:
        found = await agent.get(f"{path}?filter={quote(expression)}")
        items = found if isinstance(found, list) else [{"ID": name} for name in found]
        return {item.get("ServiceID") or item.get("ID") or item["Service"]["ID"] for item in items}

    assert await ids("/v1/catalog/service/sieve", "prod in ServiceTags") == {"s1"}
    assert await ids("/v1/health/service/sieve", 'Service.Meta.team == "x"') == {"s1"}
    assert await ids("/v1/agent/services", "Service == sieve and not prod in Tags") == {"s2"}
    names = await agent.get("/v1/catalog/services?filter=test+in+ServiceTags")
    assert names == {"sieve": ["test"]}
    node = await agent.get("/v1/catalog/node/kvnode-0?filter=ID+==+consul")
    assert set(node["Services"]) == {"consul"}
    assert await agent.get("/v1/catalog/nodes?filter=Node+==+nobody") == []


@pytest.mark.parametrize(
    "path", ["/v1/catalog/nodes", "/v1/health/state/any", "/v1/agent/services"]
)
async def test_what_is_no_filter_is_told(wire: Wire, agent: Agent, path: str) -> None:
    await agent.register("any")
    for expression in ("x+=", "None+==+x"):
        answer = await wire("GET", f"{path}?filter={expression}")
        assert answer.status == 400
        assert "expression evaluator" in answer.text or "is not valid" in answer.text

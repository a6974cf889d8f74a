"""``/v1/operator`` (spec §9), against a replica that a test sets."""

from __future__ import annotations

import json

import pytest

from kvnode.errors import MembershipRefused, NoLeader
from kvnode.replica.facade import ClusterHealth
from tests.http.conftest import Node
from tests.http.fake_replica import ME, OTHER

CONFIGURATION = "/v1/operator/autopilot/configuration"
FULL = {
    "CleanupDeadServers": False,
    "LastContactThreshold": "1.5s",
    "MaxTrailingLogs": 9,
    "MinQuorum": 3,
    "ServerStabilizationTime": "10s",
    "RedundancyZoneTag": "zone",
    "DisableUpgradeMigration": True,
    "UpgradeVersionTag": "build",
}


# -- raft


@pytest.mark.parametrize("query", [f"id={OTHER}", "address=10.0.0.2:8300", "name=kvnode-1"])
async def test_a_peer_is_removed_by_id_address_or_name(node: Node, query: str) -> None:
    answer = await node.wire("DELETE", f"/v1/operator/raft/peer?{query}")
    assert (answer.status, answer.body) == (200, b"")
    assert node.replica.removed == [OTHER]


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("", 400, "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove"),
        ("?id=a&address=b", 400, "Must specify only one of ?id or ?address"),
        ("?id=x", 500, 'id "x" was not found in the Raft configuration'),
        ("?address=x:1", 500, 'address "x:1" was not found in the Raft configuration'),
        ("?name=x", 500, 'name "x" was not found in the Raft configuration'),
    ],
)  # fmt: skip
async def test_who_is_no_peer_is_not_removed(
    node: Node, query: str, status: int, text: str
) -> None:
    answer = await node.wire("DELETE", f"/v1/operator/raft/peer{query}")
    assert (answer.status, answer.text) == (status, text)
    assert node.replica.removed == []


async def test_a_name_that_two_carry_needs_an_id(node: Node) -> None:
    """An old incarnation beside a new one."""
    members = node.replica.state.members
    node.replica.state = node.replica.state._replace(
        members=(members[0], members[1]._replace(name="kvnode-0"))
    )
    answer = await node.wire("DELETE", "/v1/operator/raft/peer?name=kvnode-0")
    assert answer.status == 500
    assert ME in answer.text
    assert OTHER in answer.text
    assert node.replica.removed == []


# -- autopilot configuration


async def test_the_parameters_are_shown_in_consuls_order(node: Node) -> None:
    answer = await node.wire("GET", CONFIGURATION)
    assert answer.text == (
        '{"CleanupDeadServers":true,"LastContactThreshold":"200ms","MaxTrailingLogs":250,"MinQuorum":0,'
        '"ServerStabilizationTime":"1s","RedundancyZoneTag":"","DisableUpgradeMigration":false,'
        '"UpgradeVersionTag":"","CreateIndex":0,"ModifyIndex":0}'
    )


async def test_what_is_put_is_shown(node: Node) -> None:
    answer = await node.wire("PUT", CONFIGURATION, json.dumps(FULL))
    assert (answer.status, answer.text) == (200, "true")
    found = (await node.wire("GET", CONFIGURATION)).json
    assert {name: found[name] for name in FULL} == FULL
    assert found["CreateIndex"] == found["ModifyIndex"] > 0


async def test_what_is_left_out_becomes_zero_and_names_fold_their_case(node: Node) -> None:
    """As in Consul; a duration may be a number of nanoseconds."""
    body = '{"lastcontactthreshold": 5000000, "ModifyIndex": 7}'
    assert (await node.wire("PUT", CONFIGURATION, body)).text == "true"
    found = (await node.wire("GET", CONFIGURATION)).json
    assert found["LastContactThreshold"] == "5ms"
    assert (found["CleanupDeadServers"], found["ServerStabilizationTime"]) == (False, "0s")


async def test_cas(node: Node) -> None:
    async def put(cas: int) -> str:
        return (await node.wire("PUT", f"{CONFIGURATION}?cas={cas}", "{}")).text

    assert await put(7) == "false"
    assert await put(0) == "true"
    assert await put(0) == "false"
    index = (await node.wire("GET", CONFIGURATION)).json["ModifyIndex"]
    assert await put(index) == "true"


@pytest.mark.parametrize(
    ("query", "body", "reason"),
    [
        ("", "", "Error parsing autopilot config: EOF"),
        ("", "[]", "Error parsing autopilot config: json: cannot unmarshal array"),
        ("", '{"CleanupDeadServers":"x"}',
         "Error parsing autopilot config: json: cannot unmarshal string into Go struct field "
         "AutopilotConfiguration.CleanupDeadServers of type bool"),
        ("", '{"LastContactThreshold":"abc"}',
         'Error parsing autopilot config: time: invalid duration "abc"'),
        ("", '{"LastContactThreshold":1.5}', "Error parsing autopilot config: LastContactThreshold"),
        ("", '{"MaxTrailingLogs":-1}',
         "Error parsing autopilot config: json: cannot unmarshal number -1 into Go struct field "
         "AutopilotConfiguration.MaxTrailingLogs of type uint64"),
        ("", '{"Nonsense":1}', 'Error parsing autopilot config: json: unknown field "Nonsense"'),
        ("?cas=abc", "{}",
         'Error parsing cas value: strconv.ParseUint: parsing "abc": invalid syntax'),
    ],
)  # fmt: skip
async def test_a_bad_change_changes_nothing(node: Node, query: str, body: str, reason: str) -> None:
    answer = await node.wire("PUT", CONFIGURATION + query, body)
    assert answer.status == 400
    assert answer.text.startswith(reason)
    assert node.replica.commands == []


async def test_without_a_leader_it_is_consuls_error(node: Node) -> None:
    node.replica.write_error = node.replica.read_error = NoLeader("No cluster leader")
    for method, path in (
        ("PUT", CONFIGURATION),
        ("GET", CONFIGURATION),
        ("GET", "/v1/operator/autopilot/health"),
        ("GET", "/v1/operator/usage"),
    ):
        answer = await node.wire(method, path, "{}" if method == "PUT" else "")
        assert (answer.status, answer.text) == (500, "No cluster leader"), path
    assert (await node.wire("GET", f"{CONFIGURATION}?stale")).status == 200


# -- health, state, usage, keyring


async def test_health_has_consuls_members(node: Node) -> None:
    answer = await node.wire("GET", "/v1/operator/autopilot/health")
    assert answer.status == 200
    assert list(answer.json) == ["Healthy", "FailureTolerance", "Servers"]
    second = answer.json["Servers"][1]
    since = second.pop("StableSince")
    assert second == {
        "ID": OTHER, "Name": "kvnode-1", "Address": "10.0.0.2:8300", "SerfStatus": "alive",
        "Version": "1.22.0", "Leader": False, "LastContact": "22ms", "LastTerm": 3,
        "LastIndex": 40, "Healthy": True, "Voter": True,
    }  # fmt: skip
    assert len(since) == len("2026-01-02T03:04:05Z")


async def test_ill_health_is_429_with_the_same_body(node: Node) -> None:
    good = node.replica.judgement
    sick = good.servers[1]._replace(healthy=False, alive=False)
    node.replica.judgement = ClusterHealth(False, 0, (good.servers[0], sick))
    answer = await node.wire("GET", "/v1/operator/autopilot/health")
    assert answer.status == 429
    assert answer.json["Healthy"] is False
    assert answer.json["Servers"][1]["SerfStatus"] == "failed"
    state = await node.wire("GET", "/v1/operator/autopilot/state")
    assert state.status == 200
    assert state.json["Servers"][OTHER]["NodeStatus"] == "failed"
    assert (state.json["Leader"], state.json["Voters"]) == (ME, [ME, OTHER])
    assert state.json["Servers"][ME]["Status"] == "leader"


async def test_usage_counts_nodes_and_their_service(node: Node) -> None:
    answer = await node.wire("GET", "/v1/operator/usage")
    counts = answer.json["Usage"]["dc1"]
    assert (counts["Nodes"], counts["Services"], counts["ServiceInstances"]) == (1, 1, 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
async def test_there_is_no_keyring(node: Node, method: str) -> None:
    answer = await node.wire(method, "/v1/operator/keyring")
    assert answer.status == 500
    assert "encryption not enabled" in answer.text


@pytest.mark.parametrize(
    "path", [CONFIGURATION, "/v1/operator/autopilot/health", "/v1/operator/usage"]
)
async def test_another_datacenter_is_unknown(node: Node, path: str) -> None:
    answer = await node.wire("GET", f"{path}?dc=elsewhere")
    assert (answer.status, answer.text) == (500, "No path to datacenter")


# -- members that go and come


async def test_force_leave(node: Node) -> None:
    answer = await node.wire("PUT", "/v1/agent/force-leave/kvnode-1")
    assert (answer.status, answer.body) == (200, b"")
    assert (await node.wire("PUT", "/v1/agent/force-leave/kvnode-1.dc1?prune")).status == 200
    assert node.replica.left == ["kvnode-1", "kvnode-1"]
    answer = await node.wire("PUT", "/v1/agent/force-leave/nobody")
    assert (answer.status, answer.text) == (500, "agent: No node found with name 'nobody'")


async def test_join(node: Node) -> None:
    answer = await node.wire("PUT", "/v1/agent/join/10.0.0.9:8300")
    assert (answer.status, answer.body) == (200, b"")
    assert node.replica.joined == ["10.0.0.9:8300"]
    node.replica.admin_error = MembershipRefused("it belongs to another cluster")
    answer = await node.wire("PUT", "/v1/agent/join/10.0.0.9")
    assert answer.status == 500
    assert "Failed to join 10.0.0.9: it belongs to another cluster" in answer.text

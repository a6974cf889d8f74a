"""Design §6: the plain API, pods, health, metrics, the page; spec §7, §9, §10 from status alone."""

from __future__ import annotations

import json

import pytest

from kvnode import errors
from kvnode.raft.types import Index
from kvnode.replica.facade import PodStatus
from kvnode.store.commands import KvSet
from tests.conformance.conftest import TTL_MIN_MS
from tests.conformance.wire import Kv, Wire
from tests.http.fake_replica import ME, OTHER, FakeReplica

# --- the plain API --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_body_in_body_out(kv: Kv, method: str) -> None:
    path = f"/kv/{kv.prefix}greeting"
    answer = await kv.wire(method, path, b"hello")
    assert (answer.status, answer.text) == (200, "stored\n")
    read = await kv.wire("GET", path)
    assert (read.status, read.body) == (200, b"hello")
    assert read.headers["x-kvnode-index"] == answer.headers["x-kvnode-index"]
    deleted = await kv.wire("DELETE", path)
    assert (deleted.status, deleted.text) == (200, "deleted\n")
    missing = await kv.wire("GET", path)
    assert (missing.status, missing.body) == (404, b"")


async def test_both_routes_share_the_keys(kv: Kv) -> None:
    await kv.put("a", "1", "flags=7")
    answer = await kv.wire("GET", f"/kv/{kv.prefix}a")
    assert (answer.body, answer.headers["x-kvnode-flags"]) == (b"1", "7")
    await kv.wire("PUT", f"/kv/{kv.prefix}a?flags=9", b"2")
    assert (await kv.entry("a"))["Flags"] == 9
    await kv.wire("PUT", f"/kv/{kv.prefix}a", b"2")
    assert (await kv.entry("a"))["Flags"] == 0, "as under /v1, a PUT without flags clears them"


async def test_plain_listing(kv: Kv) -> None:
    for key in ("a", "b/c", "b/d"):
        await kv.put(key, "1")
    answer = await kv.wire("GET", f"/kv/{kv.prefix}?keys")
    assert answer.json == [kv.prefix + key for key in ("a", "b/c", "b/d")]
    answer = await kv.wire("GET", f"/kv/{kv.prefix}?keys&separator=/")
    assert answer.json == [kv.prefix + key for key in ("a", "b/")]
    answer = await kv.wire("GET", f"/kv/{kv.prefix}none?keys")
    assert (answer.status, answer.json) == (200, [])


async def test_plain_cas_is_a_409_when_it_fails(kv: Kv) -> None:
    path = f"/kv/{kv.prefix}a"
    index = (await kv.wire("PUT", f"{path}?cas=0", b"1")).headers["x-kvnode-index"]
    refused = await kv.wire("PUT", f"{path}?cas=0", b"2")
    assert (refused.status, refused.text) == (409, "not changed: the key's index is not 0\n")
    assert (await kv.wire("DELETE", f"{path}?cas=1")).status == 409
    assert (await kv.wire("PUT", f"{path}?cas={index}", b"2")).status == 200


async def test_plain_delete_of_a_tree(kv: Kv) -> None:
    await kv.put("a/b", "1")
    assert (await kv.wire("DELETE", f"/kv/{kv.prefix}a/?recurse")).status == 200
    assert (await kv.get("a/b")).status == 404


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/kv/", 400),
        ("PUT", "/kv/", 400),
        ("PUT", "/kv/a?cas=x", 400),
        ("PUT", "/kv/a?flags=-1", 400),
        ("GET", "/kv/a?index=x", 400),
        ("GET", "/kv/%00", 400),
        ("PUT", "/kv/a//b", 307),
        ("PATCH", "/kv/a", 405),
    ],
)
async def test_plain_mistakes_are_4xx(wire: Wire, method: str, target: str, status: int) -> None:
    """Design §6: 500 never by design."""
    answer = await wire(method, target, b"x" if method == "PUT" else b"")
    assert answer.status == status


async def test_plain_without_a_leader_is_503(kv: Kv, fake: FakeReplica) -> None:
    fake.read_error = fake.write_error = errors.NoLeader()
    for method in ("GET", "PUT", "DELETE"):
        answer = await kv.wire(method, f"/kv/{kv.prefix}a", b"1" if method == "PUT" else b"")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.text == "No cluster leader\n"


# --- health ---------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["live", "ready", "startup"])
async def test_a_healthy_node_passes(wire: Wire, probe: str) -> None:
    answer = await wire("GET", f"/health/{probe}")
    assert answer.status == 200
    assert "FAIL" not in answer.text


@pytest.mark.parametrize(
    ("change", "status", "failed"),
    [
        ({"state": "stopping", "reason": "asked to stop"}, 503, "state"),
        ({"state": "joining"}, 503, "state"),
        ({"leader_id": None, "leader_lost_ms": 14_000}, 200, ""),
        ({"leader_id": None, "leader_lost_ms": 16_000}, 503, "leader"),
        ({"leader_id": None, "leader_lost_ms": 10, "catch_up_index": 0}, 503, "leader, applied"),
        ({"applied_index": 4}, 503, "applied"),
        ({"applied_index": 5}, 200, ""),
        ({"catch_up_index": 0}, 503, "applied"),
    ],
)
async def test_ready_names_the_check_that_failed(
    wire: Wire, fake: FakeReplica, change: dict[str, object], status: int, failed: str
) -> None:
    fake.state = fake.state._replace(**change)  # type: ignore[arg-type]
    answer = await wire("GET", "/health/ready")
    assert answer.status == status
    first = answer.text.splitlines()[0]
    assert first == (f"not ready: {failed}" if failed else "ready")


async def test_liveness_asks_nothing_but_the_loop(wire: Wire, fake: FakeReplica) -> None:
    """Kubernetes guide §7: a restart brings no quorum back."""
    fake.state = fake.state._replace(leader_id=None, leader_lost_ms=10**9, state="joining")
    assert (await wire("GET", "/health/live")).status == 200
    assert (await wire("GET", "/health/startup")).status == 200
    fake.state = fake.state._replace(state="starting", reason="replaying entry 7 of 9")
    answer = await wire("GET", "/health/startup")
    assert (answer.status, answer.text.splitlines()[0]) == (503, "not started: started")
    assert "replaying entry 7 of 9" in answer.text


# --- pods -----------------------------------------------------------------------------------


def pod(name: str, **changes: object) -> PodStatus:
    row = PodStatus(
        address=f"{name}.kvnode:8300",
        reachable=True,
        error="",
        name=name,
        node_id="id",
        cluster_id="c",
        role="follower",
        term=3,
        applied_index=42,
        lag=0,
        keys=7,
        digest_index=40,
        digest="ab" * 16,
    )
    return row._replace(**changes)  # type: ignore[arg-type]


async def test_pods_is_a_table_for_curl_and_json_by_accept(wire: Wire, fake: FakeReplica) -> None:
    fake.pod_rows = [
        pod("kvnode-1", lag=2),
        pod("", reachable=False, error="refused", address="10.0.0.3:8300"),
        pod("kvnode-0", role="leader"),
    ]
    answer = await wire("GET", "/pods", headers={"Accept": "*/*"})
    lines = answer.text.splitlines()
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert lines[0].split() == [
        "NAME",
        "ADDRESS",
        "ROLE",
        "TERM",
        "APPLIED",
        "LAG",
        "KEYS",
        "DIGEST",
    ]
    assert lines[1].split()[:3] == ["kvnode-0", "kvnode-0.kvnode:8300", "leader"]
    assert lines[2].split()[5] == "2"
    assert "unreachable: refused" in lines[3]
    assert lines[4] == "2 of 3 pods reachable; data equal at index 40"
    answer = await wire("GET", "/pods", headers={"Accept": "application/json"})
    assert [row["name"] for row in answer.json] == ["kvnode-0", "kvnode-1", ""]


async def test_pods_says_when_data_differs(wire: Wire, fake: FakeReplica) -> None:
    """RC-74."""
    fake.pod_rows = [pod("a"), pod("b", digest="cd" * 16)]
    assert "THE DATA DIFFERS" in (await wire("GET", "/pods")).text


# --- status, agent, operator ----------------------------------------------------------------


async def test_leader_and_peers_agree_with_self(wire: Wire) -> None:
    """Spec §7: a client suite checks it."""
    leader = (await wire("GET", "/v1/status/leader")).json
    assert leader in (await wire("GET", "/v1/status/peers")).json
    own = (await wire("GET", "/v1/agent/self")).json
    assert own["Stats"]["consul"]["leader_addr"] == leader


async def test_status_carries_no_query_headers(wire: Wire) -> None:
    """Spec §7."""
    answer = await wire("GET", "/v1/status/leader")
    assert "x-consul-index" not in answer.headers


async def test_agent_self_has_what_clients_read(wire: Wire) -> None:
    """Spec §10."""
    own = (await wire("GET", "/v1/agent/self")).json
    assert {"Config", "DebugConfig", "Coord", "Member", "Stats", "Meta"} <= set(own)
    config = own["Config"]
    assert config["Version"].split(".")[0] == "1"
    assert config["SessionTTLMin"] == TTL_MIN_MS * 10**6
    assert config["Datacenter"] == "dc1"
    raft = own["Stats"]["raft"]
    for name in [
        "state",
        "term",
        "last_log_index",
        "last_log_term",
        "commit_index",
        "applied_index",
        "fsm_pending",
        "last_contact",
        "num_peers",
        "last_snapshot_index",
        "last_snapshot_term",
        "latest_configuration",
    ]:
        assert isinstance(raft[name], str), name
    assert all(isinstance(v, str) for group in own["Stats"].values() for v in group.values())
    assert own["Member"]["Addr"]


async def test_members(wire: Wire, fake: FakeReplica) -> None:
    """Spec §10."""
    first, second = (await wire("GET", "/v1/agent/members?segment=_all")).json
    assert list(first) == [
        "Name",
        "Addr",
        "Port",
        "Tags",
        "Status",
        "ProtocolMin",
        "ProtocolMax",
        "ProtocolCur",
        "DelegateMin",
        "DelegateMax",
        "DelegateCur",
    ]
    assert (first["Name"], first["Addr"], first["Status"]) == ("kvnode-0", "10.0.0.1", 1)
    assert second["Status"] == 4, "not connected: failed"
    assert first["Tags"]["role"] == "consul"
    assert first["Tags"]["id"] == ME
    assert (await wire("GET", "/v1/agent/members?wan")).json[0]["Name"] == "kvnode-0.dc1"


async def test_raft_configuration(wire: Wire, fake: FakeReplica) -> None:
    """Spec §9."""
    document = (await wire("GET", "/v1/operator/raft/configuration")).json
    assert document["Index"] == 0
    assert document["Servers"][0] == {
        "ID": ME,
        "Node": "kvnode-0",
        "Address": "10.0.0.1:8300",
        "Leader": True,
        "ProtocolVersion": "3",
        "Voter": True,
        "LastIndex": 42,
    }


async def test_remove_peer(wire: Wire, fake: FakeReplica) -> None:
    """Spec §9."""
    path = "/v1/operator/raft/peer"
    answer = await wire("DELETE", path)
    assert answer.status == 400
    assert answer.text.startswith("Must specify either ?id with the server's ID or ?address")
    answer = await wire("DELETE", f"{path}?id=a&address=b")
    assert (answer.status, answer.text) == (400, "Must specify only one of ?id or ?address")
    answer = await wire("DELETE", f"{path}?id=x")
    assert (answer.status, answer.text) == (500, 'id "x" was not found in the Raft configuration')
    answer = await wire("DELETE", f"{path}?address=x:1")
    assert answer.text == 'address "x:1" was not found in the Raft configuration'
    assert fake.removed == []
    for query in (f"id={OTHER}", "address=10.0.0.2:8300"):
        answer = await wire("DELETE", f"{path}?{query}")
        assert (answer.status, answer.body) == (200, b"")
    assert fake.removed == [OTHER, OTHER]
    fake.admin_error = errors.MembershipRefused("two voters would not be a quorum")
    answer = await wire("DELETE", f"{path}?id={OTHER}")
    assert (answer.status, answer.text) == (500, "two voters would not be a quorum")


async def test_transfer_leader(wire: Wire, fake: FakeReplica) -> None:
    """Spec §9."""
    path = "/v1/operator/raft/transfer-leader"
    assert (await wire("POST", path)).json == {"Success": True}
    assert (await wire("POST", f"{path}?id={OTHER}")).json == {"Success": True}
    assert fake.transferred == [None, OTHER]
    assert (await wire("POST", f"{path}?id=x")).status == 500
    fake.admin_error = errors.BadRequest("there is no other voter")
    assert (await wire("POST", path)).status == 500


# --- metrics, pages -------------------------------------------------------------------------


async def test_metrics_count_requests_and_show_the_replica(kv: Kv) -> None:
    await kv.put("a", "1")
    await kv.get("a")
    body = (await kv.wire("GET", "/metrics")).text
    assert 'kvnode_http_requests_total{method="PUT",route="/v1/kv/",status="200"}' in body
    assert 'kvnode_http_request_duration_seconds_bucket{le="+Inf",route="/v1/kv/"}' in body
    for name in ("kvnode_raft_term", "kvnode_raft_applied_index", "kvnode_store_keys"):
        assert f"\n{name} " in body


async def test_agent_metrics_is_consuls_document(wire: Wire) -> None:
    """Spec §10."""
    document = (await wire("GET", "/v1/agent/metrics")).json
    assert list(document) == ["Timestamp", "Gauges", "Points", "Counters", "Samples"]
    assert any(gauge["Name"] == "kvnode_raft_term" for gauge in document["Gauges"])
    answer = await wire("GET", "/v1/agent/metrics?format=prometheus")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE kvnode_raft_term gauge" in answer.text


async def test_openapi_names_every_route(wire: Wire) -> None:
    answer = await wire("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    document = json.loads(answer.body)
    assert document["openapi"].startswith("3.")
    assert {"/v1/kv/{key}", "/kv/{key}", "/pods", "/health/ready"} <= set(document["paths"])


async def test_the_page_is_served_with_a_strict_policy(wire: Wire) -> None:
    page = await wire("GET", "/ui/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"http://" not in page.body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page.body
    script = await wire("GET", "/ui/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    again = await wire("GET", "/ui/app.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert (await wire("GET", "/ui/style.css")).headers["content-type"].startswith("text/css")
    assert (await wire("GET", "/ui/none.js")).status == 404
    assert (await wire("GET", "/ui/__init__.py")).status == 404


async def test_stored_keys_are_commands_of_the_log(kv: Kv, fake: FakeReplica) -> None:
    """What reaches the log is the decoded key and the exact bytes."""
    await kv.put("a b", b"\x00\xff", "flags=3&cas=0")
    assert fake.commands == [KvSet(f"{kv.prefix}a b".encode(), b"\x00\xff", 3, 0)]
    assert fake.store.applied_index > Index(0)

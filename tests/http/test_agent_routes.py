"""``/v1/agent`` and what is answered for the parts of Consul that are not here (spec §10, §12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from kvnode.http import host
from tests.http.conftest import Node, Start


async def test_self_has_what_clients_read(node: Node) -> None:
    """``consul info`` prints Stats; every value there is text."""
    document = (await node.wire("GET", "/v1/agent/self")).json
    assert list(document) == [
        "Config", "DebugConfig", "Coord", "Member", "Stats", "Meta", "xDS",
    ]  # fmt: skip
    assert document["Config"]["SessionTTLMin"] == 10**10
    assert document["Config"]["Version"].startswith("1.")
    stats = document["Stats"]
    assert list(stats) == ["agent", "build", "consul", "raft", "runtime", "serf_lan", "serf_wan"]
    assert all(isinstance(v, str) for group in stats.values() for v in group.values())
    assert stats["consul"]["leader"] == "true"
    assert stats["consul"]["leader_addr"] == (await node.wire("GET", "/v1/status/leader")).json
    for name in (
        "state", "term", "last_log_index", "last_log_term", "commit_index", "applied_index", "fsm_pending",
        "last_contact", "num_peers", "last_snapshot_index", "last_snapshot_term", "latest_configuration",
    ):  # fmt: skip
        assert name in stats["raft"], name
    assert stats["raft"]["state"] == "Leader"
    assert (stats["serf_lan"]["members"], stats["serf_lan"]["failed"]) == ("2", "1")


async def test_self_of_a_node_that_is_no_member_yet(node: Node) -> None:
    node.replica.state = node.replica.state._replace(members=())
    member = (await node.wire("GET", "/v1/agent/self")).json["Member"]
    assert (member["Name"], member["Status"], member["Addr"]) == ("kvnode-0", 0, "")
    assert member["Tags"]["role"] == "consul"


async def test_members(node: Node) -> None:
    found = (await node.wire("GET", "/v1/agent/members?segment=_all")).json
    assert [(m["Name"], m["Addr"], m["Port"], m["Status"]) for m in found] == [
        ("kvnode-0", "10.0.0.1", 8300, 1),
        ("kvnode-1", "10.0.0.2", 8300, 4),
    ]
    wan = (await node.wire("GET", "/v1/agent/members?wan=1")).json
    assert [m["Name"] for m in wan] == ["kvnode-0.dc1", "kvnode-1.dc1"]
    refused = await node.wire("GET", "/v1/agent/members?segment=alpha")
    assert (refused.status, refused.text) == (
        500,
        "Network segments are not supported in this version of Consul",
    )


async def test_version_and_host(node: Node) -> None:
    version = (await node.wire("GET", "/v1/agent/version")).json
    assert list(version) == ["SHA", "BuildDate", "HumanVersion", "FIPS"]
    facts = (await node.wire("GET", "/v1/agent/host")).json
    assert facts["Errors"] is None
    assert facts["Memory"]["total"] > facts["Memory"]["available"] > 0
    assert facts["Host"]["hostname"]
    assert facts["Disk"]["total"] > 0
    assert len(facts["CPU"]) >= 1


def test_a_machine_that_shows_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> dict[str, object]:
        raise OSError("not here")

    monkeypatch.setattr(host, "_memory", nothing)
    facts = host.collect()
    assert facts["Memory"] is None
    assert facts["Errors"] == ["Memory: not here"]
    assert facts["Host"] is not None


async def test_metrics_in_both_forms(node: Node) -> None:
    await node.wire("GET", "/v1/agent/version")
    document = (await node.wire("GET", "/v1/agent/metrics")).json
    assert list(document) == ["Timestamp", "Gauges", "Points", "Counters", "Samples"]
    assert any(gauge["Name"] == "kvnode_raft_term" for gauge in document["Gauges"])
    sample = next(s for s in document["Samples"] if s["Labels"].get("route") == "/v1/agent/version")
    assert sample["Name"] == "kvnode_http_request_duration_seconds"
    assert sample["Count"] == 1
    assert sample["Mean"] == sample["Sum"] > 0
    text = await node.wire("GET", "/v1/agent/metrics?format=prometheus")
    assert b"# TYPE kvnode_raft_term gauge" in text.body


# -- monitor


async def test_the_log_is_shown_line_by_line_until_the_client_goes(start: Start) -> None:
    asked: list[tuple[str, bool]] = []
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    closed = asyncio.Event()

    async def follow(level: str, as_json: bool) -> AsyncGenerator[bytes, None]:
        asked.append((level, as_json))
        try:
            while True:
                yield await lines.get()
        finally:
            closed.set()

    node = await start({"follow_log": follow})
    reader, writer = await node.connect()
    writer.write(b"GET /v1/agent/monitor?loglevel=WARN&logjson HTTP/1.1\r\nHost: x\r\n\r\n")
    lines.put_nowait(b"first\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"first\n")
        lines.put_nowait(b"second\n")
        await reader.readuntil(b"second\n")
        writer.close()
        lines.put_nowait(b"third\n")
        await closed.wait()
    assert asked == [("warn", True)]


async def test_a_level_that_does_not_exist(node: Node) -> None:
    answer = await node.wire("GET", "/v1/agent/monitor?loglevel=foo")
    assert (answer.status, answer.text) == (400, "Unknown log level: foo")
    assert (await node.wire("GET", "/v1/agent/monitor")).status == 500  # nothing to follow here


# -- what is not here


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/acl/list"),
        ("GET", "/v1/acl/token/self"),
        ("PUT", "/v1/acl/bootstrap"),
        ("DELETE", "/v1/acl/policy/x"),
        ("PUT", "/v1/agent/token/default"),
    ],
)
async def test_access_rules_are_off(node: Node, method: str, path: str) -> None:
    answer = await node.wire(method, path)
    assert (answer.status, answer.text) == (401, "ACL support disabled")


async def test_an_unknown_part_of_them_is_404(node: Node) -> None:
    assert (await node.wire("GET", "/v1/acl/none")).status == 404


async def test_nobody_has_coordinates(node: Node) -> None:
    assert (await node.wire("GET", "/v1/coordinate/datacenters")).body == b"[]"
    nodes = await node.wire("GET", "/v1/coordinate/nodes")
    assert (nodes.body, nodes.index) == (b"[]", 1)
    assert (await node.wire("GET", "/v1/coordinate/node/kvnode-0")).status == 404

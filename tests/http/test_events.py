"""``/v1/event`` (spec §12)."""

from __future__ import annotations

import asyncio
import uuid
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest

from kvnode.errors import NoLeader
from kvnode.replica.facade import Consistency, ReadView
from kvnode.store.registry_commands import Register
from kvnode.store.registry_records import Node as RegisteredNode
from kvnode.store.registry_records import Service
from tests.conformance.wire import Answer, Wire
from tests.http.conftest import Node, Start

LIST = "/v1/event/list"


async def fire(node: Node, name: str, payload: bytes = b"", query: str = "") -> dict[str, Any]:
    answer = await node.wire("PUT", f"/v1/event/fire/{name}{query}", payload)
    assert answer.status == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


async def names(node: Node, query: str = "") -> list[str]:
    return [event["Name"] for event in (await node.wire("GET", LIST + query)).json]


async def test_what_is_fired_is_listed(node: Node) -> None:
    fired = await fire(node, "deploy", b"\xffhello")
    assert list(fired) == [
        "ID", "Name", "Payload", "NodeFilter", "ServiceFilter", "TagFilter", "Version", "LTime",
    ]  # fmt: skip
    assert uuid.UUID(fired["ID"])
    assert (fired["Name"], fired["Version"], fired["LTime"]) == ("deploy", 1, 0)
    assert b64decode(fired["Payload"]) == b"\xffhello"
    answer = await node.wire("GET", LIST)
    assert answer.json == [fired | {"LTime": answer.json[0]["LTime"]}]
    assert answer.json[0]["LTime"] > 0


async def test_an_empty_payload_is_null(node: Node) -> None:
    assert (await fire(node, "deploy"))["Payload"] is None


async def test_a_list_can_be_of_one_name(node: Node) -> None:
    for name in ("a", "b", "a"):
        await fire(node, name)
    assert await names(node) == ["a", "b", "a"]
    assert await names(node, "?name=a") == ["a", "a"]
    assert await names(node, "?name=none") == []


async def test_the_index_is_made_of_the_last_id_as_consul_makes_it(node: Node) -> None:
    """Its watchers look for the event that they saw last by this number."""
    empty = await node.wire("GET", LIST)
    assert (empty.status, empty.body, empty.index) == (200, b"[]", 1)
    digits = (await fire(node, "deploy"))["ID"].replace("-", "")
    answer = await node.wire("GET", LIST)
    assert answer.index == int(digits[:16], 16) ^ int(digits[16:], 16)
    assert answer.headers["x-consul-knownleader"] == "true"


@pytest.mark.parametrize(
    ("query", "listed"),
    [
        ("?service=^web$&tag=^v[12]$", True),
        ("?service=^web$&tag=v3", False),
        ("?node=kvnode-0", True),
        ("?node=^kv.*-[0-9]$", True),
        ("?node=other", False),
        ("?service=consul", True),
        ("?service=db", False),
        ("?service=consul&tag=leader", False),
        ("?node=kvnode&service=consul", True),
    ],
)
async def test_an_event_is_listed_by_the_nodes_that_its_filters_fit(
    node: Node, query: str, listed: bool
) -> None:
    for service, tags in (("consul", ()), ("web", ("v2", "blue"))):
        replica = node.replica
        command = Register(
            "kvnode-0",
            RegisteredNode("", "kvnode-0", "10.0.0.1"),
            Service("kvnode-0", service, service, tags),
        )
        replica.store.apply_batch([(replica.next_index, command)])
        replica.next_index += 1
    await fire(node, "deploy", b"", query)
    assert (await names(node) == ["deploy"]) is listed


async def test_filters_of_a_list_are_ignored_as_in_consul(node: Node) -> None:
    await fire(node, "deploy")
    assert await names(node, "?service=web&node=other&dc=x") == ["deploy"]
    assert await names(node, "?tag=x&node=[") == ["deploy"]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/event/fire/", 400, "Missing name"),
        ("/v1/event/fire/d?node=%5B", 500,
         "Invalid node filter: error parsing regexp: missing ]: `[`"),
        ("/v1/event/fire/d?service=a**", 500, "Invalid service filter: error parsing regexp: "),
        ("/v1/event/fire/d?tag=x", 500, "Cannot provide tag filter without service filter"),
        ("/v1/event/fire/d?dc=other", 500, "No path to datacenter"),
        ("/v1/event/fire/d?ns=other", 400, "Bad request: Invalid query parameter"),
    ],
)  # fmt: skip
async def test_a_bad_event_is_not_fired(node: Node, path: str, status: int, text: str) -> None:
    answer = await node.wire("PUT", path)
    assert answer.status == status
    assert answer.text.startswith(text)
    assert node.replica.commands == []


async def test_the_bound_names_its_setting(start: Start) -> None:
    node = await start(event_bytes_max=20)
    assert (await node.wire("PUT", "/v1/event/fire/abcde", b"x" * 15)).status == 200
    answer = await node.wire("PUT", "/v1/event/fire/abcde", b"x" * 16)
    assert answer.status == 500
    assert "exceeds configured limit of 20 bytes" in answer.text
    assert "event_bytes_max" in answer.text


async def test_a_nasty_expression_costs_nothing(node: Node) -> None:
    """It would take Python's own matcher longer than the universe is old."""
    await fire(node, "deploy", b"", "?node=" + "(k*)*" * 8 + "!")
    async with asyncio.timeout(2):
        assert await names(node) == []


async def test_without_a_leader(node: Node) -> None:
    node.replica.write_error = node.replica.read_error = NoLeader("No cluster leader")
    answer = await node.wire("PUT", "/v1/event/fire/d")
    assert (answer.status, answer.text) == (500, "No cluster leader")
    assert (await node.wire("GET", LIST)).status == 500
    assert (await node.wire("GET", f"{LIST}?stale")).status == 200


async def test_a_list_is_not_staler_than_the_client_allows(node: Node) -> None:
    """Spec §3, as for every other read."""
    node.replica.stale_view = ReadView(True, 6000)
    answer = await node.wire("GET", f"{LIST}?max_stale=10s")
    assert answer.headers["x-consul-lastcontact"] == "6000"
    answer = await node.wire("GET", f"{LIST}?max_stale=5s")
    assert answer.headers["x-consul-effective-consistency"] == "leader"
    assert node.replica.reads[-2:] == [Consistency.STALE, Consistency.DEFAULT]


# -- blocking


async def parked(node: Node, query: str) -> tuple[Wire, asyncio.Task[Answer]]:
    """Another client that waits."""
    wire = Wire(node.wire.host, node.wire.port)
    task = asyncio.create_task(wire("GET", f"{LIST}?{query}"))
    await until(lambda: node.server.gate.parked == 1)
    return wire, task


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen in time")


async def test_a_list_waits_for_another_event(node: Node) -> None:
    await fire(node, "a")
    index = (await node.wire("GET", LIST)).index
    wire, waiting = await parked(node, f"index={index}&wait=10s")
    await node.wire("PUT", "/v1/kv/unrelated", b"1")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await fire(node, "b")
    answer = await asyncio.wait_for(waiting, 5)
    assert [event["Name"] for event in answer.json] == ["a", "b"]
    assert answer.index != index
    assert node.server.gate.parked == 0
    await wire.close()


async def test_another_name_or_node_wakes_nobody(node: Node) -> None:
    await fire(node, "a")
    index = (await node.wire("GET", f"{LIST}?name=a")).index
    wire, waiting = await parked(node, f"name=a&index={index}&wait=10s")
    await fire(node, "b")
    await fire(node, "a", b"", "?node=other")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert node.server.gate.parked == 1
    await fire(node, "a")
    assert [event["Name"] for event in (await asyncio.wait_for(waiting, 5)).json] == ["a", "a"]
    assert node.server.gate.parked == node.server.gate.requests == 0
    await wire.close()


async def test_another_index_is_answered_at_once(node: Node) -> None:
    """It need not be smaller: these numbers do not rise."""
    await fire(node, "a")
    async with asyncio.timeout(2):
        answer = await node.wire("GET", f"{LIST}?index={2**64 - 1}&wait=10s")
    assert [event["Name"] for event in answer.json] == ["a"]


async def test_the_time_out_answers_what_there_is(node: Node) -> None:
    answer = await node.wire("GET", f"{LIST}?index=1&wait=20ms")
    assert (answer.status, answer.body, answer.index) == (200, b"[]", 1)


async def test_the_time_out_counts_from_the_beginning(node: Node) -> None:
    """Events that do not concern a waiter must not make it wait longer."""
    wire, waiting = await parked(node, "name=a&index=1&wait=2s")
    async with asyncio.timeout(10):
        while not waiting.done():
            await fire(node, "b")
            await asyncio.sleep(0.05)
    assert (await waiting).json == []
    await wire.close()


async def test_who_hangs_up_waits_no_more(node: Node) -> None:
    wire, waiting = await parked(node, "index=1&wait=60s")
    waiting.cancel()
    await wire.close()
    await until(lambda: node.server.gate.parked == 0)
    assert node.replica.event_watches.count == 0

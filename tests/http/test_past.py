"""Reads of the past: history, and a key as it was (both shells)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kvnode.store.commands import Command, KvDelete, KvSet, TrimHistory
from tests.http.conftest import Node, Start


@pytest.fixture(params=[True, False], ids=["lean", "aiohttp"])
async def node(start: Start, request: pytest.FixtureRequest) -> Node:
    return await start(fast_path=request.param)


def apply(node: Node, *commands: Command) -> int:
    store = node.replica.store
    first = max(store.applied_index + 1, node.replica.next_index)
    store.apply_batch(list(enumerate(commands, first)))
    node.replica.next_index = store.applied_index + 1
    return store.applied_index


def values(document: Any) -> list[tuple[int, str | None, bytes | None]]:
    return [
        (item["Index"], item["By"], item["Entry"] and base64.b64decode(item["Entry"]["Value"]))
        for item in document
    ]


async def test_the_history_of_a_key_is_the_newest_first(node: Node) -> None:
    last = apply(node, KvSet(b"a", b"1"), KvSet(b"a", b"2", 5), KvSet(b"b", b""), KvDelete(b"a"))
    answer = await node.wire("GET", "/v1/kv/a?history")
    assert answer.status == 200
    assert values(answer.json) == [
        (last, "delete", None),
        (last - 2, "put", b"2"),
        (last - 3, "put", b"1"),
    ]
    assert answer.json[1]["Entry"] == {
        "LockIndex": 0, "Key": "a", "Flags": 5, "Value": "Mg==",
        "CreateIndex": last - 3, "ModifyIndex": last - 2,
    }  # fmt: skip
    assert answer.headers["x-kvnode-oldest-index"] == "0"
    assert "x-kvnode-more" not in answer.headers


async def test_it_is_bounded_and_says_so(node: Node) -> None:
    apply(node, *[KvSet(b"a", b"%d" % number) for number in range(30)])
    assert len((await node.wire("GET", "/v1/kv/a?history")).json) == 20
    answer = await node.wire("GET", "/v1/kv/a?history&limit=2")
    assert [value for _, _, value in values(answer.json)] == [b"29", b"28"]
    assert answer.headers["x-kvnode-more"] == "true"
    assert len((await node.wire("GET", "/v1/kv/a?history&limit=1000")).json) == 30


async def test_what_is_below_the_window_has_no_author(node: Node) -> None:
    last = apply(node, KvSet(b"a", b"1"), KvSet(b"a", b"2"))
    apply(node, TrimHistory(last - 1))
    answer = await node.wire("GET", "/v1/kv/a?history")
    assert values(answer.json) == [(last, "put", b"2"), (last - 1, None, b"1")]
    assert answer.headers["x-kvnode-oldest-index"] == str(last - 1)


async def test_a_key_that_nobody_knows_is_404(node: Node) -> None:
    apply(node, KvSet(b"a", b"1"))
    answer = await node.wire("GET", "/v1/kv/b?history")
    assert (answer.status, answer.body) == (404, b"")


async def test_a_key_is_read_as_it_was(node: Node) -> None:
    last = apply(node, KvSet(b"a", b"1"), KvSet(b"a", b"2"), KvDelete(b"a"), KvSet(b"a", b"4"))
    for back, value in ((0, b"4"), (2, b"2"), (3, b"1")):
        answer = await node.wire("GET", f"/v1/kv/a?as_of={last - back}")
        assert base64.b64decode(answer.json[0]["Value"]) == value
        assert answer.index == answer.json[0]["ModifyIndex"]
        raw = await node.wire("GET", f"/kv/a?as_of={last - back}")
        assert raw.body == value
        assert (await node.wire("GET", f"/v1/kv/a?raw&as_of={last - back}")).body == value
    for back in (1, 4):
        assert (await node.wire("GET", f"/v1/kv/a?as_of={last - back}")).status == 404


@pytest.mark.parametrize("path", ["/v1/kv/a", "/kv/a"])
async def test_an_index_outside_of_the_window_is_410(node: Node, path: str) -> None:
    last = apply(node, KvSet(b"a", b"1"), KvSet(b"a", b"2"))
    apply(node, TrimHistory(last))
    answer = await node.wire("GET", f"{path}?as_of={last - 1}")
    assert (answer.status, answer.text.strip()) == (
        410, f"index {last - 1} is compacted: the history begins at {last}"
    )  # fmt: skip
    assert (await node.wire("GET", f"{path}?as_of=99999")).status == 410


@pytest.mark.parametrize(
    "query",
    [
        "history&as_of=1", "history&keys", "as_of=1&recurse", "as_of=", "as_of=-1", "as_of=x",
        "history&limit=0", "history&limit=1001", "history&limit=x", "history&index=5",
        "as_of=18446744073709551616",
    ],
)  # fmt: skip
async def test_bad_input_is_refused(node: Node, query: str) -> None:
    apply(node, KvSet(b"a", b"1"))
    for path in ("/v1/kv/a", "/kv/a"):
        assert (await node.wire("GET", f"{path}?{query}")).status == 400


async def test_a_key_is_needed(node: Node) -> None:
    assert (await node.wire("GET", "/v1/kv/?history")).status == 400


async def test_our_own_route_answers_with_the_same_document(node: Node) -> None:
    apply(node, KvSet(b"a", b"1"))
    own, consul = [await node.wire("GET", f"{path}?history") for path in ("/kv/a", "/v1/kv/a")]
    assert own.json == consul.json
    pretty = await node.wire("GET", "/v1/kv/a?history&pretty")
    assert pretty.json == consul.json
    assert pretty.body.startswith(b"[\n    {\n")

"""``Idempotency-Key``: a write that is sent again is not done again, and is answered as before (RC-58)."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.conformance.wire import Answer, Kv, Sessions, Wire


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


async def send(
    wire: Wire, key: str, method: str, target: str, body: str = "", name: str = "Idempotency-Key"
) -> Answer:
    return await wire(method, target, body, {name: key})


def told(answer: Answer) -> tuple[Any, ...]:
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    return answer.status, answer.body, headers


@pytest.mark.parametrize(
    "name", ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY", "iDempotenCy-kEy"]
)
async def test_a_counter_that_is_sent_again_counts_once(kv: Kv, key: str, name: str) -> None:
    first = await send(kv.wire, key, "PUT", kv.path("n", "add=5"), name=name)
    assert first.body == b"5"
    await kv.put("n", "", "add=1")
    again = await send(kv.wire, key, "PUT", kv.path("n", "add=5"), name=name)
    assert told(again) == told(first)
    assert (await kv.get("n", "raw")).body == b"6"


async def test_a_condition_that_held_is_told_again(kv: Kv, key: str) -> None:
    """Without a key the second would be false, and its sender would believe that it failed."""
    first = await send(kv.wire, key, "PUT", kv.path("a", "cas=0"), "1")
    again = await send(kv.wire, key, "PUT", kv.path("a", "cas=0"), "1")
    assert (first.text, again.text) == ("true", "true")
    assert first.headers["x-kvnode-index"] == again.headers["x-kvnode-index"]


async def test_deletions_and_the_plain_route(kv: Kv, key: str) -> None:
    await kv.put("a", "1")
    target = f"/kv/{kv.prefix}a"
    index = (await kv.entry("a"))["ModifyIndex"]
    first = await send(kv.wire, key, "DELETE", f"{target}?cas={index}")
    await kv.put("a", "2")
    assert told(await send(kv.wire, key, "DELETE", f"{target}?cas={index}")) == told(first)
    assert (await kv.get("a", "raw")).body == b"2"
    posted = await send(kv.wire, key + "2", "POST", target, "3")
    put = await send(kv.wire, key + "2", "PUT", target, "3")
    assert told(put) == told(posted), "POST is PUT"


async def test_a_transaction_that_is_sent_again(kv: Kv, key: str) -> None:
    await kv.put("word", "hello")
    ops = [
        {"KV": {"Verb": "get", "Key": kv.prefix + "word"}},
        {"KV": {"Verb": "cas", "Key": kv.prefix + "a", "Index": 0, "Value": "MQ=="}},
    ]
    first = await send(kv.wire, key, "PUT", "/v1/txn", json.dumps(ops))
    assert (first.status, len(first.json["Results"])) == (200, 2)
    again = await send(kv.wire, key, "PUT", "/v1/txn", json.dumps(ops))
    assert told(again) == told(first)
    failed = await send(kv.wire, key + "2", "PUT", "/v1/txn", json.dumps(ops))
    assert failed.status == 409
    assert told(await send(kv.wire, key + "2", "PUT", "/v1/txn", json.dumps(ops))) == told(failed)


async def test_a_session_that_is_asked_for_again(wire: Wire, sessions: Sessions, key: str) -> None:
    first = await send(wire, key, "PUT", "/v1/session/create", '{"Name":"x"}')
    again = await send(wire, key, "PUT", "/v1/session/create", '{"Name":"x"}')
    assert first.status == 200
    assert told(again) == told(first)
    sessions.made.append(first.json["ID"])
    assert await sessions.lives(first.json["ID"])
    gone = await send(wire, key + "2", "PUT", f"/v1/session/destroy/{first.json['ID']}")
    assert (gone.status, gone.text) == (200, "true")
    assert "x-kvnode-index" in gone.headers


async def test_another_request_with_the_same_key_is_422(
    kv: Kv, sessions: Sessions, key: str
) -> None:
    first = await send(kv.wire, key, "PUT", kv.path("a"), "1")
    index = first.headers["x-kvnode-index"]
    text = (
        f"nothing was changed: this Idempotency-Key was used for another request, at index {index}"
    )
    for method, target, body in [
        ("PUT", kv.path("a"), "2"),
        ("PUT", kv.path("b"), "1"),
        ("PUT", kv.path("a", "flags=1"), "1"),
        ("DELETE", kv.path("a"), ""),
        ("PUT", "/v1/session/create", ""),
        ("PUT", "/v1/txn", '[{"KV":{"Verb":"set","Key":"a"}}]'),
    ]:
        answer = await send(kv.wire, key, method, target, body)
        assert (answer.status, answer.text) == (422, text), (method, target)
    plain = await send(kv.wire, key, "PUT", f"/kv/{kv.prefix}a", "9")
    assert (plain.status, plain.text) == (422, text + "\n")
    assert (await kv.get("a", "raw")).body == b"1"


@pytest.mark.parametrize("bad", ["x" * 256, "a\tb", "é"])
async def test_a_bad_key_is_400(kv: Kv, bad: str) -> None:
    answer = await send(kv.wire, bad, "PUT", kv.path("a"), "1")
    assert answer.status == 400
    assert (await kv.get("a")).status == 404


async def test_a_read_with_a_key_is_a_read(kv: Kv, key: str) -> None:
    await kv.put("a", "1")
    assert (await send(kv.wire, key, "GET", kv.path("a"))).status == 200
    assert (await send(kv.wire, key, "PUT", kv.path("a"), "2")).text == "true"


async def test_a_request_that_was_refused_leaves_the_key_free(kv: Kv, key: str) -> None:
    """It was never in the log."""
    assert (await send(kv.wire, key, "PUT", kv.path("a", "cas=x"), "1")).status == 500
    assert (await send(kv.wire, key, "PUT", kv.path("a"), "1")).text == "true"


async def test_other_routes_do_not_take_keys(wire: Wire, key: str) -> None:
    """An event is fired each time; nothing there is promised to be done once."""
    for _ in range(2):
        assert (await send(wire, key, "PUT", f"/v1/event/fire/{key}")).status == 200
    assert len((await wire("GET", f"/v1/event/list?name={key}")).json) == 2

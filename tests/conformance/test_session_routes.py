"""spec §5, §17 (14) and (15): the life of a session over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest

from tests.conformance.conftest import TTL_MIN_MS, Target
from tests.conformance.wire import Answer, Kv, Sessions, Wire
from tests.http.fake_replica import FakeReplica

NOBODY = "6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11"
MEMBERS = [
    "ID",
    "Name",
    "Node",
    "LockDelay",
    "Behavior",
    "TTL",
    "NodeChecks",
    "ServiceChecks",
    "CreateIndex",
    "ModifyIndex",
]


async def described(sessions: Sessions, **members: Any) -> dict[str, Any]:
    session = await sessions.create(**members)
    answer = await sessions.info(session)
    (found,) = answer.json
    assert found["ID"] == session
    return dict(found)


async def create(wire: Wire, body: str | bytes, query: str = "") -> Answer:
    return await wire("PUT", f"/v1/session/create{query}", body)


# --- create


async def test_a_session_without_a_body_has_the_defaults(wire: Wire, sessions: Sessions) -> None:
    """Spec §5.1, §5.2, §17 (15)."""
    answer = await create(wire, "")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert not [
        name for name in answer.headers if name in ("x-consul-index", "x-consul-knownleader")
    ]
    session = answer.json["ID"]
    sessions.made.append(session)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", session)
    (found,) = (await sessions.info(session)).json
    assert list(found) == MEMBERS
    assert found == {
        "ID": session,
        "Name": "",
        "Node": answer.headers["x-kvnode-node"],
        "LockDelay": 15_000_000_000,
        "Behavior": "release",
        "TTL": "",
        "NodeChecks": ["serfHealth"],
        "ServiceChecks": None,
        "CreateIndex": found["CreateIndex"],
        "ModifyIndex": found["CreateIndex"],
    }


async def test_what_patroni_sends(sessions: Sessions) -> None:
    """Spec §13: lower case, old names, fractions."""
    found = await described(
        sessions, name="x", checks=[], lockdelay="0.001s", behavior="delete", ttl="15.0s"
    )
    assert (found["Name"], found["NodeChecks"], found["LockDelay"]) == ("x", [], 1_000_000)
    assert (found["Behavior"], found["TTL"]) == ("delete", "15.0s")


@pytest.mark.parametrize(
    ("given", "nanoseconds"),
    [
        (5, 5_000_000_000),
        ("5ns", 5_000_000_000),
        (999, 999_000_000_000),
        (1000, 1000),
        (1.7, 1_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("90s", 90_000_000_000),
        (0, 0),
        ("0", 0),
        (None, 15_000_000_000),
        (-5, -5_000_000_000),
    ],
)
async def test_lock_delays(sessions: Sessions, given: object, nanoseconds: int) -> None:
    """Spec §5.1: below 1000 they are seconds, whatever unit they came in."""
    assert (await described(sessions, LockDelay=given))["LockDelay"] == nanoseconds


@pytest.mark.parametrize(
    ("members", "checks"),
    [
        ({"NodeChecks": []}, []),
        ({"Checks": []}, []),
        ({"Checks": None}, []),
        ({"Checks": ["serfHealth"]}, ["serfHealth"]),
        ({"NodeChecks": [], "Checks": ["nope"]}, []),
        ({"NodeChecks": ["serfHealth", "serfHealth"]}, ["serfHealth", "serfHealth"]),
        ({"ServiceChecks": []}, ["serfHealth"]),
    ],
)
async def test_checks(sessions: Sessions, members: dict[str, Any], checks: list[str]) -> None:
    assert (await described(sessions, **members))["NodeChecks"] == checks


async def test_names_are_text_of_any_kind(sessions: Sessions) -> None:
    """Spec §1.4: escaped as Go does."""
    session = await sessions.create(Name='<&>"ç\u2028')
    answer = await sessions.info(session)
    assert answer.json[0]["Name"] == '<&>"ç\u2028'
    assert b'"Name":"\\u003c\\u0026\\u003e\\"\xc3\xa7\\u2028"' in answer.body


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "{}x",
        '{"Unknown":[1]}',
        '{"ID":"foo"}',
        '{"Node":null,"Name":null}\n',
        '{"name":"a","NAME":"b"}',
        '{"TTL":"0s"}',
        '{"TTL":""}',
        '{"Behavior":""}',
        '{"Name":"\\ud800"}',
    ],
)
async def test_bodies_that_are_taken(wire: Wire, sessions: Sessions, body: str) -> None:
    """Spec §1.5; what stands behind the document is not looked at."""
    answer = await create(wire, body)
    assert answer.status == 200, answer
    sessions.made.append(answer.json["ID"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (" ", "EOF"),
        ("{", "unexpected EOF"),
        ("{x", "invalid character"),
        ("[]", "json: cannot unmarshal array into Go value"),
        ("5", "json: cannot unmarshal number into Go value"),
        ('{"TTL":10}', "json: cannot unmarshal number into Go struct field .TTL of type string"),
        ('{"Name":5}', "json: cannot unmarshal number into Go struct field .Name of type string"),
        ('{"Checks":"serfHealth"}', "json: cannot unmarshal string into Go struct field .Checks"),
        ('{"Checks":[5]}', "json: cannot unmarshal number into Go struct field .Checks"),
        ('{"LockDelay":"abc"}', 'time: invalid duration "abc"'),
        ('{"LockDelay":"10"}', 'time: missing unit in duration "10"'),
        ('{"LockDelay":""}', 'time: invalid duration ""'),
        ('{"LockDelay":true}', "LockDelay"),
        ('{"LockDelay":NaN}', "invalid character"),
        ('{"ServiceChecks":5}', "json: cannot unmarshal number"),
        ("[" * 100_000, ""),
        ("1" * 5000, ""),
    ],
    ids=lambda value: value[:30],
)
async def test_bodies_that_are_refused(wire: Wire, body: str, reason: str) -> None:
    """Spec §5.1."""
    answer = await create(wire, body)
    assert answer.status == 400
    assert answer.text.startswith(f"Request decode failed: {reason}")


BOUNDS = f"must be between [{TTL_MIN_MS}ms=24h0m0s]"


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"TTL": "10"}, "Session TTL '10' invalid: time: missing unit in duration \"10\""),
        ({"TTL": "x"}, "Session TTL 'x' invalid: time: invalid duration \"x\""),
        ({"TTL": "499ms"}, f"Invalid Session TTL '499000000', {BOUNDS}"),
        ({"TTL": "86401s"}, f"Invalid Session TTL '86401000000000', {BOUNDS}"),
        ({"TTL": "-5s"}, f"Invalid Session TTL '-5000000000', {BOUNDS}"),
        ({"Behavior": "Delete"}, "Invalid Behavior setting 'Delete'"),
        ({"Behavior": "x", "TTL": "1ms"}, "Invalid Behavior setting 'x'"),
        ({"Node": "nobody"}, "Missing node registration"),
        ({"Node": ""}, "Must provide Node"),
        ({"NodeChecks": ["nope"]}, "Missing check 'nope' registration"),
        ({"ServiceChecks": [{"ID": "web"}]}, "Missing check 'web' registration"),
    ],
    ids=str,
)
async def test_sessions_that_cannot_be(
    wire: Wire, sessions: Sessions, members: dict[str, Any], text: str
) -> None:
    """Spec §5.1, §14: all of these are 500, and clients match on the text."""
    before = (await wire("GET", "/v1/session/list")).index
    answer = await wire("PUT", "/v1/session/create", json.dumps(members))
    assert (answer.status, answer.text) == (500, text)
    assert (await wire("GET", "/v1/session/list")).index == before


async def test_a_session_of_another_node(wire: Wire, sessions: Sessions, fake: FakeReplica) -> None:
    """Spec §5.1: a node that cannot be reached has a critical check."""
    node = {"Node": "kvnode-1", "Address": "10.0.0.2", "Check": {"CheckID": "serfHealth"}}
    await wire("PUT", "/v1/catalog/register", json.dumps(node))
    answer = await create(wire, '{"Node":"kvnode-1"}')
    assert (answer.status, answer.text) == (500, "Check 'serfHealth' is in critical state")
    assert (await described(sessions, Node="kvnode-1", Checks=[]))["Node"] == "kvnode-1"


async def test_a_chunked_body_is_read(node: Target, sessions: Sessions) -> None:
    """Spec §16: Consul ignores it."""
    reader, writer = await sessions.wire.connect()
    writer.write(
        b"PUT /v1/session/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'8\r\n{"Name":\r\n9\r\n"chunked"\r\n1\r\n}\r\n0\r\n\r\n'
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
    session = re.search(rb'"ID":"([^"]+)"', await reader.readexactly(length))
    assert session is not None
    sessions.made.append(session[1].decode())
    (found,) = (await sessions.info(sessions.made[-1])).json
    assert found["Name"] == "chunked"


async def test_pretty_answers(wire: Wire, sessions: Sessions) -> None:
    """Spec §1.4."""
    answer = await create(wire, "", "?pretty")
    sessions.made.append(answer.json["ID"])
    assert answer.text == f'{{\n    "ID": "{answer.json["ID"]}"\n}}\n'
    info = await sessions.info(sessions.made[-1], "pretty")
    assert info.text.startswith('[\n    {\n        "ID": ')
    assert info.text.endswith("\n    }\n]\n")
    listed = await wire("GET", "/v1/session/list?pretty")
    assert info.text[2:-3] in listed.text
    none = await wire("GET", "/v1/session/node/nobody?pretty")
    assert none.text == "[]\n"


# --- the other routes


@pytest.mark.parametrize("action", ["destroy", "renew", "info"])
@pytest.mark.parametrize(
    ("session", "status", "text"),
    [
        ("", 400, "Missing session"),
        ("foo", 500, "failed session lookup: index error: UUID must be 36 characters"),
        (f"{NOBODY}/x", 500, "failed session lookup: index error: UUID must be 36 characters"),
        (
            "z" + NOBODY[1:],
            500,
            "failed session lookup: index error: Invalid UUID: encoding/hex: invalid byte: "
            "U+007A 'z'",
        ),
    ],
)
async def test_ids_that_are_none(
    wire: Wire, action: str, session: str, status: int, text: str
) -> None:
    method = "GET" if action == "info" else "PUT"
    answer = await wire(method, f"/v1/session/{action}/{session}")
    assert (answer.status, answer.text) == (status, text)
    assert "x-consul-index" not in answer.headers


async def test_unknown_sessions(sessions: Sessions) -> None:
    """Spec §5.3."""
    destroyed = await sessions.destroy(NOBODY)
    assert (destroyed.status, destroyed.text) == (200, "true")
    renewed = await sessions.renew(NOBODY)
    assert (renewed.status, renewed.text) == (404, f"Session id '{NOBODY}' not found")
    info = await sessions.info(NOBODY)
    assert (info.status, info.text) == (200, "[]")
    assert info.index >= 1


async def test_destroy_ends_a_session(sessions: Sessions) -> None:
    session = await sessions.create()
    assert await sessions.lives(session)
    answer = await sessions.destroy(session.upper())
    assert (answer.status, answer.text) == (200, "true")
    assert answer.headers["content-type"] == "application/json"
    assert "x-consul-index" not in answer.headers
    assert not await sessions.lives(session)
    assert (await sessions.renew(session)).status == 404


async def test_renew_answers_with_the_session(sessions: Sessions) -> None:
    """Spec §5.3: clients read its TTL and adapt."""
    session = await sessions.create(TTL="10s", Name="n")
    answer = await sessions.renew(session)
    assert answer.status == 200
    assert "x-consul-index" not in answer.headers
    assert answer.json == (await sessions.info(session)).json
    assert list(answer.json[0]) == MEMBERS


async def test_lists_are_ordered_by_id(wire: Wire, sessions: Sessions) -> None:
    made = [await sessions.create(Name=str(number)) for number in range(5)]
    node = (await wire("GET", "/v1/agent/self")).json["Config"]["NodeName"]
    for path in ("/v1/session/list", f"/v1/session/node/{node}"):
        answer = await wire("GET", path)
        assert answer.status == 200
        listed = [found["ID"] for found in answer.json]
        assert [who for who in listed if who in made] == sorted(made)
        assert listed == sorted(listed)
    nobody = await wire("GET", "/v1/session/node/nobody")
    assert (nobody.status, nobody.text) == (200, "[]")
    missing = await wire("GET", "/v1/session/node/")
    assert (missing.status, missing.text) == (400, "Missing node name")


async def test_reads_carry_the_sessions_index(kv: Kv, sessions: Sessions) -> None:
    """Spec §2.2, §1.7."""
    session = await sessions.create()
    made = (await sessions.info(session)).json[0]["CreateIndex"]
    await kv.put("a", "1")
    for path in (f"info/{session}", f"info/{NOBODY}", "list", "node/nobody"):
        for query in ("", "?consistent", "?stale"):
            answer = await kv.wire("GET", f"/v1/session/{path}{query}")
            assert answer.index == made
            assert answer.headers["x-consul-knownleader"] == "true"
            assert int(answer.headers["x-consul-lastcontact"]) >= 0
            assert answer.headers["x-consul-effective-consistency"] == query[1:] or "leader"
    await sessions.destroy(session)
    assert (await sessions.info(session)).index > made


async def test_the_index_is_never_0(wire: Wire, fake: FakeReplica) -> None:
    """RC-64."""
    assert (await wire("GET", "/v1/session/list")).index == 1


async def test_the_shortest_ttl_is_told(wire: Wire) -> None:
    """Spec §10: Patroni reads it after an invalid-TTL answer."""
    config = (await wire("GET", "/v1/agent/self")).json["Config"]
    assert config["SessionTTLMin"] == TTL_MIN_MS * 10**6


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "create", "OPTIONS,PUT"),
        ("POST", "create", "OPTIONS,PUT"),
        ("DELETE", f"destroy/{NOBODY}", "OPTIONS,PUT"),
        ("PUT", f"info/{NOBODY}", "OPTIONS,GET"),
        ("HEAD", "list", "OPTIONS,GET"),
    ],
)
async def test_other_methods(wire: Wire, method: str, path: str, allow: str) -> None:
    answer = await wire(method, f"/v1/session/{path}")
    assert (answer.status, answer.headers["allow"]) == (405, allow)


async def test_paths(wire: Wire) -> None:
    assert (await wire("GET", "/v1/session/list/")).status == 404
    assert (await wire("GET", "/v1/session/")).status == 404
    assert (await wire("GET", "/v1/session/info")).headers["location"] == "/v1/session/info/"
    assert (await wire("PUT", "/v1/session/renew")).status == 307


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("dc=other", 500, "No path to datacenter"),
        ("stale&consistent", 400, "Cannot specify ?stale with ?consistent, conflicting semantics."),
        ("index=abc", 400, "Invalid index"),
        ("wait=1", 400, "Invalid wait time"),
        (
            "ns=x",
            400,
            'Bad request: Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature',
        ),
    ],
)
async def test_bad_options(
    wire: Wire, sessions: Sessions, query: str, status: int, text: str
) -> None:
    for path in ("list", f"info/{NOBODY}", "node/n"):
        answer = await wire("GET", f"/v1/session/{path}?{query}")
        assert (answer.status, answer.text) == (status, text)
    reading = query.startswith(("stale", "index", "wait"))
    for path in ("create", f"destroy/{NOBODY}"):
        answer = await wire("PUT", f"/v1/session/{path}?{query}")
        if reading:
            assert answer.status == 200, "a write has no use for it"
            if path == "create":
                sessions.made.append(answer.json["ID"])
        else:
            assert (answer.status, answer.text) == (status, text)


# --- blocking reads


async def settle(sessions: Sessions) -> None:
    """Until everything sent before has certainly been handled."""
    for _ in range(4):
        await sessions.wire("GET", "/v1/session/list")


async def test_a_list_wakes_for_any_session(node: Target, sessions: Sessions) -> None:
    """Spec §5.3."""
    other = Wire(node.host, node.port)
    await sessions.create()
    for path in ("list", "node/nobody"):
        index = (await sessions.wire("GET", f"/v1/session/{path}")).index
        parked = asyncio.create_task(other("GET", f"/v1/session/{path}?index={index}&wait=30s"))
        await settle(sessions)
        await sessions.wire("PUT", "/v1/kv/unrelated/session", "1")
        await settle(sessions)
        assert not parked.done()
        await sessions.create()
        assert (await asyncio.wait_for(parked, 10)).index > index
    await other.close()


async def test_an_info_wakes_when_its_session_ends(node: Target, sessions: Sessions) -> None:
    other = Wire(node.host, node.port)
    session = await sessions.create()
    index = (await sessions.info(session)).index
    parked = asyncio.create_task(other("GET", f"/v1/session/info/{session}?index={index}&wait=30s"))
    await settle(sessions)
    await sessions.create()
    await settle(sessions)
    assert not parked.done(), "another session's beginning is none of its business"
    await sessions.destroy(session)
    answer = await asyncio.wait_for(parked, 10)
    assert (answer.text, answer.index > index) == ("[]", True)
    await other.close()


async def test_a_blocking_read_ends_with_its_time(sessions: Sessions) -> None:
    session = await sessions.create()
    index = (await sessions.info(session)).index
    answer = await sessions.info(session, f"index={index}&wait=100ms")
    assert (answer.json[0]["ID"], answer.index) == (session, index)


# --- TTL


async def test_a_session_ends_between_ttl_and_twice_ttl(kv: Kv, sessions: Sessions) -> None:
    """Spec §5.4, §17 (14): in (TTL, 2 TTL + 1 s]; and the lock-delay runs from then on."""
    timely = refused = False
    for number in range(3):  # a machine that stalls for so long is no reason to fail
        key = f"a{number}"
        began = time.monotonic()
        session = await sessions.create(TTL="500ms", LockDelay="2s")
        other = await sessions.create()
        locked = await kv.put(key, "v", f"acquire={session}")
        if locked.body != b"true":
            assert locked.text == f'invalid session "{session}"'
            assert time.monotonic() - began > 0.5, "it is over before it could lock anything"
            continue
        index = int(locked.headers["x-kvnode-index"])
        answer = await kv.get(key, f"index={index}&wait=10s")
        took = time.monotonic() - began
        refused |= await acquire_after(kv, key, other, began + 0.5 + 2.0)
        assert "Session" not in answer.json[0]
        assert took > 0.5
        assert not await sessions.lives(session)
        assert (await sessions.renew(session)).status == 404
        timely |= took <= 2.0
        if timely and refused:
            return
    raise AssertionError("it ended late each time, or without a lock-delay")


async def acquire_after(kv: Kv, key: str, session: str, due: float) -> bool:
    """Try until the lock is taken, which must not be before ``due``; return whether it was refused first."""
    refused = False
    while True:
        answer = await kv.put(key, "w", f"acquire={session}")
        if (answer.status, answer.body) == (200, b"true"):
            assert time.monotonic() >= due, "in the lock-delay"
            return refused
        assert (answer.status, answer.body) == (200, b"false")
        refused = True
        assert time.monotonic() < due + 10
        await asyncio.sleep(0.01)


async def test_renewals_keep_a_session(sessions: Sessions) -> None:
    session = await sessions.create(TTL="1s")
    for _ in range(3):
        await asyncio.sleep(0.9)
        assert (await sessions.renew(session)).status == 200
    assert await sessions.lives(session)

"""What ``/v1/kv`` and ``/kv`` can do beyond Consul: pages, times to live, counters, copies, conditions."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from tests.conformance.wire import Answer, Kv, Sessions

# --- pages


async def fill(kv: Kv, *names: str) -> list[str]:
    for name in names:
        await kv.put(name, name)
    return [kv.prefix + name for name in sorted(names)]


async def walk(kv: Kv, query: str) -> list[Any]:
    """Read page after page, as the header says."""
    found: list[Any] = []
    after = ""
    while True:
        answer = await kv.get("", query + after)
        assert answer.status == 200, answer
        found += answer.json
        if "x-kvnode-next-after" not in answer.headers:
            return found
        assert answer.json
        after = "&after=" + answer.headers["x-kvnode-next-after"]


async def test_pages_of_keys_and_of_entries_add_up(kv: Kv) -> None:
    names = await fill(kv, "a", "b/1", "b/2", "c d&é", "e")
    for limit in (1, 2, 3, 5, 6):
        assert await walk(kv, f"keys&limit={limit}") == names
        entries = await walk(kv, f"recurse&limit={limit}")
        assert [entry["Key"] for entry in entries] == names
        assert await walk(kv, f"keys&reverse&limit={limit}") == names[::-1]
    assert await walk(kv, "keys&separator=/&limit=2") == [names[0], kv.prefix + "b/", *names[3:]]


async def test_a_page_says_whether_there_is_more_and_has_the_indexes(kv: Kv) -> None:
    names = await fill(kv, "a", "b", "c")
    answer = await kv.get("", "keys&limit=2")
    assert answer.json == names[:2]
    assert unquote_to_bytes(answer.headers["x-kvnode-next-after"]).decode() == names[1]
    whole = await kv.get("", "keys")
    assert answer.index >= whole.index
    assert answer.headers["x-consul-knownleader"] == "true"
    last = await kv.get("", f"keys&limit=2&after={names[1]}")
    assert last.json == names[2:]
    assert "x-kvnode-next-after" not in last.headers


async def test_the_page_behind_the_last_key_is_empty(kv: Kv) -> None:
    names = await fill(kv, "a")
    for shape in ("keys", "recurse"):
        answer = await kv.get("", f"{shape}&after={names[0]}")
        assert (answer.status, answer.json) == (200, [])
    assert (await kv.get("none", "recurse&limit=5")).json == []


async def test_counts_and_ranges(kv: Kv) -> None:
    await fill(kv, "a", "b/1", "b/2", "c")
    assert (await kv.get("", "keys&count")).body == b"4"
    assert (await kv.get("", "recurse&count")).body == b"4"
    assert (await kv.get("", "keys&separator=/&count")).body == b"3"
    assert (await kv.get("none", "keys&count")).body == b"0"
    assert (await kv.get("", f"keys&count&start={kv.prefix}b&end={kv.prefix}c")).body == b"2"
    assert (await kv.get("", f"keys&start={kv.prefix}b/2")).json == [
        kv.prefix + "b/2",
        kv.prefix + "c",
    ]


async def test_all_keys_are_counted_without_reading_them(kv: Kv) -> None:
    await fill(kv, "a", "b")
    total = int((await kv.wire("GET", "/v1/kv/?keys&count")).body)
    assert total == len((await kv.wire("GET", "/v1/kv/?keys")).json)
    assert int((await kv.wire("GET", "/v1/kv/?keys&count&limit=1")).body) == 1


async def test_pretty_pages(kv: Kv) -> None:
    names = await fill(kv, "a", "b")
    answer = await kv.get("", "keys&limit=1&pretty")
    assert answer.text == f'[\n    "{names[0]}"\n]\n'


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1e3", "9" * 30])
async def test_a_bad_limit_is_400(kv: Kv, limit: str) -> None:
    answer = await kv.get("", f"keys&limit={limit}")
    assert (answer.status, answer.text) == (400, "Invalid limit: a number from 1 on")


async def test_what_is_no_list_has_no_pages(kv: Kv) -> None:
    await kv.put("a", "1")
    assert (await kv.get("a", "limit=x&count&after=z")).json[0]["Key"] == kv.prefix + "a"


async def test_the_plain_route_has_pages_too(kv: Kv) -> None:
    names = await fill(kv, "a", "b")
    answer = await kv.wire("GET", f"/kv/{kv.prefix}?keys&limit=1&reverse")
    assert (answer.json, answer.headers["x-kvnode-next-after"]) == ([names[1]], names[1])
    assert (await kv.wire("GET", f"/kv/{kv.prefix}?keys&count")).text == "2\n"


async def test_a_page_can_be_waited_for(kv: Kv) -> None:
    """Its index is the table's, and it wakes for what is under the prefix only."""
    await fill(kv, "a")
    page = await kv.get("", "keys&limit=5")
    waiting = asyncio.ensure_future(
        Kv.get(await other(kv), "", f"keys&limit=5&index={page.index}&wait=20s")
    )
    await asyncio.sleep(0.1)
    await kv.wire("PUT", "/v1/kv/elsewhere", kv.prefix)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await kv.put("b", "1")
    answer: Answer = await asyncio.wait_for(waiting, 5)
    assert answer.json == [kv.prefix + "a", kv.prefix + "b"]


async def other(kv: Kv) -> Kv:
    """The same keys over another connection, which ends with the test's own."""
    wire = type(kv.wire)(kv.wire.host, kv.wire.port)
    wire._writers = kv.wire._writers
    made = Kv(wire)
    made.prefix = kv.prefix
    return made


# --- times to live


async def gone(kv: Kv, key: str) -> bool:
    return (await kv.get(key)).status == 404


async def test_a_key_lives_as_long_as_it_is_told(kv: Kv) -> None:
    loop = asyncio.get_running_loop()
    for number in range(3):  # a machine that stalls for so long is no reason to fail
        key = f"a{number}"
        began = loop.time()
        assert (await kv.put(key, "1", "ttl=1s")).text == "true"
        first = await kv.get(key)
        if first.status == 404:
            assert loop.time() - began >= 1.0, "it is over before anybody could wait for it"
            continue
        answer = await kv.get(key, f"index={first.index}&wait=10s")
        took = loop.time() - began
        assert answer.status == 404, "the deletion wakes who waits"
        assert took >= 1.0
        assert answer.index > first.index
        if took < 3.0:
            return
    raise AssertionError("it lived too long each time")


async def test_who_asks_is_told_how_long_a_key_lives(kv: Kv) -> None:
    await kv.put("a", "1", "ttl=1h30m")
    await kv.put("b", "1")
    answer = await kv.get("a", "ttl")
    entry = answer.json[0]
    assert (entry["TTL"], entry["TTLIndex"]) == ("1h30m0s", entry["ModifyIndex"])
    assert answer.headers["x-kvnode-ttl"] == "1h30m0s"
    assert answer.index == entry["ModifyIndex"]
    assert "TTL" not in await kv.entry("a"), "only who asks"
    assert "TTL" not in (await kv.get("b", "ttl")).json[0]
    listed = (await kv.get("", "recurse&ttl")).json
    assert [item.get("TTL") for item in listed] == ["1h30m0s", None]
    paged = (await kv.get("", "recurse&ttl&limit=1")).json
    assert paged == listed[:1]
    assert (await kv.get("a", "raw&ttl")).headers["x-kvnode-ttl"] == "1h30m0s"
    plain = await kv.wire("GET", f"/kv/{kv.prefix}a?ttl")
    assert (plain.body, plain.headers["x-kvnode-ttl"]) == (b"1", "1h30m0s")


async def test_writing_again_renews_or_ends_the_time(kv: Kv) -> None:
    await kv.put("renewed", "1", "ttl=2s")
    await kv.put("ended", "1", "ttl=2s")
    before = await kv.entry("renewed")
    await kv.put("renewed", "1", "ttl=30s")
    await kv.put("ended", "1")
    assert await kv.entry("renewed") == before, "a renewal changes nothing else"
    await kv.put("last", "1", "ttl=2s")
    index = (await kv.get("last")).index
    answer = await kv.get("last", f"index={index}&wait=10s")
    assert answer.status == 404, "its time has passed, and so have the others' first times"
    assert not await gone(kv, "renewed")
    assert "TTL" not in (await kv.get("ended", "ttl")).json[0]


async def test_a_time_goes_with_flags_and_conditions(kv: Kv) -> None:
    assert (await kv.put("a", "1", "ttl=1h&cas=5")).text == "false"
    assert (await kv.put("a", "1", "ttl=1h&cas=0&flags=7")).text == "true"
    assert (await kv.entry("a"))["Flags"] == 7


@pytest.mark.parametrize(
    ("ttl", "text"),
    [
        ("5", 'Invalid ttl: time: missing unit in duration "5"'),
        ("x", 'Invalid ttl: time: invalid duration "x"'),
        ("0", 'Invalid ttl "0": 1s is the shortest (setting key_ttl_min_s)'),
        ("-5s", 'Invalid ttl "-5s": 1s is the shortest (setting key_ttl_min_s)'),
        ("999ms", 'Invalid ttl "999ms": 1s is the shortest (setting key_ttl_min_s)'),
        ("90000h", 'Invalid ttl "90000h": 87600h0m0s is the longest'),
    ],
)
async def test_a_bad_time_is_400_and_nothing_is_stored(kv: Kv, ttl: str, text: str) -> None:
    answer = await kv.put("a", "1", f"ttl={ttl}")
    assert (answer.status, answer.text) == (400, text)
    assert await gone(kv, "a")


# --- locks with conditions, and without the value


async def test_a_lock_leaves_the_value_when_told(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    index = int((await kv.put("a", "config", "flags=7")).headers["x-kvnode-index"])
    assert (await kv.put("a", "", f"acquire={session}&keep&if-index={index + 1}")).text == "false"
    assert (await kv.put("a", "", f"acquire={session}&keep&if-index={index}")).text == "true"
    entry = await kv.entry("a")
    assert (entry["Value"], entry["Flags"], entry["Session"]) == ("Y29uZmln", 7, session)
    assert (await kv.put("a", "", f"release={session}&keep")).text == "true"
    entry = await kv.entry("a")
    assert (entry["Value"], "Session" in entry) == ("Y29uZmln", False)


async def test_a_lock_with_a_time_to_live(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    assert (await kv.put("a", "me", f"acquire={session}&ttl=1h")).text == "true"
    entry = (await kv.get("a", "ttl")).json[0]
    assert (entry["Session"], entry["LockIndex"], entry["TTL"]) == (session, 1, "1h0m0s")


async def test_our_locks_fail_as_consuls_do(kv: Kv) -> None:
    none = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"
    answer = await kv.put("a", "", f"acquire={none}&keep")
    assert (answer.status, answer.text) == (500, f'invalid session "{none}"')
    assert (await kv.put("a", "", "acquire=&keep")).text == "missing session"
    assert (await kv.put("a", "", "acquire=x&keep")).status == 500
    plain = await kv.wire("PUT", f"/kv/{kv.prefix}a?acquire={none}&keep")
    assert plain.status == 400


@pytest.mark.parametrize(
    "query",
    [
        "acquire=x&cas=1&keep",
        "acquire=x&release=x&keep",
        "cas=1&if-index=1&ttl=5s",
        "acquire=x&keep&flags=1",
        "add=1&copy=x",
        "add=1&flags=3",
        "add=1&acquire=x",
        "copy=x&ttl=5s",
        "copy=x&move=y",
        "copy=x&recurse&cas=1",
    ],
)
async def test_what_does_not_go_together_is_refused(kv: Kv, query: str) -> None:
    answer = await kv.put("a", "", query)
    assert answer.status == 400
    assert answer.text.startswith("Conflicting flags: ")
    assert answer.text.endswith("\n")


async def test_keep_needs_a_lock_and_no_body(kv: Kv) -> None:
    assert "?acquire or ?release" in (await kv.put("a", "", "keep")).text
    answer = await kv.put("a", "x", "acquire=x&keep")
    assert (answer.status, "no body" in answer.text) == (400, True)


async def test_consuls_own_rules_are_as_they_were(kv: Kv) -> None:
    answer = await kv.put("a", "1", "cas=0&acquire=x")
    assert (answer.status, answer.text) == (400, "Conflicting flags: acquire=x&cas=0\n")


# --- counters


async def test_a_counter_counts(kv: Kv) -> None:
    answer = await kv.put("n", "", "add=5")
    assert (answer.status, answer.body) == (200, b"5")
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["x-kvnode-index"]) == (await kv.entry("n"))["ModifyIndex"]
    assert (await kv.put("n", "", "add=-7")).body == b"-2"
    assert (await kv.put("n", "", "add=+2")).body == b"0"
    assert (await kv.put("n", "", "add=1&pretty")).body == b"1\n"
    plain = await kv.wire("POST", f"/kv/{kv.prefix}n?add=41")
    assert (plain.status, plain.body) == (200, b"42\n")
    assert (await kv.get("n", "raw")).body == b"42"


async def test_a_counter_with_a_condition(kv: Kv) -> None:
    assert (await kv.put("n", "", "add=1&cas=0")).body == b"1"
    assert (await kv.put("n", "", "add=1&cas=0")).body == b"false"
    assert (await kv.wire("PUT", f"/kv/{kv.prefix}n?add=1&cas=0")).status == 409


@pytest.mark.parametrize("value", ["", "one", "1.5", "0x1"])
async def test_what_is_no_number_is_409(kv: Kv, value: str) -> None:
    await kv.put("n", value)
    answer = await kv.put("n", "", "add=1")
    assert (answer.status, answer.text) == (
        409,
        "not changed: the key's value is not a decimal number of 64 bits",
    )
    assert (await kv.get("n", "raw")).text == value


async def test_a_counter_does_not_wrap_around(kv: Kv) -> None:
    await kv.put("n", str(2**63 - 1))
    answer = await kv.put("n", "", "add=1")
    assert (answer.status, "range" in answer.text) == (409, True)


@pytest.mark.parametrize("delta", ["", "x", "1.0", "9223372036854775808", "--1", "0x5"])
async def test_a_bad_number_to_add_is_400(kv: Kv, delta: str) -> None:
    assert (await kv.put("n", "", f"add={delta}")).status == 400
    assert (await kv.put("n", "body", "add=1")).status == 400
    assert await gone(kv, "n")


async def test_many_count_at_once(kv: Kv) -> None:
    others = [await other(kv) for _ in range(8)]

    async def count(mine: Kv) -> None:
        for _ in range(10):
            assert (await mine.put("n", "", "add=1")).status == 200

    await asyncio.gather(*map(count, others))
    assert (await kv.get("n", "raw")).body == b"80"


# --- copy and move


async def test_a_prefix_is_copied(kv: Kv) -> None:
    await fill(kv, "a/1", "a/2", "b")
    answer = await kv.put("c/", "", f"copy={kv.prefix}a/&recurse")
    assert (answer.status, answer.body, answer.headers["x-kvnode-count"]) == (200, b"true", "2")
    entries = (await kv.get("c/", "recurse")).json
    assert [entry["Key"] for entry in entries] == [kv.prefix + "c/1", kv.prefix + "c/2"]
    index = int(answer.headers["x-kvnode-index"])
    assert {entry["ModifyIndex"] for entry in entries} == {index}, "all in one step"
    assert len((await kv.get("a/", "keys")).json) == 2


async def test_a_prefix_is_moved(kv: Kv) -> None:
    await fill(kv, "a/1", "a/2")
    plain = await kv.wire("PUT", f"/kv/{kv.prefix}c/?move={kv.prefix}a/&recurse")
    assert (plain.status, plain.text) == (200, "moved 2 keys\n")
    assert (await kv.get("", "keys")).json == [kv.prefix + "c/1", kv.prefix + "c/2"]


async def test_one_key_is_renamed(kv: Kv) -> None:
    await fill(kv, "a", "ab")
    assert (await kv.put("z", "", f"move={kv.prefix}a")).text == "true"
    assert (await kv.get("", "keys")).json == [kv.prefix + "ab", kv.prefix + "z"]


async def test_nothing_is_overwritten_unless_told(kv: Kv) -> None:
    await fill(kv, "a/1", "a/2", "c/2")
    answer = await kv.put("c/", "", f"copy={kv.prefix}a/&recurse")
    assert (answer.status, answer.text) == (
        409,
        f'nothing was changed: the key "{kv.prefix}c/2" exists; ?overwrite replaces it',
    )
    assert await gone(kv, "c/1")
    assert (await kv.put("c/", "", f"copy={kv.prefix}a/&recurse&overwrite")).text == "true"


async def test_a_single_copy_with_a_condition(kv: Kv) -> None:
    await fill(kv, "a", "b")
    assert (await kv.put("b", "", f"copy={kv.prefix}a&cas=0")).text == "false"
    index = (await kv.entry("b"))["ModifyIndex"]
    assert (await kv.put("b", "", f"copy={kv.prefix}a&cas={index}")).text == "true"


async def test_a_locked_key_is_not_moved(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    await kv.put("a/1", "me", f"acquire={session}")
    answer = await kv.put("b/", "", f"move={kv.prefix}a/&recurse")
    assert (answer.status, "a session holds" in answer.text) == (409, True)
    assert (await kv.entry("a/1"))["Session"] == session


async def test_what_cannot_be_copied_is_refused(kv: Kv) -> None:
    await fill(kv, "a")
    assert (await kv.put("b", "", f"copy={kv.prefix}none")).status == 404
    assert (await kv.put("b", "", "copy=")).status == 400
    assert (await kv.put("b", "", f"copy={kv.prefix}b")).status == 400
    assert (await kv.put("b", "body", f"copy={kv.prefix}a")).status == 400
    long = await kv.put("b" * 4000, "", f"copy={kv.prefix}&recurse")
    assert (long.status, "key_bytes_max" in long.text) in ((400, True), (200, False))
    assert (await kv.wire("PUT", "/v1/kv/?copy=a")).status == 400


async def test_many_keys_are_refused_with_the_settings_name(kv: Kv) -> None:
    for at in range(0, 5100, 100):
        ops = [
            {"KV": {"Verb": "set", "Key": f"{kv.prefix}a/{at + n}", "Value": ""}}
            for n in range(100)
        ]
        assert (await kv.wire("PUT", "/v1/txn", json.dumps(ops))).status == 200
    answer = await kv.put("b/", "", f"move={kv.prefix}a/&recurse")
    assert (answer.status, "copy_keys_max" in answer.text) == (413, True)
    assert (await kv.get("", "keys&count")).body == b"5100"
    await kv.delete("a/", "recurse")

"""spec §2.1, §2.2 and §4: what the KV routes store and answer."""

from __future__ import annotations

import base64

import pytest

from tests.conformance.wire import Kv, Wire
from tests.http.fake_replica import FakeReplica

SESSION = "6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11"


async def test_entry_has_its_members_in_order(kv: Kv) -> None:
    """Spec §4.1; Session is absent when not locked."""
    await kv.put("a", "hello")
    assert list(await kv.entry("a")) == [
        "LockIndex",
        "Key",
        "Flags",
        "Value",
        "CreateIndex",
        "ModifyIndex",
    ]


async def test_an_empty_value_is_null(kv: Kv) -> None:
    """Spec §4.1, §17 (2)."""
    await kv.put("a", b"")
    assert (await kv.entry("a"))["Value"] is None
    raw = await kv.get("a", "raw")
    assert (raw.status, raw.body, raw.headers["content-type"]) == (200, b"", "text/plain")


@pytest.mark.parametrize("value", [b"\x00", bytes(range(256)), b"x" * 70_000, "ç".encode()])
async def test_bytes_in_are_bytes_out(kv: Kv, value: bytes) -> None:
    assert (await kv.put("a", value)).body == b"true"
    assert base64.b64decode((await kv.entry("a"))["Value"]) == value
    assert (await kv.get("a", "raw")).body == value
    assert (await kv.wire("GET", f"/kv/{kv.prefix}a")).body == value


async def test_raw_cannot_run_as_a_page(kv: Kv) -> None:
    """Spec §4.1."""
    await kv.put("a", "<script>")
    answer = await kv.get("a", "raw")
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_recurse_lists_in_byte_order_and_wins_over_raw(kv: Kv) -> None:
    """Spec §4.1."""
    for key in ("b", "a/x", "a", "B", "ç"):
        await kv.put(key, key)
    answer = await kv.get("", "recurse&raw")
    names = [entry["Key"][len(kv.prefix) :] for entry in answer.json]
    assert names == ["B", "a", "a/x", "b", "ç"]
    assert (await kv.get("none", "recurse")).status == 404


async def test_keys_wins_over_recurse_and_raw(kv: Kv) -> None:
    """Spec §4.1."""
    await kv.put("a", "1")
    assert (await kv.get("", "raw&recurse&keys")).json == [f"{kv.prefix}a"]


@pytest.mark.parametrize(
    ("query", "prefix", "expected"),
    [
        ("keys&separator=/", "", ["app/", "top"]),
        ("keys&separator=/", "app", ["app/"]),
        ("keys&separator=/", "app/", ["app/db", "app/web/"]),
        ("keys&separator=%2F", "app/", ["app/db", "app/web/"]),
        ("keys&seperator=/", "", ["app/", "top"]),
        ("keys&seperator=x&separator=/", "", ["app/", "top"]),
        ("keys&separator=pp", "", ["app", "top"]),
        ("keys&separator=", "", ["app/db", "app/web/a", "app/web/b", "top"]),
        ("keys", "app/", ["app/db", "app/web/a", "app/web/b"]),
        ("keys&separator=zz", "app/w", ["app/web/a", "app/web/b"]),
    ],
)
async def test_separator_table(kv: Kv, query: str, prefix: str, expected: list[str]) -> None:
    """Spec §4.1, §17 (3)."""
    for key in ("app/db", "app/web/a", "app/web/b", "top"):
        await kv.put(key, "1")
    names = [key[len(kv.prefix) :] for key in (await kv.get(prefix, query)).json]
    assert names == expected


async def test_nothing_under_a_prefix_is_404_with_the_tables_index(kv: Kv) -> None:
    """Spec §4.1, §2.2."""
    written = await kv.put("other", "1")
    for query in ("keys", "recurse"):
        answer = await kv.get("none/", query)
        assert (answer.status, answer.body) == (404, b"")
        assert answer.index >= int(written.headers["x-kvnode-index"])


async def test_the_empty_prefix_of_an_empty_store(wire: Wire, fake: FakeReplica) -> None:
    """Spec §4.1, §2.2: keys 200 ``[]``, recurse 404; the index is never 0."""
    assert fake.store.count() == 0
    keys = await wire("GET", "/v1/kv/?keys")
    assert (keys.status, keys.text, keys.index) == (200, "[]", 1)
    recurse = await wire("GET", "/v1/kv/?recurse")
    assert (recurse.status, recurse.body, recurse.index) == (404, b"", 1)
    missing = await wire("GET", "/v1/kv/a")
    assert (missing.status, missing.index) == (404, 1)


async def test_case_slashes_and_neighbours_are_different_keys(kv: Kv) -> None:
    """Spec §4."""
    for key in ("a", "a/", "a/b", "A"):
        await kv.put(key, key)
    for key in ("a", "a/", "a/b", "A"):
        assert (await kv.get(key, "raw")).text == key


# --- indexes: spec §2.1, §2.2 --------------------------------------------------------------


async def test_first_write_sets_both_indexes(kv: Kv) -> None:
    """Spec §2.1."""
    written = int((await kv.put("a", "1")).headers["x-kvnode-index"])
    entry = await kv.entry("a")
    assert (entry["CreateIndex"], entry["ModifyIndex"], entry["LockIndex"]) == (written, written, 0)


@pytest.mark.parametrize(("value", "query"), [("2", ""), ("1", "flags=9")])
async def test_another_value_or_flags_moves_modify_index(kv: Kv, value: str, query: str) -> None:
    """Spec §2.1."""
    await kv.put("a", "1")
    before = await kv.entry("a")
    await kv.put("a", value, query)
    after = await kv.entry("a")
    assert after["CreateIndex"] == before["CreateIndex"]
    assert after["ModifyIndex"] > before["ModifyIndex"]


@pytest.mark.parametrize("query", ["flags=4", "flags=4&cas={index}"])
async def test_an_identical_write_keeps_modify_index(kv: Kv, query: str) -> None:
    """Spec §2.1, §17 (5)."""
    await kv.put("a", "1", "flags=4")
    before = await kv.entry("a")
    answer = await kv.put("a", "1", query.format(index=before["ModifyIndex"]))
    assert answer.body == b"true"
    assert answer.headers["x-kvnode-index"] == str(before["ModifyIndex"])
    assert await kv.entry("a") == before


async def test_a_key_made_again_starts_over(kv: Kv) -> None:
    """Spec §2.1."""
    await kv.put("a", "1")
    before = await kv.entry("a")
    await kv.delete("a")
    await kv.put("a", "1")
    after = await kv.entry("a")
    assert after["CreateIndex"] == after["ModifyIndex"] > before["ModifyIndex"]


async def test_index_of_a_read(kv: Kv) -> None:
    """Spec §2.2, §17 (6): one key, its own; a prefix, the highest under it."""
    await kv.put("p/a", "1")
    await kv.put("p/b", "1")
    await kv.put("q", "1")
    a, b, q = [(await kv.entry(key))["ModifyIndex"] for key in ("p/a", "p/b", "q")]
    assert (await kv.get("p/a")).index == a
    for query in ("keys", "recurse"):
        assert (await kv.get("p/", query)).index == b
        assert (await kv.get("", query)).index == q
    await kv.put("p/a", "2")
    assert (await kv.get("p/", "keys")).index > q, "a value change moves ?keys too"


async def test_index_after_deletes_never_falls(kv: Kv) -> None:
    """Spec §2.2, §2.3, §17 (6): tombstones."""
    for key in ("p/a", "p/b", "p/c"):
        await kv.put(key, "1")
    before = (await kv.get("p/", "recurse")).index
    deleted = int((await kv.delete("p/a")).headers["x-kvnode-index"])
    assert (await kv.get("p/", "recurse")).index == deleted > before
    assert (await kv.get("p/a")).index >= deleted
    tree = int((await kv.delete("p/", "recurse")).headers["x-kvnode-index"])
    answer = await kv.get("p/", "recurse")
    assert (answer.status, answer.index) == (404, tree)


async def test_deleting_a_missing_key_changes_nothing(kv: Kv) -> None:
    """Spec §2.3."""
    await kv.put("a", "1")
    before = (await kv.get("", "recurse")).index
    assert (await kv.delete("zz")).body == b"true"
    assert (await kv.get("", "recurse")).index == before


# --- PUT: spec §4.2 ------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, 1, 3304740253564472344, 16210313421097356768, 2**64 - 1])
async def test_flags_use_the_whole_range(kv: Kv, flags: int) -> None:
    """Spec §1.4, §17 (20)."""
    await kv.put("a", "1", f"flags={flags}")
    assert f'"Flags":{flags},' in (await kv.get("a")).text


async def test_a_put_without_flags_clears_them(kv: Kv) -> None:
    """Spec §4.2."""
    await kv.put("a", "1", "flags=7")
    await kv.put("a", "1")
    assert (await kv.entry("a"))["Flags"] == 0


async def test_cas_rows(kv: Kv) -> None:
    """Spec §4.2, §17 (10)."""
    assert (await kv.put("a", "1", "cas=7")).body == b"false", "missing, so no index matches"
    assert (await kv.put("a", "1", "cas=0")).body == b"true"
    assert (await kv.put("a", "2", "cas=0")).body == b"false", "it exists"
    index = (await kv.entry("a"))["ModifyIndex"]
    assert (await kv.put("a", "2", f"cas={index - 1}")).body == b"false"
    assert (await kv.put("a", "2", f"cas={index + 1}")).body == b"false"
    refused = await kv.put("a", "2", f"cas={index + 1}")
    assert (refused.status, refused.headers["content-type"]) == (200, "application/json")
    assert (await kv.put("a", "2", f"cas={index}&flags=3")).body == b"true"
    entry = await kv.entry("a")
    assert (entry["Value"], entry["Flags"]) == ("Mg==", 3)


@pytest.mark.parametrize("name", ["cas", "flags"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("abc", "invalid syntax"),
        ("", "invalid syntax"),
        ("-1", "invalid syntax"),
        ("%2B1", "invalid syntax"),
        ("1.0", "invalid syntax"),
        ("1_0", "invalid syntax"),
        ("0x10", "invalid syntax"),
        ("%D9%A1", "invalid syntax"),
        ("18446744073709551616", "value out of range"),
        ("9" * 5000, "value out of range"),
    ],
)
async def test_unparsable_cas_and_flags_are_500_with_gos_text(
    kv: Kv, name: str, value: str, reason: str
) -> None:
    """Spec §4.2, §16: kept at 500 on purpose."""
    answer = await kv.put("a", "1", f"{name}={value}")
    assert answer.status == 500
    assert answer.text.startswith("strconv.ParseUint: parsing ")
    assert answer.text.endswith(f": {reason}")
    assert (await kv.get("a")).status == 404
    if value == "abc":
        assert answer.text == 'strconv.ParseUint: parsing "abc": invalid syntax'


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("cas=0&acquire=x", "acquire=x&cas=0"),
        ("release=y&acquire=x", "acquire=x&release=y"),
        ("release&cas", "cas=&release="),
        ("flags=1&cas=0&release=a%20b", "cas=0&flags=1&release=a+b"),
        ("cas=abc&acquire=", "acquire=&cas=abc"),
        ("cas=1&cas=2&acquire=%2F", "acquire=%2F&cas=1&cas=2"),
    ],
)
async def test_conflicting_flags_show_the_query_sorted(kv: Kv, query: str, shown: str) -> None:
    """Spec §4.2, §17 (19): with a final newline."""
    answer = await kv.put("a", "1", query)
    assert (answer.status, answer.text) == (400, f"Conflicting flags: {shown}\n")


@pytest.mark.parametrize(
    ("session", "text"),
    [
        ("", "missing session"),
        ("short", "failed session lookup: index error: UUID must be 36 characters"),
        (SESSION, f'invalid session "{SESSION}"'),
    ],
)
async def test_acquire_without_such_a_session(kv: Kv, session: str, text: str) -> None:
    """Spec §4.2, §17 (11): Patroni tests ``startswith("invalid session")``."""
    answer = await kv.put("a", "1", f"acquire={session}")
    assert (answer.status, answer.text) == (500, text)
    assert (await kv.get("a")).status == 404


async def test_release_of_what_is_not_held(kv: Kv) -> None:
    """Spec §4.2, §17 (12): any text is allowed, nothing changes."""
    await kv.put("a", "1")
    for session in (SESSION, "any text"):
        answer = await kv.put("a", "2", f"release={session.replace(' ', '%20')}")
        assert (answer.status, answer.body) == (200, b"false")
    assert (await kv.put("a", "2", "release=")).text == "missing session"
    assert (await kv.entry("a"))["Value"] == "MQ=="


@pytest.mark.parametrize("query", ["", "cas=0", "flags=1", "acquire=x", "cas=1&release=2"])
async def test_put_without_a_key_is_400(wire: Wire, query: str) -> None:
    """Spec §4.2."""
    answer = await wire("PUT", f"/v1/kv/?{query}", b"x")
    assert (answer.status, answer.text) == (400, "Missing key name")


# --- DELETE: spec §4.3 ---------------------------------------------------------------------


async def test_delete_rows(kv: Kv) -> None:
    """Spec §4.3, §17 (10), §16."""
    assert (await kv.delete("a")).body == b"true", "also when missing"
    assert (await kv.delete("a", "cas=7")).body == b"true", "also when missing"
    await kv.put("a", "1")
    index = (await kv.entry("a"))["ModifyIndex"]
    assert (await kv.delete("a", "cas=0")).body == b"false"
    assert (await kv.delete("a", f"cas={index + 1}")).body == b"false"
    assert (await kv.get("a")).status == 200
    assert (await kv.delete("a", f"cas={index}")).body == b"true"
    assert (await kv.get("a")).status == 404


async def test_delete_recurse_takes_the_prefix(kv: Kv) -> None:
    """Spec §4.3."""
    for key in ("a", "a/b", "ab", "b"):
        await kv.put(key, "1")
    assert (await kv.delete("a", "recurse")).body == b"true"
    assert (await kv.get("", "keys")).json == [f"{kv.prefix}b"]


async def test_delete_errors(kv: Kv) -> None:
    """Spec §4.3."""
    answer = await kv.delete("a", "recurse&cas=0")
    assert (answer.status, answer.text) == (400, "Conflicting flags: cas=0&recurse=\n")
    answer = await kv.wire("DELETE", "/v1/kv/")
    assert (answer.status, answer.text) == (400, "Missing key name")
    answer = await kv.delete("a", "cas=x")
    assert answer.status == 500
    assert answer.text == 'strconv.ParseUint: parsing "x": invalid syntax'


async def test_delete_recurse_without_a_key_takes_all(wire: Wire, fake: FakeReplica) -> None:
    """Spec §4.3."""
    await wire("PUT", "/v1/kv/a", b"1")
    assert (await wire("DELETE", "/v1/kv/?recurse")).body == b"true"
    assert fake.store.count() == 0

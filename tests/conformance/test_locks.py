"""spec §2.1, §4.2 and §5.5, §17 (4), (11), (12), (13): acquire and release, and what ends a lock."""

from __future__ import annotations

import time

import pytest

from tests.conformance.wire import Answer, Kv, Sessions

NOBODY = "6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11"


async def acquire(kv: Kv, key: str, session: str, value: str = "v", more: str = "") -> Answer:
    return await kv.put(key, value, f"acquire={session}{more}")


async def release(kv: Kv, key: str, session: str, value: str = "v", more: str = "") -> Answer:
    return await kv.put(key, value, f"release={session}{more}")


# --- acquire


async def test_acquire_makes_and_locks_a_missing_key(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    answer = await acquire(kv, "a", session, "v", "&flags=7")
    assert (answer.status, answer.body) == (200, b"true")
    assert answer.headers["content-type"] == "application/json"
    assert "x-consul-index" not in answer.headers
    entry = await kv.entry("a")
    assert list(entry) == [
        "LockIndex",
        "Key",
        "Flags",
        "Value",
        "Session",
        "CreateIndex",
        "ModifyIndex",
    ]
    assert (entry["LockIndex"], entry["Flags"], entry["Session"]) == (1, 7, session)
    assert entry["CreateIndex"] == entry["ModifyIndex"] == int(answer.headers["x-kvnode-index"])


async def test_acquire_of_a_free_key_keeps_its_create_index(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    await kv.put("a", "1")
    before = await kv.entry("a")
    await acquire(kv, "a", session)
    entry = await kv.entry("a")
    assert (entry["CreateIndex"], entry["LockIndex"]) == (before["CreateIndex"], 1)
    assert entry["ModifyIndex"] > before["ModifyIndex"]
    await release(kv, "a", session)
    await acquire(kv, "a", session)
    assert (await kv.entry("a"))["LockIndex"] == 2


async def test_acquire_by_the_holder_updates_the_value_only(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    await acquire(kv, "a", session, "1")
    first = await kv.entry("a")
    assert (await acquire(kv, "a", session, "1")).body == b"true"
    assert await kv.entry("a") == first, "an identical one changes nothing"
    assert (await acquire(kv, "a", session, "2", "&flags=3")).body == b"true"
    entry = await kv.entry("a")
    assert (entry["LockIndex"], entry["Flags"], entry["Value"]) == (1, 3, "Mg==")
    assert entry["ModifyIndex"] > first["ModifyIndex"]


async def test_acquire_by_another_is_false_and_changes_nothing(kv: Kv, sessions: Sessions) -> None:
    holder, other = await sessions.create(), await sessions.create()
    await acquire(kv, "a", holder, "1")
    before = await kv.entry("a")
    answer = await acquire(kv, "a", other, "2")
    assert (answer.status, answer.body) == (200, b"false")
    assert await kv.entry("a") == before


@pytest.mark.parametrize(
    ("session", "text"),
    [
        ("", "missing session"),
        ("short", "failed session lookup: index error: UUID must be 36 characters"),
        (NOBODY, f'invalid session "{NOBODY}"'),
        (
            "z" + NOBODY[1:],
            "failed session lookup: index error: Invalid UUID: encoding/hex: invalid byte: "
            "U+007A 'z'",
        ),
        (
            "-" + NOBODY[1:],
            'failed session lookup: index error: UUID should have maximum of 4 "-"; got 5',
        ),
    ],
)
async def test_acquire_without_such_a_session(kv: Kv, session: str, text: str) -> None:
    """Spec §4.2, §14: Patroni tests ``startswith("invalid session")``."""
    answer = await acquire(kv, "a", session)
    assert (answer.status, answer.text) == (500, text)
    assert (await kv.get("a")).status == 404


async def test_acquire_with_a_session_that_was_destroyed(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    await sessions.destroy(session)
    answer = await acquire(kv, "a", session)
    assert (answer.status, answer.text) == (500, f'invalid session "{session}"')


async def test_the_case_of_a_session_does_not_matter(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    assert (await acquire(kv, "a", session.upper())).body == b"true"
    assert (await kv.entry("a"))["Session"] == session
    assert (await release(kv, "a", session.upper())).body == b"true"


# --- release


async def test_release_clears_the_session_and_replaces_the_value(
    kv: Kv, sessions: Sessions
) -> None:
    """Spec §17 (12): an empty body empties the value."""
    session = await sessions.create()
    await acquire(kv, "a", session, "1", "&flags=7")
    before = await kv.entry("a")
    assert (await release(kv, "a", session, "")).body == b"true"
    entry = await kv.entry("a")
    assert "Session" not in entry
    assert (entry["Value"], entry["Flags"], entry["LockIndex"]) == (None, 0, 1)
    assert entry["CreateIndex"] == before["CreateIndex"]
    assert entry["ModifyIndex"] > before["ModifyIndex"]


async def test_release_of_what_this_session_does_not_hold_is_false(
    kv: Kv, sessions: Sessions
) -> None:
    holder, other = await sessions.create(), await sessions.create()
    await acquire(kv, "a", holder, "1")
    await kv.put("free", "1")
    before = await kv.entry("a")
    for key in ("a", "free", "missing"):
        for session in (other, NOBODY, "any%20text"):
            answer = await release(kv, key, session, "2")
            assert (answer.status, answer.body) == (200, b"false"), (key, session)
    assert await kv.entry("a") == before
    assert (await kv.get("missing")).status == 404
    assert (await release(kv, "a", "")).text == "missing session"


async def test_pretty(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create()
    assert (await acquire(kv, "a", session, "1", "&pretty")).body == b"true\n"
    assert (await release(kv, "a", NOBODY, "1", "&pretty")).body == b"false\n"
    assert (await release(kv, "a", "x", "1", "&pretty")).body == b"false\n"


# --- locks are advisory


async def test_a_plain_put_works_on_a_locked_key_and_resets_the_lock_index(
    kv: Kv, sessions: Sessions
) -> None:
    """Spec §2.1, §16: surprising, and kept."""
    session = await sessions.create()
    await acquire(kv, "a", session, "1")
    before = await kv.entry("a")
    assert (await kv.put("a", "1")).body == b"true"
    entry = await kv.entry("a")
    assert (entry["LockIndex"], entry["Session"]) == (0, session)
    assert entry["ModifyIndex"] > before["ModifyIndex"]
    assert (await kv.put("a", "1", f"cas={entry['ModifyIndex']}")).body == b"true"
    assert await kv.entry("a") == entry, "now it is identical"


@pytest.mark.parametrize("query", ["", "recurse"])
async def test_a_delete_removes_the_lock_without_lock_delay(
    kv: Kv, sessions: Sessions, query: str
) -> None:
    holder, other = await sessions.create(), await sessions.create()
    await acquire(kv, "a", holder)
    assert (await kv.delete("a", query)).body == b"true"
    assert (await acquire(kv, "a", other)).body == b"true"
    assert (await kv.entry("a"))["LockIndex"] == 1


# --- the end of a session


async def test_destroy_releases_every_key_in_one_entry(kv: Kv, sessions: Sessions) -> None:
    """Spec §5.5: the value stays."""
    session, other = await sessions.create(), await sessions.create()
    for key in ("a", "b"):
        await acquire(kv, key, session, key)
    await acquire(kv, "c", other, "c")
    await sessions.destroy(session)
    a, b, c = [await kv.entry(key) for key in ("a", "b", "c")]
    assert "Session" not in a
    assert "Session" not in b
    assert c["Session"] == other
    assert (a["Value"], a["LockIndex"]) == ("YQ==", 1)
    assert a["ModifyIndex"] == b["ModifyIndex"] > c["ModifyIndex"]


async def test_destroy_deletes_when_it_was_asked_to(kv: Kv, sessions: Sessions) -> None:
    session = await sessions.create(Behavior="delete")
    await acquire(kv, "a", session)
    await kv.put("b", "1")
    await sessions.destroy(session)
    missing = await kv.get("a")
    assert missing.status == 404
    assert (await kv.get("b")).status == 200
    assert (await kv.get("", "recurse")).index >= missing.index - 1


@pytest.mark.parametrize("behavior", ["release", "delete"])
async def test_destroy_starts_the_lock_delay(kv: Kv, sessions: Sessions, behavior: str) -> None:
    """Spec §5.5, §17 (13): also when the key was deleted."""
    other = await sessions.create()
    for number in range(3):  # a machine that stalls for so long is no reason to fail
        key = f"a{number}"
        holder = await sessions.create(LockDelay="600ms", Behavior=behavior)
        await acquire(kv, key, holder, "1")
        began = time.monotonic()
        await sessions.destroy(holder)
        refused = 0
        while (answer := await acquire(kv, key, other, "2")).body == b"false":
            assert answer.status == 200
            assert time.monotonic() - began < 10
            refused += 1
        assert (answer.status, answer.body) == (200, b"true")
        assert time.monotonic() - began >= 0.6
        assert (await kv.entry(key))["Session"] == other
        if refused:
            return
    raise AssertionError("the lock was never refused")


async def test_no_lock_delay_after_release_or_when_none_was_asked_for(
    kv: Kv, sessions: Sessions
) -> None:
    """Spec §17 (13)."""
    holder, other = await sessions.create(LockDelay="15s"), await sessions.create()
    await acquire(kv, "a", holder)
    await release(kv, "a", holder)
    await sessions.destroy(holder)
    assert (await acquire(kv, "a", other)).body == b"true"
    brief = await sessions.create(LockDelay=0)
    await acquire(kv, "b", brief)
    await sessions.destroy(brief)
    assert (await acquire(kv, "b", other)).body == b"true"


async def test_a_key_in_lock_delay_can_be_written(kv: Kv, sessions: Sessions) -> None:
    holder = await sessions.create()
    await acquire(kv, "a", holder)
    await sessions.destroy(holder)
    assert (await kv.put("a", "2")).body == b"true"
    assert (await kv.delete("a")).body == b"true"


# --- waiting for a lock, as clients do


async def test_a_waiter_is_woken_when_the_holder_lets_go(kv: Kv, sessions: Sessions) -> None:
    """Spec §13: ``consul lock`` waits on the key."""
    session = await sessions.create()
    await acquire(kv, "a", session)
    index = (await kv.get("a")).index
    await sessions.destroy(session)
    answer = await kv.get("a", f"index={index}&wait=10s")
    assert answer.index > index
    assert "Session" not in answer.json[0]


# --- our own route


async def test_the_plain_route_locks_and_releases(kv: Kv, sessions: Sessions) -> None:
    """Design §6: the status says it."""
    holder, other = await sessions.create(), await sessions.create()
    path = f"/kv/{kv.prefix}a"
    locked = await kv.wire("PUT", f"{path}?acquire={holder}", "v")
    assert (locked.status, locked.body) == (200, b"locked\n")
    refused = await kv.wire("POST", f"{path}?acquire={other}", "w")
    assert refused.status == 409
    assert refused.text.startswith("not locked: ")
    for session in (other, "x"):
        refused = await kv.wire("PUT", f"{path}?release={session}", "w")
        assert (refused.status, refused.text.split(":")[0]) == (409, "not released")
    released = await kv.wire("PUT", f"{path}?release={holder}", "w")
    assert (released.status, released.body) == (200, b"released\n")
    for session in ("", "x", NOBODY):
        answer = await kv.wire("PUT", f"{path}?acquire={session}", "v")
        assert answer.status == 400, session

"""Archives between a real Consul and kvnode, there and back, and Consul's own command line (spec §8)."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.programs import find_consul
from tests.conformance.wire import Wire

pytestmark = pytest.mark.chaos

PATH = "/v1/snapshot"


@pytest.fixture
async def theirs(consul: Wire) -> AsyncIterator[Wire]:
    yield consul
    await consul.close()


async def fill(wire: Wire, rng: random.Random) -> None:
    """Everything that an archive can hold of keys and sessions."""
    for number in range(120):
        flags = rng.choice((0, 1, 42, 2**64 - 1))
        value = rng.randbytes(rng.choice((0, 1, 10, 40, 300, 70_000)))
        await wire("PUT", f"/v1/kv/app/{number:03}?flags={flags}", value)
    for name in ("%C3%A7%20x", "a:b", "deep/er/and/deeper", "z", "z/"):
        await wire("PUT", f"/v1/kv/{name}", b"v")
    await wire("PUT", "/v1/kv/gone", b"v")
    await wire("DELETE", "/v1/kv/gone")
    await wire("DELETE", "/v1/kv/app/00?recurse")
    await wire("PUT", "/v1/session/create", b'{"NodeChecks":[],"Name":"spare"}')
    for number in range(6):
        members: dict[str, Any] = {
            "Name": f"session {number}",
            "NodeChecks": [],
            "LockDelay": f"{number}s",
            "Behavior": rng.choice(("release", "delete")),
        }
        if number % 2:
            members["TTL"] = "3600s"
        session = (await wire("PUT", "/v1/session/create", json.dumps(members))).json["ID"]
        for _ in range(number % 3 + 1):
            path = f"/v1/kv/lock/{number}"
            assert (await wire("PUT", f"{path}?acquire={session}", b"held")).body == b"true"
            if number == 5:
                await wire("PUT", f"{path}?release={session}", b"free")


async def content(wire: Wire) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Keys and sessions, without the indexes."""
    keys = (await wire("GET", "/v1/kv/?recurse")).json
    sessions = (await wire("GET", "/v1/session/list")).json
    for item in (*keys, *sessions):
        del item["CreateIndex"], item["ModifyIndex"]
    return keys, sessions


async def locks_are_held(wire: Wire) -> int:
    """Nobody else gets a lock, and its holder still has it."""
    # Not a new one: after a restore Consul does not know its own node for a minute.
    sessions = (await wire("GET", "/v1/session/list")).json
    other = next(session["ID"] for session in sessions if session["Name"] == "spare")
    held = 0
    for entry in (await wire("GET", "/v1/kv/lock/?recurse")).json:
        holder = entry.get("Session")
        if holder:
            held += 1
            path = f"/v1/kv/{entry['Key']}"
            assert (await wire("PUT", f"{path}?acquire={other}", b"x")).body == b"false"
            assert (await wire("PUT", f"{path}?acquire={holder}", b"held")).body == b"true"
    return held


async def move(source: Wire, target: Wire) -> None:
    saved = await source("GET", PATH)
    assert (saved.status, saved.headers["content-type"]) == (200, "application/x-gzip")
    restored = await target("PUT", PATH, saved.body)
    assert (restored.status, restored.body) == (200, b""), restored
    assert await content(source) == await content(target)


async def test_there_changed_and_back_again(theirs: Wire, ours: Wire) -> None:
    """Keys, flags, lock indexes and sessions are equal; locks stay held on either side."""
    rng = random.Random(8)
    await ours("PUT", "/v1/kv/before", b"goes away")
    await fill(theirs, rng)
    await move(theirs, ours)
    assert await locks_are_held(ours) == 5
    for number in range(30):
        key = f"/v1/kv/app/{rng.randrange(20, 200):03}"
        if number % 3:
            await ours("PUT", f"{key}?flags={number}", rng.randbytes(50))
        else:
            await ours("DELETE", key)
    session = (await ours("PUT", "/v1/session/create", b'{"NodeChecks":[],"TTL":"90s"}')).json["ID"]
    await ours("PUT", f"/v1/kv/lock/new?acquire={session}", b"x")
    await move(ours, theirs)
    assert await locks_are_held(theirs) == 6
    await move(theirs, ours)
    await move(ours, theirs)


async def test_the_index_goes_on_above_both(theirs: Wire, ours: Wire) -> None:
    """And at kvnode it does not fall on the way either."""
    for source, target in ((theirs, ours), (ours, theirs)):
        for _ in range(20):
            await source("PUT", "/v1/kv/busy", os.urandom(4))
        await target("PUT", "/v1/kv/busy", b"before")
        known = (await source("GET", PATH)).index
        former = (await target("GET", "/v1/kv/busy")).index
        await move(source, target)
        between = (await target("GET", "/v1/kv/busy")).index
        await target("PUT", "/v1/kv/busy", b"after")
        after = (await target("GET", "/v1/kv/busy")).index
        if target is ours:
            assert former < between < after
        else:
            assert after > max(known, former)


async def run(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        find_consul(), *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_consuls_command_line_saves_inspects_and_restores(ours: Wire, tmp_path: Path) -> None:
    """The restore is sent in chunks, without a length."""
    find_consul()
    await fill(ours, random.Random(3))
    before = await content(ours)
    address = f"-http-addr=http://{ours.host}:{ours.port}"
    file = tmp_path / "backup.snap"
    code, said = await run("snapshot", "save", address, str(file))
    assert (code, "Saved and verified snapshot to index" in said) == (0, True), said
    code, said = await run("snapshot", "inspect", str(file))
    assert code == 0, said
    assert said.split()[:2][0] == "ID"
    await ours("DELETE", "/v1/kv/?recurse")
    code, said = await run("snapshot", "restore", address, str(file))
    assert (code, said.strip()) == (0, "Restored snapshot")
    assert await content(ours) == before
    code, said = await run("snapshot", "save", "-stale", address, str(file))
    assert code == 0, said
    file.write_bytes(file.read_bytes()[:-20])
    code, said = await run("snapshot", "restore", address, str(file))
    assert code == 1
    assert "Unexpected response code: 500 (failed to" in said
    assert await content(ours) == before


async def test_both_refuse_the_same_and_in_the_same_words(theirs: Wire, ours: Wire) -> None:
    good = (await theirs("GET", PATH)).body
    for body in (b"", b"hello, this is no archive", good[: len(good) // 2], good[:20]):
        told = await theirs("PUT", PATH, body)
        mine = await ours("PUT", PATH, body)
        assert (mine.status, mine.text) == (told.status, told.text)

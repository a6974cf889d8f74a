"""Random sessions, locks and transactions on a real Consul and on kvnode, and the answers compared.

As ``test_against_consul``, whose differences are not repeated here: indexes are renamed in the order of
first sight, and so are the ids of sessions. Time is left out: a lock-delay is nothing or a minute.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.test_against_consul import COMPARED, Side
from tests.conformance.wire import Answer, Wire

pytestmark = pytest.mark.chaos

KEYS = ["a", "b", "c", "d/x", "d/y"]
NOBODY = "6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11"
INDEX = re.compile(rb'("CreateIndex"|"ModifyIndex"): ?(\d+)')
UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
VERBS = [
    "set",
    "set",
    "cas",
    "lock",
    "lock",
    "unlock",
    "get",
    "get-tree",
    "check-index",
    "check-session",
    "check-not-exists",
    "delete",
    "delete-cas",
    "nope",
]
"""No ``delete-tree``: some time after one Consul 1.8.7 falls over (``panic: close of closed channel``)."""


class LockSide(Side):
    """One system, with the ids of its sessions renamed too."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.sessions: list[str] = []
        self.ids: dict[bytes, bytes] = {NOBODY.encode(): b"nobody"}

    def concrete(self, text: str) -> str:
        """Fill in this system's ids and indexes: ``$3`` is the fourth session, ``@a`` a key's index."""
        text = re.sub(r"\$(\d+)", lambda match: self.session(int(match[1])), text)
        return re.sub(r'"?@([\w/]+)"?', lambda match: str(self.current.get(match[1], 1)), text)

    def session(self, number: int) -> str:
        return self.sessions[number] if number < len(self.sessions) else NOBODY

    async def ask(self, method: str, target: str, body: bytes) -> tuple[Answer, object]:
        answer = await self.wire(
            method, self.concrete(target), self.concrete(body.decode()).encode()
        )
        headers = {n: v for n, v in answer.headers.items() if n in COMPARED}
        if answer.status == 500:  # Consul says that it knows no leader (spec §16)
            headers = {n: v for n, v in headers.items() if not n.startswith("x-consul-")}
        text = answer.body
        if target.startswith("/v1/session/create") and answer.status == 200:
            self.sessions.append(answer.json["ID"])
        if answer.status == 200 and target.startswith(("/v1/session/list", "/v1/session/node")):
            # In the order of ids, which are drawn by chance: compared in the order of birth.
            assert answer.json == sorted(answer.json, key=lambda found: str(found["ID"]))
            born = sorted(answer.json, key=lambda found: int(found["CreateIndex"]))
            text = json.dumps(born, separators=(",", ":")).encode()
        if "x-consul-index" in headers:
            headers["x-consul-index"] = str(self.rename(int(headers["x-consul-index"])))
        text = INDEX.sub(lambda match: b"%b %d" % (match[1], self.rename(int(match[2]))), text)
        # It may be that of the very entry, which is taken back: here it gets no index of its own.
        text = re.sub(rb"modify index \d+ != \d+", b"modify index", text)
        text = UUID.sub(lambda match: self.name(match[0]), text)
        return answer, (answer.status, headers, text)

    def name(self, session: bytes) -> bytes:
        session = session.lower()
        if session not in self.ids and session.decode() in self.sessions:
            self.ids[session] = b"session %d" % self.sessions.index(session.decode())
        return self.ids.get(session, b"unknown")

    async def look(self) -> None:
        """Learn the indexes of the keys."""
        answer = await self.wire("GET", "/v1/kv/?recurse")
        self.current = {e["Key"]: e["ModifyIndex"] for e in answer.json} if answer.body else {}


def wanted_difference(target: str, body: str, theirs: Answer, mine: Answer) -> bool:
    """Say what we do otherwise on purpose."""
    if target == "/v1/txn" and theirs.status == mine.status == 409:
        # Bound to fail whatever the leader's clock says, so it is not asked.
        return b"lock delay" in theirs.body and ('"nope"' in body or '"Key": ""' in body)
    # A session that cannot be one is a mistake of the request, and told before a lock-delay is looked at.
    return theirs.body == b"false" and mine.status == 500 and "acquire=" in target


def operation(chance: random.Random, sessions: int) -> dict[str, Any]:
    key = chance.choice(KEYS)
    members: dict[str, Any] = {"Verb": chance.choice(VERBS), "Key": key}
    if members["Verb"] == "get-tree":
        members["Key"] = chance.choice(["d/", "a", "none/", ""])
    elif chance.random() < 0.03:
        members["Key"] = ""
    value = chance.choice([b"", b"1", b"2"])
    if value or chance.random() < 0.5:
        members["Value"] = base64.b64encode(value).decode()
    if chance.random() < 0.2:
        members["Flags"] = chance.choice([0, 7, 2**64 - 1])
    members["Index"] = chance.choice([0, 1, f"@{key}", f"@{key}"])
    members["Session"] = who(chance, sessions)
    return {"KV": members}


def who(chance: random.Random, sessions: int) -> str:
    if not sessions or chance.random() < 0.1:
        return chance.choice(["", "short", NOBODY, "z" + NOBODY[1:], "-" + NOBODY[1:], "a" * 36])
    return f"${sessions - 1 - min(int(chance.expovariate(0.7)), sessions - 1)}"


def requests(seed: int, count: int) -> Iterator[tuple[str, str, str]]:
    """Make up requests: mostly sensible, some not."""
    chance = random.Random(seed)
    sessions = 0
    kinds = ["create", "session", "lock", "write", "read", "txn"]
    for _ in range(count):
        key = chance.choice(KEYS)
        match chance.choices(kinds, [3, 3, 10, 3, 4, 8])[0]:
            case "create":
                body = {
                    "LockDelay": chance.choice([0, 0, "60s"]),
                    "Behavior": chance.choice(["release", "release", "delete"]),
                    "Name": chance.choice(["", "n"]),
                    "TTL": chance.choice(["", "3600s"]),
                    "Checks": chance.choice([[], ["serfHealth"]]),
                }
                sessions += 1
                yield "PUT", "/v1/session/create", json.dumps(body)
            case "session":
                route = chance.choice(["destroy", "destroy", "renew", "info", "info"])
                method = "GET" if route == "info" else "PUT"
                yield method, f"/v1/session/{route}/{who(chance, sessions)}", ""
                yield "GET", chance.choice(["/v1/session/list", "/v1/session/node/kvnode-0"]), ""
            case "lock":
                verb = chance.choice(["acquire", "acquire", "acquire", "release"])
                flags = chance.choice(["", "", "&flags=3"])
                path = f"/v1/kv/{key}?{verb}={who(chance, sessions)}{flags}"
                yield "PUT", path, chance.choice(["", "1", "2"])
            case "write":
                write = chance.choice(["PUT", "PUT", "DELETE"])
                yield write, f"/v1/kv/{key}" + chance.choice(["", "?cas=0", f"?cas=@{key}"]), "1"
            case "read":
                yield "GET", chance.choice([f"/v1/kv/{key}", "/v1/kv/?recurse"]), ""
            case _:
                size = chance.choice([1, 1, 2, 3, 5])
                ops = [operation(chance, sessions) for _ in range(size)]
                yield "PUT", "/v1/txn", json.dumps(ops)
                yield "GET", "/v1/kv/?recurse", ""


@pytest.mark.parametrize("seed", range(6))
async def test_random_locks_and_transactions_have_the_same_answers(
    consul: Wire, ours: Wire, seed: int
) -> None:
    sides = [LockSide(Wire(consul.host, consul.port)), LockSide(ours)]
    for side in sides:
        await side.wire("PUT", "/v1/kv/start", b"1")
    differences = []
    for method, target, body in requests(seed, 1000):
        (theirs, a), (mine, b) = [await side.ask(method, target, body.encode()) for side in sides]
        if a != b and not wanted_difference(target, body, theirs, mine):
            differences.append(f"{method} {target} {body}\n  consul {a}\n  kvnode {b}")
        for side in sides:
            await side.look()
    await sides[0].wire.close()
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences[:10])

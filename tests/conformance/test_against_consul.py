"""The same requests to a real Consul and to kvnode, and the answers compared.

Needs the executable (``CONSUL_BIN``, or ``consul`` on the path; ``benchmarks/get_consul.sh`` fetches
one) and is skipped without. Indexes are renamed in the order of first sight, so that only their
relations count. What differs on purpose is listed in ``wanted_difference``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tests.conformance.wire import Answer, Wire

pytestmark = pytest.mark.chaos

COMPARED = {
    "allow",
    "content-security-policy",
    "content-type",
    "location",
    "vary",
    "x-consul-index",
    "x-consul-knownleader",
    "x-consul-lastcontact",
    "x-content-type-options",
}
KEYS = ["a", "a/", "a/b", "a/b/c", "ab", "b", "ç", "sp ace", "<&>", "z/y/x"]
VALUES = [b"", b"1", b"2", b"<html>&", bytes(range(256)), "ç".encode()]


class Side:
    """One system under comparison, with its indexes renamed."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.names: dict[int, int] = {}
        self.current: dict[str, int] = {}
        """Key -> its ModifyIndex as last seen, for ``cas``."""

    def rename(self, index: int) -> int:
        return self.names.setdefault(index, len(self.names) + 1)

    def forget_names_above(self, count: int) -> None:
        """Take back the names given since there were ``count``: an answer that differs on purpose may show
        an index that the other side does not.
        """
        for index in [index for index, name in self.names.items() if name > count]:
            del self.names[index]

    async def ask(self, method: str, target: str, body: bytes) -> tuple[Answer, object]:
        # "@key" stands for the index that this system has given to the key.
        concrete = re.sub(r"@(\w+)", lambda match: str(self.current.get(match[1], 1)), target)
        answer = await self.wire(method, concrete, body)
        headers = {n: v for n, v in answer.headers.items() if n in COMPARED}
        if "x-consul-index" in headers:
            headers["x-consul-index"] = str(self.rename(int(headers["x-consul-index"])))
        text = answer.body
        if headers.get("content-type") == "application/json":
            text = re.sub(
                rb'"(CreateIndex|ModifyIndex)": ?(\d+)',
                lambda match: b"%b %d" % (match[1], self.rename(int(match[2]))),
                text,
            )
        return answer, (answer.status, headers, text)


def wanted_difference(
    method: str, target: str, theirs: Answer, mine: Answer, trees: list[str]
) -> bool:
    """Say what we do otherwise on purpose; ``trees`` are the paths that were deleted with recurse."""
    path = target.partition("?")[0]
    if any(path != tree and path.startswith(tree) for tree in trees) and (
        (theirs.status, theirs.body) == (mine.status, mine.body) == (404, b"")
    ):
        return True  # the index of a list inside a deleted tree does not fall (store.reads)
    if method == "POST" and path.startswith("/v1/kv"):
        return True  # taken as PUT (spec §1.1)
    if theirs.status == 301 and mine.status == 307:
        return True  # keeps the body (spec §1.1)
    if theirs.status == mine.status == 413:
        return True  # the texts name different pages
    if theirs.status == mine.status == 400 and theirs.body + b"\n" == mine.body:
        return True  # spec §4.2: a newline behind "Conflicting flags", which 1.8.7 does not send
    # Consul's answer to OPTIONS and to a path that is not one of its own came with 1.10.
    return theirs.status == mine.status == 404 and not path.startswith("/v1/kv")


def requests(seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Make up requests: mostly sensible, some not."""
    chance = random.Random(seed)
    quoted = {"ç": "%C3%A7", "sp ace": "sp%20ace", "<&>": "%3C&%3E"}
    reads = [
        "",
        "raw",
        "recurse",
        "keys",
        "keys&separator=/",
        "keys&seperator=b",
        "pretty",
        "stale",
    ]
    reads += [
        "consistent",
        "recurse&pretty",
        "keys&pretty",
        "recurse&raw",
        "index=0&wait=1s",
        "dc=dc1",
    ]
    reads += [
        "dc=x",
        "index=x",
        "wait=1",
        "stale&consistent",
        "max_stale=x",
        "ns=a",
        "keys&separator=",
    ]
    writes = [
        "",
        "flags=1",
        "flags=18446744073709551615",
        "flags=x",
        "cas=0",
        "cas=1",
        "cas=x",
        "cas=",
    ]
    writes += [
        "cas=@a",
        "cas=@b",
        "cas=0&flags=3",
        "acquire=",
        "acquire=x",
        "release=",
        "release=x",
    ]
    writes += ["cas=1&acquire=y", "acquire=6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11", "pretty", "dc=x"]
    deletes = [
        "",
        "recurse",
        "cas=0",
        "cas=1",
        "cas=@a",
        "cas=@b",
        "cas=x",
        "recurse&cas=1",
        "pretty",
    ]
    for _ in range(count):
        key = chance.choice(KEYS)
        path = "/v1/kv/" + quoted.get(key, key)
        if chance.random() < 0.1:
            path = "/v1/kv/"
        match chance.choices(["GET", "PUT", "DELETE", "odd"], [8, 6, 2, 1])[0]:
            case "GET":
                yield "GET", f"{path}?{chance.choice(reads)}", b""
            case "PUT":
                yield "PUT", f"{path}?{chance.choice(writes)}", chance.choice(VALUES)
            case "DELETE":
                yield "DELETE", f"{path}?{chance.choice(deletes)}", b""
            case _:
                odd = [
                    ("OPTIONS", path),
                    ("HEAD", path),
                    ("PATCH", path),
                    ("GET", "/v1/kv"),
                    ("GET", path + "//x"),
                    ("GET", path + "/./x?raw"),
                    ("PUT", path + "//x"),
                    ("GET", "/v1/kv/%00"),
                    ("GET", "/v1/kv/a%2Fb"),
                    ("GET", "/v1/kv/a%252Fb"),
                ]
                yield (*chance.choice(odd), b"")


@pytest.mark.parametrize("seed", range(4))
async def test_random_requests_have_the_same_answers(consul: Wire, ours: Wire, seed: int) -> None:
    sides = [Side(Wire(consul.host, consul.port)), Side(ours)]
    for side in sides:
        await side.wire("DELETE", "/v1/kv/?recurse")
        await side.wire("PUT", "/v1/kv/start", b"1")
    differences = []
    trees: list[str] = []
    for method, target, body in requests(seed, 3000):
        known = [len(side.names) for side in sides]
        (theirs, a), (mine, b) = [await side.ask(method, target, body) for side in sides]
        if a != b and wanted_difference(method, target, theirs, mine, trees):
            for side, count in zip(sides, known, strict=True):
                side.forget_names_above(count)
        elif a != b:
            differences.append(f"{method} {target} {body[:10]!r}\n  consul {a}\n  kvnode {b}")
        if method == "DELETE" and target.endswith("?recurse"):
            trees.append(target.partition("?")[0])
        if method == "PUT" and theirs.body == b"true":
            for side in sides:
                name = target.split("?")[0].removeprefix("/v1/kv/")
                answer = await side.wire("GET", f"/v1/kv/{name}")
                side.current[name] = answer.json[0]["ModifyIndex"]
    await sides[0].wire.close()
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences[:10])

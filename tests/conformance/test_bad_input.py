"""What a careless or hostile client sends: a clear answer, nothing stored, nothing crashed."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.conformance.wire import Kv, Wire, read_answer
from tests.http.fake_replica import FakeReplica

KIB = 1024


async def test_value_bounds(kv: Kv) -> None:
    """Spec §4.2, §17 (18): 512 KiB are fine, one byte more is 413."""
    limit = 512 * KIB
    assert (await kv.put("a", b"x" * limit)).body == b"true"
    assert len((await kv.get("a", "raw")).body) == limit
    answer = await kv.put("b", b"x" * (limit + 1))
    assert answer.status == 413
    assert answer.text.startswith(
        "Request body(524289 bytes) too large, max size: 524288 bytes. See "
    )
    assert answer.headers["connection"] == "close"
    assert (await kv.get("b")).status == 404


async def test_a_600_kib_value_is_413_on_both_routes(kv: Kv) -> None:
    body = b"x" * 600 * KIB
    assert (await kv.put("a", body)).status == 413
    own = await kv.wire("PUT", f"/kv/{kv.prefix}a", body)
    assert (own.status, own.headers["content-type"]) == (413, "text/plain; charset=utf-8")
    assert (await kv.get("a")).status == 404


async def test_chunks_count_against_the_limit(kv: Kv) -> None:
    """Spec §16, §17 (18): Consul forgot (CVE-2025-11374)."""
    reader, writer = await kv.wire.connect()
    head = f"PUT {kv.path('a')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (64 * KIB, b"x" * 64 * KIB)
    writer.write(head.encode())
    for _ in range(10):
        writer.write(chunk)
    answer = await read_answer(reader)
    assert answer.status == 413
    assert answer.text.startswith("Request body too large, max size: 524288 bytes. See ")
    writer.close()
    assert (await kv.get("a")).status == 404


async def test_a_mistake_in_the_query_comes_before_the_size(kv: Kv) -> None:
    answer = await kv.put("a", b"x" * 600 * KIB, "cas=1&acquire=2")
    assert (answer.status, answer.text) == (400, "Conflicting flags: acquire=2&cas=1\n")


async def test_keys_up_to_4_kib(kv: Kv) -> None:
    key = "k" * (4 * KIB - len(kv.prefix))
    assert (await kv.put(key, "1")).body == b"true"
    assert (await kv.get(key, "raw")).body == b"1"
    answer = await kv.put(key + "k", "1")
    assert (answer.status, answer.text) == (
        400,
        "Key is too long (4097 > 4096 bytes). The setting is key_bytes_max.",
    )
    escaped = "ç" * ((4 * KIB - len(kv.prefix)) // 2)
    assert (await kv.put(escaped, "1")).body == b"true", "three times as long in the URL"


async def test_a_url_without_end_is_refused(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(b"GET /v1/kv/" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await read_answer(reader)).status in {400, 414}
    writer.close()


async def test_every_combination_of_parameters_has_an_answer(kv: Kv) -> None:
    """No combination may crash, hang or store something that the answer does not admit."""
    names = ["raw", "recurse", "keys", "separator", "cas", "flags", "acquire", "release"]
    names += ["stale", "consistent", "index", "wait", "pretty", "dc", "ns", "token", "x"]
    values = ["", "0", "1", "-1", "99999999999999999999", "abc", "%00", "5s", "dc1", "a%20b", "%zz"]
    chance = random.Random(7)
    pairs = list(itertools.product(names, values))
    for _ in range(400):
        chosen = chance.sample(pairs, chance.randint(1, 4))
        query = "&".join(f"{name}={value}" for name, value in chosen)
        if "wait=5s" in query and "index=" in query:
            continue  # an index in the future would rightly wait
        method = chance.choice(["GET", "PUT", "DELETE"])
        query = query.replace("index=1", "index=0").replace("index=99999999999999999999", "index=x")
        answer = await kv.wire(method, kv.path("a", query), b"v" if method == "PUT" else b"")
        assert answer.status in {200, 400, 404, 500}, (method, query, answer)
        if answer.status == 500:
            assert answer.text != "internal error", (method, query)
        stored = (await kv.get("a")).status == 200
        if stored:
            assert (method, answer.body.strip()) == ("PUT", b"true"), (method, query, answer)
            await kv.delete("a")


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/kv/%",
        b"/v1/kv/a%2",
        b"/v1/kv/%00",
        b"/v1/kv/a%00b",
        b"/v1/kv/..%2f..%2fetc",
        b"/v1/kv/%2e%2e/%2e%2e/x",
        b"/v1/kv/a\x01b",
        b"/v1/kv/a\xff",
        b"/v1/kv/a\\..\\b",
        b"/v1/kv/;/?;;;&&&===",
        b"/v1/kv/a?%",
        b"/v1/kv/a?" + b"&" * 5000,
        b"/v1/kv/a?" + b"raw&" * 3000,
        b"/v1/kv/a#fragment",
        b"/v1/kv/?keys&separator=%00%ff",
        b"*",
        b"v1/kv/a",
        b"?keys",
    ],
)
async def test_odd_targets_have_an_answer(wire: Wire, target: bytes) -> None:
    reader, writer = await wire.connect()
    writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(read_answer(reader), 5)
    assert answer.status in {200, 301, 400, 404}, answer
    writer.close()


async def test_random_bytes_never_take_the_node_down(wire: Wire) -> None:
    chance = random.Random(11)
    starts = [
        b"",
        b"GET ",
        b"GET /v1/kv/",
        b"PUT /v1/kv/a HTTP/1.1\r\n",
        b"POST /kv/a HTTP/1.1\r\nHost:",
    ]
    for _ in range(60):
        reader, writer = await wire.connect()
        writer.write(chance.choice(starts) + chance.randbytes(chance.randint(1, 300)) + b"\r\n\r\n")
        writer.write_eof()
        try:
            raw = await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            raw = b""
        assert raw == b"" or raw.startswith(b"HTTP/1.")
        writer.close()
    assert (await wire("GET", "/health/live")).status == 200


async def test_a_missing_host_is_400(wire: Wire) -> None:
    """RFC 9112 §3.2; Go's server refuses it, too."""
    reader, writer = await wire.connect()
    writer.write(b"GET /v1/kv/a HTTP/1.1\r\n\r\n")
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    writer.close()


async def test_http_1_0_is_served(kv: Kv) -> None:
    await kv.put("a", "hello")
    reader, writer = await kv.wire.connect()
    writer.write(f"GET {kv.path('a', 'raw')} HTTP/1.0\r\n\r\n".encode())
    assert (await reader.read()).endswith(b"\r\n\r\nhello")
    writer.close()


async def test_a_gzipped_body_is_stored_as_sent(kv: Kv) -> None:
    """The bytes are the value; ``Content-Encoding`` is the client's business."""
    body = b"\x1f\x8b\x08not really gzip"
    answer = await kv.wire("PUT", kv.path("a"), body, {"Content-Encoding": "gzip"})
    assert answer.body == b"true"
    assert (await kv.get("a", "raw")).body == body


async def test_what_was_refused_was_never_proposed(kv: Kv, fake: FakeReplica) -> None:
    """A 4xx promises that nothing was stored."""
    bad = ["cas=x", "flags=-1", "index=x", "wait=1", "cas&acquire", "dc=other", "ns=x", "acquire=y"]
    for query in bad:
        assert (await kv.put("a", "1", query)).status >= 400
        assert (await kv.wire("POST", kv.path("a", query), b"1")).status >= 400
    await kv.wire("PUT", f"/v1/kv/{kv.prefix}%00", b"1")
    await kv.wire("PUT", f"/v1/kv/{kv.prefix}a/../b", b"1")
    await kv.wire("PUT", "/v1/kv/", b"1")
    await kv.wire("PUT", "/kv/", b"1")
    assert fake.commands == []

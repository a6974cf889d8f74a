"""spec §1.2 to §1.8: parameters, JSON, errors, headers."""

from __future__ import annotations

import pytest

from tests.conformance.wire import Kv, Wire

QUERY_HEADERS = {
    "x-consul-index",
    "x-consul-knownleader",
    "x-consul-lastcontact",
    "x-consul-effective-consistency",
    "x-consul-query-backend",
}


@pytest.mark.parametrize("flag", ["raw", "raw=", "raw=1", "raw=false", "other&raw", "%72aw"])
async def test_a_flag_is_set_by_presence(kv: Kv, flag: str) -> None:
    """Spec §1.2."""
    await kv.put("a", "hello")
    assert (await kv.get("a", flag)).body == b"hello"


async def test_unknown_parameters_are_ignored_and_the_first_of_two_counts(kv: Kv) -> None:
    """Spec §1.2."""
    await kv.put("a", "1", "flags=5&flags=6&nonsense=%20&=x&&a;b")
    assert (await kv.entry("a"))["Flags"] == 5


@pytest.mark.parametrize("dc", ["dc=dc1", "dc=", "dc"])
async def test_the_own_datacenter_is_local(kv: Kv, dc: str) -> None:
    """Spec §1.2."""
    assert (await kv.put("a", "1", dc)).body == b"true"
    assert (await kv.get("a", dc)).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_foreign_datacenter_is_500(kv: Kv, method: str) -> None:
    """Spec §1.2."""
    answer = await kv.wire(method, kv.path("a", "dc=dc2"), b"1" if method == "PUT" else b"")
    assert (answer.status, answer.text) == (500, "No path to datacenter")
    assert (await kv.get("a")).status == 404


async def test_namespaces_are_refused(kv: Kv) -> None:
    """Spec §1.2."""
    answer = await kv.get("a", "ns=default")
    assert answer.status == 400
    assert answer.text == (
        'Bad request: Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature'
    )
    assert (await kv.get("a", "ns=")).status == 404


async def test_json_is_compact_and_pretty_indents_by_four(kv: Kv) -> None:
    """Spec §1.4, §17 (21)."""
    await kv.put("a", "hello", "flags=7")
    compact = await kv.get("a")
    index = compact.index
    key = f"{kv.prefix}a"
    assert compact.text == (
        f'[{{"LockIndex":0,"Key":"{key}","Flags":7,"Value":"aGVsbG8=",'
        f'"CreateIndex":{index},"ModifyIndex":{index}}}]'
    )
    pretty = await kv.get("a", "pretty=false")
    assert pretty.text == (
        f'[\n    {{\n        "LockIndex": 0,\n        "Key": "{key}",\n        "Flags": 7,\n'
        f'        "Value": "aGVsbG8=",\n        "CreateIndex": {index},\n'
        f'        "ModifyIndex": {index}\n    }}\n]\n'
    )
    assert (await kv.put("a", "x", "pretty")).body == b"true\n"
    assert (await kv.delete("a", "pretty&cas=1")).body == b"false\n"
    for answer in (compact, pretty):
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("<a>&b", "\\u003ca\\u003e\\u0026b"),
        ("ç", "ç"),
        ("日本", "日本"),
        ("a b", "a b"),
        ("state-env:name", "state-env:name"),
        ('q"uote', 'q\\"uote'),
        ("back\\slash", "back\\\\slash"),
        ("😀", "😀"),
        ("plus+sign", "plus+sign"),
        ("per%cent", "per%cent"),
        ("question?#", "question?#"),
        ("..dots", "..dots"),
        ("...", "..."),
    ],
)
async def test_key_names_are_escaped_as_go_does(kv: Kv, key: str, shown: str) -> None:
    """Spec §1.4, §4.4, §17 (22, 29)."""
    assert (await kv.put(key, "1")).body == b"true"
    answer = await kv.get(key)
    assert f'"Key":"{kv.prefix}{shown}"' in answer.text
    assert (await kv.get("", "keys")).text == f'["{kv.prefix}{shown}"]'


async def test_a_byte_that_is_no_utf8_is_a_key_and_prints_as_replacement(kv: Kv) -> None:
    r"""Go's strings hold any bytes; its encoder writes ``\\ufffd``."""
    path = f"/v1/kv/{kv.prefix}%ff%C3"
    assert (await kv.wire("PUT", path, b"1")).body == b"true"
    assert (await kv.get("", "keys")).text == f'["{kv.prefix}\\ufffd\\ufffd"]'
    assert (await kv.wire("GET", path + "?raw")).body == b"1"


async def test_errors_are_plain_text_without_newline(wire: Wire) -> None:
    """Spec §1.6."""
    answer = await wire("GET", "/v1/kv/")
    assert (answer.status, answer.text) == (400, "Missing key name")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_reads_carry_the_query_headers_and_writes_none(kv: Kv) -> None:
    """Spec §1.7: also on a 404; LastContact is parsed as an integer by Go clients."""
    written = await kv.put("a", "1")
    deleted = await kv.delete("b")
    for answer in (written, deleted):
        assert not QUERY_HEADERS & set(answer.headers)
        assert int(answer.headers["x-kvnode-index"]) > 0
    missing = await kv.get("missing")
    for answer in (await kv.get("a"), await kv.get("", "keys"), missing):
        assert set(answer.headers) >= QUERY_HEADERS
        assert int(answer.headers["x-consul-lastcontact"]) >= 0
        assert answer.headers["x-consul-knownleader"] == "true"
        assert answer.headers["x-consul-effective-consistency"] == "leader"
        assert answer.index >= 1
    assert (missing.status, missing.body) == (404, b"")
    assert "content-type" not in missing.headers


async def test_errors_carry_no_query_headers(kv: Kv) -> None:
    """Spec §16: none on 4xx and 5xx other than 404."""
    answer = await kv.get("a", "index=x")
    assert answer.status == 400
    assert not QUERY_HEADERS & set(answer.headers)


@pytest.mark.parametrize(
    "target", ["/v1/kv/x", "/v1/status/leader", "/pods", "/nothing", "/", "/kv"]
)
async def test_every_answer_names_the_node(wire: Wire, target: str) -> None:
    answer = await wire("GET", target)
    assert answer.headers["x-kvnode-node"].startswith("kvnode-")


async def test_v1_answers_say_vary_and_acl_policy(kv: Kv) -> None:
    """Spec §1.7."""
    for answer in (await kv.put("a", "1"), await kv.get("a"), await kv.get("a", "index=x")):
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["x-consul-default-acl-policy"] == "allow"


@pytest.mark.parametrize(
    "headers",
    [{"X-Consul-Token": "t"}, {"Authorization": "Bearer t"}, {"Authorization": "bearer t u"}],
)
async def test_tokens_are_accepted_and_ignored(kv: Kv, headers: dict[str, str]) -> None:
    """Spec §1.8, §17 (28): with ACLs off."""
    answer = await kv.wire("PUT", kv.path("a", "token=x"), b"1", headers)
    assert answer.body == b"true"

"""spec §1.1: paths, methods, redirects."""

from __future__ import annotations

import pytest

from tests.conformance.wire import Kv, Wire


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/v1/kv", "/v1/kv/"),
        ("/v1/kv/a//b", "/v1/kv/a/b"),
        ("/v1/kv//a", "/v1/kv/a"),
        ("//v1/kv/a", "/v1/kv/a"),
        ("/v1/kv/a//", "/v1/kv/a/"),
        ("/v1/kv/a/./b", "/v1/kv/a/b"),
        ("/v1/kv/a/../b", "/v1/kv/b"),
        ("/v1/kv/a/..", "/v1/kv"),
        ("/v1/kv/%2e%2e/b", "/v1/b"),
        ("/v1/kv/a/%2E%2e/b", "/v1/kv/b"),
        ("/v1/kv/a%2F%2Fb", "/v1/kv/a/b"),
        ("/v1/kv/../../../../etc/passwd", "/etc/passwd"),
        ("/v1/kv/a//b?raw&x=%2F1", "/v1/kv/a/b?raw&x=%2F1"),
        ("/v1/kv/%C3%A7//b", "/v1/kv/%C3%A7/b"),
        ("/v1/kv/a%20b//c", "/v1/kv/a%20b/c"),
        ("/kv", "/kv/"),
        ("/ui", "/ui/"),
        ("/", "/ui/"),
    ],
)
async def test_get_of_an_unclean_path_is_301(wire: Wire, target: str, location: str) -> None:
    """Spec §1.1: GET keeps Consul's 301."""
    answer = await wire("GET", target)
    assert (answer.status, answer.headers["location"]) == (301, location)
    shown = location.replace("&", "&amp;")
    assert answer.text == f'<a href="{shown}">Moved Permanently</a>.\n\n'


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_write_to_an_unclean_path_is_307(wire: Wire, kv: Kv, method: str) -> None:
    """Spec §1.1, §17 (30): a 301 would make clients drop the body and store an empty value."""
    answer = await wire(
        method, f"/v1/kv/{kv.prefix}a//b?flags=1", b"x" if method != "DELETE" else b""
    )
    assert answer.status == 307
    assert answer.headers["location"] == f"/v1/kv/{kv.prefix}a/b?flags=1"
    assert (await kv.get("", "keys")).status == 404


async def test_percent_2f_separates_and_percent_252f_is_text(wire: Wire, kv: Kv) -> None:
    """Spec §1.1, §17 (29)."""
    await wire("PUT", f"/v1/kv/{kv.prefix}a%2Fb", b"1")
    await wire("PUT", f"/v1/kv/{kv.prefix}c%252Fd", b"2")
    assert (await kv.get("", "keys")).json == [f"{kv.prefix}a/b", f"{kv.prefix}c%2Fd"]
    assert (await kv.entry("a/b"))["Value"] == "MQ=="
    assert (await kv.entry("c%2Fd"))["Value"] == "Mg=="


@pytest.mark.parametrize(
    "bad", ["%00", "%01", "%0a", "%0D", "%7F", "%C2%85", "%E2%80%A8", "%C2%A0"]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_non_printable_path_is_400_with_empty_body(
    wire: Wire, kv: Kv, method: str, bad: str
) -> None:
    """Spec §1.1: also U+0085, U+2028 and the no-break space, as Go's ``unicode.IsPrint`` says."""
    answer = await wire(method, f"/v1/kv/{kv.prefix}a{bad}b", b"x" if method == "PUT" else b"")
    assert (answer.status, answer.body) == (400, b"")
    assert (await kv.get("", "keys")).status == 404


@pytest.mark.parametrize("bad", ["%zz", "%", "%1", "a%2"])
async def test_malformed_escape_is_400(wire: Wire, bad: str) -> None:
    answer = await wire("GET", f"/v1/kv/{bad}")
    assert answer.status == 400


@pytest.mark.parametrize(
    ("target", "allow"),
    [
        ("/v1/kv/a", "OPTIONS,GET,PUT,DELETE"),
        ("/v1/status/leader", "OPTIONS,GET"),
        ("/v1/operator/raft/peer", "OPTIONS,DELETE"),
        ("/v1/operator/raft/transfer-leader", "OPTIONS,POST"),
        ("/kv/a", "OPTIONS,GET,HEAD,PUT,POST,DELETE"),
        ("/health/live", "OPTIONS,GET,HEAD"),
    ],
)
async def test_options_and_405_name_the_methods(wire: Wire, target: str, allow: str) -> None:
    """Spec §1.1, §17 (27): OPTIONS first, comma without space; POST on KV works but is not listed."""
    answer = await wire("OPTIONS", target)
    assert (answer.status, answer.body, answer.headers["allow"]) == (200, b"", allow)
    answer = await wire("PATCH", target)
    assert (answer.status, answer.headers["allow"]) == (405, allow)
    assert answer.text.rstrip("\n") == "method PATCH not allowed"


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/status/leader", "/v1/agent/self"])
async def test_head_is_405_on_v1(wire: Wire, target: str) -> None:
    """Spec §1.1, §16."""
    answer = await wire("HEAD", target)
    assert (answer.status, answer.headers["allow"].split(",")[0]) == (405, "OPTIONS")


async def test_head_works_on_own_routes(wire: Wire, kv: Kv) -> None:
    """Spec §16: kept off /v1 only."""
    await kv.put("a", "hello")
    answer = await wire("HEAD", f"/kv/{kv.prefix}a")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "5", b"")
    assert (await wire("HEAD", f"/kv/{kv.prefix}b")).status == 404


async def test_post_is_put(kv: Kv) -> None:
    """Spec §1.1 [k]; design §6."""
    answer = await kv.wire("POST", kv.path("a", "flags=3"), b"v")
    assert (answer.status, answer.body) == (200, b"true")
    entry = await kv.entry("a")
    assert (entry["Value"], entry["Flags"]) == ("dg==", 3)


async def test_unknown_paths_are_404(wire: Wire) -> None:
    """Spec §1.1 (from 1.10 on)."""
    answer = await wire("GET", "/v1/nothing")
    assert answer.status == 404
    assert answer.text == "Invalid URL path: not a recognized HTTP API endpoint\n"
    answer = await wire("GET", "/nothing")
    assert answer.status == 404
    assert answer.text.startswith("Invalid URL path: if attempting to use the HTTP API")


async def test_a_trailing_slash_matters(wire: Wire) -> None:
    """Spec §1.1."""
    assert (await wire("GET", "/v1/status/leader/")).status == 404


async def test_absolute_target_is_the_same_path(wire: Wire, kv: Kv) -> None:
    """RFC 9112 §3.2.2: a server must accept the absolute form."""
    await kv.put("a", "1")
    answer = await wire("GET", f"http://example:80{kv.path('a')}")
    assert answer.status == 200

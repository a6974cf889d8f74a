"""Every bound that is a setting says so in its error: operators look for a name, not for a number."""

from __future__ import annotations

import json

import pytest

from kvnode.config.settings import SETTINGS
from kvnode.http import HttpContext, HttpServer, HttpSettings
from tests.conformance.wire import Wire
from tests.http.fake_replica import FakeReplica


def ops(count: int, value: str = "") -> str:
    return json.dumps([{"KV": {"Verb": "set", "Key": "a", "Value": value}}] * count)


CASES = {
    "value_bytes_max": ("PUT", "/v1/kv/a", "x" * 101),
    "key_bytes_max": ("PUT", "/v1/kv/" + "k" * 51, ""),
    "url_bytes_max": ("GET", "/v1/kv/a?" + "x" * 700, ""),
    "url_bytes_max ": ("GET", "/v1/session/list?" + "x" * 700, ""),
    "txn_bytes_max": ("PUT", "/v1/txn", ops(2, "eHh4" * 150)),
    "txn_ops_max": ("PUT", "/v1/txn", ops(4)),
    "list_bytes_max": ("GET", "/v1/kv/many/?recurse", ""),
    "key_ttl_min_s": ("PUT", "/v1/kv/a?ttl=1ms", ""),
    "copy_keys_max": ("PUT", "/v1/kv/c/?copy=many/&recurse", ""),
    "copy_bytes_max": ("PUT", "/v1/kv/c/?copy=many/&recurse", ""),
}


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "aiohttp"])
@pytest.mark.parametrize("case", CASES)
async def test_an_error_names_its_setting(case: str, fast_path: bool) -> None:
    name = case.strip()
    assert name in SETTINGS
    settings = HttpSettings(
        node_name="n", value_bytes_max=100, key_bytes_max=50, url_bytes_max=600,
        body_bytes_max=600, txn_ops_max=3, list_bytes_max=500, copy_keys_max=5,
        copy_bytes_max=1000, fast_path=fast_path,
    )  # fmt: skip
    server = HttpServer(HttpContext(replica=FakeReplica(), settings=settings))
    await server.start("127.0.0.1", 0)
    wire = Wire("127.0.0.1", server.port)
    try:
        for number in range(10):
            await wire("PUT", f"/v1/kv/many/{number}", "x" * 90)
        method, target, body = CASES[case]
        answer = await wire(method, target, body)
        assert answer.status in (400, 413, 414), answer
        assert name in answer.text
    finally:
        await wire.close()
        await server.close()

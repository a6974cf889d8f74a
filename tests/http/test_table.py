"""The route table and the documents that describe it."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from kvnode.http.messages import Request, Response
from kvnode.http.router import Match, Route, Router
from tests.http.conftest import Node, Start

DOCS = Path(__file__).parents[2] / "docs" / "http.md"


async def nothing(request: Request) -> Response:
    return Response(200)


async def test_openapi_describes_every_route_and_no_other(node: Node) -> None:
    document = json.loads(resources.files("kvnode.http").joinpath("openapi.json").read_bytes())
    described = {
        (re.sub(r"\{\w+\}", "", path), method.upper())
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    hidden = {("/v1/operator/raft/transfer-leader", "PUT")}
    routed = {
        (route.path, method)
        for route in node.server.router.routes
        for method in (*route.methods, *route.unlisted)
    }
    assert described == routed - hidden


async def test_the_manual_names_every_own_route(node: Node) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for route in node.server.router.routes:
        assert re.search(rf"(?:[`\s]|:8500){re.escape(route.path)}", text), route.path


@pytest.mark.parametrize("ui", [True, False])
async def test_the_page_can_be_turned_off(start: Start, ui: bool) -> None:
    """Spec §1.1."""
    node = await start(ui=ui)
    root = await node.wire("GET", "/")
    assert (root.status, root.text) == (
        (301, '<a href="/ui/">Moved Permanently</a>.\n\n') if ui else (200, "Consul Agent")
    )
    assert (await node.wire("GET", "/ui/")).status == (200 if ui else 404)


def test_the_longest_prefix_wins() -> None:
    router = Router([Route("/a/", ("GET",), nothing), Route("/a/b/", ("PUT",), nothing)])
    found = router.find("PUT", b"/a/b/c", b"")
    assert isinstance(found, Match)
    assert found.route.path == "/a/b/"
    found = router.find("GET", b"/a/bc", b"")
    assert isinstance(found, Match)
    assert found.route.path == "/a/"


async def test_discovery_may_fail_or_hang(start: Start) -> None:
    """``/pods`` then asks the members it knows, and says so."""

    async def fails() -> list[str]:
        raise OSError("no resolver")

    node = await start({"pod_addresses": fails})
    assert "discovery failed" in (await node.wire("GET", "/pods")).text

    async def hangs() -> list[str]:
        import asyncio

        await asyncio.sleep(60)
        return []

    node = await start({"pod_addresses": hangs}, pods_timeout_s=0.05)
    assert "did not answer in time" in (await node.wire("GET", "/pods")).text

    async def finds() -> list[str]:
        return ["a:8300", "b:8300", "a:8300"]

    node = await start({"pod_addresses": finds})
    await node.wire("GET", "/pods")
    assert node.replica.asked == ("a:8300", "b:8300")


async def test_agent_hooks(start: Start) -> None:
    called: list[str] = []

    async def reload() -> None:
        called.append("reload")

    async def leave() -> None:
        called.append("leave")

    node = await start({"reload": reload, "leave": leave})
    assert (await node.wire("PUT", "/v1/agent/reload")).status == 200
    assert (await node.wire("PUT", "/v1/agent/leave")).status == 200
    assert called == ["reload", "leave"]
    node = await start()
    assert (await node.wire("PUT", "/v1/agent/leave")).status == 500


async def test_metrics_have_bounded_labels(node: Node) -> None:
    """RC-67: no path, key or made-up method of a client becomes a label."""
    for i in range(20):
        await node.wire("GET", f"/x{i}")
        await node.wire("GET", f"/v1/kv/k{i}")
        await node.wire("PROPFIND", f"/v1/kv/k{i}")
    assert len(node.server.recorder.counts) == 3

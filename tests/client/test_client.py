"""The client: typed results, and never a second write that was not certainly unexecuted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kvnode.client import KvnodeClient
from kvnode.errors import (
    BadRequest,
    LeadershipLost,
    NoLeader,
    NotNow,
    Overloaded,
    PeerUnreachable,
    RemoteProtocolError,
    Timeout,
    ValueTooLarge,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PAIR = (
    '[{"LockIndex":1,"Key":"a b/ç","Flags":18446744073709551615,"Value":"aGk=",'
    '"Session":"6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11","CreateIndex":3,"ModifyIndex":9}]'
)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


def answering(*answers: web.Response) -> tuple[Handler, list[web.Request]]:
    """Give each answer once, the last one for ever."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        answer = answers[min(len(seen), len(answers) - 1)]
        seen.append(request)
        return web.Response(body=answer.body, status=answer.status, headers=answer.headers)

    return handler, seen


@asynccontextmanager
async def hanging_up(after_first: bytes | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve connections that break once a request was read; the first may be answered."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                heads.append(head)
                if after_first is None or len(heads) > 1:
                    break
                writer.write(after_first)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"http://{host}:{port}", heads


def refused_address() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def client(*addresses: str, timeout_s: float = 5.0) -> KvnodeClient:
    """A client that never sends twice what may have been executed; ``test_idempotent`` has the other."""
    return KvnodeClient(addresses, timeout_s=timeout_s, idempotent=False)


async def test_get_returns_the_pair_as_it_is_stored() -> None:
    """Flags use the full 64 bits; keys hold spaces and any letter (spec §1.4, §4.4)."""
    handler, seen = answering(web.Response(text=PAIR, headers={"X-Consul-Index": "9"}))
    async with serving(handler) as url, client(url) as kv:
        pair = await kv.get("a b/ç")
    assert pair is not None
    assert (pair.key, pair.value, pair.flags) == ("a b/ç", b"hi", 2**64 - 1)
    assert (pair.create_index, pair.modify_index, pair.lock_index) == (3, 9, 1)
    assert pair.session == "6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11"
    assert seen[0].raw_path == "/v1/kv/a%20b/%C3%A7"


async def test_an_empty_value_is_empty_bytes() -> None:
    text = PAIR.replace('"aGk="', "null")
    handler, _ = answering(web.Response(text=text))
    async with serving(handler) as url, client(url) as kv:
        pair = await kv.get("x")
    assert pair is not None
    assert pair.value == b""


async def test_a_missing_key_is_none_and_keeps_its_index() -> None:
    headers = {
        "X-Consul-Index": "7", "X-Consul-KnownLeader": "true", "X-Consul-LastContact": "12",
        "X-Kvnode-Node": "kvnode-1",
    }  # fmt: skip
    handler, seen = answering(web.Response(status=404, headers=headers))
    async with serving(handler) as url, client(url) as kv:
        answer = await kv.read("x", consistency="stale", index=7, wait_s=1.5)
        assert await kv.list("x") == ()
        assert await kv.keys("x", separator="/") == ()
    assert (answer.value, answer.index, answer.known_leader) == (None, 7, True)
    assert (answer.last_contact_ms, answer.node) == (12, "kvnode-1")
    assert seen[0].query_string == "stale=&index=7&wait=1500ms"
    assert seen[2].query_string == "keys=&separator=/"


async def test_a_key_that_looks_encoded_stays_what_it_is() -> None:
    """The key text %2F is not a slash, and a question mark begins no query."""
    handler, seen = answering(web.Response(text="true"))
    async with serving(handler) as url, client(url) as kv:
        assert await kv.put("a%2Fb?c#d", "v", flags=7, cas=0)
    assert seen[0].raw_path == "/v1/kv/a%252Fb%3Fc%23d?flags=7&cas=0"


async def test_false_is_an_answer_not_an_error() -> None:
    handler, _ = answering(web.Response(text="false"))
    async with serving(handler) as url, client(url) as kv:
        assert await kv.put("k", b"v", cas=1) is False
        assert await kv.delete("k", cas=1) is False


async def test_impossible_keys_are_refused_here() -> None:
    """A leading slash would be cleaned away by the server: another key."""
    async with client(refused_address()) as kv:
        with pytest.raises(BadRequest):
            await kv.put("", b"")
        with pytest.raises(BadRequest):
            await kv.get("/x")


@pytest.mark.parametrize(
    ("answer", "kind", "took_effect"),
    [
        (web.Response(status=500, text="leadership lost while committing log"), LeadershipLost, "unknown"),
        (web.Response(status=500, text="something else"), NotNow, "unknown"),
        (web.Response(status=503, text="overloaded, who knows"), Overloaded, "unknown"),
    ],
)  # fmt: skip
async def test_a_write_of_unknown_outcome_is_not_sent_again(
    answer: web.Response, kind: type[NotNow], took_effect: str
) -> None:
    """RC-58: a second compare-and-set would report the first one's success as a failure."""
    handler, seen = answering(answer)
    async with serving(handler) as url, client(url) as kv:
        with pytest.raises(kind) as caught:
            await kv.put("k", b"v")
    assert caught.value.took_effect == took_effect
    assert len(seen) == 1


async def test_a_write_is_sent_again_when_it_certainly_did_nothing() -> None:
    handler, seen = answering(
        web.Response(status=500, text="No cluster leader"),
        web.Response(status=429, text="slow down"),
        web.Response(
            status=500, text="server overloaded, nothing was stored, try again: queue full"
        ),
        web.Response(text="true"),
    )
    async with serving(handler) as url, client(url) as kv:
        assert await kv.put("k", b"v")
    assert len(seen) == 4


async def test_a_write_on_a_kept_connection_that_breaks_is_not_sent_again() -> None:
    """The library repeats PUT and DELETE by itself on a connection that it reused; it must not here."""
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue"
    async with hanging_up(after_first=reply) as (url, heads), client(url) as kv:
        assert await kv.delete("k")
        with pytest.raises(PeerUnreachable) as caught:
            await kv.delete("k")
    assert caught.value.took_effect == "unknown"
    assert len(heads) == 2


async def test_a_read_is_sent_again_whatever_happened() -> None:
    handler, seen = answering(
        web.Response(status=500, text="leadership lost while committing log"),
        web.Response(text=PAIR),
    )
    async with serving(handler) as url, client(url) as kv:
        assert await kv.get("k") is not None
    assert len(seen) == 2


async def test_the_next_address_is_asked_when_one_is_down() -> None:
    handler, seen = answering(web.Response(text="true"))
    async with serving(handler) as url, client(refused_address(), url) as kv:
        assert await kv.put("k", b"v"), "never connected: certainly not executed"
        assert await kv.put("k", b"v")
    assert len(seen) == 2


async def test_tries_end_with_the_deadline() -> None:
    async with client(refused_address(), timeout_s=0.3) as kv:
        with pytest.raises(PeerUnreachable) as caught:
            await kv.put("k", b"v")
    assert caught.value.took_effect == "no"


async def test_an_impatient_client_asks_each_address_once() -> None:
    """A person at a terminal wants to hear at once that nobody listens."""
    addresses = (refused_address(), refused_address())
    async with KvnodeClient(addresses, timeout_s=3600, patient=False) as kv:
        with pytest.raises(PeerUnreachable, match="Connection refused"):
            await kv.get("k")


async def test_silence_ends_with_the_deadline_and_is_unknown() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError

    async with serving(handler) as url, client(url, timeout_s=0.2) as kv:
        with pytest.raises(Timeout) as caught:
            await kv.put("k", b"v")
    assert caught.value.took_effect == "unknown"


async def test_the_callers_faults_are_not_sent_again() -> None:
    handler, seen = answering(
        web.Response(status=413, text="Request body too large, max size: 524288 bytes"),
        web.Response(status=400, text="Missing key name"),
        web.Response(status=500, text='invalid session "x"'),
    )
    async with serving(handler) as url, client(url) as kv:
        with pytest.raises(ValueTooLarge, match="too large"):
            await kv.put("k", b"v")
        with pytest.raises(BadRequest, match="Missing"):
            await kv.put("k", b"v")
        with pytest.raises(BadRequest, match="invalid session"):
            await kv.put("k", b"v")
    assert len(seen) == 3


@pytest.mark.parametrize("text", ["", "null", "{}", "[1]", '[{"Key":"a"}]', "<html>", "maybe"])
async def test_nonsense_is_called_nonsense(text: str) -> None:
    handler, _ = answering(web.Response(text=text))
    async with serving(handler) as url, client(url) as kv:
        for call in (kv.get("k"), kv.put("k", b""), kv.members(), kv.raft_peers(), kv.leader()):
            with pytest.raises(RemoteProtocolError):
                await call


async def test_members_are_sorted_and_show_the_peer_port() -> None:
    """Consul's Port is the gossip port; the one that servers talk to is a tag (spec §10)."""
    text = (
        '[{"Name":"n2","Addr":"10.0.0.6","Port":8301,"Tags":{"port":"8300","id":"i2","dc":"dc1",'
        '"build":"1.22.0:"},"Status":4},{"Name":"n1","Addr":"10.0.0.5","Port":8301,"Tags":null,"Status":1}]'
    )
    handler, _ = answering(web.Response(text=text))
    async with serving(handler) as url, client(url) as kv:
        first, second = await kv.members()
    assert (first.name, first.address, first.status) == ("n1", "10.0.0.5:8301", "alive")
    assert (second.address, second.status, second.build) == ("10.0.0.6:8300", "failed", "1.22.0")


async def test_the_raft_group_is_read_and_changed() -> None:
    text = (
        '{"Servers":[{"ID":"i2","Node":"n2","Address":"h:2","Leader":true,"ProtocolVersion":"3",'
        '"Voter":true,"LastIndex":93},{"ID":"i1","Node":"n1","Address":"h:1","Leader":false,'
        '"ProtocolVersion":"3","Voter":false}],"Index":0}'
    )
    handler, seen = answering(web.Response(text=text))
    async with serving(handler) as url, client(url) as kv:
        first, second = await kv.raft_peers(stale=True)
        await kv.transfer_leadership("i1")
        await kv.remove_peer(address="h:1")
    assert (first.name, first.voter, first.last_index) == ("n1", False, 0)
    assert (second.leader, second.last_index) == (True, 93)
    assert [(r.method, r.path_qs) for r in seen] == [
        ("GET", "/v1/operator/raft/configuration?stale="),
        ("POST", "/v1/operator/raft/transfer-leader?id=i1"),
        ("DELETE", "/v1/operator/raft/peer?address=h:1"),
    ]


async def test_no_leader_is_an_empty_address() -> None:
    handler, _ = answering(web.Response(text='""'))
    async with serving(handler) as url, client(url) as kv:
        assert await kv.leader() == ""


async def test_no_leader_ends_as_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _, high: high)  # no try just before the end
    handler, _ = answering(web.Response(status=500, text="No cluster leader"))
    async with serving(handler) as url, client(url, timeout_s=0.3) as kv:
        with pytest.raises(NoLeader) as caught:
            await kv.put("k", b"v")
    assert caught.value.took_effect == "no"


async def test_who_sleeps_past_the_end_asks_nobody_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nothing left of its time, a request would have no limit at all."""
    really_sleep = asyncio.sleep
    monkeypatch.setattr("asyncio.sleep", lambda _: really_sleep(0.5))
    handler, seen = answering(web.Response(status=500, text="No cluster leader"))
    async with serving(handler) as url, client(url, timeout_s=0.4) as kv:
        with pytest.raises(NoLeader):
            await kv.get("k")
    assert len(seen) == 1


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "http://h:port", "h:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadRequest):
        KvnodeClient(address)


@pytest.mark.parametrize("address", ["localhost:8500", "http://localhost:8500/", "https://h"])
def test_addresses_come_with_and_without_a_scheme(address: str) -> None:
    """CONSUL_HTTP_ADDR is written both ways."""
    KvnodeClient(address)

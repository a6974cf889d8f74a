import asyncio

import pytest

from kvnode.discovery import discovery as module
from kvnode.discovery.discovery import Discovery
from kvnode.discovery.dns import Answer, DnsSettings
from kvnode.discovery.seeds import seed_for
from kvnode.errors import BadRequest, PeerUnreachable

DNS = DnsSettings(name="kvnode", peer_port=8300)


def found(*hosts, ttl_s=0.0):
    return Answer([seed_for(host, 8300) for host in hosts], ttl_s, "", False)


class Script:
    """Rounds with given results; ``gate`` holds them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.rounds = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, settings):
        self.rounds += 1
        await self.gate.wait()
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(autouse=True)
def no_floor(monkeypatch):
    monkeypatch.setattr(module, "TTL_FLOOR_S", 0.0)


async def addresses(discovery):
    return [seed.address for seed in await discovery.lookup()]


async def test_static_first_then_dns_without_repetition():
    script = Script(found("b", "a"))
    discovery = Discovery(retry_join=["z", "a"], peer_port=8300, dns=DNS, ask=script)
    assert await addresses(discovery) == ["z:8300", "a:8300", "b:8300"]


async def test_without_dns_nothing_is_asked():
    discovery = Discovery(retry_join=["a"], peer_port=1, ask=Script(found("never")))
    assert await addresses(discovery) == ["a:1"]


@pytest.mark.parametrize("failed", [True, False])
async def test_the_last_good_answer_stays_when_dns_is_ill_or_empty(failed):
    """RC-56: DNS adds addresses, it takes none away until it names somebody again."""
    script = Script(found("a", "b"), Answer([], 0.0, "why", failed), found("b"))
    discovery = Discovery(peer_port=8300, dns=DNS, ask=script)
    assert await addresses(discovery) == ["a:8300", "b:8300"]
    assert await addresses(discovery) == ["a:8300", "b:8300"]
    assert (discovery.reason, discovery.failed) == ("why", failed)
    assert await addresses(discovery) == ["b:8300"]
    assert (discovery.reason, discovery.failed) == ("", False)


async def test_an_answer_is_kept_for_its_ttl_with_a_floor_and_a_ceiling(monkeypatch):
    monkeypatch.setattr(module, "TTL_FLOOR_S", 60.0)
    script = Script(found("a", ttl_s=0.0))
    discovery = Discovery(peer_port=8300, dns=DNS, ask=script)
    assert await addresses(discovery) == ["a:8300"]
    assert await addresses(discovery) == ["a:8300"]
    assert script.rounds == 1
    monkeypatch.setattr(module, "TTL_FLOOR_S", 0.05)
    monkeypatch.setattr(module, "TTL_CEILING_S", 0.1)
    script = Script(found("a", ttl_s=0.0), found("b", ttl_s=3600.0))
    discovery = Discovery(peer_port=8300, dns=DNS, ask=script)
    async with asyncio.timeout(30):
        while script.rounds < 3:
            assert await addresses(discovery) == (["a:8300"] if script.rounds == 1 else ["b:8300"])
            await asyncio.sleep(0.01)


async def test_rounds_never_overlap():
    script = Script(found("a"))
    script.gate.clear()
    discovery = Discovery(peer_port=8300, dns=DNS, ask=script)
    waiting = [asyncio.create_task(discovery.lookup()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    script.gate.set()
    results = await asyncio.gather(*waiting[1:])
    assert script.rounds == 1
    assert all(len(result) == 1 for result in results)


async def test_discover_calls_back_later_with_addresses():
    discovery = Discovery(retry_join=["a"], peer_port=1)
    future = asyncio.get_running_loop().create_future()
    discovery.discover(lambda value, error: future.set_result((value, error)))
    assert not future.done(), "a completion never comes from inside the call"
    assert await future == (["a:1"], None)


async def test_close_ends_what_waits():
    script = Script(found("a"))
    script.gate.clear()
    discovery = Discovery(peer_port=8300, dns=DNS, ask=script)
    got = []
    discovery.discover(lambda value, error: got.append((value, error)))
    while not script.rounds:  # noqa: ASYNC110 - one turn or two
        await asyncio.sleep(0)
    await discovery.close()
    assert got[0][0] is None
    assert isinstance(got[0][1], PeerUnreachable)
    await discovery.close()


def test_a_wrong_static_address_is_refused_at_once():
    with pytest.raises(BadRequest):
        Discovery(retry_join=["a:b"], peer_port=1)


async def test_against_a_real_server(server, settings):
    """Scale from nobody to three pods, then DNS falls ill."""
    discovery = Discovery(peer_port=8300, dns=settings())
    assert await discovery.lookup() == []
    server.pods("kvnode", 3)
    server.ttl = 0
    assert [seed.name for seed in await discovery.lookup()] == ["kvnode-0", "kvnode-1", "kvnode-2"]
    server.rcode = 2
    assert len(await discovery.lookup()) == 3
    assert discovery.failed

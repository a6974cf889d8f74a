import asyncio
import socket
import threading

import pytest

from kvnode.addresses import Address
from kvnode.errors import PeerUnreachable
from kvnode.transport import resolve as module
from kvnode.transport.resolve import LOOKUPS_MAX, ThreadResolver, is_literal, parse_candidates


@pytest.fixture
def lookups(monkeypatch):
    """Look-ups that wait for ``gate``."""

    class Lookups:
        gate = threading.Event()
        names: list[str] = []  # noqa: RUF012 - fresh for each test
        answer: object = [(0, 0, 0, "", ("10.0.0.1", 0)), (0, 0, 0, "", ("10.0.0.1", 0))]

        def getaddrinfo(self, host, *args, **kwargs):
            self.names.append(host)
            self.gate.wait(5)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    made = Lookups()
    made.names = []
    made.gate = threading.Event()
    monkeypatch.setattr(module.socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.gate.set()


async def test_literals_are_not_looked_up(lookups):
    resolver = ThreadResolver()
    for host in ("127.0.0.1", "::1", "fe80::1%eth0"):
        assert await resolver(Address(host, 5)) == [Address(host, 5)]
    assert lookups.names == []
    assert not is_literal("kvnode-0")


async def test_look_ups_of_one_name_share_one_thread(lookups):
    resolver = ThreadResolver()
    waiting = [asyncio.create_task(resolver(Address("h", port))) for port in (1, 2)]
    await asyncio.sleep(0)
    lookups.gate.set()
    assert await asyncio.gather(*waiting) == [[Address("10.0.0.1", 1)], [Address("10.0.0.1", 2)]]
    assert lookups.names == ["h"]
    await resolver(Address("h", 1))
    assert lookups.names == ["h", "h"], "names are looked up anew each time (RC-53)"


async def test_stuck_look_ups_are_bounded(lookups):
    """A dead name server must not make a thread per dial."""
    resolver = ThreadResolver()
    waiting = [asyncio.create_task(resolver(Address(f"h{n}", 1))) for n in range(LOOKUPS_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(PeerUnreachable):
        await resolver(Address("one more", 1))
    lookups.gate.set()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
async def test_unknown_names_are_unreachable_peers(lookups, error):
    lookups.answer = error
    lookups.gate.set()
    with pytest.raises(PeerUnreachable, match="cannot resolve"):
        await ThreadResolver()(Address("h", 1))


async def test_a_wait_that_is_cancelled_leaves_the_others_alone(lookups):
    resolver = ThreadResolver()
    one, other = (asyncio.create_task(resolver(Address("h", 1))) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    lookups.gate.set()
    assert await other


def test_malformed_and_repeated_candidates_are_left_out():
    assert parse_candidates(("a:1", "nonsense", "a:1", "[::1]:2")) == [
        Address("a", 1),
        Address("::1", 2),
    ]
    assert len(parse_candidates(tuple(f"h{n}:1" for n in range(100)))) == 8

"""HTTP and TCP checks against real sockets: what they find, and what of it is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from kvnode import agent_checks
from kvnode.agent_checks import CheckRunner
from kvnode.store.registry_commands import Deregister, Register, UpdateCheck
from kvnode.store.registry_records import Check, CheckDefinition
from tests.http.fake_replica import FakeReplica


@pytest.fixture
async def replica() -> FakeReplica:
    return FakeReplica()


@pytest.fixture
async def runner(
    replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CheckRunner]:
    monkeypatch.setattr(agent_checks, "INTERVAL_MIN_S", 0.02)
    monkeypatch.setattr(agent_checks, "LOOK_S", 0.01)
    made = CheckRunner(replica, "kvnode-0")
    yield made
    await made.close()


class Service:
    """Answers each connection with what it is told to; counts them."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.asked: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
                await writer.drain()
        finally:
            writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()


def check(kind: str, target: str, **definition: object) -> Check:
    looks = CheckDefinition(**{kind: target}, interval_ns=1, **definition)  # type: ignore[arg-type]
    return Check("kvnode-0", "c", "c", type=kind, definition=looks, is_local=True)


@pytest.mark.parametrize(
    ("status", "found"),
    [(200, "passing"), (204, "passing"), (429, "warning"), (404, "critical"), (503, "critical")],
)
async def test_the_status_of_an_answer_decides(
    runner: CheckRunner, service: Service, status: int, found: str
) -> None:
    service.answer = b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status
    if status == 204:
        service.answer = b"HTTP/1.1 204 X\r\n\r\n"
    url = f"http://127.0.0.1:{service.port}/h"
    finding = await runner.probe(check("http", url, header=(("X-A", ("1",)),)))
    assert finding.status == found
    assert finding.output.startswith(f"HTTP GET {url}: {status} X Output: ")
    assert b"GET /h HTTP/1.1\r\n" in service.asked[0]
    assert b"X-A: 1\r\n" in service.asked[0]


async def test_a_body_and_another_method_are_sent(runner: CheckRunner, service: Service) -> None:
    url = f"http://127.0.0.1:{service.port}/"
    assert (await runner.probe(check("http", url, method="put", body="hi"))).status == "passing"
    assert service.asked[0].startswith(b"PUT / HTTP/1.1\r\n")


async def test_a_long_answer_is_cut(runner: CheckRunner, service: Service) -> None:
    service.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99_999
    finding = await runner.probe(check("http", f"http://127.0.0.1:{service.port}/"))
    assert len(finding.output) == agent_checks.OUTPUT_BYTES_MAX


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_nobody_there_is_critical(runner: CheckRunner, kind: str) -> None:
    listener = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    target = f"127.0.0.1:{port}" if kind == "tcp" else f"http://127.0.0.1:{port}/"
    assert (await runner.probe(check(kind, target))).status == "critical"


@pytest.mark.parametrize("target", ["nonsense", "http://", "http://[::1", "ftp://h/"])
async def test_an_address_that_is_none_is_critical(runner: CheckRunner, target: str) -> None:
    for kind in ("http", "tcp"):
        assert (await runner.probe(check(kind, target))).status == "critical"


async def test_an_answer_that_does_not_come_is_critical(
    runner: CheckRunner, service: Service
) -> None:
    service.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    url = f"http://127.0.0.1:{service.port}/"
    finding = await runner.probe(check("http", url, timeout_ns=50_000_000))
    assert finding.status == "critical"


async def test_a_port_that_takes_connections_passes(runner: CheckRunner, service: Service) -> None:
    target = f"127.0.0.1:{service.port}"
    assert await runner.probe(check("tcp", target)) == (
        "passing",
        f"TCP connect {target}: Success",
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # other loops run beside it
            await asyncio.sleep(0.01)


async def test_only_changes_are_written(
    replica: FakeReplica, runner: CheckRunner, service: Service
) -> None:
    def status() -> str:
        found = replica.store.registry().check("kvnode-0", "c")
        return found.status if found is not None else ""

    looked = check("http", f"http://127.0.0.1:{service.port}/")
    foreign = looked._replace(check_id="foreign", is_local=False)
    replica.write(Register("kvnode-0", checks=(looked, foreign)), lambda _r, _e: None)
    runner.start()
    await until(lambda: status() == "passing")
    seen = len(service.asked)
    await until(lambda: len(service.asked) > seen + 3)
    assert sum(isinstance(command, UpdateCheck) for command in replica.commands) == 1
    service.answer = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
    await until(lambda: status() == "critical")
    replica.write(Deregister("kvnode-0", check_id="c"), lambda _r, _e: None)
    await until(lambda: not status())
    await asyncio.sleep(0.05)
    seen = len(service.asked)
    await asyncio.sleep(0.1)
    assert len(service.asked) <= seen + 1
    assert all(
        command.check_id == "c" for command in replica.commands if isinstance(command, UpdateCheck)
    )

"""``/v1/snapshot`` over a replica in this process: answers, headers, refusals, and who gives up when."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import pytest

from kvnode.archive import open_container
from kvnode.errors import DiskNearlyFull, LeadershipLost, NoLeader
from kvnode.http import snapshot
from kvnode.replica.facade import Consistency, ReadView
from kvnode.store.commands import RestoreDrop, RestoreFinish, RestorePiece
from tests.archive.archives import ID, archive, key, state
from tests.conformance.wire import Wire
from tests.http.conftest import Node, Start

PATH = "/v1/snapshot"


def check(data: bytes) -> int:
    return open_container(io.BytesIO(data), io.BytesIO(), 1 << 30, lambda _size: None).meta.index


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)


async def test_save_answers_as_consul_does(node: Node) -> None:
    await node.wire("PUT", "/v1/kv/a", b"1")
    answer = await node.wire("GET", PATH)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-gzip"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["x-consul-knownleader"] == "true"
    assert answer.headers["x-consul-lastcontact"] == "0"
    assert answer.index == check(answer.body) == node.replica.store.applied_index
    assert node.replica.reads[-1] is Consistency.DEFAULT


async def test_restore_replaces_everything_and_answers_nothing(node: Node) -> None:
    await node.wire("PUT", "/v1/kv/old", b"1")
    answer = await node.wire("PUT", PATH, archive())
    assert (answer.status, answer.body) == (200, b"")
    assert not any(name.startswith("x-consul-index") for name in answer.headers)
    assert int(answer.headers["x-kvnode-index"]) == node.replica.store.applied_index
    assert (await node.wire("GET", "/v1/kv/old")).status == 404
    lock = await node.wire("GET", "/v1/kv/lock")
    assert (lock.json[0]["Session"], lock.json[0]["LockIndex"]) == (ID, 1)


async def test_the_index_of_every_read_is_that_of_the_restore_at_least(node: Node) -> None:
    await node.wire("PUT", PATH, archive())
    index = node.replica.store.applied_index
    for path in ("lock", "nothing", "?recurse", "?keys", "a/?recurse", "a/?keys", "lock?raw"):
        assert (await node.wire("GET", f"/v1/kv/{path}")).index == index, path
    assert (await node.wire("GET", "/v1/session/list")).index == index


async def test_a_restore_wakes_everybody(node: Node) -> None:
    for name in ("a/b", "lock", "x"):
        await node.wire("PUT", f"/v1/kv/{name}", b"before")
    index = node.replica.store.kv_index()
    paths = ["a/b", "x", "nothing", "a/?recurse", "?keys"]
    parked = []
    for path in paths:
        join = "&" if "?" in path else "?"
        reader, writer = await node.connect()
        target = f"/v1/kv/{path}{join}index={index}&wait=60s"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        parked.append(reader)
    await until(lambda: node.server.gate.parked == len(paths))
    await node.wire("PUT", PATH, archive())
    for reader in parked:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        found = int(head.lower().split(b"x-consul-index: ")[1].split(b"\r\n")[0])
        assert found == node.replica.store.applied_index > index


async def test_without_a_leader_it_fails_at_once(node: Node) -> None:
    """Spec §3: other routes hold for seven seconds."""
    node.replica.state = node.replica.state._replace(leader_id=None)
    node.replica.stale_view = ReadView(False, 11_385)
    for method, query in (("GET", ""), ("GET", "?consistent"), ("PUT", ""), ("PUT", "?stale")):
        answer = await node.wire(method, PATH + query, archive() if method == "PUT" else b"")
        assert (answer.status, answer.text) == (500, "No cluster leader")
    answer = await node.wire("GET", PATH + "?stale")
    assert (answer.status, answer.headers["x-consul-knownleader"]) == (200, "false")
    assert answer.headers["x-consul-lastcontact"] == "11385"
    check(answer.body)
    assert node.replica.commands == []


async def test_bad_parameters_are_refused(node: Node) -> None:
    assert (await node.wire("GET", PATH + "?dc=elsewhere")).text == "No path to datacenter"
    assert (await node.wire("PUT", PATH + "?stale&consistent", archive())).status == 400
    answer = await node.wire("POST", PATH, archive())
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS,GET,PUT")
    assert node.replica.commands == []


async def test_what_is_no_archive_changes_nothing(node: Node) -> None:
    await node.wire("PUT", "/v1/kv/kept", b"1")
    count = len(node.replica.commands)
    for body, reason in (
        (b"", "failed to decompress snapshot: EOF"),
        (b"hello, world", "failed to decompress snapshot: gzip: invalid header"),
        (archive()[:8], "failed to decompress snapshot: unexpected EOF"),
        (archive(state([key(b"a"), key(b"a")])), "the key b'a' is there twice"),
    ):
        answer = await node.wire("PUT", PATH, body)
        assert (answer.status, answer.text) == (500, reason)
    assert len(node.replica.commands) == count
    assert (await node.wire("GET", "/v1/kv/kept")).status == 200


async def test_an_archive_that_unpacks_to_too_much_is_refused(start: Start) -> None:
    node = await start(upload_bytes_max=100_000)
    zeros = archive(state([key(b"a", bytes(2_000_000))]))
    assert len(zeros) < 100_000
    answer = await node.wire("PUT", PATH, zeros)
    assert answer.status == 500
    assert "at most 1600000 are unpacked" in answer.text
    assert node.replica.commands == []


async def test_no_room_is_said_before_anything_is_staged(start: Start, tmp_path: Any) -> None:
    node = await start(spool_dir=str(tmp_path), spool_reserve_bytes=1 << 60)
    assert "no room" in (await node.wire("GET", PATH)).text
    assert "no room" in (await node.wire("PUT", PATH, archive())).text
    assert node.replica.commands == []


class Flaky:
    """A replica whose answers get lost now and then, after it did as it was told."""

    def __init__(self, node: Node, every: int) -> None:
        self._write = node.replica.write
        self._every = every
        self.count = 0
        node.replica.write = self.write  # type: ignore[method-assign]

    def write(self, command: Any, done: Any) -> None:
        self.count += 1
        lost = self.count % self._every == 0

        def answer(result: Any, error: Any) -> None:
            if lost:
                done(None, LeadershipLost("leadership lost while committing log"))
            else:
                done(result, error)

        self._write(command, answer)


async def test_a_leader_that_is_lost_on_the_way_is_asked_again(node: Node) -> None:
    """Each step may be repeated: none is done twice."""
    flaky = Flaky(node, 2)
    content = state([key(b"%03d" % number, bytes(30_000)) for number in range(100)])
    answer = await node.wire("PUT", PATH, archive(content))
    assert answer.status == 200
    assert flaky.count > 8
    assert node.replica.store.count() == 100
    assert node.replica.store.staging() is None


async def test_a_restore_that_cannot_go_on_is_given_up(node: Node) -> None:
    node.replica.write_error = DiskNearlyFull("the volume is nearly full")
    answer = await node.wire("PUT", PATH, archive())
    assert answer.status == 500
    assert "nearly full" in answer.text
    kinds = [type(command) for command in node.replica.commands]
    assert kinds == [RestorePiece, RestoreDrop]


async def test_a_newer_restore_wins_and_the_older_one_is_told(node: Node) -> None:
    write = node.replica.write

    def intrude(command: Any, done: Any) -> None:
        if isinstance(command, RestoreFinish):
            write(RestorePiece(ID, 0, b"x"), lambda _result, _error: None)
        write(command, done)

    node.replica.write = intrude  # type: ignore[method-assign]
    await node.wire("PUT", "/v1/kv/kept", b"1")
    answer = await node.wire("PUT", PATH, archive())
    assert answer.status == 500
    assert "another restore" in answer.text
    assert (await node.wire("GET", "/v1/kv/kept")).status == 200


async def test_a_client_that_hangs_up_gives_its_restore_up(node: Node) -> None:
    node.replica.held = []
    _, writer = await node.connect()
    data = archive()
    writer.write(
        b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), len(data))
    )
    writer.write(data)
    await until(lambda: node.replica.commands)
    writer.close()
    await until(lambda: isinstance(node.replica.commands[-1], RestoreDrop))
    await until(lambda: node.server.gate.requests == 0)
    node.replica.release()
    await until(lambda: node.replica.store.staging() is None)


async def test_one_restore_at_a_time(node: Node) -> None:
    node.replica.held = []
    first = asyncio.create_task(put(node))
    await until(lambda: node.replica.commands)
    refused = await node.wire("PUT", PATH, archive())
    assert (refused.status, refused.headers["retry-after"]) == (500, "1")
    node.replica.release()
    assert (await first).status == 200
    assert (await node.wire("PUT", PATH, archive())).status == 200


async def test_few_saves_at_a_time(start: Start) -> None:
    node = await start(uploads_max=2)
    node.replica.held = []
    saves = [asyncio.create_task(get(node)) for _ in range(2)]
    await until(lambda: len(node.replica.reads) == 2)
    assert (await node.wire("GET", PATH)).headers["retry-after"] == "1"
    node.replica.release()
    assert [(await save).status for save in saves] == [200, 200]
    assert (await node.wire("GET", PATH)).status == 200


async def test_a_save_that_a_restore_overtakes_says_so(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads from is gone; half of it must not pass for the whole."""
    begun, go_on = threading.Event(), threading.Event()
    genuine = snapshot.save_state

    def slow(*args: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return genuine(*args)

    monkeypatch.setattr(snapshot, "save_state", slow)
    saving = asyncio.create_task(get(node))
    await asyncio.to_thread(begun.wait, 10)
    assert (await node.wire("PUT", PATH, archive())).status == 200
    go_on.set()
    answer = await saving
    assert (answer.status, answer.headers["retry-after"]) == (500, "1")
    assert "replaced" in answer.text


async def put(node: Node) -> Any:
    wire = Wire("127.0.0.1", node.server.port)
    try:
        return await wire("PUT", PATH, archive())
    finally:
        await wire.close()


async def get(node: Node) -> Any:
    wire = Wire("127.0.0.1", node.server.port)
    try:
        return await wire("GET", PATH)
    finally:
        await wire.close()


async def test_errors_of_a_read_are_told(node: Node) -> None:
    node.replica.read_error = NoLeader("No cluster leader")
    answer = await node.wire("GET", PATH)
    assert (answer.status, answer.text) == (500, "No cluster leader")

"""The change feed: every change once and in order, from any point that is kept, to any reader."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from kvnode.errors import NoLeader
from kvnode.http import feed as feed_module
from kvnode.http.feed import Point, parse_event_id
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    SessionCreate,
    SessionDestroy,
    TrimHistory,
    Txn,
    TxnOp,
    Verb,
)
from kvnode.store.history import Change
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import RELEASE
from kvnode.store.snapshot import load
from tests.conformance.wire import read_answer
from tests.http.conftest import Node, Start

WHO = "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"


class Event(NamedTuple):
    """One server-sent event, or a block without data."""

    name: str
    id: str
    data: Any
    comment: str


class Reader:
    """A client of one feed, over a connection of its own."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.status = 0
        self.headers: dict[str, str] = {}
        self._pending = b""

    async def open(self, target: str, last_event_id: str = "") -> Reader:
        self.reader, self.writer = await self._node.connect()
        extra = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head[:-4].split("\r\n")
        self.status = int(line.split(" ")[1])
        self.headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in rest)}
        return self

    async def blocks(self) -> AsyncIterator[Event]:
        """Every block; ends with the stream."""
        while True:
            while b"\n\n" not in self._pending:
                size = int(await self.reader.readline(), 16)
                if not size:
                    assert not self._pending, "the last event is whole"
                    return
                self._pending += await self.reader.readexactly(size)
                await self.reader.readline()
            block, _, self._pending = self._pending.partition(b"\n\n")
            yield parse_block(block.decode())

    async def take(self, count: int) -> list[Event]:
        """The next blocks."""
        found: list[Event] = []
        async with asyncio.timeout(5):
            async for block in self.blocks():
                found.append(block)
                if len(found) == count:
                    break
        return found

    async def until(self, name: str) -> list[Event]:
        """Everything before the event of this name, which is swallowed; heartbeats left out."""
        found: list[Event] = []
        async with asyncio.timeout(5):
            async for block in self.blocks():
                if block.name == name:
                    return found
                if block.name:
                    found.append(block)
        raise AssertionError(f"the stream ended before {name}: {found}")


def parse_block(block: str) -> Event:
    fields = {"event": "", "id": "", "data": "", "": ""}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")
    data = json.loads(fields["data"]) if fields["data"] else None
    return Event(fields["event"], fields["id"], data, fields[""])


def apply(node: Node, *commands: Command) -> int:
    """As the replica would, without waiting."""
    replica = node.replica
    store = replica.store
    first = max(store.applied_index + 1, replica.next_index)
    store.apply_batch(list(enumerate(commands, first)))
    replica.next_index = store.applied_index + 1
    replica.watches.wake(store.applied_index)
    return store.applied_index


def brief(events: list[Event]) -> list[tuple[str, str, str, str | None, str | None]]:
    return [
        (event.id, event.name, event.data["Key"], *map(value_of, (event.data["Old"], event.data["New"])))
        for event in events
    ]  # fmt: skip


def value_of(entry: dict[str, Any] | None) -> str | None:
    return None if entry is None else base64.b64decode(entry["Value"] or "").decode()


@pytest.fixture(params=[True, False], ids=["lean", "aiohttp"])
async def node(start: Start, request: pytest.FixtureRequest) -> Node:
    return await start(fast_path=request.param, feed_heartbeat_s=30.0)


async def feed(node: Node, target: str, last_event_id: str = "") -> Reader:
    reader = await Reader(node).open(target, last_event_id)
    assert reader.status == 200, await reader.reader.read(500)
    return reader


async def test_it_begins_now_and_says_where(node: Node) -> None:
    index = apply(node, KvSet(b"a", b"old"))
    reader = await feed(node, "/v1/watch/")
    assert reader.headers["content-type"] == "text/event-stream"
    assert reader.headers["x-kvnode-index"] == str(index)
    begin, ready = await reader.take(2)
    assert (begin.name, begin.id, begin.data["Index"]) == ("start", str(index), index)
    assert (ready.name, ready.id) == ("ready", str(index))
    apply(node, KvSet(b"a", b"new"))
    [event] = await reader.take(1)
    assert brief([event]) == [(str(index + 1), "set", "a", "old", "new")]


async def test_every_change_comes_once_with_what_was_and_what_is(node: Node) -> None:
    apply(node, KvSet(b"x", b""))
    reader = await feed(node, "/v1/watch/a")
    await reader.until("ready")
    base = apply(
        node,
        KvSet(b"a", b"1", 7),
        KvSet(b"b", b"elsewhere"),
        SessionCreate(WHO, "", "n1", 10**9, RELEASE, "", 0, (), ()),
        KvLock(b"a", b"2", WHO),
        SessionDestroy(WHO),
        KvDelete(b"a"),
    ) - 6  # fmt: skip
    events = await reader.take(4)
    assert brief(events) == [
        (f"{base + 1}", "set", "a", None, "1"),
        (f"{base + 4}", "set", "a", "1", "2"),
        (f"{base + 5}", "set", "a", "2", "2"),
        (f"{base + 6}", "delete", "a", "2", None),
    ]
    assert [event.data["By"] for event in events] == ["put", "acquire", "session-end", "delete"]
    assert events[0].data["New"]["Flags"] == 7
    assert events[1].data["New"]["Session"] == WHO
    assert "Session" not in events[2].data["New"]
    assert events[3].data["Index"] == base + 6


async def test_changes_of_one_entry_have_ids_that_can_be_gone_on_from(node: Node) -> None:
    """RC-66: a transaction and a deleted tree are one index; no resume loses or doubles one."""
    apply(node, KvSet(b"z", b""))
    reader = await feed(node, "/v1/watch/a/")
    await reader.until("ready")
    ops = tuple(TxnOp(Verb.SET, key, b"1") for key in (b"a/3", b"a/1", b"other", b"a/2"))
    apply(node, Txn(ops, 100), KvDeleteTree(b"a/"))
    events = await reader.take(6)
    index = int(events[2].id)
    assert [event.id for event in events] == [
        f"{index}.1", f"{index}.2", f"{index}", f"{index + 1}.1", f"{index + 1}.2", f"{index + 1}",
    ]  # fmt: skip
    assert [event.data["Key"] for event in events] == ["a/1", "a/2", "a/3"] * 2
    for at, event in enumerate(events, 1):
        again = await feed(node, "/v1/watch/a/", event.id)
        assert brief((await again.until("ready"))[1:]) == brief(events[at:])


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_reader_goes_on_without_a_gap(node: Node, by_header: bool) -> None:
    for number in range(600):
        apply(node, KvSet(b"a/%d" % (number % 7), b"%d" % number), KvSet(b"b", b"%d" % number))
    first = node.replica.store.applied_index - 1199
    since = first + 400
    target = "/v1/watch/a/" if by_header else f"/v1/watch/a/?index={since}"
    reader = await feed(node, target, str(since) if by_header else "")
    events = await reader.until("ready")
    assert events.pop(0).name == "start"
    assert [int(event.id) for event in events] == list(range(since + 2, first + 1200, 2))
    assert [value_of(event.data["New"]) for event in events] == [str(n) for n in range(201, 600)]


async def test_the_header_of_a_reconnect_counts_more_than_the_address(node: Node) -> None:
    """A browser asks the same address again, with the header."""
    last = apply(node, KvSet(b"a", b"1"), KvSet(b"a", b"2"), KvSet(b"a", b"3"))
    reader = await feed(node, f"/v1/watch/?index={last - 2}&initial", str(last - 1))
    assert brief((await reader.until("ready"))[1:]) == [(str(last), "set", "a", "2", "3")]


async def test_a_point_that_is_compacted_is_refused_with_410(node: Node) -> None:
    last = apply(node, KvSet(b"a", b"1"), KvSet(b"a", b"2"), KvSet(b"a", b"3"))
    apply(node, TrimHistory(last - 1))
    for since in ("0", str(last - 2), f"{last - 1}.1"):
        reader = await Reader(node).open("/v1/watch/a", since)
        assert reader.status == 410
        text = (await reader.reader.read(500)).decode()
        assert f"the history begins at {last - 1}" in text
    assert brief((await (await feed(node, "/v1/watch/", str(last - 1))).until("ready"))[1:])


async def test_a_point_in_the_future_is_refused_too(node: Node) -> None:
    """The reader comes from another cluster, or from before a restore."""
    apply(node, KvSet(b"a", b"1"))
    for since in ("99", "99.4"):
        reader = await Reader(node).open("/v1/watch/a", since)
        assert reader.status == 410
        assert b"99 lies in the future" in await reader.reader.read(500)


async def test_a_stale_feed_waits_for_a_node_that_is_behind(node: Node) -> None:
    apply(node, KvSet(b"a", b"1"))
    index = node.replica.store.applied_index
    reader = await feed(node, "/v1/watch/?stale", str(index + 1))
    assert (await reader.take(1))[0].name == "start"
    apply(node, KvSet(b"a", b"known to the reader"), KvSet(b"a", b"new"))
    events = await reader.until("ready")
    assert [event.id for event in events] == [str(index + 2)]


async def test_the_state_comes_first_if_it_is_asked_for(node: Node) -> None:
    for number in range(300):
        apply(node, KvSet(b"a/%03d" % number, b"%d" % number))
    last = apply(node, KvSet(b"b", b""))
    reader = await feed(node, "/v1/watch/a/?initial")
    begin, *entries = await reader.until("ready")
    assert (begin.name, begin.id) == ("start", ""), (
        "a reconnect must not skip the rest of the state"
    )
    assert [e.data["Key"] for e in entries] == [f"a/{number:03d}" for number in range(300)]
    assert {(e.name, e.id) for e in entries} == {("entry", "")}
    apply(node, KvDelete(b"a/000"))
    assert [event.id for event in await reader.take(1)] == [str(last + 1)]


async def test_changes_while_the_state_is_taken_come_after_it(node: Node) -> None:
    for number in range(200):
        apply(node, KvSet(b"a/%03d" % number, bytes(20_000)))
    reader = await feed(node, "/v1/watch/a/?initial")
    await reader.take(5)
    apply(node, KvSet(b"a/199", b"new"), KvDelete(b"a/198"))
    events = await reader.until("ready")
    assert [(e.name, e.data["Key"]) for e in events[-4:]] == [
        ("entry", "a/198"), ("entry", "a/199"), ("set", "a/199"), ("delete", "a/198"),
    ]  # fmt: skip


async def test_a_quiet_reader_is_carried_along_by_heartbeats(start: Start) -> None:
    """Else the window would move on past it, although it has missed nothing."""
    node = await start(feed_heartbeat_s=0.05)
    apply(node, KvSet(b"busy", b"0"))
    reader = await feed(node, "/v1/watch/quiet/")
    await reader.until("ready")
    last = apply(node, *[KvSet(b"busy", b"%d" % number) for number in range(1, 50)])
    beats = await reader.take(2)
    assert [(beat.name, beat.comment) for beat in beats] == [("", "up to date")] * 2
    assert beats[1].id == str(last)
    apply(node, TrimHistory(last))
    again = await feed(node, "/v1/watch/quiet/", beats[1].id)
    assert (await again.take(1))[0].name == "start"


async def test_a_heartbeat_says_when_nobody_leads(start: Start) -> None:
    node = await start(feed_heartbeat_s=0.05)
    apply(node, KvSet(b"a", b""))
    reader = await feed(node, "/v1/watch/")
    await reader.until("ready")
    node.replica.read_error = NoLeader()
    async with asyncio.timeout(20):
        async for beat in reader.blocks():
            if "no leader" in beat.comment:
                return
    raise AssertionError("the stream ended without a word of it")


async def test_a_reader_that_the_window_has_overtaken_is_told_so_and_cut(node: Node) -> None:
    apply(node, KvSet(b"a", b"0"))
    since = node.replica.store.applied_index
    for number in range(300):
        apply(node, KvSet(b"a", bytes([number % 256]) * 40_000))
    reader = await feed(node, "/v1/watch/a", str(since))
    await reader.take(3)
    last = apply(node, TrimHistory(node.replica.store.applied_index))
    *events, cut = [event async for event in reader.blocks()]
    assert (cut.name, cut.id) == ("compacted", "")
    assert cut.data["Oldest"] == last - 1
    ids = [int(event.id) for event in events]
    assert ids == list(range(ids[0], ids[0] + len(ids))), "what came until then is whole"
    assert len(ids) < 297


async def test_a_snapshot_that_is_installed_leaves_no_gap(node: Node) -> None:
    apply(node, KvSet(b"a", b"1"))
    reader = await feed(node, "/v1/watch/a")
    await reader.until("ready")
    replica, store = node.replica, node.replica.store
    ahead = type(store)(MemoryEngine())
    dump = store.dump()
    load(ahead.engine, dump)
    dump.close()
    ahead = type(store)(ahead.engine)
    first = ahead.applied_index + 1
    ahead.apply_batch(
        list(enumerate([KvSet(b"a", b"2"), KvSet(b"b", b""), KvSet(b"a", b"3")], first))
    )
    store.replace(ahead.engine)
    replica.watches.wake(store.applied_index)
    replica.next_index = store.applied_index + 1
    assert brief(await reader.take(2)) == [
        (str(first), "set", "a", "1", "2"),
        (str(first + 2), "set", "a", "2", "3"),
    ]


async def test_a_snapshot_beyond_the_window_is_told_plainly(node: Node) -> None:
    apply(node, KvSet(b"a", b"1"))
    reader = await feed(node, "/v1/watch/a")
    await reader.until("ready")
    store = node.replica.store
    fresh = type(store)(MemoryEngine())
    fresh.apply_batch([(70, KvSet(b"a", b"9")), (71, TrimHistory(71))])
    store.replace(fresh.engine)
    node.replica.watches.wake(store.applied_index)
    [event] = [event async for event in reader.blocks()]
    assert (event.name, event.data["Oldest"]) == ("compacted", 71)


async def test_without_history_a_feed_begins_now_and_cannot_go_on(node: Node) -> None:
    last = apply(node, KvSet(b"a", b"1"), TrimHistory(0, recording=False))
    assert (await Reader(node).open("/v1/watch/a", str(last - 1))).status == 410
    reader = await feed(node, "/v1/watch/a")
    await reader.until("ready")
    apply(node, KvSet(b"a", b"2"))
    [event] = [event async for event in reader.blocks()]
    assert event.name == "compacted", "a change that is not known is not passed over in silence"


async def test_a_large_value_comes_whole(node: Node) -> None:
    apply(node, KvSet(b"a", bytes(500_000)))
    reader = await feed(node, "/v1/watch/a?index=0")
    apply(node, KvSet(b"a", b"x" * 512_000))
    _, first, _, second = await reader.take(4)
    assert len(base64.b64decode(second.data["New"]["Value"])) == 512_000
    assert second.data["Old"] == first.data["New"]


async def test_feeds_of_one_prefix_share_what_is_read(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of another are not woken."""
    apply(node, KvSet(b"z", b""))
    readers = [await feed(node, "/v1/watch/a") for _ in range(20)]
    quiet = await feed(node, "/v1/watch/b")
    for reader in [*readers, quiet]:
        await reader.until("ready")
    encoded: list[int] = []
    encode = feed_module._change_event

    def counted(change: Change) -> bytes:
        encoded.append(change.index)
        return encode(change)

    monkeypatch.setattr(feed_module, "_change_event", counted)
    index = apply(node, KvSet(b"a", b"1"))
    for reader in readers:
        assert len(await reader.take(1)) == 1
    assert encoded == [index]


async def test_a_reader_that_hangs_up_leaves_nothing_behind(node: Node) -> None:
    apply(node, KvSet(b"a", b""))
    reader = await feed(node, "/v1/watch/a")
    await reader.until("ready")
    watches = node.replica.watches
    await _until(lambda: watches.count == 1)
    reader.writer.close()
    await _until(lambda: watches.count == 0 and node.server.gate.streams == 0)


async def test_a_reader_that_hangs_up_in_the_state_frees_its_view(start: Start) -> None:
    node = await start(feed_initials_max=1)
    for number in range(200):
        apply(node, KvSet(b"a/%03d" % number, bytes(50_000)))
    reader = await feed(node, "/v1/watch/a/?initial")
    await reader.take(2)
    reader.writer.transport.abort()
    second = await feed(node, "/v1/watch/a/?initial")
    assert len(await second.until("ready")) == 201


async def test_a_state_that_nobody_takes_is_cut_with_a_last_event(start: Start) -> None:
    node = await start(feed_initial_s=0.0)
    for number in range(10):
        apply(node, KvSet(b"a/%d" % number, bytes(100_000)))
    reader = await feed(node, "/v1/watch/?initial")
    events = [event async for event in reader.blocks()]
    assert events[-1].name == "cut"
    assert "not taken" in events[-1].data["Error"]


async def test_the_server_ends_its_feeds_properly_when_it_closes(node: Node) -> None:
    apply(node, KvSet(b"a", b""))
    reader = await feed(node, "/v1/watch/a")
    await reader.until("ready")
    closing = asyncio.create_task(node.server.close())
    assert [event async for event in reader.blocks()] == []
    await closing


@pytest.mark.parametrize(
    ("target", "last_event_id", "status"),
    [
        ("/v1/watch/a?index=x", "", 400),
        ("/v1/watch/a?consistent&stale", "", 400),
        ("/v1/watch/a?dc=elsewhere", "", 500),
        ("/v1/watch/a", "x", 400),
        ("/v1/watch/a", "1.2.3", 400),
        ("/v1/watch/a", "-1", 400),
        ("/v1/watch/a", "0.1", 400),
        ("/v1/watch/a", "9" * 20, 400),
        ("/v1/watch/a?index=18446744073709551616", "", 400),
        ("/v1/watch/" + "a" * 5000, "", 400),
        ("/v1/watch/a?ns=other", "", 400),
    ],
)
async def test_bad_input_is_refused(
    node: Node, target: str, last_event_id: str, status: int
) -> None:
    assert (await Reader(node).open(target, last_event_id)).status == status


async def test_it_is_not_begun_without_a_leader_unless_stale(node: Node) -> None:
    node.replica.read_error = NoLeader()
    assert (await Reader(node).open("/v1/watch/")).status == 500
    assert (await feed(node, "/v1/watch/?stale")).status == 200


async def test_other_methods_are_refused(node: Node) -> None:
    _, writer = streams = await node.connect()
    writer.write(b"PUT /v1/watch/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert (await read_answer(streams[0])).status == 405


def test_ids_are_read_back() -> None:
    assert parse_event_id("57") == Point(57, -1)
    assert parse_event_id("57.3") == Point(57, 3)
    assert parse_event_id("0") == Point(0, -1)
    for bad in ("", " 1", "1.", ".1", "1.1.1", "+1", "\u0661", str(2**64), "0.1"):
        assert parse_event_id(bad) is None


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)

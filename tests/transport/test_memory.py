"""The in-process transport keeps the same contract, on virtual time."""

import heapq

import pytest

from kvnode.errors import DiskFailed, NotLeader, PeerUnreachable, Timeout
from kvnode.raft.messages import AppendEntries, Heartbeat
from kvnode.raft.types import ZERO, Entry, EntryKind, LogId, Membership, SnapshotMeta
from kvnode.transport.memory import MemoryNetwork, MemoryTransport

META = SnapshotMeta(LogId(3, 1), Membership())


class VirtualTime:
    """A ``Scheduler``: a heap of calls."""

    def __init__(self):
        self.now = 0.0
        self._calls = []
        self._count = 0

    def time(self):
        return self.now

    def call_soon(self, callback, *args):
        return self.call_later(0.0, callback, *args)

    def call_later(self, delay, callback, *args):
        call = _Call(callback, args)
        self._count += 1
        heapq.heappush(self._calls, (self.now + delay, self._count, call))
        return call

    def run(self, until=float("inf")):
        while self._calls and self._calls[0][0] <= until:
            self.now, _, call = heapq.heappop(self._calls)
            if call.callback is not None:
                call.callback(*call.args)


class _Call:
    def __init__(self, callback, args):
        self.callback, self.args = callback, args

    def cancel(self):
        self.callback = None


class Driver:
    """Takes notes; completes chunks at once."""

    def __init__(self):
        self.events = []
        self.accepted = set()
        self.chunk_error = None
        self.wanted = True
        self.silent = False

    def on_messages(self, sender, messages):
        self.events.append(("messages", sender.node_id, *messages))

    def on_request(self, sender, method, payload, reply, fail):
        if self.silent:
            return
        if method == "fail":
            fail(NotLeader("x"))
        else:
            reply((sender.name, payload))

    def on_peer_hello(self, sender):
        self.events.append(("hello", sender.node_id, sender.cluster_id))

    def on_unreachable(self, node_id):
        self.events.append(("unreachable", node_id))

    def accepts_cluster(self, sender):
        return sender.cluster_id in self.accepted

    def on_removed(self, cluster_id):
        self.events.append(("removed",))

    def on_snapshot_begin(self, sender, term, meta):
        self.events.append(("begin", term, meta))
        return self.wanted

    def on_snapshot_chunk(self, sender, chunk, done):
        self.events.append(("chunk", chunk))
        done(self.chunk_error)

    def on_snapshot_end(self, sender, ok, done):
        self.events.append(("end", ok))
        done(None)


class World:
    def __init__(self, hello, delay_s=0.0):
        self.time = VirtualTime()
        self.network = MemoryNetwork(self.time, delay_s)
        self.hello = hello

    def start(self, node_id, cluster_id="c", **fields):
        hello = self.hello(node_id, cluster_id, address=f"{node_id}:1", **fields)
        node = MemoryTransport(self.network, hello, Driver())
        node.start()
        return node

    def pair(self, cluster_a="c", cluster_b="c"):
        a, b = self.start("a", cluster_a), self.start("b", cluster_b)
        for node in (a, b):
            node.set_peers({"a": ("a:1",), "b": ("b:1",)})
        self.time.run()
        return a, b

    def ask(self, node, to, method="m", payload=None, timeout_s=1.0):
        got = []
        node.request(to, method, payload, timeout_s, lambda v, e: got.append((v, e)))
        assert got == [], "a completion never comes from inside the call"
        return got


@pytest.fixture(params=[0.0, 0.01])
def world(net_tools, request):
    return World(net_tools.hello, request.param)


def test_messages_arrive_after_the_delay_and_never_inside_the_call(world):
    a, b = world.pair()
    b.handler.events.clear()
    beat = Heartbeat("a", "b", 1, 0, 1)
    entries = AppendEntries("a", "b", 1, ZERO, (Entry(1, 1, EntryKind.COMMAND, b"x"),), 0)
    started = world.time.now
    a.send("b", [beat, entries])
    assert b.handler.events == []
    world.time.run()
    assert b.handler.events == [("messages", "a", beat, entries)]
    assert world.time.now == pytest.approx(started + world.network.delay_s)


def test_requests_answers_and_errors(world):
    a, b = world.pair()
    good, bad, nobody = world.ask(a, "b", "m", [1]), world.ask(a, "b", "fail"), world.ask(a, "x")
    world.time.run(until=0.5)
    assert good == [(("kvnode-a", (1,)), None)]
    assert isinstance(bad[0][1], NotLeader)
    assert nobody[0][1].took_effect == "no"
    b.handler.silent = True
    late = world.ask(a, "b", timeout_s=0.3)
    world.time.run()
    assert isinstance(late[0][1], Timeout)
    assert late[0][1].took_effect == "unknown"


def test_payloads_are_copied_as_over_a_wire(world):
    """Two nodes must not share a mutable value."""
    a, _ = world.pair()
    payload = {"list": [1, 2]}
    got = world.ask(a, "b", "m", payload)
    payload["list"].append(3)
    world.time.run()
    assert got[0][0] == ("kvnode-a", {"list": (1, 2)})


def test_asking_an_address(world):
    a, b = world.start("a", ""), world.start("b", "")
    got = []
    for address in ("b:1", "a:1", "x:1"):
        a.request_address(address, "m", None, 1.0, lambda v, e: got.append((v, e)))
    assert got == []
    world.time.run()
    answers = {value[0].node_id for value, _ in got if value is not None}
    assert answers == {"a", "b"}
    (error,) = [error for _, error in got if error is not None]
    assert isinstance(error, PeerUnreachable)
    assert b.handler.events == [("hello", "a", "")]


def test_clusters_do_not_mix(world):
    a, b = world.pair("one", "two")
    a.send("b", [Heartbeat("a", "b", 1, 0, 1)])
    refused = world.ask(a, "b")
    world.time.run()
    assert b.handler.events == []
    assert refused[0][1].took_effect == "no"


def test_a_node_without_cluster_listens_only_to_the_one_it_agreed_to(world):
    a, b = world.pair("c", "")
    a.send("b", [Heartbeat("a", "b", 1, 0, 1)])
    world.time.run()
    assert [event[0] for event in b.handler.events] == ["hello"]
    b.handler.accepted.add("c")
    a.send("b", [Heartbeat("a", "b", 1, 0, 1)])
    world.time.run()
    assert b.handler.events[-1][0] == "messages"
    b.hello = b.hello._replace(cluster_id="c")
    world.time.run()
    assert a.handler.events[-1] == ("hello", "b", "c")


def test_a_removed_node_is_told(world):
    a = world.start("a")
    a.is_removed = lambda node_id: node_id == "b"
    b = world.start("b")
    b.set_peers({"a": ("a:1",)})
    world.time.run()
    assert b.handler.events == [("removed",)]


def test_cuts_separate_and_heal(world):
    a, b = world.pair()
    waiting = world.ask(a, "b")
    world.network.cut("a", "b")
    world.time.run()
    assert ("unreachable", "b") in a.handler.events
    assert a.connected() == {"b": False}
    assert waiting[0][1] is not None
    world.network.heal()
    assert a.connected() == {"b": True}
    b.handler.events.clear()
    a.send("b", [Heartbeat("a", "b", 1, 0, 1)])
    world.time.run()
    assert b.handler.events[-1][0] == "messages"


def test_a_closed_node_is_unreachable_and_ends_what_waits(world):
    a, b = world.pair()
    b.handler.silent = True
    waiting = world.ask(a, "b")
    a.close()
    world.time.run()
    assert waiting[0][1].took_effect == "unknown"
    assert ("unreachable", "a") in b.handler.events
    assert b.connected() == {"a": False}


def test_snapshots(world):
    a, b = world.pair()
    b.handler.events.clear()
    chunks = [b"1", b"2", b""]
    results = []
    a.send_snapshot("b", 4, META, lambda done: done(chunks.pop(0), None), results.append)
    assert results == []
    world.time.run()
    assert results == [None]
    assert b.handler.events == [
        ("begin", 4, META),
        ("chunk", b"1"),
        ("chunk", b"2"),
        ("end", True),
    ]


def test_snapshots_that_fail(world):
    a, b = world.pair()
    results = []

    def failing(done):
        done(None, DiskFailed("mine"))

    a.send_snapshot("x", 4, META, failing, results.append)
    a.send_snapshot("b", 4, META, failing, results.append)
    world.time.run()
    assert [type(error) for error in results] == [PeerUnreachable, DiskFailed]
    assert b.handler.events[-1] == ("end", False)
    b.handler.chunk_error = DiskFailed("theirs")
    a.send_snapshot("b", 4, META, lambda done: done(b"x", None), results.append)
    world.time.run()
    assert isinstance(results[-1], PeerUnreachable)
    b.handler.wanted = False
    a.send_snapshot("b", 4, META, failing, results.append)
    world.time.run()
    assert isinstance(results[-1], PeerUnreachable)

"""Nodes talk over real sockets on loopback."""

import asyncio
import socket
from dataclasses import replace

import pytest

from kvnode.errors import (
    BadRequest,
    LeadershipLost,
    LocalProtocolError,
    MembershipRefused,
    NotLeader,
    Overloaded,
    PeerUnreachable,
    Timeout,
)
from kvnode.raft.messages import AppendEntries, Heartbeat, TimeoutNow
from kvnode.raft.types import ZERO, Entry, EntryKind, LogId
from kvnode.transport.framing import HELLO_BYTES_MAX
from kvnode.transport.resolve import ThreadResolver
from tests.transport.conftest import QUICK


def beat(sender="a", to="b", read_round=1):
    return Heartbeat(sender, to, 1, 0, read_round)


async def test_messages_arrive_in_order_and_one_call_is_one_batch(net):
    """``send`` is one frame per call and lane; order within a lane is TCP's."""
    a, b = await net.pair()
    for number in range(50):
        a.send("b", [beat(read_round=number), TimeoutNow("a", "b", number)])
    await net.until(lambda: len(b.recorder.messages) == 100)
    rounds = [m.read_round for _, m in b.recorder.messages if isinstance(m, Heartbeat)]
    assert rounds == list(range(50))
    assert b.recorder.batches == [2] * 50
    assert b.recorder.messages[0][0] == a.hello


async def test_entries_arrive_unchanged(net):
    """The bulk lane carries AppendEntries of any size below the bound."""
    a, b = await net.pair()
    entries = tuple(Entry(i, 3, EntryKind.COMMAND, bytes(100_000)) for i in range(1, 61))
    message = AppendEntries("a", "b", 3, ZERO, entries, 0)
    a.send("b", [message])
    await net.until(lambda: b.recorder.messages)
    assert b.recorder.messages == [(a.hello, message)]


async def test_several_messages_too_large_for_one_frame_travel_in_several(net):
    """A frame has a bound; a call of the driver need not know it."""
    a, b = await net.pair()
    entries = tuple(Entry(i, 3, EntryKind.COMMAND, bytes(500_000)) for i in range(1, 12))
    messages = [AppendEntries("a", "b", 3, ZERO, entries, n) for n in range(3)]
    a.send("b", messages)
    await net.until(lambda: len(b.recorder.messages) == 3)
    assert b.recorder.batches == [1, 1, 1]


async def test_one_message_larger_than_a_frame_is_our_bug(net):
    a, _ = await net.pair()
    entries = (Entry(1, 1, EntryKind.COMMAND, bytes(9_000_000)),)
    with pytest.raises(LocalProtocolError):
        a.send("b", [AppendEntries("a", "b", 1, ZERO, entries, 0)])


async def test_sending_to_a_stranger_drops(net):
    """Best effort: nothing is buffered for a peer that is not connected."""
    a = await net.start("a")
    a.send("nobody", [beat()])
    assert a.metrics.peer("nobody").dropped == 1


async def test_requests_are_answered_out_of_order(net):
    """Answers find their request by number; a slow one holds up nobody."""
    a, b = await net.pair()
    b.recorder.hold = True
    first, second = net.ask(a, "b", "x", 1), net.ask(a, "b", "x", 2)
    await net.until(lambda: len(b.recorder.held) == 2)
    b.recorder.held[1][0]("second")
    assert await second == ("second", None)
    b.recorder.held[0][0]("first")
    assert await first == ("first", None)


async def test_requests_of_one_turn_leave_as_one_write(net):
    """Forwarding hundreds of writes per turn must not cost a system call each."""
    a, _ = await net.pair()
    connection = a._peers["b"].bulk.connection
    writes = []
    real = connection._transport.write

    class Spy:
        def __getattr__(self, name):
            return getattr(inner, name)

        def write(self, data):
            writes.append(len(data))
            real(data)

    inner, connection._transport = connection._transport, Spy()
    answers = await asyncio.gather(*(net.ask(a, "b", "m", n) for n in range(100)))
    assert [value for (_, value), _ in answers] == list(range(100))
    assert len([size for size in writes if size > 100]) == 1


@pytest.mark.parametrize(
    "error",
    [
        NotLeader("n7"),
        NotLeader(None),
        LeadershipLost("gone"),
        Overloaded("full"),
        BadRequest("bad"),
        MembershipRefused("no"),
        PeerUnreachable("x", took_effect="no"),
    ],
)
async def test_errors_cross_the_wire(net, error):
    """The caller sees the peer's error, with its class and what became of the request (RC-58)."""
    a, b = await net.pair()

    def fail(method, payload):
        raise error

    b.recorder.answer = fail
    value, got = await net.ask(a, "b")
    assert value is None
    assert type(got) is type(error)
    assert str(got) == str(error)
    assert getattr(got, "took_effect", None) == getattr(error, "took_effect", None)
    assert getattr(got, "leader_id", None) == getattr(error, "leader_id", None)


async def test_an_answered_request_cannot_be_answered_again(net):
    a, b = await net.pair()
    b.recorder.hold = True
    future = net.ask(a, "b")
    await net.until(lambda: b.recorder.held)
    reply, fail = b.recorder.held[0]
    reply(1)
    with pytest.raises(LocalProtocolError):
        fail(NotLeader(None))
    assert await future == (1, None)


async def test_an_answer_that_cannot_be_sent_is_an_error_at_the_asker(net):
    """The asker learns of it at once instead of waiting for its deadline."""
    a, b = await net.pair()
    b.recorder.answer = lambda method, payload: object()
    _, error = await net.ask(a, "b")
    assert isinstance(error, PeerUnreachable)
    assert error.took_effect == "unknown"


async def test_a_request_that_is_not_answered_times_out_unknown(net):
    a, b = await net.pair()
    b.recorder.hold = True
    _, error = await net.ask(a, "b", timeout_s=0.1)
    assert isinstance(error, Timeout)
    assert error.took_effect == "unknown"
    b.recorder.held[0][0]("too late")
    assert await asyncio.gather(net.ask(a, "b", timeout_s=0.1))
    assert a.metrics.requests_timed_out == 2


async def test_a_request_without_connection_took_no_effect(net):
    a = await net.start("a")
    _, error = await net.ask(a, "b")
    assert isinstance(error, PeerUnreachable)
    assert error.took_effect == "no"


async def test_a_request_lost_with_its_connection_is_unknown_when_it_was_written(net):
    """RC-58: what was given to the socket may have arrived."""
    a, b = await net.pair()
    b.recorder.hold = True
    written = net.ask(a, "b")
    await net.until(lambda: b.recorder.held)
    queued = net.ask(a, "b")
    a._peers["b"].bulk.connection.abort("cut")
    assert (await written)[1].took_effect == "unknown"
    assert (await queued)[1].took_effect == "no"
    b.recorder.held[0][0]("nobody listens any more")


async def test_requests_under_way_are_bounded(net):
    """RC-67."""
    settings = net.quick.__class__(requests_max=3, ping_s=0.1)
    a, b = await net.pair(settings=settings)
    b.recorder.hold = True
    futures = [net.ask(a, "b", timeout_s=0.3) for _ in range(4)]
    _, error = await futures[3]
    assert isinstance(error, Overloaded)
    assert error.took_effect == "no"
    await asyncio.gather(*futures[:3])


async def test_ask_an_address_in_any_cluster_state(net):
    """Bootstrap asks nodes that belong to no cluster yet, by address."""
    a, b = await net.start("a", ""), await net.start("b", "")
    (hello, value), error = await net.ask_address(a, b.address, {"k": [1, b"x"]})
    assert error is None
    assert hello == b.hello
    assert value == ("m", {"k": (1, b"x")})


async def test_asking_oneself_works(net):
    """Discovery lists every pod, this one too; the answer's id tells which it is."""
    a = await net.start("a")
    (hello, _), error = await net.ask_address(a, a.address)
    assert error is None
    assert hello.node_id == "a"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no port", "nowhere.invalid:1"])
async def test_asking_nobody_took_no_effect(net, address):
    a = await net.start("a")
    _, error = await net.ask_address(a, address)
    assert isinstance(error, PeerUnreachable | Timeout)
    assert error.took_effect == "no"


async def test_asking_somebody_silent_times_out(net):
    """Something listens, but it is no node."""
    a = await net.start("a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _, error = await net.ask_address(a, f"127.0.0.1:{port}", timeout_s=0.2)
    assert isinstance(error, Timeout | PeerUnreachable)
    assert error.took_effect == "no"


async def test_a_peer_that_restarts_is_found_again(net):
    """Reconnect by itself, and tell the driver that messages may be lost."""
    a, b = await net.pair()
    await b.close()
    await net.until(lambda: a.connected() == {"b": False})
    await net.until(lambda: "b" in a.recorder.unreachable)
    again = await net.start(hello=b.hello._replace(boot=2), bind_port=b.port)
    await net.until(lambda: a.connected() == {"b": True})
    a.send("b", [beat()])
    await net.until(lambda: again.recorder.messages)
    assert a.metrics.peer("b").connects >= 4


async def test_a_node_that_appears_is_dialled_at_once(net):
    """Its own greeting ends our back-off."""
    slow = net.quick.__class__(backoff_min_s=30, backoff_max_s=30)
    a = await net.start("a", settings=slow)
    b = await net.start("b")
    spare = b.port
    await b.close()
    a.set_peers({"b": (f"127.0.0.1:{spare}",)})
    await net.until(lambda: a._brake._next)  # the first dial failed
    b = await net.start(hello=b.hello, bind_port=spare)
    b.set_peers({"a": (a.address,)})
    await net.until(lambda: a.connected() == {"b": True})


async def test_names_that_moved_to_another_node_are_skipped(net):
    """RC-53: the address answers, but as somebody else; the next candidate is right."""
    a, b, c = [await net.start(n) for n in "abc"]
    a.set_peers({"b": (c.address, b.address)})
    await net.until(lambda: a.connected() == {"b": True})
    a.set_peers({"b": (c.address,)})
    assert a.connected() == {"b": True}, "what stands is left alone"


async def test_peers_no_longer_listed_are_closed(net):
    a, b = await net.pair()
    a.set_peers({})
    assert a.connected() == {}
    await net.until(lambda: all(c.dialed for c in b._connections))


async def test_close_ends_everything_that_waits(net):
    a, b = await net.pair()
    b.recorder.hold = True
    future = net.ask(a, "b")
    asked = net.ask_address(a, b.address, timeout_s=30)
    await net.until(lambda: len(b.recorder.held) == 2)
    await a.close()
    for waiting in (future, asked):
        _, error = await waiting
        assert isinstance(error, PeerUnreachable)
        assert error.took_effect == "unknown"
    await a.close()


async def test_hello_frames_are_small(net):
    """A name longer than the bound must fail at the node that has it, not at its peers."""
    with pytest.raises(LocalProtocolError):
        await net.start(hello=net.hello(name="x" * HELLO_BYTES_MAX))


async def test_prev_is_a_log_id_after_the_wire(net):
    a, b = await net.pair()
    a.send("b", [AppendEntries("a", "b", 4, LogId(7, 4), (), 5)])
    await net.until(lambda: b.recorder.messages)
    assert b.recorder.messages[0][1].prev == LogId(7, 4)


async def test_a_payload_that_cannot_be_sent_is_an_error_of_that_request_alone(net):
    a, _ = await net.pair()
    _, error = await net.ask(a, "b", "m", object())
    assert isinstance(error, LocalProtocolError)
    assert await net.ask(a, "b", "m", 1) == (("m", 1), None)


async def test_an_error_answered_to_whoever_asks_an_address(net):
    a, b = await net.start("a"), await net.start("b")

    def fail(method, payload):
        raise NotLeader("x")

    b.recorder.answer = fail
    _, error = await net.ask_address(a, b.address)
    assert isinstance(error, NotLeader)
    assert error.leader_id == "x"


async def test_addresses_being_asked_are_bounded(net):
    """RC-67: each has a socket."""
    settings = net.quick.__class__(asks_max=2)
    a, b = await net.start("a", settings=settings), await net.start("b")
    b.recorder.hold = True
    futures = [net.ask_address(a, b.address) for _ in range(3)]
    _, error = await futures[2]
    assert isinstance(error, Overloaded)
    await net.until(lambda: len(b.recorder.held) == 2)
    for reply, _ in b.recorder.held:
        reply(1)
    await asyncio.gather(*futures)
    b.recorder.hold = False
    assert (await net.ask_address(a, b.address))[1] is None


async def test_a_name_server_that_hangs_does_not_hold_up_the_other_candidates(net):
    """Dialled in parallel: a dead seed among living ones costs nothing."""
    literal = ThreadResolver()

    async def resolve(address):
        if address.host == "hangs":
            await asyncio.sleep(60)
        return await literal(address)

    settings = replace(QUICK, resolve_timeout_s=60)
    a, b = await net.start("a", resolve=resolve, settings=settings), await net.start("b")
    a.set_peers({"b": ("hangs:1", b.address)})
    await net.until(lambda: a.connected() == {"b": True})


async def test_a_name_that_is_never_resolved_ends_in_an_error(net):
    async def resolve(address):
        await asyncio.sleep(60)

    settings = net.quick.__class__(resolve_timeout_s=0.05)
    a = await net.start("a", resolve=resolve, settings=settings)
    _, error = await net.ask_address(a, "kvnode-0:1")
    assert "not resolved in time" in str(error)


async def test_two_addresses_of_one_node_make_one_connection_per_lane(net):
    a, b = await net.start("a"), await net.start("b")
    a.set_peers({"b": (b.address, f"localhost:{b.port}")})
    await net.until(lambda: a.connected() == {"b": True})
    await net.until(lambda: len(b._connections) == 2 and len(a._connections) == 2)


async def test_messages_queue_behind_requests_of_the_same_turn(net):
    """One order per connection, and still one write."""
    a, b = await net.pair()
    b.recorder.hold = True
    future = net.ask(a, "b")
    a.send("b", [AppendEntries("a", "b", 4, LogId(7, 4), (), 5)])
    await net.until(lambda: b.recorder.held and b.recorder.messages)
    b.recorder.held[0][0](None)
    assert await future == (None, None)

"""The network between simulated nodes: ``kvnode.ports.Transport`` on virtual time.

It behaves as ``kvnode.transport`` does over TCP, and judges introductions with the same functions:
one dialled connection per direction and peer with an urgent and an ordered lane, introductions judged
by both ends, requests with three outcomes, snapshot streams with back-pressure. A cut stalls what is
under way; it arrives when the cut heals, or is lost with the connection when that takes too long.

On top of what TCP can do, a seed may ask for Raft messages that are lost, doubled and overtaken, which
no handler may notice (RC-27). Payloads are packed and unpacked as on the wire, Raft messages too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvnode.errors import KvnodeError, Overloaded, PeerUnreachable, Timeout
from kvnode.ports import Done, Hello, TransportHandler
from kvnode.raft.messages import Message
from kvnode.raft.types import NodeId, SnapshotMeta
from kvnode.transport.codec import (
    decode_error,
    decode_message,
    decode_meta,
    encode_error,
    encode_message,
    encode_meta,
)
from kvnode.transport.framing import HEADER_BYTES, RAFT, pack_frame, unpack_frame
from kvnode.transport.handshake import Boots, Greeting, Lane, Refusal, judge, misdirected
from tests.simulation.checkers import Violation
from tests.simulation.clock import Event, NodeClock, World


def over_the_wire(value: Any) -> Any:
    """What arrives of plain data: arrays become tuples, and what cannot be packed raises."""
    return unpack_frame(pack_frame((RAFT, value))[HEADER_BYTES:])[1]


@dataclass
class Weather:
    """How a network behaves; times in seconds, probabilities per frame."""

    delay_min: float = 0.0002
    delay_max: float = 0.002
    slow: float = 0.0
    """Probability that a frame takes up to ``slow_max`` instead."""
    slow_max: float = 0.5
    loss: float = 0.0
    """Raft frames only."""
    double: float = 0.0
    """Raft frames only."""
    reorder: bool = False
    """Raft frames may overtake each other."""
    breaks: float = 0.0
    """Probability that the connection breaks at a frame."""
    silence: float = 3.0
    """A cut this long kills the connections across it."""


class Network:
    """Who can reach whom."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.weather = Weather()
        self.endpoints: dict[str, SimTransport] = {}
        """Address -> who listens there now."""
        self.cuts: set[tuple[str, str]] = set()
        """(from, to) pairs of hosts; nothing passes in that direction."""
        self.clogs: dict[tuple[str, str], float] = {}
        """(from, to) -> everything sent before that moment arrives after it."""
        self.frames = 0
        self.connections: dict[Connection, None] = {}

    def passes(self, start: str, to: str) -> bool:
        """Whether the direction is open now."""
        return start == to or (start, to) not in self.cuts

    def delay(self, start: str, to: str) -> float:
        """How long the next frame takes."""
        weather, rng = self.weather, self.rng
        if weather.slow and rng.random() < weather.slow:
            took = rng.uniform(weather.delay_max, weather.slow_max)
        else:
            took = rng.uniform(weather.delay_min, weather.delay_max)
        return took + max(0.0, self.clogs.get((start, to), 0.0) - self.world.now)

    def healed(self) -> None:
        """Cuts changed: what stalled goes on where the way is open again."""
        for connection in list(self.connections):
            connection.resume()

    def hurry(self) -> None:
        """The faults are over: what is still to come seconds late breaks off, and is dialled again."""
        for connection in list(self.connections):
            if connection.last_arrival() > self.world.now + 0.5:
                connection.abort("too slow")

    def host_down(self, transport: SimTransport) -> None:
        """A process ended: the other ends notice after a while."""
        for connection in list(self.connections):
            if transport in (connection.dialler, connection.listener):
                connection.abort("the other process ended")


@dataclass
class _Frame:
    """One frame under way."""

    arrive: Callable[[], None]
    to: SimTransport


class Connection:
    """An established connection; ``dialler`` opened it. Two ordered lanes per direction."""

    def __init__(
        self, network: Network, dialler: SimTransport, listener: SimTransport, lane: Lane
    ) -> None:
        self.network = network
        self.dialler = dialler
        self.listener = listener
        self.lane = lane
        self.dialler_hello = dialler.hello
        self.listener_hello = listener.hello
        self.is_open = True
        self.on_lost: list[Callable[[], None]] = []
        """Called on the dialler's side once the connection is gone."""
        self.on_lost_listener: list[Callable[[], None]] = []
        self.asked: dict[int, tuple[Done[Any], Event]] = {}
        self._numbers = 0
        self._last: dict[tuple[SimTransport, bool], float] = {}
        self._stalled: dict[tuple[SimTransport, bool], list[_Frame]] = {}
        self._deaths: dict[SimTransport, Event] = {}
        network.connections[self] = None

    def last_arrival(self) -> float:
        """When the last frame that is under way in order is going to arrive."""
        return max(self._last.values(), default=0.0)

    def other(self, end: SimTransport) -> SimTransport:
        """The other end."""
        return self.listener if end is self.dialler else self.dialler

    def hello_of(self, end: SimTransport) -> Hello:
        """How an end introduced itself last."""
        return self.dialler_hello if end is self.dialler else self.listener_hello

    def transmit(
        self,
        start: SimTransport,
        arrive: Callable[[], None],
        *,
        urgent: bool = False,
        raft: bool = False,
    ) -> None:
        """Send one frame; ``arrive`` runs in the other end's process."""
        if not self.is_open:
            return
        network, weather = self.network, self.network.weather
        network.frames += 1
        if weather.breaks and network.rng.random() < weather.breaks:
            network.world.after(
                network.delay(start.host, self.other(start).host), self.abort, "it broke"
            )
            return
        if raft and weather.loss and network.rng.random() < weather.loss:
            return
        frame = _Frame(arrive, self.other(start))
        self._forward(start, frame, urgent, raft=raft)
        if raft and weather.double and network.rng.random() < weather.double:
            self._forward(start, frame, urgent, raft=raft)

    def _forward(self, start: SimTransport, frame: _Frame, urgent: bool, *, raft: bool) -> None:
        network = self.network
        key = (start, urgent)
        if not network.passes(start.host, frame.to.host) or self._stalled.get(key):
            self._stalled.setdefault(key, []).append(frame)
            self._watch(start)
            return
        when = network.world.now + network.delay(start.host, frame.to.host)
        if not (raft and network.weather.reorder):
            when = max(when, self._last.get(key, 0.0))
            self._last[key] = when
        network.world.at(when, self._arrive, frame, clock=frame.to.clock)

    def _arrive(self, frame: _Frame) -> None:
        if self.is_open:
            frame.arrive()

    def _watch(self, start: SimTransport) -> None:
        """Nothing gets through: the connection dies if that lasts."""
        if start not in self._deaths:
            silence = self.network.weather.silence * self.network.rng.uniform(0.8, 1.5)
            self._deaths[start] = self.network.world.after(silence, self._die, start)

    def _die(self, start: SimTransport) -> None:
        if any(frames for (end, _), frames in self._stalled.items() if end is start):
            self.abort("silent for too long")

    def resume(self) -> None:
        """Send what stalled where the way is open again, in order."""
        for key in list(self._stalled):
            start, urgent = key
            if self.network.passes(start.host, self.other(start).host):
                frames = self._stalled.pop(key)
                for frame in frames:
                    self._forward(start, frame, urgent, raft=False)
        for start, event in list(self._deaths.items()):
            if not any(end is start for end, _ in self._stalled):
                event.cancel()
                del self._deaths[start]

    def abort(self, reason: str) -> None:
        """Break it. Each end learns of it in a turn of its own."""
        if not self.is_open:
            return
        self.is_open = False
        self.network.connections.pop(self, None)
        self._stalled.clear()
        for event in self._deaths.values():
            event.cancel()
        world = self.network.world
        rng = self.network.rng
        world.after(rng.uniform(0, 0.01), self._lost_dialler, reason, clock=self.dialler.clock)
        world.after(rng.uniform(0, 0.01), self._lost_listener, clock=self.listener.clock)

    def _lost_dialler(self, reason: str) -> None:
        self.dialler.boots.leave(self.listener_hello)
        asked, self.asked = self.asked, {}
        for done, timer in asked.values():
            timer.cancel()
            done(None, PeerUnreachable(reason, took_effect="unknown"))
        for callback in self.on_lost:
            callback()

    def _lost_listener(self) -> None:
        self.listener.boots.leave(self.dialler_hello)
        for callback in self.on_lost_listener:
            callback()

    def request(self, method: str, payload: Any, timeout_s: float, done: Done[Any]) -> None:
        """Ask the listener; ``done`` is called once."""
        self._numbers += 1
        number = self._numbers
        timer = self.dialler.clock.call_later(timeout_s, self._expire, number)
        self.asked[number] = (done, timer)
        sent = over_the_wire(payload)
        self.transmit(self.dialler, lambda: self._serve(number, method, sent))

    def _expire(self, number: int) -> None:
        found = self.asked.pop(number, None)
        if found is not None:
            found[0](None, Timeout("the peer did not answer in time", took_effect="unknown"))

    def _serve(self, number: int, method: str, payload: Any) -> None:
        answered = False

        def answer(value: Any, error: KvnodeError | None) -> None:
            nonlocal answered
            assert not answered, f"{method} was answered twice"
            answered = True
            packed = over_the_wire(value) if error is None else None
            raw = over_the_wire(encode_error(error)) if error is not None else ()
            self.transmit(self.listener, lambda: self._answered(number, packed, raw))

        handler = self.listener.handler
        assert handler is not None
        handler.on_request(
            self.dialler_hello,
            method,
            payload,
            lambda value: answer(value, None),
            lambda error: answer(None, error),
        )

    def _answered(self, number: int, value: Any, error: tuple[Any, ...]) -> None:
        found = self.asked.pop(number, None)
        if found is not None:
            done, timer = found
            timer.cancel()
            if error:
                done(None, decode_error(error))
            else:
                done(value, None)


class _Peer:
    """One peer that a transport stays connected with."""

    def __init__(self, owner: SimTransport, node_id: NodeId, addresses: tuple[str, ...]) -> None:
        self.owner = owner
        self.node_id = node_id
        self.addresses = addresses
        self.connection: Connection | None = None
        self.closed = False
        self._backoff = 0.05
        self._timer: Event | None = owner.clock.call_soon(self.dial)

    def dial(self) -> None:
        """Try every address."""
        self._timer = None
        if self.closed or self.connection is not None:
            return
        if not self.addresses:
            self._later()
            return
        self.owner.dial_any(self.addresses, Lane.BULK, self.node_id, self._dialled)

    def _dialled(self, connection: Connection | None, _error: KvnodeError | None) -> None:
        if connection is None:
            self._later()
        elif self.closed:
            connection.abort("no longer a peer")
        else:
            self._backoff = 0.05
            self.connection = connection
            connection.on_lost.append(self._lost)

    def _lost(self) -> None:
        self.connection = None
        if not self.closed:
            self._later()
            assert self.owner.handler is not None
            self.owner.handler.on_unreachable(self.node_id)

    def _later(self) -> None:
        self._backoff = min(2.0, self._backoff * 2)
        delay = self._backoff * self.owner.network.rng.uniform(0.5, 1.0)
        self._timer = self.owner.clock.call_later(delay, self.dial)

    def nudge(self) -> None:
        """It lives: do not wait."""
        if self.connection is None and self._timer is not None:
            self._timer.cancel()
            self._timer = self.owner.clock.call_soon(self.dial)

    def close(self) -> None:
        """No longer a peer."""
        self.closed = True
        if self.connection is not None:
            self.connection.abort("no longer a peer")


class SimTransport:
    """``kvnode.ports.Transport`` for one life of one node."""

    def __init__(
        self,
        network: Network,
        host: str,
        hello: Hello,
        clock: NodeClock,
        on_sent: Callable[[Message], None],
    ) -> None:
        self.network = network
        self.host = host
        self.clock = clock
        self.handler: TransportHandler | None = None
        self.is_removed: Callable[[NodeId], bool] = lambda _node: False
        self.is_rolled_back: Callable[[Hello], bool] = lambda _hello: False
        self.boots = Boots()
        self.stopped = False
        self.impostor = False
        """It lives on a copy of another machine's volume: nobody may listen to it."""
        self._hello = hello
        self._peers: dict[NodeId, _Peer] = {}
        self._on_sent = on_sent
        self._incoming: _Stream | None = None
        self._streaming: set[NodeId] = set()
        self.address = hello.address
        network.endpoints[hello.address] = self
        clock.call_later(1.0, self._sweep)

    def stop(self) -> None:
        """The process ends, well or badly."""
        self.stopped = True
        if self.network.endpoints.get(self.address) is self:
            del self.network.endpoints[self.address]
        self.network.host_down(self)

    # -- Transport ----------------------------------------------------------------------------

    @property
    def hello(self) -> Hello:
        """See ``Transport``."""
        return self._hello

    @hello.setter
    def hello(self, hello: Hello) -> None:
        if hello == self._hello:
            return
        self._hello = hello
        for connection in list(self.network.connections):
            if self in (connection.dialler, connection.listener):
                connection.transmit(self, lambda c=connection: self._reintroduced(c, hello))  # type: ignore[misc]

    def _reintroduced(self, connection: Connection, hello: Hello) -> None:
        """Runs at the other end."""
        there = connection.other(self)
        refusal = judge(
            there.hello,
            hello,
            lane=connection.lane,
            expected="",
            removed=there.is_removed(hello.node_id),
            rolled_back=there.is_rolled_back(hello),
        )
        if refusal is not None:
            there.refuse(connection, refusal[0])
            return
        if connection.dialler is self:
            connection.dialler_hello = hello
        else:
            connection.listener_hello = hello
        there.boots.update(hello)
        there.greeted(hello, inbound=connection.dialler is self)

    def set_peers(self, peers: Mapping[NodeId, tuple[str, ...]]) -> None:
        """See ``Transport``."""
        for node_id in [n for n in self._peers if n not in peers]:
            self._peers.pop(node_id).close()
        for node_id, addresses in peers.items():
            if node_id == self._hello.node_id:
                continue
            peer = self._peers.get(node_id)
            if peer is None:
                self._peers[node_id] = _Peer(self, node_id, tuple(addresses))
            else:
                peer.addresses = tuple(addresses)

    def send(self, to: NodeId, messages: Sequence[Message]) -> None:
        """See ``Transport``."""
        for message in messages:
            self._on_sent(message)
        peer = self._peers.get(to)
        connection = peer.connection if peer is not None else None
        if connection is None:
            return
        for urgent in (True, False):
            lane = [m for m in messages if (type(m).__name__ != "AppendEntries") == urgent]
            if lane:
                raw = [over_the_wire(encode_message(message)) for message in lane]
                connection.transmit(
                    self,
                    lambda c=connection, r=raw: self._arrived(c, r),  # type: ignore[misc]
                    urgent=urgent,
                    raft=True,
                )

    def _arrived(self, connection: Connection, raw: list[Any]) -> None:
        """Runs at the other end."""
        there = connection.listener
        sender = connection.dialler_hello
        ours = there.hello.cluster_id
        assert there.handler is not None
        if ours:
            listens = sender.cluster_id == ours
        else:
            listens = bool(sender.cluster_id) and there.handler.accepts_cluster(sender)
        if listens and self.impostor:
            raise Violation(
                f"{there.host} listens to a second {sender.node_id}, boot {sender.boot}"
            )
        if listens:
            there.handler.on_messages(sender, [decode_message(message) for message in raw])

    def request(
        self, to: NodeId, method: str, payload: Any, timeout_s: float, done: Done[Any]
    ) -> None:
        """See ``Transport``."""
        peer = self._peers.get(to)
        connection = peer.connection if peer is not None else None
        if connection is None:
            error = PeerUnreachable(f"not connected to {to}", took_effect="no")
            self.clock.call_soon(done, None, error)
        else:
            connection.request(method, payload, timeout_s, done)

    def request_address(
        self,
        address: str,
        method: str,
        payload: Any,
        timeout_s: float,
        done: Done[tuple[Hello, Any]],
    ) -> None:
        """See ``Transport``."""
        finished = False

        def finish(value: tuple[Hello, Any] | None, error: KvnodeError | None) -> None:
            nonlocal finished
            if not finished:
                finished = True
                done(value, error)

        def dialled(connection: Connection | None, error: KvnodeError | None) -> None:
            if connection is None or finished:
                finish(None, error)
                return

            def answered(value: Any, problem: KvnodeError | None) -> None:
                there = connection.listener_hello
                connection.abort("answered")
                finish((there, value) if problem is None else None, problem)

            connection.request(method, payload, max(0.001, deadline - self.clock.time()), answered)

        deadline = self.clock.time() + timeout_s
        self.clock.call_later(
            timeout_s + 0.001, finish, None, Timeout(f"{address} was not reached", took_effect="no")
        )
        self.dial(address, Lane.ASK, "", dialled)

    def send_snapshot(
        self,
        to: NodeId,
        term: int,
        meta: SnapshotMeta,
        next_chunk: Callable[[Done[bytes]], None],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """See ``Transport``."""
        peer = self._peers.get(to)
        if peer is None or not peer.addresses:
            self.clock.call_soon(done, PeerUnreachable(f"not connected to {to}", took_effect="no"))
            return
        if to in self._streaming:
            self.clock.call_soon(done, Overloaded(f"a snapshot is on its way to {to} already"))
            return
        self._streaming.add(to)

        def finished(error: KvnodeError | None) -> None:
            self._streaming.discard(to)
            done(error)

        def dialled(connection: Connection | None, error: KvnodeError | None) -> None:
            if connection is None:
                finished(error)
            else:
                _Stream(connection, term, meta, next_chunk, finished)

        self.dial_any(peer.addresses, Lane.SNAPSHOT, to, dialled)

    def connected(self) -> Mapping[NodeId, bool]:
        """See ``Transport``."""
        return {node_id: peer.connection is not None for node_id, peer in self._peers.items()}

    # -- connections --------------------------------------------------------------------------

    def dial_any(
        self,
        addresses: tuple[str, ...],
        lane: Lane,
        expected: NodeId,
        done: Callable[[Connection | None, KvnodeError | None], None],
    ) -> None:
        """All addresses side by side, and whoever answers first as it should wins (``transport.peer``)."""
        left, won = len(addresses), False

        def dialled(connection: Connection | None, error: KvnodeError | None) -> None:
            nonlocal left, won
            left -= 1
            if connection is None:
                if not left and not won:
                    done(None, error)
            elif won:
                connection.abort("another address answered first")
            else:
                won = True
                done(connection, None)

        for address in addresses:
            self.dial(address, lane, expected, dialled)

    def dial(
        self,
        address: str,
        lane: Lane,
        expected: str,
        done: Callable[[Connection | None, KvnodeError | None], None],
    ) -> None:
        """Connect and introduce both ends to each other. ``done`` runs once, in our process."""
        network, world = self.network, self.network.world
        target = network.endpoints.get(address)
        error = PeerUnreachable(f"{address} does not answer", took_effect="no")
        if target is None:
            world.after(network.rng.uniform(0.001, 0.05), done, None, error, clock=self.clock)
            return
        there = target

        over = False

        def finish(connection: Connection | None, problem: KvnodeError | None) -> None:
            nonlocal over
            if not over:
                over = True
                timer.cancel()
                done(connection, problem)
            elif connection is not None:
                connection.abort("too late")

        def both_ways() -> bool:
            return network.passes(self.host, there.host) and network.passes(there.host, self.host)

        # The other process may end before it answers, or the way be cut: then this is the end of it.
        timer = self.clock.call_later(1.5, finish, None, error)

        def at_listener() -> None:
            if there.stopped or not both_ways():
                return
            greeting = Greeting(self._hello, lane, expected)
            refusal = misdirected(there.hello, greeting) or judge(
                there.hello,
                self._hello,
                lane=lane,
                expected="",
                removed=there.is_removed(self._hello.node_id),
                rolled_back=there.is_rolled_back(self._hello),
            )
            refusal = refusal or there.boots.enter(self._hello)
            if refusal is not None:
                cluster = there.hello.cluster_id
                back(lambda: refused(refusal[0], cluster))
                return
            connection = Connection(network, self, there, lane)
            connection.listener_hello = there.hello
            there.greeted(self._hello, inbound=True)
            back(lambda: at_dialler(connection))

        def refused(reason: Refusal, cluster: str) -> None:
            self.refused(reason, cluster)
            finish(None, PeerUnreachable(f"refused: {reason.value}", took_effect="no"))

        def back(then: Callable[[], None]) -> None:
            delay = network.delay(there.host, self.host)
            world.after(delay, then, clock=self.clock)

        def at_dialler(connection: Connection) -> None:
            if not connection.is_open or not both_ways():
                connection.abort("the greeting was lost")
                return
            theirs = connection.listener_hello
            refusal = judge(
                self._hello,
                theirs,
                lane=lane,
                expected=expected,
                removed=self.is_removed(theirs.node_id),
                rolled_back=self.is_rolled_back(theirs),
            )
            refusal = refusal or self.boots.enter(theirs)
            if refusal is not None:
                self.refuse(connection, refusal[0])
                finish(None, PeerUnreachable(f"refused: {refusal[0].value}", took_effect="no"))
                return
            self.greeted(theirs, inbound=False)
            finish(connection, None)

        world.after(network.delay(self.host, there.host), at_listener, clock=there.clock)

    def greeted(self, theirs: Hello, *, inbound: bool) -> None:
        """A peer is known now, or its introduction changed."""
        for connection in list(self.network.connections):
            if self in (connection.dialler, connection.listener):
                peer = connection.hello_of(connection.other(self))
                if self.boots.is_outdated(peer):
                    connection.abort("a newer process of the same node appeared")
        if theirs.node_id == self._hello.node_id:
            return
        known = self._peers.get(theirs.node_id)
        if known is not None and inbound:
            known.nudge()
        assert self.handler is not None
        self.handler.on_peer_hello(theirs)

    def refuse(self, connection: Connection, reason: Refusal) -> None:
        """Tell the other end why, and break the connection."""
        there = connection.other(self)
        cluster = self._hello.cluster_id
        if self.network.passes(self.host, there.host):
            self.network.world.after(
                self.network.delay(self.host, there.host),
                there.refused,
                reason,
                cluster,
                clock=there.clock,
            )
        connection.abort("refused")

    def refused(self, reason: Refusal, cluster_id: str) -> None:
        """Somebody refused us; once we belong to a cluster, only that can say that we are out."""
        ours = self._hello.cluster_id
        if not cluster_id or ours not in ("", cluster_id):
            return
        assert self.handler is not None
        if reason is Refusal.REMOVED:
            self.handler.on_removed(cluster_id)
        elif reason is Refusal.ROLLED_BACK:
            self.handler.on_rolled_back()

    def _sweep(self) -> None:
        self.clock.call_later(1.0, self._sweep)
        if not self._hello.cluster_id:
            return
        for connection in list(self.network.connections):
            if connection.listener is self and self.is_removed(connection.dialler_hello.node_id):
                self.refuse(connection, Refusal.REMOVED)


class _Stream:
    """One snapshot on its way: one chunk at a time, acknowledged when it is stored."""

    def __init__(
        self,
        connection: Connection,
        term: int,
        meta: SnapshotMeta,
        next_chunk: Callable[[Done[bytes]], None],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        self._connection = connection
        self._next_chunk = next_chunk
        self._done: Callable[[KvnodeError | None], None] | None = done
        self._begun = False
        self._end_given = False
        self._over = False
        connection.on_lost.append(lambda: self._finish(PeerUnreachable("snapshot broken off")))
        connection.on_lost_listener.append(self._receiver_lost)
        raw = over_the_wire(encode_meta(meta))
        connection.transmit(connection.dialler, lambda: self._begin(term, decode_meta(raw)))

    @property
    def _handler(self) -> TransportHandler:
        handler = self._connection.listener.handler
        assert handler is not None
        return handler

    def _begin(self, term: int, meta: SnapshotMeta) -> None:
        there = self._connection.listener
        sender = self._connection.dialler_hello
        ours = there.hello.cluster_id
        if ours:
            wanted = sender.cluster_id == ours
        else:
            wanted = bool(sender.cluster_id) and self._handler.accepts_cluster(sender)
        if wanted and there._incoming is not None:
            wanted = False
            if there._incoming._connection.dialler_hello.node_id == sender.node_id:
                there._incoming._connection.abort("a newer stream of the same sender")
        if wanted and self._handler.on_snapshot_begin(sender, term, meta):
            self._begun = True
            there._incoming = self
            self._back(self._send_next)
        else:
            self._over = True
            self._back(lambda: self._finish(PeerUnreachable("the peer refused the snapshot")))

    def _back(self, then: Callable[[], None]) -> None:
        self._connection.transmit(self._connection.listener, then)

    def _send_next(self) -> None:
        if self._done is not None:
            self._next_chunk(self._has_chunk)

    def _has_chunk(self, chunk: bytes | None, error: KvnodeError | None) -> None:
        if self._done is None:
            return
        if error is not None:
            self._finish(error)
            return
        data = bytes(chunk or b"")
        self._connection.transmit(self._connection.dialler, lambda: self._chunk(data))

    def _chunk(self, data: bytes) -> None:
        sender = self._connection.dialler_hello
        if data:
            self._handler.on_snapshot_chunk(sender, data, self._stored)
        else:
            self._end_given = True
            self._handler.on_snapshot_end(sender, True, self._ended)

    def _stored(self, error: KvnodeError | None) -> None:
        if self._over:
            return
        if error is not None:
            text = str(error)
            self._receiver_fails()
            self._back(lambda: self._finish(PeerUnreachable(f"a chunk was not stored: {text}")))
        else:
            self._back(self._send_next)

    def _ended(self, error: KvnodeError | None) -> None:
        self._receiver_over()
        if error is None:
            self._back(lambda: self._finish(None))
        else:
            text = str(error)
            self._back(lambda: self._finish(PeerUnreachable(f"not stored: {text}")))

    def _receiver_over(self) -> None:
        self._over = True
        there = self._connection.listener
        if there._incoming is self:
            there._incoming = None

    def _receiver_fails(self) -> None:
        begun = self._begun and not self._end_given and not self._over
        self._receiver_over()
        if begun:
            self._end_given = True
            self._handler.on_snapshot_end(
                self._connection.dialler_hello, False, lambda _error: None
            )

    def _receiver_lost(self) -> None:
        if not self._over and not self._end_given:
            self._receiver_fails()
        else:
            self._receiver_over()

    def _finish(self, error: KvnodeError | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self._connection.abort("snapshot stream finished")
        done(error)

"""A transport inside one process, over any ``Scheduler``: for tests, and as the smallest example.

``MemoryNetwork`` carries values between the ``MemoryTransport`` objects attached to it, each after the
same delay and in order, so that a run on a virtual clock is the same every time. Everything passes
through the wire's codec: what works here is plain data and survives a socket. The rules of who may
talk to whom are the same as over TCP (``handshake``). There are no lanes and no faults, except that
``MemoryNetwork.cut`` separates two nodes, as a cable would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvnode.errors import KvnodeError, PeerUnreachable, Timeout
from kvnode.ports import Done, Hello, Scheduler, TransportHandler
from kvnode.raft.messages import Message
from kvnode.raft.types import NodeId, SnapshotMeta
from kvnode.transport import framing
from kvnode.transport.codec import (
    decode_error,
    decode_message,
    decode_meta,
    encode_error,
    encode_message,
    encode_meta,
)
from kvnode.transport.framing import HEADER_BYTES, pack_frame, unpack_frame
from kvnode.transport.handshake import Boots, Lane, Refusal, judge
from kvnode.transport.requests import Answer


class MemoryNetwork:
    """Everybody who can be reached, by address."""

    def __init__(self, scheduler: Scheduler, delay_s: float = 0.0) -> None:
        """``delay_s`` seconds for every hop; 0 is the next turn of the scheduler."""
        self.scheduler = scheduler
        self.delay_s = delay_s
        self.by_address: dict[str, MemoryTransport] = {}
        self._cuts: set[tuple[NodeId, NodeId]] = set()

    def cut(self, one: NodeId, other: NodeId) -> None:
        """Let nothing through between two nodes, in both directions."""
        self._cuts |= {(one, other), (other, one)}
        for here, there in ((one, other), (other, one)):
            for transport in self.by_address.values():
                if transport.hello.node_id == here:
                    transport.lost(there)

    def heal(self) -> None:
        """Undo all cuts."""
        self._cuts.clear()

    def is_cut(self, one: NodeId, other: NodeId) -> bool:
        """Whether the two are separated."""
        return (one, other) in self._cuts

    def later(self, callback: Callable[..., object], *args: Any) -> None:
        """One hop of the network."""
        if self.delay_s > 0:
            self.scheduler.call_later(self.delay_s, callback, *args)
        else:
            self.scheduler.call_soon(callback, *args)


class MemoryTransport:
    """A ``kvnode.ports.Transport`` for one node of a ``MemoryNetwork``.

    Attributes:
        handler: The driver; set before ``start``.
        is_removed: Which incarnations the cluster has removed (RC-47).
        is_rolled_back: Whose volume is an old copy (RC-54).
    """

    def __init__(
        self, network: MemoryNetwork, hello: Hello, handler: TransportHandler | None = None
    ) -> None:
        """Make a transport that is not reachable yet."""
        self.network = network
        self.handler = handler
        self.is_removed: Callable[[NodeId], bool] = lambda _: False
        self.is_rolled_back: Callable[[Hello], bool] = lambda _: False
        self._hello = hello
        self._peers: dict[NodeId, tuple[str, ...]] = {}
        self._boots = Boots()
        self._told: dict[NodeId, Hello] = {}
        self._waiting: dict[int, Done[Any]] = {}
        self._last_id = 0
        self._streaming: dict[NodeId, Callable[[KvnodeError | None], None]] = {}
        self._up = False

    def start(self) -> None:
        """Become reachable at ``hello.address``; a former node there is forgotten."""
        assert self.handler is not None, "the driver must be known before anything arrives"
        self._up = True
        self.network.by_address[self._hello.address] = self

    def close(self) -> None:
        """Become unreachable; everything that waits fails in a later turn."""
        self._up = False
        if self.network.by_address.get(self._hello.address) is self:
            del self.network.by_address[self._hello.address]
        for request_id in list(self._waiting):
            self._end(request_id, None, PeerUnreachable("stopping", took_effect="unknown"))
        for finish in list(self._streaming.values()):
            self.network.later(finish, PeerUnreachable("stopping"))
        for other in list(self.network.by_address.values()):
            other.lost(self._hello.node_id)

    @property
    def hello(self) -> Hello:
        """How this node introduces itself; setting it tells every peer."""
        return self._hello

    @hello.setter
    def hello(self, hello: Hello) -> None:
        assert hello.address == self._hello.address, "a node of the memory network does not move"
        self._hello = hello
        for node_id in list(self._peers):
            self._greet(node_id)

    # --- Transport --------------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[NodeId, tuple[str, ...]]) -> None:
        """See ``kvnode.ports.Transport``."""
        added = [n for n in peers if n not in self._peers]
        self._peers = {n: a for n, a in peers.items() if n != self._hello.node_id}
        for node_id in added:
            self._greet(node_id)

    def send(self, to: NodeId, messages: Sequence[Message]) -> None:
        """See ``kvnode.ports.Transport``."""
        target = self._find(to)
        if target is not None:
            frame = pack_frame((framing.RAFT, *(encode_message(m) for m in messages)))
            self.network.later(target.receive, self._hello, frame)

    def request(
        self, to: NodeId, method: str, payload: Any, timeout_s: float, done: Done[Any]
    ) -> None:
        """See ``kvnode.ports.Transport``."""
        self._request(self._find(to), Lane.BULK, method, payload, timeout_s, done)

    def request_address(
        self,
        address: str,
        method: str,
        payload: Any,
        timeout_s: float,
        done: Done[tuple[Hello, Any]],
    ) -> None:
        """See ``kvnode.ports.Transport``."""
        target = self.network.by_address.get(address)
        if target is not None and self.network.is_cut(self._hello.node_id, target.hello.node_id):
            target = None

        def answered(value: Any, error: KvnodeError | None) -> None:
            assert target is not None or error is not None, "nobody answers without being there"
            done(None if error or target is None else (target.hello, value), error)

        self._request(target, Lane.ASK, method, payload, timeout_s, answered)

    def send_snapshot(
        self,
        to: NodeId,
        term: int,
        meta: SnapshotMeta,
        next_chunk: Callable[[Done[bytes]], None],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """See ``kvnode.ports.Transport``. One chunk is under way at a time."""
        target = self._find(to)
        if target is None or to in self._streaming:
            error = PeerUnreachable(f"not connected to {to}, or busy", took_effect="no")
            self.network.scheduler.call_soon(done, error)
            return

        def finish(error: KvnodeError | None) -> None:
            # The stream's own end may come after it was given up: it is over once.
            if self._streaming.get(to) is finish:
                del self._streaming[to]
                done(error)

        self._streaming[to] = finish
        stream = _MemoryStream(self, target, next_chunk, finish)
        self.network.later(stream.begin, term, encode_meta(meta))

    def connected(self) -> Mapping[NodeId, bool]:
        """See ``kvnode.ports.Transport``."""
        return {node_id: self._find(node_id) is not None for node_id in self._peers}

    # --- the network's side -----------------------------------------------------------------------

    def receive(self, sender: Hello, frame: bytes) -> None:
        """Raft messages arrive."""
        if not self.admits(sender, Lane.FAST) or not self.listens_to(sender):
            return
        messages = [decode_message(raw) for raw in unpack_frame(frame[HEADER_BYTES:])[1:]]
        assert self.handler is not None, "started"
        self.handler.on_messages(sender, messages)

    def receive_request(
        self, sender: Hello, lane: Lane, frame: bytes, back: Callable[[bytes], None]
    ) -> None:
        """A request arrives; ``back`` carries the packed answer."""
        if not self.admits(sender, lane):
            error = PeerUnreachable("refused", took_effect="no")
            self.network.later(back, pack_frame((framing.FAILURE, *encode_error(error))))
            return

        def answer(_: int, value: Any, error: KvnodeError | None) -> None:
            if error is None:
                answer_frame = pack_frame((framing.ANSWER, value))
            else:
                answer_frame = pack_frame((framing.FAILURE, *encode_error(error)))
            self.network.later(back, answer_frame)

        _, method, payload = unpack_frame(frame[HEADER_BYTES:])
        responder = Answer(0, answer)
        assert self.handler is not None, "started"
        self.handler.on_request(sender, method, payload, responder.reply, responder.fail)

    def admits(self, sender: Hello, lane: Lane) -> bool:
        """Judge the sender, and report it to the driver when its introduction is news."""
        if not self._up or self.network.is_cut(sender.node_id, self._hello.node_id):
            return False
        refusal = judge(
            self._hello,
            sender,
            lane=lane,
            expected="",
            removed=self.is_removed(sender.node_id),
            rolled_back=self.is_rolled_back(sender),
        ) or self._boots.enter(sender)
        if refusal is not None:
            self._refuse(sender, refusal[0])
            return False
        self._boots.leave(sender)
        if self._told.get(sender.node_id) != sender and sender.node_id != self._hello.node_id:
            self._told[sender.node_id] = sender
            assert self.handler is not None, "started"
            self.handler.on_peer_hello(sender)
        return True

    def listens_to(self, sender: Hello) -> bool:
        """Whether Raft messages of the sender count."""
        if self._hello.cluster_id:
            return sender.cluster_id == self._hello.cluster_id
        assert self.handler is not None, "started"
        return bool(sender.cluster_id) and self.handler.accepts_cluster(sender)

    def lost(self, node_id: NodeId) -> None:
        """The connection with a node is gone."""
        self._told.pop(node_id, None)
        finish = self._streaming.get(node_id)
        if finish is not None:
            self.network.later(finish, PeerUnreachable("snapshot broken off"))
        if self._up and node_id in self._peers and self.handler is not None:
            self.network.scheduler.call_soon(self.handler.on_unreachable, node_id)

    def told(self, refusal: Refusal, cluster_id: str) -> None:
        """A node refuses us because we were removed, or because our volume is an old copy."""
        if self._up and cluster_id and self._hello.cluster_id in ("", cluster_id):
            assert self.handler is not None, "started"
            if refusal is Refusal.REMOVED:
                self.handler.on_removed(cluster_id)
            else:
                self.handler.on_rolled_back()

    # --- inside -----------------------------------------------------------------------------------

    def _refuse(self, sender: Hello, refusal: Refusal) -> None:
        if refusal in {Refusal.REMOVED, Refusal.ROLLED_BACK}:
            origin = self.network.by_address.get(sender.address)
            if origin is not None and origin.hello.node_id == sender.node_id:
                self.network.later(origin.told, refusal, self._hello.cluster_id)

    def _find(self, node_id: NodeId) -> MemoryTransport | None:
        """The peer, when one of its addresses answers as it."""
        if not self._up or self.network.is_cut(self._hello.node_id, node_id):
            return None
        for address in self._peers.get(node_id, ()):
            found = self.network.by_address.get(address)
            if found is not None and found.hello.node_id == node_id:
                return found
        return None

    def _greet(self, node_id: NodeId) -> None:
        target = self._find(node_id)
        if target is not None:
            self.network.later(target.admits, self._hello, Lane.FAST)

    def _request(
        self,
        target: MemoryTransport | None,
        lane: Lane,
        method: str,
        payload: Any,
        timeout_s: float,
        done: Done[Any],
    ) -> None:
        scheduler = self.network.scheduler
        if target is None:
            scheduler.call_soon(done, None, PeerUnreachable("nobody there", took_effect="no"))
            return
        frame = pack_frame((framing.REQUEST, method, payload))
        self._last_id += 1
        request_id = self._last_id
        late = Timeout("the peer did not answer in time", took_effect="unknown")
        timer = scheduler.call_later(timeout_s, self._end, request_id, None, late)

        def ended(value: Any, error: KvnodeError | None) -> None:
            timer.cancel()
            done(value, error)

        def back(answer: bytes) -> None:
            kind, *rest = unpack_frame(answer[HEADER_BYTES:])
            if kind == framing.ANSWER:
                self._end(request_id, rest[0], None)
            else:
                self._end(request_id, None, decode_error(tuple(rest)))

        self._waiting[request_id] = ended
        self.network.later(target.receive_request, self._hello, lane, frame, back)

    def _end(self, request_id: int, value: Any, error: KvnodeError | None) -> None:
        done = self._waiting.pop(request_id, None)
        if done is not None:
            if self._up:
                done(value, error)
            else:
                self.network.scheduler.call_soon(done, value, error)


class _MemoryStream:
    """One snapshot on its way: chunk, wait for the receiver, next chunk."""

    def __init__(
        self,
        source: MemoryTransport,
        target: MemoryTransport,
        next_chunk: Callable[[Done[bytes]], None],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        self._source = source
        self._target = target
        self._next_chunk = next_chunk
        self._done = done
        self._later = source.network.later

    def begin(self, term: int, raw_meta: tuple[int, int, bytes]) -> None:
        target, sender = self._target, self._source.hello
        handler = target.handler
        wanted = (
            handler is not None
            and target.admits(sender, Lane.SNAPSHOT)
            and target.listens_to(sender)
            and handler.on_snapshot_begin(sender, term, decode_meta(raw_meta))
        )
        if wanted:
            self._later(self._next_chunk, self._chunk)
        else:
            self._later(self._done, PeerUnreachable("the peer refused the snapshot"))

    def _chunk(self, chunk: bytes | None, error: KvnodeError | None) -> None:
        if error is not None:
            self._later(self._deliver, None)
            self._done(error)
        else:
            self._later(self._deliver, chunk or b"")

    def _deliver(self, chunk: bytes | None) -> None:
        handler, sender = self._target.handler, self._source.hello
        assert handler is not None, "begun"
        if self._source.network.is_cut(sender.node_id, self._target.hello.node_id):
            handler.on_snapshot_end(sender, False, lambda _: None)
            self._later(self._done, PeerUnreachable("snapshot broken off"))
        elif chunk is None:
            handler.on_snapshot_end(sender, False, lambda _: None)
        elif chunk:
            handler.on_snapshot_chunk(sender, chunk, self._stored)
        else:
            handler.on_snapshot_end(sender, True, self._ended)

    def _stored(self, error: KvnodeError | None) -> None:
        handler, sender = self._target.handler, self._source.hello
        if error is None:
            self._later(self._next_chunk, self._chunk)
            return
        assert handler is not None, "begun"
        handler.on_snapshot_end(sender, False, lambda _: None)
        self._ended(error)

    def _ended(self, error: KvnodeError | None) -> None:
        result = None if error is None else PeerUnreachable(f"the peer could not store it: {error}")
        self._later(self._done, result)

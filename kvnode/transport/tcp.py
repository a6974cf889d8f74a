"""``TcpTransport``: the transport of real nodes. It wires connections, peers and the handler together.

The policy stands here, once: who is admitted (``greet``), which Raft messages are listened to
(``raft_frame``), what is bounded. How bytes move is the business of ``connection`` and ``peer``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from kvnode.addresses import Address, parse_address
from kvnode.errors import (
    KvnodeError,
    LocalProtocolError,
    Overloaded,
    PeerUnreachable,
    RemoteProtocolError,
)
from kvnode.ports import Done, Hello, Timer, TransportHandler
from kvnode.raft.messages import AppendEntries, InstallSnapshot, Message
from kvnode.raft.types import NodeId, SnapshotMeta
from kvnode.tls.listener import Refusal as HandshakeRefusal
from kvnode.tls.listener import TlsListener
from kvnode.transport import errands, framing
from kvnode.transport.codec import TAGS, decode_message, encode_message
from kvnode.transport.connection import Connection
from kvnode.transport.framing import pack_frame
from kvnode.transport.handshake import (
    Boots,
    Greeting,
    Refusal,
    Refused,
    check_hello,
    judge,
    misdirected,
    refused_frame,
)
from kvnode.transport.metrics import LogBrake, TransportMetrics
from kvnode.transport.peer import Peer, PeerLane
from kvnode.transport.peer_tls import PLAIN_REFUSED, PeerTls
from kvnode.transport.requests import Answer
from kvnode.transport.resolve import Resolve, ThreadResolver
from kvnode.transport.secret import Secrets
from kvnode.transport.settings import TransportSettings
from kvnode.transport.snapshot_stream import Incoming

log = structlog.get_logger(__name__)

NO_SECRETS = Secrets()


def _nobody_removed(_: NodeId) -> bool:
    return False


class TcpTransport:
    """A ``kvnode.ports.Transport`` over TCP. Owned by one loop; nothing here is thread-safe.

    Attributes:
        handler: The driver. Set before ``start``.
        is_removed, is_rolled_back: Judge incarnations (RC-47, RC-54); set by the driver, cheap.
        metrics: Counters.
        secrets: The peer secrets; new ones count from the next connection on.
        tls: Certificates, or None.
        port: The port that is listened on, once started.
    """

    def __init__(
        self,
        hello: Hello,
        *,
        bind_host: str = "127.0.0.1",
        bind_port: int = 0,
        handler: TransportHandler | None = None,
        rng: random.Random | None = None,
        settings: TransportSettings | None = None,
        resolve: Resolve | None = None,
        tls: PeerTls | None = None,
        secrets: Secrets = NO_SECRETS,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Make a transport that neither listens nor dials yet.

        Args:
            hello: How the node introduces itself. When ``hello.address`` ends in ``:0`` the port that
                ``start`` finds is put there.
            bind_host: Address to listen on.
            bind_port: Port to listen on; 0 takes a free one.
            handler: The driver; may be set later.
            rng: Jitter of the back-off.
            settings: Bounds and times.
            resolve: Looks names up; the default asks ``getaddrinfo`` in threads.
            tls: Certificates; None: plain connections.
            secrets: What peers have to prove, and what we prove to them.
            loop: The running loop by default.

        Raises:
            LocalProtocolError: No peer would accept this introduction: a text is too long.
        """
        self.loop = loop or asyncio.get_running_loop()
        self.handler = handler
        self.settings = settings or TransportSettings()
        self.rng = rng or random.Random()
        self.resolve: Resolve = resolve or ThreadResolver()
        self.tls = tls
        self.secrets = secrets
        self.metrics = TransportMetrics()
        self.is_removed: Callable[[NodeId], bool] = _nobody_removed
        self.is_rolled_back: Callable[[Hello], bool] = lambda _hello: False
        self.port = 0
        check_hello(hello)
        self._hello = hello
        self._bind = (bind_host, bind_port)
        self._server: asyncio.Server | None = None
        self._tls_listener: TlsListener | None = None
        self._peers: dict[NodeId, Peer] = {}
        self._connections: dict[Connection, None] = {}
        self._accepted = 0
        self._strangers: dict[Connection, None] = {}
        self._boots = Boots()
        self._incoming: Incoming | None = None
        self._streaming: set[NodeId] = set()
        self._asks = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._next_ping_at = 0.0
        self._brake = LogBrake()
        self._closing = False

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The address cannot be bound.
        """
        assert self.handler is not None, "the driver must be known before anything arrives"
        assert not self.port, "started twice"
        host, port = self._bind
        if self.tls is None:
            self._server = await self.loop.create_server(lambda: Connection(self), host, port)
            self.port = self._server.sockets[0].getsockname()[1]
        else:
            self._tls_listener = self._make_tls_listener(self.tls)
            await self._tls_listener.start(host, port)
            self.port = self._tls_listener.port
        if self._hello.address.endswith(":0"):
            advertised = parse_address(self._hello.address)
            self._hello = self._hello._replace(address=str(Address(advertised.host, self.port)))
        self._next_ping_at = self.loop.time() + self.settings.ping_s
        self._timer = self.loop.call_later(self.settings.sweep_s, self._sweep)

    async def close(self) -> None:
        """Stop listening, close every connection, end everything that waits. Idempotent."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        if self._tls_listener is not None:
            self._tls_listener.close()
            await self._tls_listener.wait_closed()
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            await peer.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)  # connections that are just being accepted appear
        for connection in list(self._connections):
            connection.close("this node is stopping")
        await self._all_closed()
        for connection in list(self._connections):
            connection.abort("this node is stopping")
        await self._all_closed()
        if self._server is not None:
            await self._server.wait_closed()

    async def _all_closed(self) -> None:
        closing = [connection.closed for connection in self._connections]
        if closing:
            await asyncio.wait(closing, timeout=1.0)

    @property
    def hello(self) -> Hello:
        """How this node introduces itself; setting it tells everyone who is connected."""
        return self._hello

    @hello.setter
    def hello(self, hello: Hello) -> None:
        if hello == self._hello:
            return
        check_hello(hello)
        self._hello = hello
        for connection in list(self._connections):
            if not connection.is_greeted:
                continue
            peer = connection.peer
            assert peer is not None, "greeted"
            if hello.cluster_id and peer.cluster_id not in {"", hello.cluster_id}:
                connection.refuse(Refusal.CLUSTER, f"our cluster is now {hello.cluster_id}")
            else:
                connection.reintroduce()

    # --- Transport --------------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[NodeId, tuple[str, ...]]) -> None:
        """See ``kvnode.ports.Transport``. Our own id is skipped."""
        for node_id in [n for n in self._peers if n not in peers]:
            _ = self.spawn(self._peers.pop(node_id).close(), f"close {node_id}")
        for node_id, addresses in peers.items():
            if node_id == self._hello.node_id or self._closing:
                continue
            peer = self._peers.get(node_id)
            if peer is None:
                self._peers[node_id] = Peer(
                    self, node_id, addresses, self.metrics.peer(node_id), self._may_log
                )
            else:
                peer.set_addresses(addresses)

    def send(self, to: NodeId, messages: Sequence[Message]) -> None:
        """See ``kvnode.ports.Transport``.

        Raises:
            LocalProtocolError: A single message is larger than a frame may be.
        """
        peer = self._peers.get(to)
        if peer is None:
            self.metrics.peer(to).dropped += len(messages)
            return
        fast: list[tuple[Any, ...]] = []
        bulk: list[tuple[Any, ...]] = []
        for message in messages:
            kind = type(message)
            if kind is AppendEntries or kind is InstallSnapshot:
                bulk.append(encode_message(message))
            else:
                fast.append((TAGS[kind], *message))
        if fast:
            self._send(peer.fast, fast)
        if bulk:
            self._send(peer.bulk, bulk)

    def request(
        self, to: NodeId, method: str, payload: Any, timeout_s: float, done: Done[Any]
    ) -> None:
        """See ``kvnode.ports.Transport``. Also: ``Overloaded`` when too much is under way to the peer;
        ``LocalProtocolError`` when the payload cannot be sent.
        """
        peer = self._peers.get(to)
        connection = None if peer is None else peer.bulk.connection
        error: KvnodeError
        if connection is None:
            error = PeerUnreachable(f"not connected to {to}", took_effect="no")
        elif (
            len(connection.asked) >= self.settings.requests_max
            or connection.write_buffer_size() > self.settings.bulk_bytes_max
        ):
            error = Overloaded(f"too many requests are under way to {to}")
        else:
            try:
                connection.request(method, payload, self.loop.time() + timeout_s, done)
            except LocalProtocolError as broken:
                error = broken
            else:
                return
        self.loop.call_soon(done, None, error)

    def request_address(
        self,
        address: str,
        method: str,
        payload: Any,
        timeout_s: float,
        done: Done[tuple[Hello, Any]],
    ) -> None:
        """See ``kvnode.ports.Transport``. Asking oneself works. Also: ``Overloaded``;
        ``PeerUnreachable`` with "no" for a text that is no address; ``Timeout`` with "no" while the
        request had not been written.
        """
        error: KvnodeError
        try:
            target = parse_address(address)
        except ValueError as problem:
            error = PeerUnreachable(str(problem), took_effect="no")
        else:
            if self._asks < self.settings.asks_max and not self._closing:
                self._asks += 1
                deadline = self.loop.time() + timeout_s
                task = self.spawn(
                    errands.ask(self, target, method, payload, deadline, done), f"ask {address}"
                )
                task.add_done_callback(self._asked)
                return
            error = Overloaded("too many addresses are being asked")
        self.loop.call_soon(done, None, error)

    def send_snapshot(
        self,
        to: NodeId,
        term: int,
        meta: SnapshotMeta,
        next_chunk: Callable[[Done[bytes]], None],
        done: Callable[[KvnodeError | None], None],
    ) -> None:
        """See ``kvnode.ports.Transport``. One stream per peer: a second one is ``Overloaded``."""
        peer = self._peers.get(to)
        error: KvnodeError
        if peer is None or self._closing:
            error = PeerUnreachable(f"not connected to {to}", took_effect="no")
        elif to in self._streaming:
            error = Overloaded(f"a snapshot is on its way to {to} already")
        else:
            self._streaming.add(to)

            def finished(problem: KvnodeError | None) -> None:
                self._streaming.discard(to)
                self.metrics.snapshots_sent += problem is None
                done(problem)

            _ = self.spawn(
                errands.stream(self, peer, term, meta, next_chunk, finished), f"snapshot to {to}"
            )
            return
        self.loop.call_soon(done, error)

    def connected(self) -> Mapping[NodeId, bool]:
        """See ``kvnode.ports.Transport``: true when both lanes are up."""
        return {node_id: peer.is_connected for node_id, peer in self._peers.items()}

    def _asked(self, _: object) -> None:
        self._asks -= 1

    # --- out --------------------------------------------------------------------------------------

    def _send(self, lane: PeerLane, encoded: list[tuple[Any, ...]]) -> None:
        try:
            frame = pack_frame((framing.RAFT, *encoded), self.settings.frame_bytes_max)
        except LocalProtocolError:
            if len(encoded) == 1:
                raise
            for message in encoded:  # only together they are too large for one frame
                self._send(lane, [message])
            return
        lane.send(frame, len(encoded))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that this transport owns: its failure is reported, ``close`` ends it."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def lane_down(self, node_id: NodeId) -> None:
        """A lane of a peer broke or is full."""
        if not self._closing and self.handler is not None:
            self.handler.on_unreachable(node_id)

    # --- Hub: what connections tell ---------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Count, and keep strangers from crowding peers out."""
        self._connections[connection] = None
        if connection.dialed:
            return
        self.metrics.accepted += 1
        self._accepted += 1
        self._strangers[connection] = None
        connection.deadline = self.loop.time() + self.settings.greet_timeout_s
        if self._closing or self._accepted > self.settings.accepted_max:
            self._drop_stranger(connection, "too many connections")
        elif len(self._strangers) > self.settings.strangers_max:
            self._drop_stranger(next(iter(self._strangers)), "too many connections")

    def lost(self, connection: Connection) -> None:
        """Forget the connection."""
        self._connections.pop(connection, None)
        self._strangers.pop(connection, None)
        if not connection.dialed:
            self._accepted -= 1
        if connection.peer is not None:
            self._boots.leave(connection.peer)

    def greet(self, connection: Connection, greeting: Greeting) -> tuple[Refusal, str] | None:
        """Admit or refuse an introduction, and remember the boot number of those admitted."""
        theirs = greeting.hello
        refusal = None if connection.dialed else misdirected(self._hello, greeting)
        refusal = refusal or judge(
            self._hello,
            theirs,
            lane=greeting.lane,
            expected=connection.expected,
            removed=self.is_removed(theirs.node_id),
            rolled_back=self.is_rolled_back(theirs),
        )
        if self.tls is not None and not connection.dialed:  # a dialler checked the name it dialled
            refusal = self.tls.judge(connection.certificate, theirs) or refusal
        if refusal is None:
            if connection.peer is None:
                refusal = self._boots.enter(theirs)
            else:
                self._boots.update(theirs)
        if refusal is not None:
            self._note_refusal(connection, theirs, refusal)
        return refusal

    def greeted(self, connection: Connection) -> None:
        """A peer is known now, or its introduction changed."""
        theirs = connection.peer
        assert theirs is not None, "greeted"
        self._strangers.pop(connection, None)
        connection.deadline = float("inf")
        connection.counters = self.metrics.peer(theirs.node_id)
        for other in list(self._connections):
            if other.peer is not None and self._boots.is_outdated(other.peer):
                other.abort("a newer process of the same node appeared")
        if theirs.node_id == self._hello.node_id:
            return
        peer = self._peers.get(theirs.node_id)
        if peer is not None and not connection.dialed:
            peer.nudge()  # it lives: no need to wait for the back-off
        if self.handler is not None and not self._closing:
            self.handler.on_peer_hello(theirs)

    def unproven(self, connection: Connection, text: str) -> None:
        """Count, and log at most one line per peer and interval."""
        self.metrics.secret_refused += 1
        who = connection.expected or connection.host
        if self._may_log(f"unproven {who}"):
            log.error("peer_secret_refused", peer=who, host=connection.host, why=text)

    def refused(self, connection: Connection, refused: Refused, *, proven: bool) -> None:
        """A peer refused us.

        A removal or an old volume counts only when our own cluster says so (without one: any), where *we*
        dialled (RC-47): who just connects, or lacks the secret, cannot make us give up our data.
        """
        self.metrics.refused += 1
        ordinary = refused.refusal in {Refusal.IDENTITY, Refusal.SELF}
        if not ordinary and self._may_log(f"refused by {connection.expected or connection.host}"):
            log.warning("refused_by_peer", peer=connection.expected, reason=refused.text)
        said_by = refused.cluster_id if connection.dialed and proven else ""
        if not said_by or self._hello.cluster_id not in ("", said_by):
            return
        assert self.handler is not None, "started"
        if refused.refusal is Refusal.REMOVED:
            self.handler.on_removed(said_by)
        elif refused.refusal is Refusal.ROLLED_BACK:
            self.handler.on_rolled_back()

    def raft_frame(self, connection: Connection, frame: tuple[Any, ...]) -> None:
        """Hand Raft messages of our own cluster to the driver."""
        sender = connection.peer
        assert sender is not None, "greeted"
        assert self.handler is not None, "started"
        messages = [decode_message(raw) for raw in frame[1:]]
        for message in messages:
            if message.sender != sender.node_id or message.to != self._hello.node_id:
                raise RemoteProtocolError("a Raft message with a wrong sender or receiver")
        if self._closing or not messages:
            return
        if self._listens_to(sender):
            self.handler.on_messages(sender, messages)
        else:
            self.metrics.messages_foreign += len(messages)

    def requested(self, connection: Connection, method: str, payload: Any, answer: Answer) -> None:
        """Hand a request to the driver."""
        assert connection.peer is not None, "greeted"
        assert self.handler is not None, "started"
        if self._closing:
            answer.fail(PeerUnreachable("this node is stopping", took_effect="no"))
        else:
            self.handler.on_request(connection.peer, method, payload, answer.reply, answer.fail)

    def snapshot_offered(self, connection: Connection, frame: tuple[Any, ...]) -> Incoming:
        """Open the one incoming stream that there may be."""
        sender = connection.peer
        assert sender is not None, "greeted"
        assert self.handler is not None, "started"
        refusal = ""
        if self._closing or not self._listens_to(sender):
            refusal = "not of the receiver's cluster"
        elif self._incoming is not None:
            refusal = f"a snapshot from {self._incoming.sender.node_id} is being received"
            if self._incoming.sender.node_id == sender.node_id:
                # Its sender has given up on it: clear the way for the next try.
                self._incoming.connection.abort("a newer stream of the same sender")
        incoming = Incoming(connection, sender, self.handler, self._stream_finished)
        incoming.begin(frame, refusal)
        if connection.is_open and not refusal:
            self._incoming = incoming
        return incoming

    def violated(self, connection: Connection, error: RemoteProtocolError) -> None:
        """Count, and log at most one line per peer and interval."""
        self.metrics.protocol_errors += 1
        who = connection.node_id or connection.host
        if self._may_log(f"violated {who}"):
            log.warning("protocol_violated", peer=who, reason=str(error)[:200])

    # --- inside -----------------------------------------------------------------------------------

    def _listens_to(self, sender: Hello) -> bool:
        ours = self._hello.cluster_id
        if ours:
            return sender.cluster_id == ours
        assert self.handler is not None, "started"
        return bool(sender.cluster_id) and self.handler.accepts_cluster(sender)

    def _stream_finished(self, incoming: Incoming, ok: bool) -> None:
        if self._incoming is incoming:
            self._incoming = None
        self.metrics.snapshots_received += ok

    def _make_tls_listener(self, tls: PeerTls) -> TlsListener:
        def tell_plain() -> bytes:
            return pack_frame(refused_frame(Refusal.TLS, PLAIN_REFUSED, self._hello))

        return TlsListener(
            tls.server,
            lambda: Connection(self),
            self._handshake_failed,
            plain_answer=tell_plain,
            allow_plain=lambda: not tls.required,
            handshake_timeout_s=self.settings.greet_timeout_s,
            shutdown_timeout_s=self.settings.greet_timeout_s,
            waiting_max=self.settings.handshakes_max,
        )

    def _handshake_failed(self, refusal: HandshakeRefusal) -> None:
        self.metrics.tls_refused += 1
        if self._may_log(f"tls {refusal.host}"):
            why = PLAIN_REFUSED if refusal.plain else refusal.reason
            log.error("peer_tls_refused", host=refusal.host, plain=refusal.plain, why=why)

    def _drop_stranger(self, connection: Connection, reason: str) -> None:
        self.metrics.strangers_dropped += connection in self._strangers
        self._strangers.pop(connection, None)
        connection.abort(reason)

    def _note_refusal(
        self, connection: Connection, theirs: Hello, refusal: tuple[Refusal, str]
    ) -> None:
        self.metrics.refused += 1
        if refusal[0] in {Refusal.SELF, Refusal.IDENTITY}:
            return  # every day's business: addresses move, and the next candidate is tried
        self.metrics.tls_refused += refusal[0] in {Refusal.CERTIFICATE, Refusal.TLS}
        conflict = refusal[0] is Refusal.DUPLICATE
        self.metrics.identity_conflicts += conflict
        if self._may_log(f"refused {theirs.node_id} {connection.host}"):
            event = "identity_conflict_seen" if conflict else "peer_refused"
            emit = log.error if conflict else log.warning
            emit(event, peer=theirs.node_id, name=theirs.name, host=connection.host, why=refusal[1])

    def _may_log(self, key: str) -> bool:
        return self._brake.allows(key, self.loop.time())

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.loop.call_exception_handler(
                {
                    "message": f"{task.get_name()} failed",
                    "exception": task.exception(),
                    "task": task,
                }
            )

    def _sweep(self) -> None:
        """The one timer: deadlines each time, pings and removals once per ping interval."""
        now = self.loop.time()
        self._timer = self.loop.call_later(self.settings.sweep_s, self._sweep)
        pinging = now >= self._next_ping_at
        if pinging:
            self._next_ping_at = now + self.settings.ping_s
        for connection in list(self._connections):
            if connection.asked:
                self.metrics.requests_timed_out += connection.asked.expire(now)
            if connection.deadline <= now:
                self._drop_stranger(connection, "no introduction, or no end, in time")
            elif pinging and connection.is_greeted:
                self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        peer = connection.peer
        assert peer is not None, "greeted"
        if not connection.dialed and self._hello.cluster_id and self.is_removed(peer.node_id):
            connection.refuse(Refusal.REMOVED, "this incarnation was removed from the cluster")
        else:
            connection.check_alive()

"""TLS between nodes, over real sockets, with certificates made on the spot."""

import asyncio
import contextlib
import random
import ssl
from dataclasses import replace
from functools import partial

import pytest
from structlog.testing import capture_logs

from kvnode.raft.messages import AppendEntries, Heartbeat
from kvnode.raft.types import ZERO, Entry, EntryKind, LogId, Member, Membership, SnapshotMeta
from kvnode.tls import TlsFiles, build
from kvnode.transport import framing
from kvnode.transport.framing import pack_frame
from kvnode.transport.handshake import Lane, hello_frame, parse_refused
from kvnode.transport.peer_tls import PeerTls
from kvnode.transport.secret import parse_secrets
from kvnode.transport.tcp import TcpTransport
from tests.tls.conftest import Files
from tests.transport.conftest import QUICK

PATIENT = replace(QUICK, greet_timeout_s=5.0, connect_timeout_s=5.0)
"""On a busy machine a first try that ran out of time would be all that is logged for ten seconds."""
SERVICE = "*.kvnode.test.svc.cluster.local"


@pytest.fixture
def net(net):
    net.start = partial(net.start, settings=PATIENT)
    return net


def contexts(files, **kwargs):
    return build(TlsFiles(cert=files.cert, key=files.key, ca=files.ca, **kwargs))


def tls(files, **kwargs) -> PeerTls:
    made = contexts(files)
    return PeerTls(lambda: made, **kwargs)


@pytest.fixture
def node_files(tmp_path):
    def make(name="node", **kwargs):
        files = Files(tmp_path / name)
        files.issue(**kwargs)
        return files

    return make


async def refusals(net, *nodes, seconds=5.0):
    await net.until(lambda: any(n.metrics.tls_refused for n in nodes), seconds)


async def never_connected(net, a, b, logs, text):
    """Neither reaches the other, and a log line has ``text``."""
    await net.until(lambda: text in str(logs))
    assert a.connected() in ({}, {b.node_id: False})
    assert b.connected() in ({}, {a.node_id: False})
    assert not a.recorder.hellos
    assert not b.recorder.hellos


async def test_everything_goes_over_tls(net, node_files):
    a, b = await net.pair(tls=tls(node_files()))
    entries = tuple(Entry(n, 1, EntryKind.COMMAND, bytes(1000)) for n in range(1, 2001))
    message = AppendEntries("a", "b", 1, ZERO, entries, 0)
    a.send("b", [Heartbeat("a", "b", 1, 0, 0), message])
    await net.until(lambda: len(b.recorder.messages) == 2)
    assert message in [m for _, m in b.recorder.messages]
    assert await net.ask(a, "b", "m", 5) == (("m", 5), None)
    value, error = await net.ask_address(a, b.address, 7)
    assert error is None
    assert value[1] == ("m", 7)
    connections = list(a._connections)
    assert {c._transport.get_extra_info("ssl_object").version() for c in connections} == {"TLSv1.3"}


async def test_a_snapshot_goes_over_tls(net, node_files):
    a, b = await net.pair(tls=tls(node_files()))
    membership = Membership(voters=frozenset({"a"}), members=(Member("a", "n", "h:1"),))
    chunks = [random.Random(i).randbytes(300_000) for i in range(8)]
    left = list(chunks)
    finished = asyncio.get_running_loop().create_future()
    a.send_snapshot(
        "b",
        1,
        SnapshotMeta(LogId(5, 1), membership),
        lambda done: asyncio.get_running_loop().call_soon(done, left.pop(0) if left else b"", None),
        finished.set_result,
    )
    assert await finished is None
    assert b"".join(b.recorder.chunks) == b"".join(chunks)


async def test_plain_text_is_refused_plainly_and_logged_once(net, node_files):
    with capture_logs() as logs:
        a = await net.start("a", tls=tls(node_files()))
        b = await net.start("b")
        b.set_peers({"a": (a.address,)})
        await net.until(lambda: a.metrics.tls_refused >= 3)
        assert b.connected() == {"a": False}
    theirs = [entry for entry in logs if entry["event"] == "peer_tls_refused"]
    assert len(theirs) == 1, "once for each peer and interval"
    assert theirs[0]["plain"] is True
    assert "--tls-cert-file" in theirs[0]["why"]
    ours = [entry for entry in logs if entry["event"] == "refused_by_peer"]
    assert len(ours) == 1
    assert "--tls-cert-file" in ours[0]["reason"], "also the node that is to be changed says it"
    assert not a.recorder.hellos


async def test_a_listener_without_tls_says_what_it_met(net, node_files):
    with capture_logs() as logs:
        a = await net.start("a", tls=tls(node_files()))
        b = await net.start("b")
        a.set_peers({"b": (b.address,)})
        await never_connected(net, a, b, logs, "the other end speaks TLS")
        await never_connected(net, a, b, logs, "peer_unreachable")


async def test_a_foreign_ca_is_refused_at_both_ends(net, node_files):
    a = await net.start("a", tls=tls(node_files("a")))
    with capture_logs() as logs:
        b = await net.start("b", tls=tls(node_files("b", authority="second")))
        net.connect(a, b)
        await never_connected(net, a, b, logs, "it must lead to a CA in --tls-ca-file")


async def test_who_trusts_the_other_is_not_thereby_trusted(net, node_files):
    """One-sided: b's CA file has both authorities, a's only its own."""
    a = await net.start("a", tls=tls(node_files("a")))
    with capture_logs() as logs:
        b = await net.start(
            "b", tls=tls(node_files("b", authority="second", trust=("first", "second")))
        )
        b.set_peers({"a": (a.address,)})
        await never_connected(net, a, b, logs, "its certificate was refused")
        await never_connected(net, a, b, logs, "its log says why it refused our certificate")


async def test_an_expired_certificate_is_refused(net, node_files):
    a = await net.start("a", tls=tls(node_files("a")))
    with capture_logs() as logs:
        b = await net.start("b", tls=tls(node_files("b", days=-1)))
        net.connect(a, b)
        await never_connected(net, a, b, logs, "certificate has expired")


async def test_the_name_dialled_must_be_in_the_certificate(net, node_files):
    a = await net.start("a", tls=tls(node_files("a")))
    with capture_logs() as logs:
        b = await net.start("b", tls=tls(node_files("b", hosts=("other.example",))))
        a.set_peers({"b": (b.address,)})
        await never_connected(net, a, b, logs, "its certificate is not for 127.0.0.1")


async def test_a_dialler_must_be_who_it_says(net, node_files):
    """Its certificate is of the CA, and good for a client, but for another host than it advertises."""
    a = await net.start("a", tls=tls(node_files("a")))
    with capture_logs() as logs:
        b = await net.start("b", tls=tls(node_files("b", hosts=("other.example",))))
        b.set_peers({"a": (a.address,)})
        await never_connected(net, a, b, logs, "the certificate is for other.example, not for 127")
        await never_connected(net, a, b, logs, "refused_by_peer")
    assert a.metrics.tls_refused


async def test_a_client_of_the_same_ca_is_no_node(net, node_files, tmp_path):
    """RFC 5280's purposes do not tell them apart; the name does."""
    a = await net.start("a", tls=tls(node_files("a")))
    files = node_files("client", server=False, hosts=("someone@example".replace("@", "."),))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(files.cert, files.key)
    context.load_verify_locations(files.ca)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", a.port, ssl=context, server_hostname="localhost"
    )
    writer.write(pack_frame(hello_frame(net.hello("b", address="127.0.0.1:9"), Lane.BULK)))
    length = int.from_bytes(await reader.readexactly(4), "big")
    refused = parse_refused(framing.unpack_frame(await reader.readexactly(length)))
    assert refused.refusal is not None
    assert refused.refusal.value == "certificate"
    assert not a.recorder.hellos
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_one_name_for_all_where_addresses_cannot_be_named(net, node_files):
    """Pods behind a headless Service: one wildcard, or one common name."""
    made = tls(node_files(hosts=(SERVICE,)), server_name="node.kvnode.test.svc.cluster.local")
    await net.pair(tls=made)


async def test_a_name_is_checked_as_it_was_dialled(net, node_files):
    """A pod's full name, looked up to an address, under a wildcard."""

    async def resolve(address):
        return [address._replace(host="127.0.0.1")]

    made = tls(node_files(hosts=(SERVICE,)))
    nodes = []
    for name in "ab":
        node = await net.start(
            hello=net.hello(name, address=f"{name}.kvnode.test.svc.cluster.local:0"),
            tls=made,
            resolve=resolve,
        )
        nodes.append(node)
    net.connect(*nodes)
    await net.until(lambda: all(all(node.connected().values()) for node in nodes))


async def test_a_new_certificate_counts_for_the_next_connection(net, node_files):
    """The other CA takes over with both trusted in between; nothing that stands is cut."""
    files = node_files("a")
    current = {"a": contexts(files), "b": contexts(files)}
    a = await net.start("a", tls=PeerTls(lambda: current["a"]))
    b = await net.start("b", tls=PeerTls(lambda: current["b"]))
    net.connect(a, b)
    everyone = partial(lambda: a.connected() == {"b": True} and b.connected() == {"a": True})
    await net.until(everyone)
    standing = set(a._connections)
    both = node_files("both", trust=("first", "second"))
    new = node_files("new", authority="second", trust=("first", "second"))
    only = node_files("only", authority="second")
    for step in (both, new, only):
        for name in "ab":
            current[name] = contexts(step)
            assert standing <= set(a._connections), "nothing is cut"
            _, error = await net.ask_address(a, b.address)
            assert error is None, step.directory.name
            _, error = await net.ask_address(b, a.address)
            assert error is None, step.directory.name


async def test_tls_is_introduced_node_by_node(net, node_files):
    """``prefer`` speaks with those who have no certificate yet, and TLS with those who have."""
    made = tls(node_files(), required=False)
    a, b = await net.start("a", tls=made), await net.start("b")
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True} and b.connected() == {"a": True})
    c = await net.start("c", tls=made)
    d = await net.start("d", tls=tls(node_files()))
    net.connect(a, c, d)
    await net.until(lambda: all(all(node.connected().values()) for node in (a, c, d)))
    await net.until(lambda: len(d._connections) == 8)
    assert all(c._transport.get_extra_info("ssl_object") for c in d._connections)


async def test_idle_and_broken_handshakes_are_bounded(net, node_files):
    settings = replace(QUICK, handshakes_max=4, greet_timeout_s=3.0)
    a = await net.start("a", tls=tls(node_files()), settings=settings)
    idle = [await asyncio.open_connection("127.0.0.1", a.port) for _ in range(12)]
    await net.until(lambda: a._tls_listener.waiting == 4)
    await net.until(lambda: a._tls_listener.waiting == 0)  # no handshake in time
    assert a.metrics.tls_refused == 4, "those that gave way are not counted as refused"
    reader, writer = idle[-1]
    assert await reader.read() == b""
    ends = []
    for record in (b"\x16\x03\x01\x02\x00\x01half a record", b"\x16\x03\x01\x00\x07rubbish"):
        again, half = await asyncio.open_connection("127.0.0.1", a.port)
        half.write(record)
        half.write_eof()
        await again.read()
        ends.append((again, half))
    await net.until(lambda: a.metrics.tls_refused == 5)
    await net.until(lambda: a._tls_listener.waiting == 0)
    assert a.metrics.tls_refused == 5, "who goes away in the middle was not refused"
    b = await net.start("b", tls=tls(node_files()))
    net.connect(a, b)
    await net.until(lambda: a.connected() == {"b": True})
    for _, writer in [*idle, *ends]:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_probe_that_says_nothing_is_no_event(net, node_files):
    with capture_logs() as logs:
        a = await net.start("a", tls=tls(node_files()))
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.close()
            await writer.wait_closed()
        _, error = await net.ask_address(a, a.address)
        assert error is None
    assert a.metrics.tls_refused == 0
    assert logs == []


def test_tls_and_secret_on_uvloop(net_tools, node_files):
    uvloop = pytest.importorskip("uvloop")
    made, secrets = tls(node_files()), parse_secrets("uvloop-0123456789", "test")

    async def scenario():
        nodes = []
        for name in "ab":
            node = TcpTransport(
                net_tools.hello(name),
                handler=net_tools.Recorder(),
                rng=random.Random(1),
                settings=net_tools.quick,
                tls=made,
                secrets=secrets,
            )
            await node.start()
            nodes.append(node)
        a, b = nodes
        a.set_peers({"b": (b.hello.address,)})
        await net_tools.until(lambda: a.connected() == {"b": True})
        assert await net_tools.ask(a, "b", "m", 5) == (("m", 5), None)
        before = b.metrics.tls_refused
        _, writer = await asyncio.open_connection("127.0.0.1", b.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await net_tools.until(lambda: b.metrics.tls_refused > before)
        writer.close()
        await b.close()
        await net_tools.until(lambda: a.connected() == {"b": False})
        await a.close()

    uvloop.run(scenario())

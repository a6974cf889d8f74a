"""The peer secret: the exchange itself, and what it keeps out."""

import asyncio
import contextlib
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kvnode.errors import RemoteProtocolError, SettingError
from kvnode.transport import framing
from kvnode.transport.framing import HEADER_BYTES, pack_frame, unpack_frame, unpack_hello_frame
from kvnode.transport.handshake import Lane, Refusal, hello_frame, parse_refused, refused_frame
from kvnode.transport.secret import Proof, Secrets, challenge_frame, parse_proof, parse_secrets
from tests.transport.conftest import QUICK

PATIENT = replace(QUICK, greet_timeout_s=5.0, connect_timeout_s=5.0)
"""On a busy machine a first try that ran out of time would be all that is logged for ten seconds."""
ONE, TWO = "first-secret-0123456789", "second-secret-0123456789"
FRAME = pack_frame((framing.HELLO, "who I am"))


@pytest.fixture
def net(net):
    net.start = partial(net.start, settings=PATIENT)
    return net


def secret(*lines):
    return parse_secrets("\n".join(lines), "test")


def frame_of(packed):
    return unpack_hello_frame(packed[HEADER_BYTES:])


def ends(dialler=None, listener=None, channels=(b"", b"")):
    """Two ends that know each other's nonce."""
    made = (
        Proof(dialler or secret(ONE), dialed=True, channel=channels[0]),
        Proof(listener or secret(ONE), dialed=False, channel=channels[1]),
    )
    made[0].on_challenge(frame_of(made[1].challenge()))
    made[1].on_challenge(frame_of(made[0].challenge()))
    return made


def test_both_prove():
    dialler, listener = ends()
    assert listener.check(frame_of(dialler.prove(FRAME))) == FRAME[HEADER_BYTES:]
    assert dialler.check(frame_of(listener.prove(FRAME))) == FRAME[HEADER_BYTES:]


def test_a_wrong_secret_proves_nothing():
    dialler, listener = ends(secret(TWO))
    assert listener.check(frame_of(dialler.prove(FRAME))) is None
    dialler, listener = ends(secret(ONE), secret(ONE, TWO))
    impostor = ends(secret(TWO), secret(TWO))[1]
    impostor.check(frame_of(ends(secret(TWO))[0].prove(FRAME)))
    assert dialler.check(frame_of(ends()[0].prove(FRAME))) is None


def test_any_line_is_accepted_and_answered_in_kind():
    """A secret is changed node by node: first accepted by all, then proved, then alone."""
    for ours, theirs in (((ONE,), (TWO, ONE)), ((TWO, ONE), (ONE, TWO)), ((TWO,), (TWO, ONE))):
        dialler, listener = ends(secret(*ours), secret(*theirs))
        assert listener.check(frame_of(dialler.prove(FRAME)))
        assert dialler.check(frame_of(listener.prove(FRAME)))


def test_nothing_that_one_end_sent_proves_anything_for_the_other():
    """Reflection: the dialler's own proof, sent back to it."""
    dialler, _ = ends()
    assert dialler.check(frame_of(dialler.prove(FRAME))) is None


def test_ones_own_nonce_is_no_challenge():
    proof = Proof(secret(ONE), dialed=True, channel=b"")
    with pytest.raises(RemoteProtocolError, match="came back"):
        proof.on_challenge(frame_of(proof.challenge()))


def test_a_proof_counts_on_its_own_connection_only():
    """Replay: other nonces; relay through two TLS connections: another channel."""
    dialler, _ = ends()
    assert ends()[1].check(frame_of(dialler.prove(FRAME))) is None
    dialler, listener = ends(channels=(b"one", b"two"))
    assert listener.check(frame_of(dialler.prove(FRAME))) is None
    dialler, listener = ends(channels=(b"one", b"one"))
    assert listener.check(frame_of(dialler.prove(FRAME)))


def test_a_proof_counts_for_its_own_frame_only():
    dialler, listener = ends()
    kind, mac, _ = frame_of(dialler.prove(FRAME))
    other = pack_frame((framing.HELLO, "somebody else"))[HEADER_BYTES:]
    assert listener.check((kind, mac, other)) is None


@settings(max_examples=50)
@given(st.integers(0, 31), st.integers(1, 255))
def test_every_bit_of_the_code_counts(place, change):
    dialler, listener = ends()
    kind, mac, body = frame_of(dialler.prove(FRAME))
    bent = bytearray(mac)
    bent[place] ^= change
    assert listener.check((kind, bytes(bent), body)) is None


@settings(max_examples=100)
@given(st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.binary(), max_size=5))
def test_arbitrary_frames_are_read_or_refused(fields):
    for kind in (framing.CHALLENGE, framing.PROOF):
        for frame in ((kind, *fields), (kind, "kvnode secret", 1, *fields)):
            proof = Proof(secret(ONE), dialed=False, channel=b"")
            with contextlib.suppress(RemoteProtocolError):
                proof.on_challenge(frame)
            with contextlib.suppress(RemoteProtocolError):
                assert proof.check(frame) is None


def test_the_order_is_kept():
    proof = Proof(secret(ONE), dialed=False, channel=b"")
    with pytest.raises(RemoteProtocolError, match="before its challenge"):
        proof.check((framing.PROOF, bytes(32), b"x"))
    proof.on_challenge(challenge_frame(bytes(32)))
    with pytest.raises(RemoteProtocolError, match="second"):
        proof.on_challenge(challenge_frame(bytes(32)))
    with pytest.raises(RemoteProtocolError):
        parse_proof((framing.PROOF, bytes(31), b"x"))


def test_files_of_secrets():
    found = secret("", "# a comment", f"  {ONE}  ", TWO)
    assert found == Secrets(ONE.encode(), (ONE.encode(), TWO.encode()), none_accepted=False)
    assert secret("allow-none", ONE).proving is None
    assert secret(ONE, "allow-none").none_accepted
    for lines in (("",), ("short",), ("allow-none",), ("x" * 1025,), (ONE,) * 17):
        with pytest.raises(SettingError):
            secret(*lines)


def test_no_secret_is_shown(tmp_path):
    assert ONE not in repr(secret(ONE))
    with pytest.raises(SettingError) as error:
        secret("hunter2")
    assert "hunter2" not in str(error.value)


# -- over real connections --------------------------------------------------------------------------


def both_up(a, b):
    return lambda: a.connected() == {"b": True} and b.connected() == {"a": True}


async def test_nodes_with_one_secret_talk(net):
    a, b = await net.pair(secrets=secret(ONE))
    assert await net.ask(a, "b", "m", 5) == (("m", 5), None)
    assert (await net.ask_address(a, b.address))[1] is None
    assert (await net.ask_address(a, a.address))[1] is None, "also oneself"
    a.hello = a.hello._replace(http_address="elsewhere:1")
    await net.until(lambda: any(h.http_address == "elsewhere:1" for h in b.recorder.hellos))


@pytest.mark.parametrize(
    ("ours", "theirs", "hint"),
    [
        (secret(ONE), secret(TWO), "the peer secrets differ"),
        (secret(ONE), Secrets(), "this node has no peer secret"),
        (Secrets(), secret(ONE), "did not prove the peer secret"),
    ],
)
async def test_nodes_without_the_same_secret_do_not(net, ours, theirs, hint):
    with capture_logs() as logs:
        a, b = await net.start("a", secrets=ours), await net.start("b", secrets=theirs)
        a.set_peers({"b": (b.address,)})
        await net.until(lambda: b.metrics.secret_refused)
        value, error = await net.ask_address(a, b.address)
        assert value is None
        assert error.took_effect == "no"
        assert hint in str(error)
    assert a.connected() == {"b": False}
    assert not a.recorder.hellos
    assert not b.recorder.hellos, "nothing of the other is even looked at"
    refused = [entry for entry in logs if entry["event"] == "peer_secret_refused"]
    assert len(refused) == 1
    assert hint in refused[0]["why"]
    assert ONE not in str(logs)
    assert TWO not in str(logs)


async def test_a_secret_is_introduced_and_changed_without_a_pause(net):
    """Each step on one node at a time; both directions work at every moment."""
    a, b = await net.pair()
    steps = (
        secret("allow-none", ONE), secret(ONE, "allow-none"), secret(ONE),
        secret(ONE, TWO), secret(TWO, ONE), secret(TWO),
    )  # fmt: skip
    for step in steps:
        for node in (a, b):
            node.secrets = step
            assert (await net.ask_address(a, b.address))[1] is None
            assert (await net.ask_address(b, a.address))[1] is None
    assert a.metrics.secret_refused == b.metrics.secret_refused == 0


class FakeListener:
    """Plays a listener by hand: answers every connection with the same frames."""

    def __init__(self, *frames):
        self.frames = frames
        self.got = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            length = int.from_bytes(await reader.readexactly(4), "big")
            self.got.append(unpack_frame(await reader.readexactly(length)))
            for frame in self.frames:
                writer.write(pack_frame(frame) if isinstance(frame, tuple) else frame)
            await reader.read()
        writer.close()


async def test_who_does_not_know_the_secret_cannot_take_a_members_data(net):
    """RC-47: "you were removed" is believed only from somebody who proved the secret."""
    gone = refused_frame(Refusal.REMOVED, "gone", net.hello("b"))
    a = await net.start("a", secrets=secret(ONE))
    async with FakeListener(gone) as fake:
        a.set_peers({"b": (fake.address,)})
        await net.until(lambda: len(fake.got) >= 3)
    assert a.metrics.refused
    assert a.recorder.removed == 0
    assert all(frame[0] == framing.CHALLENGE for frame in fake.got), (
        "nothing was told to a stranger"
    )


async def test_a_dialler_is_not_talked_out_of_the_proof(net):
    """A listener that just introduces itself, as one without a secret would."""
    a = await net.start("a", secrets=secret(ONE, "allow-none"))
    async with FakeListener(hello_frame(net.hello("b"), Lane.FAST)) as fake:
        a.set_peers({"b": (fake.address,)})
        await net.until(lambda: a.metrics.secret_refused)
    assert not a.recorder.hellos


async def test_a_removed_node_hears_it_from_its_own_cluster(net):
    """The refusal itself is vouched for."""
    a = await net.start("a", secrets=secret(ONE))
    b = await net.start("b", secrets=secret(ONE))
    b.is_removed = lambda node_id: node_id == "a"
    a.set_peers({"b": (b.address,)})
    await net.until(lambda: a.recorder.removed)


@pytest.mark.parametrize(
    "frames",
    [
        [(framing.PROOF, bytes(32), b"x")],
        [challenge_frame(bytes(32)), challenge_frame(bytes(32))],
        [challenge_frame(bytes(32)), (framing.PROOF, bytes(32), b"x")],
        [challenge_frame(bytes(32)), hello_frame(("x",) * 8, Lane.FAST)],
        [(framing.CHALLENGE, "kvnode secret", 2, bytes(32))],
        [(framing.REQUEST, 1, "write", [])],
    ],
)
async def test_a_stranger_gets_nowhere(net, frames):
    a = await net.start("a", secrets=secret(ONE))
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    for frame in frames:
        writer.write(pack_frame(frame))
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    assert not a.recorder.hellos
    assert a.metrics.protocol_errors + a.metrics.secret_refused == 1


async def test_an_old_build_reads_why_it_is_refused(net):
    """Without the secret's frames: HELLO first, and a REFUSED frame as it knows it."""
    a = await net.start("a", secrets=secret(ONE))
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    writer.write(pack_frame(hello_frame(net.hello("b"), Lane.BULK)))
    length = int.from_bytes(await reader.readexactly(4), "big")
    refused = parse_refused(unpack_frame(await reader.readexactly(length)))
    assert refused.refusal is Refusal.SECRET
    assert "--peer-secret-file" in refused.text
    writer.close()

"""A stranger at the peer port of a cluster that has a secret, and a listener that squats on an address.

Law: whoever does not know the secret gets nothing looked at, whatever it sends, in whatever pieces, not
even a refusal that would be believed; and it costs no more memory than one introduction. Whoever
knows it gets in.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

from kvnode.errors import RemoteProtocolError
from kvnode.ports import Hello
from kvnode.raft.types import NodeId
from kvnode.transport import framing
from kvnode.transport.connection import Connection
from kvnode.transport.framing import FrameDecoder, pack_frame, unpack_frame
from kvnode.transport.handshake import Lane, Refusal, hello_frame, refused_frame
from kvnode.transport.secret import Proof, Secrets, challenge_frame, parse_secrets
from kvnode.transport.settings import TransportSettings
from tests.fuzz.machinery import CASES, QUICK_CASES, fuzz, mutate, seeds, value

OURS = Hello(1, "cluster", NodeId("a" * 36), "n-0", 3, "host:8300", "host:8500", 3)
THEIRS = OURS._replace(node_id=NodeId("b" * 36), name="n-1", address="host:8301")
SECRETS = parse_secrets("the-secret-of-the-cluster\nthe-next-secret-of-it", "test")
GUESSES = parse_secrets("the-secret-of-the-clustes\nanother-secret-altogether", "test")


@cache
def idle_loop() -> asyncio.AbstractEventLoop:
    """Makes futures; never runs."""
    return asyncio.new_event_loop()


class Pipe:
    """The stream's other side: keeps what was written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        assert high


class Watcher:
    """A hub that notes whatever a stranger got through to it."""

    def __init__(self, secrets: Secrets) -> None:
        self.hello = OURS
        self.settings = TransportSettings()
        self.secrets = secrets
        self.through: list[str] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        class Loop:
            create_future = staticmethod(idle_loop().create_future)
            time = staticmethod(lambda: 0.0)
            call_soon = staticmethod(lambda *_: None)

        return Loop()  # type: ignore[return-value]

    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...

    def unproven(self, connection: Connection, text: str) -> None: ...

    def violated(self, connection: Connection, error: RemoteProtocolError) -> None: ...

    def greet(self, *_: object) -> None:
        self.through.append("greet")

    def greeted(self, *_: object) -> None:
        self.through.append("greeted")

    def refused(self, connection: Connection, refused: object, *, proven: bool) -> None:
        if proven:
            self.through.append("refused")

    def raft_frame(self, *_: object) -> None:
        self.through.append("raft")

    def requested(self, *_: object) -> None:
        self.through.append("request")

    def snapshot_offered(self, *_: object) -> None:
        self.through.append("snapshot")


def end(*, dialed: bool) -> tuple[Connection, Watcher, Pipe]:
    hub, pipe = Watcher(SECRETS), Pipe()
    connection = Connection(hub, Lane.BULK if dialed else None, "b" if dialed else "")
    connection.connection_made(pipe)  # type: ignore[arg-type]
    return connection, hub, pipe


def sent(pipe: Pipe) -> list[tuple[Any, ...]]:
    return [unpack_frame(body) for body in FrameDecoder().feed(bytes(pipe.written))]


def answer_of(secrets: Secrets, pipe: Pipe, rng: random.Random, *, dialed: bool) -> list[bytes]:
    """What somebody with these secrets sends, once it has seen the other's challenge."""
    proof = Proof(secrets, dialed=dialed, channel=b"")
    frames = [proof.challenge()]
    for frame in sent(pipe):
        if frame[0] == framing.CHALLENGE:
            proof.on_challenge(frame)
    if proof.is_challenged:
        if not dialed:
            proof._secret = rng.choice(secrets.accepted)
        frames.append(proof.prove(rng.choice(inner())))
    return frames


@cache
def inner() -> tuple[bytes, ...]:
    """What a proof may vouch for."""
    return (
        pack_frame(hello_frame(THEIRS, Lane.BULK)),
        pack_frame(hello_frame(THEIRS, Lane.ASK, "a" * 36)),
        pack_frame(refused_frame(Refusal.REMOVED, "gone", THEIRS)),
        pack_frame((framing.REQUEST, 1, "write", ())),
    )


def stranger_case(rng: random.Random, *, dialed: bool) -> None:
    connection, hub, pipe = end(dialed=dialed)
    corpus = (
        *inner(),
        pack_frame(challenge_frame(rng.randbytes(32))),
        pack_frame((framing.PROOF, rng.randbytes(32), inner()[0][4:])),
        pack_frame((framing.PROOF, bytes(32), rng.randbytes(rng.randrange(1, 200)))),
        pack_frame((rng.choice((framing.CHALLENGE, framing.PROOF)), value(rng), value(rng))),
    )
    for _ in range(rng.randrange(1, 6)):
        dice = rng.random()
        if dice < 0.4:
            data = b"".join(answer_of(GUESSES, pipe, rng, dialed=not dialed))
        elif dice < 0.6 and pipe.written:
            data = bytes(pipe.written)  # what it heard, back to where it came from
        else:
            data = rng.choice(corpus)
        if rng.random() < 0.4:
            data = mutate(rng, data, corpus)
        size = rng.choice((len(data) or 1, 1, 7, 64))
        for at in range(0, len(data), size):
            connection.data_received(data[at : at + size])
            assert connection._decoder.pending_bytes() <= framing.STRANGER_BYTES_MAX + 4 + 64
            if pipe.closed:
                break
        assert hub.through == [], "something of a stranger was looked at"
        assert connection.peer is None
        if pipe.closed:
            return


def listener_case(rng: random.Random) -> None:
    stranger_case(rng, dialed=False)


def dialler_case(rng: random.Random) -> None:
    stranger_case(rng, dialed=True)


TARGETS = [listener_case, dialler_case]


@pytest.mark.parametrize("case", TARGETS)
def test_what_a_stranger_sends(case) -> None:
    fuzz(case, seeds()[0], QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TARGETS)
def test_what_a_stranger_sends_for_long(case) -> None:
    for seed in seeds():
        fuzz(case, seed, CASES // 2)


def test_the_fuzzers_ends_let_in_who_knows_the_secret() -> None:
    """Else the law above would hold for nobody at all."""
    dialler, their_hub, out = end(dialed=True)
    listener, our_hub, back = end(dialed=False)
    their_hub.hello = THEIRS
    for _ in range(3):
        for connection, pipe in ((listener, out), (dialler, back)):
            data = bytes(pipe.written)
            pipe.written.clear()
            with suppress(RemoteProtocolError):
                if data:
                    connection.data_received(data)
    assert (our_hub.through, their_hub.through) == (["greet", "greeted"], ["greet", "greeted"])

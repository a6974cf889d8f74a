"""The peer secret: both ends prove that they know it before either says who it is. Pure but for nonces.

    dialler                                 listener
    CHALLENGE  magic, version, nonce d  →
                                        ←   CHALLENGE  magic, version, nonce l
    PROOF  mac("dialler"), HELLO        →   verified before HELLO is even read
                                        ←   PROOF  mac("listener"), HELLO or REFUSED

A *mac* is HMAC-SHA256 under the secret over the role of who sends it, both nonces, what TLS knows of this
very connection (``tls-unique``, empty without TLS), and the frame that it vouches for; a ``HELLO`` names
cluster, node, lane and the node that is looked for. So nothing that was heard on one connection, or was
sent by one end, proves anything on another, or for the other end; with TLS a relay proves nothing either.
Every part is preceded by its length, so that no two lists of parts are the same bytes.

The dialler proves first: whoever only knows the port learns nothing that a guess could be tried on.

Secrets come from a file, one per line. The first proves; all are accepted, and the listener answers with the
one that the dialler used. The line ``allow-none`` stands for no secret at all; by its means a cluster gets a
secret, or loses it, node by node (``docs/tls.md``).

Without TLS the secret guards the door and nothing behind it: who can change packets under way can change them
after the proof as well.
"""

from __future__ import annotations

import hmac
import secrets as system
from typing import Any, Final, NamedTuple

from kvnode.errors import RemoteProtocolError, SettingError
from kvnode.transport import framing

ALLOW_NONE: Final = "allow-none"
SECRET_CHARS_MIN: Final = 16
SECRET_CHARS_MAX: Final = 1024
SECRETS_MAX: Final = 16
"""Each failed proof is compared with all."""
NONCE_BYTES: Final = 32
MAC_BYTES: Final = 32
VERSION: Final = 1
_MAGIC: Final = "kvnode secret"
_CONTEXT: Final = b"kvnode peer secret v1"
NO_PROOF: Final = (
    "the peer did not prove the peer secret: give it the cluster's --peer-secret-file, "
    "or KVNODE_PEER_SECRET"
)
NO_SECRET_HERE: Final = (
    "this node has no peer secret: give it the cluster's --peer-secret-file, or KVNODE_PEER_SECRET"
)
WRONG_SECRET: Final = (
    "the peer secrets differ: some line of --peer-secret-file must be the other node's first one"
)
BODY_BYTES_MAX: Final = framing.HELLO_BYTES_MAX


class Secrets(NamedTuple):
    """What a node proves with, and what it accepts."""

    proving: bytes | None = None
    """None: this node introduces itself without a proof."""
    accepted: tuple[bytes, ...] = ()
    none_accepted: bool = True
    """Whether a peer without a proof is let in."""

    def __repr__(self) -> str:
        """Say how many, never which."""
        return f"Secrets({len(self.accepted)} accepted, none_accepted={self.none_accepted})"


def parse_secrets(text: str, where: str) -> Secrets:
    """Read secrets, one per line; empty lines and those that begin with ``#`` are skipped.

    Raises:
        SettingError: None in it, too many, or one too short to be one. The text never shows any.
    """
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not any(line != ALLOW_NONE for line in lines):
        raise SettingError(f"{where}: no secret in it; `kvnode tls secret` makes one")
    if len(lines) > SECRETS_MAX:
        raise SettingError(f"{where}: {len(lines)} secrets, at most {SECRETS_MAX} are accepted")
    for number, line in enumerate(lines, 1):
        if line != ALLOW_NONE and not SECRET_CHARS_MIN <= len(line) <= SECRET_CHARS_MAX:
            raise SettingError(
                f"{where}: secret {number} has {len(line)} characters; "
                f"{SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} are needed"
            )
    first = lines[0]
    return Secrets(
        proving=None if first == ALLOW_NONE else first.encode(),
        accepted=tuple(line.encode() for line in lines if line != ALLOW_NONE),
        none_accepted=ALLOW_NONE in lines,
    )


def challenge_frame(nonce: bytes) -> tuple[Any, ...]:
    """Return the frame that asks the other end for a proof."""
    return (framing.CHALLENGE, _MAGIC, VERSION, nonce)


def parse_challenge(frame: tuple[Any, ...]) -> bytes:
    """Return the other end's nonce.

    Raises:
        RemoteProtocolError: It is no challenge, or one of a version that this build does not know.
    """
    if len(frame) < 4 or frame[0] != framing.CHALLENGE or frame[1] != _MAGIC:
        raise RemoteProtocolError("not a challenge for the peer secret")
    _, _, version, nonce = frame[:4]
    if version != VERSION:
        raise RemoteProtocolError(
            f"peer secret version {version!r:.20}, this build knows {VERSION}"
        )
    if type(nonce) is not bytes or len(nonce) != NONCE_BYTES:
        raise RemoteProtocolError("a challenge without a nonce of the right length")
    return nonce


def parse_proof(frame: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Return the mac and the frame's body that it vouches for.

    Raises:
        RemoteProtocolError: It is no proof.
    """
    if len(frame) != 3 or frame[0] != framing.PROOF:
        raise RemoteProtocolError("not a proof of the peer secret")
    _, mac, body = frame
    if type(mac) is not bytes or len(mac) != MAC_BYTES:
        raise RemoteProtocolError("a proof without a code of the right length")
    if type(body) is not bytes or not 0 < len(body) <= BODY_BYTES_MAX:
        raise RemoteProtocolError("a proof without a frame")
    return mac, body


class Proof:
    """One connection's exchange: holds the nonces, makes the own proof, checks the other's."""

    __slots__ = ("_channel", "_dialed", "_nonce", "_secret", "_secrets", "_theirs")

    def __init__(self, secrets: Secrets, *, dialed: bool, channel: bytes) -> None:
        """Draw a nonce.

        Args:
            secrets: As they are now; a later reload does not change this exchange.
            dialed: Which end this is.
            channel: TLS's channel binding; empty without TLS.
        """
        self._secrets = secrets
        self._dialed = dialed
        self._channel = channel
        self._nonce = system.token_bytes(NONCE_BYTES)
        self._theirs: bytes | None = None
        self._secret = secrets.proving if dialed else None
        """What our own proof is made with; a listener learns it from the dialler's."""

    def challenge(self) -> bytes:
        """Return our challenge, packed."""
        return framing.pack_frame(challenge_frame(self._nonce))

    def on_challenge(self, frame: tuple[Any, ...]) -> None:
        """Take the other end's nonce.

        Raises:
            RemoteProtocolError: Malformed, or our own nonce came back.
        """
        nonce = parse_challenge(frame)
        if self._theirs is not None:
            raise RemoteProtocolError("a second challenge")
        if hmac.compare_digest(nonce, self._nonce):
            raise RemoteProtocolError("our own nonce came back as a challenge")
        self._theirs = nonce

    def prove(self, frame: bytes) -> bytes:
        """Return a packed frame wrapped into our proof, packed."""
        assert self._secret is not None, "a listener answers a proof, a dialler has a secret"
        body = frame[framing.HEADER_BYTES :]
        mac = self._mac(self._secret, self._dialed, body)
        return framing.pack_frame((framing.PROOF, mac, body), framing.STRANGER_BYTES_MAX)

    def check(self, frame: tuple[Any, ...]) -> bytes | None:
        """Return the body that the other end vouched for, or None when it does not know the secret.

        Raises:
            RemoteProtocolError: Malformed, or before its challenge.
        """
        mac, body = parse_proof(frame)
        if self._theirs is None:
            raise RemoteProtocolError("a proof before its challenge")
        allowed = self._secrets.accepted if not self._dialed else (self._secret or b"",)
        found = None
        for secret in allowed:  # always all of them: the time says nothing about which one it was
            if hmac.compare_digest(mac, self._mac(secret, not self._dialed, body)):
                found = secret
        if found is None:
            return None
        self._secret = found
        return body

    @property
    def is_challenged(self) -> bool:
        """Whether the other end's nonce is known."""
        return self._theirs is not None

    def _mac(self, secret: bytes, dialed: bool, body: bytes) -> bytes:
        assert self._theirs is not None, "both nonces are known before any proof"
        nonces = (self._nonce, self._theirs) if self._dialed else (self._theirs, self._nonce)
        role = b"dialler" if dialed else b"listener"
        parts = (_CONTEXT, role, *nonces, self._channel, body)
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(secret, message, "sha256")

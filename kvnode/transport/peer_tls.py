"""TLS between nodes: whose certificate is good for what, and what to tell an operator when one is not.

OpenSSL verifies at both ends that the other's certificate leads to the CA. That alone would let everybody
in whom the CA ever signed something for, a client of the HTTP port as well as a node. So the name counts
too: the dialler wants a certificate for the name that it dials, the listener one for the host at which the
dialler says it lives; or both one for ``tls_server_name``, where no certificate could name the addresses.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from kvnode.addresses import parse_address
from kvnode.ports import Hello
from kvnode.tls import Contexts, certificate_names, matches
from kvnode.transport.handshake import Refusal

PLAIN_REFUSED = (
    "this node's peer port speaks TLS only: give the other one --tls-cert-file, --tls-key-file and "
    "--tls-ca-file as well"
)
SPEAKS_TLS = (
    "the other end speaks TLS and this node does not: give it --tls-cert-file, --tls-key-file and "
    "--tls-ca-file"
)
NAMES_SHOWN = 6


class PeerTls:
    """What the transport needs to know of TLS; the contexts of the moment come from elsewhere."""

    def __init__(
        self, contexts: Callable[[], Contexts], *, server_name: str = "", required: bool = True
    ) -> None:
        """``server_name``: what every node's certificate must be for; empty: its own host.

        ``required``: whether plain connections are refused, and none are made.
        """
        self._contexts = contexts
        self.server_name = server_name
        self.required = required

    def server(self) -> ssl.SSLContext:
        """The context for a connection that is being accepted."""
        context = self._contexts().peer_server
        assert context is not None, "built for peers"
        return context

    def client(self) -> ssl.SSLContext:
        """The context for a connection that is being made."""
        context = self._contexts().peer_client
        assert context is not None, "built for peers"
        return context

    def judge(
        self, certificate: Mapping[str, Any] | None, theirs: Hello
    ) -> tuple[Refusal, str] | None:
        """Decide whether a dialler's certificate is one of this cluster's nodes, and of this one.

        Args:
            certificate: As ``getpeercert`` returns it; None or empty: a plain connection, or none was shown.
            theirs: What the dialler says about itself.
        """
        if not certificate:
            return (Refusal.TLS, PLAIN_REFUSED) if self.required else None
        try:
            wanted = self.server_name or parse_address(theirs.address).host
        except ValueError:
            wanted = theirs.address
        if matches(certificate, wanted):
            return None
        text = f"the certificate is for {shown(certificate)}, not for {wanted}"
        if not self.server_name:
            text += (
                ", where the node says it lives: change its --advertise, or give all nodes a "
                "--tls-server-name"
            )
        return Refusal.CERTIFICATE, text


def shown(certificate: Mapping[str, Any]) -> str:
    """Return a certificate's names for a log line; they come from somebody else, so not all of them."""
    names = certificate_names(certificate)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(name[:80] for name in names[:NAMES_SHOWN]) or "no name at all") + more


def why_not(error: Exception, name: str) -> str:
    """Say in a sentence why a dial failed; what is no matter of TLS is said as it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_CODES:
            return (
                f"its certificate is not for {name}: make it so, or give all nodes a --tls-server-name "
                "that is in every node's certificate"
            )
        return (
            f"its certificate is not accepted: {error.verify_message}; it must lead to a CA in "
            "--tls-ca-file"
        )
    if isinstance(error, ssl.SSLError):
        if error.reason in _PLAIN_REASONS:
            return (
                "it does not speak TLS: give it --tls-cert-file, --tls-key-file and --tls-ca-file"
            )
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, ConnectionAbortedError) and "longer than" in str(error):
        return "no TLS handshake in time"
    if isinstance(error, ConnectionAbortedError | ConnectionResetError):
        return f"it closed the connection instead of shaking hands ({error})"
    return str(error)


_NAME_CODES = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH."""
_PLAIN_REASONS = frozenset(
    {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)

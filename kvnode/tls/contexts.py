"""From files to contexts of ``ssl``, proved by a trial handshake before anybody else meets them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvnode.errors import SettingError
from kvnode.tls.names import certificate_names

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which Python has no name for."""
_STEPS_MAX = 16
"""Flights of a handshake in memory; TLS 1.3 needs three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the certificate is, and what it is used for."""

    cert: str
    """The leaf, then its intermediates, PEM."""
    key: str
    """Its private key, PEM, not encrypted."""
    ca: str = ""
    """Certificates that a peer's, or a client's, must lead to; empty: none."""
    peers: bool = True
    """Used between nodes, so that it must be good for both ends, under our own CA."""
    verify_clients: bool = False
    """HTTP clients are asked for a certificate of the CA."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that are read."""
        return tuple(path for path in (self.cert, self.key, self.ca) if path)


class Leaf(NamedTuple):
    """What is to be known about our own certificate."""

    names: tuple[str, ...]
    not_before: float
    """Seconds since 1970."""
    not_after: float
    ca_not_after: float
    """When the last of the CA's certificates ends; infinity without a CA."""
    serial: str


class Contexts(NamedTuple):
    """What new connections use. Never changed: a new certificate gets new ones."""

    peer_server: ssl.SSLContext | None
    """For accepted connections of the peer port; None: not used between nodes."""
    peer_client: ssl.SSLContext | None
    """For dialling peers; checks the name."""
    http: ssl.SSLContext
    leaf: Leaf


def build(files: TlsFiles) -> Contexts:
    """Read the files and try them out. Blocks for the disk and for some milliseconds of arithmetic.

    A certificate that is not valid *yet* or *any more* passes: refusing to start would not make it
    better, and the next one may be on its way. ``Leaf`` says when.

    Raises:
        SettingError: They cannot be used. The text begins with the setting to look at.
    """
    _readable(files)
    http = _server(files, verify=False)
    if files.verify_clients:
        _trust(http, files.ca)
        # Optional, because probes of the kubelet show none; ``http`` refuses everything else to them.
        http.verify_mode = ssl.CERT_OPTIONAL
        _no_resumption(http)
    http.set_alpn_protocols(["http/1.1"])
    server = client = None
    if files.peers:
        server = _server(files, verify=True)
        _no_resumption(server)
        client = _client(files)
    return Contexts(server, client, http, _try_out(files))


def _readable(files: TlsFiles) -> None:
    for flag, path in (
        ("--tls-cert-file", files.cert), ("--tls-key-file", files.key), ("--tls-ca-file", files.ca)
    ):  # fmt: skip
        if not path and flag == "--tls-ca-file":
            continue
        try:
            with Path(path).open("rb") as file:
                file.read(1)
        except OSError as error:
            raise SettingError(f"{flag}: cannot read {path}: {error.strerror}") from error


def _server(files: TlsFiles, *, verify: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _bound(context)
    _own(context, files)
    if verify:
        _trust(context, files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name by itself
    _bound(context)
    _own(context, files)
    _trust(context, files.ca)
    return context


def _bound(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # As Go does: whatever stands in the CA file is trusted, also an intermediate without its root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _no_resumption(context: ssl.SSLContext) -> None:
    """A resumed session is not verified again, so it would outlive the CA that admitted it."""
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def _own(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"--tls-key-file: the key in {files.key} does not belong to {files.cert}"
        elif error.reason == "EE_KEY_TOO_SMALL" or error.reason == "CA_MD_TOO_WEAK":
            text = f"--tls-cert-file: {files.cert} is too weak: {error.reason}"
        else:
            text = (
                f"--tls-cert-file, --tls-key-file: no PEM certificate with its key in {files.cert}, "
                f"{files.key}: {error.reason or error}"
            )
        raise SettingError(text) from error


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise SettingError("--tls-key-file: the key is encrypted; give one without a pass phrase")


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingError(
            f"--tls-ca-file: no PEM certificate in {path}: {error.reason or error}"
        ) from error


# -- the trial --------------------------------------------------------------------------------------


def _try_out(files: TlsFiles) -> Leaf:
    """Shake hands with ourselves; return what the other end saw.

    Raises:
        SettingError: Our own CA would not let us in.
    """
    server = _server(files, verify=files.peers)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # peers check it against the name that they dial
    _bound(client)
    if files.peers:
        _own(client, files)
    # A certificate from elsewhere, as for browsers, is only read: then it vouches for itself.
    _trust(client, files.ca if files.peers else files.cert)
    for context in (server, client):
        context.verify_flags |= _NO_CHECK_TIME
    try:
        certificate = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        raise SettingError(
            f"--tls-cert-file: {files.cert} is not accepted under --tls-ca-file {files.ca}: "
            f"{error.verify_message}. It must be signed by that CA, for servers and for clients"
        ) from error
    except ssl.SSLError as error:
        raise SettingError(f"--tls-cert-file: {files.cert}: {error.reason or error}") from error
    return Leaf(
        names=certificate_names(certificate),
        not_before=ssl.cert_time_to_seconds(certificate["notBefore"]),
        not_after=ssl.cert_time_to_seconds(certificate["notAfter"]),
        ca_not_after=_ca_not_after(client) if files.peers else float("inf"),
        serial=str(certificate.get("serialNumber", "")),
    )


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, Any]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="kvnode"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = set()
    for _ in range(_STEPS_MAX):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            return ends[0].getpeercert() or {}
    raise AssertionError("a handshake in memory did not end")


def _ca_not_after(context: ssl.SSLContext) -> float:
    ends = [ssl.cert_time_to_seconds(str(ca["notAfter"])) for ca in context.get_ca_certs()]
    return max(ends, default=float("inf"))

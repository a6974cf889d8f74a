"""Makes certificate authorities and certificates: for ``kvnode tls``, ``kvnode dev --tls``, and tests.

The only module that needs ``cryptography``, and imported only by those who make something: a running node
reads certificates with the interpreter's own ``ssl``. Keys are ECDSA over P-256: a handshake costs a tenth
of what one with RSA does, and a node's loop pays for each. Everything is written so that a reader never finds
half of a file, keys for their owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvnode.errors import BadRequest

CA_DAYS = 3650
CERT_DAYS = 365
_SKEW = datetime.timedelta(minutes=5)
"""Certificates begin a little in the past: the clock that reads them may be behind."""
_NAMES_MAX = 256


class Pair(NamedTuple):
    """A certificate and its key, PEM."""

    cert: bytes
    key: bytes


def make_secret() -> str:
    """Return a new peer secret: 256 bits, printable."""
    return secrets.token_urlsafe(32)


def make_ca(name: str = "kvnode CA", days: int = CA_DAYS) -> Pair:
    """Make a certificate authority that signs nodes and clients, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def make_certificate(
    ca: Pair,
    name: str,
    hosts: Sequence[str] = (),
    *,
    days: int = CERT_DAYS,
    server: bool = True,
) -> Pair:
    """Make a certificate for a node, or for a client.

    Args:
        ca: Who signs.
        name: Common name; only people read it.
        hosts: DNS names, also with a star as their first label, and IP addresses.
        days: How long it is good; never longer than the CA itself.
        server: For a node, which is a server and a client to the others; False: for a client only.

    Raises:
        BadRequest: A node without a host, a host that is none, or a CA that cannot sign.
    """
    if server and not hosts:
        raise BadRequest("a node's certificate needs at least one name or address")
    if len(hosts) > _NAMES_MAX:
        raise BadRequest(f"at most {_NAMES_MAX} names fit into a certificate")
    authority, authority_key = _load(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if server:
        purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        _builder(
            _subject(name), authority.subject, key.public_key(), days, authority.not_valid_after_utc
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    if hosts:
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _pair(builder.sign(authority_key, hashes.SHA256()), key)


def write_file(path: Path, data: bytes, *, private: bool) -> None:
    """Write a file so that nobody ever reads half of it; a private one is for its owner only.

    Raises:
        OSError: From the file system.
    """
    fresh = path.with_name(path.name + ".new")
    mode = 0o600 if private else 0o644
    number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def expiry(cert: bytes) -> datetime.datetime:
    """Return when a certificate ends."""
    return x509.load_pem_x509_certificate(cert).not_valid_after_utc


def hosts(cert: bytes) -> list[str]:
    """Return the DNS names and addresses that a certificate is for."""
    try:
        extension = x509.load_pem_x509_certificate(cert).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    no_later: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    if no_later is not None:
        end = min(end, no_later)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _SKEW)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    # A common name holds 64 characters; a pod's full name is longer.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.rstrip(".").removeprefix("*.").split(".")
    if not all(label and len(label) <= 63 and set(label) <= _LABEL for label in labels):
        raise BadRequest(f"{host!r}: neither a DNS name nor an IP address")
    return x509.DNSName(host.rstrip("."))


_LABEL = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def _load(ca: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(ca.cert)
        key = serialization.load_pem_private_key(ca.key, password=None)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"no certificate authority: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise BadRequest("the authority's key is neither ECDSA nor RSA")
    if key.public_key() != certificate.public_key():
        raise BadRequest("the authority's key does not belong to its certificate")
    return certificate, key


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        cert=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )

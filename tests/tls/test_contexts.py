import ssl
import time
from pathlib import Path

import pytest

from kvnode.errors import SettingError
from kvnode.tls import TlsFiles, build, certificate_names, matches
from kvnode.tls.authority import make_certificate
from tests.tls.conftest import HOSTS, Files, ca


def plan(files: Files, **changes):
    values = {"cert": files.cert, "key": files.key, "ca": files.ca, **changes}
    return TlsFiles(**values)


def refused(files: Files, **changes) -> str:
    with pytest.raises(SettingError) as error:
        build(plan(files, **changes))
    return str(error.value)


def test_the_leaf_says_what_an_operator_asks(files):
    contexts = build(plan(files))
    assert contexts.leaf.names == HOSTS
    assert 29 * 86400 < contexts.leaf.not_after - time.time() < 31 * 86400
    assert contexts.leaf.ca_not_after > contexts.leaf.not_after
    assert contexts.leaf.serial


def test_old_versions_and_resumption_are_off(files):
    contexts = build(plan(files, verify_clients=True))
    for context in (contexts.peer_server, contexts.peer_client, contexts.http):
        assert context is not None
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert contexts.peer_server is not None
    assert contexts.peer_server.verify_mode is ssl.CERT_REQUIRED
    assert contexts.peer_server.num_tickets == 0
    assert contexts.peer_client is not None
    assert contexts.peer_client.check_hostname
    assert contexts.http.verify_mode is ssl.CERT_OPTIONAL
    assert contexts.http.num_tickets == 0


def test_a_missing_file_is_named(files):
    Path(files.key).unlink()
    assert refused(files).startswith(f"--tls-key-file: cannot read {files.key}: No such file")


def test_the_key_of_another_certificate_is_refused(files):
    other = make_certificate(ca(), "other", HOSTS)
    Path(files.key).write_bytes(other.key)
    assert "does not belong" in refused(files)


def test_a_certificate_of_another_ca_is_refused(files):
    files.trust("second")
    text = refused(files)
    assert "is not accepted under --tls-ca-file" in text
    assert "unable to get local issuer" in text


def test_a_certificate_for_clients_only_is_refused(files):
    """It could dial, and nobody could dial it."""
    files.issue(server=False)
    assert "for servers and for clients" in refused(files)


def test_rubbish_is_refused(files):
    Path(files.cert).write_text("hello")
    assert refused(files).startswith("--tls-cert-file")
    files.issue()
    Path(files.ca).write_text("hello")
    assert refused(files).startswith("--tls-ca-file: no PEM certificate in")


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_pass_phrase(files):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), password=None)
    Path(files.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "encrypted" in refused(files)


def test_an_expired_certificate_is_read_and_said_to_be_expired(files):
    """Not starting would not renew it."""
    files.issue(days=-1)
    assert build(plan(files)).leaf.not_after < time.time()


def test_a_certificate_from_elsewhere_serves_http_alone(files):
    """As from a public CA, whose other customers are no nodes of ours."""
    files.trust("second")
    contexts = build(plan(files, ca="", peers=False))
    assert contexts.peer_server is None
    assert contexts.peer_client is None
    assert contexts.leaf.names == HOSTS
    build(plan(files, peers=False, verify_clients=True))


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("kvnode-0.kvnode.test.svc.cluster.local", True),
        ("kvnode-0.kvnode.test.svc.cluster.local.", True),
        ("a.b.kvnode.test.svc.cluster.local", False),
        ("kvnode.test.svc.cluster.local", False),
        (".kvnode.test.svc.cluster.local", False),
        ("", False),
        ("0:0:0:0:0:0:0:1", True),
        ("[::1]", True),
        ("kvnode.local", False),
    ],
)
def test_names(host, fits):
    certificate = {
        "subject": ((("commonName", "kvnode.local"),),),
        "subjectAltName": (
            *(("IP Address" if name == "127.0.0.1" else "DNS", name) for name in HOSTS),
            ("IP Address", "0:0:0:0:0:0:0:1"),
            ("DNS", "*.local"),
            ("URI", "spiffe://kvnode.local"),
        ),
    }
    assert matches(certificate, host) is fits


def test_only_names_of_hosts_count():
    certificate = {"subjectAltName": (("DNS", "a"), ("URI", "u"), ("IP Address", "::1"))}
    assert certificate_names(certificate) == ("a", "::1")
    assert certificate_names({}) == ()

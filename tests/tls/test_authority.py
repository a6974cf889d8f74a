import stat
from pathlib import Path

import pytest

from kvnode.errors import BadRequest
from kvnode.tls.authority import (
    Pair,
    expiry,
    make_ca,
    make_certificate,
    make_secret,
    write_file,
)
from kvnode.transport.secret import parse_secrets
from tests.tls.conftest import ca


def test_a_certificate_never_outlives_its_ca():
    authority = make_ca(days=5)
    assert expiry(make_certificate(authority, "n", ("h",), days=99).cert) == expiry(authority.cert)


@pytest.mark.parametrize("host", ["", "a b", "a..b", "x" * 64, "a/b", "*", "*.*.a"])
def test_what_is_no_host_is_refused(host):
    with pytest.raises(BadRequest):
        make_certificate(ca(), "n", (host,))


def test_a_node_needs_a_name_and_a_client_none():
    with pytest.raises(BadRequest):
        make_certificate(ca(), "n")
    make_certificate(ca(), "n" * 100, server=False)


def test_a_ca_must_be_one():
    with pytest.raises(BadRequest):
        make_certificate(Pair(b"x", b"y"), "n", ("h",))
    with pytest.raises(BadRequest, match="does not belong"):
        make_certificate(Pair(ca().cert, ca("second").key), "n", ("h",))


def test_keys_are_for_their_owner_only(tmp_path: Path):
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_file(path, b"new", private=True)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_secret_that_we_make_is_one_that_we_take():
    assert parse_secrets(make_secret(), "x").accepted
    assert make_secret() != make_secret()

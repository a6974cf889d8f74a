"""``kvnode tls``, and what clients need to speak with a node that uses what it made."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvnode.cli.commands import app
from kvnode.cli.tls_options import base_addresses
from kvnode.tls import TlsFiles, build
from kvnode.transport.secret import parse_secrets

MODES = {"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600}


def run(*words: str, code: int = 0, **env: str) -> str:
    result = CliRunner().invoke(app, list(words), env=env)
    assert result.exit_code == code, result.output
    return result.output


def test_authority_and_certificate_serve_a_node(tmp_path: Path) -> None:
    where = str(tmp_path / "tls")
    run("tls", "ca", "create", "--dir", where, "--name", "mine", "--days", "20")
    run("tls", "cert", "create", "--dir", where, "--host", "*.kv.svc", "--host", "10.0.0.1")
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "tls").iterdir()}
    assert found == MODES
    leaf = build(
        TlsFiles(cert=where + "/tls.crt", key=where + "/tls.key", ca=where + "/ca.crt")
    ).leaf
    assert leaf.names == ("*.kv.svc", "10.0.0.1", "localhost", "127.0.0.1")
    assert leaf.not_after == leaf.ca_not_after, "not beyond the authority"


def test_a_client_gets_no_name_of_a_host(tmp_path: Path) -> None:
    where = str(tmp_path)
    run("tls", "ca", "create", "--dir", where)
    run("tls", "cert", "create", "--dir", where, "--client", "--name", "alice")
    context = ssl.create_default_context(cafile=where + "/ca.crt")
    context.load_cert_chain(where + "/alice.crt", where + "/alice.key")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    where = str(tmp_path)
    run("tls", "ca", "create", "--dir", where)
    before = (tmp_path / "ca.key").read_bytes()
    assert "exist already" in run("tls", "ca", "create", "--dir", where, code=1)
    assert (tmp_path / "ca.key").read_bytes() == before
    run("tls", "ca", "create", "--dir", where, "--force")
    assert (tmp_path / "ca.key").read_bytes() != before


def test_what_is_missing_or_wrong_is_said(tmp_path: Path) -> None:
    where = str(tmp_path)
    assert "kvnode tls ca create" in run("tls", "cert", "create", "--dir", where, code=1)
    run("tls", "ca", "create", "--dir", where)
    assert "neither a DNS name" in run(
        "tls", "cert", "create", "--dir", where, "--host", "a b", code=2
    )
    (tmp_path / "file").write_text("")
    run("tls", "ca", "create", "--dir", where + "/file/x", code=1)


def test_a_secret_is_good_and_alone_on_stdout() -> None:
    assert len(parse_secrets(run("tls", "secret"), "x").accepted) == 1


@pytest.mark.parametrize("words", [("kv", "get"), ("members",), ("operator", "raft", "list-peers")])
def test_every_command_that_asks_has_the_options(words: tuple[str, ...]) -> None:
    text = run(*words, "--help")
    for option in ("--ca-file", "--client-cert", "--client-key", "--tls-server-name"):
        assert option in text
    assert "--ca-file" not in run("tls", "secret", "--help")


def test_consuls_switch_makes_addresses_https(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KVNODE_HTTP_SSL", "CONSUL_HTTP_SSL"):
        monkeypatch.delenv(name, raising=False)
    given = "a:1, http://b:2,https://c:3"
    assert base_addresses(given) == ["a:1", "http://b:2", "https://c:3"]
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    assert base_addresses(given) == ["https://a:1", "https://b:2", "https://c:3"]
    monkeypatch.setenv("KVNODE_HTTP_SSL", "false")
    assert base_addresses(given) == ["a:1", "http://b:2", "https://c:3"]


def test_a_file_that_cannot_be_used_is_a_wrong_command(tmp_path: Path) -> None:
    text = run(
        "kv", "get", "k", "--http-addr", "https://127.0.0.1:1", "--ca-file", "nowhere.crt", code=2
    )
    assert "nowhere.crt: no CA certificates" in text

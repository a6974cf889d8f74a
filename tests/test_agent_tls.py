"""Certificates and secrets of a node: what is loaded, taken over, refused, measured and warned of."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from kvnode import agent_tls
from kvnode.agent_tls import Security, read_secrets, tls_files
from kvnode.config import SettingError, load
from tests.tls.conftest import Files

ONE, TWO = "first-secret-0123456789", "second-secret-0123456789"


@pytest.fixture
def files(tmp_path):
    found = Files(tmp_path / "tls")
    found.issue()
    return found


def config(*flags, files=None):
    given = ["--data-dir=d", *flags]
    if files is not None:
        given += [
            f"--tls-cert-file={files.cert}",
            f"--tls-key-file={files.key}",
            f"--tls-ca-file={files.ca}",
        ]
    return load(given, {}).config


def metrics(security):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in security.collector().collect()
        for sample in family.samples
    }


def test_without_settings_nothing_is_there():
    security = Security(config())
    assert security.peers is None
    assert security.http is None
    assert security.secrets.none_accepted
    assert metrics(security) == {}


def test_settings_choose_the_ports(files):
    both = Security(config(files=files))
    assert both.peers is not None
    assert both.peers.required
    assert both.http is not None
    peers_only = Security(config("--no-tls-http", files=files))
    assert peers_only.peers is not None
    assert peers_only.http is None
    http_only = Security(config("--tls-peers=off", files=files))
    assert http_only.peers is None
    assert http_only.http is not None
    prefer = Security(config("--tls-peers=prefer", "--tls-server-name=n", files=files)).peers
    assert prefer is not None
    assert (prefer.required, prefer.server_name) == (False, "n")


def test_a_ca_that_is_used_for_nothing_is_not_read(files):
    assert tls_files(config("--tls-peers=off", files=files)).ca == ""
    assert tls_files(config("--tls-peers=off", "--tls-verify-clients", files=files)).ca == files.ca


def test_secrets_come_from_the_file_before_the_setting(tmp_path):
    path = tmp_path / "secret"
    path.write_text(ONE + "\n")
    both = config(f"--peer-secret-file={path}", f"--peer-secret={TWO}")
    assert read_secrets(both).proving == ONE.encode()
    assert read_secrets(config(f"-encrypt={TWO}")).proving == TWO.encode()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="is no text"):
        read_secrets(both)
    path.unlink()
    with pytest.raises(SettingError, match="cannot read"):
        read_secrets(both)


async def test_changes_are_taken_over_and_counted(files, tmp_path):
    path = tmp_path / "secret"
    path.write_text(ONE)
    security = Security(config(f"--peer-secret-file={path}", files=files))
    told = []
    security.on_secrets = told.append
    await security.look()
    assert (metrics(security)["kvnode_tls_reloads_total", "certificate"], told) == (0, [])
    before = security.http()
    files.issue()
    path.write_text(f"{TWO}\n{ONE}\n")
    with capture_logs() as logs:
        await security.look()
    assert security.http() is not before
    assert [secrets.proving for secrets in told] == [TWO.encode()]
    assert [entry["event"] for entry in logs] == ["certificate_reloaded", "peer_secret_reloaded"]
    assert TWO not in str(logs)
    files.break_key()
    path.write_text("short")
    with capture_logs() as logs:
        await security.look()
    found = metrics(security)
    for what in ("certificate", "peer_secret"):
        assert found["kvnode_tls_reloads_total", what] == 1
        assert found["kvnode_tls_reload_failures_total", what] == 1
    assert security.secrets.proving == TWO.encode()
    assert "short" not in str([entry for entry in logs if "secret" in entry["what"]])


async def test_files_are_looked_at_without_being_told(files, monkeypatch):
    monkeypatch.setattr(agent_tls, "LOOK_S", 0.01)
    security = Security(config(files=files))
    before = security.http()
    security.start()
    try:
        files.issue()
        async with asyncio.timeout(5):
            while security.http() is before:  # noqa: ASYNC110 - it is a thread that changes it
                await asyncio.sleep(0.01)
    finally:
        await security.stop()
        await security.stop()


@pytest.mark.parametrize(
    ("days_left", "event"),
    [
        (29, None),
        (6, None),
        (4, "certificate_expires"),
        (-1, "certificate_expired"),
        (40, "certificate_not_valid_yet"),
    ],
)
async def test_the_end_is_announced(files, days_left, event):
    """A certificate of 30 days: a sixth of that is five."""
    now = [time.time() + (30 - days_left) * 86400]
    security = Security(config(files=files), clock=lambda: now[0])
    left = metrics(security)["kvnode_tls_certificate_expiry_seconds",]
    assert left == pytest.approx(days_left * 86400, abs=600)
    with capture_logs() as logs:
        await security.look()
        await security.look()
    assert [entry["event"] for entry in logs] == ([event] if event else []), "once an hour"
    now[0] += 3601
    with capture_logs() as logs:
        await security.look()
    assert [entry["event"] for entry in logs] == ([event] if event else [])

"""Secrets that a Job makes: once, kept, and with rights to nothing else. Against the stand-in API server."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvnode.errors import ApiServerFailed
from kvnode.kubernetes import ApiServer, ApiSettings
from kvnode.kubernetes.secrets import Secrets, TlsWish
from kvnode.tls import authority
from tests.k8s import api_server

RIGHTS = [
    ("create", "secrets", ""),
    *((verb, "secrets", name) for verb in ("get", "patch") for name in ("kv-tls", "kv-tls-ca", "kv-peers")),
]  # fmt: skip
HOSTS = ("localhost", "*.kv-headless.default.svc.cluster.local", "127.0.0.1", "::1")
WISH = TlsWish("kv-tls", "kv-tls-ca", HOSTS, 90)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[api_server.ApiServer]:
    async with api_server.ApiServer(tmp_path) as made:
        yield made


def secrets(server: api_server.ApiServer, *rights: tuple[str, str, str]) -> Secrets:
    folder = server.account("job", *(rights or RIGHTS))
    settings = ApiSettings(url=server.url, statefulset="", credentials=str(folder))
    return Secrets(ApiServer(settings), settings)


async def test_a_peer_secret_is_made_once_and_kept(server: api_server.ApiServer) -> None:
    """A new one at an upgrade would part the pods that have it from those that have not."""
    job = secrets(server)
    assert await job.ensure_peer_secret("kv-peers", "secret") == "Secret kv-peers: made"
    made = server.secret("kv-peers")["secret"]
    assert len(made) >= 32
    assert await job.ensure_peer_secret("kv-peers", "secret") == "Secret kv-peers: kept"
    assert server.secret("kv-peers")["secret"] == made
    with pytest.raises(ApiServerFailed, match="has no token"):
        await job.ensure_peer_secret("kv-peers", "token")


async def test_two_jobs_at_once_agree(server: api_server.ApiServer) -> None:
    """The one that comes second takes what the first one made."""
    server.delay_s = 0.02
    said = await asyncio.gather(
        *(secrets(server).ensure_peer_secret("kv-peers", "secret") for _ in range(5))
    )
    assert sorted(said) == ["Secret kv-peers: kept"] * 4 + ["Secret kv-peers: made"]


async def test_a_certificate_is_made_that_peers_accept(
    server: api_server.ApiServer, tmp_path: Path
) -> None:
    """For every name, signed by the CA that is beside it, whose key is in a Secret of its own."""
    assert await secrets(server).ensure_certificate(WISH) == "Secret kv-tls: made"
    data = server.secret("kv-tls")
    assert data.keys() == {"tls.crt", "tls.key", "ca.crt"}
    assert set(authority.hosts(data["tls.crt"])) == set(HOSTS)
    assert server.objects["secrets", "kv-tls"]["type"] == "kubernetes.io/tls"
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    checked = await asyncio.to_thread(
        subprocess.run,
        ["openssl", "verify", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "tls.crt")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    assert server.secret("kv-tls-ca")["tls.crt"] == data["ca.crt"]
    assert (await secrets(server).ensure_certificate(WISH)).startswith("Secret kv-tls: kept, good")
    assert server.secret("kv-tls") == data


@pytest.mark.parametrize(
    ("was", "why"),
    [
        (WISH._replace(days=20), "ends in 1"),
        (WISH._replace(hosts=HOSTS[:1]), "not for *.kv-headless"),
    ],
)
async def test_a_certificate_is_renewed_by_the_same_ca(
    server: api_server.ApiServer, was: TlsWish, why: str
) -> None:
    """Peers with the old one and with the new one must go on trusting each other."""
    job = secrets(server)
    await job.ensure_certificate(was)
    before = server.secret("kv-tls")
    assert why in await job.ensure_certificate(WISH)
    after = server.secret("kv-tls")
    assert after["ca.crt"] == before["ca.crt"]
    assert after["tls.crt"] != before["tls.crt"]
    assert after["tls.key"] != before["tls.key"]
    assert "kept" in await job.ensure_certificate(WISH)


async def test_without_its_ca_a_certificate_is_not_renewed(server: api_server.ApiServer) -> None:
    """A new CA would part pods that have it from those that have not."""
    job = secrets(server)
    await job.ensure_certificate(WISH._replace(days=20))
    before = server.secret("kv-tls")
    del server.objects["secrets", "kv-tls-ca"]
    with pytest.raises(ApiServerFailed, match="bring it back"):
        await job.ensure_certificate(WISH)
    assert server.secret("kv-tls") == before
    assert ("secrets", "kv-tls-ca") not in server.objects


async def test_missing_rights_and_strange_secrets_are_said(server: api_server.ApiServer) -> None:
    """With what to do about it."""
    with pytest.raises(ApiServerFailed, match="Role with `create` on secrets"):
        await secrets(server, ("get", "secrets", "kv-peers")).ensure_peer_secret("kv-peers", "s")
    server.objects["secrets", "kv-peers"] = {"data": {"secret": "not base64!"}}
    with pytest.raises(ApiServerFailed, match="cannot be read"):
        await secrets(server).ensure_peer_secret("kv-peers", "secret")
    server.objects["secrets", "kv-tls"] = {
        "data": {"tls.crt": base64.b64encode(b"none").decode(), "ca.crt": "", "tls.key": ""}
    }
    with pytest.raises(ApiServerFailed, match="bring it back"):
        await secrets(server).ensure_certificate(WISH)


async def test_the_command_does_what_the_chart_asks_of_it(server: api_server.ApiServer) -> None:
    """As the Job calls it; exit code 1 and a reason when the API server is down."""
    folder = server.account("job", *RIGHTS)
    words = [
        sys.executable, "-m", "kvnode", "kubernetes", "ensure-secrets", "--kubernetes-api", server.url,
        "--kubernetes-credentials", str(folder), "--tls-secret=kv-tls", "--tls-days=90",
        *(f"--tls-name={host}" for host in HOSTS), "--peer-secret=kv-peers", "--peer-secret-key=secret",
    ]  # fmt: skip

    async def run() -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
        return process.returncode, said.decode()

    code, said = await run()
    assert (code, said.splitlines()) == (0, ["Secret kv-peers: made", "Secret kv-tls: made"])
    code, said = await run()
    assert code == 0
    assert "Secret kv-peers: kept" in said
    await server.stop()
    code, said = await run()
    assert code == 1
    assert "cannot be reached" in said

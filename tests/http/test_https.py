"""The HTTP port over TLS: both shells, clients' certificates, and who is turned away."""

import asyncio
import contextlib
import os
import shutil
import ssl
from pathlib import Path

import aiohttp
import pytest

from kvnode.client import ClientTls, KvnodeClient
from kvnode.errors import BadRequest, PeerUnreachable
from kvnode.http import HttpContext, HttpServer, HttpSettings
from kvnode.tls import TlsFiles, build
from tests.http.fake_replica import FakeReplica
from tests.tls.conftest import Files


@pytest.fixture
def files(tmp_path):
    found = Files(tmp_path / "tls")
    found.issue()
    return found


@pytest.fixture
def alice(tmp_path):
    found = Files(tmp_path / "alice")
    found.issue(hosts=(), server=False)
    return found


def plan(files, **changes):
    return TlsFiles(cert=files.cert, key=files.key, ca=files.ca, **changes)


def client_context(files, own=None):
    context = ssl.create_default_context(cafile=files.ca)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


class Secure:
    """A server over TLS; ``contexts`` may be exchanged while it runs."""

    def __init__(self, files, **settings):
        self.files = files
        self.refused = []
        verified = settings.get("clients_verified", False)
        self.contexts = build(plan(files, verify_clients=verified))
        self.server = HttpServer(
            HttpContext(
                replica=FakeReplica(),
                settings=HttpSettings(node_name="kvnode-0", close_grace_s=1.0, **settings),
                tls=lambda: self.contexts.http,
                tls_refused=self.refused.append,
            )
        )

    async def __aenter__(self):
        await self.server.start("127.0.0.1", 0)
        self.url = f"https://127.0.0.1:{self.server.port}"
        return self

    async def __aexit__(self, *_):
        await self.server.close()

    async def serial(self):
        """The serial number of the certificate that is shown now."""
        context = client_context(self.files)
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.port, ssl=context)
        shown = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return shown


async def ask(secure, method, path, own=None, **more):
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, secure.url + path, ssl=client_context(secure.files, own), **more
        ) as response,
    ):
        return response.status, await response.read()


@pytest.mark.parametrize("fast_path", [True, False])
async def test_keys_and_other_routes_over_tls(files, fast_path):
    async with Secure(files, fast_path=fast_path) as secure:
        async with aiohttp.ClientSession() as session:  # one connection goes through both shells
            for _ in range(2):
                for method, path, body in (
                    ("PUT", "/v1/kv/a", b"x" * 300_000),
                    ("GET", "/v1/kv/a?raw", None),
                    ("GET", "/v1/status/leader", None),
                ):
                    async with session.request(
                        method, secure.url + path, data=body, ssl=client_context(files)
                    ) as response:
                        assert response.status == 200
                        answer = await response.read()
                        if "raw" in path:
                            assert answer == b"x" * 300_000
        assert secure.refused == []


async def test_the_client_speaks_it(files):
    async with (
        Secure(files) as secure,
        KvnodeClient(secure.url, tls=ClientTls(ca_file=files.ca)) as client,
    ):
        assert await client.put("a", "b")
        pair = await client.get("a")
        assert pair is not None
        assert pair.value == b"b"
    assert secure.refused == []


async def test_a_client_without_the_ca_is_told_what_is_missing(files, tmp_path):
    other = Files(tmp_path / "other")
    other.issue("second")
    async with Secure(files) as secure:
        for tls, word in (
            (ClientTls(ca_file=other.ca), "--ca-file"),
            (ClientTls(ca_file=files.ca, server_name="elsewhere"), "--tls-server-name"),
        ):
            async with KvnodeClient(secure.url, timeout_s=5, patient=False, tls=tls) as client:
                with pytest.raises(PeerUnreachable, match=word) as error:
                    await client.put("a", "b")
                assert error.value.took_effect == "no"
        async with KvnodeClient(secure.url, tls=ClientTls(verify=False)) as client:
            assert await client.put("a", "b")


@pytest.mark.parametrize(
    "tls",
    [
        {"ca_file": "nowhere"},
        {"cert_file": "nowhere"},
        {"key_file": "nowhere"},
    ],
)
def test_files_of_a_client_are_checked_at_once(tls):
    with pytest.raises(BadRequest):
        KvnodeClient("https://127.0.0.1:1", tls=ClientTls(**tls))


async def test_plain_http_is_told_so(files):
    """As Consul's own server does."""
    async with Secure(files) as secure:
        address = secure.url.removeprefix("https://")
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"http://{address}/v1/kv/a", data=b"x") as response,
        ):
            assert response.status == 400
            text = await response.text()
            assert text == "Client sent an HTTP request to an HTTPS server.\n"
        assert [refusal.plain for refusal in secure.refused] == [True]


@pytest.mark.parametrize("fast_path", [True, False])
async def test_only_probes_get_through_without_a_certificate(files, alice, fast_path):
    """The kubelet shows none, and must not be told that the node is dead."""
    async with Secure(files, clients_verified=True, fast_path=fast_path) as secure:
        status, _ = await ask(secure, "GET", "/health/live")
        assert status == 200
        for method, path in (
            ("PUT", "/v1/kv/a"), ("GET", "/v1/kv/a"), ("GET", "/kv/a"), ("POST", "/kv/a"),
            ("GET", "/metrics"), ("GET", "/v1/status/leader"), ("GET", "/ui/"), ("GET", "/"),
            ("GET", "/health/../v1/kv/a"), ("GET", "//health/live"),
        ):  # fmt: skip
            body = b"x" if method in ("PUT", "POST") else None
            status, text = await ask(secure, method, path, data=body)
            assert status == 403, path
            assert b"--tls-ca-file" in text
        assert await ask(secure, "GET", "/v1/kv/a?raw", alice) == (404, b"")
        assert await ask(secure, "PUT", "/v1/kv/a", alice, data=b"x") == (200, b"true")
        assert await ask(secure, "GET", "/v1/kv/a?raw", alice) == (200, b"x")


async def test_no_way_leads_past_the_certificate(files, alice):
    """Neither a path that only begins like a probe's, nor a connection that asked for a probe before."""
    async with Secure(files, clients_verified=True) as secure:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", secure.server.port, ssl=client_context(files)
        )
        put = b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        for path in (b"/health/../v1/kv/a", b"/health/%2e%2e/v1/kv/a", b"/health/..%2fv1/kv/a"):
            writer.write(put % path)
        writer.write(put % b"/v1/kv/a" + put % b"/v1/kv/a")
        answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
        assert [answer[:3] for answer in answers] == [b"200", b"307", b"307", b"307", b"403"]
        assert await ask(secure, "GET", "/v1/kv/a?raw", alice) == (404, b"")
        writer.close()


async def test_a_certificate_of_another_ca_is_none(files, tmp_path):
    mallory = Files(tmp_path / "mallory")
    mallory.issue("second", hosts=(), server=False)
    async with Secure(files, clients_verified=True) as secure:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await ask(secure, "GET", "/health/live", mallory)
        assert "certificate was refused" in secure.refused[0].reason


async def test_a_new_certificate_is_shown_at_once(files):
    async with Secure(files) as secure, aiohttp.ClientSession() as session:
        url, context = secure.url + "/v1/status/leader", client_context(files)
        async with session.get(url, ssl=context) as response:
            assert response.status == 200
        before = await secure.serial()
        files.issue()
        secure.contexts = build(plan(files))
        assert await secure.serial() != before
        async with session.get(url, ssl=context) as response:
            assert response.status == 200, "what stands goes on"


async def test_a_stop_ends_handshakes_and_requests(files):
    async with Secure(files) as secure:
        idle = await asyncio.open_connection("127.0.0.1", secure.server.port)
        await asyncio.sleep(0)
        context = client_context(files)
        quiet = await asyncio.open_connection("127.0.0.1", secure.server.port, ssl=context)
    for reader, writer in (idle, quiet):
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def never_reads(files, fast_path):
    """A client that asks again and again and takes no answer: bounded, and cut in time."""
    async with Secure(files, write_timeout_s=0.4, fast_path=fast_path) as secure:
        assert (await ask(secure, "PUT", "/v1/kv/a", data=b"x" * 500_000))[0] == 200
        gate = secure.server.gate
        most = 0
        _, writer = await asyncio.open_connection(
            "127.0.0.1", secure.server.port, ssl=client_context(files), limit=1024
        )
        writer.write(b"GET /v1/kv/a?raw HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
        async with asyncio.timeout(8):
            while not gate.connections:  # noqa: ASYNC110 - a counter has no event
                await asyncio.sleep(0.005)
            while gate.connections:
                most = max(most, gate.answer_bytes)
                await asyncio.sleep(0.005)
        assert 0 < most < 20_000_000
        assert (gate.answer_bytes, gate.body_bytes, gate.requests) == (0, 0, 0)
        writer.transport.abort()


@pytest.mark.parametrize("fast_path", [True, False])
async def test_who_takes_no_answers_is_cut(files, fast_path):
    """RC-67: also the bytes that TLS holds are counted, and given back."""
    await never_reads(files, fast_path)


@pytest.mark.parametrize("fast_path", [True, False])
def test_who_takes_no_answers_is_cut_on_uvloop(files, fast_path):
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(never_reads(files, fast_path))


def test_the_same_on_uvloop(files, alice):
    uvloop = pytest.importorskip("uvloop")

    async def scenario():
        async with Secure(files, clients_verified=True) as secure:
            assert await ask(secure, "PUT", "/v1/kv/a", alice, data=b"x" * 300_000) == (
                200,
                b"true",
            )
            assert await ask(secure, "GET", "/v1/kv/a?raw", alice) == (200, b"x" * 300_000)
            assert (await ask(secure, "GET", "/v1/status/leader", alice))[0] == 200
            assert (await ask(secure, "GET", "/v1/kv/a"))[0] == 403
            assert (await ask(secure, "GET", "/health/live"))[0] == 200

    uvloop.run(scenario())


def consul_binary() -> str:
    """Consul's command line, where there is one: `benchmarks/get_consul.sh` fetches it."""
    cached = Path(__file__).parents[2] / ".cache/consul/root/usr/bin/consul"
    found = os.environ.get("CONSUL_BIN") or shutil.which("consul")
    if not found and not cached.exists():
        pytest.skip("there is no consul here: set CONSUL_BIN")
    return found or str(cached)


async def test_consuls_own_command_line_speaks_with_it(files, alice):
    binary = consul_binary()

    async def consul(secure, *words, **environment):
        process = await asyncio.create_subprocess_exec(
            binary, *words,
            env={"PATH": os.environ["PATH"], **environment},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    async with Secure(files, clients_verified=True) as secure:
        flags = [
            f"-http-addr={secure.url}", f"-ca-file={files.ca}",
            f"-client-cert={alice.cert}", f"-client-key={alice.key}",
        ]  # fmt: skip
        stored = (0, "Success! Data written to: a\n")
        assert await consul(secure, "kv", "put", *flags, "a", "b") == stored
        environment = {
            "CONSUL_HTTP_ADDR": secure.url.removeprefix("https://"),
            "CONSUL_HTTP_SSL": "true",
            "CONSUL_CACERT": files.ca,
            "CONSUL_CLIENT_CERT": alice.cert,
            "CONSUL_CLIENT_KEY": alice.key,
        }
        assert await consul(secure, "kv", "get", "a", **environment) == (0, "b\n")
        code, text = await consul(secure, "kv", "get", *flags[:2], "a")
        assert code == 1
        assert "403" in text
        code, text = await consul(secure, "kv", "get", flags[0], "a")
        assert code == 1
        assert "x509" in text

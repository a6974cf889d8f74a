"""The API server's answers, each as a value or as a sentence that says what to do."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvnode.errors import ApiServerFailed
from kvnode.kubernetes import ApiServer, ApiSettings
from kvnode.ports import Scale
from tests.k8s import api_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

GET = ("get", "statefulsets", "kvnode")
PATCH = ("patch", "pods", "")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys are slow to make: once."""
    return tmp_path_factory.mktemp("api")


@pytest.fixture
async def server(pki: Path) -> AsyncIterator[api_server.ApiServer]:
    async with api_server.ApiServer(pki) as made:
        made.statefulset("kvnode", 3)
        made.pod("kvnode-1")
        yield made


def settings_for(server: api_server.ApiServer, *rights: tuple[str, str, str]) -> ApiSettings:
    folder = server.account("kvnode", *rights)
    return ApiSettings(
        url=server.url,
        statefulset="kvnode",
        pod="kvnode-1",
        credentials=str(folder),
        timeout_s=30.0,
    )


def put(settings: ApiSettings, name: str, content: bytes | None) -> None:
    """Change a file of the service account; None: it is gone."""
    path = Path(settings.credentials, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def foreign_ca(folder: Path) -> bytes:
    return api_server.certificates(folder, ["localhost"])[0].read_bytes()


async def failure(settings: ApiSettings) -> str:
    with pytest.raises(ApiServerFailed) as caught:
        await ApiServer(settings).scale()
    return str(caught.value)


async def test_the_size_of_a_statefulset_is_read(server: api_server.ApiServer) -> None:
    api = ApiServer(settings_for(server, GET))
    assert await api.scale() == Scale("kvnode", 3, 0)
    server.statefulset("kvnode", 5, ordinals={"start": 2})
    assert await api.scale() == Scale("kvnode", 5, 2)
    path = "/apis/apps/v1/namespaces/default/statefulsets/kvnode"
    assert server.requests == [("GET", path)] * 2


async def test_the_token_and_the_ca_are_read_again_for_each_call(
    server: api_server.ApiServer,
) -> None:
    """The kubelet exchanges the token about once an hour."""
    settings = settings_for(server, GET)
    api = ApiServer(settings)
    await api.scale()
    server.rights["another"] = server.rights.pop("token-of-kvnode")
    assert "not accepted" in await failure(settings)
    put(settings, "token", b"another\n")
    assert (await api.scale()).replicas == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"replicas": None}, "does not say how large"),
        ({"replicas": -1}, "does not say how large"),
        ({"replicas": True}, "does not say how large"),
        ({"replicas": "3"}, "does not say how large"),
        ({"replicas": 3, "ordinals": {"start": "x"}}, "does not say how large"),
    ],
)
async def test_what_is_no_number_is_never_taken_for_one(
    server: api_server.ApiServer, spec: dict[str, object], said: str
) -> None:
    server.statefulset("kvnode", 3)
    server.objects["statefulsets", "kvnode"]["spec"] = spec
    assert said in await failure(settings_for(server, GET))


async def test_a_statefulset_on_its_way_out_has_no_size(server: api_server.ApiServer) -> None:
    """Its pods stop, and their volumes may be wanted again."""
    settings = settings_for(server, GET)
    found = server.objects["statefulsets", "kvnode"]
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert "being deleted" in await failure(settings)
    del server.objects["statefulsets", "kvnode"]
    assert "check kubernetes_statefulset" in await failure(settings)


async def test_missing_rights_name_the_role_to_give(server: api_server.ApiServer) -> None:
    said = await failure(settings_for(server))
    assert 'cannot get resource "statefulsets"' in said
    assert "Role with `get` on statefulsets, resourceNames [kvnode]" in said


@pytest.mark.parametrize("status", [429, 500, 503, 302])
async def test_an_ill_api_server_is_no_answer(server: api_server.ApiServer, status: int) -> None:
    server.fault = status
    assert "it is asked again" in await failure(settings_for(server, GET))


async def test_a_slow_api_server_is_given_up(server: api_server.ApiServer) -> None:
    settings = replace(settings_for(server, GET), timeout_s=0.1)
    server.delay_s = 0.5
    said = await failure(settings)
    assert "did not answer within 0.1 s" in said
    assert "NetworkPolicy" in said


async def test_an_api_server_that_is_down_is_said(server: api_server.ApiServer) -> None:
    settings = settings_for(server, GET)
    await server.stop()
    assert "cannot be reached" in await failure(settings)


@pytest.mark.parametrize("turns", range(4))
async def test_the_stand_in_forgets_nobody_who_comes_as_it_stops(
    server: api_server.ApiServer, turns: int
) -> None:
    """Pods ask it all the time, also in the turn in which a test ends."""
    with socket.create_connection(("127.0.0.1", server.port)):
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()
    for _ in range(10):  # it hears that the client has gone, and closes
        await asyncio.sleep(0)
    gc.collect()  # names what nobody has closed, and a warning is an error here


async def test_a_stranger_with_another_ca_gets_no_token(
    server: api_server.ApiServer, tmp_path: Path
) -> None:
    settings = settings_for(server, GET)
    other = foreign_ca(tmp_path)
    put(settings, "ca.crt", other)
    said = await failure(settings)
    assert "is not the API server" in said
    assert server.requests == []


@pytest.mark.parametrize("name", ["token", "ca.crt", "namespace"])
async def test_a_service_account_that_is_not_mounted_is_said(
    server: api_server.ApiServer, name: str
) -> None:
    settings = settings_for(server, GET)
    put(settings, name, None)
    said = await failure(settings)
    assert f"{settings.credentials}/{name}" in said
    assert "automountServiceAccountToken: true" in said


async def test_nonsense_and_floods_are_no_answer() -> None:
    """Whatever listens there."""
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[[[[",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (5 << 20),
        b"SSH-2.0-x\r\n",
        b"",
    ]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 16)
    port = listening.sockets[0].getsockname()[1]
    settings = ApiSettings(url=f"http://127.0.0.1:{port}", statefulset="kvnode", namespace="x")
    async with listening:
        while answers:
            await failure(settings)


async def test_an_open_port_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = ApiSettings(url=url, statefulset="s", namespace="x", timeout_s=0.1)
        assert "did not answer" in await failure(settings)


async def test_the_own_pod_is_labelled_and_keeps_its_other_labels(
    server: api_server.ApiServer,
) -> None:
    api = ApiServer(settings_for(server, PATCH))
    await api.label_pod({"kvnode/leader": "true"})
    labels = {"app.kubernetes.io/name": "kvnode", "kvnode/leader": "true"}
    assert server.labels("kvnode-1") == labels


async def test_a_label_without_the_right_says_which(server: api_server.ApiServer) -> None:
    with pytest.raises(ApiServerFailed, match="`patch` on pods"):
        await ApiServer(settings_for(server, GET)).label_pod({"kvnode/leader": "true"})


async def test_closing_answers_whoever_waits(server: api_server.ApiServer) -> None:
    server.delay_s = 5.0
    api = ApiServer(settings_for(server, GET))
    answers: list[object] = []
    api.ask_scale(lambda value, error: answers.append((value, str(error))))
    await asyncio.sleep(0)
    await api.close()
    assert answers == [(None, "this node is stopping")]

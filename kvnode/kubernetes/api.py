"""One call at a time to the API server, every failure turned into a sentence with advice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from kvnode.errors import ApiServerFailed
from kvnode.kubernetes import credentials
from kvnode.kubernetes.credentials import ApiSettings
from kvnode.ports import Done, Scale

ANSWER_BYTES_MAX = 4 << 20
"""An object in Kubernetes has at most about 1.5 MiB."""
TEXT_MAX = 300
"""Of what the API server says, shown in an error."""


class ApiServer:
    """Asks for a node. Every method is bounded by ``ApiSettings.timeout_s``."""

    def __init__(self, settings: ApiSettings) -> None:
        """Nothing is read or connected yet."""
        self._settings = settings
        self._calls: set[asyncio.Task[None]] = set()

    def ask_scale(self, done: Done[Scale]) -> None:
        """Call ``done`` with ``scale()``, in a later turn of the running loop."""
        task = asyncio.get_running_loop().create_task(self._ask_scale(done), name="kubernetes")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Break off what is under way. Idempotent."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def scale(self) -> Scale:
        """Read the StatefulSet.

        Raises:
            ApiServerFailed: It could not be read, or does not say how large it is to be.
        """
        name = self._settings.statefulset
        space = credentials.namespace(self._settings)
        path = f"/apis/apps/v1/namespaces/{space}/statefulsets/{name}"
        return _parse_scale(await self.call("GET", path), name)

    async def label_pod(self, labels: Mapping[str, str]) -> None:
        """Set labels of this node's own pod; others stay.

        Raises:
            ApiServerFailed: They were not set, or it is not known.
        """
        space = credentials.namespace(self._settings)
        path = f"/api/v1/namespaces/{space}/pods/{self._settings.pod}"
        await self.call("PATCH", path, {"metadata": {"labels": dict(labels)}})

    async def _ask_scale(self, done: Done[Scale]) -> None:
        try:
            found = await self.scale()
        except asyncio.CancelledError:
            done(None, ApiServerFailed("this node is stopping"))
            raise
        except ApiServerFailed as error:
            done(None, error)
        else:
            done(found, None)

    async def call(
        self, method: str, path: str, document: Any = None, *, may_be: int = HTTPStatus.OK
    ) -> Any:
        """Ask for something, and return the object that is the answer.

        Args:
            method: HTTP's.
            path: From ``/api`` or ``/apis`` on.
            document: To be sent as JSON; with PATCH a merge patch.
            may_be: A status that is an answer, too: the result is None then.

        Raises:
            ApiServerFailed: It was refused, or it is not known what became of it.
        """
        settings = self._settings
        url = URL(settings.url).with_path(path)
        headers = {"Accept": "application/json", "User-Agent": "kvnode"}
        body = None
        if document is not None:
            patches = method == "PATCH"
            headers["Content-Type"] = f"application/{'merge-patch+' if patches else ''}json"
            body = json.dumps(document).encode()
        secure = url.scheme == "https"
        if secure:
            headers["Authorization"] = f"Bearer {credentials.token(settings)}"
        connector = aiohttp.TCPConnector(ssl=credentials.tls(settings) if secure else False)
        timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(
                    method, url, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                content = await _read(answer)
                if answer.status == may_be != HTTPStatus.OK:
                    return None
                return _judge(answer.status, content, f"{method} {path}", settings)
        except aiohttp.ClientConnectorCertificateError as error:
            raise ApiServerFailed(
                f"{url.origin()} is not the API server that {settings.credentials}/ca.crt vouches for: "
                f"{_shorten(str(error.certificate_error))}: check kubernetes_api"
            ) from error
        except TimeoutError as error:
            raise ApiServerFailed(
                f"the API server at {url.origin()} did not answer within {settings.timeout_s:g} s: "
                "check that a NetworkPolicy lets this pod reach it"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiServerFailed(
                f"the API server at {url.origin()} cannot be reached: {_shorten(str(error))}: check "
                "kubernetes_api, and that a NetworkPolicy lets this pod reach it"
            ) from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_chunked(64 << 10):
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise ApiServerFailed(f"{answer.url} answers more than {ANSWER_BYTES_MAX} bytes")
    return bytes(content)


def _judge(status: int, content: bytes, what: str, settings: ApiSettings) -> Any:
    """Return the object, or say why there is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if status in (HTTPStatus.OK, HTTPStatus.CREATED) and isinstance(found, dict):
        return found
    said = found.get("message") if isinstance(found, dict) else None
    text = _shorten(said if isinstance(said, str) and said else f"status {status}")
    raise ApiServerFailed(f"{what}: {text}: {_advice(status, what, settings)}")


def _advice(status: int, what: str, settings: ApiSettings) -> str:
    pods = what.startswith("PATCH") and "/pods/" in what
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return f"the token in {settings.credentials} is not accepted: mount a current one"
        case HTTPStatus.FORBIDDEN if "/secrets" in what:
            return "give the service account a Role with `create` on secrets, and `get` and `patch` on these"
        case HTTPStatus.FORBIDDEN if pods:
            return "give the pod's service account a Role with `patch` on pods, or switch the label off"
        case HTTPStatus.FORBIDDEN:
            return (
                "give the pod's service account a Role with `get` on statefulsets, resourceNames "
                f"[{settings.statefulset}]; without it no member is removed on scale-down"
            )
        case HTTPStatus.NOT_FOUND if pods:
            return "the node's name must be its pod's"
        case HTTPStatus.NOT_FOUND:
            return "check kubernetes_statefulset and kubernetes_namespace"
        case _:
            return "it is asked again"


def _parse_scale(found: Any, name: str) -> Scale:
    """Read what matters; what is missing or strange is an error and never a number."""
    metadata, spec = found.get("metadata"), found.get("spec")
    if found.get("kind") != "StatefulSet" or not isinstance(metadata, dict):
        raise ApiServerFailed("the API server's answer is no StatefulSet: check kubernetes_api")
    if metadata.get("name") != name or not isinstance(spec, dict):
        raise ApiServerFailed(f"the API server's answer is not the StatefulSet {name}")
    if metadata.get("deletionTimestamp"):
        raise ApiServerFailed(f"the StatefulSet {name} is being deleted: its members stay members")
    ordinals = spec.get("ordinals")
    replicas = spec.get("replicas")
    first = ordinals.get("start", 0) if isinstance(ordinals, dict) else 0
    for number in (replicas, first):
        if type(number) is not int or not 0 <= number <= 2**31:
            raise ApiServerFailed(f"the StatefulSet {name} does not say how large it is to be")
    assert isinstance(replicas, int)
    assert isinstance(first, int)
    return Scale(name, replicas, first)


def _shorten(text: str) -> str:
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + "…"

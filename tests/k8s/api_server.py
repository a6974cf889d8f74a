"""A stand-in for Kubernetes' API server: the real paths, tokens, TLS and errors of what kvnode asks.

It knows StatefulSets and pods, bearer tokens with rights, and answers as the real one does: ``Status``
objects for 401, 403, 404, 409, 415 and 500, merge patches with resource versions. It can be slow, ill or
down. ``requests`` remembers what was asked.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}
MERGE_PATCH = "application/merge-patch+json"
NAMESPACE = "default"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:kvnode"


def certificates(folder: Path, names: Sequence[str]) -> tuple[Path, Path, Path]:
    """Make a CA and a certificate for these names and addresses: paths of the CA, certificate, key."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key = folder / "ca.crt", folder / "ca.key"
    crt, key, request = folder / "server.crt", folder / "server.key", folder / "server.csr"
    alternatives = ",".join(
        f"{'IP' if name.replace('.', '').isdigit() else 'DNS'}:{name}" for name in names
    )
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    extensions = folder / "extensions"
    extensions.write_text(f"subjectAltName={alternatives}\n")
    for words in (
        ["req", "-x509", *new, "-days", "2", "-subj", "/CN=kubernetes", "-keyout", ca_key,
         "-out", ca, "-addext", "keyUsage=critical,keyCertSign"],
        ["req", *new, "-subj", "/CN=kube-apiserver", "-keyout", key, "-out", request],
        ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-days", "2",
         "-CAcreateserial", "-extfile", extensions, "-out", crt],
    ):  # fmt: skip
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
    return ca, crt, key


class ApiServer:
    """``async with ApiServer(folder) as api: api.statefulset("kvnode", 3)``.

    Attributes:
        objects: ``(resource, name)`` to object; ``statefulsets`` and ``pods`` of one namespace.
        rights: Of each token: ``(verb, resource, name)``; an empty name means all of them.
        fault: Answer everything with this status; 0: as it should be.
        delay_s: Before each answer.
        requests: ``(method, path)`` of all that came.
    """

    def __init__(self, folder: Path, *, names: Sequence[str] = ("127.0.0.1", "localhost")) -> None:
        self.folder = folder
        self.ca, self._crt, self._key = certificates(folder / "pki", names)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.rights: dict[str, set[tuple[str, str, str]]] = {}
        self.fault = 0
        self.delay_s = 0.0
        self.requests: list[tuple[str, str]] = []
        self.version = 100
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._listening: socket.socket

    async def __aenter__(self) -> ApiServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen: on a socket of any namespace, or on a free port of loopback (the same one again)."""
        app = web.Application()
        base = "/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"
        app.router.add_get(base, self._get)
        app.router.add_get("/api/v1/namespaces/{namespace}/pods/{name}", self._get)
        app.router.add_patch("/api/v1/namespaces/{namespace}/pods/{name}", self._patch)
        secrets = "/api/v1/namespaces/{namespace}/secrets"
        app.router.add_post(secrets, self._post_secret)
        app.router.add_get(secrets + "/{name}", self._get)
        app.router.add_patch(secrets + "/{name}", self._patch_secret)
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._crt, self._key)
        self._listening = sock or socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        await web.SockSite(self._runner, self._listening, ssl_context=context).start()

    async def stop(self) -> None:
        """Be down. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            # asyncio forgets, unclosed, whom it accepted in the turn before its server closes
            # (python/cpython#109564): take nobody more, and let those be received who were taken.
            asyncio.get_running_loop().remove_reader(self._listening)
            await asyncio.sleep(0)
            await runner.cleanup()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def account(self, name: str, *rights: tuple[str, str, str]) -> Path:
        """Make a service account: its folder, as mounted into pods that use it."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "ca.crt").write_bytes(self.ca.read_bytes())
        (place / "namespace").write_text(NAMESPACE)
        (place / "token").write_text(f"token-of-{name}")
        self.rights[f"token-of-{name}"] = set(rights)
        return place

    def statefulset(self, name: str, replicas: int | None, **spec: Any) -> None:
        """Make or change one."""
        self.version += 1
        self.objects["statefulsets", name] = {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "resourceVersion": str(self.version),
                "managedFields": [{"manager": "helm", "operation": "Update"}],
            },
            "spec": {"serviceName": name, **({} if replicas is None else {"replicas": replicas}), **spec},
            "status": {"replicas": replicas, "observedGeneration": 1},
        }  # fmt: skip

    def pod(self, name: str) -> None:
        """Make one."""
        self.version += 1
        self.objects["pods", name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "resourceVersion": str(self.version),
                "labels": {"app.kubernetes.io/name": "kvnode"},
            },
        }  # fmt: skip

    def labels(self, pod: str) -> dict[str, str]:
        return dict(self.objects["pods", pod]["metadata"]["labels"])

    # -- answers ------------------------------------------------------------------------------------

    async def _get(self, request: web.Request) -> web.Response:
        refusal, found = await self._admit(request, "get")
        return refusal or web.json_response(found)

    async def _patch(self, request: web.Request) -> web.Response:
        refusal, found = await self._admit(request, "patch")
        if refusal is not None:
            return refusal
        if request.content_type != MERGE_PATCH:
            return status(415, f"the body of the request was in an unknown format - {MERGE_PATCH}")
        try:
            patch = json.loads(await request.text())
        except ValueError as error:
            return status(400, f"error decoding patch: {error}")
        metadata = patch.get("metadata", {})
        version = metadata.get("resourceVersion")
        if version not in (None, found["metadata"]["resourceVersion"]):
            return status(
                409, "the object has been modified; please apply your changes to the latest"
            )
        for label, value in metadata.get("labels", {}).items():
            if value is None:
                found["metadata"]["labels"].pop(label, None)
            elif isinstance(value, str):
                found["metadata"]["labels"][label] = value
            else:
                return status(422, f"metadata.labels: Invalid value: {value}")
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        return web.json_response(found)

    async def _post_secret(self, request: web.Request) -> web.Response:
        refusal, _ = await self._admit(request, "create")
        if refusal is not None:
            return refusal
        made = json.loads(await request.text())
        name = made["metadata"]["name"]
        if ("secrets", name) in self.objects:
            return status(409, f'secrets "{name}" already exists')
        kept = {"tls.crt", "tls.key"} if made["type"] == "kubernetes.io/tls" else set()
        if not kept <= made["data"].keys():
            return status(422, f'Secret "{name}" is invalid: data: Required value')
        self.objects["secrets", name] = made
        return web.json_response(made, status=201)

    async def _patch_secret(self, request: web.Request) -> web.Response:
        refusal, found = await self._admit(request, "patch")
        if refusal is not None:
            return refusal
        if request.content_type != MERGE_PATCH:
            return status(415, f"the body of the request was in an unknown format - {MERGE_PATCH}")
        found["data"] |= json.loads(await request.text())["data"]
        return web.json_response(found)

    def secret(self, name: str) -> dict[str, bytes]:
        """What is in one."""
        data = self.objects["secrets", name]["data"]
        return {key: base64.b64decode(text) for key, text in data.items()}

    async def _unknown(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path))
        return web.Response(status=404, text="404 page not found\n")

    async def _admit(
        self, request: web.Request, verb: str
    ) -> tuple[web.Response | None, dict[str, Any]]:
        """Who asks, and may they? In the order of the real one."""
        self.requests.append((request.method, request.path))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.fault:
            return status(self.fault, "it was told to fail"), {}
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        rights = self.rights.get(token) if scheme == "Bearer" else None
        if rights is None:
            return status(401, "Unauthorized"), {}
        name, namespace = request.match_info.get("name", ""), request.match_info["namespace"]
        resource = request.path.split("/")[-2 if name else -1]
        group = "apps" if resource == "statefulsets" else ""
        allowed = namespace == NAMESPACE and rights & {(verb, resource, name), (verb, resource, "")}
        if not allowed:
            text = (
                f'{resource}.{group} "{name}" is forbidden: User "{ACCOUNT}" cannot {verb} resource '
                f'"{resource}" in API group "{group}" in the namespace "{namespace}"'
            )
            return status(403, text), {}
        if verb == "create":
            return None, {}
        found = self.objects.get((resource, name))
        if found is None:
            return status(404, f'{resource}.{group} "{name}" not found'), {}
        return None, found


def status(code: int, message: str) -> web.Response:
    """A ``Status`` object, as every failure is."""
    body = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": REASONS.get(code, "BadRequest"), "code": code,
    }  # fmt: skip
    headers = {"Retry-After": "1"} if code in (429, 503) else None
    return web.json_response(body, status=code, headers=headers)

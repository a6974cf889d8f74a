"""How this pod may speak to the API server: its service account's folder, read again for each call."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvnode.addresses import Address
from kvnode.errors import ApiServerFailed

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes mounts it."""
_FILE_BYTES_MAX = 1 << 20
_NOT_MOUNTED = (
    "give the pod a service account and mount its token (automountServiceAccountToken: true)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Which API server, and which objects of it."""

    url: str
    """Base address, ``https://host:port``. Over ``http`` (a proxy beside the node) no token is sent."""
    statefulset: str
    namespace: str = ""
    """Empty: the service account's own."""
    pod: str = ""
    """This pod's name."""
    credentials: str = SERVICE_ACCOUNT
    """Folder with ``token``, ``ca.crt`` and ``namespace``."""
    timeout_s: float = 5.0
    """For one call in all."""


def default_api(environ: Mapping[str, str]) -> str:
    """Return the API server's address as every pod is told it; by its name where it is not told."""
    host, port = (
        environ.get("KUBERNETES_SERVICE_HOST", ""),
        environ.get("KUBERNETES_SERVICE_PORT", ""),
    )
    if not host:
        return "https://kubernetes.default.svc"
    number = int(port) if port.isdigit() else 443
    return f"https://{Address(host, number)}"


def namespace(settings: ApiSettings) -> str:
    """Return the namespace to ask in.

    Raises:
        ApiServerFailed: None is given, and the service account's cannot be read.
    """
    return settings.namespace or _read(settings, "namespace")


def token(settings: ApiSettings) -> str:
    """Return the token as it is now.

    Raises:
        ApiServerFailed: It cannot be read.
    """
    return _read(settings, "token")


def tls(settings: ApiSettings) -> ssl.SSLContext:
    """Trust the cluster's CA, and nobody else.

    Raises:
        ApiServerFailed: It cannot be read.
    """
    path = Path(settings.credentials, "ca.crt")
    try:
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        raise ApiServerFailed(f"{path} cannot be used: {_why(error)}: {_NOT_MOUNTED}") from error


def _read(settings: ApiSettings, name: str) -> str:
    path = Path(settings.credentials, name)
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise ApiServerFailed(f"{path} cannot be read: {_why(error)}: {_NOT_MOUNTED}") from error
    if not text:
        raise ApiServerFailed(f"{path} is empty: {_NOT_MOUNTED}")
    return text


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)

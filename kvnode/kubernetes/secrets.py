"""Secrets that are made once and kept: a CA with the pods' certificate, and what peers prove to each other.

For a Job beside the nodes, never for a node. Each Secret is made if it is not there. One that is there is
never replaced; of a certificate that comes to its end the new one is written beside the same CA.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvnode.errors import ApiServerFailed
from kvnode.kubernetes import credentials
from kvnode.kubernetes.api import ApiServer
from kvnode.kubernetes.credentials import ApiSettings
from kvnode.tls import authority

_CREATE_TRIES = 3
_LABELS = {"app.kubernetes.io/managed-by": "kvnode"}
"""Not Helm's: neither an upgrade nor ``helm uninstall`` touches them."""


class TlsWish(NamedTuple):
    """Which certificate there shall be."""

    secret: str
    """Name of the Secret with ``tls.crt``, ``tls.key``, ``ca.crt``."""
    ca_secret: str
    """Name of the Secret with the CA's ``tls.crt`` and ``tls.key``: no pod mounts it."""
    hosts: Sequence[str]
    """DNS names and addresses that it is for."""
    days: int
    """For how long it is good. Made anew when less than a third of it is left, or a name is missing."""


class Secrets:
    """Of one namespace, through the API server. Every method says what it did, in one sentence."""

    def __init__(self, api: ApiServer, settings: ApiSettings) -> None:
        """Nothing is asked yet."""
        self._api = api
        self._settings = settings

    async def ensure_peer_secret(self, name: str, key: str) -> str:
        """Make the peers' secret, if it is not there.

        Raises:
            ApiServerFailed: Also when the Secret is there without this key: it is somebody's.
        """
        found = await self._ensure(name, "Opaque", {key: authority.make_secret().encode()})
        if not found:
            return f"Secret {name}: made"
        if not found.get(key):
            raise ApiServerFailed(f"Secret {name} is there and has no {key}: name another one")
        return f"Secret {name}: kept"

    async def ensure_certificate(self, wish: TlsWish) -> str:
        """Make a CA and a certificate, or a new certificate when it is time.

        Raises:
            ApiServerFailed: Also when a certificate is due and its CA is not there.
        """
        found = await self._read(wish.secret)
        if found is not None and not (why := _why_anew(found, wish)):
            return f"Secret {wish.secret}: kept, good until {_end(found):%Y-%m-%d}"
        ca = await self._ensure_ca(wish, first=found is None)
        pair = authority.make_certificate(ca, "kvnode", wish.hosts, days=wish.days)
        data = {"tls.crt": pair.cert, "tls.key": pair.key, "ca.crt": ca.cert}
        if found is None:
            other = await self._ensure(wish.secret, "kubernetes.io/tls", data)
            return f"Secret {wish.secret}: {'kept' if other else 'made'}"
        # What the peers trust is what they trusted: only the certificate changes.
        await self._api.call("PATCH", await self._path(wish.secret), {"data": _encoded(data)})
        return f"Secret {wish.secret}: a new certificate, since {why}"

    async def _ensure_ca(self, wish: TlsWish, *, first: bool) -> authority.Pair:
        if first:
            made = authority.make_ca()
            data = {"tls.crt": made.cert, "tls.key": made.key}
            found = await self._ensure(wish.ca_secret, "kubernetes.io/tls", data)
            if not found:
                return made
        else:
            found = await self._read(wish.ca_secret) or {}
        try:
            return authority.Pair(found["tls.crt"], found["tls.key"])
        except KeyError:
            raise ApiServerFailed(
                f"Secret {wish.ca_secret} has no tls.crt and tls.key, so that no certificate can be made: "
                f"bring it back, or delete {wish.secret} too and restart all pods together"
            ) from None

    async def _ensure(
        self, name: str, kind: str, data: Mapping[str, bytes]
    ) -> dict[str, bytes] | None:
        """Make a Secret; return what is in it instead when it is there already."""
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": kind,
            "metadata": {"name": name, "labels": _LABELS},
            "data": _encoded(data),
        }
        for _ in range(_CREATE_TRIES):
            found = await self._read(name)
            if found is not None:
                return found
            # Two Jobs at once: the second one is told so (409) and reads what the first one made.
            made = await self._api.call("POST", await self._path(""), document, may_be=409)
            if made is not None:
                return None
        raise ApiServerFailed(f"Secret {name} comes and goes")

    async def _read(self, name: str) -> dict[str, bytes] | None:
        found = await self._api.call("GET", await self._path(name), may_be=404)
        if found is None:
            return None
        try:
            data = found.get("data") or {}
            return {key: base64.b64decode(text, validate=True) for key, text in data.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ApiServerFailed(f"Secret {name} cannot be read: {error}") from error

    async def _path(self, name: str) -> str:
        space = credentials.namespace(self._settings)
        return f"/api/v1/namespaces/{space}/secrets" + (f"/{name}" if name else "")


def _encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}


def _end(found: Mapping[str, bytes]) -> datetime.datetime:
    return authority.expiry(found["tls.crt"])


def _why_anew(found: Mapping[str, bytes], wish: TlsWish) -> str:
    """Say why a certificate is made anew; empty: it need not be."""
    try:
        left = _end(found) - datetime.datetime.now(datetime.UTC)
        missing = set(wish.hosts) - set(authority.hosts(found["tls.crt"]))
    except (KeyError, ValueError):
        return "there is none that can be read"
    if left < datetime.timedelta(days=wish.days) / 3:
        return f"the old one ends in {left.days} days"
    return f"the old one is not for {min(missing)}" if missing else ""

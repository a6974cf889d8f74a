"""``kvnode kubernetes``: what Jobs beside the nodes do for them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from kvnode.cli.output import fail, say
from kvnode.errors import ApiServerFailed, BadRequest
from kvnode.kubernetes import ApiServer, ApiSettings, default_api
from kvnode.kubernetes.credentials import SERVICE_ACCOUNT

if TYPE_CHECKING:
    from kvnode.kubernetes.secrets import TlsWish

app = typer.Typer(help="For Jobs of the Helm chart, inside a pod.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep the group a group though it has one command."""


@app.command("ensure-secrets")
def ensure_secrets(
    tls_secret: Annotated[
        str, typer.Option("--tls-secret", help="Secret for the pods' certificate; empty: none.")
    ] = "",
    tls_name: Annotated[
        list[str] | None,
        typer.Option("--tls-name", help="DNS name or address it is for. Again for each."),
    ] = None,
    tls_days: Annotated[
        int, typer.Option("--tls-days", min=1, max=3650, help="For how many days it is good.")
    ] = 90,
    peer_secret: Annotated[
        str, typer.Option("--peer-secret", help="Secret for what peers prove; empty: none.")
    ] = "",
    peer_secret_key: Annotated[str, typer.Option("--peer-secret-key", help="Its key.")] = "secret",
    api: Annotated[
        str, typer.Option("--kubernetes-api", help="API server; empty: the pod's.")
    ] = "",
    folder: Annotated[
        str, typer.Option("--kubernetes-credentials", help="Folder of the service account.")
    ] = SERVICE_ACCOUNT,
    namespace: Annotated[
        str, typer.Option("--kubernetes-namespace", help="Empty: the service account's.")
    ] = "",
) -> None:
    """Make Secrets that are not there, and a new certificate when the old one comes to its end.

    What is there is kept: running it again changes nothing. The CA's key is in a Secret of its own
    (the name with -ca at its end), which no pod mounts.

    Examples: kvnode kubernetes ensure-secrets --peer-secret kv-peers ·
    kvnode kubernetes ensure-secrets --tls-secret kv-tls --tls-name localhost --tls-name '*.kv.default.svc'
    """
    from kvnode.kubernetes.secrets import TlsWish  # cryptography is slow to load

    settings = ApiSettings(
        url=api or default_api(os.environ),
        statefulset="",
        namespace=namespace,
        credentials=folder,
    )
    if not tls_secret and not peer_secret:
        fail("give --tls-secret, --peer-secret, or both", code=2)
    wish = TlsWish(tls_secret, f"{tls_secret}-ca", tls_name or (), tls_days)
    try:
        asyncio.run(_ensure(settings, wish if tls_secret else None, peer_secret, peer_secret_key))
    except BadRequest as error:
        fail(str(error), code=2)
    except ApiServerFailed as error:
        fail(str(error))


async def _ensure(settings: ApiSettings, wish: TlsWish | None, peers: str, key: str) -> None:
    from kvnode.kubernetes.secrets import Secrets

    secrets = Secrets(ApiServer(settings), settings)
    if peers:
        say(await secrets.ensure_peer_secret(peers, key))
    if wish is not None:
        say(await secrets.ensure_certificate(wish))

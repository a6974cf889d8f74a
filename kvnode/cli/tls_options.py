"""The options of every command that asks a node over TLS, declared once.

Commands name the node by ``--http-addr``; whoever has that option gets these as well (``with_tls``), so no
command can forget them. They mean what they mean to Consul's command line, and so do their variables.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any, get_type_hints

import typer

from kvnode.client.tls import ClientTls

_PANEL = "TLS"
_CURRENT: ContextVar[ClientTls] = ContextVar("tls")
_FALSE = frozenset({"0", "f", "false", "no", "off"})

_OPTIONS: dict[str, Any] = {
    "ca_file": Annotated[
        str,
        typer.Option(
            "--ca-file",
            envvar=["KVNODE_CACERT", "CONSUL_CACERT", "KVNODE_TLS_CA_FILE"],
            help="CA that the server's certificate must lead to, PEM. Not given: the system's.",
            rich_help_panel=_PANEL,
        ),
    ],
    "client_cert": Annotated[
        str,
        typer.Option(
            "--client-cert",
            envvar=["KVNODE_CLIENT_CERT", "CONSUL_CLIENT_CERT"],
            help="Certificate to show, for servers with --tls-verify-clients.",
            rich_help_panel=_PANEL,
        ),
    ],
    "client_key": Annotated[
        str,
        typer.Option(
            "--client-key",
            envvar=["KVNODE_CLIENT_KEY", "CONSUL_CLIENT_KEY"],
            help="Its key.",
            rich_help_panel=_PANEL,
        ),
    ],
    "tls_server_name": Annotated[
        str,
        typer.Option(
            "--tls-server-name",
            envvar=["KVNODE_TLS_SERVER_NAME", "CONSUL_TLS_SERVER_NAME"],
            help="Name that the server's certificate must be for. Not given: the host in the address.",
            rich_help_panel=_PANEL,
        ),
    ],
}


def current_tls() -> ClientTls:
    """What the running command was given."""
    return _CURRENT.get(ClientTls())


def base_addresses(http_addr: str) -> list[str]:
    """Cut ``--http-addr`` into addresses; ``KVNODE_HTTP_SSL`` and ``CONSUL_HTTP_SSL`` make each https."""
    addresses = [part.strip() for part in http_addr.split(",") if part.strip()]
    if not _switch("HTTP_SSL", default=False):
        return addresses
    return ["https://" + address.rpartition("://")[2] for address in addresses]


def _switch(name: str, *, default: bool) -> bool:
    for variable in ("KVNODE_" + name, "CONSUL_" + name):
        if value := os.environ.get(variable, ""):
            return value.strip().lower() not in _FALSE
    return default


def add_tls_options(app: typer.Typer) -> None:
    """Give the options to every command of an application, and of those inside it, that asks a node."""
    for command in app.registered_commands:
        function = command.callback
        if function is not None and "http_addr" in inspect.signature(function).parameters:
            command.callback = with_tls(function)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_tls_options(group.typer_instance)


def with_tls(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the options added; it finds them in ``current_tls``."""
    if _OPTIONS.keys() & inspect.signature(function).parameters.keys():
        return function  # it was called for a second application already

    def command(
        *,
        ca_file: str,
        client_cert: str,
        client_key: str,
        tls_server_name: str,
        **rest: Any,
    ) -> Any:
        _CURRENT.set(
            ClientTls(
                ca_file=ca_file,
                cert_file=client_cert,
                key_file=client_key,
                server_name=tls_server_name,
                verify=_switch("HTTP_SSL_VERIFY", default=True),
            )
        )
        return function(**rest)

    own = inspect.signature(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=hint)
        for name, hint in _OPTIONS.items()
    ]
    hints = get_type_hints(function, include_extras=True)
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = hints | _OPTIONS
    command.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[
            *(p.replace(annotation=hints[p.name]) for p in own.parameters.values()),
            *added,
        ]
    )
    return command

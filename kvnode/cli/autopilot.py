"""``kvnode operator autopilot``: how the leader looks after the members."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from kvnode.cli.output import (
    DEFAULT_ADDR,
    DEFAULT_TIMEOUT_S,
    HttpAddr,
    Output,
    OutputOption,
    TimeoutOption,
    ask,
    emit_json,
    emit_table,
    fail,
    say,
)
from kvnode.client import KvnodeClient
from kvnode.errors import RemoteProtocolError

app = typer.Typer(help="How the leader looks after the members.", no_args_is_help=True)

_CONFIGURATION = "/v1/operator/autopilot/configuration"


@app.command("get-config")
def get_config(
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print the parameters.

    Examples: kvnode operator autopilot get-config
    """
    found = ask(http_addr, timeout, lambda kv: _get(kv, _CONFIGURATION))
    if output is Output.json:
        emit_json(found)
    else:
        rows = [(name, json.dumps(value).strip('"')) for name, value in found.items()]
        emit_table(("parameter", "value"), rows)


@app.command("set-config")
def set_config(
    cleanup_dead_servers: Annotated[
        bool | None,
        typer.Option(
            "--cleanup-dead-servers/--no-cleanup-dead-servers",
            help="Remove members that were silent for very long.",
        ),
    ] = None,
    last_contact_threshold: Annotated[
        str, typer.Option(help="Unhealthy when last heard longer ago, such as 200ms.")
    ] = "",
    max_trailing_logs: Annotated[
        int | None, typer.Option(min=0, help="Unhealthy when further behind, in entries.")
    ] = None,
    min_quorum: Annotated[
        int | None,
        typer.Option(min=0, help="So many voters must remain when dead ones are removed."),
    ] = None,
    server_stabilization_time: Annotated[
        str, typer.Option(help="For so long a new node keeps up before it votes, such as 10s.")
    ] = "",
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Change parameters; what is not given stays. Exit code 1 when somebody else changed them meanwhile.

    Examples: kvnode operator autopilot set-config --server-stabilization-time 10s
    """
    wanted = {
        "CleanupDeadServers": cleanup_dead_servers,
        "LastContactThreshold": last_contact_threshold or None,
        "MaxTrailingLogs": max_trailing_logs,
        "MinQuorum": min_quorum,
        "ServerStabilizationTime": server_stabilization_time or None,
    }
    changes = {name: value for name, value in wanted.items() if value is not None}
    if not changes:
        fail("nothing to change", code=2)

    async def change(kv: KvnodeClient) -> bool:
        found = await _get(kv, _CONFIGURATION)
        body = json.dumps(found | changes).encode()
        query = [("cas", str(found["ModifyIndex"]))]
        reply = await kv._ask("PUT", _CONFIGURATION, query, body=body)
        return reply.body.strip() == b"true"

    if not ask(http_addr, timeout, change):
        fail("somebody else changed the parameters meanwhile: look again")
    say("the parameters were changed")


@app.command("health")
def health(
    output: OutputOption = Output.text,
    http_addr: HttpAddr = DEFAULT_ADDR,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
) -> None:
    """Print what the leader thinks of the members. Exit code 1 when one of them is unhealthy.

    Examples: kvnode operator autopilot health · kvnode operator autopilot health -o json
    """
    found = ask(http_addr, timeout, lambda kv: _get(kv, "/v1/operator/autopilot/state"))
    if output is Output.json:
        emit_json(found)
    else:
        names = (
            "Name",
            "Address",
            "Status",
            "NodeStatus",
            "LastContact",
            "LastIndex",
            "StableSince",
        )
        rows = [
            (
                *(str(server[name]) for name in names),
                "healthy" if server["Healthy"] else "UNHEALTHY",
            )
            for server in sorted(found["Servers"].values(), key=lambda one: str(one["Name"]))
        ]
        emit_table(
            ("name", "address", "role", "status", "contact", "index", "since", "health"), rows
        )
        say(f"{found['FailureTolerance']} healthy voters may fail")
    if not found["Healthy"]:
        raise typer.Exit(1)


async def _get(kv: KvnodeClient, path: str) -> dict[str, Any]:
    reply = await kv._ask("GET", path, safe=True)
    try:
        return dict(json.loads(reply.body))
    except (ValueError, TypeError) as error:
        raise RemoteProtocolError(f"not JSON: {reply.body[:200]!r}") from error

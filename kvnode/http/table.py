"""Every route of the node, in one table."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from kvnode.http import absent, catalog, events, idempotency, kv, metrics, session, snapshot, txn
from kvnode.http.agent import AgentRoutes
from kvnode.http.feed import FeedRoute
from kvnode.http.health import HealthRoutes
from kvnode.http.messages import Request, Response
from kvnode.http.monitor import MonitorRoute
from kvnode.http.operator import OperatorRoutes
from kvnode.http.pages import PageRoutes
from kvnode.http.pods import PodsRoute
from kvnode.http.registration import PATHS as REGISTRATIONS
from kvnode.http.registration import Registrations
from kvnode.http.router import Route, Router

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from kvnode.http.blocking import Parked
    from kvnode.http.context import HttpContext, HttpSettings
    from kvnode.http.messages import Respond


class Routes(Protocol):
    """A module of such functions; see ``kv``."""

    def parse_decoded(
        self, method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings, /
    ) -> Any:
        """Return an operation, or a ``Response``."""
        ...

    def start(self, operation: Any, backend: kv.Backend, respond: Respond, /) -> Parked | None:
        """Run an operation."""
        ...


class CallBackRoute:
    """Routes that are plain functions with call-backs (``kv``, ``session``, ``txn``), for the shell that
    awaits.
    """

    def __init__(
        self,
        routes: Routes,
        backend: kv.Backend,
        settings: HttpSettings,
        *,
        takes_keys: bool = False,
    ) -> None:
        """Remember whom to ask; ``takes_keys``: its writes may have an idempotency key."""
        self._routes = routes
        self._takes_keys = takes_keys
        self._backend = backend
        self._settings = settings

    async def handle(self, request: Request) -> Response:
        """Parse, start, wait for the answer."""
        parsed = self._routes.parse_decoded(
            request.method, request.path, request.query, request.body, self._settings
        )
        if isinstance(parsed, Response):
            return parsed
        backend = self._backend
        key = request.headers.get(idempotency.HEADER) if self._takes_keys else None
        if key is not None and request.method != "GET":
            stamp = idempotency.make(
                key, request.method, request.path, request.query, request.body, self._settings
            )
            if isinstance(stamp, Response):
                return stamp
            backend = idempotency.stamping(backend, stamp)
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def respond(response: Response) -> None:
            if not future.done():  # the client may have hung up
                future.set_result(response)

        parked = self._routes.start(parsed, backend, respond)
        try:
            return await future
        finally:
            if parked is not None:
                self._backend.blocking.cancel(parked)


class MetricsRoute:
    """``GET /metrics``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Remember what to print."""
        self._registry = registry

    async def handle(self, request: Request) -> Response:
        """Print Prometheus' text."""
        return Response(200, metrics.CONTENT_TYPE, metrics.exposition(self._registry))


def build_router(context: HttpContext, backend: kv.Backend, registry: CollectorRegistry) -> Router:
    """Build the table."""
    keys = CallBackRoute(kv, backend, context.settings, takes_keys=True).handle
    sessions = CallBackRoute(session, backend, context.settings, takes_keys=True).handle
    transactions = CallBackRoute(txn, backend, context.settings, takes_keys=True).handle
    reads = CallBackRoute(catalog, backend, context.settings).handle
    fired = CallBackRoute(events, backend, context.settings).handle
    snapshots = snapshot.SnapshotRoutes(context).handle
    registrations = CallBackRoute(Registrations(), backend, context.settings).handle
    agent = AgentRoutes(context, registry)
    operator = OperatorRoutes(context)
    health = HealthRoutes(context)
    pages = PageRoutes(context.settings)
    get, put = ("GET",), ("PUT",)
    return Router((
        Route("/v1/kv/", kv.METHODS, keys, unlisted=("POST",), large_body=True),
        Route("/kv/", ("GET", "PUT", "POST", "DELETE"), keys, large_body=True),
        Route("/v1/watch/", get, FeedRoute(context.replica, context.settings).handle),
        Route("/v1/session/create", put, sessions),
        Route("/v1/session/destroy/", put, sessions),
        Route("/v1/session/renew/", put, sessions),
        Route("/v1/session/info/", get, sessions),
        Route("/v1/session/node/", get, sessions),
        Route("/v1/session/list", get, sessions),
        Route("/v1/txn", put, transactions),
        Route(catalog.DATACENTERS.decode(), get, reads),
        *(Route(path, get, reads) for path in catalog.PATHS),
        Route("/v1/snapshot", snapshot.METHODS, snapshots, upload=("PUT",)),
        *(Route(path, (method,), registrations) for path, method in REGISTRATIONS),
        Route("/v1/status/leader", get, agent.leader),
        Route("/v1/status/peers", get, agent.peers),
        Route("/v1/event/fire/", put, fired),
        Route("/v1/event/list", get, fired),
        Route("/v1/operator/raft/configuration", get, operator.configuration),
        Route("/v1/operator/raft/peer", ("DELETE",), operator.remove_peer),
        Route(
            "/v1/operator/raft/transfer-leader",
            ("POST",),
            operator.transfer_leader,
            unlisted=("PUT",),
        ),
        Route("/v1/operator/autopilot/configuration", ("GET", "PUT"), operator.autopilot),
        Route("/v1/operator/autopilot/health", get, operator.health),
        Route("/v1/operator/autopilot/state", get, operator.state),
        Route("/v1/operator/usage", get, operator.usage),
        Route("/v1/operator/keyring", ("GET", "PUT", "POST", "DELETE"), operator.keyring),
        Route("/v1/agent/self", get, agent.own),
        Route("/v1/agent/members", get, agent.members),
        Route("/v1/agent/metrics", get, agent.metrics),
        Route("/v1/agent/reload", ("PUT",), agent.reload),
        Route("/v1/agent/leave", ("PUT",), agent.leave),
        Route("/v1/agent/join/", put, agent.join),
        Route("/v1/agent/force-leave/", put, agent.force_leave),
        Route("/v1/agent/monitor", get, MonitorRoute(context).monitor),
        Route("/v1/agent/host", get, agent.host),
        Route("/v1/agent/version", get, agent.version),
        Route("/v1/agent/token/", put, absent.agent_token),
        Route("/v1/acl/", ("GET", "PUT", "POST", "DELETE"), absent.acl),
        Route("/v1/coordinate/datacenters", get, absent.coordinate_datacenters),
        Route("/v1/coordinate/nodes", get, absent.coordinate_nodes),
        Route("/v1/coordinate/node/", get, absent.coordinate_node),
        Route("/pods", get, PodsRoute(context).pods),
        Route("/health/live", get, health.live),
        Route("/health/ready", get, health.ready),
        Route("/health/leader", get, health.leader),
        Route("/health/startup", get, health.startup),
        Route("/metrics", get, MetricsRoute(registry).handle),
        Route("/openapi.json", get, pages.openapi),
        Route("/ui/", get, pages.ui),
        Route("/", get, pages.root),
    ))  # fmt: skip

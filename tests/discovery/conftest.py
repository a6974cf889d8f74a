from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvnode.discovery.dns import DnsSettings
from tests.dns_server import DnsServer

NAME = "_raft._tcp.kvnode.default.svc.cluster.local"


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer() as running:
        yield running


@pytest.fixture
def settings(server: DnsServer) -> Callable[..., DnsSettings]:
    """Settings that ask the test server, with time enough for an answer."""

    def make(name: str = NAME, **changes: Any) -> DnsSettings:
        values: dict[str, Any] = {
            "name": name,
            "peer_port": 8300,
            "nameservers": (server.address,),
            "search": ("default.svc.cluster.local", "svc.cluster.local", "cluster.local"),
            "query_timeout_s": 20.0,
            "query_tries": 1,
            "round_timeout_s": 30.0,
        }
        return DnsSettings(**{**values, **changes})

    return make

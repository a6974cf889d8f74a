"""The name server of ``one_node``: what CoreDNS answers for Services and headless Services, by UDP.

Usage: python -m tests.k8s.cluster_dns DIRECTORY

It asks the API server twice a second. A name of a headless Service has the addresses of its Endpoints, each
pod a name of its own, and each named port SRV records (Kubernetes' DNS specification, §2.4); TTL 5 s.
"""

from __future__ import annotations

import json
import socketserver
import ssl
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dnslib import QTYPE, RCODE, RR, SOA, SRV, A, DNSRecord

TTL_S = 5
NODE = "10.99.0.2"


class Zone(NamedTuple):
    """Everything that has a name."""

    addresses: dict[str, list[str]]
    ports: dict[str, list[tuple[int, str]]]
    """Name of a SRV record -> port and host."""


class Api:
    """The API server, as its administrator."""

    def __init__(self, directory: Path) -> None:
        self._context = ssl.create_default_context(cafile=str(directory / "pki" / "apiserver.crt"))

    def items(self, path: str) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"https://{NODE}:6443/api/v1/{path}", headers={"Authorization": "Bearer admin-token"}
        )
        with urllib.request.urlopen(request, context=self._context, timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)["items"]
            return found


def _name(thing: dict[str, Any]) -> str:
    metadata = thing["metadata"]
    return f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local."


def zone(api: Api) -> Zone:
    """Read all names."""
    addresses: dict[str, list[str]] = defaultdict(list)
    ports: dict[str, list[tuple[int, str]]] = defaultdict(list)
    headless = set()
    for service in api.items("services"):
        name, spec = _name(service), service["spec"]
        if spec.get("clusterIP") == "None":
            headless.add(name)
            continue
        addresses[name].append(spec["clusterIP"])
        for port in spec.get("ports", []):
            if port.get("name"):
                ports[_port(port, name)].append((port["port"], name))
    for endpoints in api.items("endpoints"):
        name = _name(endpoints)
        if name not in headless:
            continue
        for host, address, found in _hosts(endpoints, name):
            addresses[name].append(address)
            addresses[host].append(address)
            for port in found:
                ports[_port(port, name)].append((port["port"], host))
                ports[name].append((port["port"], host))
    return Zone(dict(addresses), dict(ports))


def _port(port: dict[str, Any], name: str) -> str:
    return f"_{port['name']}._{port['protocol'].lower()}.{name}"


def _hosts(endpoints: dict[str, Any], name: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Each ready address with its host name and ports."""
    for subset in endpoints.get("subsets") or []:
        for address in subset.get("addresses") or []:
            host = address.get("hostname") or address["ip"].replace(".", "-")
            yield f"{host}.{name}", address["ip"], subset.get("ports") or []


def answer(question: DNSRecord, known: Zone) -> DNSRecord:
    """Answer one question; NXDOMAIN for a name that is not there, no records for a type that is not."""
    reply, name = question.reply(), str(question.q.qname).lower()
    if question.q.qtype == QTYPE.A:
        for address in known.addresses.get(name, []):
            reply.add_answer(RR(name, QTYPE.A, ttl=TTL_S, rdata=A(address)))
    elif question.q.qtype == QTYPE.SRV:
        for port, host in known.ports.get(name, []):
            reply.add_answer(RR(name, QTYPE.SRV, ttl=TTL_S, rdata=SRV(0, 100, port, host)))
            for address in known.addresses.get(host, []):
                reply.add_ar(RR(host, QTYPE.A, ttl=TTL_S, rdata=A(address)))
    if not reply.rr:
        if name not in known.addresses and name not in known.ports:
            reply.header.rcode = RCODE.NXDOMAIN
        times = (int(time.time()), 7200, 1800, 86400, TTL_S)
        start = SOA("ns.dns.cluster.local.", "hostmaster.cluster.local.", times)
        reply.add_auth(RR("cluster.local.", QTYPE.SOA, ttl=TTL_S, rdata=start))
    reply.header.ra = 1
    return reply


class Server(socketserver.ThreadingUDPServer):
    """Port 53 of the node."""

    allow_reuse_address = True
    daemon_threads = True
    known = Zone({}, {})

    def follow(self, api: Api) -> None:
        while True:
            try:
                self.known = zone(api)
            except (OSError, ValueError) as error:
                print(f"the API server does not answer: {error}", flush=True)
            time.sleep(0.5)


class Handler(socketserver.BaseRequestHandler):
    """One datagram."""

    def handle(self) -> None:
        data, socket = self.request
        assert isinstance(self.server, Server)
        socket.sendto(answer(DNSRecord.parse(data), self.server.known).pack(), self.client_address)


def main() -> None:
    """Serve until killed."""
    api = Api(Path(sys.argv[1]))
    with Server((NODE, 53), Handler) as server:
        threading.Thread(target=server.follow, args=(api,), daemon=True).start()
        server.serve_forever()


if __name__ == "__main__":
    main()

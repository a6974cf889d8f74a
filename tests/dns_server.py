"""A small DNS server for tests: every answer and failure that a cluster's DNS was seen to give.

Runs in a thread on a free loopback port, UDP and TCP alike. Change ``zone`` and the switches at any
time; ``queries`` remembers what was asked.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from types import TracebackType

from dnslib import AAAA, NS, QTYPE, RCODE, RR, SOA, SRV, A, DNSRecord


class DnsServer:
    """``with DnsServer() as server: server.pods("kvnode", 3)``.

    Attributes:
        zone: ``(lower-case name without trailing dot, "SRV" | "A" | "AAAA")`` to rdata objects.
        rcode: Answer everything with this code, e.g. ``RCODE.SERVFAIL``; None: by the zone.
        silent: Do not answer at all.
        delay_s: Seconds before each answer.
        truncate: Answer UDP queries with the TC bit and no records, so that TCP must be used.
        garbage: Answer with bytes that are no DNS message.
        ttl: Of every record.
        queries: ``(transport, name, type)`` of every query, in order.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.zone: dict[tuple[str, str], list[object]] = {}
        self.rcode: int | None = None
        self.silent = False
        self.delay_s = 0.0
        self.truncate = False
        self.garbage = False
        self.ttl = 5
        self.queries: list[tuple[str, str, str]] = []
        self._tcp, self._udp = _bind_both(host)
        self.port: int = self._tcp.getsockname()[1]
        self._stop_in, self._stop_out = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="dns-server", daemon=True)
        self._random = random.Random(7)
        self.address = f"{host}:{self.port}"

    def __enter__(self) -> DnsServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_in.send(b"x")
        self._thread.join(5)
        for sock in (self._tcp, self._udp, self._stop_in, self._stop_out):
            sock.close()

    def pods(
        self,
        service: str,
        replicas: int,
        *,
        namespace: str = "default",
        domain: str = "cluster.local",
        ports: dict[str, int] | None = None,
        ips: list[str] | None = None,
    ) -> str:
        """Publish a headless Service as Kubernetes does; returns its full name."""
        ports = ports or {"raft": 8300, "http": 8500}
        full = f"{service}.{namespace}.svc.{domain}"
        ips = ips or [f"127.0.0.{n + 1}" for n in range(replicas)]
        hosts = [f"{service}-{n}.{full}" for n in range(replicas)]
        for name, port in ports.items():
            self.zone[f"_{name}._tcp.{full}", "SRV"] = [SRV(0, 33, port, h) for h in hosts]
        self.zone[full, "SRV"] = [SRV(0, 16, p, h) for p in ports.values() for h in hosts]
        self.zone[full, "A"] = [A(ip) for ip in ips[:replicas]]
        for host, ip in zip(hosts, ips, strict=False):
            self.zone[host, "A"] = [A(ip)]
        return full

    def add(self, name: str, kind: str, *values: str) -> None:
        """Publish A or AAAA records."""
        make = {"A": A, "AAAA": AAAA}[kind]
        self.zone[name, kind] = [make(value) for value in values]

    def add_srv(self, name: str, *targets: tuple[str, int]) -> None:
        """Publish SRV records of ``(host, port)``."""
        self.zone[name, "SRV"] = [SRV(0, 1, port, host) for host, port in targets]

    def _serve(self) -> None:
        clients: list[socket.socket] = []
        while True:
            ready, _, _ = select.select([self._udp, self._tcp, self._stop_out, *clients], [], [])
            for sock in ready:
                if sock is self._stop_out:
                    for client in clients:
                        client.close()
                    return
                if sock is self._udp:
                    data, peer = self._udp.recvfrom(4096)
                    answer = self._answer(data, "udp")
                    if answer is not None:
                        self._udp.sendto(answer, peer)
                elif sock is self._tcp:
                    clients.append(self._tcp.accept()[0])
                elif not self._serve_tcp(sock):
                    clients.remove(sock)
                    sock.close()

    def _serve_tcp(self, client: socket.socket) -> bool:
        try:
            header = client.recv(2)
            if len(header) < 2:
                return False
            answer = self._answer(client.recv(struct.unpack("!H", header)[0]), "tcp")
            if answer is not None:
                client.sendall(struct.pack("!H", len(answer)) + answer)
        except OSError:
            return False
        return True

    def _answer(self, data: bytes, transport: str) -> bytes | None:
        query = DNSRecord.parse(data)
        name = str(query.q.qname).rstrip(".").lower()
        kind = QTYPE[query.q.qtype]
        self.queries.append((transport, name, kind))
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.silent:
            return None
        if self.garbage:
            return data[:2] + b"\xff" * 40
        reply = query.reply()
        if self.rcode is not None:
            reply.header.rcode = self.rcode
        elif self.truncate and transport == "udp":
            reply.header.tc = 1
        else:
            self._fill(reply, query, name, kind)
        return bytes(reply.pack())

    def _fill(self, reply: DNSRecord, query: DNSRecord, name: str, kind: str) -> None:
        records = list(self.zone.get((name, kind), []))
        self._random.shuffle(records)  # order means nothing, in real life too
        for data in records:
            reply.add_answer(RR(query.q.qname, query.q.qtype, ttl=self.ttl, rdata=data))
        if not records:
            if not any(known == name for known, _ in self.zone):
                reply.header.rcode = RCODE.NXDOMAIN
            # The SOA's last number is how long a denial may be cached; c-ares keeps it in the process.
            soa = SOA("ns.dns.cluster.local", "hostmaster", (1, 7200, 1800, 86400, 30))
            reply.add_auth(RR("cluster.local", QTYPE.SOA, ttl=30, rdata=soa))


def _bind_both(host: str) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket on one port, which must be free for both."""
    for _ in range(50):
        tcp = socket.create_server((host, 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            continue
        return tcp, udp
    raise OSError("no port is free for both UDP and TCP")


__all__ = ["NS", "RCODE", "DnsServer"]

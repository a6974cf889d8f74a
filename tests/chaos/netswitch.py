"""A network switch in user space: carries IP packets between namespaces, and mishandles them on request.

Each machine of a test has a TUN device in its own network namespace; this process holds the other end
of all of them. What a real network does wrong is done here, per direction of each link: cut, lose, delay,
reorder, duplicate. Nothing is asked of the kernel but namespaces and TUN, so it works where netem, nftables
and device-mapper are missing.

Run as a program of its own (``python netswitch.py``), so that a busy test does not slow the network.
It speaks JSON lines: a command on standard input, an answer on standard output, and it ends when its
input does; nothing of it remains then.

    {"attach": {"port": 1, "pid": 4711, "device": "net0"}}
    {"addresses": {"10.77.0.1": 1}}
    {"links": [{"source": 1, "target": 2, "cut": true}, {"source": 2, "target": 1, "loss": 0.1}]}
    {"count": true}

``links`` replaces all rules; a link that is not named is perfect.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import ipaddress
import json
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

TUN_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
CLONE_NEWNET = 0x40000000

PACKET_BYTES_MAX = 65536
DELAYED_MAX = 20_000
"""Packets on their way; more are lost, as in a router whose queue is full."""
_BATCH = 32
"""Packets taken from one device before the others get their turn."""
_ADDRESS_AT = 16
"""Where an IPv4 packet names its target."""


@dataclass(frozen=True)
class Link:
    """How one direction between two ports behaves. The default is a perfect wire."""

    cut: bool = False
    loss: float = 0.0
    """Share of packets that vanish, 0 to 1."""
    duplicate: float = 0.0
    """Share of packets that arrive twice."""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Added to the delay, evenly spread: later packets overtake earlier ones."""


@dataclass
class Counts:
    """What became of the packets."""

    carried: int = 0
    cut: int = 0
    lost: int = 0
    duplicated: int = 0
    delayed: int = 0
    refused: int = 0
    """The receiving namespace's device did not take it, or nobody has the address."""


def enter_network(path: str) -> None:
    """Move the calling thread into a network namespace, ``/proc/<pid>/ns/net``.

    Raises:
        OSError: There is none, or this process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter {path}: {os.strerror(number)}")
    finally:
        os.close(fd)


@dataclass
class Switch:
    """All ports and their links."""

    rng: random.Random
    ports: dict[int, int] = field(default_factory=dict)
    """File descriptor of each port's device."""
    routes: dict[bytes, int] = field(default_factory=dict)
    """Port of each address."""
    links: dict[tuple[int, int], Link] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    _delayed: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _number: int = 0

    def attach(self, port: int, pid: int, device: str) -> int:
        """Take the far end of a TUN device that lives in another process's network namespace."""
        own = f"/proc/{os.getpid()}/ns/net"
        home = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter_network(f"/proc/{pid}/ns/net")
            try:
                fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
                fcntl.ioctl(fd, _TUNSETIFF, request)
            finally:
                enter_network(f"/proc/self/fd/{home}")
        finally:
            os.close(home)
        self.ports[port] = fd
        return fd

    def handle(self, command: dict[str, Any]) -> dict[str, Any]:
        """Execute one command; see the module's text."""
        match command:
            case {"addresses": dict(addresses)}:
                self.routes = {
                    ipaddress.IPv4Address(text).packed: port for text, port in addresses.items()
                }
            case {"links": list(links)}:
                self.links = {
                    (rule.pop("source"), rule.pop("target")): Link(**rule) for rule in links
                }
            case {"count": _}:
                return dict(vars(self.counts))
            case _:
                raise ValueError(f"no such command: {command}")
        return {}

    def receive(self, port: int, packet: bytes) -> None:
        """Decide what becomes of one packet that ``port`` sent."""
        target = self.routes.get(packet[_ADDRESS_AT : _ADDRESS_AT + 4])
        if target is None or packet[0] >> 4 != 4:
            self.counts.refused += 1
            return
        link = self.links.get((port, target))
        if link is None:
            self._deliver(target, packet)
            return
        chance = self.rng.random
        if link.cut:
            self.counts.cut += 1
            return
        if link.loss and chance() < link.loss:
            self.counts.lost += 1
            return
        copies = 1
        if link.duplicate and chance() < link.duplicate:
            self.counts.duplicated += 1
            copies = 2
        for _ in range(copies):
            delay_ms = link.delay_ms + link.jitter_ms * chance()
            if delay_ms <= 0:
                self._deliver(target, packet)
            elif len(self._delayed) < DELAYED_MAX:
                self.counts.delayed += 1
                self._number += 1
                due = time.monotonic() + delay_ms / 1000
                heapq.heappush(self._delayed, (due, self._number, target, packet))
            else:
                self.counts.lost += 1

    def deliver_due(self, now: float) -> float | None:
        """Deliver what is due; return the seconds until the next, None when nothing waits."""
        while self._delayed and self._delayed[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._delayed)
            self._deliver(target, packet)
        return self._delayed[0][0] - now if self._delayed else None

    def _deliver(self, target: int, packet: bytes) -> None:
        fd = self.ports.get(target)
        try:
            if fd is None:
                raise OSError  # noqa: TRY301  # as if its device were down
            os.write(fd, packet)
            self.counts.carried += 1
        except OSError:
            self.counts.refused += 1


def run(seed: int) -> None:
    """Carry packets and obey commands until standard input ends."""
    switch = Switch(random.Random(seed))
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    port_of: dict[int, int] = {}
    pending = b""
    while True:
        wait = switch.deliver_due(time.monotonic())
        for fd, event in poll.poll(-1 if wait is None else max(0.0, wait)):
            if fd == 0:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    answer = _obey(switch, poll, port_of, line)
                    sys.stdout.write(json.dumps(answer) + "\n")
                    sys.stdout.flush()
                continue
            if event & (select.EPOLLERR | select.EPOLLHUP):
                poll.unregister(fd)  # its namespace is gone
                continue
            port = port_of[fd]
            for _ in range(_BATCH):
                try:
                    packet = os.read(fd, PACKET_BYTES_MAX)
                except OSError:  # nothing more
                    break
                switch.receive(port, packet)


def _obey(
    switch: Switch, poll: select.epoll, port_of: dict[int, int], line: bytes
) -> dict[str, Any]:
    try:
        command = json.loads(line)
        if "attach" in command:
            fd = switch.attach(**command["attach"])
            port_of[fd] = command["attach"]["port"]
            poll.register(fd, select.EPOLLIN)
            return {"ok": True}
        return {"ok": True, **switch.handle(command)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        return {"ok": False, "error": str(error)}


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

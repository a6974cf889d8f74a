"""Answers probes while the node opens its data, which holds up the event loop: from a thread of its own.

A long log, or a snapshot that a crash left half loaded, can take minutes. The startup probe asks for that
long, and whoever looks wants to know how far it is. The room listens on the HTTP port until the real
server takes it over; between the two a probe may be refused once. It does nothing but answer: who cannot be
told anything (the port is taken, port 0) is not told, and the real server says why.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

from kvnode.disk.snapshots import FileSnapshotStore

_HEAD_BYTES_MAX = 16 << 10
_TIMEOUT_S = 2.0
"""For one client, handshake included; others wait meanwhile."""
_BACKLOG = 16
_LINGER_S = 0.1
_TAKEN_MAX = 1 << 20


class WaitingRoom:
    """``open``, then ``note`` again and again, then ``close``."""

    def __init__(
        self, name: str, host: str, port: int, tls: Callable[[], ssl.SSLContext] | None
    ) -> None:
        """Listen nowhere yet.

        Args:
            name: The node's, which is on every answer.
            host: As for the HTTP server.
            port: The same; 0 and below: no room.
            tls: Gives the context of a connection; None: plain HTTP.
        """
        self._name = name.encode("latin-1", "replace")
        self._host, self._port = host, port
        self._tls = tls
        self._doing = "starting"
        self._since = time.monotonic()
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to answer, if the port is free."""
        if self._port <= 0:
            return
        with contextlib.suppress(OSError):
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._listening = socket.create_server(
                (self._host, self._port), family=family, backlog=_BACKLOG
            )
            self._thread = threading.Thread(target=self._serve, name="waiting room", daemon=True)
            self._thread.start()

    def note(self, doing: str) -> None:
        """Say what the node is doing now."""
        self._doing = doing

    def close(self) -> None:
        """Give the port back. Idempotent."""
        listening, self._listening = self._listening, None
        if listening is not None:
            with contextlib.suppress(OSError):
                listening.shutdown(
                    socket.SHUT_RDWR
                )  # wakes the thread, which close alone would not
            listening.close()
        if self._thread is not None:
            self._thread.join(2 * _TIMEOUT_S)

    def _serve(self) -> None:
        while (listening := self._listening) is not None:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError, ValueError):
                client.settimeout(_TIMEOUT_S)
                if self._tls is None:
                    self._answer(client)
                else:
                    with self._tls().wrap_socket(client, server_side=True) as secured:
                        self._answer(secured)

    def _answer(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES_MAX:
            chunk = client.recv(4096)
            if not chunk:
                return
            head += chunk
        path = head.split(b" ", 2)[1].partition(b"?")[0] if head.count(b" ") >= 2 else b""
        client.sendall(self._response(path))
        # A body that nobody reads would reset the connection, and with it the answer.
        client.settimeout(_LINGER_S)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            taken = len(head)
            while taken < _TAKEN_MAX and (chunk := client.recv(65536)):
                taken += len(chunk)

    def _response(self, path: bytes) -> bytes:
        if path == b"/health/live":
            status, body = b"200 OK", "live\nok   process: it opens its data\n"
        elif path.startswith(b"/v1/"):
            # Consul's clients go on only at these words, and drop their locks at a 503 (spec §1.6).
            status, body = b"500 Internal Server Error", "No cluster leader"
        elif not path.startswith(b"/health/"):
            status = b"503 Service Unavailable"
            body = f"this node is starting ({self._doing}); nothing was stored\n"
        else:
            status = b"503 Service Unavailable"
            seconds = time.monotonic() - self._since
            word = "ready" if path == b"/health/ready" else "started"
            body = f"not {word}: started\nFAIL started: {self._doing}, for {seconds:.0f} s now\n"
        content = body.encode()
        return (
            b"HTTP/1.1 %b\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"
            b"X-Kvnode-Node: %b\r\nServer: kvnode\r\nRetry-After: 1\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, self._name, len(content), content)
        )


class NotingSnapshots(FileSnapshotStore):
    """Says how much of a left-over snapshot has been read, while ``note`` is set."""

    note: Callable[[str], None] | None = None

    def read(self, handle: str) -> Iterator[bytes]:
        """Yield its chunks."""
        total = 0
        for chunk in super().read(handle):
            total += len(chunk)
            if self.note is not None:
                self.note(f"loading a snapshot, {total >> 20} MiB so far")
            yield chunk

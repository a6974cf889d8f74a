"""A client that sends exactly what a test says: no normalised paths, no clever headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class Answer:
    """One response, as it came over the wire."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    names: tuple[str, ...] = ()
    """Header names as written."""

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def index(self) -> int:
        return int(self.headers["x-consul-index"])


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    """Read one response; skips 100 Continue."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head[:-4].split("\r\n")
        status = int(status_line.split(" ")[1])
        if status != 100:
            break
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), f"a header was sent twice: {pairs}"
    body = b""
    if not head_only and status not in {204, 304}:
        if headers.get("transfer-encoding") == "chunked":
            while size := int((await reader.readline()).strip(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers["content-length"]))
    return Answer(status, headers, body, tuple(name for name, _ in pairs))


class Wire:
    """Requests to one node, over one kept connection that is made again when it was closed."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw connection; ``close`` closes it at the latest."""
        streams = await asyncio.open_connection(self.host, self.port)
        self._writers.append(streams[1])
        return streams

    async def __call__(
        self,
        method: str,
        target: str | bytes,
        body: bytes | str = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        raw = target if isinstance(target, bytes) else target.encode()
        content = body.encode() if isinstance(body, str) else body
        sent = {"Host": f"{self.host}:{self.port}", **(headers or {})}
        if content or method in {"PUT", "POST"}:
            sent.setdefault("Content-Length", str(len(content)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items()).encode()
        message = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), raw, lines, content)
        if self._streams is None:
            self._streams = await self.connect()
        reader, writer = self._streams
        writer.write(message)
        answer = await read_answer(reader, head_only=method == "HEAD")
        if answer.headers.get("connection") == "close":
            writer.close()
            self._streams = None
        return answer

    async def close(self) -> None:
        self._streams = None
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self._writers.clear()


class Kv:
    """The KV route below a prefix of the test's own, so that tests can share a cluster."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.prefix = f"t{uuid.uuid4().hex[:12]}/"

    def path(self, key: str, query: str = "") -> str:
        return f"/v1/kv/{self.prefix}{quote(key, safe='/')}" + (f"?{query}" if query else "")

    async def get(self, key: str, query: str = "") -> Answer:
        return await self.wire("GET", self.path(key, query))

    async def put(self, key: str, value: bytes | str = b"", query: str = "") -> Answer:
        return await self.wire("PUT", self.path(key, query), value)

    async def delete(self, key: str, query: str = "") -> Answer:
        return await self.wire("DELETE", self.path(key, query))

    async def entry(self, key: str) -> dict[str, Any]:
        answer = await self.get(key)
        assert answer.status == 200, answer
        (entry,) = answer.json
        return dict(entry)


class Sessions:
    """The session routes; what a test has made is destroyed after it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.made: list[str] = []

    async def create(self, **members: Any) -> str:
        answer = await self.wire("PUT", "/v1/session/create", json.dumps(members))
        assert answer.status == 200, answer
        assert list(answer.json) == ["ID"]
        self.made.append(answer.json["ID"])
        return self.made[-1]

    async def renew(self, session: str) -> Answer:
        return await self.wire("PUT", f"/v1/session/renew/{session}")

    async def destroy(self, session: str) -> Answer:
        return await self.wire("PUT", f"/v1/session/destroy/{session}")

    async def info(self, session: str, query: str = "") -> Answer:
        return await self.wire("GET", f"/v1/session/info/{session}" + (query and f"?{query}"))

    async def lives(self, session: str) -> bool:
        answer = await self.info(session)
        assert answer.status == 200, answer
        return answer.json != []

    async def destroy_all(self) -> None:
        for session in self.made:
            await self.destroy(session)

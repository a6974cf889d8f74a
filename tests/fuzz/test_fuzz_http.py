"""Whatever bytes arrive on the HTTP port, in whatever pieces.

Laws: every answer is one that the contract knows, and none says "internal error"; nothing is stored
that the same bytes in one piece would not have stored; both shells store the same, so that nobody can
smuggle a request past one of them; and when the connection is gone nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import uuid
from typing import Any, NamedTuple

import pytest

from kvnode.http import HttpContext, HttpServer, HttpSettings, kv
from kvnode.http.fast import Connection
from kvnode.http.golang import encode_query, parse_duration_ns, parse_query, parse_uint, quote
from kvnode.http.heads import read_block
from kvnode.http.messages import Response, header_pairs
from kvnode.http.paths import resolve
from kvnode.http.query import parse_options
from kvnode.store.commands import Command, SessionCreate, check_command
from kvnode.store.own_commands import Once
from tests.fuzz.machinery import CASES, INTERESTING, QUICK_CASES, fuzz, mutate, seeds, text, value
from tests.http.fake_replica import FakeReplica

SETTINGS = HttpSettings(
    node_name="n", value_bytes_max=300, key_bytes_max=300, body_bytes_max=300,
    url_bytes_max=1500, header_bytes_max=3000, pipeline_max=4,
)  # fmt: skip
KNOWN = {100, 200, 301, 307, 400, 404, 405, 408, 409, 413, 414, 417, 422, 431, 500, 501, 505}
"""500 under /v1 only, for Consul's own refusals."""


# -- requests ---------------------------------------------------------------------------------------


def key(rng: random.Random) -> bytes:
    return rng.choice((b"a", b"web/color", b"a%20b", b"%2e%2e/x", b"a//b", b"./a", b"%zz", b"%00",
                       b"\xc3\xa9", b"\xff", b"", b"k" * 299, b"k" * 400, b"a;b", b"a?b"))  # fmt: skip


def query(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return b""
    names = (b"cas", b"flags", b"recurse", b"keys", b"raw", b"stale", b"consistent", b"index",
             b"wait", b"separator", b"acquire", b"release", b"pretty", b"dc", b"ns", b"max_stale",
             b"token", b"cached", b"%63as", b"", b"limit", b"after", b"reverse", b"count", b"start",
             b"end", b"ttl", b"add", b"copy", b"move", b"overwrite", b"keep", b"if-index")  # fmt: skip
    pairs = []
    for _ in range(rng.randrange(1, 4)):
        dice = rng.random()
        if dice < 0.4:
            given = b"=%d" % rng.choice(INTERESTING)
        elif dice < 0.6:
            given = b"=" + rng.choice((b"1s", b"-1", b"1h1h", b"9" * 70 + b"s", b"%41", b"%", b"x"))
        elif dice < 0.8:
            given = b"=" + text(rng).encode("utf-8", "replace")
        else:
            given = b""
        pairs.append(rng.choice(names) + given)
    return b"?" + b"&".join(pairs)


def plain(rng: random.Random) -> bytes:
    """A request as clients send it; most of them, so that there is something to get wrong."""
    target = rng.choice((b"/v1/kv/a", b"/kv/b", b"/v1/kv/web/color?cas=0", b"/v1/kv/a?flags=7",
                         b"/v1/kv/n?add=1", b"/kv/c?copy=a", b"/v1/kv/?move=a&recurse",
                         b"/v1/kv/a?ttl=5s", b"/v1/kv/?keys&limit=2"))  # fmt: skip
    method = rng.choice((b"GET", b"PUT", b"PUT", b"DELETE", b"POST"))
    body = rng.randbytes(rng.choice((0, 3, 40, 300))) if method in (b"PUT", b"POST") else b""
    length = b"Content-Length: %d\r\n" % len(body) if body or rng.random() < 0.5 else b""
    if rng.random() < 0.2:
        length += (
            b"Idempotency-Key: "
            + rng.choice((b"k", b"%d" % rng.randrange(9), b"\xff", b" "))
            + b"\r\n"
        )
    return b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (method, target, length, body)


TXN = [{"KV": {"Verb": "set", "Key": "t", "Value": "dg==", "Flags": 1}},
       {"KV": {"Verb": "cas", "Key": "t", "Value": "dg==", "Index": 7}},
       {"KV": {"Verb": "get", "Key": "a"}}, {"KV": {"Verb": "check-not-exists", "Key": "zz"}},
       {"KV": {"Verb": "lock", "Key": "t", "Session": "7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"}}]  # fmt: skip
SESSION = {"Name": "n", "TTL": "15s", "LockDelay": "5s", "Behavior": "delete", "Checks": []}


def document(rng: random.Random) -> bytes:
    """A JSON body: sound, with a value of another kind somewhere, damaged, or deeply nested."""
    chosen: Any = rng.choice((TXN[: rng.randrange(6)], SESSION, [rng.choice(TXN)]))
    dice = rng.random()
    if dice < 0.02:
        return rng.choice((b"[", b'{"KV":', b'[{"KV":[')) * rng.choice((50, 300))
    if dice < 0.5:
        chosen = json.loads(json.dumps(chosen))
        inner = chosen
        while isinstance(inner, list | dict) and inner and rng.random() < 0.8:
            name = rng.randrange(len(inner)) if isinstance(inner, list) else rng.choice([*inner])
            if rng.random() < 0.4:
                inner[name] = value(rng)
                break
            inner = inner[name]
    data = json.dumps(chosen).encode()
    return mutate(rng, data) if dice > 0.8 else data


def other_route(rng: random.Random) -> bytes:
    """A request to a route with a body of JSON, or with none."""
    method, path = rng.choice((
        ("PUT", "/v1/txn"), ("PUT", "/v1/session/create"), ("PUT", "/v1/session/destroy/x"),
        ("PUT", "/v1/session/renew/7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"), ("GET", "/v1/session/list"),
        ("GET", "/v1/session/info/x"), ("GET", "/v1/session/node/n"), ("GET", "/v1/status/peers"),
        ("GET", "/v1/agent/self"), ("GET", "/v1/catalog/nodes"), ("PUT", "/v1/agent/check/pass/x"),
        ("DELETE", "/v1/operator/raft/peer"), ("GET", "/openapi.json"), ("GET", "/health/ready"),
        ("PUT", "/v1/kv/a?acquire=7a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"),
    ))  # fmt: skip
    body = document(rng) if method == "PUT" else b""
    head = f"{method} {path}".encode() + (query(rng) if "?" not in path else b"")
    return head + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def request(rng: random.Random) -> bytes:
    """One request: plain, or with something odd about it."""
    dice = rng.random()
    if dice < 0.55:
        return plain(rng)
    if dice < 0.65:
        return other_route(rng)
    method = rng.choice((b"GET", b"GET", b"PUT", b"PUT", b"POST", b"DELETE", b"HEAD", b"OPTIONS",
                         b"PATCH", b"CONNECT"))  # fmt: skip
    prefix = rng.choice((b"/v1/kv/", b"/v1/kv/", b"/kv/", b"/kv/", b"/v1/status/leader", b"/pods",
                         b"http://h/v1/kv/", b"/V1/kv/", b"*", b"/", b"//kv/"))  # fmt: skip
    body = b""
    head = b"Host: x\r\n"
    if method in (b"PUT", b"POST") or rng.random() < 0.05:
        body = rng.randbytes(rng.choice((0, 1, 10, 299, 300, 301, 900)))
        if rng.random() < 0.15:
            head += b"Transfer-Encoding: chunked\r\n"
            body = chunked(rng, body)
        else:
            head += b"Content-Length: %d\r\n" % len(body)
    for _ in range(rng.choice((0, 0, 1, 2))):
        head += rng.choice((b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"X-A: b\r\n",
                            b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n", b"Accept: */*\r\n",
                            b"Content-Length: 5\r\n", b"Transfer-Encoding: identity\r\n",
                            b"X-Long: " + b"v" * 2500 + b"\r\n", b"Host: y\r\n"))  # fmt: skip
    version = rng.choice((b"HTTP/1.1",) * 12 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"ICY"))
    return b"%b %b%b%b %b\r\n%b\r\n%b" % (method, prefix, key(rng), query(rng), version, head, body)


def chunked(rng: random.Random, body: bytes) -> bytes:
    parts = []
    at = 0
    while at < len(body):
        size = rng.choice((1, 7, 100))
        piece = body[at : at + size]
        parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at += size
    return b"".join(parts) + b"0\r\n\r\n"


def stream(rng: random.Random) -> bytes:
    """What one client sends in all."""
    requests = [request(rng) for _ in range(rng.choice((1, 1, 2, 3, 6)))]
    if rng.random() < 0.6:
        at = rng.randrange(len(requests))
        requests[at] = mutate(rng, requests[at], requests)
    return b"".join(requests)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes as the network may deliver them."""
    dice = rng.random()
    if dice < 0.3 or not data:
        return [data]
    if dice < 0.4 and len(data) < 600:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


# -- one connection without a socket ------------------------------------------------------------------


class Socket(asyncio.Transport):
    """Collects what is written; reads are handed in by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = bytearray()
        self.closed = False
        self.reading = True
        self.wrote_eof = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def write(self, data: Any) -> None:
        assert not self.wrote_eof, "written after the end"
        self.written += data

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self.wrote_eof = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Told(NamedTuple):
    """What became of the bytes of one connection."""

    answer: bytes
    stored: list[Command]
    is_lean: bool
    """The full shell had no part in it."""


def nameless(command: Command) -> Command:
    """The same without the id that a new session gets by chance."""
    if isinstance(command, Once):
        return command._replace(command=nameless(command.command))
    if isinstance(command, SessionCreate):
        return command._replace(session_id=str(uuid.UUID(int=0)))
    return command


class Shell:
    """A server that never listens."""

    def __init__(self, *, fast_path: bool) -> None:
        self.replica = FakeReplica()
        self.replica._ticking = (
            True  # no time passes here: what is stored depends on the bytes alone
        )
        settings = HttpSettings(
            **{
                **{name: getattr(SETTINGS, name) for name in SETTINGS.__slots__},
                "fast_path": fast_path,
            }
        )
        self.server = HttpServer(HttpContext(replica=self.replica, settings=settings))
        self.hub = self.server._hub
        self.hub.start()

    async def talk(self, parts: list[bytes]) -> Told:
        """Deliver the pieces, then the end; return what was answered and stored."""
        self.replica.commands.clear()
        socket = Socket()
        socket.protocol = self.hub.make_connection()
        socket.protocol.connection_made(socket)
        for part in parts:
            if not socket.reading:
                await self.turns(socket)
            await asyncio.sleep(0)
            if socket.closed:
                break
            socket.protocol.data_received(part)
        await self.turns(socket)
        if not socket.closed and not socket.protocol.eof_received():
            socket.close()
        await self.turns(socket)
        socket.close()
        await self.turns(socket)
        is_lean = isinstance(socket.protocol, Connection)
        stored = [nameless(command) for command in self.replica.commands]
        return Told(bytes(socket.written), stored, is_lean)

    async def turns(self, socket: Socket) -> None:
        """Let the loop go round until nothing more happens."""
        idle, before = 0, (-1, -1)
        while idle < 6:
            await asyncio.sleep(0)
            now = (len(socket.written), len(self.replica.commands))
            idle, before = idle + 1 if now == before else 0, now

    def close(self) -> None:
        self.hub.close()


def split_answers(data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer; fails when they are not well-formed."""
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        assert end, f"an answer breaks off: {data[:200]!r}"
        lines = head.split(b"\r\n")
        version, status, *_ = lines[0].split(b" ", 2)
        assert version.startswith(b"HTTP/"), lines[0]  # in the version that was asked
        if status == b"100":
            data = rest
            continue
        fields = {n.lower(): v for n, _, v in (line.partition(b": ") for line in lines[1:])}
        assert b"x-kvnode-node" in fields, head
        length = int(fields.get(b"content-length", b"0"))
        body, data = rest[:length], rest[length:]
        found.append((int(status), body))
    return found


class Failures:
    """What reached the loop's handler of last resort."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def __call__(self, _loop: Any, context: dict[str, Any]) -> None:
        self.found.append(context.get("exception") or context)


def run_connections(seed: int, cases: int) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        failures = Failures()
        loop.set_exception_handler(failures)

        async def build() -> tuple[Shell, Shell]:
            return Shell(fast_path=True), Shell(fast_path=False)

        lean, full = runner.run(build())

        stored = lean_only = 0

        async def one(rng: random.Random) -> None:
            nonlocal stored, lean_only
            data = stream(rng)
            whole = await lean.talk([data])
            split = await lean.talk(pieces(rng, data))
            other = await full.talk([data]) if rng.random() < 0.3 else whole
            shown = f"{data[:1500]!r}"
            for told in (whole, split, other):
                check(told, shown, bodiless=b"HEAD" in data)
            stored += len(whole.stored)
            lean_only += whole.is_lean
            assert agree(whole, split), f"the pieces changed what is stored: {shown}"
            assert agree(whole, other), f"the shells do not agree about {shown}"
            for shell in (lean, full):
                gate = shell.server.gate
                left = (
                    gate.connections,
                    gate.requests,
                    gate.body_bytes,
                    len(shell.hub.connections),
                )
                assert left == (0, 0, 0, 0), f"{left} left behind by {shown}"
            assert failures.found == [], f"{failures.found} from {shown}"

        fuzz(lambda rng: runner.run(one(rng)), seed, cases)
        runner.run(close(lean, full))
        print(f"fuzz: {stored} writes stored, {lean_only} connections all on the lean path")
        assert stored > cases // 4, "a run in which nothing is stored proves nothing"
        assert lean_only > cases // 8


async def close(*shells: Shell) -> None:
    for shell in shells:
        shell.close()


def agree(one: Told, other: Told) -> bool:
    """Whether two ways of delivering the same bytes stored the same.

    The full shell may give up earlier, and must say so: aiohttp drops what came in one piece with
    nonsense. The lean shell alone leaves no doubt, except about heads that are too long: it may have
    handed the connection over before it saw how long.
    """
    fewer, more = sorted((one, other), key=lambda told: len(told.stored))
    if fewer.stored == more.stored:
        return True
    status = last_status(fewer.answer)
    if fewer.is_lean and status not in (414, 431):
        return False
    return fewer.stored == more.stored[: len(fewer.stored)] and status >= 400


def check(told: Told, shown: str, *, bodiless: bool) -> None:
    """An answer is one that the contract knows."""
    for command in told.stored:
        check_command(command)
    if bodiless:
        return  # answers to HEAD have no body: they cannot be told apart by their lengths
    for status, body in split_answers(told.answer):
        assert status in KNOWN, (status, shown)
        assert b"internal error" not in body, shown
        assert b"Traceback" not in body, shown


def last_status(answer: bytes) -> int:
    """Of the last answer; 0 when there is none."""
    found = re.findall(rb"HTTP/[0-9]\.[0-9] ([0-9]{3}) ", answer)
    return int(found[-1]) if found else 0


def test_connections() -> None:
    run_connections(seeds()[0], QUICK_CASES // 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_connections_for_long() -> None:
    for seed in seeds():
        run_connections(seed, CASES // 2)


# -- the pure parts -----------------------------------------------------------------------------------


def parse_case(rng: random.Random) -> None:
    """``kv.parse`` on any method, path, query and body: an operation that can be applied, or an answer."""
    prefix = rng.choice((kv.V1_PREFIX, kv.OWN_PREFIX))
    path = prefix + (mutate(rng, key(rng)) if rng.random() < 0.6 else key(rng))
    raw_query = query(rng)[1:]
    if rng.random() < 0.5:
        raw_query = mutate(rng, raw_query)
    method = rng.choice(("GET", "PUT", "POST", "DELETE", "HEAD"))
    found = kv.parse(method, path, raw_query, rng.randbytes(rng.choice((0, 5, 300))), SETTINGS)
    match found:
        case Response():
            assert found.status in KNOWN
            assert b"internal error" not in found.body
            for name, shown in header_pairs(found.head):
                assert name.isascii()
                assert "\r" not in shown
                assert "\n" not in shown
            # A key that makes us split our own head is the classic of this trade.
            assert found.head == b"" or found.head.endswith(b"\r\n")
            assert b"\r\n\r\n" not in found.head
        case kv.Write():
            check_command(found.command)
            assert len(getattr(found.command, "key", b"")) <= SETTINGS.key_bytes_max
        case kv.Read():
            assert len(found.key) <= SETTINGS.key_bytes_max
            assert 0 < found.options.wait_s <= 600
            assert 0 <= found.options.index < 2**64


def golang_case(rng: random.Random) -> None:
    """The pieces of Go: a value, or ``ValueError`` with a text."""
    raw = mutate(rng, query(rng))
    values = parse_query(raw)
    assert parse_query(encode_query(values).encode()) == values
    parse_options(raw)
    word = rng.choice(
        (text(rng), raw.decode("latin-1"), "9" * rng.randrange(1, 100) + "h", "1.5h2m")
    )
    for parse, top in ((parse_uint, 2**64), (parse_duration_ns, 2**63)):
        try:
            assert abs(parse(word)) <= top
        except ValueError as error:
            shown = str(error)
            assert shown.isprintable(), shown
    assert quote(word).isprintable()
    resolve(rng.choice(("GET", "PUT")), b"/" + raw, raw)
    facts = read_block(mutate(rng, b"Host: x\r\nContent-Length: 12\r\nConnection: close\r\n"))
    assert facts is None or 0 <= facts.length < 10**10


@pytest.mark.parametrize("case", [parse_case, golang_case])
def test_pure_parts(case: Any) -> None:
    fuzz(case, seeds()[0], QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", [parse_case, golang_case])
def test_pure_parts_for_long(case: Any) -> None:
    for seed in seeds():
        fuzz(case, seed, CASES // 2)

"""What is asked of the systems: keys, values, and the very bytes of each HTTP request.

Pure: no sockets, no clock, no randomness that is not derived from the key, so that every system and
every run gets the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

VALUE_BYTES = 100
TAG_BYTES = 12
"""A multiple of three, so that the base64 of a tagged value starts with the base64 of its tag."""
PREFIX = "bench/"
VARIANTS = "AB"
"""A pass over the keys writes variant A, the next one B: no write repeats the value that is there,
which Consul (and kvnode) would be allowed to treat as nothing to do."""


def key_name(number: int) -> str:
    """Return the name of key ``number``, from 0; all names are 14 bytes long up to 99,999,999."""
    assert 0 <= number < 10**8
    return f"{PREFIX}{number:08d}"


def key_order(count: int) -> list[int]:
    """Return 0..count-1 in a fixed scattered order, each once: neither sorted nor random per run."""
    return sorted(range(count), key=lambda n: hashlib.blake2b(n.to_bytes(8, "big")).digest())


def make_tag(serial: int, variant: str) -> str:
    """Return the tag of measurement ``serial`` and a variant: 12 ASCII characters."""
    assert variant in VARIANTS
    tag = f"m{serial:09d}{variant}-"
    assert len(tag) == TAG_BYTES
    return tag


def value_for(key: str, tag: str) -> bytes:
    """Return the 100-byte value of ``key``: the tag, then letters that no compressor likes."""
    filler = base64.b85encode(hashlib.shake_128(key.encode()).digest(VALUE_BYTES))
    value = tag.encode() + filler[: VALUE_BYTES - TAG_BYTES]
    assert len(value) == VALUE_BYTES
    return value


class Dialect(Protocol):
    """How one HTTP API spells a write, a linearizable read and a listing."""

    put_proof: str
    """Text that only the answer to a successful write contains."""

    def put(self, key: str, value: bytes) -> bytes:
        """Return the bytes of the request that writes ``value``."""
        ...

    def get(self, key: str) -> bytes:
        """Return the bytes of a linearizable read of one key."""
        ...

    def listing(self) -> tuple[str, str, bytes]:
        """Return method, path and body of a request for everything under ``PREFIX``."""
        ...

    def parse_listing(self, body: bytes) -> dict[str, bytes]:
        """Return key and value of each row of a listing's answer."""
        ...


def _http(method: str, path: str, body: bytes | None) -> bytes:
    """Return a whole HTTP/1.1 request; keep-alive is HTTP/1.1's default."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class ConsulDialect:
    """Consul's KV API, which kvnode speaks too (spec §4)."""

    put_proof = "true"

    def put(self, key: str, value: bytes) -> bytes:
        return _http("PUT", f"/v1/kv/{key}", value)

    def get(self, key: str) -> bytes:
        return _http("GET", f"/v1/kv/{key}?consistent", None)

    def listing(self) -> tuple[str, str, bytes]:
        return "GET", f"/v1/kv/{PREFIX}?recurse&consistent", b""

    def parse_listing(self, body: bytes) -> dict[str, bytes]:
        return {row["Key"]: base64.b64decode(row["Value"] or "") for row in json.loads(body)}


class EtcdDialect:
    """etcd's gRPC-JSON gateway, v3; a range is linearizable unless ``serializable`` is asked for."""

    put_proof = '"revision"'

    def put(self, key: str, value: bytes) -> bytes:
        return self._post("put", {"key": _b64(key.encode()), "value": _b64(value)})

    def get(self, key: str) -> bytes:
        return self._post("range", {"key": _b64(key.encode())})

    def listing(self) -> tuple[str, str, bytes]:
        end = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
        body = {"key": _b64(PREFIX.encode()), "range_end": _b64(end.encode())}
        return "POST", "/v3/kv/range", json.dumps(body).encode()

    def parse_listing(self, body: bytes) -> dict[str, bytes]:
        rows: list[Mapping[str, str]] = json.loads(body).get("kvs", [])
        return {
            base64.b64decode(row["key"]).decode(): base64.b64decode(row.get("value", ""))
            for row in rows
        }

    @staticmethod
    def _post(method: str, message: Mapping[str, str]) -> bytes:
        body = json.dumps(message, separators=(",", ":")).encode()
        return _http("POST", f"/v3/kv/{method}", body)


@dataclass(frozen=True, slots=True)
class Replay:
    """The requests of one measurement, in order; `replay.lua` starts over at the end."""

    requests: Sequence[bytes]
    proof: str
    """Text that every good answer contains."""

    def encode(self) -> bytes:
        """Return the file that `replay.lua` reads: per request its length, a newline, its bytes."""
        return b"".join(b"%d\n%s" % (len(request), request) for request in self.requests)


def put_replay(dialect: Dialect, keys: int, serial: int) -> Replay:
    """Return two passes of writes over ``keys`` keys, tagged with ``serial``."""
    order = [key_name(number) for number in key_order(keys)]
    requests = [
        dialect.put(key, value_for(key, make_tag(serial, variant)))
        for variant in VARIANTS
        for key in order
    ]
    return Replay(requests, dialect.put_proof)


def get_replay(dialect: Dialect, keys: int, serial: int) -> Replay:
    """Return one pass of reads over keys that ``seed_requests(…, serial)`` has written."""
    requests = [dialect.get(key_name(number)) for number in key_order(keys)]
    return Replay(requests, _b64(make_tag(serial, VARIANTS[0]).encode()))


def seed_requests(dialect: Dialect, keys: int, serial: int) -> Iterator[bytes]:
    """Yield one write per key."""
    tag = make_tag(serial, VARIANTS[0])
    for number in range(keys):
        key = key_name(number)
        yield dialect.put(key, value_for(key, tag))


def count_written(
    rows: Mapping[str, bytes], serial: int, variants: Iterable[str] = VARIANTS
) -> int:
    """Return how many rows hold exactly a value that measurement ``serial`` wrote under that key."""
    tags = [make_tag(serial, variant) for variant in variants]
    return sum(
        1 for key, value in rows.items() if any(value == value_for(key, tag) for tag in tags)
    )


def least_written(acknowledged: int, keys: int, connections: int, threads: int) -> int:
    """Return how many keys must carry the tag after ``acknowledged`` writes.

    Each of wrk's threads walks the keys in order from its own starting point, and at most
    ``connections`` requests were in flight when it stopped; so a thread's acknowledged writes went to
    that many different keys, until it has been around once. With several threads the least is the
    share of the busiest one.
    """
    return max(0, min(acknowledged // threads, keys - connections))

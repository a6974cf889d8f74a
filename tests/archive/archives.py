"""Archives made and taken apart by other means than the ones tested: ``gzip``, ``tarfile``, ``msgpack``."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import Any

import msgpack

ID = "ef2ba2f3-cbea-4874-2dc8-df65f9953ae9"

HEADER: dict[bytes, Any] = {b"LastIndex": 18}
SESSION: dict[bytes, Any] = {
    b"Behavior": b"release", b"Checks": None, b"CreateIndex": 8, b"ID": ID.encode(),
    b"LockDelay": 3000000000, b"ModifyIndex": 8, b"Name": b"n1", b"Node": b"ca",
    b"NodeChecks": [], b"ServiceChecks": None, b"TTL": b"60s",
}  # fmt: skip
"""As a real Consul 1.8.7 wrote it."""


def key(name: bytes, value: bytes | None = b"v", **fields: Any) -> tuple[int, dict[bytes, Any]]:
    known: dict[bytes, Any] = {
        b"CreateIndex": 11, b"Flags": 0, b"Key": name, b"LockIndex": 0, b"ModifyIndex": 11,
        b"Session": b"", b"Value": value,
    }  # fmt: skip
    return 2, {**known, **{field.encode(): item for field, item in fields.items()}}


CONSUL: list[tuple[int, Any]] = [
    (0, {b"Address": b"127.0.0.1", b"Node": b"ca", b"Service": None, b"NodeMeta": {b"a": b""}}),
    (3, SESSION),
    key(b"a/b", b"v1", Flags=2**64 - 1),
    key(b"empty", None),
    key(b"lock", b"held", LockIndex=1, Session=ID.encode()),
    key("ç x".encode(), b"q" * 70_000),
    (5, {b"CreateIndex": 0, b"Flags": 0, b"Key": b"gone", b"LockIndex": 0, b"ModifyIndex": 13,
         b"Session": b"", b"Value": None}),
    (9, {b"CleanupDeadServers": True, b"MaxTrailingLogs": 250}),
    (16, {b"Key": b"kvs", b"Value": 18}),
    (29, {b"ChunkMap": {}}),
]  # fmt: skip


def pack(value: object) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=False)
    return data


def state(records: list[tuple[int, Any]] = CONSUL, header: Any = HEADER) -> bytes:
    return pack(header) + b"".join(bytes((kind,)) + pack(fields) for kind, fields in records)


def meta(size: int, **members: Any) -> bytes:
    value = {
        "Version": 1, "ID": "2-18-1795270942826", "Index": 18, "Term": 2, "Peers": "ka8x",
        "Configuration": {"Servers": [{"Suffrage": 0, "ID": "x", "Address": "127.0.0.1:8300"}]},
        "ConfigurationIndex": 1, "Size": size,
    }  # fmt: skip
    return json.dumps({**value, **members}, separators=(",", ":")).encode() + b"\n"


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()
    ).encode()


def tar(members: list[tuple[str, bytes]], padding: int = 1024) -> bytes:
    out = b""
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o600
        out += info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    return out + bytes(padding)


def archive(content: bytes | None = None, *, padding: int = 1024) -> bytes:
    content = state() if content is None else content
    files = {"meta.json": meta(len(content)), "state.bin": content}
    return gzip.compress(tar([*files.items(), ("SHA256SUMS", sums(files))], padding))


def take_apart(data: bytes) -> tuple[dict[str, Any], dict[bytes, Any], list[tuple[int, Any]]]:
    """Return ``meta.json``, the header and the records, after checking the sums and the order."""
    raw = gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(raw)) as opened:
        files = {}
        for member in opened:
            assert (member.mode, member.uid, member.gid) == (0o600, 0, 0)
            extracted = opened.extractfile(member)
            assert extracted is not None
            files[member.name] = extracted.read()
    assert list(files) == ["meta.json", "state.bin", "SHA256SUMS"]
    assert files.pop("SHA256SUMS") == sums(files)
    used = sum(512 + len(body) + -len(body) % 512 for body in files.values()) + 1024
    assert len(raw) == used + 1024, "two empty blocks and nothing else"
    unpacker = msgpack.Unpacker(io.BytesIO(files["state.bin"]), raw=True, max_str_len=1 << 30)
    header = unpacker.unpack()
    records = []
    while True:
        try:
            kind = unpacker.unpack()
        except msgpack.OutOfData:
            break
        records.append((kind, unpacker.unpack()))
    return json.loads(files["meta.json"]), header, records

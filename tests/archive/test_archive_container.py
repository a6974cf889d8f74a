"""The outer layers: what Consul accepts is written, what is damaged or hostile is refused (spec §8)."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable

import pytest

from kvnode.archive import Meta, open_container, write_container
from kvnode.errors import BadArchive, DiskNearlyFull
from tests.archive.archives import archive, meta, state, sums, take_apart, tar

LIMIT = 1 << 20


def read(data: bytes, limit: int = LIMIT) -> bytes:
    found = open_container(io.BytesIO(data), io.BytesIO(), limit, lambda _size: None)
    content = found.state.read()
    assert found.size == len(content)
    return content


def refusal(data: bytes) -> str:
    with pytest.raises(BadArchive) as refused:
        read(data)
    return str(refused.value)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 300_000])
def test_what_is_written_is_what_consul_reads(size: int) -> None:
    content = b"\x80" + bytes(size)
    servers = (("id-0", "10.0.0.1:8300", True), ("id-1", "10.0.0.2:8300", False))
    written = Meta("3-18-99", 18, 3, servers, len(content))
    out = b"".join(write_container(written, io.BytesIO(content), hashlib.sha256(content).digest()))
    if not size:
        described = take_apart(out)[0]
        assert list(described) == [
            "Version", "ID", "Index", "Term", "Peers", "Configuration", "ConfigurationIndex", "Size",
        ]  # fmt: skip
        assert described["Configuration"]["Servers"][1] == {
            "Suffrage": 1, "ID": "id-1", "Address": "10.0.0.2:8300",
        }  # fmt: skip
    found = open_container(io.BytesIO(out), io.BytesIO(), LIMIT, lambda _size: None)
    assert found.meta == written
    assert found.state.read() == content


def test_an_archive_of_one_state_is_always_the_same() -> None:
    """No time in it."""
    written = Meta("3-18-99", 18, 3, (), 3)
    one, other = (
        b"".join(write_container(written, io.BytesIO(b"abc"), bytes(32))) for _ in range(2)
    )
    assert one == other


def test_a_padded_tar_of_another_program_is_read() -> None:
    """Consul itself refuses these."""
    assert read(archive(padding=10_240)) == state()


CONTENT = state()
GOOD = {"meta.json": meta(len(CONTENT)), "state.bin": CONTENT}


def made(*members: tuple[str, bytes], padding: int = 1024) -> bytes:
    return gzip.compress(tar(list(members), padding))


def link() -> bytes:
    info = tarfile.TarInfo("state.bin")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return gzip.compress(info.tobuf() + bytes(1024))


BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "failed to decompress snapshot: EOF"),
    "no gzip": (b"hello, world", "failed to decompress snapshot: gzip: invalid header"),
    "half a header": (archive()[:5], "failed to decompress snapshot: unexpected EOF"),
    "half": (archive()[:-400], "failed to read or write snapshot data: unexpected EOF"),
    "no tar": (gzip.compress(b"x" * 5000), "archive/tar"),
    "an empty tar": (gzip.compress(bytes(1024)), 'file missing for "meta.json"'),
    "a cut tar": (gzip.compress(tar([*GOOD.items()])[:-1400]), "unexpected EOF"),
    "no end": (gzip.compress(tar([*GOOD.items()], 0)), "EOF"),
    "another file": (
        made(*GOOD.items(), ("../../etc/passwd", b"x")),
        'unexpected file "../../etc/passwd" in snapshot',
    ),
    "a path": (made(("/state.bin", CONTENT)), 'unexpected file "/state.bin" in snapshot'),
    "a link": (link(), 'unexpected file "state.bin" in snapshot'),
    "twice": (made(*GOOD.items(), ("state.bin", b"x")), '"state.bin" is there twice'),
    "no sums": (made(*GOOD.items()), 'file missing for "SHA256SUMS"'),
    "no state": (
        made(("meta.json", GOOD["meta.json"]), ("SHA256SUMS", sums(GOOD))),
        'file missing for "state.bin"',
    ),
    "a wrong sum": (
        made(("meta.json", GOOD["meta.json"]), ("state.bin", CONTENT + b"x"),
             ("SHA256SUMS", sums(GOOD))),
        'failed checking integrity of snapshot: hash check failed for "state.bin"',
    ),
    "a wrong sum of meta": (
        made(("meta.json", meta(3)), ("state.bin", CONTENT), ("SHA256SUMS", sums(GOOD))),
        'hash check failed for "meta.json"',
    ),
    "a missing sum": (
        made(*GOOD.items(), ("SHA256SUMS", sums({"meta.json": GOOD["meta.json"]}))),
        'file missing for "state.bin"',
    ),
    "a sum of another file": (
        made(*GOOD.items(), ("SHA256SUMS", sums({**GOOD, "x": b""}))),
        'list missing hash for "x"',
    ),
    "sums that are none": (made(*GOOD.items(), ("SHA256SUMS", b"\xff\n")), "not readable"),
    "something behind": (
        made(*GOOD.items(), ("SHA256SUMS", sums(GOOD)))[:-8] + b"\1" * 8,
        "gzip: invalid checksum",
    ),
    "a second tar behind": (
        gzip.compress(tar([*GOOD.items(), ("SHA256SUMS", sums(GOOD))]) + b"x" * 512),
        "there is more after its end",
    ),
    "endless zeros behind": (
        gzip.compress(tar([*GOOD.items(), ("SHA256SUMS", sums(GOOD))]) + bytes(3 << 20)),
        "there is more after its end",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_archive_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


METAS: dict[str, bytes] = {
    "no JSON": b"{",
    "no object": b"[]",
    "another version": meta(1, Version=2),
    "a text as index": meta(1, Index="5"),
    "a negative term": meta(1, Term=-1),
    "a huge index": meta(1, Index=1 << 64),
    "servers of another form": meta(1, Configuration={"Servers": [1]}),
    "a configuration of another form": meta(1, Configuration=7),
    "deep": b'{"ID":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("document", METAS.values(), ids=METAS)
def test_metadata_that_cannot_be_is_refused(document: bytes) -> None:
    files = {"meta.json": document, "state.bin": CONTENT}
    assert "metadata" in refusal(made(*files.items(), ("SHA256SUMS", sums(files))))


@pytest.mark.parametrize("member", ["state.bin", "meta.json", "SHA256SUMS"])
def test_a_bomb_is_refused_by_what_its_header_says(member: str) -> None:
    """1.5 GB of zeros in 1.5 MB: nothing of it is unpacked."""
    info = tarfile.TarInfo(member)
    info.size = 1500 << 20
    bomb = gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(100_000))
    target = io.BytesIO()
    with pytest.raises(BadArchive, match="bytes"):
        open_container(io.BytesIO(bomb), target, LIMIT, lambda _size: None)
    assert target.tell() == 0


def test_unpacking_leaves_the_last_space_alone() -> None:
    def refuse(_size: int) -> None:
        raise DiskNearlyFull("no room")

    with pytest.raises(DiskNearlyFull):
        open_container(io.BytesIO(archive()), io.BytesIO(), LIMIT, refuse)


def flips(data: bytes) -> Callable[[int], bytes]:
    return lambda at: data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]


def test_no_flipped_bit_gets_through() -> None:
    """The checksums of gzip and of the list see to that; the gzip's own header has none."""
    data = archive(state([]))
    flipped = flips(data)
    for at in range(10, len(data)):
        try:
            content = read(flipped(at))
        except BadArchive:
            continue
        assert content == state([]), "a bit that fills up a byte"


def test_no_cut_gets_through() -> None:
    data = archive(state([]))
    for size in range(len(data)):
        with pytest.raises(BadArchive):
            read(data[:size])

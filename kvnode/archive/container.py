"""The outer layers of an archive: gzip, tar, ``meta.json`` and ``SHA256SUMS``.

The tar is written and read by hand, header by header: Python's ``tarfile`` pads to 10 KiB, which Consul
refuses, and on the way in it can do far more than is wanted.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, NamedTuple

import msgpack

from kvnode.errors import BadArchive

META: Final = "meta.json"
STATE: Final = "state.bin"
SUMS: Final = "SHA256SUMS"
META_BYTES_MAX: Final = 1 << 20
SUMS_BYTES_MAX: Final = 64 << 10
PADDING_BYTES_MAX: Final = 1 << 20
"""Zero bytes after the end that are overlooked: other programs' tars have some."""
READ_BYTES: Final = 256 << 10
GZIP_LEVEL: Final = 5
_FILE: Final = "failed to read snapshot file"
_READING: Final = f"{_FILE}: failed reading snapshot"
_STAGES: Final = {
    META: f"{_FILE}: failed to read snapshot metadata",
    STATE: f"{_FILE}: failed to read or write snapshot data",
    SUMS: f"{_FILE}: failed to read snapshot hashes",
}
_INTEGRITY: Final = f"{_FILE}: failed checking integrity of snapshot:"
"""The words are Consul's, as far as it has any."""
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)


class Meta(NamedTuple):
    """What ``meta.json`` says."""

    snapshot_id: str
    """``<term>-<index>-<milliseconds since the epoch>``."""
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    term: int
    servers: tuple[tuple[str, str, bool], ...]
    """Id, address, whether it votes."""
    size: int
    """Bytes of ``state.bin``; as announced, not as measured."""
    version: int = 1


class Container(NamedTuple):
    """An archive whose checksums were found right."""

    meta: Meta
    state: IO[bytes]
    """``state.bin``; at its beginning."""
    size: int
    """Its bytes."""


# --- out -----------------------------------------------------------------------------------


def write_container(meta: Meta, state: IO[bytes], digest: bytes) -> Iterator[bytes]:
    """Yield the archive, piece by piece; a piece is at most as long as what is read at a time.

    Args:
        meta: Its ``size`` is the length of ``state``.
        state: ``state.bin``, from its beginning.
        digest: Its SHA-256.
    """
    document = _encode_meta(meta)
    sums = f"{hashlib.sha256(document).hexdigest()}  {META}\n{digest.hex()}  {STATE}\n".encode()
    # A header with the time in it would make two archives of one state differ.
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    yield packer.compress(_header(META, len(document)) + _padded(document))
    yield packer.compress(_header(STATE, meta.size))
    left = meta.size
    while left:
        data = state.read(min(READ_BYTES, left))
        assert data, "the file is as long as was said"
        left -= len(data)
        yield packer.compress(data)
    rest = bytes(-meta.size % _BLOCK) + _header(SUMS, len(sums)) + _padded(sums)
    # Exactly two empty blocks: Consul refuses a tar that is padded any further.
    yield packer.compress(rest + _END) + packer.flush()


def _encode_meta(meta: Meta) -> bytes:
    peers = msgpack.packb([address for _, address, _ in meta.servers], use_bin_type=False)
    value = {
        "Version": meta.version,
        "ID": meta.snapshot_id,
        "Index": meta.index,
        "Term": meta.term,
        "Peers": base64.b64encode(peers).decode(),
        "Configuration": {
            "Servers": [
                {"Suffrage": 0 if voter else 1, "ID": name, "Address": address}
                for name, address, voter in meta.servers
            ]
        },
        "ConfigurationIndex": 1,
        "Size": meta.size,
    }
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    # Above 8 GiB the number does not fit into the old form: GNU's is understood everywhere.
    if size < 1 << 33:
        return member.tobuf(tarfile.USTAR_FORMAT)
    return member.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


# --- in ------------------------------------------------------------------------------------


def open_container(
    archive: IO[bytes], state: IO[bytes], state_bytes_max: int, may_write: Callable[[int], None]
) -> Container:
    """Check an archive to its last byte, and unpack ``state.bin``.

    Args:
        archive: Where it is read from, to its end.
        state: An empty file that gets ``state.bin``.
        state_bytes_max: A longer one is refused, whatever it shrank to.
        may_write: Called with the number of bytes before each write to ``state``; may raise.

    Raises:
        BadArchive: It is no archive, damaged, cut off, or holds what must not be there.
    """
    _check_gzip(archive)
    stream = _Stream(archive)
    small: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    size = 0
    while True:
        stream.stage = _READING
        header = stream.take(_BLOCK)
        if header == bytes(_BLOCK):
            break
        name, length = _read_header(header)
        if name in digests:
            raise BadArchive(f'{_FILE}: "{name}" is there twice')
        stream.stage = _STAGES[name]
        if name == STATE:
            if length > state_bytes_max:
                raise BadArchive(
                    f"{_FILE}: state.bin has {length} bytes, at most {state_bytes_max} are unpacked"
                )
            digests[name], size = _copy(stream, length, state, may_write), length
        else:
            limit = META_BYTES_MAX if name == META else SUMS_BYTES_MAX
            if length > limit:
                raise BadArchive(f"{_FILE}: {name} has {length} bytes")
            small[name] = stream.take(length)
            digests[name] = hashlib.sha256(small[name]).hexdigest()
        stream.skip(-length % _BLOCK)
    stream.finish()
    for name in (META, STATE, SUMS):
        if name not in digests:
            raise BadArchive(f'{_INTEGRITY} file missing for "{name}"')
    _check_sums(small[SUMS], digests)
    state.seek(0)
    return Container(_decode_meta(small[META]), state, size)


def _read_header(header: bytes) -> tuple[str, int]:
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except (tarfile.TarError, ValueError) as error:
        raise BadArchive(f"{_READING}: archive/tar: invalid tar header") from error
    if not member.isreg() or member.name not in (META, STATE, SUMS):
        shown = json.dumps(member.name[:100])
        raise BadArchive(f"{_FILE}: unexpected file {shown} in snapshot")
    if member.size < 0:
        raise BadArchive(f"{_READING}: archive/tar: invalid tar header")
    return member.name, member.size


def _copy(stream: _Stream, length: int, target: IO[bytes], may_write: Callable[[int], None]) -> str:
    running = hashlib.sha256()
    left = length
    while left:
        data = stream.take(min(READ_BYTES, left))
        left -= len(data)
        running.update(data)
        may_write(len(data))
        target.write(data)
    return running.hexdigest()


def _check_sums(sums: bytes, digests: dict[str, str]) -> None:
    listed: dict[str, str] = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        digest, separator, name = line.partition("  ")
        if not separator:
            raise BadArchive(f"{_INTEGRITY} SHA256SUMS is not readable")
        if name not in (META, STATE):
            raise BadArchive(f"{_INTEGRITY} list missing hash for {json.dumps(name[:100])}")
        listed[name] = digest.strip().lower()
    for name in (META, STATE):
        if name not in listed:
            raise BadArchive(f'{_INTEGRITY} file missing for "{name}"')
        if listed[name] != digests[name]:
            raise BadArchive(f'{_INTEGRITY} hash check failed for "{name}"')


def _decode_meta(document: bytes) -> Meta:
    try:
        value = json.loads(document)
        if not isinstance(value, dict):
            raise TypeError("it is no object")  # noqa: TRY301  # one place words it
        version = _number(value, "Version")
        if version != 1:
            raise ValueError(f"version {version} is not known")  # noqa: TRY301
        configuration = value.get("Configuration") or {}
        servers = tuple(
            (str(server["ID"]), str(server["Address"]), server.get("Suffrage") == 0)
            for server in configuration.get("Servers") or ()
        )
        return Meta(
            str(value.get("ID", "")),
            _number(value, "Index"),
            _number(value, "Term"),
            servers,
            _number(value, "Size"),
            version,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadArchive(f"{_FILE}: failed to decode snapshot metadata: {error}") from error


def _number(value: dict[str, Any], name: str) -> int:
    number = value.get(name, 0)
    if type(number) is not int or not 0 <= number < 1 << 64:
        raise TypeError(f"{name} is no number")
    return number


def _check_gzip(archive: IO[bytes]) -> None:
    """Tell a file that is no gzip at all from one that is damaged further in, as Consul does."""
    start = archive.read(10)
    archive.seek(0)
    why = "" if start.startswith(b"\x1f\x8b\x08") else "gzip: invalid header"
    if len(start) < 10:
        why = "unexpected EOF" if start else "EOF"
    if why:
        raise BadArchive(f"failed to decompress snapshot: {why}")


class _Stream:
    """What comes out of the gzip, a bounded part at a time."""

    def __init__(self, archive: IO[bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=archive, mode="rb")
        self.stage = _READING
        """What is being read, for the text of a refusal."""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        try:
            return self._file.read(size)
        except EOFError as error:
            raise BadArchive(f"{self.stage}: unexpected EOF") from error
        except gzip.BadGzipFile as error:
            known = "CRC" in str(error) or "length" in str(error)
            why = "invalid checksum" if known else "invalid header"
            raise BadArchive(f"{self.stage}: gzip: {why}") from error
        except (zlib.error, OSError) as error:
            raise BadArchive(f"{self.stage}: {error}") from error

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        data = self.read(size)
        while len(data) < size:
            more = self.read(size - len(data))
            if not more:
                raise BadArchive(f"{self.stage}: unexpected EOF")
            data += more
        return data

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes."""
        if size:
            self.take(size)

    def finish(self) -> None:
        """Make sure that nothing but a little padding follows."""
        left = PADDING_BYTES_MAX
        while data := self.read(min(READ_BYTES, left + 1)):
            left -= len(data)
            if left < 0 or data.count(0) != len(data):
                raise BadArchive(f"{_FILE}: there is more after its end")

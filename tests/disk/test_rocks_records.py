"""What would keep RocksDB reading for ever is refused; what a power cut leaves is not."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kvnode.disk import rocks_records
from kvnode.disk.rocks_engine import RocksEngineFactory, RocksSettings
from kvnode.disk.rocks_records import check_records
from kvnode.errors import CorruptLog
from kvnode.store.commands import KvSet
from kvnode.store.store import Store

STRANGE = (5, 6, 7, 8, 9, 10, 11, 0x81)


def record(content: bytes, kind: int = 1, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = rocks_records._masked(rocks_records._crc32c(bytes([kind]) + content))
    return struct.pack("<IHB", checksum, len(content), kind) + content


def verdict(directory: Path, *records: bytes) -> str:
    (directory / "000001.log").write_bytes(b"".join(records))
    try:
        check_records(directory)
    except CorruptLog as error:
        return str(error)
    return ""


def test_the_checksum_is_the_one_of_the_standard() -> None:
    assert rocks_records._crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("kind", STRANGE)
def test_a_record_of_a_strange_type_is_named(tmp_path: Path, kind: int) -> None:
    said = verdict(tmp_path, record(b"a"), record(b"bc"), record(b"d", kind))
    assert "000001.log: the record at 17 " in said


def test_so_is_one_in_a_later_block(tmp_path: Path) -> None:
    first = record(b"x" * (32 * 1024 - 7 - 3)) + bytes(3)  # what is left is too short for a header
    assert "the record at 32776 " in verdict(tmp_path, first, record(b"a"), record(b"", 5))


def test_what_lies_behind_a_torn_record_is_left_to_rocksdb(tmp_path: Path) -> None:
    """It is not reached, and a power cut must not look like damage."""
    assert not verdict(tmp_path, record(b"a"), record(b"bc", checksum=7), record(b"d", 5))
    assert not verdict(tmp_path, record(b"a"), bytes(7), record(b"d", 5))
    assert not verdict(tmp_path, record(b"a"), struct.pack("<IHB", 1, 60_000, 1), record(b"d", 5))


def test_what_it_writes_itself_passes(tmp_path: Path) -> None:
    files = crashed(tmp_path)
    check_records(files)
    size = sum(path.stat().st_size for path in files.glob("*.log"))
    assert size > 3 * 32 * 1024, "several blocks"


def crashed(folder: Path) -> Path:
    """The files of an engine as a killed process leaves them."""
    engine = RocksEngineFactory(folder / "state", RocksSettings()).open_current()
    store = Store(engine)
    for index in range(1, 400):
        store.apply_batch([(index, KvSet(b"k%d" % index, b"v" * index))])
        if index == 20:
            engine.flush()
    shutil.copytree(folder / "state", folder / "crashed")
    engine.close()
    return folder / "crashed" / "1"


OPEN = """
import sys
from pathlib import Path
from kvnode.disk.rocks_engine import RocksEngineFactory
from kvnode.errors import CorruptLog

for folder in sys.argv[1:]:
    try:
        RocksEngineFactory(Path(folder)).open_current().close()
        print("opened")
    except CorruptLog as error:
        print("refused", error)
"""


def test_no_type_of_any_record_keeps_the_engine_from_an_answer(tmp_path: Path) -> None:
    """In another process: whoever reads for ever cannot be interrupted."""
    files = crashed(tmp_path)
    [manifest] = files.glob("MANIFEST-*")
    [log] = files.glob("*.log")
    folders = []
    for path in (manifest, log):
        second = 7 + struct.unpack_from("<IHB", path.read_bytes())[1]
        for kind in STRANGE:
            folder = tmp_path / f"{path.name}-{kind}"
            shutil.copytree(files.parent, folder)
            data = bytearray(path.read_bytes())
            data[second + 6] = kind
            (folder / "1" / path.name).write_bytes(data)
            folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *folders], capture_output=True, text=True, timeout=60,
        check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    answers = done.stdout.splitlines()
    assert len(answers) == len(folders)
    assert all(answer.startswith("refused") for answer in answers), answers

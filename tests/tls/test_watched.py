import os
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kvnode.errors import SettingError
from kvnode.tls import TlsFiles, Watched, build
from tests.tls.conftest import Files


def watch(files: Files) -> Watched:
    plan = TlsFiles(cert=files.cert, key=files.key, ca=files.ca)
    return Watched("certificate", plan.paths, lambda: build(plan))


def test_what_did_not_change_is_not_read_again(files):
    watched = watch(files)
    before = watched.value
    assert watched.refresh() is False
    assert watched.value is before
    assert watched.refresh(again=True) is True
    assert watched.reloads == 1


def test_a_new_certificate_is_taken_over(files):
    watched = watch(files)
    serial = watched.value.leaf.serial
    files.issue()
    assert watched.refresh() is True
    assert watched.value.leaf.serial != serial
    assert watched.refresh() is False


def test_an_exchanged_link_is_a_change(tmp_path):
    """What the kubelet does to a mounted Secret: ``..data`` moves to another directory."""
    mounted = Files(tmp_path / "mount")
    for version in ("..1", "..2"):
        Files(mounted.directory / version).issue()
    link = mounted.directory / "..data"
    link.symlink_to("..1")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (mounted.directory / name).symlink_to(Path("..data") / name)
    watched = watch(mounted)
    serial = watched.value.leaf.serial
    fresh = mounted.directory / "..fresh"
    fresh.symlink_to("..2")
    os.replace(fresh, link)
    shutil.rmtree(mounted.directory / "..1")
    assert watched.refresh() is True
    assert watched.value.leaf.serial != serial


def test_a_broken_pair_is_refused_once_and_the_old_one_stays(files):
    watched = watch(files)
    before = watched.value
    old = Path(files.key).read_bytes()
    pair = files.issue()
    Path(files.key).write_bytes(old)  # the certificate has come, its key has not
    with capture_logs() as logs:
        assert watched.refresh() is False
        assert watched.refresh() is False
    assert watched.value is before
    assert watched.failures == 1
    assert [entry["event"] for entry in logs] == ["reload_refused"]
    assert "does not belong" in logs[0]["error"]
    Path(files.key).write_bytes(pair.key)
    assert watched.refresh() is True


def test_a_file_that_vanished_changes_nothing(files):
    watched = watch(files)
    Path(files.cert).unlink()
    assert watched.refresh() is False
    assert watched.failures == 1
    files.issue()
    assert watched.refresh() is True


def test_a_change_in_the_middle_of_reading_is_read_again(files, tmp_path):
    other = tmp_path / "one"
    other.write_text("1")
    texts = []

    def make() -> str:
        text = other.read_text()
        if len(texts) == 1:
            other.write_text("three")
        texts.append(text)
        return text

    watched = Watched("thing", (str(other),), make)
    other.write_text("22")
    assert watched.refresh() is False
    assert watched.value == "1"
    assert watched.refresh() is True
    assert watched.value == "three"


def test_the_first_time_it_must_be_good(files):
    Path(files.cert).write_text("x")
    with pytest.raises(SettingError):
        watch(files)

"""The instruments themselves: a partition that cuts nothing would make every other test here pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.machines import (
    ROOT,
    Laboratory,
    Machine,
    Volume,
    laboratory,
    lacks_machines,
    lacks_volumes,
)
from tests.chaos.netswitch import Link

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(bool(lacks_machines()), reason=lacks_machines() or "-"),
]
needs_volumes = pytest.mark.skipif(bool(lacks_volumes()), reason=lacks_volumes() or "-")


PATIENCE_S = 5.0
"""Where every packet must come back: a machine may stall for a while."""


def ping(
    source: Machine, target: Machine, count: int = 1, *, wait_s: float = 0.15
) -> tuple[int, float]:
    """How many of ``count`` packets came back in time, and the quickest way there and back in ms."""
    # No ping program is needed: UDP, echoed by a process over there.
    script = (
        "import socket,sys,time\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "s.settimeout(float(sys.argv[3]))\n"
        "back=0; best=9999\n"
        "for n in range(int(sys.argv[2])):\n"
        "    began=time.monotonic()\n"
        "    s.sendto(str(n).encode(),(sys.argv[1],7))\n"
        "    try:\n"
        "        while s.recv(99)!=str(n).encode(): pass\n"
        "    except TimeoutError: continue\n"
        "    back+=1; best=min(best,time.monotonic()-began)\n"
        "print(back, 1000*best)\n"
    )
    said = source.run(sys.executable, "-c", script, target.address, str(count), str(wait_s))
    back, ms = said.split()
    return int(back), float(ms)


def echo(machine: Machine) -> subprocess.Popen[bytes]:
    script = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "s.bind(('',7)); print('ready',flush=True)\n"
        "while True: s.sendto(*s.recvfrom(99))\n"
    )
    process = subprocess.Popen(
        machine.wrapper(sys.executable, "-c", script), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def until_cut(lab: Laboratory, count: int) -> None:
    """Wait until so many packets ran into a cut, and see that there were no more."""
    deadline = time.monotonic() + PATIENCE_S
    while lab.network.counts()["cut"] < count:
        assert time.monotonic() < deadline, lab.network.counts()
        time.sleep(0.01)
    assert lab.network.counts()["cut"] == count


def test_the_network_does_what_it_is_told(tmp_path: Path) -> None:
    with laboratory(tmp_path, 2, seed=1) as lab:
        one, two = lab.machines
        echoes = [echo(one), echo(two)]
        try:
            back, ms = ping(one, two, 20, wait_s=PATIENCE_S)
            assert (back, ms < 50) == (20, True)
            lab.network.cut([one], [two], both=False)
            assert ping(one, two)[0] == 0
            assert ping(one, lab.clients, 1)[0] == 0, "nobody echoes there"
            assert ping(lab.clients, two, wait_s=PATIENCE_S)[0] == 1, "clients reach both sides"
            until_cut(lab, 1)
            # The request arrives, the answer does not: only one direction is cut.
            assert ping(two, one)[0] == 0
            until_cut(lab, 2)
            lab.network.heal()
            lab.network.set({(one, two): Link(delay_ms=60)})
            assert 60 <= ping(one, two, 3, wait_s=PATIENCE_S)[1] < 140
            lab.network.everywhere(lab.machines, Link(loss=0.3))
            assert 5 <= ping(one, two, 40)[0] <= 35
            lab.network.everywhere(lab.machines, Link(duplicate=1.0))
            assert ping(one, two, 3, wait_s=PATIENCE_S)[0] == 3
            assert lab.network.counts()["duplicated"] >= 6
            lab.network.heal()
            two.readdress(77)
            lab.network.announce()
            assert ping(one, two, wait_s=PATIENCE_S)[0] == 1
        finally:
            for process in echoes:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


@needs_volumes
def test_a_power_cut_loses_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    with laboratory(tmp_path, 1) as lab:
        volume = Volume(lab.machines[0], 32)
        synced, unsynced = volume.seen / "synced", volume.seen / "unsynced"
        for path in (synced, unsynced):
            with path.open("wb") as file:
                file.write(b"x" * 10_000)
                if path is synced:
                    file.flush()
                    os.fsync(file.fileno())
        folder = os.open(volume.seen, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        with synced.open("ab") as file:
            file.write(b"y" * 10_000)
        volume.cut_power()
        with pytest.raises(OSError, match="Input/output error"):
            synced.open("ab")
        volume.unmount()
        volume.mount()
        assert synced.read_bytes()[:10_000] == b"x" * 10_000
        assert b"y" not in synced.read_bytes()
        lost = not unsynced.exists() or unsynced.read_bytes() != b"x" * 10_000
        assert lost, "the name was synced with the folder, the bytes were not"


@needs_volumes
def test_a_volume_can_be_filled_and_relieved(tmp_path: Path) -> None:
    with laboratory(tmp_path, 1) as lab:
        volume = Volume(lab.machines[0], 32)
        empty = volume.free_bytes()
        volume.fill(1 << 20)
        assert volume.free_bytes() < 1.1 * (1 << 20)
        volume.relieve()
        assert volume.free_bytes() == empty


@needs_volumes
def test_nothing_is_left_when_the_test_itself_is_killed(tmp_path: Path) -> None:
    """Namespaces, mounts and processes have no owner but the test's process."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from tests.chaos.machines import laboratory, Volume\n"
        "with laboratory(Path(sys.argv[1]), 2) as lab:\n"
        "    Volume(lab.machines[0], 16)\n"
        "    print(*[m.pid for m in (*lab.machines, lab.clients)], flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pids = [int(text) for text in process.stdout.readline().split()]
    assert len(pids) == 3
    image = str(tmp_path / "machine-1" / "volume.ext4")
    assert image in _loop_files()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) or image in _loop_files():
        assert time.monotonic() < deadline, (pids, _loop_files())
        time.sleep(0.05)


def _loop_files() -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(path.read_text().strip())
        except OSError:  # let go of just now
            continue
    return found

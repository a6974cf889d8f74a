"""Machines for real processes: own network, own mounts, own disk; and what this kernel can do for them.

A *machine* is a process that only waits (``sleep``), in new network and mount namespaces; nodes are
started inside them. The namespaces have no name, so they, the TUN device and the mounted volume
are gone when the last process in them is: nothing is left behind, not even when the test itself is
killed. Each machine's holder ends with the test (``PR_SET_PDEATHSIG``), and so does each node.

Packets go through ``netswitch``; a *volume* is an ext4 in a file, mounted through a loop device, that
can be filled, and can lose its power (the file system's shutdown ioctl without flushing its log:
whatever was not synced is lost, as on a real machine).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.chaos.netswitch import TUN_DEVICE, Link, enter_network

SUBNET = "10.77.0"
"""Only inside the namespaces, so that it cannot collide with anything."""
DEVICE = "net0"
_TOOLS = ("unshare", "nsenter", "setpriv", "ip")
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_FAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")
ROOT = Path(__file__).parent.parent.parent

# -- what this kernel and this user can do ----------------------------------------------------------


def tool(name: str) -> str | None:
    """Path of a program, also where only root usually looks."""
    return shutil.which(name, path=_PATH)


@cache
def lacks_machines() -> str:
    """Why machines cannot be made here; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [name for name in _TOOLS if tool(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not os.path.exists(TUN_DEVICE):
        return f"the kernel has no {TUN_DEVICE}"
    tried = subprocess.run(
        [str(tool("unshare")), "--net", "--mount", str(tool("ip")), "tuntap", "add", "mode", "tun",
         "name", DEVICE],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    return f"no namespace with a TUN device: {tried.stderr.strip()}" if tried.returncode else ""


@cache
def lacks_strace() -> str:
    """Why system calls cannot be made to fail here; empty when they can."""
    if tool("strace") is None:
        return "strace is not installed"
    with tempfile.NamedTemporaryFile() as file:
        tried = subprocess.run(
            [str(tool("strace")), "-f", "-o", "/dev/null", "-e", "trace=fdatasync",
             "-e", "inject=fdatasync:error=EIO:when=1", sys.executable, "-c",
             f"import os; os.fdatasync(os.open({file.name!r}, os.O_RDWR))"],
            capture_output=True, check=False, text=True,
        )  # fmt: skip
    if tried.returncode == 0 or "Input/output error" not in tried.stderr:
        return f"strace cannot inject errors here: {tried.stderr.strip()[-200:]}"
    return ""


@cache
def lacks_volumes() -> str:
    """Why a file cannot be mounted as an ext4 here; empty when it can."""
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if tool(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if lacks_machines():
        return lacks_machines()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        tried = subprocess.run(
            [str(tool("unshare")), "--mount", "--propagation", "private", "sh", "-c",
             f"{tool('mkfs.ext4')} -q -F '{image}' && mkdir '{folder}/at' && "
             f"{tool('mount')} -o loop '{image}' '{folder}/at'"],
            capture_output=True, check=False, text=True,
        )  # fmt: skip
    return f"no ext4 in a file: {tried.stderr.strip()}" if tried.returncode else ""


@cache
def faketime_library() -> str:
    """Path of libfaketime; empty when it is not installed or does not work with this interpreter."""
    for pattern in _FAKETIME:
        for found in sorted(Path("/").glob(pattern.lstrip("/"))):
            tried = subprocess.run(
                [sys.executable, "-c", "import time; print(time.time() - time.monotonic())"],
                env={**os.environ, "LD_PRELOAD": str(found), "FAKETIME": "+1000d",
                     "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
                capture_output=True, check=False, text=True,
            )  # fmt: skip
            plain = subprocess.run(
                [sys.executable, "-c", "import time; print(time.time() - time.monotonic())"],
                capture_output=True,
                check=True,
                text=True,
            )
            if tried.returncode == 0 and float(tried.stdout) - float(plain.stdout) > 999 * 86400:
                return str(found)
    return ""


def lacks_faketime() -> str:
    """Why clocks cannot be moved here; empty when they can."""
    return "" if faketime_library() else "libfaketime is not installed, or does not work here"


# -- machines ---------------------------------------------------------------------------------------


class Machine:
    """A place for processes: network and mount namespaces, kept by a process that only waits."""

    def __init__(self, number: int, directory: Path) -> None:
        """Make the namespaces, the device, and the address ``10.77.0.<number>``."""
        self.number = number
        self.directory = directory
        self.address = f"{SUBNET}.{number}"
        self.volume: Volume | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._holder = subprocess.Popen(
            [str(tool("setpriv")), "--pdeathsig", "KILL", str(tool("unshare")), "--net",
             "--mount", "--propagation", "private", "sh", "-c",
             "echo ready; exec sleep infinity >/dev/null"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        with self._holder.stdout as said:
            if said.readline() != b"ready\n":
                raise OSError(f"machine {number} could not be made")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "tuntap", "add", "mode", "tun", "name", DEVICE)
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", DEVICE)
        self.run("ip", "link", "set", DEVICE, "up", "mtu", "1500")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def wrapper(self, *inside: str) -> list[str]:
        """Arguments that run a program in here, with its own process id, ending with the test.

        Args:
            inside: More arguments between the machine and the program, such as strace's.
        """
        return [str(tool("setpriv")), "--pdeathsig", "KILL", *self._enter, *inside]

    @property
    def _enter(self) -> list[str]:
        return [str(tool("nsenter")), "--target", str(self.pid), "--net", "--mount", "--"]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a short program in here.

        Raises:
            OSError: It failed; the text holds what it said.
        """
        found = tool(command[0]) or command[0]
        done = subprocess.run(
            [*self._enter, found, *command[1:]], capture_output=True, check=False, text=True
        )
        if check and done.returncode != 0:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def readdress(self, number: int) -> None:
        """Give it another address; the old one is gone at once. Ask ``Network.announce`` to route it."""
        self.run("ip", "addr", "flush", "dev", DEVICE)
        self.address = f"{SUBNET}.{number}"
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", DEVICE)

    def inside(self, path: Path) -> Path:
        """The name by which this process sees a file of the machine's mounts."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def socket(self, *_: Any) -> socket.socket:
        """A TCP socket in this machine's network, for a client in this process."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter_network(f"/proc/{self.pid}/ns/net")
            try:
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            finally:
                enter_network(f"/proc/thread-self/fd/{home}")
        finally:
            os.close(home)
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def close(self) -> None:
        """End it; the processes in it must have ended. Idempotent."""
        if self.volume is not None:
            self.volume.unmount()
        self._holder.kill()
        self._holder.wait()


class Volume:
    """An ext4 in a file, mounted in one machine at ``path``."""

    def __init__(self, machine: Machine, size_mib: int) -> None:
        """Make and mount it."""
        self.machine = machine
        self.size = size_mib << 20
        self.path = machine.directory / "volume"
        self.path.mkdir()
        self._image = machine.directory / "volume.ext4"
        self._mounted = False
        self._format()
        self.mount()
        machine.volume = self

    def _format(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(self.size)
        subprocess.run(
            [str(tool("mkfs.ext4")), "-q", "-F", "-m", "0", "-E", "nodiscard", str(self._image)],
            check=True, capture_output=True,
        )  # fmt: skip

    @property
    def seen(self) -> Path:
        """The mounted directory as this process sees it."""
        return self.machine.inside(self.path)

    def mount(self) -> None:
        """Mount it; the file system's own log is replayed if it was not left in good order."""
        assert not self._mounted
        self.machine.run("mount", "-o", "loop", str(self._image), str(self.path))
        self._mounted = True

    def unmount(self) -> None:
        """Unmount it. Nobody may have a file open in it. Idempotent."""
        if self._mounted:
            self.machine.run("umount", str(self.path))
            self._mounted = False

    def cut_power(self) -> None:
        """What was not synced is lost, and every access fails from now on (until mounted again)."""
        fd = os.open(self.seen, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def wipe(self) -> None:
        """A new, empty volume takes its place."""
        self.unmount()
        self._format()
        self.mount()

    def free_bytes(self) -> int:
        """Bytes that may still be written."""
        found = os.statvfs(self.seen)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int) -> None:
        """Fill it until so many bytes are free, with a file of somebody else's."""
        ballast = self.seen / "ballast"
        with ballast.open("ab") as file:
            while (step := min(self.free_bytes() - leave, 1 << 20)) > 4096:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)

    def relieve(self) -> None:
        """Give the space back. Idempotent."""
        (self.seen / "ballast").unlink(missing_ok=True)


# -- the network ------------------------------------------------------------------------------------


class Network:
    """The machines' network: a switch process, and the faults of each link."""

    def __init__(self, machines: Sequence[Machine], *, seed: int = 0) -> None:
        """Connect the machines."""
        self._machines = list(machines)
        self._links: dict[tuple[int, int], Link] = {}
        script = Path(__file__).with_name("netswitch.py")
        self._process = subprocess.Popen(
            [str(tool("setpriv")), "--pdeathsig", "KILL", sys.executable, str(script), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        for machine in machines:
            attach = {"port": machine.number, "pid": machine.pid, "device": DEVICE}
            self._command({"attach": attach})
        self.announce()

    def announce(self) -> None:
        """Let the switch know where each address is now."""
        self._command({"addresses": {m.address: m.number for m in self._machines}})

    def set(self, links: dict[tuple[Machine, Machine], Link]) -> None:
        """Change some links, each one direction (from, to); a perfect one is ``Link()``."""
        for (source, target), link in links.items():
            self._links[source.number, target.number] = link
        self._send()

    def cut(self, side: Sequence[Machine], other: Sequence[Machine], *, both: bool = True) -> None:
        """Cut everything from ``side`` to ``other``, and back unless ``both`` is false."""
        links = {(a, b): Link(cut=True) for a in side for b in other if a is not b}
        if both:
            links |= {(b, a): link for (a, b), link in links.items()}
        self.set(links)

    def everywhere(self, among: Sequence[Machine], link: Link) -> None:
        """The same fault on all links among these."""
        self.set({(a, b): link for a in among for b in among if a is not b})

    def heal(self) -> None:
        """All links are perfect again."""
        self._links.clear()
        self._send()

    def counts(self) -> dict[str, int]:
        """Packets carried, cut, lost, duplicated, delayed."""
        answer = self._command({"count": True})
        return {name: int(value) for name, value in answer.items() if name != "ok"}

    def _send(self) -> None:
        rules = [
            {"source": source, "target": target, **vars(link)}
            for (source, target), link in self._links.items()
        ]
        self._command({"links": rules})

    def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or b"{}")
        if not answer.get("ok"):
            raise OSError(f"the switch refused {command}: {answer.get('error', 'it has ended')}")
        return dict(answer)

    def close(self) -> None:
        """End the switch. Idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()


@contextmanager
def laboratory(directory: Path, count: int, *, seed: int = 0) -> Iterator[Laboratory]:
    """Make ``count`` machines for nodes and one for clients, connected; take all down at the end.

    Processes that were started in the machines must have been ended before.
    """
    made: list[Machine] = []
    network: Network | None = None
    try:
        for number in range(1, count + 2):
            machine = Machine(number, directory / f"machine-{number}")
            made.append(machine)  # one by one: what was made is closed when the next one fails
        network = Network(made, seed=seed)
        yield Laboratory(made[:count], made[count], network)
    finally:
        if network is not None:
            network.close()
        for machine in made:
            machine.close()


class Laboratory:
    """Machines for nodes, one for the clients, and the network among them."""

    def __init__(self, machines: list[Machine], clients: Machine, network: Network) -> None:
        """Only groups them."""
        self.machines = machines
        self.clients = clients
        self.network = network

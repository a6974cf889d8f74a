"""Patroni with a PostgreSQL server on loopback, as processes of an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

TTL_S = 20
"""Patroni's smallest; the session's TTL is half of it."""


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where anything is missing."""
    pytest.importorskip("patroni", reason="needs the package patroni[consul]")
    pytest.importorskip("psycopg", reason="needs the package psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    if on_path is not None:
        found.append(Path(on_path).resolve())  # perhaps a link, without its companions beside it
    complete = [one.parent for one in found if (one.parent / "pg_controldata").exists()]
    if not complete:
        pytest.skip("there is no PostgreSQL server here (package postgresql)")
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv to become another user (package util-linux)")
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    return complete[-1]


def own(directory: Path) -> None:
    """Give a directory to whoever runs the server."""
    if os.getuid() == 0:
        entry = pwd.getpwnam("postgres")
        os.chown(directory, entry.pw_uid, entry.pw_gid)


def as_user(command: list[str]) -> list[str]:
    """Run as the user postgres when we are root, still able to read the interpreter's files."""
    if os.getuid() != 0:
        return command
    return [
        "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", *command,
    ]  # fmt: skip


class Server:
    """One Patroni with its PostgreSQL."""

    def __init__(
        self, name: str, directory: Path, programs: Path, consul_url: str, ports: tuple[int, int]
    ) -> None:
        """``ports``: PostgreSQL's and Patroni's own."""
        self.name = name
        self.port, self.api_port = ports
        self.directory = directory
        self._session: aiohttp.ClientSession | None = None
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        own(directory)
        self._file = directory / "patroni.yml"
        self._file.write_text(yaml.safe_dump(self._settings(programs, consul_url)))
        self._file.chmod(0o644)

    def _settings(self, programs: Path, consul_url: str) -> dict[str, Any]:
        address = f"127.0.0.1:{self.port}"
        api = f"127.0.0.1:{self.api_port}"
        return {
            "scope": "pair",
            "name": self.name,
            "consul": {"url": consul_url, "register_service": True},
            "restapi": {"listen": api, "connect_address": api},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "synchronous_mode": True,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {"wal_keep_size": "64MB", "fsync": "off"},
                    },
                },
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "bin_dir": str(programs),
                "data_dir": str(self.directory / "data"),
                "pgpass": str(self.directory / "pgpass"),
                "parameters": {
                    "unix_socket_directories": str(self.directory),
                    "shared_buffers": "16MB",
                    "max_connections": "20",
                },
                "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 trust",
                           "host replication all 127.0.0.1/32 trust"],
                "authentication": {
                    "superuser": {"username": "postgres"},
                    "replication": {"username": "replicator"},
                    "rewind": {"username": "rewinder"},
                },
                "remove_data_directory_on_diverged_timelines": True,
            },
        }  # fmt: skip

    def start(self) -> None:
        """Start Patroni; it starts PostgreSQL."""
        command = as_user([sys.executable, "-m", "patroni", str(self._file)])
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, start_new_session=True,
                env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(self.directory)},
            )  # fmt: skip

    def kill(self) -> None:
        """End Patroni and PostgreSQL as a power cut would."""
        for process in (self._patroni_pid(), self._postgres_pid()):
            if process is not None:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def _patroni_pid(self) -> int | None:
        return (
            None if self._process is None or self._process.poll() is not None else self._process.pid
        )

    def _postgres_pid(self) -> int | None:
        with suppress(OSError, ValueError, IndexError):
            return int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        return None

    def wait_until_gone(self, timeout_s: float = 10.0) -> None:
        """Wait until the port is free: children of a killed postmaster end by themselves."""
        import socket

        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{self.name} still listens")

    async def role(self, session: aiohttp.ClientSession) -> str:
        """``primary``, ``replica`` with the state behind it, or what is wrong."""
        try:
            async with session.get(f"http://127.0.0.1:{self.api_port}/patroni") as answer:
                facts = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return type(error).__name__
        if facts.get("state") != "running":
            return f"{facts.get('role')}/{facts.get('state')}"
        role = str(facts.get("role"))
        return (
            "primary"
            if role in ("primary", "master")
            else f"{role}/{facts.get('replication_state', '')}"
        )

    async def cluster(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        """What Patroni thinks of the whole."""
        async with session.get(f"http://127.0.0.1:{self.api_port}/cluster") as answer:
            return dict(await answer.json())

    def ask(self, statement: str, arguments: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        import psycopg

        where = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres connect_timeout=3"
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(statement, arguments)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def tail(self, lines: int = 25) -> str:
        """Return the end of the log."""
        text = (self.directory / "log").read_text(errors="replace").splitlines()
        return f"--- {self.name}\n" + "\n".join(text[-lines:])


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> float:
    """Poll; return the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s} s: {what}")

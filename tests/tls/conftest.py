"""Certificates made on the spot, and files that a test exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kvnode.tls.authority import Pair, make_ca, make_certificate

HOSTS = ("127.0.0.1", "localhost", "*.kvnode.test.svc.cluster.local")


@cache
def ca(name: str = "first") -> Pair:
    return make_ca(f"kvnode test CA {name}")


@dataclass
class Files:
    """One node's certificate, key and CA in a directory of its own."""

    directory: Path

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def cert(self) -> str:
        return str(self.directory / "tls.crt")

    @property
    def key(self) -> str:
        return str(self.directory / "tls.key")

    @property
    def ca(self) -> str:
        return str(self.directory / "ca.crt")

    def issue(
        self,
        authority: str = "first",
        hosts: tuple[str, ...] = HOSTS,
        *,
        trust: tuple[str, ...] = (),
        days: int = 30,
        server: bool = True,
    ) -> Pair:
        """Write a new certificate; ``trust`` are the authorities in the CA file, by default the issuer."""
        pair = make_certificate(ca(authority), "node", hosts, days=days, server=server)
        self.write(pair)
        self.trust(*(trust or (authority,)))
        return pair

    def write(self, pair: Pair) -> None:
        Path(self.cert).write_bytes(pair.cert)
        Path(self.key).write_bytes(pair.key)

    def break_key(self) -> None:
        """Write a key that is none."""
        Path(self.key).write_text("broken")

    def trust(self, *authorities: str) -> None:
        Path(self.ca).write_bytes(b"".join(ca(name).cert for name in authorities))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "tls")
    found.issue()
    return found

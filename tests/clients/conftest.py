"""Three nodes for a whole file of tests, and Consul's own command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import Program, Trio, find_consul


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Shared by the tests of a file: each keeps to a prefix of its own."""
    made = Trio(tmp_path_factory.mktemp("trio"), flags=("--session-ttl-min-s=1",))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def consul(trio: Trio, tmp_path: Path) -> Program:
    """``consul`` against a follower: what it asks has to find the leader."""
    return Program([find_consul()], trio.followers[0], tmp_path)

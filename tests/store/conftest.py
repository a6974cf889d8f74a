"""Engines to run the same laws over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvnode.disk.rocks_engine import RocksEngine, RocksSettings
from kvnode.store.engine import Engine
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store

SMALL = RocksSettings(write_buffer_bytes=256 * 1024, block_cache_bytes=1024 * 1024)


@pytest.fixture(params=["memory", "rocks"])
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Makes empty engines of one kind, and closes them."""
    made: list[Engine] = []

    def make() -> Engine:
        engine: Engine
        if request.param == "memory":
            engine = MemoryEngine()
        else:
            engine = RocksEngine(tmp_path / f"engine-{len(made)}", SMALL, create=True)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(new_engine: Callable[[], Engine]) -> Engine:
    """One empty engine."""
    return new_engine()


@pytest.fixture
def store(engine: Engine) -> Store:
    """An empty store over each kind of engine."""
    return Store(engine)

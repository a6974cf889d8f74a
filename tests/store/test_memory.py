"""The memory engine's model of a crash; its engine contract is covered by ``test_engine``."""

from __future__ import annotations

import pytest

from kvnode.errors import InvariantBroken
from kvnode.store.commands import KvSet
from kvnode.store.memory import MemoryEngineFactory
from kvnode.store.store import Store


def test_a_crash_keeps_what_was_flushed_and_a_prefix_of_the_rest() -> None:
    """``engine.Engine.write``: never a later batch without an earlier one."""
    factory = MemoryEngineFactory()
    engine = factory.open_current()
    store = Store(engine)
    store.apply_batch([(1, KvSet(b"a", b"1"))])
    engine.flush()
    for i in (2, 3, 4):
        store.apply_batch([(i, KvSet(b"a", b"%d" % i))])
    assert factory.unsynced_batches() == 3
    factory.crash(keep=1)
    again = Store(factory.open_current())
    assert again.applied_index == 2
    pair = again.get(b"a")
    assert pair is not None
    assert pair.value == b"2"


def test_a_process_crash_loses_nothing() -> None:
    """Only a machine's crash loses what the operating system holds."""
    factory = MemoryEngineFactory()
    Store(factory.open_current()).apply_batch([(1, KvSet(b"a", b"1"))])
    assert Store(factory.open_current()).applied_index == 1


def test_a_switch_of_generations_is_kept_and_an_unfinished_one_forgotten() -> None:
    factory = MemoryEngineFactory()
    Store(factory.open_current()).apply_batch([(1, KvSet(b"a", b"1"))])
    unfinished = factory.create_next()
    Store(unfinished).apply_batch([(5, None)])
    unfinished.flush()
    assert Store(factory.open_current()).applied_index == 1
    fresh = factory.create_next()
    Store(fresh).apply_batch([(9, None)])
    fresh.flush()
    factory.switch_to_next()
    factory.crash()
    assert Store(factory.open_current()).applied_index == 9


def test_a_generation_that_was_not_flushed_is_not_switched_to() -> None:
    factory = MemoryEngineFactory()
    factory.open_current()
    with pytest.raises(InvariantBroken):
        factory.switch_to_next()
    factory.create_next().write([(b"a", b"1")])
    with pytest.raises(InvariantBroken):
        factory.switch_to_next()

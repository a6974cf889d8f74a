"""The store against a plain model, over both engines: any commands, in any batches, with reopening."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvnode.disk.rocks_engine import RocksEngineFactory, RocksSettings
from kvnode.store.checks import check
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, ReapGraves
from kvnode.store.engine import Engine, EngineFactory
from kvnode.store.memory import MemoryEngineFactory
from kvnode.store.records import KVPair
from kvnode.store.snapshot import load
from kvnode.store.store import Store


class Model:
    """What spec §2.1 to §2.3 say, in the plainest words."""

    def __init__(self) -> None:
        self.pairs: dict[bytes, KVPair] = {}
        self.graves: dict[tuple[bytes, bool], int] = {}
        self.kv_index = 0

    def apply(self, index: int, command: Command | None) -> bool | int:
        match command:
            case KvSet(key, value, flags, cas):
                old = self.pairs.get(key)
                if cas is not None and cas != (old.modify_index if old else 0):
                    return False
                if old is None or (value, flags) != (old.value, old.flags):
                    created = old.create_index if old else index
                    self.pairs[key] = KVPair(key, value, flags, created, index, 0, "")
                    self.kv_index = index
            case KvDelete(key, cas):
                old = self.pairs.get(key)
                if old is not None:
                    if cas is not None and cas != old.modify_index:
                        return False
                    del self.pairs[key]
                    self.graves[key, False] = index
                    self.kv_index = index
            case KvDeleteTree(prefix):
                doomed = [key for key in self.pairs if key.startswith(prefix)]
                for key in doomed:
                    del self.pairs[key]
                if doomed:
                    self.kv_index = index
                    if prefix:
                        self.graves[prefix, True] = index
            case ReapGraves(upto):
                old_ones = [grave for grave, at in self.graves.items() if at <= upto]
                for grave in old_ones:
                    del self.graves[grave]
                return len(old_ones)
        return True

    def prefix_index(self, prefix: bytes) -> int:
        below = [p.modify_index for p in self.pairs.values() if p.key.startswith(prefix)]
        below += [at for (key, _), at in self.graves.items() if key.startswith(prefix)]
        if not prefix or not below:
            return self.kv_index
        around = [at for (key, tree), at in self.graves.items() if tree and prefix.startswith(key)]
        return max(below + around)


KEYS = [b"", b"a", b"a/", b"a/b", b"a/b/c", b"a/b/d", b"a/c", b"b", b"b/\xff", b"\xff"]
keys = st.sampled_from(KEYS)
flags = st.sampled_from([0, 0, 7, 2**64 - 1])
values = st.sampled_from([b"", b"1", b"2", bytes(300)])


class Step(NamedTuple):
    """A command, and the index it has."""

    index: int  # type: ignore[assignment]
    command: Command | None


class StoreMachine(RuleBasedStateMachine):
    """Commands gather, and are applied in one batch now and then."""

    factory: EngineFactory

    def make_factory(self) -> EngineFactory:
        raise NotImplementedError

    @initialize()
    def open(self) -> None:
        self.factory = self.make_factory()
        self.engine: Engine = self.factory.open_current()
        self.store = Store(self.engine)
        self.model = Model()
        self.batch: list[Step] = []
        self.expected: list[bool | int] = []
        self.next = 1

    def add(self, command: Command | None) -> None:
        self.batch.append(Step(self.next, command))
        self.expected.append(self.model.apply(self.next, command))
        self.next += 1

    def modify_index(self, key: bytes, wrong: int) -> int:
        pair = self.model.pairs.get(key)
        return wrong if pair is None else pair.modify_index + wrong

    @rule(key=keys, value=values, flags=flags)
    def set(self, key: bytes, value: bytes, flags: int) -> None:
        self.add(KvSet(key, value, flags))

    @rule(key=keys, value=values, wrong=st.sampled_from([0, 0, 1]))
    def set_cas(self, key: bytes, value: bytes, wrong: int) -> None:
        self.add(KvSet(key, value, 0, self.modify_index(key, wrong)))

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self.add(KvDelete(key))

    @rule(key=keys, wrong=st.sampled_from([0, 0, 1]))
    def delete_cas(self, key: bytes, wrong: int) -> None:
        self.add(KvDelete(key, self.modify_index(key, wrong)))

    @rule(prefix=keys)
    def delete_tree(self, prefix: bytes) -> None:
        self.add(KvDeleteTree(prefix))

    @rule(back=st.integers(0, 12))
    def reap(self, back: int) -> None:
        self.add(ReapGraves(max(0, self.next - back)))

    @rule()
    def noop(self) -> None:
        self.add(None)

    @rule()
    def apply(self) -> None:
        results = self.store.apply_batch(self.batch)
        assert [r.value for r in results] == self.expected
        assert [r.index for r in results] == [step.index for step in self.batch]
        for result, step in zip(results, self.batch, strict=True):
            if isinstance(step.command, KvSet) and result.value:
                assert 0 < result.modify_index <= result.index
        self.batch, self.expected = [], []

    @precondition(lambda self: not self.batch)
    @rule()
    def reopen(self) -> None:
        digest = self.store.digest
        self.engine.close()
        self.engine = self.factory.open_current()
        self.store = Store(self.engine)
        assert self.store.digest == digest

    @precondition(lambda self: not self.batch)
    @rule()
    def move_to_the_next_generation(self) -> None:
        digest = self.store.digest
        dump = self.store.dump()
        fresh = self.factory.create_next()
        load(fresh, dump)
        dump.close()
        fresh.flush()
        self.factory.switch_to_next()
        self.store.replace(fresh).close()
        self.engine = fresh
        assert self.store.digest == digest

    @invariant()
    def agrees(self) -> None:
        if self.batch:
            return
        store, model = self.store, self.model
        assert store.list(b"") == [model.pairs[key] for key in sorted(model.pairs)]
        assert store.count() == len(model.pairs)
        assert store.graves() == sorted((k, at, tree) for (k, tree), at in model.graves.items())
        assert (store.applied_index, store.kv_index()) == (self.next - 1, model.kv_index)
        for key in KEYS:
            assert store.get(key) == model.pairs.get(key)
            assert store.prefix_index(key) == model.prefix_index(key)
            assert store.prefix_index(key, store.list(key)) == model.prefix_index(key)
        assert check(store) == []

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


class MemoryMachine(StoreMachine):
    """Over the memory engine."""

    def make_factory(self) -> EngineFactory:
        return MemoryEngineFactory()


class RocksMachine(StoreMachine):
    """Over RocksDB."""

    def make_factory(self) -> EngineFactory:
        self.directory = Path(tempfile.mkdtemp(prefix="kvnode-machine-"))
        settings = RocksSettings(write_buffer_bytes=64 * 1024, block_cache_bytes=256 * 1024)
        return RocksEngineFactory(self.directory / "state", settings)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)


@pytest.mark.parametrize(
    ("machine", "examples"), [(MemoryMachine, 40), (RocksMachine, 5)], ids=["memory", "rocks"]
)
def test_the_store_agrees_with_a_plain_model(machine: Any, examples: int) -> None:
    """Spec §2.1 to §2.3, on every engine."""
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "examples"), [(MemoryMachine, 600), (RocksMachine, 60)], ids=["memory", "rocks"]
)
def test_the_store_agrees_with_a_plain_model_for_longer(machine: Any, examples: int) -> None:
    """The same, with more of everything."""
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=80, deadline=None)
    )

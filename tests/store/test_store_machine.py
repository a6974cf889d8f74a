"""The store against a plain model, over both engines: any commands, in any batches, with reopening."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

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
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    KvUnlock,
    Problem,
    ReapGraves,
    ReapLockDelays,
    SessionCreate,
    SessionDestroy,
    TrimHistory,
    Trouble,
    Txn,
    TxnOp,
    TxnOutcome,
    Value,
    Verb,
)
from kvnode.store.engine import Engine, EngineFactory
from kvnode.store.history import Change, Position, Revisions
from kvnode.store.memory import MemoryEngineFactory
from kvnode.store.records import DELETE, RELEASE, KVPair, Session
from kvnode.store.snapshot import load
from kvnode.store.store import Store


class Model:
    """What spec §2.1 to §2.3, §5.5 and §6 say, in the plainest words."""

    def __init__(self) -> None:
        self.pairs: dict[bytes, KVPair] = {}
        self.graves: dict[tuple[bytes, bool], int] = {}
        self.kv_index = 0
        self.sessions: dict[str, Session] = {}
        self.session_index = 0
        self.delays: dict[bytes, tuple[int, int]] = {}
        self.recording, self.floor = True, 0
        self.states: dict[int, dict[bytes, KVPair]] = {0: {}}

    def apply(self, index: int, command: Command | None) -> Value:
        """Run one command, and remember what it led to."""
        value = self.run(index, command)
        self.states[index] = dict(self.pairs)
        if not self.recording:
            self.floor = index
        return value

    def changes(self, prefix: bytes) -> list[tuple[int, bytes, KVPair | None, KVPair | None]]:
        """Every change above the floor: index, key, before, after."""
        states = self.states
        return [
            (index, key, states[index - 1].get(key), states[index].get(key))
            for index in range(self.floor + 1, len(states))
            for key in sorted(states[index - 1].keys() | states[index].keys())
            if states[index - 1].get(key) != states[index].get(key) and key.startswith(prefix)
        ]

    def run(self, index: int, command: Command | None) -> Value:
        match command:
            case KvSet(key, value, flags, cas):
                return self.set(index, key, value, flags, cas)
            case KvDelete(key, cas):
                return self.delete(index, key, cas)
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
            case KvLock(key, value, session, flags, as_of):
                return self.lock(index, key, value, flags, session, as_of)
            case KvUnlock(key, value, session, flags):
                return self.unlock(index, key, value, flags, session)
            case SessionCreate():
                if command.session_id in self.sessions:
                    return False
                self.sessions[command.session_id] = Session(*command[:-1], index, index)
                self.session_index = index
            case SessionDestroy(session_id):
                self.destroy(index, session_id)
            case ReapLockDelays(upto):
                over = [key for key, (at, _) in self.delays.items() if at <= upto]
                for key in over:
                    del self.delays[key]
                return len(over)
            case Txn(ops, _, as_of):
                return self.txn(index, ops, as_of)
            case TrimHistory(upto, recording, _):
                both = recording and self.recording
                self.floor = max(self.floor, min(upto, index)) if both else index
                self.recording = recording
                return mock.ANY
        return True

    def put(self, wanted: KVPair) -> None:
        old = self.pairs.get(wanted.key)
        if old is None or wanted._replace(modify_index=old.modify_index) != old:
            self.pairs[wanted.key] = wanted
            self.kv_index = wanted.modify_index

    def set(self, index: int, key: bytes, value: bytes, flags: int, cas: int | None) -> bool:
        old = self.pairs.get(key)
        if cas is not None and cas != (old.modify_index if old else 0):
            return False
        created, holder = (old.create_index, old.session) if old else (index, "")
        self.put(KVPair(key, value, flags, created, index, 0, holder))
        return True

    def delete(self, index: int, key: bytes, cas: int | None) -> bool:
        old = self.pairs.get(key)
        if old is not None:
            if cas is not None and cas != old.modify_index:
                return False
            del self.pairs[key]
            self.graves[key, False] = index
            self.kv_index = index
        return True

    def lock(
        self, index: int, key: bytes, value: bytes, flags: int, session: str, as_of: int
    ) -> bool | None:
        if session not in self.sessions:
            return None
        old = self.pairs.get(key)
        created, count, holder = (
            (old.create_index, old.lock_index, old.session) if old else (index, 0, "")
        )
        if holder not in ("", session):
            return False
        if not holder:
            if self.delays.get(key, (0, 0))[0] > as_of:
                return False
            self.delays.pop(key, None)
            count += 1
        self.put(KVPair(key, value, flags, created, index, count, session))
        return True

    def unlock(self, index: int, key: bytes, value: bytes, flags: int, session: str) -> bool:
        old = self.pairs.get(key)
        if old is None or not session or old.session != session:
            return False
        self.put(KVPair(key, value, flags, old.create_index, index, old.lock_index, ""))
        return True

    def destroy(self, index: int, session_id: str) -> None:
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        self.session_index = index
        for key, pair in list(self.pairs.items()):
            if pair.session != session_id:
                continue
            if session.behavior == DELETE:
                self.delete(index, key, None)
            else:
                self.put(pair._replace(session="", modify_index=index))
            if session.lock_delay_ns:
                self.delays[key] = (index, session.lock_delay_ns)

    def txn(self, index: int, ops: tuple[TxnOp, ...], as_of: int) -> TxnOutcome:
        after = copy.deepcopy(self)
        pairs: list[KVPair] = []
        problems: list[Problem] = []
        for position, op in enumerate(ops):
            trouble = after.operate(index, op, as_of, pairs)
            if trouble is not None:
                problems.append(Problem(position, *trouble))
        if problems:
            return TxnOutcome((), tuple(problems))
        self.__dict__.update(after.__dict__)
        return TxnOutcome(tuple(pairs), ())

    def operate(
        self, index: int, op: TxnOp, as_of: int, pairs: list[KVPair]
    ) -> tuple[Trouble, int | str] | None:
        key, old = op.key, self.pairs.get(op.key)
        match op.verb:
            case Verb.SET:
                self.set(index, key, op.value, op.flags, None)
            case Verb.CAS:
                if not self.set(index, key, op.value, op.flags, op.index):
                    return Trouble.STALE_SET, 0
            case Verb.LOCK:
                done = self.lock(index, key, op.value, op.flags, op.session, as_of)
                if done is None:
                    return Trouble.INVALID_SESSION, 0
                if not done:
                    held = old is not None and old.session
                    return Trouble.LOCK_HELD if held else Trouble.LOCK_DELAY, 0
            case Verb.UNLOCK:
                if not self.unlock(index, key, op.value, op.flags, op.session):
                    return Trouble.LOCK_NOT_HELD, 0
            case Verb.GET_TREE:
                pairs += [self.pairs[k] for k in sorted(self.pairs) if k.startswith(key)]
                return None
            case Verb.CHECK_INDEX:
                if old is None:
                    return Trouble.NO_KEY, 0
                if old.modify_index != op.index:
                    return Trouble.OTHER_INDEX, old.modify_index
            case Verb.CHECK_NOT_EXISTS:
                return None if old is None else (Trouble.KEY_EXISTS, 0)
            case Verb.DELETE_CAS:
                return None if self.delete(index, key, op.index) else (Trouble.STALE_DELETE, 0)
            case Verb.DELETE_TREE:
                self.apply(index, KvDeleteTree(key))
                return None
        pairs.append(self.pairs[key]._replace(value=b""))
        return None

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
IDS = [f"{number:08d}-0c4d-4a44-8e0e-5d6f3f1f0a77" for number in range(3)]
ids = st.sampled_from(IDS)
few_keys = st.sampled_from([b"a", b"a/b", b"b"])
verbs = st.sampled_from(
    [
        Verb.SET,
        Verb.CAS,
        Verb.LOCK,
        Verb.LOCK,
        Verb.UNLOCK,
        Verb.GET_TREE,
        Verb.CHECK_INDEX,
        Verb.CHECK_NOT_EXISTS,
        Verb.DELETE_CAS,
        Verb.DELETE_TREE,
    ]
)


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
        self.expected: list[Value] = []
        self.next = 1
        for who, behavior in ((IDS[0], RELEASE), (IDS[1], DELETE)):
            self.begin(who, 15 * 10**9, behavior)

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

    @rule(
        who=ids,
        delay_ns=st.sampled_from([0, 1, 15 * 10**9]),
        behavior=st.sampled_from([RELEASE, RELEASE, DELETE]),
    )
    def begin(self, who: str, delay_ns: int, behavior: int) -> None:
        self.add(SessionCreate(who, "ç", "n1", delay_ns, behavior, "10s", 10**10, ("serf",), ()))

    @rule(who=ids, again=st.booleans())
    def end(self, who: str, again: bool) -> None:
        self.add(SessionDestroy(who))
        if again:
            self.begin(who, 10**9, RELEASE)

    @rule(key=few_keys, value=values, who=ids)
    def hand_over(self, key: bytes, value: bytes, who: str) -> None:
        pair = self.model.pairs.get(key)
        if pair is not None and pair.session:
            self.add(SessionDestroy(pair.session))
            self.begin(pair.session, 10**9, RELEASE)
        self.lock(key, value, who, 1)

    @rule(key=few_keys, value=values, who=ids, back=st.sampled_from([1, 1, 2, 5, 99]))
    def lock(self, key: bytes, value: bytes, who: str, back: int) -> None:
        self.add(KvLock(key, value, who, 7, max(0, self.next - back)))

    @rule(key=few_keys, value=values, right=st.booleans(), who=ids)
    def unlock(self, key: bytes, value: bytes, right: bool, who: str) -> None:
        pair = self.model.pairs.get(key)
        self.add(KvUnlock(key, value, pair.session if right and pair else who))

    @rule(back=st.integers(0, 12))
    def reap_delays(self, back: int) -> None:
        self.add(ReapLockDelays(max(0, self.next - back)))

    @rule(back=st.integers(0, 12), recording=st.sampled_from([True, True, True, False]))
    def trim(self, back: int, recording: bool) -> None:
        self.add(TrimHistory(max(0, self.next - back), recording))

    @rule(
        drawn=st.lists(st.tuples(verbs, few_keys, values, st.sampled_from([0, 0, 0, 1]), ids)),
        back=st.sampled_from([1, 1, 5]),
    )
    def txn(self, drawn: list[tuple[Verb, bytes, bytes, int, str]], back: int) -> None:
        ops = tuple(
            TxnOp(verb, key, value, 0, self.modify_index(key, wrong), who)
            for verb, key, value, wrong, who in drawn
        )
        self.add(Txn(ops, 1 << 20, max(0, self.next - back)))

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
            assert store.lock_delay(key) == model.delays.get(key)
        assert store.sessions() == [model.sessions[who] for who in sorted(model.sessions)]
        assert (store.session_index(), store.meta.sessions) == (
            model.session_index,
            len(model.sessions),
        )
        for who in IDS:
            assert store.session(who) == model.sessions.get(who)
            held = [key for key, pair in model.pairs.items() if pair.session == who]
            assert store.held(who) == sorted(held)
        self.agrees_about_the_past()
        assert check(store) == []

    def agrees_about_the_past(self) -> None:
        store, model = self.store, self.model
        assert store.history_floor() == model.floor
        for prefix in (b"", b"a/"):
            since = Position(model.floor, None)
            found: list[Change] = []
            while True:
                part = store.changes(since, prefix, rows_max=2)
                found += part.found
                since = part.position
                if part.complete:
                    break
            assert [(c.index, c.key, c.old, c.new) for c in found] == model.changes(prefix)
            assert since == (store.applied_index, None)
        for key in KEYS[:5]:
            for index in range(model.floor, self.next):
                assert store.as_of(key, index) == model.states[index].get(key)
            expected = [(c[0], c[3]) for c in reversed(model.changes(b"")) if c[1] == key]
            first = model.states[model.floor].get(key)
            if first is not None:
                expected.append((first.modify_index, first))
            revisions = store.history(key, limit=100, bytes_max=1 << 20)
            assert revisions.complete
            assert [(r.index, r.pair) for r in revisions.found] == expected
            few = store.history(key, limit=2, bytes_max=1 << 20)
            assert few == Revisions(revisions.found[:2], len(expected) <= 2)

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
    """Spec §2.1 to §2.3, §5.5 and §6, on every engine."""
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

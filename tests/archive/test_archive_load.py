"""From Consul's records to the pieces of a restore; and back (spec §8)."""

from __future__ import annotations

import hashlib
import importlib
import io
import random
from typing import Any

import pytest

from kvnode.archive import Loaded, Meta, load, save_state, write_container
from kvnode.archive.load import PIECE_BYTES
from kvnode.errors import BadArchive
from kvnode.http.golang import parse_duration_ns
from kvnode.store.checks import check
from kvnode.store.commands import (
    Command,
    KvDelete,
    KvDeleteTree,
    KvLock,
    KvSet,
    RestoreFinish,
    RestorePiece,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.memory import MemoryEngine
from kvnode.store.own_commands import KvPut
from kvnode.store.records import DELETE, KV, RELEASE, SESSIONS, ttl_of
from kvnode.store.snapshot import read_chunk
from kvnode.store.store import Store
from tests.archive.archives import CONSUL, HEADER, ID, SESSION, key, pack, state, take_apart
from tests.store.restores import RESTORE, apply

TWO = "8a0e3f62-0c4d-4a44-8e0e-5d6f3f1f0a77"


def loaded(content: bytes) -> Loaded:
    return load(io.BytesIO(content), parse_duration_ns)


def restore(content: bytes, store: Store | None = None) -> Store:
    store = store or Store(MemoryEngine())
    parts = list(loaded(content).pieces)
    commands: list[Command] = [
        RestorePiece(RESTORE, number, part) for number, part in enumerate(parts)
    ]
    values = apply(store, [*commands, RestoreFinish(RESTORE, len(parts))], MemoryEngine)
    assert values == [True] * len(values)
    assert check(store) == []
    return store


def save(store: Store) -> bytes:
    target = io.BytesIO()
    view = store.view()
    saved = save_state(view, target, lambda _size: None)
    view.close()
    content = target.getvalue()
    assert (saved.size, saved.digest) == (len(content), hashlib.sha256(content).digest())
    assert saved.index == store.applied_index
    return content


def test_what_a_real_consul_wrote_is_understood() -> None:
    found = loaded(state())
    assert (found.keys, found.sessions, found.released) == (4, 1, 0)
    assert found.skipped == {"Register": 1, "Autopilot": 1, "ChunkingState": 1}
    store = restore(state())
    lock = store.get(b"lock")
    assert lock is not None
    assert (lock.value, lock.session, lock.lock_index) == (b"held", ID, 1)
    assert [pair.flags for pair in store.list(b"a/")] == [2**64 - 1]
    assert [pair.value for pair in store.list(b"empty")] == [b""]
    session = store.session(ID)
    assert session is not None
    assert (session.name, session.node, session.ttl, session.ttl_ns) == (
        "n1", "ca", "60s", 60 * 10**9,
    )  # fmt: skip
    assert (session.lock_delay_ns, session.behavior) == (3 * 10**9, RELEASE)


def busy() -> Store:
    store = Store(MemoryEngine())
    sessions = [
        SessionCreate(ID, "ç", "n0", 10**9, DELETE, "15.0s", 15 * 10**9, ("serfHealth",),
                      (("web", "ns"),)),
        SessionCreate(TWO, "", "n0", 5 * 10**9, RELEASE, "", 0, (), ()),
    ]  # fmt: skip
    apply(
        store,
        [
            *sessions,
            *[KvSet(b"k/%03d" % number, b"v" * number, number) for number in range(50)],
            KvLock(b"locked", b"x", ID),
            KvLock(b"delayed", b"x", TWO),
            SessionDestroy(TWO),
            KvPut(b"timed", b"v", ttl_ns=30 * 10**9),
            KvDelete(b"k/001"),
            KvDeleteTree(b"k/04"),
            KvSet(b"empty", b""),
            KvSet(b"\xff\xfe", b"\xff"),
        ],
        MemoryEngine,
    )
    return store


def test_what_is_saved_is_what_consul_reads() -> None:
    store = busy()
    content = save(store)
    written = Meta("1-1-1", 1, 1, (), len(content))
    digest = hashlib.sha256(content).digest()
    data = b"".join(write_container(written, io.BytesIO(content), digest))
    _, header, records = take_apart(data)
    assert header[b"LastIndex"] == store.applied_index
    assert header[b"Kvnode"] == {b"LockDelays": [[b"delayed", 5 * 10**9]]}
    kinds = [kind for kind, _ in records]
    assert kinds == sorted(kinds, key=[3, 2, 5, 16].index), "in Consul's order"
    by_kind: dict[int, list[Any]] = {}
    for kind, fields in records:
        by_kind.setdefault(kind, []).append(fields)
    assert list(by_kind[3][0]) == list(SESSION), "the members, and their order"
    assert list(by_kind[2][0]) == list(key(b"")[1])
    assert [fields[b"Key"] for fields in by_kind[2]] == store.keys(b"")
    assert {fields[b"Key"] for fields in by_kind[5]} == {b"k/001", b"k/04"}
    assert {fields[b"Key"]: fields[b"Value"] for fields in by_kind[16]} == {
        b"kvs": store.kv_index(),
        b"sessions": store.session_index(),
        b"tombstones": store.meta.graves_index,
    }
    assert [f[b"Kvnode"] for f in by_kind[2] if f[b"Key"] == b"timed"] == [{b"TTL": 30 * 10**9}]
    assert {f[b"Key"]: f[b"Value"] for f in by_kind[2]}[b"empty"] is None


def test_saved_and_restored_is_the_same() -> None:
    store = busy()
    copy = restore(save(store))
    assert [p._replace(create_index=0, modify_index=0) for p in copy.list(b"")] == [
        p._replace(create_index=0, modify_index=0) for p in store.list(b"")
    ]
    plain = lambda s: s._replace(create_index=0, modify_index=0)  # noqa: E731
    assert list(map(plain, copy.sessions())) == list(map(plain, store.sessions()))
    assert copy.held(ID) == [b"locked"]
    delay = copy.lock_delay(b"delayed")
    assert delay == (copy.applied_index, 5 * 10**9)
    record = copy.engine.get(KV + b"timed")
    assert record is not None
    assert ttl_of(record) == (copy.applied_index, 30 * 10**9)
    # Into the same cluster the indexes are those of then.
    applied = store.applied_index
    before = store.list(b"")
    restore(save(store), store)
    assert store.applied_index > applied
    assert store.list(b"") == before


def test_keys_in_any_order_are_sorted() -> None:
    names = [b"%03d" % number for number in range(300)]
    random.Random(1).shuffle(names)
    content = state([key(name, b"v" * 3000) for name in names])
    assert restore(content).keys(b"") == sorted(names)


def test_pieces_are_bounded_and_hold_every_row_once() -> None:
    content = state([(3, SESSION), *[key(b"%05d" % n, bytes(20_000)) for n in range(100)],
                     key(b"large", bytes(3 << 20))])  # fmt: skip
    parts = list(loaded(content).pieces)
    assert max(map(len, parts)) < (3 << 20) + 1000
    assert sum(len(part) > PIECE_BYTES + 21_000 for part in parts) == 1
    rows = [row for part in parts for row in read_chunk(part)[1]]
    assert [raw[:1] for raw, _ in rows] == [SESSIONS] + [KV] * 101


def test_an_empty_archive_empties_the_store() -> None:
    store = Store(MemoryEngine())
    apply(store, [KvSet(b"a", b"v")], MemoryEngine)
    assert restore(state([]), store).keys(b"") == []


def test_a_lock_of_a_session_that_is_not_there_is_free() -> None:
    content = state([record for record in CONSUL if record[0] != 3])
    assert loaded(content).released == 1
    lock = restore(content).get(b"lock")
    assert lock is not None
    assert lock.session == ""


def test_sessions_of_older_and_newer_versions_are_read() -> None:
    old = {name: value for name, value in SESSION.items() if name != b"NodeChecks"}
    old[b"Checks"] = [b"serfHealth"]
    old[b"Unknown"] = {b"of": [b"a newer version"]}
    old[b"ServiceChecks"] = [{b"ID": b"web", b"Namespace": b""}]
    session = restore(state([(3, old)])).session(ID)
    assert session is not None
    assert session.node_checks == ("serfHealth",)
    assert session.service_checks == (("web", ""),)


def session(**fields: Any) -> tuple[int, dict[bytes, Any]]:
    return 3, {**SESSION, **{name.encode(): value for name, value in fields.items()}}


BAD: dict[str, bytes] = {
    "nothing": b"",
    "no header": pack(5),
    "a list as header": pack([1]),
    "half a header": pack(HEADER)[:-1],
    "half a record": state()[:-1],
    "only a type": state([]) + b"\x02",
    "a type that is a text": state([]) + pack(b"x") + pack({}),
    "a type above 127": state([]) + b"\xcc\xe4" + pack({b"a": 1}),
    "a map as a name": state([]) + b"\x02\x81\x80\x01",
    "a map as a name where a type should be": state([]) + b"\x81\x80\x01",
    "a key that is a list": state([(2, [1])]),
    "a key without bytes": state([key(b"a", Key=5)]),
    "a value without bytes": state([key(b"a", Value=[1])]),
    "flags too large for 64 bits": state([key(b"a", Flags=-1)]),
    "a flag that is a text": state([key(b"a", Flags=b"1")]),
    "a lock index that is a truth": state([key(b"a", LockIndex=True)]),
    "a negative index": state([key(b"a", ModifyIndex=-4)]),
    "a key twice": state([key(b"a"), key(b"a")]),
    "a key twice, apart": state([key(b"a"), key(b"b"), key(b"a")]),
    "a huge key": state([key(b"a" * 70_000)]),
    "a huge value": state([key(b"a", bytes((8 << 20) + 1))]),
    "a session twice": state([session(), session()]),
    "a huge session": state([session(Name=bytes(70_000))]),
    "a session id that is too short": state([session(ID=b"abc")]),
    "a session id that is no ASCII": state([session(ID="ç".encode() * 18)]),
    "a node with a NUL": state([session(Node=b"a\0b")]),
    "a check with a NUL": state([session(NodeChecks=[b"\0"])]),
    "a bad behavior": state([session(Behavior=b"explode")]),
    "a bad TTL": state([session(TTL=b"soon")]),
    "checks that are no list": state([session(NodeChecks=b"a")]),
    "checks that are no texts": state([session(NodeChecks=[1])]),
    "service checks that are no maps": state([session(ServiceChecks=[1])]),
    "a delay that is a text": state([session(LockDelay=b"15s")]),
    "extras that are no map": state([key(b"a", Kvnode=1)]),
    "a TTL that is negative": state([key(b"a", Kvnode={b"TTL": -1})]),
    "lock-delays of another form": state([], {b"Kvnode": {b"LockDelays": [[1]]}}),
    "lock-delays that are no list": state([], {b"Kvnode": {b"LockDelays": 1}}),
    "a huge array": state([]) + b"\x06\xdd\xff\xff\xff\xff",
    "a huge map": state([]) + b"\x02\xdf\xff\xff\xff\xff",
    "a huge text": state([]) + b"\x02\xdb\xff\xff\xff\xff",
    "deep": state([]) + b"\x06" + b"\x91" * 100_000,
    "deep and wanted": state([]) + b"\x02" + b"\x81\xa1a" * 100_000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused_before_any_piece(content: bytes) -> None:
    with pytest.raises(BadArchive):
        loaded(content)


def test_what_is_held_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """RC-67: what has no order, and sessions; keys in order may be as many as one likes."""
    module = importlib.import_module("kvnode.archive.load")  # its name is also the function's
    monkeypatch.setattr(module, "SESSIONS_MAX", 3)
    monkeypatch.setattr(module, "UNSORTED_KEYS_MAX", 3)
    ids = [b"%08d-0000-4000-8000-000000000000" % number for number in range(4)]
    assert loaded(state([session(ID=one) for one in ids[:3]])).sessions == 3
    with pytest.raises(BadArchive, match="more than 3 sessions"):
        loaded(state([session(ID=one) for one in ids]))
    names = [key(b"%d" % number) for number in range(6)]
    assert loaded(state(names)).keys == 6
    with pytest.raises(BadArchive, match="not in order"):
        loaded(state(names[::-1]))

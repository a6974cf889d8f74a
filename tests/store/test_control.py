"""Parameters of the cluster and events: stored alike on every node, bounded, and in every snapshot."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from kvnode.errors import CorruptLog
from kvnode.store.checks import check
from kvnode.store.commands import KvSet
from kvnode.store.control import AUTOPILOT_KEY, Autopilot, decode_autopilot, decode_event
from kvnode.store.control_commands import EVENTS_KEPT, AutopilotSet, EventFire
from kvnode.store.engine import Engine
from kvnode.store.records import EVENTS
from kvnode.store.snapshot import load
from kvnode.store.store import Store

SET = AutopilotSet(True, 200_000_000, 250, 3, 10**9, "zone", False, "build")


def event(name: str, payload: bytes = b"") -> EventFire:
    return EventFire(str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), name, payload)


def test_nobody_has_set_anything_at_first(store: Store) -> None:
    assert store.autopilot() is None
    assert store.events() == ()


def test_what_was_set_is_read(store: Store) -> None:
    store.apply_batch([(5, SET)])
    assert store.autopilot() == Autopilot(
        True, 200_000_000, 250, 3, 10**9, "zone", False, "build", 5, 5
    )
    store.apply_batch([(6, SET._replace(cleanup_dead_servers=False))])
    found = store.autopilot()
    assert found is not None
    assert (found.cleanup_dead_servers, found.create_index, found.modify_index) == (False, 5, 6)
    assert check(store) == []


def test_cas_compares_the_modify_index(store: Store) -> None:
    results = store.apply_batch(
        [
            (1, SET._replace(cas=7)),
            (2, SET._replace(cas=0)),
            (3, SET._replace(cas=0)),
            (4, SET._replace(cas=2, min_quorum=9)),
        ]
    )
    assert [result.value for result in results] == [False, True, False, True]
    found = store.autopilot()
    assert found is not None
    assert (found.min_quorum, found.modify_index) == (9, 4)


def test_events_are_listed_oldest_first_with_the_index_of_their_entry(store: Store) -> None:
    heard: list[int] = []
    store.on_event = heard.append
    store.apply_batch([(3, event("a", b"x")), (4, KvSet(b"k", b"")), (5, event("b"))])
    assert [(e.name, e.payload, e.fired_at) for e in store.events()] == [
        ("a", b"x", 3),
        ("b", b"", 5),
    ]
    assert heard == [5]
    store.apply_batch([(6, KvSet(b"k", b"v"))])
    assert heard == [5]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_only_the_newest_events_are_kept(store: Store, batch: int) -> None:
    """However they arrived: what an entry does must not depend on where batches end."""
    entries = [(index, event(f"e{index}")) for index in range(1, EVENTS_KEPT + 21)]
    for at in range(0, len(entries), batch):
        store.apply_batch(entries[at : at + batch])
    found = store.events()
    assert [e.fired_at for e in found] == list(range(21, EVENTS_KEPT + 21))
    assert check(store) == []


def test_both_are_part_of_a_snapshot(new_engine: Callable[[], Engine]) -> None:
    store = Store(new_engine())
    store.apply_batch([(1, SET), (2, event("a", b"x"))])
    other = new_engine()
    dump = store.dump()
    load(other, dump)
    dump.close()
    restored = Store(other)
    assert restored.digest == store.digest
    assert restored.autopilot() == store.autopilot()
    assert restored.events() == store.events()
    assert check(restored) == []


def test_a_restored_snapshot_wakes_whoever_waits_for_events(
    new_engine: Callable[[], Engine],
) -> None:
    store = Store(new_engine())
    store.apply_batch([(1, event("a"))])
    assert len(store.events()) == 1
    heard: list[int] = []
    store.on_event = heard.append
    store.replace(new_engine())
    assert heard == [0]
    assert store.events() == ()


def test_records_of_unknown_form_are_refused(store: Store) -> None:
    store.apply_batch([(1, SET), (2, event("a"))])
    record = store.engine.get(AUTOPILOT_KEY)
    assert record is not None
    raw = EVENTS + (2).to_bytes(8, "big")
    fired = store.engine.get(raw)
    assert fired is not None
    for bad in (record[:20], record + b"x", record[:16] + b"\x63" + record[17:]):
        with pytest.raises(CorruptLog):
            decode_autopilot(bad)
    for bad in (fired[:20], fired + b"x", fired[:16] + b"\x63" + fired[17:], b""):
        with pytest.raises(CorruptLog):
            decode_event(raw, bad)

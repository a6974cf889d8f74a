"""A view: one moment, read row by row."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, ReapGraves
from kvnode.store.memory import MemoryEngine
from kvnode.store.records import decode_key
from kvnode.store.store import Store
from kvnode.store.view import View

names = st.text(alphabet="ab/", max_size=4).map(str.encode)
commands = st.one_of(
    st.builds(KvSet, names.filter(bool), st.just(b"v"), st.just(0), st.none()),
    st.builds(KvDelete, names.filter(bool), st.none()),
    st.builds(KvDeleteTree, names),
    st.builds(ReapGraves, st.integers(0, 30)),
)


def read(view: View, prefix: bytes) -> tuple[list[object], int]:
    found: list[object] = []
    steps = view.walk(prefix, lambda raw, record: found.append(decode_key(raw, record)))
    (index,) = deque(steps, maxlen=1)
    return found, index


@given(st.lists(commands, max_size=25), names)
def test_a_view_reads_what_the_store_reads(log: list[Command], prefix: bytes) -> None:
    """Two ways to one answer: ``reads`` at once, ``View`` row by row."""
    store = Store(MemoryEngine())
    store.apply_batch([(index, command) for index, command in enumerate(log, start=1)])
    view = store.view()
    found, index = read(view, prefix)
    assert found == store.list(prefix)
    assert index == store.prefix_index(prefix)
    assert view.meta == store.meta
    view.close()


def test_a_view_stands_still() -> None:
    store = Store(MemoryEngine())
    store.apply_batch([(1, KvSet(b"a", b"1")), (2, KvSet(b"b", b"1"))])
    view = store.view()
    seen: list[bytes] = []
    steps = view.walk(b"", lambda raw, _: seen.append(raw[1:]))
    next(steps)
    store.apply_batch([(3, KvDelete(b"b")), (4, KvSet(b"c", b"1"))])
    (index,) = deque(steps, maxlen=1)
    assert (seen, index) == ([b"a", b"b"], 2)
    view.close()
    view.close()

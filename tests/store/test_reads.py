"""Lists, rolled-up names and the indexes of reads (spec §2.2, §4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.store import reads
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, ReapGraves
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store


def fill(store: Store, *commands: Command) -> None:
    first = store.applied_index + 1
    store.apply_batch(list(enumerate(commands, first)))


def names(store: Store, *keys: bytes) -> None:
    fill(store, *(KvSet(key, b"v" + key) for key in keys))


KEYS = (
    b"",
    b"a",
    b"a/",
    b"a/b",
    b"a/b/c",
    b"a0",
    b"a\xff",
    b"a\xff\xff",
    b"b",
    b"\xff",
    b"\xff\xff",
)


@pytest.mark.parametrize(
    "prefix", [b"", b"a", b"a/", b"a/b", b"a\xff", b"\xff", b"zz", b"\xff\xff\xff"]
)
def test_list_gives_every_key_under_the_prefix_in_byte_order(store: Store, prefix: bytes) -> None:
    names(store, *reversed(KEYS))
    expected = [key for key in KEYS if key.startswith(prefix)]
    assert [pair.key for pair in store.list(prefix)] == expected
    assert [pair.value for pair in store.list(prefix)] == [b"v" + key for key in expected]
    assert [pair.key for pair in store.list(prefix, reverse=True)] == expected[::-1]
    assert store.keys(prefix) == expected


def test_list_pages_forward_and_backward(store: Store) -> None:
    names(store, *KEYS)
    assert [p.key for p in store.list(b"a", limit=2)] == [b"a", b"a/"]
    assert [p.key for p in store.list(b"a", after=b"a/", limit=2)] == [b"a/b", b"a/b/c"]
    assert [p.key for p in store.list(b"a", after=b"a/a")] == [
        b"a/b",
        b"a/b/c",
        b"a0",
        b"a\xff",
        b"a\xff\xff",
    ]
    assert [p.key for p in store.list(b"a", after=b"a0", limit=2, reverse=True)] == [
        b"a/b/c",
        b"a/b",
    ]
    assert store.list(b"a", after=b"b") == []
    assert store.list(b"a", after=b"\xff") == []
    assert [p.key for p in store.list(b"b", after=b"a")] == [b"b"]
    assert store.list(b"b", after=b"a", reverse=True) == []
    assert store.list(b"", limit=0) == []
    assert store.keys(b"a", after=b"a/", limit=2) == [b"a/b", b"a/b/c"]


def test_a_list_shows_no_tombstone_and_no_other_table(store: Store) -> None:
    names(store, b"a", b"b")
    fill(store, KvDelete(b"a"), KvSet(b"c/d", b""), KvDeleteTree(b"c"))
    assert store.keys(b"") == [b"b"]


@pytest.mark.parametrize(
    ("keys", "prefix", "separator", "expected"),
    [
        # The examples of spec §4.1.
        ([b"app/db", b"app/web", b"top"], b"", b"/", [b"app/", b"top"]),
        ([b"app/db", b"app/web", b"top"], b"app", b"/", [b"app/"]),
        ([b"app/db", b"app/web"], b"app/", b"/", [b"app/db", b"app/web"]),
        ([b"a/", b"a/b"], b"a/", b"/", [b"a/", b"a/b"]),
        ([b"a//b", b"a/c"], b"a/", b"/", [b"a//", b"a/c"]),
        ([b"a", b"a/", b"a/b", b"a0"], b"", b"/", [b"a", b"a/", b"a0"]),
        ([b"a::b", b"a:c", b"a::d"], b"", b"::", [b"a::", b"a:c"]),
        ([b"aaa", b"aab"], b"", b"a", [b"a"]),
        ([b"/x", b"x"], b"", b"/", [b"/", b"x"]),
        ([b"a\xffb", b"a\xffc", b"b"], b"", b"\xff", [b"a\xff", b"b"]),
        ([b"\xff\xffa", b"\xff\xffb"], b"", b"\xff", [b"\xff"]),
        ([], b"", b"/", []),
    ],
)
def test_keys_are_cut_after_the_first_separator_behind_the_prefix(
    store: Store, keys: list[bytes], prefix: bytes, separator: bytes, expected: list[bytes]
) -> None:
    names(store, *keys)
    assert store.keys(prefix, separator) == expected


def test_a_large_subtree_is_jumped_over_and_not_read() -> None:
    """A list of directories must not cost what lies in them."""
    engine = MemoryEngine()
    store = Store(engine)
    names(store, *(b"%d/%05d" % (d, i) for d in range(3) for i in range(5000)))
    read = 0

    class Counting:
        def scan(self, start: bytes, stop: bytes | None, *, reverse: bool = False) -> object:
            nonlocal read

            def rows() -> object:
                nonlocal read
                for row in engine.scan(start, stop, reverse=reverse):
                    read += 1
                    yield row

            return rows()

    found = reads.list_keys(Counting(), b"", b"/", after=None, limit=None)  # type: ignore[arg-type]
    assert found == [b"0/", b"1/", b"2/"]
    assert read < 100


small = st.binary(max_size=4).map(lambda b: bytes(b"ab/\xff"[x % 4] for x in b))


@settings(max_examples=150, deadline=None)
@given(
    keys=st.sets(small, max_size=40),
    prefix=small,
    separator=st.sampled_from([b"/", b"a", b"b/", b"\xff", b"//"]),
    page=st.integers(1, 4),
)
def test_rolled_up_names_and_their_pages_agree_with_the_definition(
    keys: set[bytes], prefix: bytes, separator: bytes, page: int
) -> None:
    """Spec §4.1: each key cut, duplicates dropped, in byte order; pages put together give the same."""
    store = Store(MemoryEngine())
    names(store, *sorted(keys))
    expected: list[bytes] = []
    for key in sorted(k for k in keys if k.startswith(prefix)):
        at = key.find(separator, len(prefix))
        name = key if at < 0 else key[: at + len(separator)]
        if name not in expected:
            expected.append(name)
    assert store.keys(prefix, separator) == expected
    paged: list[bytes] = []
    after: bytes | None = None
    while more := store.keys(prefix, separator, after=after, limit=page):
        assert len(more) <= page
        paged += more
        after = more[-1]
    assert paged == expected


# --- indexes, spec §2.2


def test_an_empty_store_has_index_0_inside(store: Store) -> None:
    assert (store.kv_index(), store.prefix_index(b""), store.prefix_index(b"a")) == (0, 0, 0)


def test_entries_that_change_no_key_do_not_move_the_table_index(store: Store) -> None:
    store.apply_batch([(1, None), (2, KvSet(b"a", b"1")), (3, None), (4, KvDelete(b"b"))])
    assert (store.kv_index(), store.applied_index) == (2, 4)


def test_a_prefix_index_is_the_highest_modify_index_below(store: Store) -> None:
    names(store, b"a/x", b"a/y", b"b")
    fill(store, KvSet(b"a/x", b"2"), KvSet(b"b", b"2"))
    assert store.prefix_index(b"a/") == 4
    assert store.prefix_index(b"a/y") == 2
    assert store.prefix_index(b"") == 5


def test_a_prefix_with_nothing_ever_below_has_the_tables_index(store: Store) -> None:
    names(store, b"a/x", b"b")
    assert store.prefix_index(b"c/") == 2


def test_tombstones_below_a_prefix_hold_its_index(store: Store) -> None:
    """Spec §2.3: a prefix index cannot fall back by a deletion."""
    names(store, b"a/x", b"a/y", b"b")
    fill(store, KvDelete(b"a/y"), KvSet(b"b", b"2"))
    assert store.prefix_index(b"a/") == 4
    fill(store, KvDelete(b"a/x"), KvSet(b"b", b"3"))
    assert store.prefix_index(b"a/") == 6, "nothing is left there, but something was"
    assert store.prefix_index(b"a") == 6


def test_a_deleted_tree_moves_the_index_of_its_prefix_and_of_shorter_ones(store: Store) -> None:
    names(store, b"a/b/x", b"a/b/y", b"a/z", b"c")
    fill(store, KvDeleteTree(b"a/b/"), KvSet(b"c", b"2"))
    assert store.prefix_index(b"a/b/") == 5
    assert store.prefix_index(b"a/") == 5
    assert store.prefix_index(b"a/b/x") == 6, "no tombstone starts with it: the table's"


def test_an_index_under_a_deleted_tree_does_not_fall_back(store: Store) -> None:
    """RC-64, beyond Consul: ``reads.prefix_index`` tells the story."""
    names(store, b"a/b/old", b"c")
    fill(store, KvDelete(b"a/b/old"), KvSet(b"a/b/new", b"1"))
    assert store.prefix_index(b"a/b/") == 4
    fill(store, KvDeleteTree(b"a/"), KvSet(b"c", b"2"))
    assert store.prefix_index(b"a/b/") == 5


def test_after_reaping_a_prefix_index_may_go_back(store: Store) -> None:
    """Spec §2.3."""
    names(store, b"a/x", b"a/y")
    fill(store, KvDelete(b"a/y"), ReapGraves(3))
    assert store.prefix_index(b"a/") == 1
    assert store.kv_index() == 3


def test_recursive_delete_of_everything_is_seen_by_every_prefix(store: Store) -> None:
    names(store, b"a/x", b"b")
    fill(store, KvDeleteTree(b""))
    assert store.prefix_index(b"a/") == 3


def test_reap_bound_keeps_one_reap_small(store: Store) -> None:
    names(store, *(b"%d" % i for i in range(10)))
    fill(store, *(KvDelete(b"%d" % i) for i in range(10)))  # indexes 11 … 20
    assert store.reap_bound(10, 5) == 0
    assert store.reap_bound(0, 5) == 0
    assert store.reap_bound(13, 5) == 13
    assert store.reap_bound(100, 5) == 15
    assert store.reap_bound(2**64 - 1, 10) == 20
    assert store.reap_bound(100, 1) == 11

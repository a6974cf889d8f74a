"""Every row of spec §2.1, §4.2 and §4.3 that needs no session, and the tombstones of §2.3."""

from __future__ import annotations

import pytest

from kvnode.store.checks import check
from kvnode.store.commands import Command, KvDelete, KvDeleteTree, KvSet, ReapGraves, Result
from kvnode.store.records import KVPair
from kvnode.store.store import Store


def apply(store: Store, command: Command) -> Result:
    [result] = store.apply_batch([(store.applied_index + 1, command)])
    assert check(store) == []
    return result


# --- spec §2.1, row by row


def test_the_first_write_creates(store: Store) -> None:
    assert apply(store, KvSet(b"a", b"1", 7)) == Result(True, 1, 1)
    assert store.get(b"a") == KVPair(b"a", b"1", 7, 1, 1, 0, "")


@pytest.mark.parametrize("change", [(b"2", 0), (b"1", 9), (b"", 0), (b"11", 0), (b"", 9)])
def test_another_value_or_other_flags_move_only_the_modify_index(
    store: Store, change: tuple[bytes, int]
) -> None:
    apply(store, KvSet(b"a", b"1"))
    assert apply(store, KvSet(b"a", *change)) == Result(True, 2, 2)
    assert store.get(b"a") == KVPair(b"a", *change, 1, 2, 0, "")


def test_a_put_without_flags_clears_them(store: Store) -> None:
    """Spec §4.2."""
    apply(store, KvSet(b"a", b"1", 7))
    apply(store, KvSet(b"a", b"1"))
    assert store.get(b"a") == KVPair(b"a", b"1", 0, 1, 2, 0, "")


@pytest.mark.parametrize("cas", [None, 1])
def test_an_identical_write_is_true_and_changes_nothing(store: Store, cas: int | None) -> None:
    """Spec §2.1: "wakes no watcher and moves no index"."""
    apply(store, KvSet(b"a", b"1", 7))
    digest, heard = store.digest, []
    store.on_change = lambda *change: heard.append(change)
    assert apply(store, KvSet(b"a", b"1", 7, cas)) == Result(True, 2, 1)
    assert store.get(b"a") == KVPair(b"a", b"1", 7, 1, 1, 0, "")
    assert (store.kv_index(), store.applied_index) == (1, 2)
    assert store.digest == digest
    assert heard == []


def test_a_key_deleted_and_made_again_starts_over(store: Store) -> None:
    apply(store, KvSet(b"a", b"1", 7))
    apply(store, KvDelete(b"a"))
    apply(store, KvSet(b"a", b"1"))
    assert store.get(b"a") == KVPair(b"a", b"1", 0, 3, 3, 0, "")


# --- cas, spec §4.2


def test_cas_0_sets_a_missing_key_only(store: Store) -> None:
    assert apply(store, KvSet(b"a", b"1", cas=0)).value is True
    assert apply(store, KvSet(b"a", b"2", cas=0)) == Result(False, 2)
    assert store.get(b"a") == KVPair(b"a", b"1", 0, 1, 1, 0, "")


def test_cas_n_needs_the_key_and_its_modify_index(store: Store) -> None:
    assert apply(store, KvSet(b"a", b"1", cas=1)) == Result(False, 1)
    assert store.get(b"a") is None
    apply(store, KvSet(b"a", b"1"))
    assert apply(store, KvSet(b"a", b"2", cas=1)).value is False
    assert apply(store, KvSet(b"a", b"2", cas=2)) == Result(True, 4, 4)
    assert apply(store, KvSet(b"a", b"3", cas=2)).value is False, "the create index does not count"


def test_a_refused_cas_changes_nothing_at_all(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    before = store.meta
    heard: list[object] = []
    store.on_change = lambda *change: heard.append(change)
    apply(store, KvSet(b"a", b"2", cas=9))
    assert store.meta._replace(applied_index=1) == before
    assert heard == []


# --- delete, spec §4.3 and §2.3


def test_delete_leaves_one_tombstone_and_moves_the_table_index(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    assert apply(store, KvDelete(b"a")) == Result(True, 2)
    assert store.get(b"a") is None
    assert store.count() == 0
    assert store.graves() == [(b"a", 2, False)]
    assert store.kv_index() == 2


def test_deleting_a_missing_key_is_true_and_changes_nothing(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    digest = store.digest
    for command in (KvDelete(b"b"), KvDelete(b"b", 5), KvDelete(b"b", 0), KvDeleteTree(b"b")):
        assert apply(store, command).value is True
    assert (store.kv_index(), store.graves(), store.digest) == (1, [], digest)


def test_delete_cas_needs_the_modify_index_and_0_never_matches(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    assert apply(store, KvDelete(b"a", 0)).value is False
    assert apply(store, KvDelete(b"a", 2)).value is False
    assert store.count() == 1
    assert apply(store, KvDelete(b"a", 1)).value is True
    assert store.count() == 0


def test_a_second_tombstone_of_a_key_replaces_the_first(store: Store) -> None:
    for _ in range(3):
        apply(store, KvSet(b"a", b"1"))
        apply(store, KvDelete(b"a"))
    assert store.graves() == [(b"a", 6, False)]


def test_a_tombstone_stays_when_the_key_comes_back(store: Store) -> None:
    """Consul keeps it too: it is reaped by age only."""
    apply(store, KvSet(b"a", b"1"))
    apply(store, KvDelete(b"a"))
    apply(store, KvSet(b"a", b"1"))
    assert store.graves() == [(b"a", 2, False)]


def test_delete_tree_leaves_one_tombstone_for_the_prefix(store: Store) -> None:
    for key in (b"a", b"a/", b"a/x", b"a/y", b"a0", b"b"):
        apply(store, KvSet(key, b"1"))
    assert apply(store, KvDeleteTree(b"a/")) == Result(True, 7)
    assert store.keys(b"") == [b"a", b"a0", b"b"]
    assert store.graves() == [(b"a/", 7, True)]
    assert (store.count(), store.kv_index()) == (3, 7)


def test_deleting_the_empty_prefix_leaves_none_but_moves_the_table_index(store: Store) -> None:
    for key in (b"", b"a", b"\xff\xff"):
        apply(store, KvSet(key, b"1"))
    assert apply(store, KvDeleteTree(b"")) == Result(True, 4)
    assert (store.count(), store.graves(), store.kv_index()) == (0, [], 4)
    assert apply(store, KvDeleteTree(b"")) == Result(True, 5)
    assert store.kv_index() == 4, "there was nothing left to delete"


def test_the_tombstones_of_a_key_and_of_a_tree_with_its_name_do_not_meet(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    apply(store, KvDelete(b"a"))
    apply(store, KvSet(b"a", b"1"))
    apply(store, KvDeleteTree(b"a"))
    assert store.graves() == [(b"a", 2, False), (b"a", 4, True)]


def test_reap_forgets_tombstones_up_to_an_index_and_moves_no_index(store: Store) -> None:
    """Spec §2.3."""
    for key in (b"a", b"b", b"c/x"):
        apply(store, KvSet(key, b"1"))
    apply(store, KvDelete(b"b"))
    apply(store, KvDelete(b"a"))
    apply(store, KvDeleteTree(b"c/"))
    before = store.meta
    assert apply(store, ReapGraves(3)) == Result(0, 7)
    assert apply(store, ReapGraves(5)) == Result(2, 8)
    assert store.graves() == [(b"c/", 6, True)]
    assert apply(store, ReapGraves(2**64 - 1)) == Result(1, 9)
    assert store.graves() == []
    after = store.meta
    assert (after.kv_index, after.graves_index) == (before.kv_index, before.graves_index)
    assert after.digest == 0, "nothing is left"


def test_a_replaced_tombstone_is_reaped_by_its_new_index(store: Store) -> None:
    apply(store, KvSet(b"a", b"1"))
    apply(store, KvDelete(b"a"))
    apply(store, KvSet(b"a", b"1"))
    apply(store, KvDelete(b"a"))
    assert apply(store, ReapGraves(3)).value == 0
    assert apply(store, ReapGraves(4)).value == 1


def test_extreme_flags_keys_and_values_are_kept(store: Store) -> None:
    big = bytes(range(256)) * 2048
    apply(store, KvSet(b"\x00\xff" * 100, big, 2**64 - 1))
    apply(store, KvSet(b"", b""))
    assert store.get(b"\x00\xff" * 100) == KVPair(b"\x00\xff" * 100, big, 2**64 - 1, 1, 1, 0, "")
    assert store.get(b"") == KVPair(b"", b"", 0, 2, 2, 0, "")

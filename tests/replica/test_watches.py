"""Parked readers wake for their own key or prefix, once, and for nothing else (spec §2.4, RC-65)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import Overloaded
from kvnode.replica.watches import RECENT_MAX, Watches


class Calls:
    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str):
        return lambda _index: self.names.append(name)


def test_a_change_wakes_the_key_and_its_prefixes_and_nobody_else():
    watches, calls = Watches(100, 0), Calls()
    watches.watch(b"a/b", is_prefix=False, callback=calls("key"))
    watches.watch(b"a/", is_prefix=True, callback=calls("prefix"))
    watches.watch(b"", is_prefix=True, callback=calls("all"))
    watches.watch(b"a/bc", is_prefix=False, callback=calls("longer"))
    watches.watch(b"b/", is_prefix=True, callback=calls("other"))
    watches.changed(7, b"a/b", False)
    watches.wake(99)
    assert sorted(calls.names) == ["all", "key", "prefix"]
    assert watches.count == 2


def test_a_watcher_is_called_once():
    watches, calls = Watches(100, 0), Calls()
    watches.watch(b"k", is_prefix=False, callback=calls("k"))
    for index in (1, 2):
        watches.changed(index, b"k", False)
    watches.wake(99)
    watches.changed(3, b"k", False)
    watches.wake(99)
    assert calls.names == ["k"]


def test_a_deleted_tree_wakes_what_is_in_it_and_what_it_is_in():
    watches, calls = Watches(100, 0), Calls()
    watches.watch(b"a/b", is_prefix=False, callback=calls("inside"))
    watches.watch(b"a/x/", is_prefix=True, callback=calls("prefix inside"))
    watches.watch(b"a", is_prefix=True, callback=calls("around"))
    watches.watch(b"b", is_prefix=False, callback=calls("beside"))
    watches.changed(7, b"a/", True)
    watches.wake(99)
    assert sorted(calls.names) == ["around", "inside", "prefix inside"]


def test_a_cancelled_watcher_is_not_called_even_when_it_was_concerned_already():
    watches, calls = Watches(100, 0), Calls()
    first = watches.watch(b"k", is_prefix=False, callback=calls("first"))
    watches.watch(b"k", is_prefix=False, callback=calls("second"))
    watches.changed(1, b"k", False)
    watches.cancel(first)
    watches.cancel(first)
    watches.wake(99)
    assert calls.names == ["second"]
    assert watches.count == 0


def test_a_callback_may_watch_again():
    watches, calls = Watches(100, 0), Calls()

    def again(index: int) -> None:
        calls("again")(index)
        watches.watch(b"k", is_prefix=False, callback=again)

    watches.watch(b"k", is_prefix=False, callback=again)
    for index in range(3):
        watches.changed(index, b"k", False)
        watches.wake(99)
    assert calls.names == ["again"] * 3
    assert watches.count == 1


def test_the_number_of_watchers_is_bounded():
    """RC-67."""
    watches = Watches(1, 0)
    watcher = watches.watch(b"k", is_prefix=False, callback=lambda _index: None)
    with pytest.raises(Overloaded):
        watches.watch(b"k", is_prefix=True, callback=lambda _index: None)
    watches.cancel(watcher)
    watches.watch(b"k", is_prefix=True, callback=lambda _index: None)


NAMES = st.text("ab/", max_size=4).map(str.encode)


@given(
    watched=st.lists(st.tuples(NAMES, st.booleans()), max_size=20),
    cancelled=st.sets(st.integers(0, 19)),
    changes=st.lists(st.tuples(NAMES, st.booleans()), max_size=5),
)
def test_exactly_the_concerned_are_called(watched, cancelled, changes):
    """Against the definition, for any mix of keys, prefixes and deleted trees."""
    watches, called = Watches(100, 0), []
    made = [
        watches.watch(
            key, is_prefix=is_prefix, callback=lambda _index, number=number: called.append(number)
        )
        for number, (key, is_prefix) in enumerate(watched)
    ]
    for number in cancelled:
        if number < len(made):
            watches.cancel(made[number])
    for key, tree in changes:
        watches.changed(1, key, tree)
    watches.wake(99)

    def concerned(watch: tuple[bytes, bool], change: tuple[bytes, bool]) -> bool:
        (key, is_prefix), (changed, tree) = watch, change
        if tree and key.startswith(changed):
            return True
        return changed.startswith(key) if is_prefix else changed == key and not tree

    expected = [
        number
        for number, watch in enumerate(watched)
        if number not in cancelled and any(concerned(watch, change) for change in changes)
    ]
    assert sorted(called) == expected
    assert watches.count == len([n for n in range(len(made)) if n not in cancelled]) - len(expected)


def test_a_watcher_hears_the_index_of_the_newest_change():
    watches, heard = Watches(100, 0), []
    watches.watch(b"a", is_prefix=True, callback=heard.append)
    watches.changed(7, b"a1", False)
    watches.changed(8, b"a2", False)
    watches.changed(9, b"b", False)
    watches.wake(99)
    assert heard == [8]


def test_what_changed_since_is_known_for_the_newest_changes_only():
    watches = Watches(100, 5)
    assert watches.changed_since(4, b"a") is None
    assert watches.changed_since(5, b"a") is False
    watches.changed(6, b"a/b", False)
    watches.changed(7, b"c/", True)
    assert watches.changed_since(5, b"a/") is True
    assert watches.changed_since(6, b"a/") is False
    assert watches.changed_since(6, b"c/d") is True
    assert watches.changed_since(6, b"") is True
    for index in range(RECENT_MAX):
        watches.changed(100 + index, b"x", False)
    assert watches.changed_since(6, b"a/") is None
    assert watches.changed_since(100, b"a/") is False

"""Pages of lists: any size, either direction, cut or not, they add up to the list (over both engines)."""

from __future__ import annotations

import random

import pytest

from kvnode.store.commands import KvSet
from kvnode.store.paging import Page
from kvnode.store.reads import SKIP_AFTER_ROWS
from kvnode.store.store import Store


def fill(store: Store, *names: bytes) -> None:
    entries = [KvSet(name, name) for name in names]
    store.apply_batch(list(enumerate(entries, store.applied_index + 1)))


def read(
    store: Store, prefix: bytes, separator: bytes = b"", page: Page | None = None, room: int = 10**6
) -> tuple[list[bytes], bytes | None]:
    view = store.view()
    walk = view.page(prefix, separator, page or Page())
    found: list[bytes] = []

    def take(raw: bytes, _record: bytes) -> bool:
        if len(found) == room:
            return False
        found.append(raw[1:])
        return True

    for _ in walk.steps(take):
        pass
    view.close()
    return found, walk.next_after


def all_pages(store: Store, prefix: bytes, separator: bytes, page: Page) -> list[bytes]:
    found: list[bytes] = []
    while True:
        names, after = read(store, prefix, separator, page)
        assert len(names) <= (page.limit or 10**6)
        found += names
        if after is None:
            return found
        assert names, "a page that is followed by another holds something"
        page = page._replace(after=after)


@pytest.fixture
def tree(store: Store) -> Store:
    many = [b"a/m/%03d" % number for number in range(3 * SKIP_AFTER_ROWS)]
    fill(store, b"a", b"a/", b"a/1", b"a/2/x", b"a/2/y", *many, b"a/z", b"b", b"\xff", b"\xff\xff")
    return store


def test_a_page_ends_where_it_is_told_and_says_where_to_go_on(tree: Store) -> None:
    assert read(tree, b"a/", b"/", Page(2)) == ([b"a/", b"a/1"], b"a/1")
    assert read(tree, b"a/", b"/", Page(2, b"a/1")) == ([b"a/2/", b"a/m/"], b"a/m/")
    assert read(tree, b"a/", b"/", Page(2, b"a/m/")) == ([b"a/z"], None)
    assert read(tree, b"a/", b"/", Page(1, b"a/m/")) == ([b"a/z"], None), "nothing is behind it"


def test_backwards(tree: Store) -> None:
    assert read(tree, b"a/", b"/", Page(2, reverse=True)) == ([b"a/z", b"a/m/"], b"a/m/")
    assert read(tree, b"a/", b"/", Page(9, b"a/m/", True)) == ([b"a/2/", b"a/1", b"a/"], None)
    assert read(tree, b"", b"", Page(2, reverse=True)) == ([b"\xff\xff", b"\xff"], b"\xff")


def test_a_range_does_not_depend_on_the_direction(tree: Store) -> None:
    forward = Page(start=b"a/1", end=b"a/2/y")
    assert read(tree, b"", b"", forward)[0] == [b"a/1", b"a/2/x"]
    assert read(tree, b"", b"", forward._replace(reverse=True))[0] == [b"a/2/x", b"a/1"]
    assert read(tree, b"a/", b"", Page(start=b"b"))[0] == []
    assert read(tree, b"b", b"", Page(end=b"a"))[0] == []


def test_a_page_without_room_ends_before_what_does_not_fit(tree: Store) -> None:
    assert read(tree, b"a/", b"/", None, 2) == ([b"a/", b"a/1"], b"a/1")
    assert read(tree, b"a/", b"/", None, 0) == ([], None)


def test_nothing_there_is_an_empty_page(store: Store) -> None:
    assert read(store, b"", b"", Page(5)) == ([], None)
    assert read(store, b"x", b"/", Page(5, b"y", True)) == ([], None)


@pytest.mark.parametrize("seed", range(30))
def test_pages_of_any_size_add_up_to_the_list(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    alphabet = [b"a", b"b", b"/", b"\xff", b"\0"]
    names = {
        b"".join(rng.choices(alphabet, k=rng.randrange(1, 8))) for _ in range(rng.randrange(200))
    }
    fill(store, *sorted(names))
    for _ in range(10):
        prefix = b"".join(rng.choices(alphabet, k=rng.randrange(3)))
        separator = rng.choice([b"", b"/", b"b/"])
        expected = store.keys(prefix, separator)
        page = Page(rng.choice([1, 2, 3, 7, 100]))
        assert all_pages(store, prefix, separator, page) == expected
        backwards = all_pages(store, prefix, separator, page._replace(reverse=True))
        assert backwards == expected[::-1]

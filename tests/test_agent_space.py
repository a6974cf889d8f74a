"""Writes are refused before the volume is full, and taken again when there is space (RC-70)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvnode.agent_space import SpaceWatch, reserve_bytes
from kvnode.errors import DiskFailed, KvnodeError


class Timer:
    def cancel(self) -> None: ...


class Loop:
    """A scheduler and a worker that do everything when they are told to."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[..., object]]] = []

    now = 100.0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        raise AssertionError("not used")

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        self.later.append((delay, callback))
        return Timer()

    def submit(self, job: Callable[[], Any], done: Callable[..., None]) -> None:
        try:
            done(job(), None)
        except KvnodeError as error:
            done(None, error)


class Volume:
    """What is free; an error when the volume does not answer."""

    def __init__(self, free: int) -> None:
        self.free: int | KvnodeError = free
        self.rows = 10
        self.reclaimed: list[int] = []

    def reclaim(self, free: int) -> None:
        self.reclaimed.append(free)

    def ask(self) -> int:
        if isinstance(self.free, KvnodeError):
            raise self.free
        return self.free


@pytest.fixture
def world() -> tuple[Loop, Volume, list[str], SpaceWatch]:
    loop, volume, said = Loop(), Volume(1000), list[str]()
    watch = SpaceWatch(
        free_bytes=volume.ask, reserve=100, refuse=said.append, scheduler=loop, worker=loop,
        rows=lambda: volume.rows, reclaim=volume.reclaim,
    )  # fmt: skip
    watch.start()
    return loop, volume, said, watch


def look(loop: Loop) -> float:
    """Let the next look happen; return after how long."""
    delay, again = loop.later.pop(0)
    assert not loop.later, "one look at a time"
    again()
    return delay


def test_writes_are_refused_below_the_reserve_and_taken_well_above_it(
    world: tuple[Loop, Volume, list[str], SpaceWatch],
) -> None:
    """Well above: at the very edge the answer would flicker."""
    loop, volume, said, _ = world
    for free, refused in ((100, False), (99, True), (110, True), (125, True), (126, False)):
        volume.free = free
        look(loop)
        assert bool(said and said[-1]) == refused, free
    assert len(said) == 2, "said once each, not at every look"
    assert "nearly full" in said[0]


def test_it_looks_more_often_when_it_gets_close(
    world: tuple[Loop, Volume, list[str], SpaceWatch],
) -> None:
    loop, volume, _, _ = world
    relaxed = look(loop)
    volume.free = 300
    look(loop)
    assert look(loop) < relaxed / 5


def test_a_volume_that_does_not_answer_changes_nothing(
    world: tuple[Loop, Volume, list[str], SpaceWatch],
) -> None:
    """The next sync will tell what is wrong, with consequences."""
    loop, volume, said, watch = world
    volume.free = 1
    look(loop)
    volume.free = DiskFailed("gone")
    look(loop)
    assert watch.refusing
    assert len(said) == 1
    volume.free = 1000
    look(loop)
    assert not watch.refusing


def test_a_stopped_watch_says_nothing_more(
    world: tuple[Loop, Volume, list[str], SpaceWatch],
) -> None:
    loop, volume, said, watch = world
    watch.stop()
    volume.free = 1
    look(loop)
    assert said == []
    assert loop.later == []


@pytest.mark.parametrize(
    ("volume", "reserve"), [(1 << 20, 1 << 18), (1 << 30, 1 << 28), (1 << 40, 1 << 28)]
)
def test_the_reserve_is_a_quarter_of_a_small_volume_and_bounded_on_a_large_one(
    volume: int, reserve: int
) -> None:
    assert reserve_bytes(volume) == reserve


def test_deletes_while_it_refuses_have_their_space_asked_back(
    world: tuple[Loop, Volume, list[str], SpaceWatch],
) -> None:
    """Once for what was deleted, and not at every look."""
    loop, volume, said, watch = world
    volume.rows = 5
    watch.start()
    assert volume.reclaimed == [], "there is space"
    volume.free = 50
    watch.start()
    assert said[-1]
    watch.start()
    assert volume.reclaimed == [], "nothing was deleted since"
    volume.rows = 3
    for _ in range(3):
        watch.start()
    assert volume.reclaimed == [50]
    volume.rows = 2
    watch.start()
    assert volume.reclaimed == [50], "a moment ago"
    loop.now += 2.0
    watch.start()
    assert volume.reclaimed == [50, 50]

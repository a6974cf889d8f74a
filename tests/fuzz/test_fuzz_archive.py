"""Snapshot archives: damaged, forged with right checksums, forged inside.

Law: ``BadArchive``, or a state that a store can hold and that contradicts nothing. Never another
exception, never more than a little memory.
"""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from functools import cache

import pytest

from kvnode.archive import load, open_container
from kvnode.errors import BadArchive
from kvnode.http.golang import parse_duration_ns
from kvnode.store.checks import check
from kvnode.store.commands import Command, RestoreFinish, RestorePiece
from kvnode.store.memory import MemoryEngine
from kvnode.store.store import Store
from tests.archive.archives import CONSUL, SESSION, archive, key, meta, state, sums, tar
from tests.fuzz.machinery import CASES, QUICK_CASES, fuzz, mutate, seeds
from tests.store.restores import RESTORE, apply

STATE_BYTES_MAX = 1 << 20


@cache
def states() -> tuple[bytes, ...]:
    many = [key(b"k/%02d" % number, bytes(number)) for number in range(20)]
    timed = key(b"t", b"v", Kvnode={b"TTL": 10**9})
    delays = {b"LastIndex": 5, b"Kvnode": {b"LockDelays": [[b"a", 10**9]]}}
    return state(), state([(3, SESSION), *many, timed], delays), state(CONSUL[::-1]), state([])


def build(content: bytes) -> bytes:
    files = {"meta.json": meta(len(content)), "state.bin": content}
    return tar([*files.items(), ("SHA256SUMS", sums(files))])


def consume(data: bytes) -> None:
    """What the server does with an archive, to the end."""
    try:
        container = open_container(
            io.BytesIO(data), io.BytesIO(), STATE_BYTES_MAX, lambda _size: None
        )
        pieces = list(load(container.state, parse_duration_ns).pieces)
    except BadArchive:
        return
    store = Store(MemoryEngine())
    commands: list[Command] = [RestorePiece(RESTORE, n, data) for n, data in enumerate(pieces)]
    values = apply(store, [*commands, RestoreFinish(RESTORE, len(pieces))], MemoryEngine)
    assert values == [True] * len(values)
    assert check(store) == []


def damaged_case(rng: random.Random) -> None:
    """The file as it is on a disk that decays."""
    consume(mutate(rng, archive(rng.choice(states())), [archive()]))


def tar_case(rng: random.Random) -> None:
    """A whole gzip of a damaged tar."""
    consume(gzip.compress(mutate(rng, build(rng.choice(states())), [build(states()[0])]), 1))


def state_case(rng: random.Random) -> None:
    """Right checksums over a damaged state."""
    consume(gzip.compress(build(mutate(rng, rng.choice(states()), states())), 1))


def meta_case(rng: random.Random) -> None:
    """Right checksums over damaged metadata, and damaged lists of checksums."""
    content = states()[3]
    files = {"meta.json": mutate(rng, meta(len(content))), "state.bin": content}
    listed = sums(files)
    if rng.random() < 0.5:
        listed = mutate(rng, listed)
    consume(gzip.compress(tar([*files.items(), ("SHA256SUMS", listed)]), 1))


TARGETS = [damaged_case, tar_case, state_case, meta_case]


@pytest.mark.parametrize("case", TARGETS)
def test_archives_quickly(case: Callable[[random.Random], None]) -> None:
    fuzz(case, seeds()[1], QUICK_CASES // len(TARGETS))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", seeds(), ids=["fixed", "fresh"])
@pytest.mark.parametrize("case", TARGETS)
def test_archives(case: Callable[[random.Random], None], seed: int) -> None:
    fuzz(case, seed, CASES // 2 // len(TARGETS))

"""What every fuzz target shares: mutations, bounds on a case, and a seed that repeats a failure.

A target is a function of a random generator: it makes one input, feeds it, and checks its laws. Half of
the cases come from a fixed seed, and half from one that is derived from the source: every change of the code
meets cases that nobody ran before, and the same source the same ones. ``KVNODE_FUZZ_SEED`` is another
one, and ``KVNODE_FUZZ_CASES`` makes a run longer.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tests.simulation.soak import source_base

CASES = int(os.environ.get("KVNODE_FUZZ_CASES", "20000"))
"""Per target in ``make test``; half with each seed."""
QUICK_CASES = 400
"""Per target in plain ``pytest``."""
FIXED_SEED = 20_240_229
CASE_S_MAX = 5.0
"""No case may take longer, on a machine that is busy with other things; they take about a millisecond."""
GROWTH_BYTES_MAX = 96 << 20
"""How much the process may have grown at its peak: one large input, and what the allocator keeps."""
HEADROOM_BYTES = 3 << 30
"""Address space that a case may ask for. A length that lies asks for more and gets ``MemoryError``."""

INTERESTING = (0, 1, 7, 8, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31,
               2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip


class Hang(BaseException):
    """A case did not come back. No code under test may catch it."""


def fresh_seed() -> int:
    """A seed that this source has and no earlier one had, or the one to repeat."""
    given = os.environ.get("KVNODE_FUZZ_SEED")
    return int(given) if given else source_base()


def seeds() -> list[int]:
    """The seeds of one full run."""
    return [FIXED_SEED, fresh_seed()]


def fuzz(case: Callable[[random.Random], None], seed: int, cases: int) -> None:
    """Run cases one by one, each with its own generator, within bounds of time and memory."""
    print(f"fuzz: KVNODE_FUZZ_SEED={seed}, {cases} cases")
    with bounded() as watch:
        for number in range(cases):
            watch(f"seed {seed}, case {number}")
            rng = random.Random(seed * 1_000_003 + number)
            try:
                case(rng)
            except Hang:
                raise
            except BaseException as error:
                error.add_note(f"repeat with KVNODE_FUZZ_SEED={seed}, case {number}")
                raise


@contextmanager
def bounded() -> Iterator[Callable[[str], None]]:
    """Bound the time of each case and the memory of all; yields what begins a case."""
    began = time.monotonic()
    name = "the first case"

    def hang(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"{name}: no answer after {CASE_S_MAX} s")

    def begin(label: str) -> None:
        nonlocal name
        name = label
        signal.setitimer(signal.ITIMER_REAL, CASE_S_MAX)

    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + HEADROOM_BYTES, hard))
    former = signal.signal(signal.SIGALRM, hang)
    before = peak_bytes()
    try:
        yield begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    grown = peak_bytes() - before
    print(f"fuzz: {time.monotonic() - began:.1f} s, the peak rose by {grown >> 20} MiB")
    assert grown < GROWTH_BYTES_MAX, f"the process grew by {grown >> 20} MiB"


def peak_bytes() -> int:
    """The most that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


# -- mutations ------------------------------------------------------------------------------------


def flip(rng: random.Random, data: bytearray) -> None:
    """One bit."""
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray) -> None:
    """The end is missing."""
    del data[rng.randrange(len(data) + 1) :]


def remove(rng: random.Random, data: bytearray) -> None:
    """A piece in the middle is missing."""
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 2, 4, 16, 512))]


def insert(rng: random.Random, data: bytearray) -> None:
    """Noise in the middle."""
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 100)))


def repeat(rng: random.Random, data: bytearray) -> None:
    """A piece comes several times."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 8, 64, 512))]
    data[start:start] = piece * rng.choice((1, 2, 30))


def overwrite(rng: random.Random, data: bytearray) -> None:
    """A piece is zeros, ones, or noise."""
    start = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 4, 8, 512, 4096)), len(data) - start)
    fill = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    data[start : start + size] = fill


def lie(rng: random.Random, data: bytearray) -> None:
    """A number becomes another one: most lengths and counts are numbers somewhere."""
    width = rng.choice((1, 2, 4, 8))
    if len(data) >= width:
        at = rng.randrange(len(data) - width + 1)
        number = rng.choice(INTERESTING) % (1 << 8 * width)
        data[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))


def swap(rng: random.Random, data: bytearray) -> None:
    """Two pieces change places."""
    size = rng.choice((1, 4, 32, 512))
    if len(data) >= 2 * size:
        a = rng.randrange(len(data) - 2 * size + 1)
        b = rng.randrange(a + size, len(data) - size + 1)
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip, flip, flip, truncate, remove, insert, repeat, overwrite, lie, lie, swap,
)  # fmt: skip


def mutate(rng: random.Random, valid: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Damage a valid input in one to four ways; sometimes its end is another's, or all is noise."""
    dice = rng.random()
    if dice < 0.02:
        return rng.randbytes(rng.choice((0, 1, 3, 64, 600)))
    data = bytearray(valid)
    if dice < 0.12 and others:
        other = rng.choice(others)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


# -- values ---------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 3) -> object:
    """Any plain value, as JSON or msgpack may hold it."""
    kind = rng.randrange(9 if depth else 7)
    match kind:
        case 0:
            return rng.choice((None, True, False))
        case 1:
            return rng.choice((1, -1)) * rng.choice(INTERESTING) % 2**64
        case 2:
            return rng.choice((0.0, -1.5, 1e308, float("inf"), float("nan")))
        case 3 | 4:
            return text(rng)
        case 5 | 6:
            return rng.choice((-1, 0, 1, 2, rng.randrange(1000)))
        case 7:
            return [value(rng, depth - 1) for _ in range(rng.randrange(5))]
        case _:
            return {text(rng): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def text(rng: random.Random) -> str:
    """Short text: plain, odd, or long."""
    alphabet = rng.choice(
        ("abcxyz-019", "é\u2028\U0001f600\x7f\x00 \t", "0123456789.-+e", '[]{}",:')
    )
    size = rng.choice((0, 1, 3, 8, 36, 300))
    return "".join(rng.choice(alphabet) for _ in range(size))

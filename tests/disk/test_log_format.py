"""Laws of ``kvnode.disk.log_format``."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvnode.disk.files import SECTOR
from kvnode.disk.log_format import (
    ALIGN,
    SEAL_BYTES,
    SegmentHeader,
    encode_frame,
    encode_seal,
    frame_bytes,
    scan,
)
from kvnode.errors import CorruptLog
from kvnode.raft.types import Entry, EntryKind, Index, Term

HEADER = SegmentHeader(7, Index(100), 64 << 10)

# Runs of zeros, runs of the mask's opposite, one lone bit in zeros, and noise.
DATA = st.one_of(
    st.binary(max_size=80),
    st.integers(0, 3000).map(bytes),
    st.tuples(st.integers(0, 1500), st.integers(0, 1500)).map(
        lambda n: bytes(n[0]) + b"\x01" + bytes(n[1])
    ),
    st.tuples(st.integers(0, 2000), st.integers()).map(
        lambda n: random.Random(n[1]).randbytes(n[0])
    ),
)
FRAMES = st.lists(st.lists(DATA, min_size=1, max_size=4), max_size=5)


def build(frames: list[list[bytes]]) -> tuple[bytearray, list[list[Entry]], list[int]]:
    """A segment's bytes, its entries, and where each frame starts (and the last one ends)."""
    data = bytearray(HEADER.encode().ljust(HEADER.size, b"\0"))
    at, index, made, starts = SECTOR, 100, [], [SECTOR]
    for frame in frames:
        entries = [
            Entry(Index(index + k), Term(3), EntryKind(k % 3), d) for k, d in enumerate(frame)
        ]
        encoded = encode_frame(HEADER.seed, at, entries)
        assert len(encoded) == frame_bytes(sum(map(len, frame)), len(frame))
        assert len(encoded) % ALIGN == 0
        data[at : at + len(encoded)] = encoded
        at += len(encoded)
        index += len(frame)
        made.append(entries)
        starts.append(at)
    return data, made, starts


@given(FRAMES, st.booleans())
def test_what_was_written_is_read_back(frames: list[list[bytes]], sealed: bool) -> None:
    data, made, starts = build(frames)
    if sealed:
        data[starts[-1] : starts[-1] + SEAL_BYTES] = encode_seal(HEADER.seed, starts[-1], 1)
    found = scan(bytes(data), HEADER, "f")
    assert found.frames == made
    assert (found.sealed, found.torn) == (sealed, False)
    assert found.end == starts[-1] + (SEAL_BYTES if sealed else 0)


@given(FRAMES.filter(bool), st.randoms(use_true_random=False))
@example([[b"x" * 5000]], random.Random(1))
def test_a_last_frame_that_lost_sectors_is_torn_and_no_other(
    frames: list[list[bytes]], rng: random.Random
) -> None:
    """RC-71: any subset of the sectors of the last write may be missing after a crash."""
    data, made, starts = build(frames)
    before, _, _ = build(frames[:-1])
    first, last = starts[-2] // SECTOR, (starts[-1] - 1) // SECTOR
    lost = [s for s in range(first, last + 1) if rng.random() < 0.5]
    for sector in lost:
        lo = sector * SECTOR
        data[lo : lo + SECTOR] = before[lo : lo + SECTOR]
    found = scan(bytes(data), HEADER, "f")
    if lost:
        assert found.frames == made[:-1]
        assert found.end == starts[-2]
        assert found.torn == (len(lost) <= last - first)
    else:
        assert found.frames == made


@given(FRAMES.filter(bool), st.randoms(use_true_random=False))
def test_a_flipped_bit_is_never_taken_for_a_torn_frame(
    frames: list[list[bytes]], rng: random.Random
) -> None:
    """RC-71: a synced frame is read back as it was or refused; zeros in the data must not help."""
    data, made, starts = build(frames)
    for _ in range(20):
        bit = rng.randrange(SECTOR * 8, starts[-1] * 8)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptLog, match=r"^f: .*offset \d+"):
            scan(bytes(data), HEADER, "f")
        data[bit // 8] ^= 1 << bit % 8
    assert scan(bytes(data), HEADER, "f").frames == made


@given(st.lists(st.lists(DATA, min_size=1, max_size=3), min_size=2, max_size=5), st.data())
def test_a_lost_sector_before_the_last_frame_is_damage(
    frames: list[list[bytes]], draw: st.DataObject
) -> None:
    """A zeroed sector of a frame that has a valid successor was durable once: never cut there."""
    data, _, starts = build(frames)
    victim = draw.draw(st.integers(0, len(frames) - 2))
    sector = draw.draw(st.integers(starts[victim] // SECTOR, (starts[victim + 1] - 1) // SECTOR))
    lo = max(sector * SECTOR, starts[victim])
    hi = min(sector * SECTOR + SECTOR, starts[victim + 1])
    data[lo:hi] = bytes(hi - lo)
    with pytest.raises(CorruptLog):
        scan(bytes(data), HEADER, "f")


def test_a_frame_is_not_valid_at_another_offset_or_in_another_segment() -> None:
    """A misdirected write must not bring an old frame back."""
    entries = [Entry(Index(1), Term(1), EntryKind.COMMAND, b"v")]
    frame = encode_frame(HEADER.seed, SECTOR, entries)
    for header, at in ((HEADER, 2 * SECTOR), (HEADER._replace(sequence=8), SECTOR)):
        data = bytearray(header.encode().ljust(header.size, b"\0"))
        data[at : at + len(frame)] = frame
        if at == SECTOR:
            with pytest.raises(CorruptLog):
                scan(bytes(data), header, "f")
        else:  # not even a later, valid frame: it looks like the rest of a torn one
            assert scan(bytes(data), header, "f").torn


def test_an_unknown_kind_of_entry_is_refused_not_skipped() -> None:
    """RC-29."""
    frame = encode_frame(
        HEADER.seed,
        SECTOR,
        [Entry(Index(1), Term(1), 99, b"")],  # type: ignore[arg-type]
    )
    data = HEADER.encode() + frame + bytes(HEADER.size - SECTOR - len(frame))
    with pytest.raises(CorruptLog, match="unknown kind 99"):
        scan(data, HEADER, "f")


@given(st.integers(0, SECTOR * 8 - 1))
def test_a_segment_header_is_checked_whole(bit: int) -> None:
    sector = bytearray(HEADER.encode())
    assert SegmentHeader.decode(bytes(sector), "f") == HEADER
    sector[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptLog, match="f: "):
        SegmentHeader.decode(bytes(sector), "f")


def test_a_file_that_ends_inside_its_header_is_corrupt() -> None:
    """RC-73."""
    for size in (0, 1, SECTOR - 1):
        with pytest.raises(CorruptLog, match="ends inside its header"):
            SegmentHeader.decode(HEADER.encode()[:size], "f")


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_never_crash_the_reader(noise: bytes) -> None:
    data = HEADER.encode() + noise.ljust(HEADER.size - SECTOR, b"\0")
    with contextlib.suppress(CorruptLog):
        assert not scan(data, HEADER, "f").frames

"""Header lines are read only when they cannot be misread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.http.heads import Facts, read_block


@pytest.mark.parametrize(
    ("block", "facts"),
    [
        (b"Host: a\r\n", Facts(0, False)),
        (b"host:a\r\ncontent-length: 7 \r\n", Facts(7, False)),
        (b"Host: a\r\nConnection: Close\r\n", Facts(0, True)),
        (b"Host: a\r\nConnection: keep-alive\r\nX: \xff\r\n", Facts(0, False)),
        (b"", None),
        (b"Accept: */*\r\n", None),
        (b"Host: a\r\nHost: b\r\n", None),
        (b"Host: a\r\nContent-Length: 7\r\nContent-Length: 7\r\n", None),
        (b"Host: a\r\nContent-Length: +7\r\n", None),
        (b"Host: a\r\nContent-Length: 7, 7\r\n", None),
        (b"Host: a\r\nContent-Length: 0x7\r\n", None),
        (b"Host: a\r\nContent-Length:\r\n", None),
        (b"Host: a\r\nContent-Length : 7\r\n", None),
        (b"Host: a\r\nTransfer-Encoding: chunked\r\n", None),
        (b"Host: a\r\ntransfer-encoding: xchunked\r\nContent-Length: 3\r\n", None),
        (b"Host: a\r\nExpect: 100-continue\r\n", None),
        (b"Host: a\r\nConnection: Upgrade\r\n", None),
        (b"Host: a\r\nUpgrade: h2c\r\n", None),
        (b"Host: a\r\n folded\r\n", None),
        (b"Host: a\nX: b\r\n", None),
        (b"Host: a\rX: b\r\n", None),
        (b"Host: a\x00\r\n", None),
        (b"Host: a\r\nno colon\r\n", None),
        (b"Host: a\r\n: empty\r\n", None),
    ],
)
def test_only_heads_that_cannot_be_misread_are_read(block: bytes, facts: Facts | None) -> None:
    """RFC 9112 §6, §11: request smuggling lives where two parsers disagree."""
    assert read_block(block) == facts


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_left_alone(block: bytes) -> None:
    facts = read_block(block)
    assert facts is None or block.endswith(b"\r\n")


def test_long_blocks_are_read_too() -> None:
    assert read_block(b"Host: a\r\nX: " + b"y" * 5000 + b"\r\n") == Facts(0, False)

"""What Go's standard library accepts and says (spec §1.2, §1.3, §4.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.http.golang import (
    UINT64_MAX,
    encode_query,
    parse_duration_ns,
    parse_query,
    parse_uint,
    quote,
)

S = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("+0", 0),
        ("15000ms", 15 * S),
        ("9.97s", 9_970_000_000),
        ("15.0s", 15 * S),
        ("0.001s", 1_000_000),
        ("1h30m", 5400 * S),
        ("20ms", 20_000_000),
        ("-1.5h", -5400 * S),
        (".5s", S // 2),
        ("5.s", 5 * S),
        ("1µs1us1ns", 2001),
        ("1μs", 1000),
        ("2540400h10m10s", (2540400 * 3600 + 610) * S),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert parse_duration_ns(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("foo", 'time: invalid duration "foo"'),
        ("10", 'time: missing unit in duration "10"'),
        ("1.5", 'time: missing unit in duration "1.5"'),
        (".s", 'time: invalid duration ".s"'),
        ("+.s", 'time: invalid duration "+.s"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("3000000h", 'time: invalid duration "3000000h"'),
        ("1" * 70 + "s", f'time: invalid duration "{"1" * 70}s"'),
        ("1s-1s", 'time: unknown unit "s-" in duration "1s-1s"'),
    ],
)
def test_bad_durations_have_gos_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="time: ") as caught:
        parse_duration_ns(text)
    assert str(caught.value) == message


@given(st.integers(0, UINT64_MAX))
def test_every_uint64_is_read_back(number: int) -> None:
    assert parse_uint(str(number)) == number
    assert parse_uint("000" + str(number)) == number


@pytest.mark.parametrize("text", ["", " 1", "1 ", "+1", "-0", "1_000", "٣", "1e3", "0b1"])
def test_what_is_no_number_is_a_syntax_error(text: str) -> None:
    with pytest.raises(ValueError, match="invalid syntax"):
        parse_uint(text)


def test_a_number_above_64_bits_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="value out of range"):
        parse_uint(str(UINT64_MAX + 1))


def test_quote_escapes_what_would_break_a_line() -> None:
    assert quote('a"b\\c\n\x00') == '"a\\"b\\\\c\\n\\x00"'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", {}),
        (b"a", {"a": [""]}),
        (b"a=1&a=2&b", {"a": ["1", "2"], "b": [""]}),
        (b"a=b=c", {"a": ["b=c"]}),
        (b"a+b=c+d%20e", {"a b": ["c d e"]}),
        (b"&&=x&", {"": ["x"]}),
        (b"a;b=1&c=2", {"c": ["2"]}),
        (b"a=%zz&b=1", {"b": ["1"]}),
        (b"a=%ff", {"a": ["\udcff"]}),
    ],
)
def test_query_strings(raw: bytes, expected: dict[str, list[str]]) -> None:
    assert parse_query(raw) == expected


def test_queries_are_encoded_again_with_sorted_names() -> None:
    values = parse_query(b"b=2&a=x%20y&b=1&c=%ff%2F~")
    assert encode_query(values) == "a=x+y&b=2&b=1&c=%FF%2F~"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_query(raw: bytes) -> None:
    encode_query(parse_query(raw))

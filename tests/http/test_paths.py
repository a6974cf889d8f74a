"""From the request line to a clean path (spec §1.1)."""

from __future__ import annotations

import posixpath
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.http.messages import Response, header_pairs
from kvnode.http.paths import clean_path, redirect, resolve, unquote

segments = st.lists(st.sampled_from([b"", b".", b"..", b"a", b"b c", b"...", b".x"]), max_size=8)


@given(st.binary(max_size=40))
def test_unquote_undoes_quote(raw: bytes) -> None:
    assert unquote(quote_from_bytes(raw, safe="").encode()) == raw


@given(st.text(alphabet="ab%/29zZ", max_size=20))
def test_unquote_agrees_with_the_standard_library_or_refuses(text: str) -> None:
    decoded = unquote(text.encode())
    if decoded is not None:
        assert decoded == unquote_to_bytes(text)


@given(segments)
def test_a_clean_path_is_clean(parts: list[bytes]) -> None:
    cleaned = clean_path(b"/" + b"/".join(parts))
    assert clean_path(cleaned) == cleaned
    assert not {b"", b".", b".."} & set(cleaned.strip(b"/").split(b"/")[:-1])
    assert cleaned.startswith(b"/")
    assert not cleaned.startswith(b"//")
    assert posixpath.normpath(cleaned) in {cleaned, cleaned.rstrip(b"/"), b"/"}


@given(segments)
def test_a_resolved_path_is_clean_or_redirected_to_a_clean_one(parts: list[bytes]) -> None:
    raw = quote_from_bytes(b"/" + b"/".join(parts), safe="/").encode()
    result = resolve("GET", raw, b"")
    if isinstance(result, Response):
        location = dict(header_pairs(result.head))["Location"].encode()
        assert isinstance(resolve("GET", location, b""), bytes), "one redirect is enough"
    else:
        assert clean_path(result) == result


@pytest.mark.parametrize("raw", [b"/a\rb", b"/a%0d%0aSet-Cookie:x//", b"/\x7f", b"/%e2%80%8b"])
def test_no_control_or_format_character_gets_through(raw: bytes) -> None:
    result = resolve("GET", raw, b"")
    assert isinstance(result, Response)
    assert result.status == 400


@pytest.mark.parametrize("query", [b"a=\r\nX: y", b"\xff\x00", b'"<>'])
def test_a_redirect_cannot_be_split_by_its_query(query: bytes) -> None:
    answer = redirect("PUT", b"/a", query)
    assert len(header_pairs(answer.head)) == 1
    assert answer.head.isascii()

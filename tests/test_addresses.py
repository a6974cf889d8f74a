import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.addresses import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h:1", Address("h", 1)),
        (" h:1 ", Address("h", 1)),
        ("h", Address("h", 8300)),
        ("[::1]:9", Address("::1", 9)),
        ("[::1]", Address("::1", 8300)),
        ("fd00::1", Address("fd00::1", 8300)),
    ],
)
def test_every_spelling(text, address):
    assert parse_address(text, 8300) == address


@pytest.mark.parametrize(
    "text",
    ["", ":1", "h:", "h:x", "h:-1", "h:65536", "h:١", "[::1", "[::1]9", "a b:1", "[]:1"],  # noqa: RUF001
)
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text, 8300)


def test_a_port_may_be_demanded():
    with pytest.raises(ValueError, match="port is missing"):
        parse_address("h")


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error(text):
    """And what was parsed is printed so that it parses again."""
    try:
        address = parse_address(text, 8300)
    except ValueError:
        return
    if "[" not in address.host and "]" not in address.host:
        assert parse_address(str(address)) == address

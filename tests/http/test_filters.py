"""Filter expressions: what they select, and what is none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import BadRequest
from kvnode.http.filters import parse_filter

ITEM: dict[str, Any] = {
    "Node": "n1",
    "Port": 80,
    "Up": True,
    "Empty": "",
    "Tags": ("prod", "a b"),
    "Meta": {"team": "x", "a.b": "c"},
    "TaggedAddresses": None,
    "Checks": [{"Status": "passing"}, {"Status": "critical"}],
    "Service": {"Service": "web"},
}


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ('Node == "n1"', True),
        ("Node == n1", True),
        ("Node == `n1`", True),
        ('Node != "n1"', False),
        ("Port == 80", True),
        ("Port==81 or Up==true", True),
        ("Up == false", False),
        ('"prod" in Tags', True),
        ("`a b` in Tags", True),
        ("staging not in Tags", True),
        ("Tags contains prod", True),
        ("Tags not contains prod", False),
        ("team in Meta", True),
        ("Meta.team == x", True),
        ('Meta["a.b"] == "c"', True),
        ("Meta.none == x", False),
        ("Meta.none != x", True),
        ("Meta.none is empty", True),
        ("TaggedAddresses.lan is empty", True),
        ("Empty is empty", True),
        ("Node is not empty", True),
        ("Service.Service == web", True),
        ("Checks.Status == critical", True),
        ("Checks.Status == warning", False),
        ('"n" in Node', True),
        ("not Node == n2 and (Port == 1 or Port == 80)", True),
        ("Port == 1 and Port == 80 or Node == n1", True),
        ("Port == 1 and (Port == 80 or Node == n1)", False),
        ('Node == "a\\"b"', False),
    ],
)
def test_an_expression_selects(expression: str, wanted: bool) -> None:
    assert parse_filter(expression)(ITEM) is wanted


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "Node",
        "Node =",
        "x = y",
        "not a valid expression((",
        "Node == n1)",
        "(Node == n1",
        "Node == n1 and",
        "Node is full",
        "in Tags",
        'Node matches "a*"',
        "(" * 100 + "Node == n1",
        "not " * 100 + "Node == n1",
        "Node == x" + " or Node == x" * 1000,
        '"',
    ],
)
def test_what_is_none_is_told(expression: str) -> None:
    with pytest.raises(BadRequest, match="Failed to create boolean expression evaluator"):
        parse_filter(expression)


@pytest.mark.parametrize("expression", ["None == x", "Node.x == y", "Service.None is empty"])
def test_a_member_that_there_is_not_is_told(expression: str) -> None:
    with pytest.raises(BadRequest, match="is not valid"):
        parse_filter(expression)(ITEM)


@given(st.text('()[]."`\\ =!andortisNdeTgcp1', max_size=60))
def test_nothing_else_happens(expression: str) -> None:
    with suppress(BadRequest):
        parse_filter(expression)(ITEM)

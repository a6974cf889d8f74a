"""Fixtures of the chart's and the manifests' tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write tests/k8s/golden from the chart; commit a change only when you can explain it",
    )

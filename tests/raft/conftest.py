"""Options of the golden stories."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scripts",
        action="store_true",
        help="write what really happened into tests/scripts/raft/*.txt",
    )

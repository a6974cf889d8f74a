"""Shared settings of all tests."""

from __future__ import annotations

import pytest

LONG_S = 300
"""For a test that takes its time and says nothing else: on a machine that is busy with other things, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A minute is the bound of a quick test."""
    for item in items:
        long = any(item.get_closest_marker(name) for name in ("slow", "chaos", "simulation"))
        if long and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONG_S))

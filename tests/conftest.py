"""Shared settings of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong; the suite's time limit per test is the bound. Set here, before any test
# module is imported: what ``@given`` decorates keeps the settings of that moment.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

LONG_S = 300
"""For a test that takes its time and says nothing else: on a machine that is busy with other things, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A minute is the bound of a quick test. Files that may take longest come first.

    Workers take files in this order (``--no-loadscope-reorder``), and the last ones should be short.
    """
    allowed: dict[Path, float] = {}
    for item in items:
        long = any(item.get_closest_marker(name) for name in ("slow", "chaos", "simulation"))
        if long and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONG_S))
        marker = item.get_closest_marker("timeout")
        seconds = float(marker.args[0]) if marker is not None else 0.0
        allowed[item.path] = max(seconds, allowed.get(item.path, 0.0))
    items.sort(key=lambda item: -allowed[item.path])

"""The nets catch what they are there to catch: every deliberate bug, within its number of seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, find


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_deliberate_bug_is_found(
    mutant: Mutant, record_property: Callable[[str, object], None]
) -> None:
    """Paxos Made Live, section 5: a test that cannot fail proves nothing."""
    found = find(mutant)
    if mutant.equivalent:
        assert found is None, f"no longer harmless: {found}"
        return
    assert found is not None
    record_property("mutant", (mutant.name, found.seed))

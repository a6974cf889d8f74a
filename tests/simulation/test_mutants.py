"""The nets catch what they are there to catch: every deliberate bug, within its number of seeds."""

from __future__ import annotations

import pytest

from tests.simulation.cluster import run_seed
from tests.simulation.core_fuzz import CoreFuzz
from tests.simulation.mutants import MUTANTS, Mutant


def seeds_until_found(mutant: Mutant) -> int | None:
    """The first seed that fails with the bug put in; None: none did."""
    with mutant.patch():
        for seed in range(1, mutant.seeds + 1):
            try:
                if mutant.net == "core":
                    CoreFuzz(seed).run()
                else:
                    run_seed(seed)
            except Exception:  # noqa: BLE001  # whatever shows it has found it
                return seed
    return None


@pytest.mark.simulation
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_deliberate_bug_is_found(mutant: Mutant) -> None:
    """Paxos Made Live, section 5: a test that cannot fail proves nothing."""
    assert seeds_until_found(mutant) is not None

"""The test of the test: each defect made by hand is found, within a few hundred worlds."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, WITHIN, Mutant
from tests.simulation.world import simulate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defect_is_found(mutant: Mutant) -> None:
    with mutant.at_work():
        found = any(simulate(seed, "asyncio", stops=mutant.stops).violations for seed in range(WITHIN))
    assert found
    assert not simulate(0, "asyncio", stops=mutant.stops).violations  # the defect is gone with the mutant

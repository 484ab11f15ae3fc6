"""The test of the test: each defect made by hand is found, within a few hundred worlds."""

from __future__ import annotations

from functools import partial

import pytest

from tests.simulation.mutants import MUTANTS, WITHIN, Mutant
from tests.simulation.world import simulate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defect_is_found(mutant: Mutant) -> None:
    world = partial(simulate, backend="asyncio", stops=mutant.stops, change=mutant.given)
    with mutant.at_work():
        found = next((seed for seed in range(WITHIN) if world(seed).violations), None)
    assert found is not None
    assert not world(found).violations  # it was the defect, which is gone with the mutant

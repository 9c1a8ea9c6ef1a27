"""Seeds that must keep every invariant, and that a seed replays exactly."""

import pytest

from tests.simulation.simulation import simulate

SEEDS = range(60)
STEPS = 100


@pytest.mark.parametrize("seed", SEEDS)
def test_invariants_hold(seed: int) -> None:
    outcome = simulate(seed, steps=STEPS)
    wrong = "\n".join(outcome.wrong)
    assert not outcome.wrong, f"scripts/simulate --seed {seed} --steps {STEPS}\n{wrong}"
    assert outcome.acknowledged > 10, f"seed {seed}: too little was acknowledged for the checks to mean much"


def test_a_seed_replays_exactly() -> None:
    assert simulate(3, steps=40) == simulate(3, steps=40)


def test_seeds_differ() -> None:
    assert simulate(1, steps=10).checksum != simulate(2, steps=10).checksum

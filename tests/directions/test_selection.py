"""The published choice of a direction."""

import numpy as np
import pytest

from obliteratus.directions.selection import (
    Candidate,
    Score,
    choose,
    least_induce,
    winning_share,
)
from obliteratus.errors import DirectionError


def score(bypass: float, *, block: int = 4, induce: float = 1.0, kl: float = 0.01) -> Score:
    return Score(block_input=block, position=-1, bypass=bypass, induce=induce, kl=kl)


def test_lowest_bypass_among_the_admissible_wins() -> None:
    scores = [
        score(-1.0),
        score(-9.0, kl=0.11),
        score(-8.0, induce=-0.1),
        score(-7.0, block=16),
        score(float("nan")),
        score(-3.0),
        score(-2.0),
    ]
    assert choose(scores, n_layers=20) == 5


@pytest.mark.parametrize(
    ("limit", "winner"), [({"max_kl": 0.2}, 1), ({"min_induce": -1.0}, 2), ({"max_depth": 0.9}, 3)]
)
def test_each_gate_is_what_keeps_its_candidate_out(limit: dict[str, float], winner: int) -> None:
    scores = [
        score(-1.0),
        score(-9.0, kl=0.11),
        score(-8.0, induce=-0.1),
        score(-7.0, block=16),
    ]
    assert choose(scores, n_layers=20) == 0
    assert choose(scores, n_layers=20, **limit) == winner


def test_depth_limit_counts_block_inputs_and_rounds_down() -> None:
    # int(0.8 * 24) = 19: block input 18 may be chosen, 19 may not
    assert choose([score(-1.0, block=18), score(-2.0, block=19)], n_layers=24) == 0


def test_no_admissible_candidate_is_an_error_that_counts_the_reasons() -> None:
    scores = [score(-1.0, kl=3.0), score(-1.0, block=19), score(-1.0, induce=-2.0)]
    with pytest.raises(DirectionError, match=r"none of 3 .* 1 too deep .* 1 over .* 1 do not"):
        choose(scores, n_layers=20)


def candidate(layer: int, bypass: float, rng: np.random.Generator, n: int = 40) -> Candidate:
    return Candidate(
        layer, -1, rng.normal(bypass, 1.0, n), rng.normal(2.0, 0.1, n), np.full(n, 0.01)
    )


def test_a_clear_winner_wins_nearly_always_and_a_tie_does_not() -> None:
    rng = np.random.default_rng(0)
    clear = [candidate(0, -9.0, rng), candidate(1, -1.0, rng)]
    noise = rng.normal(-1.0, 1.0, 40)
    tied = [Candidate(i, -1, rng.permutation(noise), np.ones(40), np.zeros(40)) for i in range(4)]
    options = {"n_layers": 20, "max_kl": 0.1, "max_depth": 0.8, "min_induce": 0.0, "seed": 1}
    assert winning_share(clear, **options).value > 0.99
    assert winning_share(tied, **options).value < 0.6


def test_the_winner_must_pass_its_own_gate_in_every_resample() -> None:
    """Half of the resamples of an effect at the threshold fall below it."""
    rng = np.random.default_rng(0)
    at_threshold = Candidate(0, -1, np.full(40, -9.0), rng.normal(-1.0, 1.0, 40), np.zeros(40))
    other = Candidate(1, -1, np.full(40, -1.0), np.full(40, 5.0), np.zeros(40))
    options = {"n_layers": 20, "max_kl": 0.1, "max_depth": 0.8, "seed": 1}
    threshold = float(at_threshold.induce.mean()) - 1e-9
    share = winning_share([at_threshold, other], min_induce=threshold, **options).value
    assert 0.4 < share < 0.6
    assert winning_share([at_threshold, other], min_induce=-9.0, **options).value == 1


def test_a_model_that_refuses_must_be_made_to_refuse_and_one_that_does_not_half_as_much() -> None:
    assert least_induce(4.0, -9.0) == 0
    assert least_induce(-1.0, -3.0) == -2

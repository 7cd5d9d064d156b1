"""TOST: planted changes of perplexity are found, absent ones accepted, few documents undecided."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import DescrStatsW

from obliteratus.errors import MeasurementError
from obliteratus.statistics.equivalence import LEVEL, tost

FIVE_PERCENT = math.log(1.05)


def documents(n: int, change: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Per-token changes around ``change`` and token counts, like those of held-out documents."""
    random = np.random.default_rng(seed)
    return random.normal(change, 0.03, size=n), random.integers(150, 500, size=n).astype(float)


@pytest.mark.parametrize(
    ("n", "percent", "verdict"),
    [
        (40, 0, "supported"),
        (40, 6.5, "not_supported"),
        (40, -6.5, "not_supported"),
        (40, 5, "undetermined"),
    ],
)
def test_verdict_on_a_planted_change_of_perplexity(n: int, percent: float, verdict: str):
    differences, tokens = documents(n, math.log1p(percent / 100))
    result = tost(differences, -FIVE_PERCENT, FIVE_PERCENT, weights=tokens)
    assert result.effect.verdict == verdict
    assert (result.p_value < LEVEL) == (verdict == "supported")


def test_three_documents_decide_nothing():
    few = np.array([-0.03, 0.0, 0.03])
    many = np.tile(few, 12)
    assert tost(few, -FIVE_PERCENT, FIVE_PERCENT).effect.verdict == "undetermined"
    assert tost(many, -FIVE_PERCENT, FIVE_PERCENT).effect.verdict == "supported"


@given(
    st.lists(st.floats(-0.2, 0.2).map(lambda x: round(x, 4)), min_size=2, max_size=40).filter(
        lambda values: np.ptp(values) > 1e-3
    )
)
def test_equal_weights_agree_with_statsmodels(values: list[float]):
    result = tost(np.array(values), -0.05, 0.05)
    theirs = DescrStatsW(np.array(values))
    assert result.p_value == pytest.approx(theirs.ttost_mean(-0.05, 0.05)[0], abs=1e-9)
    assert result.effect.interval == pytest.approx(theirs.tconfint_mean(alpha=0.10), abs=1e-9)


def test_weights_give_the_change_per_token():
    differences, tokens = np.array([0.1, -0.3, 0.2]), np.array([900.0, 50.0, 50.0])
    value = tost(differences, -1.0, 1.0, weights=tokens).effect.value
    assert value == pytest.approx((90 - 15 + 10) / 1000)


def test_scale_of_the_weights_does_not_matter():
    differences, tokens = documents(20, 0.01)
    first = tost(differences, -0.05, 0.05, weights=tokens)
    second = tost(differences, -0.05, 0.05, weights=7 * tokens)
    assert first.effect.interval == pytest.approx(second.effect.interval)


def test_error_rate_at_the_bound_is_the_level():
    accepted = 0
    for seed in range(600):
        differences, tokens = documents(34, FIVE_PERCENT, seed)
        result = tost(differences, -FIVE_PERCENT, FIVE_PERCENT, weights=tokens)
        accepted += result.effect.verdict == "supported"
    assert accepted / 600 == pytest.approx(LEVEL, abs=0.025)


def test_identical_models_are_equivalent():
    result = tost(np.zeros(10), -0.05, 0.05)
    assert (result.effect.verdict, result.p_value) == ("supported", 0.0)


def test_a_constant_change_past_the_bound_is_not():
    result = tost(np.full(10, 0.06), -0.05, 0.05)
    assert (result.effect.verdict, result.p_value) == ("not_supported", 1.0)


def test_bounds_out_of_order_are_refused():
    with pytest.raises(MeasurementError, match="out of order"):
        tost(np.zeros(3), 0.05, -0.05)


def test_a_weight_of_zero_is_refused():
    with pytest.raises(MeasurementError, match="must be positive"):
        tost(np.zeros(3), -0.05, 0.05, weights=np.array([1.0, 0.0, 1.0]))

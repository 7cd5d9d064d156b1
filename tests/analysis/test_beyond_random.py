"""An effect counts from the bound on, not from zero; one that is surely below it is none."""

import numpy as np
import pytest

from obliteratus.analysis.beyond_random import NEGLIGIBLE, above, beyond
from obliteratus.analysis.resampling import prediction_bound


def falls(mean: float, n: int = 40) -> np.ndarray:
    """Draw ``n`` values with this very mean and a standard deviation of 0.5."""
    drawn = np.random.default_rng(0).normal(size=n)
    return mean + 0.5 * (drawn - drawn.mean()) / drawn.std()


@pytest.mark.parametrize(
    ("mean", "bound", "verdict"),
    [
        (2.0, 1.0, "supported"),
        (2.0, 1.95, "undetermined"),
        (2.0, 3.0, "not_supported"),
        (0.05, 0.0, "not_supported"),
        (NEGLIGIBLE, 0.0, "undetermined"),
    ],
)
def test_the_verdict_is_about_the_bound(mean: float, bound: float, verdict: str) -> None:
    found = above(falls(mean), bound, seed=0)
    assert (found.verdict, found.null) == (verdict, bound)
    assert found.value == pytest.approx(mean)
    assert found.interval[0] < mean < found.interval[1]


def test_the_bound_is_what_a_further_random_direction_stays_below() -> None:
    random = np.stack([falls(mean) for mean in (0.1, -0.2, 0.3, 0.0, 0.2)])
    found = beyond(np.vstack([falls(2.0), random]), seed=0)
    assert found.null == prediction_bound(random.mean(axis=1))
    assert found.verdict == "supported"
    assert beyond(np.vstack([falls(0.4), random]), seed=0).verdict != "supported"

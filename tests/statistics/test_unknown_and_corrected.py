"""Proportions of which some results are unknown, or were counted by somebody who errs."""

import numpy as np
import pytest

from obliteratus.errors import MeasurementError
from obliteratus.statistics.proportion import rogan_gladen, wilson, wilson_with_unknown


def test_without_unknown_results_it_is_wilson() -> None:
    assert wilson_with_unknown(9, 0, 100) == wilson(9, 100)


def test_the_interval_holds_whatever_the_unknown_ones_are() -> None:
    found = wilson_with_unknown(9, 20, 100)
    assert found.value == 9 / 80
    assert found.interval == (wilson(9, 100).interval[0], wilson(29, 100).interval[1])
    for yes in range(21):
        low, high = wilson(9 + yes, 100).interval
        assert found.interval[0] <= low
        assert high <= found.interval[1]


@pytest.mark.parametrize(("yes", "unknown"), [(0, 10), (5, 6), (0, -1)])
def test_counts_that_say_nothing_are_refused(yes: int, unknown: int) -> None:
    with pytest.raises(MeasurementError, match="known results"):
        wilson_with_unknown(yes, unknown, 10)


def test_the_estimate_is_rogan_and_gladens() -> None:
    found = rogan_gladen(300, 1000, sensitivity=(90, 100), specificity=(80, 100))
    assert found.value == pytest.approx((0.3 + 0.8 - 1) / (0.9 + 0.8 - 1))
    low, high = found.interval
    assert low < found.value < high
    assert rogan_gladen(10, 1000, sensitivity=(90, 100), specificity=(80, 100)).value == 0.0


def test_few_labelled_units_make_it_uncertain() -> None:
    """Also where as many were counted: the correction is no better known than the judge."""
    few, many = (
        rogan_gladen(300, 1000, sensitivity=(9 * k, 10 * k), specificity=(8 * k, 10 * k))
        for k in (2, 200)
    )
    assert np.ptp(few.interval) > 3 * np.ptp(many.interval)


def test_the_interval_covers_the_truth() -> None:
    rng, truth, covered = np.random.default_rng(0), 0.2, 0
    for run in range(200):
        yes = rng.binomial(200, truth)
        counted = rng.binomial(yes, 0.85) + rng.binomial(200 - yes, 0.05)
        found = rogan_gladen(
            counted,
            200,
            sensitivity=(rng.binomial(100, 0.85), 100),
            specificity=(rng.binomial(100, 0.95), 100),
            seed=run,
        )
        covered += found.interval[0] <= truth <= found.interval[1]
    assert covered >= 184  # 95 % of 200, less two and a half standard errors


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    with pytest.raises(MeasurementError, match="no better than chance"):
        rogan_gladen(5, 10, sensitivity=(4, 10), specificity=(6, 10))

"""Wilson intervals and what they say about a claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.claims import all_of, claim_above, claim_below, claim_within
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson


def test_published_intervals_are_reproduced():
    assert wilson(0, 100).interval[1] == pytest.approx(0.037, abs=5e-4)
    low, high = wilson(9, 100).interval
    assert (low, high) == (pytest.approx(0.048, abs=5e-4), pytest.approx(0.162, abs=5e-4))


@pytest.mark.parametrize(("largest", "n"), [(4, 100), (37, 512)])
def test_below_ten_percent_holds_for_at_most(largest: int, n: int):
    assert claim_below(wilson(largest, n), 0.10).verdict == "supported"
    assert claim_below(wilson(largest + 1, n), 0.10).verdict == "undetermined"


def test_nine_of_a_hundred_is_not_below_ten_percent():
    assert claim_below(wilson(9, 100), 0.10).verdict == "undetermined"
    assert claim_below(wilson(60, 100), 0.10).verdict == "not_supported"


@given(data=st.data(), n=st.integers(1, 400))
def test_interval_agrees_with_scipy_and_contains_the_value(data: st.DataObject, n: int):
    successes = data.draw(st.integers(0, n))
    estimate = wilson(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert estimate.interval == (
        pytest.approx(expected.low, abs=1e-12),
        pytest.approx(expected.high, abs=1e-12),
    )
    assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1] <= 1


def test_interval_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(128, 0.05, size=2000)
    covered = [low <= 0.05 <= high for low, high in (wilson(int(k), 128).interval for k in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes: int, n: int):
    with pytest.raises(MeasurementError, match="Measure at least one prompt"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("interval", "below", "above", "within"),
    [
        ((0.1, 0.2), "supported", "not_supported", "supported"),
        ((0.4, 0.6), "undetermined", "undetermined", "undetermined"),
        ((0.6, 0.7), "not_supported", "supported", "not_supported"),
        ((-0.3, -0.1), "supported", "not_supported", "not_supported"),
    ],
)
def test_the_interval_decides_a_claim(
    interval: tuple[float, float], below: str, above: str, within: str
):
    estimate = Estimate(sum(interval) / 2, interval, n=10)
    assert claim_below(estimate, 0.5).verdict == below
    assert claim_above(estimate, 0.5).verdict == above
    assert claim_within(estimate, 0.0, 0.5).verdict == within


def test_all_claims_hold_only_if_each_does():
    assert all_of(("supported", "supported")) == "supported"
    assert all_of(("supported", "undetermined")) == "undetermined"
    assert all_of(("undetermined", "not_supported")) == "not_supported"
    assert all_of(()) == "undetermined"

"""Bootstrap intervals of means, ratios and paired differences, and the median's interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import bootstrap_mean, bootstrap_ratio, paired_bootstrap
from obliteratus.statistics.quantile import median

RANDOM = np.random.default_rng(0)
SKEWED = RANDOM.lognormal(size=60)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_mean_agrees_with_scipy(method: str):
    ours = bootstrap_mean(SKEWED, seed=3, method=method, resamples=999)  # pyright: ignore[reportArgumentType]
    theirs = stats.bootstrap(
        (SKEWED,), np.mean, n_resamples=999, method=method, rng=np.random.default_rng(3)
    ).confidence_interval
    # scipy's batches draw in another order, so the two differ by Monte Carlo error only.
    assert ours.interval == pytest.approx((theirs.low, theirs.high), rel=0.05)
    assert ours.value == pytest.approx(SKEWED.mean())


def test_one_seed_gives_one_interval():
    first, again, other = (bootstrap_mean(SKEWED, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.interval != other.interval


def test_skewed_means_get_a_skewed_interval_from_bca_only():
    bca = bootstrap_mean(SKEWED, seed=0)
    percentile = bootstrap_mean(SKEWED, seed=0, method="percentile")
    assert bca.interval[1] - bca.value > percentile.interval[1] - percentile.value


@given(
    st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=30),
    st.floats(-5, 5).map(lambda x: round(x, 3)),
)
@settings(max_examples=25, deadline=None)
def test_a_shift_of_every_unit_shifts_the_interval(values: list[float], shift: float):
    array = np.array(values)
    plain = bootstrap_mean(array, seed=0, resamples=199, method="percentile")
    moved = bootstrap_mean(array + shift, seed=0, resamples=199, method="percentile")
    assert moved.interval == pytest.approx(tuple(x + shift for x in plain.interval), abs=1e-6)
    assert plain.interval[0] - 1e-9 <= plain.value <= plain.interval[1] + 1e-9


def test_identical_models_differ_by_exactly_nothing():
    same = paired_bootstrap(SKEWED, SKEWED.copy(), seed=0)
    assert (same.value, same.interval) == (0.0, (0.0, 0.0))


def test_paired_interval_is_narrower_than_the_spread_of_units():
    after = SKEWED + RANDOM.normal(0.3, 0.05, size=60)
    estimate = paired_bootstrap(SKEWED, after, seed=0)
    assert 0.28 < estimate.interval[0] < estimate.interval[1] < 0.33


def test_ratio_weighs_documents_by_their_tokens():
    tokens = np.array([1000.0, 10.0, 10.0])
    change = np.array([0.0, 10.0, 10.0])
    assert bootstrap_ratio(change, tokens, seed=0).value == pytest.approx(20 / 1020)


def test_ratio_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        tokens = random.integers(50, 400, size=40).astype(float)
        change = tokens * random.normal(0.02, 0.03, size=40)
        low, high = bootstrap_ratio(change, tokens, seed=seed, resamples=299).interval
        covered += low <= 0.02 <= high
    assert covered / 200 > 0.88


def test_one_unit_is_refused():
    with pytest.raises(MeasurementError, match="at least two independent"):
        bootstrap_mean(np.array([1.0]), seed=0)


def test_nan_is_refused_with_its_count():
    with pytest.raises(MeasurementError, match="1 of 3 measured values are NaN"):
        bootstrap_mean(np.array([1.0, np.nan, 2.0]), seed=0)


def test_a_document_without_tokens_is_refused():
    with pytest.raises(MeasurementError, match="positive denominator"):
        bootstrap_ratio(np.array([1.0, 2.0]), np.array([0.0, 2.0]), seed=0)


@given(st.integers(2, 300))
def test_median_interval_agrees_with_scipy(n: int):
    values = np.random.default_rng(n).normal(size=n)
    ours = median(values)
    theirs = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    if n > 5:
        assert ours.interval == (theirs.low, theirs.high)
    else:
        assert ours.interval == (values.min(), values.max())

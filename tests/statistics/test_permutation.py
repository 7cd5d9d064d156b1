"""Permutation tests, Holm's correction and the minimum detectable effect."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from obliteratus.errors import MeasurementError
from obliteratus.statistics.multiple import holm
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.permutation import sign_flip, two_sample
from obliteratus.statistics.power import detectable_mean, detectable_turned


def test_sign_flip_enumerates_small_samples_exactly():
    # All six positive: 2 of the 64 sign patterns are as extreme.
    result = sign_flip(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), seed=0)
    assert result.p_value == pytest.approx(2 / 64)
    assert result.effect.null == 0.0


def test_sign_flip_finds_a_shift_and_its_absence():
    noise = np.random.default_rng(2).normal(size=64)
    assert sign_flip(noise + 1, seed=0).p_value < 1e-3
    assert sign_flip(noise - noise.mean(), seed=0).p_value > 0.5


def test_sign_flip_rejects_a_true_null_as_often_as_it_says():
    random = np.random.default_rng(3)
    p_values = [
        sign_flip(random.standard_t(3, size=20), seed=i, permutations=199).p_value
        for i in range(200)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.09


def test_no_change_at_all_has_p_one():
    assert sign_flip(np.zeros(12), seed=0).p_value == 1.0


def test_two_sample_agrees_with_scipy_in_direction_and_size():
    random = np.random.default_rng(4)
    first, second = random.normal(0, 1, 40), random.normal(1, 1, 50)
    result = two_sample(first, second, seed=0, permutations=1999)
    assert result.effect.value == pytest.approx(second.mean() - first.mean())
    assert result.p_value < 0.01
    assert stats.ttest_ind(first, second).pvalue < 0.01
    assert two_sample(first, first + 0.0, seed=0, permutations=1999).p_value > 0.9


@settings(max_examples=5, deadline=None)
@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=8
    )
)
def test_holm_agrees_with_statsmodels(family: dict[str, float]):
    adjusted = holm(family)
    expected = multipletests(list(family.values()), method="holm")[1]
    assert list(adjusted.values()) == pytest.approx(list(expected), abs=1e-12)
    assert list(adjusted) == list(family)


def test_holm_refuses_an_empty_family_and_a_nan():
    with pytest.raises(MeasurementError, match="at least one test"):
        holm({})
    with pytest.raises(MeasurementError, match="p-value of 'x' is nan"):
        holm({"x": float("nan")})


def test_detectable_mean_is_detected_four_times_in_five():
    n, deviation = 34, 0.03
    effect = detectable_mean(deviation, n)
    random = np.random.default_rng(6)
    samples = random.normal(effect, deviation, size=(2000, n))
    found = stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_detectable_share_is_detected_four_times_in_five():
    share = detectable_turned(128)
    turned = np.random.default_rng(7).binomial(128, share, size=500)
    found = [
        mcnemar([True] * 128, [False] * int(k) + [True] * (128 - int(k))).p_value < 0.05
        for k in turned
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_more_prompts_detect_less():
    assert detectable_turned(512) < detectable_turned(128) < detectable_turned(16)
    assert detectable_turned(5) == 1.0
    assert detectable_mean(1.0, 100) < detectable_mean(1.0, 10)


def test_power_of_too_few_units_is_refused():
    with pytest.raises(MeasurementError, match="n >= 2"):
        detectable_mean(1.0, 1)
    with pytest.raises(MeasurementError, match="at least one unit"):
        detectable_turned(0)

"""Exact McNemar and the interval of a paired difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from obliteratus.errors import MeasurementError
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.paired import mcnemar

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=150)


def table(both: int, lost: int, gained: int, neither: int) -> Comparison:
    cells = [(True, True)] * both + [(True, False)] * lost
    cells += [(False, True)] * gained + [(False, False)] * neither
    return mcnemar([b for b, _ in cells], [a for _, a in cells])


@given(pairs)
def test_p_value_agrees_with_statsmodels(units: list[tuple[bool, bool]]):
    result = mcnemar([b for b, _ in units], [a for _, a in units])
    counts = [[units.count((b, a)) for a in (True, False)] for b in (True, False)]
    expected = min(1.0, statsmodels_mcnemar(counts, exact=True).pvalue)
    assert result.p_value == pytest.approx(expected, abs=1e-12)
    low, high = result.effect.interval
    assert -1 <= low <= result.effect.value <= high <= 1


@given(pairs)
def test_exchanging_the_models_changes_only_the_sign(units: list[tuple[bool, bool]]):
    before, after = [b for b, _ in units], [a for _, a in units]
    forth, back = mcnemar(before, after), mcnemar(after, before)
    assert forth.p_value == pytest.approx(back.p_value)
    assert forth.effect.value == -back.effect.value
    assert forth.effect.interval == pytest.approx(tuple(-x for x in back.effect.interval[::-1]))


def test_interval_reproduces_the_published_example():
    # Fagerland, Lydersen & Laake 2014: airway hyper-responsiveness, square-and-add interval.
    result = table(both=1, lost=1, gained=7, neither=12)
    assert result.effect.interval == pytest.approx((0.026, 0.507), abs=5e-4)
    assert result.p_value == pytest.approx(0.0703, abs=1e-4)


def test_unchanged_outcomes_are_no_evidence_of_change():
    result = table(both=70, lost=0, gained=0, neither=58)
    assert (result.effect.value, result.p_value) == (0.0, 1.0)
    assert result.effect.interval[0] < 0 < result.effect.interval[1]


def test_six_turned_one_way_are_significant_and_five_are_not():
    assert table(both=0, lost=6, gained=0, neither=100).p_value < 0.05
    assert table(both=0, lost=5, gained=0, neither=100).p_value > 0.05


def test_pairing_sees_what_the_margins_alone_cannot():
    strict = table(both=50, lost=10, gained=0, neither=68)
    noisy = table(both=20, lost=40, gained=30, neither=38)
    assert strict.effect.value == noisy.effect.value
    assert strict.p_value < 0.01 < 0.2 < noisy.p_value


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        before = random.random(128) < 0.6
        after = before & (random.random(128) < 0.1)
        low, high = mcnemar(before.tolist(), after.tolist()).effect.interval
        covered += low <= -0.54 <= high
    assert covered / 400 > 0.92


def test_unequal_numbers_of_units_are_refused():
    with pytest.raises(MeasurementError, match="same prompts"):
        mcnemar([True], [True, False])


def test_a_comparison_survives_json():
    result = table(both=1, lost=1, gained=7, neither=12)
    assert Comparison.from_json(result.as_json()) == result

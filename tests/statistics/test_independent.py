"""The difference of independent estimates covers the truth, and is Newcombe's for proportions."""

import numpy as np
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.independent import independent_difference
from obliteratus.statistics.proportion import wilson


@pytest.mark.parametrize(("x", "n", "y", "m"), [(5, 64, 40, 64), (0, 100, 3, 80), (9, 9, 0, 12)])
def test_of_two_proportions_it_is_newcombes(x: int, n: int, y: int, m: int) -> None:
    found = independent_difference(wilson(x, n), wilson(y, m))
    expected = confint_proportions_2indep(y, m, x, n, method="newcomb", compare="diff")
    assert found.interval == pytest.approx(expected, abs=1e-9)
    assert found.value == pytest.approx(y / m - x / n)
    assert found.n == n + m


def test_it_turns_round_with_its_arguments() -> None:
    one, two = Estimate(0.2, (0.1, 0.4), n=9), Estimate(0.5, (0.3, 0.6), n=7)
    there, back = independent_difference(one, two), independent_difference(two, one)
    assert (-there.value, -there.interval[1], -there.interval[0]) == pytest.approx(
        (back.value, *back.interval)
    )


def test_it_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        one, two = (wilson(int(random.binomial(64, p)), 64) for p in (0.3, 0.4))
        low, high = independent_difference(one, two).interval
        hits += low <= 0.1 <= high
    assert 0.935 <= hits / 2000 <= 0.97

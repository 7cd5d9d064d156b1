"""Clustered intervals: repeating prompts adds no certainty, independent ones do."""

import numpy as np
import pytest

from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.statistics.clustered import (
    Clusters,
    clustered_mean,
    clustered_p_value,
    clustered_share,
)
from obliteratus.statistics.permutation import sign_flip
from obliteratus.statistics.proportion import wilson

RNG = np.random.default_rng(0)
VALUES = RNG.normal(0.3, 1.0, 40)
TIMES = 4
REPEATED = np.repeat(VALUES, TIMES)
OF = Clusters(np.repeat(np.arange(40), TIMES))


def width(estimate) -> float:
    return estimate.interval[1] - estimate.interval[0]


def test_the_mean_of_repeated_prompts_is_as_uncertain_as_that_of_the_prompts() -> None:
    once, again = bootstrap_mean(VALUES, seed=0), clustered_mean(REPEATED, OF, seed=0)
    assert again.value == pytest.approx(once.value)
    assert width(again) == pytest.approx(width(once), rel=0.05)
    assert again.n == 40
    as_if_independent = bootstrap_mean(REPEATED, seed=0)
    assert width(as_if_independent) < 0.6 * width(again)


def test_the_test_of_repeated_prompts_is_that_of_the_prompts() -> None:
    once, again = sign_flip(VALUES, seed=0).p_value, clustered_p_value(REPEATED, OF, seed=0)
    assert again == pytest.approx(once, abs=0.02)
    assert sign_flip(REPEATED, seed=0).p_value < again / 2


def test_a_share_of_repeated_prompts_is_wilsons_of_the_prompts() -> None:
    is_so = (VALUES > 0).astype(np.float64)
    found = clustered_share(np.repeat(is_so, TIMES), OF)
    wanted = wilson(int(is_so.sum()), 40)
    assert found.value == pytest.approx(wanted.value)
    assert found.interval == pytest.approx(wanted.interval, abs=0.01)


def test_a_share_of_independent_answers_is_as_certain_as_all_of_them() -> None:
    is_so = (RNG.random(4000) < 0.3).astype(np.float64)
    found = clustered_share(is_so, Clusters(np.repeat(np.arange(1000), TIMES)))
    assert width(found) == pytest.approx(width(wilson(int(is_so.sum()), 4000)), rel=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_none_of_all_is_as_uncertain_as_none_of_the_prompts(value: float) -> None:
    found = clustered_share(np.full(160, value), OF)
    assert found.interval == pytest.approx(wilson(int(40 * value), 40).interval)


def test_intervals_cover_in_95_of_100_draws() -> None:
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = rng.beta(1, 2, 60)  # each prompt has its own chance, a third on average
        answers = (rng.random((60, TIMES)) < own[:, None]).astype(np.float64).reshape(-1)
        found = clustered_share(answers, Clusters(np.repeat(np.arange(60), TIMES)))
        hits += found.interval[0] <= 1 / 3 <= found.interval[1]
    assert 180 <= hits <= 199


def test_clusters_of_different_sizes_weigh_by_their_values() -> None:
    of = Clusters(np.array([0, 0, 0, 1]))
    found = clustered_mean(np.array([1.0, 1.0, 1.0, 5.0]), of, seed=0)
    assert found.value == pytest.approx(2.0)


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(MeasurementError, match="3 values were measured for 4 prompts"):
        clustered_mean(np.zeros(3), Clusters(np.array([0, 0, 1, 1])), seed=0)
    with pytest.raises(MeasurementError, match="at least two independent"):
        clustered_share(np.zeros(4), Clusters(np.zeros(4, dtype=np.int64)))

"""Permutation tests: the null distribution comes from the data itself."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import stats

from obliteratus.statistics.bootstrap import (
    RESAMPLES,
    bootstrap_difference,
    bootstrap_mean,
    check_units,
    difference_of_means,
)
from obliteratus.statistics.comparison import Comparison

BATCH = 512  # permutations held in memory at once


def sign_flip(
    differences: Float64[np.ndarray, " unit"], *, seed: int, permutations: int = RESAMPLES
) -> Comparison:
    """Test whether paired ``differences`` are symmetric about 0 by flipping their signs.

    ``p_value`` is two-sided and exact: with fewer than ``permutations`` sign patterns all are
    enumerated, else the observed one is counted among those drawn, so it is never 0. ``effect`` is
    the mean difference with its bootstrap interval.

    Raises:
        MeasurementError: fewer than two units, or a value that is not finite.
    """
    check_units(differences)
    result = stats.permutation_test(
        (differences,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=BATCH,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    effect = replace(bootstrap_mean(differences, seed=seed), null=0.0)
    return Comparison(effect, min(1.0, float(result.pvalue)), "sign-flip permutation")


def two_sample(
    first: Float64[np.ndarray, " first"],
    second: Float64[np.ndarray, " second"],
    *,
    seed: int,
    permutations: int = RESAMPLES,
) -> Comparison:
    """Test whether two independent samples have one distribution, by permuting their labels.

    The statistic is the difference of means, ``second`` − ``first``; ``effect`` carries its
    percentile bootstrap interval (both samples resampled) and null 0.

    Raises:
        MeasurementError: a sample with fewer than two units, or a value that is not finite.
    """
    effect = bootstrap_difference(first, second, seed=seed, resamples=permutations)
    result = stats.permutation_test(
        (second, first),
        difference_of_means,
        permutation_type="independent",
        vectorized=True,
        n_resamples=permutations,
        batch=BATCH,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return Comparison(effect, min(1.0, float(result.pvalue)), "label permutation")


def _mean(values: np.ndarray, axis: int = -1) -> Any:
    return np.mean(values, axis=axis)

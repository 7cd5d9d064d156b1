"""Bootstrap intervals for a mean, a ratio of sums and a paired difference."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.estimate import Estimate

CONFIDENCE = 0.95
RESAMPLES = 4999  # the interval's ends then vary by about 1 % of its width between seeds
BATCH = 512  # resamples held in memory at once
Method = Literal["BCa", "percentile"]


def bootstrap_mean(
    values: Float64[np.ndarray, " unit"],
    *,
    seed: int,
    method: Method = "BCa",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate the mean of independent ``values`` with a bootstrap interval.

    ``BCa`` (Efron 1987) corrects for bias and skewness; ``percentile`` does not. Values that are
    all equal give an interval of no width: resampling can show nothing else.

    Raises:
        MeasurementError: fewer than two values, or a value that is not finite.
    """
    return _bootstrap(
        (values,), _mean, seed=seed, method=method, confidence=confidence, resamples=resamples
    )


def bootstrap_ratio(
    numerators: Float64[np.ndarray, " unit"],
    denominators: Float64[np.ndarray, " unit"],
    *,
    seed: int,
    method: Method = "BCa",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate Σ numerators / Σ denominators, resampling whole units.

    With the summed NLL change and the token count of each document this is the token-weighted
    change per token, and documents, not tokens, are what is independent.

    Raises:
        MeasurementError: fewer than two units, a value that is not finite, or a denominator that
            is not positive.
    """
    if np.any(denominators <= 0):
        raise MeasurementError("every unit of a ratio needs a positive denominator (token count).")
    return _bootstrap(
        (numerators, denominators),
        _ratio,
        seed=seed,
        method=method,
        confidence=confidence,
        resamples=resamples,
    )


def paired_bootstrap(
    before: Float64[np.ndarray, " unit"],
    after: Float64[np.ndarray, " unit"],
    *,
    seed: int,
    method: Method = "BCa",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate the mean of ``after`` − ``before``, unit by unit; its null value is 0.

    Raises:
        MeasurementError: fewer than two units, or a value that is not finite.
    """
    return bootstrap_mean(
        after - before, seed=seed, method=method, confidence=confidence, resamples=resamples
    )


def bootstrap_difference(
    first: Float64[np.ndarray, " first"],
    second: Float64[np.ndarray, " second"],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate mean(``second``) − mean(``first``) of independent samples; its null value is 0.

    The interval is the percentile interval with both samples resampled.

    Raises:
        MeasurementError: a sample with fewer than two units, or a value that is not finite.
    """
    n = check_units(first) + check_units(second)
    interval = stats.bootstrap(
        (second, first),
        difference_of_means,
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    value = float(second.mean() - first.mean())
    ends = (float(interval.low), float(interval.high))
    return Estimate(value, ends, n=n, null=0.0, seed=seed)


def difference_of_means(second: np.ndarray, first: np.ndarray, axis: int = -1) -> Any:
    """Return mean(``second``) − mean(``first``) along ``axis``."""
    return np.mean(second, axis=axis) - np.mean(first, axis=axis)


def check_units(*samples: Float64[np.ndarray, " unit"]) -> int:
    """Return the number of units.

    Raises:
        MeasurementError: fewer than two units, or a value that is not finite.
    """
    n = samples[0].shape[0]
    if n < 2:
        raise MeasurementError(
            f"an interval needs at least two independent prompts or documents; there is {n}. "
            "Measure more of them."
        )
    for sample in samples:
        bad = int(np.count_nonzero(~np.isfinite(sample)))
        if bad:
            raise MeasurementError(
                f"{bad} of {n} measured values are NaN or infinite. The model's logits overflow: "
                "load it with --dtype float32 or bfloat16."
            )
    return n


def _mean(values: np.ndarray, axis: int = -1) -> Any:
    return np.mean(values, axis=axis)


def _ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int = -1) -> Any:
    return np.sum(numerators, axis=axis) / np.sum(denominators, axis=axis)


def _bootstrap(
    data: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    *,
    seed: int,
    method: Method,
    confidence: float,
    resamples: int,
) -> Estimate:
    n = check_units(*data)
    value = float(statistic(*data))
    if is_degenerate(data, statistic, value):
        return Estimate(value, (value, value), n=n, seed=seed)
    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        confidence_level=confidence,
        method=method,
        rng=np.random.default_rng(seed),
    )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return Estimate(value, (low, high), n=n, seed=seed)


def is_degenerate(
    data: tuple[np.ndarray, ...], statistic: Callable[..., Any], value: float
) -> bool:
    """Say whether every unit alone gives ``value``, so that no resample can differ from it."""
    each = statistic(*(sample[:, None] for sample in data))
    return bool(np.all(np.abs(each - value) <= 8 * math.ulp(max(1.0, abs(value)))))

"""Intervals and nulls of many quantities at once, the same resamples of prompts for all of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import CONFIDENCE

RESAMPLES = 1999
SIGNIFICANT = 0.05
FLOOR = 1e-3
"""Of the largest quantity: standard errors are at least this, or rounding would be an effect."""
TINY = 1e-24
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Classes:
    """What was measured of each prompt: one column for every quantity.

    Where ``is_paired``, row i of both is one pair: both are resampled together, and the null
    exchanges labels within pairs. Otherwise each class is resampled alone and labels are dealt
    anew.
    """

    harmful: Float64[np.ndarray, "harmful quantity"]
    harmless: Float64[np.ndarray, "harmless quantity"]
    is_paired: bool

    def __post_init__(self) -> None:
        """Refuse what has no interval.

        Raises:
            MeasurementError: a class has fewer than two prompts, or a value is not finite.
        """
        for side in (self.harmful, self.harmless):
            if len(side) < 2:
                raise MeasurementError(
                    f"an interval needs two prompts of each class; there is {len(side)}. Give more "
                    "prompts (analyze.prompts)."
                )
            if not np.isfinite(side).all():
                raise MeasurementError(
                    f"{int((~np.isfinite(side)).sum())} of {side.size} measured values are NaN or "
                    "infinite. Load the model with --dtype float32 or bfloat16."
                )

    @property
    def n(self) -> int:
        """The number of independent units: pairs, or prompts."""
        return len(self.harmful) if self.is_paired else len(self.harmful) + len(self.harmless)

    @property
    def contrast(self) -> Float64[np.ndarray, " quantity"]:
        """Mean harmful − mean harmless."""
        return self.harmful.mean(axis=0) - self.harmless.mean(axis=0)

    def resampled(
        self, rng: np.random.Generator, resamples: int = RESAMPLES
    ) -> tuple[Float64[np.ndarray, "sample quantity"], Float64[np.ndarray, "sample quantity"]]:
        """Return the means of both classes in bootstrap samples of the prompts (or pairs)."""
        first = weights(len(self.harmful), rng, resamples)
        second = first if self.is_paired else weights(len(self.harmless), rng, resamples)
        return first @ self.harmful, second @ self.harmless

    def tested(self, rng: np.random.Generator, permutations: int) -> "Tested":
        """Test every contrast against shuffled labels, in standard errors under each shuffling."""
        given, shuffled = self._labels(rng, permutations)
        values, errors = self._contrasts(given)
        null_values, null_errors = self._contrasts(shuffled)
        largest = (np.abs(null_values) / null_errors).max(axis=1)
        return Tested(max_t(np.abs(values[0]) / errors[0], largest), errors[0], largest)

    def _labels(
        self, rng: np.random.Generator, permutations: int
    ) -> tuple[Bool[np.ndarray, "one unit"], Bool[np.ndarray, "permutation unit"]]:
        """Return which units count as they are given: pairs, or prompts that are harmful."""
        if self.is_paired:
            given = np.ones((1, len(self.harmful)), dtype=bool)
            return given, rng.random((permutations, len(self.harmful))) < 0.5
        given = np.repeat([True, False], (len(self.harmful), len(self.harmless)))[None]
        return given, np.stack([rng.permutation(given[0]) for _ in range(permutations)])

    def _contrasts(
        self, label: Bool[np.ndarray, "sample unit"]
    ) -> tuple[Float64[np.ndarray, "sample quantity"], Float64[np.ndarray, "sample quantity"]]:
        """Return contrasts and their standard errors under every labelling."""
        if self.is_paired:
            values = self.harmful - self.harmless
            means, variance = _moments((2.0 * label - 1) / len(values), values)
        else:
            values = np.concatenate([self.harmful, self.harmless])
            sides = [
                _moments(side / side.sum(axis=1, keepdims=True), values)
                for side in (label.astype(float), 1.0 - label)
            ]
            means, variance = sides[0][0] - sides[1][0], sides[0][1] + sides[1][1]
        largest = float(np.sqrt((values**2).mean(axis=0).max() / len(values)))
        return means, np.sqrt(np.maximum(variance, (FLOOR * largest) ** 2 + TINY))


@dataclass(frozen=True)
class Tested:
    """p-values of many contrasts, corrected for being many, and what they are made of.

    ``errors`` are standard errors, ``largest`` the largest statistic of every shuffling.
    """

    p: Float64[np.ndarray, " quantity"]
    errors: Float64[np.ndarray, " quantity"]
    largest: Float64[np.ndarray, " permutation"]

    @property
    def chance(self) -> Float64[np.ndarray, " quantity"]:
        """What every contrast would have to reach."""
        return chance(self.largest) * self.errors


def _moments(
    weight: Float64[np.ndarray, "sample unit"], values: Float64[np.ndarray, "unit quantity"]
) -> tuple[Float64[np.ndarray, "sample quantity"], Float64[np.ndarray, "sample quantity"]]:
    """Return weighted means and the variances of these means; signs of weights turn values."""
    means = weight @ values
    count = np.count_nonzero(weight, axis=1)[:, None]
    variance = (np.abs(weight) @ values**2 - means**2) / np.maximum(count - 1, 1)
    return means, np.maximum(variance, 0.0)


def weights(
    n: int, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Float64[np.ndarray, "sample unit"]:
    """Return in each row the weights of ``n`` units in a bootstrap sample; they sum to 1."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n


def ends(
    samples: Float64[np.ndarray, "sample *quantity"],
) -> tuple[Float64[np.ndarray, "*quantity"], Float64[np.ndarray, "*quantity"]]:
    """Return both ends of the percentile interval of every quantity."""
    low, high = np.quantile(samples, TAILS, axis=0)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def max_t(
    observed: Float64[np.ndarray, "*quantity"], largest: Float64[np.ndarray, " permutation"]
) -> Float64[np.ndarray, "*quantity"]:
    """Return p-values of ``observed``, corrected for all that ``largest`` was taken over.

    ``largest`` holds the largest statistic of each permutation (Westfall and Young 1993); the
    observed labelling counts as one of them.
    """
    reached = (largest >= observed[..., None] * (1 - 1e-12)).sum(axis=-1)
    return (1.0 + reached) / (1 + len(largest))


def chance(largest: Float64[np.ndarray, " permutation"]) -> float:
    """Return what the largest statistic stays below in 19 of 20 permutations."""
    return float(np.quantile(largest, 1 - SIGNIFICANT))


def prediction_bound(means: Float64[np.ndarray, " null"], *, level: float = SIGNIFICANT) -> float:
    """Return what a further null stays below in 1 − ``level`` of cases, never below 0.

    The one-sided prediction bound of a normal sample, m + t s √(1 + 1 / k) (Hahn 1969). It counts
    the scatter between nulls, which no number of prompts reduces.

    Raises:
        MeasurementError: fewer than three nulls, of which no scatter can be told.
    """
    count = len(means)
    if count < 3:
        raise MeasurementError(f"a bound needs three nulls at least, and there are {count}.")
    reach = float(stats.t.ppf(1 - level, count - 1)) * float(np.sqrt(1 + 1 / count))
    return max(0.0, float(means.mean()) + reach * float(means.std(ddof=1)))

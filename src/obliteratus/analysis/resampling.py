"""Intervals and nulls of many quantities at once, the same resamples of prompts for all of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import CONFIDENCE

RESAMPLES = 1999
SIGNIFICANT = 0.05
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

    def shuffled(
        self, rng: np.random.Generator, permutations: int
    ) -> Float64[np.ndarray, "permutation quantity"]:
        """Return the contrasts under shuffled labels."""
        if self.is_paired:
            signs = rng.choice([-1.0, 1.0], size=(permutations, len(self.harmful)))
            return signs @ (self.harmful - self.harmless) / len(self.harmful)
        both = np.concatenate([self.harmful, self.harmless])
        counts = (len(self.harmful), len(self.harmless))
        label = np.repeat([1 / counts[0], -1 / counts[1]], counts)
        return np.stack([rng.permutation(label) for _ in range(permutations)]) @ both

    def spread(self) -> Float64[np.ndarray, " quantity"]:
        """Return the standard error of the contrast, at least a millionth of the largest one."""
        if self.is_paired:
            variance = (self.harmful - self.harmless).var(axis=0, ddof=1) / len(self.harmful)
        else:
            variance = self.harmful.var(axis=0, ddof=1) / len(self.harmful)
            variance = variance + self.harmless.var(axis=0, ddof=1) / len(self.harmless)
        error = np.sqrt(variance)
        floor = 1e-6 * float(error.max()) or 1.0
        return np.maximum(error, floor)


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

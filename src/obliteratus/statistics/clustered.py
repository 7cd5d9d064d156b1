"""Intervals of prompts that come in clusters: rewrites of one prompt are not independent."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import bootstrap_ratio, check_units
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.permutation import sign_flip

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Clusters:
    """Which of the independent units each value belongs to, as numbers from 0 on."""

    of: Int64[np.ndarray, " value"]

    @property
    def sizes(self) -> Float64[np.ndarray, " cluster"]:
        """How many values each cluster has."""
        return np.bincount(self.of).astype(np.float64)

    def sums(self, values: Float64[np.ndarray, " value"]) -> Float64[np.ndarray, " cluster"]:
        """Return the sum of the values of each cluster.

        Raises:
            MeasurementError: there is not one value for each number.
        """
        if len(values) != len(self.of):
            raise MeasurementError(
                f"{len(values)} values were measured for {len(self.of)} prompts; measure all."
            )
        return np.bincount(self.of, weights=values)


def clustered_mean(
    values: Float64[np.ndarray, " value"], clusters: Clusters, *, seed: int
) -> Estimate:
    """Estimate the mean of ``values``, resampling whole clusters; ``n`` counts clusters.

    It is Σ sums / Σ sizes with the BCa bootstrap, so that clusters may differ in size.

    Raises:
        MeasurementError: fewer than two clusters, or a value that is not finite.
    """
    return bootstrap_ratio(clusters.sums(values), clusters.sizes, seed=seed)


def clustered_p_value(
    differences: Float64[np.ndarray, " value"], clusters: Clusters, *, seed: int
) -> float:
    """Return the two-sided p-value of signs flipped cluster by cluster.

    Raises:
        MeasurementError: as :func:`clustered_mean`.
    """
    return sign_flip(clusters.sums(differences), seed=seed).p_value


def clustered_share(
    is_so: Float64[np.ndarray, " value"], clusters: Clusters, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate a share of 0/1 values: Wilson's interval at the effective sample size.

    n_eff = n / deff with the design effect of Kish (1965): the variance of Σ sums / Σ sizes over
    clusters against p (1 − p) / n. It lies between 1 and the mean size of a cluster, which is
    taken where all values are the same: nothing then shows that rewrites are more than repeats.
    A bootstrap would give 0 of n no width; this gives 0 of 128 prompts what Wilson gives it.

    Raises:
        MeasurementError: fewer than two clusters, or a value that is not finite.
    """
    sizes, sums = clusters.sizes, clusters.sums(is_so)
    check_units(sums)
    n, count = float(sizes.sum()), len(sizes)
    p, largest = float(sums.sum() / n), n / len(sizes)
    binomial = p * (1 - p) / n
    deff = largest
    if binomial > 0:
        spread = float(((sums - p * sizes) ** 2).sum()) * count / (count - 1)
        deff = min(max(spread / n**2 / binomial, 1.0), largest)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    size = n / deff
    middle = (p + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * math.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    low = 0.0 if p == 0 else max(0.0, middle - reach)
    high = 1.0 if p == 1 else min(1.0, middle + reach)
    return Estimate(p, (low, high), n=count)

"""A quantile with its distribution-free interval."""

import numpy as np
from jaxtyping import Float64
from scipy import stats

from obliteratus.statistics.bootstrap import CONFIDENCE, check_units
from obliteratus.statistics.estimate import Estimate


def median(values: Float64[np.ndarray, " unit"], *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the median with the interval between two order statistics.

    The number of values below the true median is Binomial(n, ½), so the interval's coverage is at
    least ``confidence`` for every continuous distribution. With too few values for that (five or
    less at 95 %) it is the range, whose coverage is 1 − 2·2⁻ⁿ.

    Raises:
        MeasurementError: fewer than two values, or a value that is not finite.
    """
    n = check_units(values)
    ordered = np.sort(values)
    # The largest k with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2, at least the extremes.
    k = max(1, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)))
    return Estimate(float(np.median(values)), (float(ordered[k - 1]), float(ordered[n - k])), n=n)

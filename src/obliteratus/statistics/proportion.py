"""A proportion with its Wilson score interval."""

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from obliteratus.errors import MeasurementError
from obliteratus.statistics.estimate import Estimate

CONFIDENCE = 0.95


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a proportion from ``successes`` of ``n`` independent trials.

    The interval is Wilson's score interval (Wilson 1927), which stays inside [0, 1] and has width
    at 0 and at n successes: 0 of 100 gives an upper bound of 3.7 %.

    Raises:
        MeasurementError: there are no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise MeasurementError(
            f"a proportion needs 0 <= successes <= n and n >= 1; got {successes} of {n}. "
            "Measure at least one prompt."
        )
    bounds = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    low, high = np.asarray(bounds, dtype=np.float64).tolist()
    # At 0 and at n rounding leaves the bound that is exactly 0 or 1 a few ulp away from it.
    return Estimate(
        value=successes / n,
        interval=(
            0.0 if successes == 0 else low,
            1.0 if successes == n else high,
        ),
        n=n,
    )

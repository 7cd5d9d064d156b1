"""Is a change small enough to call none? Two one-sided tests (TOST)."""

import math

import numpy as np
from jaxtyping import Float64
from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import check_units
from obliteratus.statistics.claims import claim_within
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate

LEVEL = 0.05  # of each one-sided test: the decisive interval is the 1 − 2 · 5 % = 90 % one


def tost(
    differences: Float64[np.ndarray, " unit"],
    lower: float,
    upper: float,
    *,
    weights: Float64[np.ndarray, " unit"] | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Test whether the mean of paired ``differences`` lies in (``lower``, ``upper``).

    Without ``weights`` this is Schuirmann's paired t procedure. With weights w the quantity is
    r = Σ w·d / Σ w (the change per token, when d is a document's change per token and w its
    tokens), whose standard error is that of a ratio estimator: e = w (d − r) / mean(w), se =
    sd(e) / √n, on n − 1 degrees of freedom, because documents are what is independent.

    ``effect.interval`` is the 1 − 2·``level`` (90 %) interval that decides ``effect.verdict``:
    supported inside the bounds, not supported wholly outside, else undetermined. ``p_value`` is
    the larger of the two one-sided p-values; below ``level`` exactly when the claim is supported.

    Raises:
        MeasurementError: fewer than two units, a value that is not finite, bounds out of order, or
            a weight that is not positive.
    """
    n = check_units(differences)
    if lower >= upper:
        raise MeasurementError(f"the bounds of equivalence are out of order: {lower} >= {upper}.")
    share = np.ones(n) if weights is None else weights / weights.mean()
    if np.any(share <= 0):
        raise MeasurementError("every weight (a document's token count) must be positive.")
    mean = float(np.mean(share * differences))
    error = float(np.std(share * (differences - mean), ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf(1 - level, n - 1)) * error
    effect = claim_within(Estimate(mean, (mean - reach, mean + reach), n=n), lower, upper)
    worst = min(mean - lower, upper - mean)
    # Equal differences have no error: their statistic is ±infinity, whose tail is 0 or 1.
    statistic = worst / error if error else math.copysign(math.inf, worst)
    p_value = float(stats.t.sf(statistic, n - 1))
    return Comparison(effect, p_value, f"TOST in ({lower:g}, {upper:g})")

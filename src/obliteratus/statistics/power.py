"""What a measurement of this size could have seen: the minimum detectable effect."""

import math

from scipy import optimize, stats

from obliteratus.errors import MeasurementError

LEVEL = 0.05
POWER = 0.8


def detectable_mean(
    deviation: float, n: int, *, power: float = POWER, level: float = LEVEL
) -> float:
    """Return the smallest mean of paired differences that n units show with the given power.

    For differences with standard deviation ``deviation`` and a two-sided t test at ``level``: the
    noncentrality δ with P(F'(1, n − 1, δ²) > t²) = power, times deviation / √n.

    Raises:
        MeasurementError: fewer than two units or a negative deviation.
    """
    if n < 2 or deviation < 0:
        raise MeasurementError(f"power needs n >= 2 and deviation >= 0; got {n} and {deviation}.")
    threshold = float(stats.t.ppf(1 - level / 2, n - 1))

    def shortfall(noncentrality: float) -> float:
        return float(stats.ncf.sf(threshold**2, 1, n - 1, noncentrality**2)) - power

    # The test statistic exceeds t by ten standard deviations here: the power is 1.
    root = optimize.root_scalar(shortfall, bracket=(0.0, threshold + 10)).root
    return float(root) * deviation / math.sqrt(n)


def detectable_turned(n: int, *, power: float = POWER, level: float = LEVEL) -> float:
    """Return the smallest share of units turning one way that exact McNemar shows with the power.

    With all discordant units in one direction, k of them are significant when 2·2⁻ᵏ <= ``level``;
    their number is Binomial(n, share). 1.0 when even n units would not suffice.

    Raises:
        MeasurementError: there are no units.
    """
    if n < 1:
        raise MeasurementError("power needs at least one unit.")
    needed = math.ceil(1 + math.log2(1 / level))
    if needed > n:
        return 1.0

    def shortfall(share: float) -> float:
        return float(stats.binom.sf(needed - 1, n, share)) - power

    return float(optimize.root_scalar(shortfall, bracket=(0.0, 1.0)).root)
